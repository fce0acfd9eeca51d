// Scales, ticks and the frame that every chart is drawn in.

const UNITS = {
  count: [["", 1], ["k", 1e3], ["M", 1e6], ["G", 1e9]],
  bytes: [["bytes", 1], ["kB", 1e3], ["MB", 1e6], ["GB", 1e9]],
  seconds: [["s", 1], ["min", 60], ["h", 3600]],
  milliseconds: [["ms", 1], ["s", 1e3]],
  money: [["", 1]],
};

function tickText(value, unit) {
  const [name, size] = UNITS[unit].filter(([, size]) => value >= size).pop() || UNITS[unit][0];
  return `${Number((value / size).toPrecision(3))} ${name}`.trim();
}

// The smallest of 1, 2 or 5 times a power of ten that is at least `raw`.
function roundStep(raw) {
  const power = 10 ** Math.floor(Math.log10(Math.max(raw, 1e-9)));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= raw * (1 - 1e-9));
}

function linearScale(low, high, from, to, count, most = Infinity) {
  const step = roundStep(Math.max(high - low, 1e-3) / count);
  const first = Math.floor(low / step + 1e-9) * step;
  const last = Math.min(Math.max(Math.ceil(high / step - 1e-9) * step, first + step), Math.max(most, high));
  const ticks = [];
  for (let number = 0; first + number * step <= last + step * 1e-6; number += 1) ticks.push(first + number * step);
  return { at: (value) => from + (to - from) * (value - first) / (last - first), ticks, step };
}

function scoreScale(values, bottom, top) {
  const scale = linearScale(Math.min(...values), Math.max(...values), bottom, top, 4);
  const digits = Math.max(0, -Math.floor(Math.log10(scale.step) + 1e-9));
  return { at: scale.at, ticks: scale.ticks.map((value) => [value, value.toFixed(digits)]) };
}

// Logarithmic; what is zero has a place of its own at the left.
function logScale(values, unit, left, right) {
  const positive = values.filter((value) => value > 0);
  const zero = positive.length < values.length;
  const from = zero && positive.length ? left + Math.min(60, (right - left) / 6) : left;
  const logs = positive.length ? positive.map(Math.log10) : [0];
  let first = Math.min(...logs);
  let last = Math.max(...logs);
  const slack = Math.max((last - first) * 0.06, 0.12);
  first -= slack;
  last += slack;
  const at = (value) => value > 0 ? from + (right - from) * (Math.log10(value) - first) / (last - first) : left + 8;
  const steps = last - first > 2.2 ? [1] : last - first > 0.9 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
  const ticks = [];
  for (let power = Math.floor(first); power <= Math.ceil(last); power += 1) {
    for (const step of steps) ticks.push(Number((step * 10 ** power).toPrecision(6)));
  }
  const inside = ticks.filter((tick) => Math.log10(tick) >= first && Math.log10(tick) <= last);
  const texts = inside.map((tick) => [tick, tickText(tick, unit)]);
  return { at, ticks: zero ? [[0, "0"], ...texts] : texts };
}

// Ticks whose texts would touch the one before are left out.
function spaced(ticks, at) {
  let end = -Infinity;
  return ticks.filter(([value, text]) => {
    const half = text.length * 3.6 + 5;
    if (at(value) - half < end) return false;
    end = at(value) + half;
    return true;
  });
}

const MARGIN = { left: 46, right: 18, top: 16, bottom: 46 };

// An empty chart with axes; gives its drawing and the group that marks go into.
function frame(width, height, x, y, xTitle, yTitle, label) {
  const bottom = height - MARGIN.bottom;
  const svg = make("svg", { class: "plot", width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label });
  for (const [value, text] of y.ticks) {
    svg.append(
      make("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y.at(value), y2: y.at(value) }),
      make("text", { class: "tick", x: MARGIN.left - 9, y: y.at(value) + 4, "text-anchor": "end" }, text));
  }
  svg.append(make("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom + 8, y2: bottom + 8 }));
  for (const [value, text] of spaced(x.ticks, x.at)) {
    svg.append(
      make("line", { class: "axis", x1: x.at(value), x2: x.at(value), y1: bottom + 8, y2: bottom + 12 }),
      make("text", { class: "tick", x: x.at(value), y: bottom + 26, "text-anchor": "middle" }, text));
  }
  svg.append(
    make("text", { class: "title", x: width - MARGIN.right, y: height - 3, "text-anchor": "end" }, xTitle),
    make("text", { class: "title", x: 0, y: 10 }, yTitle));
  return svg;
}

// Points are links to cards: one of them is in the order of tabs, arrow keys go on to its neighbours.
function followKeys(svg, points) {
  if (points.length) points[0].setAttribute("tabindex", "0");
  svg.addEventListener("keydown", (event) => {
    const here = points.indexOf(event.target.closest(".point"));
    const next = { ArrowRight: here + 1, ArrowUp: here + 1, ArrowLeft: here - 1, ArrowDown: here - 1, Home: 0, End: points.length - 1 }[event.key];
    if (here < 0 || next === undefined || !points[next]) return;
    event.preventDefault();
    points[here].setAttribute("tabindex", "-1");
    points[next].setAttribute("tabindex", "0");
    points[next].focus();
  });
}

// `describe` gives name and lines of a point for the tooltip.
function followPointer(svg, describe) {
  for (const type of ["pointerover", "focusin"]) {
    svg.addEventListener(type, (event) => {
      const point = event.target.closest(".point");
      if (point) showTip(find(".mark", point), ...describe(point));
    });
  }
  for (const type of ["pointerout", "focusout"]) svg.addEventListener(type, hideTip);
}

// Calls `draw(width)` now and whenever the box gets another width.
function drawIn(box, draw) {
  let width = 0;
  const redraw = (force) => {
    const now = Math.floor(box.clientWidth);
    if (!now || (now === width && force !== true)) return;
    width = now;
    box.replaceChildren(draw(width));
  };
  new ResizeObserver(() => redraw(false)).observe(box);
  redraw(true);
  return () => redraw(true);
}
