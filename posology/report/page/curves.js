// Lines over time or labelled examples, and the small ones on cards.

function lineFigure(task, chart) {
  const box = make("div", { class: "frame" });
  const lines = chart.lines.map((line) => ({ ...line, dash: chart.lines.filter((other) => other.method === line.method).indexOf(line) % 4 }));
  const names = make("ul", { class: "names" }, ...lines.map((line) => make("li", { class: colourOf(line.method) },
    make("svg", { class: "glyph", width: 34, height: 14, viewBox: "-17 -7 34 14", "aria-hidden": "true" },
      make("path", { class: `line dash-${line.dash}`, d: "M-17 0H17" }), markOf(line, 0, 0)), line.name)));
  const figure = make("figure", {}, make("h3", {}, chart.title), box, names, make("figcaption", {}, chart.caption));
  figure.start = () => drawIn(box, (width) => drawLines(task, chart, lines, width));
  return figure;
}

function markOf(line, x, y) {
  return make("g", { transform: `translate(${x.toFixed(1)} ${y.toFixed(1)}) scale(.72)` },
    ...markPaths(shapeOf(line.method), fillOf(line.backbone)));
}

function drawLines(task, chart, lines, width) {
  const height = 280;
  const bottom = height - MARGIN.bottom;
  const points = lines.flatMap((line) => line.points);
  const limits = points.map((point) => point[0]).filter((value) => value !== null);
  const open = points.some((point) => point[0] === null);
  const right = width - MARGIN.right - (open ? 44 : 0);
  const y = scoreScale(points.flatMap((point) => point.slice(1, 4)).filter((value) => value !== null), bottom, MARGIN.top + 12);
  const scale = logScale(limits, chart.unit, MARGIN.left, right);
  const asked = [...new Set(limits)].sort((a, b) => a - b);
  // Few limits that were asked for are better marks than round numbers.
  const ticks = asked.length <= 8 ? asked.map((value) => [value, tickText(value, chart.unit)]) : scale.ticks;
  const x = {
    at: (value) => value === null ? width - MARGIN.right - 12 : scale.at(value),
    ticks: open ? [...ticks, [null, chart.unit === "count" ? "all" : "none"]] : ticks,
  };
  const svg = frame(width, height, x, y, `${chart.axis} (log scale)`, task.metric, `${chart.title}, ${task.name}`);
  const described = new Map();
  for (const [number, line] of lines.entries()) {
    const shift = (number - (lines.length - 1) / 2) * (line.points[0][2] === null ? 0 : 2.5);
    const at = line.points.map(([value, score]) => [x.at(value) + shift, y.at(score)]);
    const group = make("g", { class: `series ${colourOf(line.method)}` },
      make("polyline", { class: `line dash-${line.dash}`, points: at.map((place) => place.map((each) => each.toFixed(1)).join(",")).join(" ") }));
    line.points.forEach(([value, score, low, high, key], index) => {
      const limit = value === null ? "no limit" : tickText(value, chart.unit);
      const text = scoreText([score, low, high]);
      const link = make("a-svg", { class: "point", href: `#run-${key}`, tabindex: "-1", "aria-label": `${line.name}: ${text}, ${chart.axis} ${limit}` });
      if (low !== null && high !== null) link.append(make("path", { class: "whisker", d: `M${at[index][0]} ${y.at(low)}V${y.at(high)}` }));
      link.append(make("circle", { class: "hit", cx: at[index][0], cy: at[index][1], r: 9 }),
        make("circle", { class: "ring", cx: at[index][0], cy: at[index][1], r: 8.5 }), markOf(line, ...at[index]));
      described.set(link, [line.name, [[task.metric, text], [chart.axis, limit]]]);
      group.append(link);
    });
    svg.append(group);
  }
  followKeys(svg, [...described.keys()]);
  followPointer(svg, (link) => described.get(link));
  return svg;
}

// A run's own course: validation score above, loss below, over its evaluations.
function sparkline(curve, metric) {
  const box = make("div", { class: "sparks" });
  for (const [column, name] of [[2, `${metric} on validation`], [1, "training loss"]]) {
    const points = curve.filter((point) => point[column] !== null && point[0] !== null);
    if (points.length < 2) continue;
    const values = points.map((point) => point[column]);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const end = points[points.length - 1][0] || 1;
    const at = points.map((point) => [4 + 232 * point[0] / end, 50 - 42 * (point[column] - low) / ((high - low) || 1)]);
    const text = (value) => Number(value.toPrecision(3));
    box.append(make("figure", {},
      make("svg", { class: "spark", viewBox: "0 0 240 56", role: "img", "aria-label": `${name}: from ${text(values[0])} to ${text(values[values.length - 1])}, at most ${text(high)}` },
        make("polyline", { class: "line", points: at.map((place) => place.map((each) => each.toFixed(1)).join(",")).join(" ") }),
        ...at.map(([x, y]) => make("circle", { class: "dot", cx: x.toFixed(1), cy: y.toFixed(1), r: 2.2 }))),
      make("figcaption", {}, `${name}: ${text(values[0])} to ${text(values[values.length - 1])} in ${tickText(Math.round(end * 10) / 10, "seconds")}`)));
  }
  return box;
}

// Drawn when they come near the window, so that many tasks open as quickly as one.
const waiting = new Set();
const near = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => begin(entry.target)), { rootMargin: "600px" });
function begin(figure) {
  near.unobserve(figure);
  if (waiting.delete(figure)) figure.start();
}
for (const box of findAll(".charts")) {
  const task = data.tasks[Number(box.dataset.task)];
  const figures = [tradeoff(task, Number(box.dataset.task)), ...task.curves.map((chart) => lineFigure(task, chart))].filter(Boolean);
  box.append(...figures);
  box.classList.toggle("pair", figures.length === 2);
  for (const figure of figures) {
    waiting.add(figure);
    near.observe(figure);
  }
}
addEventListener("beforeprint", () => waiting.forEach(begin));
