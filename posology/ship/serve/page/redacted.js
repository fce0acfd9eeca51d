// The redacted copy, with what was put in marked where that can be told for certain.

import { copy, kindOf, make, save, unitsOf, whole } from "./text.js";

// Where each replacement stands in `after`: [start, end, label]. The server tells what it replaced in `before`; what lies
// between is unchanged, so the replacements are what lies between those pieces. Where more than one reading is possible
// the lengths decide; null where none is found.
export function replacements(before, after, spans) {
  const units = unitsOf(before);
  const merged = [];
  for (const span of [...spans].sort((a, b) => a.start - b.start || a.end - b.end)) {
    const [start, end] = [units(span.start), units(span.end)];
    const last = merged.at(-1);
    if (last && start < last.end) last.end = Math.max(last.end, end);
    else merged.push({ start, end, label: span.label });
  }
  const found = [];
  let here = merged.length ? merged[0].start : before.length;
  if (before.slice(0, here) !== after.slice(0, here)) return null;
  for (const [i, span] of merged.entries()) {
    const gap = before.slice(span.end, merged[i + 1]?.start ?? before.length);
    const isLast = i + 1 === merged.length;
    const old = span.end - span.start;
    const expected = [`[${span.label}]`.length, old].find((length, choice) => {
      const put = after.slice(here, here + length);
      return (choice ? /^\*+$/.test(put) : put === `[${span.label}]`) && after.startsWith(gap, here + length);
    });
    const end = isLast ? after.length - gap.length : expected === undefined ? nearest(after, gap, here, old) : here + expected;
    if (end < here || !after.startsWith(gap, end)) return null;
    found.push([here, end, span.label]);
    here = end + gap.length;
  }
  return here === after.length || !merged.length ? found : null;
}

// The end of a replacement that began at `here`: where what follows stands, as close as can be to the old length.
function nearest(after, gap, here, length) {
  let best = -1;
  const limit = Math.min(here + 4 * length + 40, after.length);
  for (let at = after.indexOf(gap, here + 1); at >= 0 && at < limit; at = after.indexOf(gap, at + 1)) {
    if (best < 0 || Math.abs(at - here - length) < Math.abs(best - here - length)) best = at;
  }
  return best;
}

function copyNodes(text, found) {
  const nodes = [];
  let here = 0;
  for (const [start, end, label] of found) {
    nodes.push(text.slice(here, start), make("mark", { class: kindOf(label).hue, title: label }, text.slice(start, end)));
    here = end;
  }
  nodes.push(text.slice(here));
  return nodes;
}

export function showRedacted(place, text, answer, name, say) {
  place.replaceChildren();
  place.hidden = !answer;
  if (!answer) return 0;
  const counts = Object.entries(answer.counts).sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
  const total = counts.reduce((sum, [, count]) => sum + count, 0);
  const chips = counts.map(([label, count]) => make("span", { class: `type ${kindOf(label).hue}` },
    make("span", {}, label), make("span", { class: "count" }, String(count))));
  const buttons = [
    make("button", {
      type: "button", class: "copy-text",
      onclick: () => copy(answer.text).then(() => say("The redacted text is in the clipboard."), () => say("The browser does not let this page copy.")),
    }, "Copy text"),
    make("button", { type: "button", class: "save-text", onclick: () => save(name, "text/plain;charset=utf-8", answer.text) }, "Download text"),
  ];
  place.append(make("div", { class: "bar" }, make("h3", {}, "Redacted"), ...buttons));
  place.append(make("div", { class: "legend" }, make("div", { class: "types", role: "group", "aria-label": "Replaced, by type" },
    make("span", { class: "who" }, total ? `${whole(total)} replaced` : "Nothing was found to replace"), ...chips)));
  place.append(make("div", { class: "reading plain", tabIndex: 0, role: "region", "aria-label": "The redacted text" },
    ...copyNodes(answer.text, replacements(text, answer.text, answer.spans) ?? [])));
  place.append(make("p", { class: "remark" }, "A preview: no model finds every identifier. Read it before it leaves your hands."));
  return total;
}
