"use strict";
// What all parts of the page share: its data, making elements, the tooltip and the colours' switch.

const data = JSON.parse(document.getElementById("posology-data").textContent);
const UNKNOWN = "–";
const SVG = new Set(["svg", "g", "path", "line", "circle", "rect", "text", "polyline", "a-svg"]);

const find = (selector, root = document) => root.querySelector(selector);
const findAll = (selector, root = document) => [...root.querySelectorAll(selector)];

// An element with attributes (null leaves one out) and children (text stays text). "a-svg" is a link inside a drawing.
function make(name, attributes = {}, ...children) {
  const made = SVG.has(name)
    ? document.createElementNS("http://www.w3.org/2000/svg", name.replace("-svg", ""))
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const colourOf = (method) => `c${data.methods[method][0]}`;
const fillOf = (backbone) => (data.backbones[backbone] || ["solid"])[0];
// Rows leave out what is empty.
for (const row of data.rows) {
  row.backbone ??= "";
  row.setting ??= "";
}

// A marker: its outline says the method, its filling the backbone.
function markPaths(shape, fill) {
  const outline = make("path", { class: `mark ${fill}`, d: data.shapes[shape] });
  return data.fills[fill] ? [outline, make("path", { class: "inner", d: data.fills[fill] })] : [outline];
}
function icon(colour, shape, fill) {
  return make("svg", { class: `glyph ${colour}`, width: 16, height: 16, viewBox: "-9 -9 18 18", "aria-hidden": "true" }, ...markPaths(shape, fill));
}
const shapeOf = (method) => data.methods[method][1];
const glyph = (method, fill = "solid") => icon(colourOf(method), shapeOf(method), fill);

const taskOf = (row) => data.tasks[row.task];
const three = (value) => value === null || value === undefined ? UNKNOWN : value.toFixed(3);
const rangeText = ([, low, high]) => low === null || high === null ? "" : `${three(low)}–${three(high)}`;
const scoreText = (score) => rangeText(score) ? `${three(score[0])} (${three(score[1])} to ${three(score[2])})` : three(score[0]);

// One box for all charts. It shows a name and lines, beside a mark, inside the window.
const tip = find(".tip");
let described = null;
function showTip(mark, name, lines) {
  described = mark;
  tip.replaceChildren(make("b", {}, name), ...lines.map(([label, text]) => make("div", {}, make("span", {}, label), make("span", {}, text))));
  tip.hidden = false;
  placeTip();
}
function placeTip() {
  const box = described.getBoundingClientRect();
  const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), document.documentElement.clientWidth - tip.offsetWidth - 8);
  const above = box.top - tip.offsetHeight - 10;
  tip.style.left = `${left}px`;
  tip.style.top = `${above < 8 ? box.bottom + 10 : above}px`;
}
function hideTip() {
  tip.hidden = true;
  described = null;
}
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
// Moving the focus to a point may scroll the page, after the box has opened.
addEventListener("scroll", () => { if (described) placeTip(); }, { passive: true, capture: true });

const theme = find(".theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme || (prefersDark.matches ? "dark" : "light")) === "dark";
const sayTheme = () => theme.setAttribute("aria-pressed", isDark());
theme.hidden = false;
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  sayTheme();
});
prefersDark.addEventListener("change", sayTheme);
sayTheme();
