// The list of models, by what they give, with how good each was on its test split.

import { make, metricName } from "./text.js";

const FEW = 6;
const MANY = 8;

function score(model) {
  if (typeof model.value !== "number") return make("span", { class: "score" }, make("small", {}, "no score"));
  const three = (value) => value.toFixed(3);
  const hasInterval = typeof model.low === "number" && typeof model.high === "number";
  const words = make("span", { class: "score", title: hasInterval ? "On its test split, with the 95 % interval" : "On its test split" },
    make("small", {}, `${metricName(model.metric ?? "score")} `), make("b", {}, three(model.value)));
  if (!hasInterval) return words;
  const range = make("span", { class: "range" });
  range.style.left = `${100 * Math.max(0, model.low)}%`;
  range.style.width = `${100 * Math.max(0.01, Math.min(1, model.high) - Math.max(0, model.low))}%`;
  const dot = make("span", { class: "dot" });
  dot.style.left = `${100 * model.value}%`;
  words.append(make("small", { class: "interval" }, `${three(model.low)}–${three(model.high)}`), make("span", { class: "rail", "aria-hidden": "true" }, range, dot));
  return words;
}

function row(model, isChosen, changed) {
  const box = make("input", { type: "checkbox", name: "model", value: model.name, checked: isChosen, onchange: changed });
  const about = [model.task, model.method].filter(Boolean).join(" · ");
  return make("label", { class: "model" }, box,
    make("span", { class: "what" }, make("b", {}, model.name), make("small", {}, about)), score(model));
}

function group(title, members, isChosen, changed) {
  const boxes = () => [...place.querySelectorAll(".model:not([hidden]) input")];
  const all = make("button", {
    type: "button", class: "link",
    onclick: () => {
      const on = !boxes().every((box) => box.checked);
      for (const box of boxes()) box.checked = on;
      changed();
    },
  }, "All or none");
  const place = make("div", { class: "group", role: "group", "aria-label": title },
    make("p", { class: "title" }, make("span", {}, title), ...(members.length > 2 ? [all] : [])),
    ...members.map((model) => row(model, isChosen(model), changed)));
  return place;
}

// `before` are the names that were chosen so far, if the list was there already. Gives {chosen}: names in their order.
export function listModels(place, search, models, before, changed) {
  document.querySelector("#no-models").hidden = models.length > 0;
  place.hidden = !models.length;
  const old = before && new Set(before);
  const known = new Set([...place.querySelectorAll("input")].map((box) => box.value));
  const kinds = [
    ["Labels for the whole text", models.filter((model) => model.kind !== "token-classification")],
    ["Entities in the text", models.filter((model) => model.kind === "token-classification")],
  ];
  const isChosen = (members) => (model) => {
    if (old && known.has(model.name)) return old.has(model.name);
    return !model.text_pair && (models.length <= FEW || model === members[0]); // a pair needs a second text first
  };
  place.replaceChildren(...kinds.filter(([, members]) => members.length)
    .map(([title, members]) => group(title, members, isChosen(members), changed)));
  search.hidden = models.length <= MANY;
  place.classList.toggle("many", models.length > MANY);
  search.oninput = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const model of place.querySelectorAll(".model")) {
      const about = model.textContent.toLowerCase();
      model.hidden = !words.every((word) => about.includes(word));
    }
  };
  search.oninput();
  return { chosen: () => [...place.querySelectorAll("input:checked")].map((box) => box.value) };
}
