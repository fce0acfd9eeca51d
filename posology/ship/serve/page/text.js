// Elements, numbers and offsets. Text only ever enters the page as text.

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// The server counts code points, JavaScript UTF-16 units: a function from the one to the other.
export function unitsOf(text) {
  if (!/[\ud800-\udbff][\udc00-\udfff]/.test(text)) return (offset) => offset;
  const starts = new Uint32Array(text.length + 1);
  let points = 0;
  let units = 0;
  for (const character of text) {
    starts[points++] = units;
    units += character.length;
  }
  starts[points] = units;
  return (offset) => starts[Math.min(offset, points)];
}

export const pointsIn = (text) => {
  let count = 0;
  for (const _ of text) count++;
  return count;
};

export const whole = (number) => number.toLocaleString("en-US");
export const plural = (number, one, many = `${one}s`) => `${whole(number)} ${number === 1 ? one : many}`;

export function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  if (share < 1 && share > 0.999) return "> 99.9 %";
  return `${(100 * share).toFixed(1)} %`;
}

const METRICS = { f1: "F1", auroc: "AUROC" };
export const metricName = (name) => name.split("_").map((word) => METRICS[word] ?? word).join(" ");

export function parameters(count) {
  if (count >= 1e9) return `${(count / 1e9).toFixed(1)}B`;
  return count >= 1e6 ? `${(count / 1e6).toFixed(1)}M` : whole(count);
}

// Types keep their colour and line for as long as the page is open; the name always stands beside it.
const HUES = 6;
const kinds = new Map();
export function kindOf(label) {
  if (!kinds.has(label)) kinds.set(label, kinds.size);
  const number = kinds.get(label);
  return { hue: `k${number % HUES}`, pattern: Math.floor(number / HUES) % 3, colour: `var(--k${number % HUES})` };
}

export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  // Over plain HTTP from another machine there is no clipboard but the old one.
  const area = make("textarea", { value: text, class: "hidden", "aria-hidden": "true" });
  const before = document.activeElement;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  before?.focus();
  if (!done) throw new Error("no clipboard");
}

export function save(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
