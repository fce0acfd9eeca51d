// The form, and what is kept while the page is open: the models, the token, and the answers shown. Nothing is stored.

import { ask, Refused } from "./client.js";
import { showEntities } from "./entities.js";
import { showLabels } from "./labels.js";
import { listModels } from "./models.js";
import { showRedacted } from "./redacted.js";
import { copy, make, parameters, plural, pointsIn, save, whole } from "./text.js";

const LARGEST_FILE = 8 << 20;

const find = (selector) => document.querySelector(selector);
const text = find("#text");
const pair = find("#pair");
const results = find("#results");
const redactor = find("#redactor");

let token = "";
let models = new Map();
let list = null; // of models, with the chosen ones
let answers = null; // what is shown: {text, name, classify, entities, redact}
let fileName = "note";
let running = null; // an AbortController while the server is asked
let waiting = 0; // seconds that the server asked to wait

const isTagger = (model) => model.kind === "token-classification";
const say = (words) => { find("#status").textContent = words; };
const chosenStyle = () => find("input[name=style]:checked").value;
const sent = (field) => field.value.toWellFormed?.() ?? field.value;

// ---- problems ----

function problem(error) {
  const place = find("#problems");
  const words = error instanceof Refused ? error.message : "This page could not show the answer. Reload it and try again.";
  if (!(error instanceof Refused)) console.error(error);
  if (![...place.children].some((child) => child.textContent === words)) place.append(make("p", { class: "notice bad" }, words));
  if (error.status === 401) {
    find("#token-panel").hidden = false;
    find("#token").focus();
  }
  if (error.wait) count(error.wait);
}

function count(seconds) {
  const begin = waiting === 0;
  waiting = Math.max(waiting, seconds);
  if (!begin) return;
  const tick = () => {
    sayRun();
    if (waiting > 0) setTimeout(() => { waiting -= 1; tick(); }, 1000);
    else find("#advice").textContent = "The server may have room again.";
  };
  tick();
}

// ---- models ----

async function loadModels() {
  const refresh = find("#refresh");
  refresh.disabled = true;
  try {
    const answer = await ask("v1/models", { token });
    find("#token-panel").hidden = true;
    models = new Map(answer.models.map((model) => [model.name, model]));
    const { name, parameters: size } = answer.backbone ?? {};
    find("#server").textContent = [name && (size ? `${name}, ${parameters(size)} parameters` : name), plural(models.size, "model")].filter(Boolean).join(" · ");
    list = listModels(find("#models"), find("#find"), [...models.values()], list?.chosen(), changed);
    listRedactors();
    changed();
    if (!models.size) blank("This server holds no models. Give it the folders of some: ", "posology serve ARTIFACT …");
  } catch (error) {
    if (error.status === 401) {
      find("#token-panel").hidden = false;
      blank("The models are listed once the token is given.");
      if (token) problem(new Refused(401, "The server does not know this token."));
    } else if (error.status === 503 && error.wait && !models.size) {
      blank("The server is loading its models; they are listed here as soon as they are there.");
      setTimeout(loadModels, 1000 * error.wait);
    } else {
      if (!models.size) blank("No models yet. Refresh asks again.");
      problem(error);
    }
  } finally {
    refresh.disabled = false;
  }
}

function blank(words, code = "") {
  find("#models").hidden = true;
  const place = find("#no-models");
  place.hidden = false;
  place.replaceChildren(words, ...(code ? [make("code", {}, code)] : []));
}

function listRedactors() {
  const taggers = [...models.values()].filter(isTagger);
  const before = redactor.value;
  const known = [...redactor.options].some((option) => option.value === before);
  redactor.replaceChildren(make("option", { value: "" }, "No redaction"), ...taggers.map((model) => make("option", { value: model.name }, `with ${model.name}`)));
  const likely = taggers.find((model) => /de-?id|redact|\bphi\b|2014/i.test(`${model.name} ${model.task}`));
  redactor.value = known && (before === "" || models.has(before)) ? before : likely?.name ?? "";
  find("#redaction").hidden = !taggers.length;
}

// ---- what stands in the form ----

function sayRun() {
  const run = find("#run");
  const busy = Boolean(running);
  run.setAttribute("aria-disabled", String(busy || waiting > 0));
  run.classList.toggle("busy", busy);
  find("#run-words").textContent = busy ? "Working" : waiting > 0 ? `Wait ${waiting} s` : "Run";
  find("#stop").hidden = !busy;
  results.setAttribute("aria-busy", String(busy));
}

function changed() {
  const points = pointsIn(text.value);
  const words = text.value.match(/\S+/g)?.length ?? 0;
  find("#size").textContent = points ? `${plural(words, "word")}, ${plural(points, "character")}` : "";
  if (!points) find("#about-text").textContent = "Nothing yet";
  find("#clear").disabled = !points;
  const asked = list?.chosen().map((name) => models.get(name)).filter(Boolean) ?? [];
  const paired = asked.filter((model) => model.text_pair);
  find("#pair-field").hidden = !paired.length;
  find("#pair-who").textContent = paired.length ? `for ${paired.map((model) => model.name).join(", ")}` : "";
  find("#advice").textContent = models.size && !asked.length && !redactor.value ? "Choose a model." : "";
  find("#stale").hidden = !answers || answers.key === keyNow();
}

const keyNow = () => JSON.stringify([text.value, pair.value, [...(list?.chosen() ?? [])].sort(), redactor.value]);

function put(words, about, name) {
  text.value = words;
  text.scrollTop = 0;
  fileName = name;
  find("#about-text").textContent = about;
  changed();
}

async function read(file) {
  find("#problems").replaceChildren();
  const refuse = (why) => problem(new Refused(0, why));
  if (file.size > LARGEST_FILE) return refuse(`The file has ${whole(Math.ceil(file.size / (1 << 20)))} MB; this page takes up to ${LARGEST_FILE >> 20}. Use posology predict for such files.`);
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (bytes.includes(0)) return refuse("This is no text file. Save the note as plain text first.");
  let words;
  let how = "";
  try {
    words = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    words = new TextDecoder("windows-1252").decode(bytes);
    how = ", read as Windows-1252";
  }
  if (!words.trim()) return refuse("The file is empty.");
  put(words, `${file.name}${how}`, file.name.replace(/\.[^.]*$/, "") || "note");
  text.focus();
}

// ---- asking ----

async function together(path, groups, signal) {
  const parts = await Promise.all(groups.map((body) => ask(path, { token, body, signal })));
  if (parts.length < 2) return parts[0] ?? null;
  return { documents: [{ id: "1", results: parts.flatMap((part) => part.documents[0].results) }] };
}

function requests(words, names) {
  const document = { id: "1", text: words };
  const asked = names.map((name) => models.get(name)).filter(Boolean);
  const groups = (chosen, paired) => (chosen.length ? [{
    documents: [paired ? { ...document, text_pair: sent(pair) } : document], models: chosen.map((model) => model.name),
  }] : []);
  const parted = (some) => [...groups(some.filter((one) => !one.text_pair), false), ...groups(some.filter((one) => one.text_pair), true)];
  return { classify: parted(asked.filter((one) => !isTagger(one))), entities: parted(asked.filter(isTagger)) };
}

const redactionOf = (words, signal) => ask("v1/redact", {
  token, signal, body: { documents: [{ id: "1", text: words }], model: redactor.value, style: chosenStyle() },
});

// Does something that asks the server, one at a time.
async function busily(work) {
  if (running || waiting > 0) return;
  find("#problems").replaceChildren();
  find("#advice").textContent = "";
  const control = new AbortController();
  running = control;
  sayRun();
  say("Working …");
  try {
    await work(control.signal);
  } catch (error) {
    if (error.name !== "AbortError") problem(error);
    say(error.name === "AbortError" ? "Stopped." : "");
  } finally {
    running = null;
    sayRun();
  }
}

async function run() {
  if (running || waiting > 0) return;
  const names = list?.chosen() ?? [];
  if (!text.value.trim()) {
    find("#advice").textContent = "Paste a note first.";
    text.focus();
    return;
  }
  if (!names.length && !redactor.value) {
    find("#advice").textContent = models.size ? "Choose a model." : "There is no model to ask.";
    return;
  }
  const paired = names.filter((name) => models.get(name)?.text_pair);
  if (paired.length && !pair.value.trim()) {
    find("#advice").textContent = `${paired.join(", ")} ${paired.length > 1 ? "want" : "wants"} a second text.`;
    pair.focus();
    return;
  }
  const key = keyNow();
  const words = sent(text);
  const style = chosenStyle();
  const begin = performance.now();
  await busily(async (signal) => {
    const { classify, entities } = requests(words, names);
    const parts = await Promise.allSettled([
      together("v1/classify", classify, signal), together("v1/entities", entities, signal),
      redactor.value ? redactionOf(words, signal) : Promise.resolve(null),
    ]);
    const failed = parts.filter((part) => part.status === "rejected").map((part) => part.reason);
    const stopped = failed.find((error) => error.name === "AbortError");
    if (stopped) throw stopped;
    for (const error of failed) problem(error);
    if (failed.some((error) => error.status === 404)) loadModels();
    const [labels, spans, redacted] = parts.map((part) => part.value ?? null);
    if (failed.length && !labels && !spans && !redacted) {
      say("");
      return;
    }
    answers = { key, style, text: words, name: fileName, classify: labels, entities: spans, redact: redacted };
    show((performance.now() - begin) / 1000);
  });
  changed();
  if (results.getBoundingClientRect().top > 0.75 * window.innerHeight) results.scrollIntoView({ block: "start" });
}

function show(seconds) {
  find("#empty").hidden = true;
  for (const button of [find("#copy-json"), find("#save-json")]) button.disabled = false;
  const labels = answers.classify?.documents[0].results ?? [];
  showLabels(find("#labels"), labels, models);
  const found = showEntities(find("#entities"), answers.text, answers.entities?.documents[0].results ?? []);
  const replaced = showRedaction();
  const said = [];
  if (answers.classify) said.push(plural(labels.length, "label"));
  if (answers.entities) said.push(plural(found, "entity", "entities"));
  if (answers.redact) said.push(`${whole(replaced)} replaced`);
  say(`${said.join(", ")}, in ${seconds < 10 ? seconds.toFixed(2) : seconds.toFixed(0)} s.`);
}

function showRedaction() {
  return showRedacted(find("#redacted"), answers.text, answers.redact?.documents[0], `${answers.name}.redacted.txt`, say);
}

async function restyle() {
  if (!answers?.redact || answers.key !== keyNow()) return;
  const style = chosenStyle();
  if (style === answers.style) return;
  await busily(async (signal) => {
    answers.redact = await redactionOf(answers.text, signal);
    answers.style = style;
    say(`${whole(showRedaction())} replaced by ${style}.`);
  });
  if (chosenStyle() !== style) restyle(); // another one was chosen meanwhile
}

const asJson = () => {
  const { classify, entities, redact } = answers;
  return `${JSON.stringify({ ...(classify && { classify }), ...(entities && { entities }), ...(redact && { redact }) }, null, 2)}\n`;
};

// ---- wiring ----

find("#ask").addEventListener("submit", (event) => { event.preventDefault(); run(); });
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.repeat) return;
  event.preventDefault();
  run();
});
find("#stop").addEventListener("click", () => running?.abort());
find("#example").addEventListener("click", () => {
  const note = find("#example-note").content.textContent.trim();
  put(`${note}\n`, "A made-up note: nobody in it exists.", "example");
});
find("#clear").addEventListener("click", () => { put("", "Nothing yet", "note"); text.focus(); });
find("#open").addEventListener("click", () => find("#file").click());
find("#file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) read(file);
  event.target.value = ""; // so that the same file can be opened again
});
text.addEventListener("dragover", (event) => {
  if (event.dataTransfer.types.includes("Files")) event.preventDefault();
});
text.addEventListener("drop", (event) => {
  const [file] = event.dataTransfer.files;
  if (!file) return;
  event.preventDefault();
  read(file);
});
text.addEventListener("input", () => {
  find("#about-text").textContent = text.value ? "Typed or pasted" : "Nothing yet";
  changed();
});
pair.addEventListener("input", changed);
redactor.addEventListener("change", changed);
for (const style of document.querySelectorAll("input[name=style]")) style.addEventListener("change", restyle);
find("#refresh").addEventListener("click", () => { find("#problems").replaceChildren(); loadModels(); });

function useToken() {
  token = find("#token").value.trim();
  find("#schema").hidden = true; // a link would be followed without the token
  find("#problems").replaceChildren();
  loadModels();
}
find("#use-token").addEventListener("click", useToken);
find("#token").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  useToken();
});
find("#copy-json").addEventListener("click", () => copy(asJson()).then(() => say("The answers are in the clipboard."), () => say("The browser does not let this page copy.")));
find("#save-json").addEventListener("click", () => save(`${answers.name}.posology.json`, "application/json", asJson()));

const theme = find(".theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme || (prefersDark.matches ? "dark" : "light")) === "dark";
const sayTheme = () => theme.setAttribute("aria-pressed", isDark());
theme.hidden = false;
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  sayTheme();
});
prefersDark.addEventListener("change", sayTheme);
sayTheme();
changed();
sayRun();
loadModels();
