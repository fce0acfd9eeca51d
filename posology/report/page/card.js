// The card of a run, opened by an address such as #run-00869c9b, so that it can be kept, sent and gone back from.

const card = find(".card");
const blocks = new Map();
const runIndex = new Map(data.rows.flatMap((row) => row.keys.map((key, number) => [key, { row, number }])));
let cameFrom = null;
let shown = ""; // the address that the open card belongs to

function detailsOf(row, number) {
  const index = row.first + number;
  const block = Math.floor(index / data.block);
  if (!blocks.has(block)) blocks.set(block, JSON.parse(document.getElementById(`runs-${block}`).textContent));
  return blocks.get(block)[index % data.block];
}

function openFromAddress() {
  const found = runIndex.get(location.hash.replace(/^#run-/, ""));
  if (!found) {
    if (card.open) card.close();
    return;
  }
  if (!card.open) cameFrom = document.activeElement;
  const kept = card.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
  shown = location.hash;
  fillCard(found.row, found.number);
  hideTip();
  if (!card.open) card.showModal();
  card.scrollTop = 0;
  const again = kept && findAll("[data-focus]", card).find((element) => element.dataset.focus === kept && !element.disabled);
  (again || find(".close", card)).focus();
}

function fillCard(row, number) {
  const task = taskOf(row);
  const run = detailsOf(row, number);
  const key = row.keys[number];
  const place = view.order.findIndex((each) => data.rows[each] === row);
  const neighbour = (step, text) => {
    const other = data.rows[view.order[place + step]];
    const button = make("button", { type: "button", "data-focus": text }, text);
    button.disabled = place < 0 || !other;
    button.addEventListener("click", () => { location.replace(`#run-${other.keys[0]}`); });
    return button;
  };
  const close = make("button", { type: "button", class: "close", "aria-label": "Close" }, "×");
  close.addEventListener("click", closeCard);
  card.replaceChildren(
    make("div", { class: "bar-top" }, neighbour(-1, "Previous"), neighbour(1, "Next"), close),
    make("p", { class: "kicker" }, task.name),
    make("h2", { id: "card-name" }, glyph(row.method, fillOf(row.backbone)), row.name),
    make("p", { class: "big" }, three(row.score[0]), make("small", {}, ` ${task.metric}${rangeText(row.score) ? `, 95 % interval ${rangeText(row.score)}` : ""}`)),
    ...(row.spread ? [make("p", { class: "aside" }, row.spread)] : []),
    ...saidOf(task, row),
    ...seedsOf(row, number),
    definitions([["Run", make("code", {}, key)], ["Seed", run.seed], ["Studies", run.studies.join(", ")], ["Data", task.name],
      [`${task.metric} on test`, scoreText(run.scores[0] || [null, null, null])], [`${task.metric} on validation`, run.validation]]),
    ...recipeOf(row, run),
    ...measuresOf(run),
    part("Scores on test", scoresOf(task, run)),
    ...(run.curve.length > 1 ? [part("During training", sparkline(run.curve, task.metric))] : []),
    ...labelsOf(task, run));
}

const part = (title, ...children) => make("section", {}, make("h3", {}, title), ...children);
const definitions = (pairs) => make("dl", {}, ...pairs.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));

function saidOf(task, row) {
  const said = task.said.filter(([first, second]) => first === row.name || second === row.name);
  return said.length ? [make("ul", { class: "said" }, ...said.map(([, , sentence]) => make("li", {}, sentence)))] : [];
}

function seedsOf(row, number) {
  if (row.keys.length < 2) return [];
  const links = row.keys.map((key, other) => {
    const link = make("a", { href: `#run-${key}`, "data-focus": key, "aria-current": other === number ? "true" : null }, `seed ${detailsOf(row, other).seed}`);
    link.addEventListener("click", (event) => {
      event.preventDefault();
      location.replace(`#run-${key}`);
    });
    return link;
  });
  return [make("nav", { class: "seeds", "aria-label": "Runs of this configuration" }, ...links)];
}

function measuresOf(run) {
  const known = data.facts.map((name, number) => [name, run.facts[number]]).filter(([, text]) => text);
  const missing = data.facts.filter((name, number) => !run.facts[number]).map((name) => name.toLowerCase());
  return [part("Measures", definitions(known), ...(missing.length ? [make("p", { class: "aside" }, `Not measured: ${missing.join(", ")}.`)] : []))];
}

function tableOf(heads, rows) {
  const cell = (text, number) => make(number ? "td" : "th", number ? { class: "number" } : { scope: "row" }, text);
  return make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ...heads.map((head, number) => make("th", { scope: "col", class: number ? "number" : null }, head)))),
    make("tbody", {}, ...rows.map((cells) => make("tr", {}, ...cells.map(cell))))));
}

// What was asked for, and folded away every hyper-parameter that followed from it.
function recipeOf(row, run) {
  const named = data.asked.map((name, number) => [name, run.asked[number]]).filter(([, text]) => text);
  const asked = [["method", row.method], ["backbone", row.backbone || "none"], ...named, ...Object.entries(run.overrides)];
  const all = run.recipe && Object.entries({ ...data.recipe, ...run.recipe });
  return [part("Recipe", definitions(asked),
    ...(run.early ? [make("p", { class: "aside" }, "A search ended it early, since others were ahead.")] : []),
    ...(all && all.length ? [make("details", {}, make("summary", {}, "Every hyper-parameter"), definitions(all))] : []))];
}

function scoresOf(task, run) {
  const rows = task.metrics.map((name, number) => [name, run.scores[number]]).filter(([, score]) => score);
  return tableOf(["Metric", "Value", "95 % interval"], rows.map(([name, score]) => [name, three(score[0]), rangeText(score) || UNKNOWN]));
}

function labelsOf(task, run) {
  const rows = task.labels.map((name, number) => [name, run.labels[number]]).filter(([, label]) => label);
  if (!rows.length) return [];
  return [part("By label", tableOf(["Label", "Precision", "Recall", "F1", "Support"], rows.map(([name, [precision, recall, f1, support]]) =>
    [name, three(precision), three(recall), three(f1), support === null ? UNKNOWN : support.toLocaleString("en")])))];
}

// The address no longer names the card. At once, not when "close" is told: another card may be asked for before that.
function leaveAddress() {
  if (location.hash === shown) history.replaceState(null, "", "#");
}
function closeCard() {
  leaveAddress();
  card.close();
}
card.addEventListener("click", (event) => { if (event.target === card) closeCard(); });
card.addEventListener("cancel", leaveAddress);
card.addEventListener("close", () => {
  if (card.open) return;
  // What was focused may have been drawn anew since.
  if (cameFrom && cameFrom.isConnected) cameFrom.focus({ preventScroll: true });
});
addEventListener("hashchange", openFromAddress);
openFromAddress();
