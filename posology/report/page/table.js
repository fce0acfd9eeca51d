// The leaderboard: sorted, filtered and shown a page at a time.

const board = find(".board");
const headers = findAll("th[data-column]", board);
const form = find(".filters");
const pager = find(".pager");
const view = { order: [...data.rows.keys()], column: null, sign: 1, page: 0, size: data.page };
const shownMeasures = headers.map((header) => Number(header.dataset.column)).filter((number) => !Number.isNaN(number));

function valueOf(row, column) {
  if (column === "score") return row.score[0];
  if (column === "task") return taskOf(row).name;
  if (column === "standing") return row.standing;
  if (column === "method") return row.name;
  if (column === "backbone") return row.backbone || null;
  return row.values[Number(column)];
}

const inWords = new Intl.Collator("en", { numeric: true });
function compareRows(first, second) {
  const [a, b] = [first, second].map((number) => valueOf(data.rows[number], view.column));
  if (a === null || b === null) return (a === null) - (b === null) || first - second;
  return view.sign * (typeof a === "number" ? a - b : inWords.compare(a, b)) || first - second;
}

// A first click sorts scores from high to low, costs from low to high, and words from A to Z.
function sortBy(header) {
  const column = header.dataset.column;
  const first = column === "score" ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const direction = header.getAttribute("aria-sort") === first ? other : first;
  for (const each of headers) each.setAttribute("aria-sort", each === header ? direction : "none");
  Object.assign(view, { column, sign: direction === "ascending" ? 1 : -1 });
  arrange();
}
for (const header of headers) find("button", header).addEventListener("click", () => sortBy(header));

// Filtering: every word has to occur in the row, every choice has to match.
const haystack = (row) => (row.words ??= `${taskOf(row).name} ${row.name} ${row.method} ${row.backbone} ${row.keys.join(" ")}`.toLowerCase());
const choices = {
  task: data.tasks.map((task) => task.name),
  method: Object.keys(data.methods),
  backbone: Object.keys(data.backbones),
  standing: Object.keys(data.standings),
};
for (const [name, values] of Object.entries(choices)) {
  const select = form.elements[name];
  select.append(...values.map((value, number) => make("option", { value: number }, value)));
  select.closest("label").hidden = values.length < 2;
}

function arrange() {
  const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = Object.fromEntries(Object.keys(choices).map((name) => [name, form.elements[name].value]));
  const fits = (row) => words.every((word) => haystack(row).includes(word))
    && (chosen.task === "" || row.task === Number(chosen.task))
    && (chosen.method === "" || row.method === choices.method[chosen.method])
    && (chosen.standing === "" || row.standing === Number(chosen.standing))
    && (chosen.backbone === "" || row.backbone === choices.backbone[chosen.backbone]);
  view.order = [...data.rows.keys()].filter((number) => fits(data.rows[number]));
  if (view.column !== null) view.order.sort(compareRows);
  view.page = 0;
  form.querySelector("[type=reset]").hidden = !words.length && Object.values(chosen).every((value) => value === "");
  const all = `${data.rows.length.toLocaleString("en")} configuration${data.rows.length === 1 ? "" : "s"}`;
  form.querySelector("output").value = view.order.length === data.rows.length ? all : `${view.order.length.toLocaleString("en")} of ${all}`;
  showPage();
}

function showPage() {
  const pages = Math.max(1, Math.ceil(view.order.length / view.size));
  const from = view.page * view.size;
  const numbers = view.order.slice(from, from + view.size);
  find("tbody", board).replaceChildren(...(numbers.length ? numbers.map((number) => rowElement(data.rows[number]))
    : [make("tr", {}, make("td", { class: "none", colspan: headers.length + 1 }, "No configuration fits these filters."))]));
  pager.hidden = pages === 1;
  find("span", pager).textContent = `${(from + 1).toLocaleString("en")}–${(from + numbers.length).toLocaleString("en")} of ${view.order.length.toLocaleString("en")}`;
  for (const button of findAll("button", pager)) {
    const page = view.page + Number(button.dataset.step);
    button.disabled = page < 0 || page >= pages;
  }
}

function barElement(row) {
  const [value, low, high] = row.bar.map((place) => place === null ? null : `${place}%`);
  const bar = make("svg", { class: `bar ${colourOf(row.method)}`, width: 88, height: 14, "aria-hidden": "true" },
    make("line", { class: "rail", x1: 0, x2: "100%", y1: 7, y2: 7 }));
  if (low !== null && high !== null) bar.append(make("line", { class: "range", x1: low, x2: high, y1: 7, y2: 7 }));
  if (value !== null) bar.append(make("circle", { class: "dot", cx: value, cy: 7, r: 3.5 }));
  return bar;
}

function rowElement(row) {
  const small = (text) => text ? [" ", make("small", {}, text)] : [];
  const cells = [
    make("th", { scope: "row" }, make("a", { href: `#run-${row.keys[0]}` }, glyph(row.method), make("span", {}, row.method, ...small(row.setting)))),
    make("td", {}, row.backbone, ...small(row.backbone && data.backbones[row.backbone][1])),
    ...(data.tasks.length > 1 ? [make("td", {}, taskOf(row).name)] : []),
    make("td", { class: "number score" }, three(row.score[0])),
    make("td", { class: "interval" }, barElement(row), make("small", {}, rangeText(row.score))),
    make("td", { class: `standing s${row.standing}` }, Object.values(data.standings)[row.standing], ...(row.cheapest ? [" ", make("b", {}, "smallest")] : [])),
    ...shownMeasures.map((number) => make("td", { class: "number" }, row.texts[number])),
  ];
  return make("tr", {}, ...cells);
}

form.hidden = false;
form.addEventListener("input", arrange);
form.addEventListener("reset", () => setTimeout(arrange));
form.addEventListener("submit", (event) => event.preventDefault());
// The whole row opens the card that its link opens.
board.addEventListener("click", (event) => {
  const link = find("th a", event.target.closest("tbody tr") || document.createElement("tr"));
  if (link && !event.target.closest("a") && !getSelection().toString()) link.click();
});
pager.addEventListener("click", (event) => {
  const step = Number(event.target.dataset.step);
  if (!step) return;
  view.page += step;
  showPage();
  find(".tall").scrollTop = 0;
});
// On paper there are no pages to turn to.
addEventListener("beforeprint", () => { if (view.order.length <= 1000) { view.size = 1000; view.page = 0; showPage(); } });
addEventListener("afterprint", () => { view.size = data.page; showPage(); });
arrange();
