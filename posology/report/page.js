"use strict";
// Adds sorting, filtering and tooltips to what the page already shows. Values come from the JSON block.
(() => {
  const { runs } = JSON.parse(document.getElementById("posology-data").textContent);
  const body = document.querySelector("tbody");
  const rows = [...body.rows];
  const points = [...document.querySelectorAll(".point")];
  const runOf = (element) => runs[Number(element.dataset.run)];

  // Sorting: first click on a number sorts from high to low, on a word from A to Z.
  const headers = [...document.querySelectorAll("th")];
  const valueFor = (header) => (row) =>
    header.dataset.key ? runOf(row)[header.dataset.key] : runOf(row).extra[header.dataset.extra];

  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });

  const sortBy = (header) => {
    const first = header.classList.contains("number") ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const direction = header.getAttribute("aria-sort") === first ? other : first;
    for (const each of headers) each.setAttribute("aria-sort", each === header ? direction : "none");
    const value = valueFor(header);
    const sign = direction === "ascending" ? 1 : -1;
    const missing = (row) => value(row) === null || value(row) === undefined;
    rows.sort((a, b) => missing(a) - missing(b) || (missing(a) ? 0 : sign * compare(value(a), value(b))));
    body.append(...rows);
  };
  for (const header of headers) header.querySelector("button").addEventListener("click", () => sortBy(header));

  // Filtering: every word has to occur in the row, every choice has to match; charts follow the table.
  const form = document.querySelector(".filters");
  const haystack = new Map(rows.map((row) => [row, row.textContent.toLowerCase().replace(/\s+/g, " ")]));
  const applyFilters = () => {
    const choices = new FormData(form);
    const words = choices.get("words").toLowerCase().split(/\s+/).filter(Boolean);
    choices.delete("words");
    const shown = new Set();
    for (const row of rows) {
      const run = runOf(row);
      const fits = words.every((word) => haystack.get(row).includes(word))
        && [...choices].every(([key, value]) => !value || run[key] === value);
      row.hidden = !fits;
      if (fits) shown.add(row.dataset.run);
    }
    for (const point of points) {
      point.classList.toggle("away", !shown.has(point.dataset.run));
      point.tabIndex = shown.has(point.dataset.run) ? 0 : -1;
    }
    const all = runs.length === 1 ? "1 run" : `${runs.length} runs`;
    form.querySelector("output").value = shown.size === runs.length ? all : `${shown.size} of ${all}`;
  };
  form.hidden = false;
  form.addEventListener("input", applyFilters);
  form.addEventListener("submit", (event) => event.preventDefault());

  // Tooltips: the <title> of a point becomes a box that also opens on keyboard focus.
  const tip = document.querySelector(".tip");
  let described = null;
  const hide = () => { tip.hidden = true; described = null; };
  const place = () => {
    const mark = described.querySelector(".mark").getBoundingClientRect();
    const left = Math.min(Math.max(8, mark.left + mark.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
    const above = mark.top - tip.offsetHeight - 12;
    tip.style.left = `${left}px`;
    tip.style.top = `${above < 8 ? mark.bottom + 12 : above}px`;
  };
  const show = (point) => {
    described = point;
    const [name, rest] = point.getAttribute("aria-label").split(/: (?=\d)/);
    const heading = document.createElement("b");
    heading.textContent = name;
    tip.replaceChildren(heading, ...(rest || "").split(/, (?!\d{3})/).map((part) => {
      const line = document.createElement("div");
      line.textContent = part;
      return line;
    }));
    tip.hidden = false;
    place();
  };
  const link = (element, on) => {
    for (const each of [...rows, ...points]) {
      if (each.dataset.run === element.dataset.run) each.classList.toggle("linked", on);
    }
  };
  for (const point of points) {
    const title = point.querySelector("title");
    point.setAttribute("aria-label", title.textContent);
    title.remove();
    for (const event of ["pointerenter", "focus"]) point.addEventListener(event, () => { show(point); link(point, true); });
    for (const event of ["pointerleave", "blur"]) point.addEventListener(event, () => { hide(); link(point, false); });
  }
  for (const row of rows) {
    row.addEventListener("pointerenter", () => link(row, true));
    row.addEventListener("pointerleave", () => link(row, false));
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  // Moving the focus to a point may scroll the page, after the box has opened.
  addEventListener("scroll", () => { if (described) place(); }, { passive: true });
})();
