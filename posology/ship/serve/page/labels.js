// A card for each classifier: what it decided, and the probability of every label as a bar.

import { make, percent, plural } from "./text.js";

const SHOWN = 6;

// The probability from which the positive label is given, as {positive, probability}, or null.
function thresholdOf(model) {
  const given = model?.threshold;
  if (given === null || given === undefined) return null;
  if (typeof given === "number") return { positive: model.labels[1], probability: given };
  return typeof given.probability === "number" ? given : null;
}

function bar(label, share, chosen, threshold) {
  const fill = make("span", { class: "fill" });
  fill.style.width = `${100 * Math.min(Math.max(share, 0), 1)}%`;
  const track = make("span", { class: "track" }, fill);
  if (threshold) {
    const tick = make("span", { class: "tick" });
    tick.style.left = `${100 * threshold.probability}%`;
    track.append(tick);
  }
  return make("li", { class: label === chosen ? "chosen" : "" },
    make("span", { class: "name" }, label), track, make("span", { class: "share" }, percent(share)));
}

export function coverageNote(coverage) {
  if (typeof coverage !== "number" || coverage >= 0.9995) return [];
  return [make("p", { class: "notice quiet" }, `Only ${percent(coverage)} of the text was read; the rest is more than the model takes.`)];
}

export function labelCard(result, model) {
  const threshold = thresholdOf(model);
  const ranked = Object.entries(result.probabilities).sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
  const rows = ranked.map(([label, share]) =>
    bar(label, share, result.label, threshold?.positive === label ? threshold : null));
  const list = make("ol", { class: "bars" }, ...rows);
  const card = make("article", { class: "card" },
    make("header", {}, make("h4", {}, result.model), make("small", {}, model?.task ?? "")),
    make("p", { class: "verdict" }, make("b", {}, result.label), make("span", {}, percent(result.score))), list);
  const rest = rows.slice(SHOWN).filter((row) => !row.classList.contains("chosen"));
  if (rest.length > 1) {
    for (const row of rest) row.hidden = true;
    const more = make("button", {
      type: "button", class: "more", "aria-expanded": "false",
      onclick: () => {
        const open = more.getAttribute("aria-expanded") === "true";
        for (const row of rest) row.hidden = open;
        more.setAttribute("aria-expanded", String(!open));
        more.textContent = open ? plural(rest.length, "more label") : "Fewer labels";
      },
    }, plural(rest.length, "more label"));
    card.append(more);
  }
  const remarks = [];
  if (threshold) remarks.push(`Says “${threshold.positive}” from ${percent(threshold.probability)} on.`);
  const temperature = model?.temperature;
  const isCalibrated = typeof temperature === "number" && temperature !== 1;
  remarks.push(isCalibrated ? `Calibrated on validation data (temperature ${temperature.toFixed(2)}).` : "Probabilities are the model's own, not calibrated.");
  card.append(make("p", { class: "remark" }, remarks.join(" ")), ...coverageNote(result.coverage));
  return card;
}

export function showLabels(place, results, models) {
  place.replaceChildren();
  place.hidden = !results.length;
  if (!results.length) return;
  place.append(make("h3", {}, "Labels"),
    make("div", { class: "cards" }, ...results.map((result) => labelCard(result, models.get(result.model)))));
}
