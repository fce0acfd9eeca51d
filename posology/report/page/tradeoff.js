// Score against what a configuration costs, with the front of those that no other beats at a lower cost.

const INTERVALS = 30; // with more points than this, only the front has its intervals drawn
const CROWD = 200; // with more points than this, those off the front are small and pale
const NEIGHBOURS = 9; // pixels that points of one cost are set apart

function frontOf(points) {
  let best = -Infinity;
  return [...points].sort((a, b) => a.value - b.value || b.score - a.score).filter((point) => {
    if (point.score <= best) return false;
    best = point.score;
    return true;
  });
}

// Points at one place step aside, by no more than a few in all, so that the axis can still be trusted.
function setApart(points) {
  const groups = new Map();
  for (const point of points) {
    const place = Math.round(point.x);
    groups.set(place, [...(groups.get(place) || []), point]);
  }
  for (const group of groups.values()) {
    const gap = Math.min(NEIGHBOURS, 30 / Math.max(group.length - 1, 1));
    group.sort((a, b) => b.score - a.score).forEach((point, number) => { point.x += (number - (group.length - 1) / 2) * gap; });
  }
}

function tradeoff(task, index) {
  const rows = data.rows.filter((row) => row.task === index && row.score[0] !== null);
  const axes = data.measures.map((measure, number) => number).filter((number) => rows.filter((row) => row.values[number] !== null).length > 1);
  if (!axes.length) return null;
  const state = { axis: axes[0], method: null, backbone: null };
  const select = make("select", {}, ...axes.map((number) => make("option", { value: number }, data.measures[number].axis)));
  const box = make("div", { class: "frame" });
  const redraw = () => drawTradeoff(task, rows, state, box.clientWidth);
  const figure = make("figure", { class: "tradeoff" },
    make("div", { class: "head" }, make("label", {}, make("span", {}, "Score against"), select)),
    legend(rows, state, () => paint()), box,
    make("figcaption", {}, "The line is the front: no configuration scores higher for less. The band is the interval of the highest score. A point opens its card; arrow keys go from point to point."));
  let paint = () => {};
  // Once it is on the page and has a width.
  figure.start = () => { paint = drawIn(box, redraw); };
  select.addEventListener("change", () => {
    state.axis = Number(select.value);
    paint();
  });
  return figure;
}

// Methods by colour and shape, backbones by filling; each is a switch that lets the others fade.
function legend(rows, state, changed) {
  const list = (key, names, mark, label) => {
    const buttons = names.map((name) => make("button", { type: "button", "aria-pressed": "false" }, ...mark(name)));
    buttons.forEach((button, number) => button.addEventListener("click", () => {
      state[key] = state[key] === names[number] ? null : names[number];
      buttons.forEach((each, other) => each.setAttribute("aria-pressed", state[key] === names[other]));
      changed();
    }));
    return make("div", { role: "group", "aria-label": label }, ...buttons);
  };
  const methods = Object.keys(data.methods).filter((name) => rows.some((row) => row.method === name));
  const backbones = Object.keys(data.backbones).filter((name) => rows.some((row) => row.backbone === name));
  return make("div", { class: "legend" },
    list("method", methods, (name) => [glyph(name), name], "Highlight a method"),
    list("backbone", backbones, (name) => [icon("neutral", 0, fillOf(name)), name, make("small", {}, data.backbones[name][1])], "Highlight a backbone"));
}

function drawTradeoff(task, rows, state, width) {
  const measure = data.measures[state.axis];
  const height = width < 520 ? 320 : 380;
  const bottom = height - MARGIN.bottom;
  const points = rows.filter((row) => row.values[state.axis] !== null)
    .map((row) => ({ row, score: row.score[0], low: row.score[1], high: row.score[2], value: row.values[state.axis] }));
  const front = frontOf(points);
  const best = front[front.length - 1];
  const whiskers = new Set((points.length > INTERVALS ? front : points).filter((point) => point.low !== null && point.high !== null));
  const ends = [...points.map((point) => point.score), ...[...whiskers].flatMap((point) => [point.low, point.high])];
  const y = scoreScale(ends, bottom, MARGIN.top + 14);
  const x = logScale(points.map((point) => point.value), measure.unit, MARGIN.left, width - MARGIN.right);
  const svg = frame(width, height, x, y, `${measure.axis} (log scale)`, task.metric, `${task.metric} against ${measure.axis}, ${task.name}`);
  for (const point of points) Object.assign(point, { x: x.at(point.value), y: y.at(point.score) });
  setApart(points);
  if (best && best.low !== null && best.high !== null) {
    svg.append(make("rect", { class: "band", x: MARGIN.left, width: width - MARGIN.left - MARGIN.right, y: y.at(best.high), height: Math.max(1, y.at(best.low) - y.at(best.high)) }));
  }
  svg.append(make("path", { class: "front", d: frontPath(front, width) }));
  const fades = (row) => (state.method && row.method !== state.method) || (state.backbone && row.backbone !== state.backbone);
  points.sort((a, b) => a.x - b.x || a.y - b.y);
  const marks = points.map((point) => drawPoint(point, whiskers.has(point) && y, fades(point.row), measure));
  const above = new Set(front);
  if (points.length > CROWD) svg.classList.add("crowd");
  for (const [number, point] of points.entries()) marks[number].classList.toggle("on-front", above.has(point));
  svg.append(...marks.filter((mark, number) => !above.has(points[number])), ...marks.filter((mark, number) => above.has(points[number])),
    ...callouts(front.filter((point) => !fades(point.row)), points, width));
  followKeys(svg, marks);
  followPointer(svg, (mark) => describeRow(points[marks.indexOf(mark)].row));
  return svg;
}

// From each point of the front level to the cost of the next, then up.
function frontPath(front, width) {
  if (!front.length) return "";
  const steps = front.slice(1).map((point) => `H${point.x.toFixed(1)}V${point.y.toFixed(1)}`);
  return `M${front[0].x.toFixed(1)} ${front[0].y.toFixed(1)}${steps.join("")}H${width - MARGIN.right}`;
}

function drawPoint({ row, x, y: middle, low, high }, y, faded, measure) {
  const name = `${row.name}: ${scoreText(row.score)}, ${measure.axis} ${row.texts[data.measures.indexOf(measure)]}`;
  const link = make("a-svg", { class: `point ${colourOf(row.method)}${faded ? " away" : ""}`, href: `#run-${row.keys[0]}`, tabindex: "-1", "aria-label": name, transform: `translate(${x.toFixed(1)} 0)` });
  if (y) {
    const [top, end] = [y.at(high).toFixed(1), y.at(low).toFixed(1)];
    link.append(make("path", { class: "whisker", d: `M0 ${top}V${end}M-3.5 ${top}h7M-3.5 ${end}h7` }));
  }
  link.append(make("g", { transform: `translate(0 ${middle.toFixed(1)})` },
    make("circle", { class: "hit", r: 12 }), make("circle", { class: "ring", r: 10.5 }),
    make("g", { class: "marker" }, ...markPaths(shapeOf(row.method), fillOf(row.backbone)))));
  return link;
}

// Names beside points of the front, the best first, where there is room for them.
function callouts(front, points, width) {
  const taken = points.map((point) => [point.x - 6, point.y - 6, point.x + 6, point.y + 6]);
  const made = [];
  for (const point of [...front].reverse()) {
    const text = point.row.name;
    const wide = text.length * 7.1;
    if (wide > width - MARGIN.left - MARGIN.right) continue;
    for (const [x, y] of [[point.x - wide - 12, point.y - 5], [point.x + 12, point.y - 5], [point.x - wide / 2, point.y - 14], [point.x - wide - 12, point.y + 13], [point.x + 12, point.y + 13]]) {
      const box = [x, y - 11, x + wide, y + 3];
      const free = x > MARGIN.left && x + wide < width && box[1] > MARGIN.top - 4
        && taken.every((other) => box[0] > other[2] || box[2] < other[0] || box[1] > other[3] || box[3] < other[1]);
      if (!free) continue;
      taken.push(box);
      made.push(make("text", { class: "callout", x: x.toFixed(1), y: y.toFixed(1) }, text));
      break;
    }
  }
  return made;
}

function describeRow(row) {
  const measured = data.measures.map((measure, number) => [measure.axis, row.texts[number]]).filter(([, text]) => text !== UNKNOWN);
  return [row.name, [[taskOf(row).metric, scoreText(row.score)], ...measured, ...(row.keys.length > 1 ? [["seeds", row.keys.length]] : [])]];
}
