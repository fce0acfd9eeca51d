// The text with its entities marked. Spans of several taggers may overlap: the text is cut at every boundary, and every
// span has a line of its own below the pieces it covers.

import { coverageNote } from "./labels.js";
import { kindOf, make, plural, unitsOf } from "./text.js";

const LINE = 3;
const GAP = 2;

// Gives every span the first line that is free from its start on; the longer of two that begin together goes first.
// Spans that hang together by overlaps share `cluster`, which counts their lines.
export function inLanes(spans) {
  let ends = [];
  let cluster = null;
  const ordered = [...spans].sort((a, b) => a.start - b.start || b.end - a.end);
  for (const span of ordered) {
    if (ends.every((end) => end <= span.start)) {
      ends = [];
      cluster = { lanes: 0 };
    }
    let lane = ends.findIndex((end) => end <= span.start);
    if (lane < 0) lane = ends.length;
    ends[lane] = span.end;
    cluster.lanes = ends.length;
    Object.assign(span, { lane, cluster });
  }
  return ordered;
}

function stroke({ colour, pattern }) {
  if (pattern === 0) return `linear-gradient(${colour}, ${colour})`;
  const [on, off] = pattern === 1 ? [8, 12] : [3, 6];
  return `repeating-linear-gradient(90deg, ${colour} 0 ${on}px, transparent ${on}px ${off}px)`;
}

function markOf(piece, covering) {
  const mark = make("mark", { class: kindOf(covering[0].label).hue }, piece);
  const { lanes } = covering[0].cluster;
  const height = LINE + GAP;
  mark.style.paddingBottom = `${lanes * height}px`;
  mark.style.backgroundImage = covering.map((span) => stroke(kindOf(span.label))).join(", ");
  mark.style.backgroundSize = `100% ${LINE}px`;
  mark.style.backgroundRepeat = "no-repeat";
  mark.style.backgroundPosition = covering.map((span) => `0 calc(100% - ${(lanes - 1 - span.lane) * height}px)`).join(", ");
  return mark;
}

function chip(span, shared) {
  const words = `\u00a0${span.label}\u00a0${span.score.toFixed(2)}${shared.has(span.label) ? `\u00a0${span.model}` : ""}`;
  return make("span", { class: `chip ${kindOf(span.label).hue}` }, words);
}

// The text as nodes: plain pieces, and marks with a chip where a span ends. Spans have offsets in UTF-16 units.
// Types in `shared` are those of several models, which their chips name.
export function marked(text, spans, shared) {
  const ordered = inLanes(spans);
  const cuts = [...new Set([0, text.length, ...ordered.flatMap((span) => [span.start, span.end])])].sort((a, b) => a - b);
  const nodes = [];
  let next = 0;
  let open = [];
  for (let i = 0; i + 1 < cuts.length; i++) {
    const [start, end] = [cuts[i], cuts[i + 1]];
    open = open.filter((span) => span.end > start);
    while (next < ordered.length && ordered[next].start <= start) open.push(ordered[next++]);
    const piece = text.slice(start, end);
    if (!open.length) {
      nodes.push(piece);
      continue;
    }
    const mark = markOf(piece, open);
    for (const span of open) {
      if (span.start === start) span.mark = mark;
      if (span.end === end) mark.append(chip(span, shared));
    }
    nodes.push(mark);
  }
  return nodes;
}

function spansOf(text, results) {
  const units = unitsOf(text);
  return results.flatMap((result) => result.spans
    .filter((span) => span.end > span.start)
    .map((span) => ({ ...span, model: result.model, from: span.start, to: span.end, start: units(span.start), end: units(span.end) })));
}

function table(spans, text, named) {
  const heads = ["Text", "Type", "Score", "Characters", ...(named ? ["Model"] : [])];
  const rows = [...spans].sort((a, b) => a.start - b.start || b.end - a.end).map((span) => {
    const words = text.slice(span.start, span.end).replace(/\s+/g, " ");
    const show = make("button", {
      type: "button", class: "words", title: "Show it in the text",
      onclick: () => {
        if (!span.mark?.isConnected) return;
        span.mark.scrollIntoView({ block: "center" });
        span.mark.classList.remove("pointed");
        void span.mark.offsetWidth; // begins the animation again
        span.mark.classList.add("pointed");
      },
    }, words);
    return make("tr", {}, make("td", {}, show), make("td", {}, span.label), make("td", { class: "number" }, span.score.toFixed(2)),
      make("td", { class: "number" }, `${span.from}–${span.to}`), ...(named ? [make("td", {}, span.model)] : []));
  });
  return make("details", {}, make("summary", {}, `${plural(spans.length, "entity", "entities")} as a table`),
    make("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Entities" },
      make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
        make("tbody", {}, ...rows))));
}

// Buttons that count each type and take it away from the text; `draw` is called with the spans that are left.
function legend(spans, named, draw) {
  const key = (span) => `${span.model}\n${span.label}`;
  const away = new Set();
  const groups = new Map();
  for (const span of spans) {
    if (!groups.has(span.model)) groups.set(span.model, new Map());
    const counts = groups.get(span.model);
    counts.set(span.label, (counts.get(span.label) ?? 0) + 1);
  }
  const rows = [...groups].map(([model, counts]) => {
    const buttons = [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0])).map(([label, count]) => {
      const swatch = make("span", { class: "swatch" });
      swatch.style.backgroundImage = stroke(kindOf(label));
      const button = make("button", {
        type: "button", class: `type ${kindOf(label).hue}`, "aria-pressed": "true",
        onclick: () => {
          const name = `${model}\n${label}`;
          if (!away.delete(name)) away.add(name);
          button.setAttribute("aria-pressed", String(!away.has(name)));
          draw(spans.filter((span) => !away.has(key(span))));
        },
      }, swatch, make("span", {}, label), make("span", { class: "count" }, String(count)));
      return button;
    });
    return make("div", { class: "types" }, ...(named ? [make("span", { class: "who" }, model)] : []), ...buttons);
  });
  return make("div", { class: "legend", role: "group", "aria-label": "Types shown in the text" }, ...rows);
}

export function showEntities(place, text, results) {
  place.replaceChildren();
  place.hidden = !results.length;
  if (!results.length) return 0;
  const spans = spansOf(text, results);
  const named = results.length > 1;
  const silent = results.filter((result) => !result.spans.length).map((result) => result.model);
  const body = make("div", { class: "reading", tabIndex: 0, role: "region", "aria-label": "The text with its entities" });
  const shared = new Set(spans.filter((span) => spans.some((other) => other.label === span.label && other.model !== span.model)).map((span) => span.label));
  const draw = (shown) => body.replaceChildren(...marked(text, shown, shared));
  draw(spans);
  place.append(make("h3", {}, "Entities"));
  if (spans.length) place.append(legend(spans, named, draw));
  if (silent.length) place.append(make("p", { class: "notice quiet" }, `No entities found by ${silent.join(", ")}.`));
  place.append(body);
  if (spans.length) place.append(table(spans, text, named));
  const least = Math.min(...results.map((result) => result.coverage ?? 1));
  place.append(...coverageNote(least));
  return spans.length;
}
