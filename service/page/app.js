// Entry point: creates the panels and passes the chosen model on to them.

import { continueAddress, decodeDrawing, encodeDrawing, readAddress, writeAddress } from "./address.js";
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
let colours = []; // that are offered, none for a model of grey pictures
const pens = new Map(); // the name of a model → what the user chose for it: {brush, colour}
const [PAGE_LEAD, DRAWING_LEAD] = [byId("lead").textContent, "A small network makes it real."];
const SHEET = [880, 760]; // the shape of a page before one is opened: that of the example, as in the style sheet
const sheets = new Map(); // the digest of a model → the shape that it had last
const touch = matchMedia("(pointer: coarse)").matches;

async function setModel(chosen) {
  const card = chosen.tiles ? { ...chosen, shape: [chosen.shape[0], ...(sheets.get(chosen.digest) ?? SHEET)] } : chosen;
  samples = null;
  project.stopPlacing();
  document.body.classList.toggle("light-paper", inkColour(card)[0] === 0);
  document.documentElement.style.setProperty("--paper", cssColour(backgroundColour(card)));
  document.body.classList.toggle("pages", Boolean(card.tiles));
  byId("file").multiple = Boolean(card.tiles);
  canvas.paint.tabIndex = card.tiles ? -1 : 0; // nobody draws on a page
  const prompt = card.prompt || (card.noise === null ? "Open a picture" : "Draw something");
  for (const place of [byId("prompt"), byId("invitation").querySelector("span")]) {
    place.textContent = touch ? forFingers(prompt) : prompt;
  }
  byId("lead").textContent = card.noise !== null ? DRAWING_LEAD : card.name === "scans" ? PAGE_LEAD : (card.description ?? "");
  model = card;
  choosePenTool(); // a mask is of the drawing before
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
  sheets.set(card.digest, [height, width]);
  document.body.classList.toggle("fine", Math.max(height, width) >= 48);
  document.body.classList.toggle("large", Math.max(height, width) > 448); // the browser reduces it
  document.documentElement.style.setProperty("--shape", `${width} / ${height}`);
  document.documentElement.style.setProperty("--ratio", width / height);
  Object.assign(byId("brush"), { min: 0.5 / width, max: 0.3, step: "any" });
  takePen();
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
  if (card.shape[0] === 3) setPalette(samples.palette());
  if (canvas.isEmpty) await examples.introduce();
  await project.running;
  if (model !== card) return;
  models.loadThumbnails();
  whenVisible(byId("walk"), () => model === card && interpolate.interpolate());
  whenVisible(byId("lasting"), () => model === card && lasting.runWithResult());
}

/** Put the drawing of the address on the canvas, unless it is there. */
async function restoreDrawing() {
  if (restored) return;
  restored = true;
  const { d = "" } = readAddress();
  if (d === (await encodeDrawing(canvas.actions, [model.shape[2], model.shape[1]]))) return;
  const actions = await decodeDrawing(d);
  if (actions.length) canvas.replace(actions);
}

async function loadModels() {
  await startup.run("Asking which models there are", async (signal) => {
    const { m, s } = readAddress();
    if (/^\d{1,10}$/.test(s ?? "")) byId("seed").value = s;
    setModel(await models.load(m, signal));
    return "";
  });
}

models.addEventListener("selected", () => {
  // A step of the history, unless it is the history that chose: then the address is there already.
  if (readAddress().m !== models.reference) history.pushState(null, "", location.href);
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
    if (action === "clear" && pens.delete(model.name)) takePen();
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
byId("brush").addEventListener("input", (event) => chooseBrush(event.target.valueAsNumber));
byId("ink").addEventListener("input", (event) => chooseInk(event.target.value));
// What is no drawing surface opens pictures.
byId("drawing").addEventListener("click", () => model?.tiles && byId("file").click());
byId("share").addEventListener("click", (event) => {
  copyText(location.href, event.currentTarget, () => "It is in the address bar");
});
drawWithPointer(canvas);
drawWithKeyboard(canvas, byId("pointer"));

/** A prompt without what fingers cannot do. */
const forFingers = (prompt) => prompt.replace(/^Drop /, "Choose ").replace(/, or paste .*/, "");

function choosePen(choice) {
  pens.set(model.name, { ...pens.get(model.name), ...choice });
}

function chooseBrush(brush) {
  choosePen({ brush });
  setBrush(brush);
}

function chooseInk(colour) {
  choosePen({ colour });
  setInk(colour);
}

function setBrush(width) {
  canvas.brush = width;
  byId("brush").previousElementSibling.style.setProperty("--brush", width);
}

/** Offer these colours. */
function setPalette(offered) {
  colours = offered;
  byId("palette").hidden = colours.length === 0;
  const swatches = colours.map((colour) => {
    const swatch = createElement("button", { type: "button", className: "swatch", "aria-label": `Colour ${colour}` });
    swatch.dataset.colour = colour;
    swatch.style.setProperty("--colour", colour);
    swatch.addEventListener("click", () => chooseInk(colour));
    return swatch;
  });
  byId("swatches").replaceChildren(...swatches);
  takePen();
}

/** Take the pen that the user chose for the model since it was cleared, or one that is seen well. */
function takePen() {
  // A stroke of handwriting is about a tenth of the image wide; larger models get a finer brush.
  const usual = Math.max(0.03, 0.09 * Math.sqrt(28 / Math.max(...model.shape.slice(1))));
  const { brush = usual, colour } = pens.get(model.name) ?? {};
  byId("brush").value = brush;
  setBrush(brush);
  if (colours.length === 0) canvas.colour = null;
  else setInk(colour ?? mostVisible(colours, backgroundColour(model)));
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
  choosePenTool();
}

function choosePenTool() {
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
addEventListener("hashchange", () => {
  const { m } = readAddress();
  restored = false;
  if (!models.choose(m) && model) restoreDrawing();
});

addEventListener("key-needed", ({ detail }) => {
  byId("key").hidden = false;
  byId("key").querySelector(".status").textContent = detail;
  byId("key-field").focus();
});
byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  setApiKey(byId("key-field").value.trim());
  byId("key-field").value = "";
  byId("key").hidden = true;
  if (!models.limits) loadModels();
});

continueAddress();
if (!(readAddress().m ?? "scans").startsWith("scans")) {
  // The example that the document begins with is of another model.
  document.body.classList.remove("pages");
  project.result.clear();
}
loadModels();
