// The page: collects what to segment, calls the service, shows results. Pictures and names stay in this tab.

import { Refused, call, files, json, segment, setToken } from "./api.js";
import { Chips, written } from "./chips.js";
import { Viewer, counted, create } from "./viewer.js";

const MOST = 12; // results kept in the history
const STAGES = { queued: "Waiting", model: "Model", decode: "Picture", names: "Names", masks: "Masks", result: "Result", encode: "Answer" };
const FORMATS = {
  json: "JSON, run lengths", overlay: "Overlay, PNG", map: "Label map, PNG", palette: "Coloured label map, PNG", coco: "COCO instances",
  "coco-polygons": "COCO polygons", "coco-panoptic": "COCO panoptic", yolo: "YOLO", labelme: "LabelMe", "label-studio": "Label Studio",
  cvat: "CVAT", geojson: "GeoJSON", html: "Contact sheet, HTML",
};
const $ = (id) => document.getElementById(id);

const state = { picture: null, bitmap: null, models: [], limits: null, task: "panoptic", running: null, viewers: [], history: [], shown: null };
const chips = new Chips($("chips"), $("word"), () => describeRun());

// --- picture ----------------------------------------------------------------------------------------------------------

async function takePicture(file) {
  if (state.limits && file.size > state.limits.bytes) return fail(`The picture has ${megabytes(file.size)}; this service takes up to ${megabytes(state.limits.bytes)}.`);
  clearMessage();
  state.picture = file;
  state.bitmap = await createImageBitmap(file).catch(() => null);
  $("picture-name").textContent = state.bitmap ? `${file.name} · ${state.bitmap.width} × ${state.bitmap.height}` : `${file.name} · no preview in this browser`;
  if ($("thumb").src) URL.revokeObjectURL($("thumb").src);
  $("thumb").src = URL.createObjectURL(file);
  $("thumb").hidden = !state.bitmap;
  $("drop-empty").hidden = true;
  $("drop-chosen").hidden = false;
  describeRun();
}

async function takeExample() {
  const seed = Math.max(0, Math.min(9999, Math.round(Number($("seed").value)) || 0));
  $("seed").value = seed;
  try {
    const [content, { classes }] = await Promise.all([call(`v1/examples/${seed}.png`).then((answer) => answer.blob()), json(`v1/examples/${seed}`)]);
    await takePicture(new File([content], `example-${seed}.png`, { type: "image/png" }));
    $("vocabulary").value = "";
    await showVocabulary();
    chips.set(classes.map(({ name, synonyms, thing }) => ({ name, synonyms, thing })));
  } catch (error) {
    refuse(error);
  }
}

function listenForPictures() {
  $("file").addEventListener("change", () => $("file").files[0] && takePicture($("file").files[0]));
  $("example").addEventListener("click", takeExample);
  $("start").addEventListener("click", async () => {
    await takeExample();
    if (state.picture) run();
  });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
    if (file) takePicture(file);
  });
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      $("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files[0]) takePicture(event.dataTransfer.files[0]);
    });
  }
}

// --- classes ----------------------------------------------------------------------------------------------------------

async function showVocabulary() {
  const name = $("vocabulary").value;
  $("own").hidden = name !== "";
  $("builtin").hidden = name === "";
  const chosen = $("vocabulary").selectedOptions[0];
  if (name) $("builtin-about").textContent = `${counted(Number(chosen.dataset.classes), "class").replace("classs", "classes")}: ${chosen.dataset.things} things, ${chosen.dataset.classes - chosen.dataset.things} stuff.`;
  describeRun();
}

async function editVocabulary() {
  try {
    chips.set(await json(`v1/vocabularies/${encodeURIComponent($("vocabulary").value)}`));
    $("vocabulary").value = "";
    await showVocabulary();
    $("word").focus();
  } catch (error) {
    refuse(error);
  }
}

// --- model ------------------------------------------------------------------------------------------------------------

function showModel() {
  const model = state.models.find(({ name }) => name === $("model").value);
  $("model-about").textContent = model.summary;
  if (!model.tasks.includes(state.task)) state.task = model.tasks[0];
  const legend = create("legend", "", {}, "Task");
  const choices = ["panoptic", "semantic", "instance"].map((task) => {
    const label = create("label");
    const radio = create("input", "", { type: "radio", name: "task", value: task });
    radio.checked = task === state.task;
    radio.disabled = !model.tasks.includes(task);
    radio.addEventListener("change", () => (state.task = task));
    label.append(radio, create("span", "", {}, task));
    return label;
  });
  $("tasks").replaceChildren(legend, ...choices);
  $("options").replaceChildren(...model.options.map(showOption));
  $("options-box").hidden = !model.options.length;
}

function showOption({ name, default: value, about }) {
  const label = create("label", "field option", { title: about });
  const input = create("input", "", { type: "range", min: 0, max: 1, step: 0.01, "data-option": name, "data-default": value });
  const output = create("output", "", {}, value.toFixed(2));
  input.value = value;
  input.addEventListener("input", () => (output.textContent = Number(input.value).toFixed(2)));
  const slider = create("span", "slider");
  slider.append(input, output);
  label.append(create("span", "", {}, name), slider, create("small", "help", {}, about));
  return label;
}

function changedOptions() {
  const inputs = [...document.querySelectorAll("[data-option]")].filter(({ value, dataset }) => Number(value) !== Number(Number(dataset.default).toFixed(2)));
  return Object.fromEntries(inputs.map(({ value, dataset }) => [dataset.option, Number(value)]));
}

// --- running ----------------------------------------------------------------------------------------------------------

function describeRun() {
  const count = $("vocabulary").value ? 1 : chips.entries.length;
  $("run").disabled = Boolean(state.running);
  $("run").title = !state.picture ? "Choose a picture first" : !count ? "Name at least one class first" : "";
}

function fields(model, options) {
  const given = { image: state.picture, model, task: state.task, threshold: $("threshold").value, background: $("background").value.trim() };
  if (!given.background) delete given.background;
  if (Object.keys(options).length) given.options = JSON.stringify(options);
  if ($("vocabulary").value) given.vocabulary = $("vocabulary").value;
  else given.classes = JSON.stringify(chips.entries.map(({ name, synonyms, thing }) => ({ name, synonyms, ...(thing !== null && { thing }) })));
  return given;
}

async function run() {
  chips.commit();
  if (!state.picture) return fail("Choose a picture first.", $("file"));
  if (!$("vocabulary").value && !chips.entries.length) return fail("Name at least one class first.", $("word"));
  if (state.running) return undefined;
  clearMessage();
  const controller = new AbortController();
  state.running = controller;
  showRunning(true);
  const models = [...new Set([$("model").value, $("other").value].filter(Boolean))];
  const { picture, bitmap } = state;
  const progress = models.map((name) => new Progress(name, models.length > 1));
  $("progress").replaceChildren(...progress.map(({ element }) => element));
  try {
    const tasks = models.map((name, index) => segment(fields(name, index ? {} : changedOptions()), controller.signal, (event) => progress[index].enter(event)));
    const results = await Promise.all(tasks);
    remember({ picture, bitmap, results, title: title(results) });
  } catch (error) {
    controller.abort();
    if (error.name === "AbortError") announce("Cancelled.");
    else refuse(error);
  } finally {
    progress.forEach((each) => each.end());
    state.running = null;
    showRunning(false);
  }
  return undefined;
}

function showRunning(running) {
  $("cancel").hidden = !running;
  $("run").hidden = running;
  $("progress").hidden = !running;
  $("stage").setAttribute("aria-busy", String(running));
  if (running) $("cancel").focus({ preventScroll: true });
  else $("run").focus({ preventScroll: true });
  describeRun();
}

class Progress {
  constructor(model, several) {
    this.began = performance.now();
    this.element = create("div", "steps");
    this.steps = new Map(Object.entries(STAGES).map(([stage, name]) => [stage, create("li", "", { "data-name": name }, name)]));
    const list = create("ol");
    list.append(...this.steps.values());
    this.time = create("span", "number", {}, "0.0 s");
    this.element.append(...(several ? [create("strong", "", {}, model)] : []), list, this.time);
    this.timer = setInterval(() => (this.time.textContent = `${((performance.now() - this.began) / 1000).toFixed(1)} s`), 100);
  }

  enter({ stage, before, done, total }) {
    if (total) {
      const now = this.element.querySelector(".now");
      if (now) now.textContent = `${now.dataset.name} ${Math.round((100 * done) / total)} %`;
    }
    if (!stage) return;
    for (const step of this.steps.values()) {
      if (step.className === "now") Object.assign(step, { className: "done", textContent: step.dataset.name });
    }
    const step = this.steps.get(stage);
    if (!step) return;
    step.className = "now";
    if (stage === "queued" && before) step.textContent = `Waiting, ${before} before`;
    announce(STAGES[stage]);
  }

  end() {
    clearInterval(this.timer);
  }
}

const title = (results) => {
  const names = [...new Set(results[0].segments.map(({ name }) => name))];
  return names.length ? names.slice(0, 3).join(", ") + (names.length > 3 ? " …" : "") : "nothing";
};

// --- results ----------------------------------------------------------------------------------------------------------

function look() {
  return { opacity: Number($("opacity").value), outlines: $("outlines").checked, names: $("names").checked };
}

function show(entry) {
  state.shown = entry;
  state.viewers = entry.results.map((result) =>
    new Viewer(result.model, result, entry.bitmap, look(), (position) => state.viewers.forEach((viewer) => viewer.point(position))));
  $("panes").replaceChildren(...state.viewers.map(({ element }) => element));
  $("panes").classList.toggle("two", state.viewers.length > 1);
  $("toolbar").hidden = false;
  $("empty").hidden = true;
  const { task } = entry.results[0];
  for (const option of $("format").options) option.disabled = task === "instance" && (option.value === "coco-panoptic" || option.value === "map");
  if ($("format").selectedOptions[0]?.disabled) $("format").value = "json";
  drawHistory();
}

function remember(entry) {
  state.history = [entry, ...state.history].slice(0, MOST);
  show(entry);
  announce(entry.results.map((result) => `${result.model}: ${counted(result.segments.length, "segment")}`).join("; "));
}

function drawHistory() {
  $("history-box").hidden = state.history.length < 2;
  $("history").replaceChildren(...state.history.map((entry) => {
    const item = create("li");
    const button = create("button", "past", { type: "button", "aria-pressed": String(entry === state.shown) });
    entry.thumb ??= thumbnail(entry);
    button.append(entry.thumb, create("span", "", {}, entry.title));
    button.addEventListener("click", () => show(entry));
    item.append(button);
    return item;
  }));
}

function thumbnail({ results: [result] }) {
  const canvas = create("canvas", "", { "aria-hidden": "true" }), scale = 96 / Math.max(result.width, result.height);
  canvas.width = Math.max(1, Math.round(result.width * scale));
  canvas.height = Math.max(1, Math.round(result.height * scale));
  canvas.getContext("2d").drawImage(state.viewers[0].canvas, 0, 0, canvas.width, canvas.height);
  return canvas;
}

async function download() {
  const format = $("format").value, { picture, results } = state.shown;
  $("download").disabled = true;
  try {
    for (const result of results) {
      const plain = { ...result, segments: result.segments.map(({ runs, ...segment }) => segment) };
      const suffix = results.length > 1 ? `-${result.model}` : "";
      save(await files(picture, plain, format), `${picture.name}${suffix}-${format}.zip`);
    }
    announce("Saved.");
  } catch (error) {
    refuse(error);
  } finally {
    $("download").disabled = false;
  }
}

function save(content, name) {
  const link = create("a", "", { href: URL.createObjectURL(content), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// --- messages ---------------------------------------------------------------------------------------------------------

function fail(text, element) {
  $("message").textContent = text;
  $("message").hidden = false;
  $("message").scrollIntoView({ block: "nearest" });
  element?.focus();
}

function clearMessage() {
  $("message").hidden = true;
}

function refuse(error) {
  if (!(error instanceof Refused)) throw error;
  if (error.status === 401) $("token-dialog").showModal();
  else fail(error.message);
}

function announce(text) {
  $("status").textContent = text;
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

// --- start ------------------------------------------------------------------------------------------------------------

async function start() {
  try {
    const [{ models, limits, version }, vocabularies] = await Promise.all([json("v1/models"), json("v1/vocabularies")]);
    Object.assign(state, { models, limits });
    $("model").replaceChildren(...models.map(({ name }) => new Option(name, name)));
    $("other").replaceChildren(new Option("nothing", ""), ...models.map(({ name }) => new Option(name, name)));
    $("vocabulary").replaceChildren(new Option("own names", ""), ...vocabularies.map(({ name, classes, things }) => {
      const option = new Option(`${name} (${classes})`, name);
      Object.assign(option.dataset, { classes, things });
      return option;
    }));
    $("service").textContent = `${version} · ${counted(models.length, "model")}`;
    showModel();
  } catch (error) {
    refuse(error);
  }
}

function listen() {
  listenForPictures();
  $("panel").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  $("cancel").addEventListener("click", () => state.running?.abort());
  $("model").addEventListener("change", showModel);
  $("vocabulary").addEventListener("change", showVocabulary);
  $("edit-list").addEventListener("click", editVocabulary);
  $("clear").addEventListener("click", () => chips.set([]));
  $("copy").addEventListener("click", () => navigator.clipboard?.writeText(chips.entries.map(written).join("\n")).then(() => announce("Copied.")));
  $("threshold").addEventListener("input", () => ($("threshold-value").textContent = Number($("threshold").value).toFixed(2)));
  for (const id of ["opacity", "outlines", "names"]) $(id).addEventListener("input", () => state.viewers.forEach((viewer) => viewer.redraw(look())));
  $("format").replaceChildren(...Object.entries(FORMATS).map(([value, name]) => new Option(name, value)));
  $("download").addEventListener("click", download);
  $("chips-box").addEventListener("click", (event) => event.target === $("chips-box") && $("word").focus());
  $("token-form").addEventListener("submit", () => {
    setToken($("token").value);
    $("token").value = "";
    start();
  });
}

listen();
start();
