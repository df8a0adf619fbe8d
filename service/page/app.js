// Entry point: creates the panels and passes the chosen model on to them.

import { decodeDrawing, encodeDrawing, readAddress, writeAddress } from "./address.js";
import { setApiKey } from "./api.js";
import { DrawingCanvas } from "./canvas.js";
import { byId, createElement, whenVisible } from "./dom.js";
import { Examples } from "./examples.js";
import { GeneratePanel } from "./generate_panel.js";
import { InterpolatePanel } from "./interpolate_panel.js";
import { LastingPanel } from "./lasting_panel.js";
import { Models } from "./models.js";
import { ModelsPanel } from "./models_panel.js";
import { Pages } from "./pages.js";
import { Panel, copyText } from "./panel.js";
import { backgroundColour, cssColour, inkColour } from "./pixels.js";
import { drawWithKeyboard, drawWithPointer } from "./pointer.js";
import { ProjectPanel } from "./project_panel.js";
import { Samples } from "./samples.js";

const startup = new Panel(byId("startup"));
const models = new Models(byId("models"));
const canvas = new DrawingCanvas(byId("paint"), byId("mask"));
const project = new ProjectPanel(canvas, models);
const lasting = new LastingPanel({ models, project });
const interpolate = new InterpolatePanel({ models, canvas });
const generate = new GeneratePanel({
  models,
  canvas,
  setEndpoint: (which, image) => interpolate.endpoints[which].setImage(image),
});
const examples = new Examples({ canvas, project });
const pages = new Pages({ canvas, project });
const modelsPanel = new ModelsPanel(models);
let model = null; // the card of the chosen model
let samples = null; // its generated pictures
let restored = false; // whether the drawing of the address is on the canvas
const LEAD = byId("lead").textContent;

async function setModel(card) {
  samples = null;
  document.body.classList.toggle("light-paper", inkColour(card)[0] === 0);
  document.documentElement.style.setProperty("--paper", cssColour(backgroundColour(card)));
  document.body.classList.toggle("pages", Boolean(card.tiles));
  byId("file").multiple = Boolean(card.tiles);
  canvas.paint.tabIndex = card.tiles ? -1 : 0; // nobody draws on a page
  const prompt = card.prompt || (card.noise === null ? "Open a picture" : "Draw something");
  byId("prompt").textContent = prompt;
  byId("lead").textContent = card.noise === null ? (card.description ?? "") : LEAD;
  byId("invitation").querySelector("span").textContent = prompt;
  model = card;
  setPalette(card.shape[0] === 1 ? [] : ["#000000", "#ffffff"]);
  setShape(card);
  for (const panel of [lasting, generate, interpolate, pages, modelsPanel]) panel.setModel(card);
  await examples.setModel(card);
  if (model !== card) return;
  byId("lasting").hidden = Boolean(card.tiles); // a large image many times would take minutes
  byId("exact").hidden = !card.exact;
  for (const section of document.querySelectorAll("section[inert]")) section.inert = false;
  document.querySelector(".pair").hidden = card.noise === null; // an imported network may make nothing of noise
  writeAddress({ m: models.reference, ...(restored && { d: "" }) });
  await restoreDrawing();
  if (!canvas.isEmpty) canvas.finish(); // the address has the drawing of this model
  await project.running; // the drawing comes before what nobody has asked for yet
  if (model !== card) return;
  if (card.noise !== null) {
    generate.generate();
    return;
  }
  models.loadThumbnails();
  if (pages.hasSome) await pages.showAgain();
  else if (canvas.isEmpty) await examples.introduce();
  whenVisible(byId("lasting"), () => model === card && !card.tiles && lasting.runWithResult());
}

/** Give the canvas the shape of a card: that of the model, or of an opened image if the model takes any size. */
function setShape(card) {
  model = card;
  const [, height, width] = card.shape;
  document.body.classList.toggle("fine", Math.max(height, width) >= 48);
  document.body.classList.toggle("large", Math.max(height, width) > 448); // the browser reduces it
  document.documentElement.style.setProperty("--shape", `${width} / ${height}`);
  document.documentElement.style.setProperty("--ratio", width / height);
  // A stroke of handwriting is about a tenth of the image wide; larger models get a finer brush.
  const brush = Math.max(0.03, 0.09 * Math.sqrt(28 / Math.max(height, width)));
  Object.assign(byId("brush"), { min: 0.5 / width, max: 0.3, step: "any", value: brush });
  setBrush(brush);
  canvas.setModel(card);
  project.setModel(card);
}

project.addEventListener("sized", ({ detail }) => setShape({ ...model, shape: [model.shape[0], ...detail] }));
project.addEventListener("opened", ({ detail }) => pages.open(detail));

/** Use the first generated pictures of a model: for examples, comparisons and colours. */
async function setSamples(card, images) {
  const decoded = await Samples.decode(images, card);
  if (model !== card) return;
  samples = project.samples = decoded;
  examples.setSamples(samples);
  if (card.shape[0] === 3) setPalette(samples.palette(), examples.firstStroke);
  if (canvas.isEmpty) await examples.introduce();
  await project.running;
  if (model !== card) return;
  models.loadThumbnails();
  whenVisible(byId("walk"), () => model === card && interpolate.interpolate());
  whenVisible(byId("lasting"), () => model === card && lasting.runWithResult());
}

async function restoreDrawing() {
  if (restored) return;
  restored = true;
  const actions = await decodeDrawing(readAddress().d ?? "");
  if (actions.length) canvas.replace(actions);
}

async function loadModels() {
  await startup.run("Asking which models there are", async (signal) => {
    const { m, s } = readAddress();
    if (/^\d{1,10}$/.test(s ?? "")) byId("seed").value = s;
    const card = await models.load(m, signal);
    setModel(card);
    return "";
  });
}

models.addEventListener("selected", () => {
  startup.run("Asking for the model", async (signal) => {
    const card = await models.card(signal);
    if (!signal.aborted) setModel(card);
    return "";
  });
});

generate.addEventListener("generated", ({ detail: { seed, images } }) => {
  writeAddress({ s: String(seed) });
  if (!samples) setSamples(model, images);
});

canvas.addEventListener("changed", () => {
  byId("undo").disabled = !canvas.canUndo;
  byId("redo").disabled = !canvas.canRedo;
  byId("clear").disabled = canvas.isEmpty && !canvas.isExample;
  byId("share").disabled = canvas.isEmpty;
  byId("invitation").hidden = !canvas.isEmpty;
  byId("invitation").classList.toggle("aside", canvas.isExample);
  byId("masking").hidden = !canvas.isMasked && canvas.tool !== "mask";
});
canvas.addEventListener("finished", async () => {
  if (model.tiles) return; // an image of any size is too long for an address
  const { revision } = canvas;
  const drawing = await encodeDrawing(canvas.actions, [model.shape[2], model.shape[1]]);
  if (revision === canvas.revision && restored) writeAddress({ d: drawing });
});
for (const action of ["undo", "redo", "clear"]) {
  byId(action).addEventListener("click", () => {
    canvas[action]();
    if (byId(action).disabled) canvas.paint.focus({ preventScroll: true }); // a disabled button loses the focus
  });
}
addEventListener("keydown", (event) => {
  const typing = event.target instanceof Element && event.target.matches("input:not([type=range], [type=radio]), textarea");
  if (!model || typing || !(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
  event.preventDefault();
  byId(event.shiftKey ? "redo" : "undo").click();
});
for (const tool of document.getElementsByName("tool")) {
  tool.addEventListener("change", () => {
    canvas.tool = tool.value;
    byId("masking").hidden = !canvas.isMasked && canvas.tool !== "mask";
  });
}
byId("brush").addEventListener("input", (event) => setBrush(event.target.valueAsNumber));
byId("ink").addEventListener("input", (event) => setInk(event.target.value));
byId("share").addEventListener("click", (event) => {
  copyText(location.href, event.currentTarget, () => "It is in the address bar");
});
drawWithPointer(canvas);
drawWithKeyboard(canvas, byId("pointer"));

function setBrush(width) {
  canvas.brush = width;
  byId("brush").previousElementSibling.style.setProperty("--brush", width);
}

/** Offer these colours, none for a model of grey pictures; begin with colour and width of a stroke, if there is one. */
function setPalette(colours, stroke) {
  byId("palette").hidden = colours.length === 0;
  const swatches = colours.map((colour) => {
    const swatch = createElement("button", { type: "button", className: "swatch", "aria-label": `Colour ${colour}` });
    swatch.dataset.colour = colour;
    swatch.style.setProperty("--colour", colour);
    swatch.addEventListener("click", () => setInk(colour));
    return swatch;
  });
  byId("swatches").replaceChildren(...swatches);
  if (colours.length === 0) canvas.colour = null;
  else setInk(stroke?.colour ?? mostVisible(colours, backgroundColour(model)));
  if (stroke) setBrush((byId("brush").value = stroke.size));
}

/** The colour that differs most from the background. */
function mostVisible(colours, background) {
  const distance = (colour) =>
    background.reduce((sum, level, c) => sum + Math.abs(level - parseInt(colour.slice(1 + 2 * c, 3 + 2 * c), 16)), 0);
  return colours.reduce((best, colour) => (distance(colour) > distance(best) ? colour : best));
}

function setInk(colour) {
  canvas.colour = byId("ink").value = colour;
  for (const swatch of byId("swatches").children) {
    swatch.setAttribute("aria-pressed", String(swatch.dataset.colour === colour));
  }
  if (canvas.tool !== "pen") document.querySelector("[name=tool][value=pen]").click();
}

// The fragment belongs to the drawing, so links within the page must not change it.
addEventListener("click", (event) => {
  const link = event.target instanceof Element && event.target.closest("a[href^='#']");
  if (!link) return;
  event.preventDefault();
  const target = byId(link.hash.slice(1));
  target.scrollIntoView({ block: "start" });
  target.focus({ preventScroll: true });
});
// The same drawing, seed and model on the page whose models run elsewhere.
for (const link of document.querySelectorAll(".elsewhere")) {
  link.addEventListener("click", () => (link.hash = location.hash));
}
addEventListener("hashchange", async () => {
  const { m, d } = readAddress();
  if (m && m !== models.reference) models.choose(m);
  if (d && model) canvas.replace(await decodeDrawing(d));
});

addEventListener("key-needed", () => {
  byId("key").hidden = false;
  byId("key-field").focus();
});
byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  setApiKey(byId("key-field").value.trim());
  byId("key-field").value = "";
  byId("key").hidden = true;
  if (!models.limits) loadModels();
});

loadModels();
