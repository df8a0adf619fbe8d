// Entry point: creates the panels and passes the chosen model on to them.

import { setApiKey } from "./api.js";
import { DrawingCanvas } from "./canvas.js";
import { byId } from "./dom.js";
import { GeneratePanel } from "./generate_panel.js";
import { InterpolatePanel } from "./interpolate_panel.js";
import { Models, showCard } from "./models.js";
import { Panel } from "./panel.js";
import { backgroundColour, cssColour, inkColour } from "./pixels.js";
import { drawWithKeyboard, drawWithPointer } from "./pointer.js";
import { ProjectPanel } from "./project_panel.js";

const startup = new Panel(byId("startup"));
const models = new Models(byId("model"));
const canvas = new DrawingCanvas(byId("paint"), byId("mask"));
const project = new ProjectPanel(canvas, models);
const interpolate = new InterpolatePanel({ models, canvas });
const generate = new GeneratePanel({
  models,
  canvas,
  setEndpoint: (which, image) => interpolate.endpoints[which].setImage(image),
});

function setModel(card) {
  const [channels, height, width] = card.shape;
  document.body.classList.toggle("light-paper", inkColour(card)[0] === 0);
  for (const stage of document.querySelectorAll(".stage, .thumb, .tiles")) {
    stage.style.setProperty("--paper", cssColour(backgroundColour(card)));
    stage.style.setProperty("--shape", `${width} / ${height}`);
  }
  byId("ink-label").hidden = channels === 1;
  canvas.colour = channels === 1 ? null : byId("ink").value;
  // A stroke of handwriting is about a tenth of the image wide; larger models get a finer brush.
  const brush = Math.max(0.03, 0.09 * Math.sqrt(28 / Math.max(height, width)));
  Object.assign(byId("brush"), { min: 0.5 / width, max: 0.3, step: "any", value: brush });
  canvas.brush = brush;
  canvas.setModel(card);
  showCard(card);
  for (const panel of [project, generate, interpolate]) panel.setModel(card);
  for (const name of ["real", "generate", "walk"]) byId(name).inert = false; // usable once a model is chosen
}

async function loadModels() {
  await startup.run("Asking which models there are", async (signal) => {
    setModel(await models.load(signal));
  });
}

models.addEventListener("selected", () => {
  startup.run("Asking for the model", async (signal) => setModel(await models.card(signal)));
});

canvas.addEventListener("changed", () => {
  byId("undo").disabled = !canvas.canUndo;
  byId("redo").disabled = !canvas.canRedo;
  byId("clear").disabled = canvas.isEmpty;
  byId("invitation").hidden = !canvas.isEmpty;
  byId("masking").hidden = !canvas.isMasked && canvas.tool !== "mask";
});
for (const action of ["undo", "redo", "clear"]) {
  byId(action).addEventListener("click", () => {
    canvas[action]();
    canvas.finish();
  });
}
addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=range], [type=radio], [type=checkbox]), select");
  if (typing || !(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
  event.preventDefault();
  byId(event.shiftKey ? "redo" : "undo").click();
});
for (const tool of document.getElementsByName("tool")) {
  tool.addEventListener("change", () => {
    canvas.tool = tool.value;
    canvas.dispatchEvent(new Event("changed"));
  });
}
byId("brush").addEventListener("input", (event) => (canvas.brush = event.target.valueAsNumber));
byId("ink").addEventListener("input", (event) => (canvas.colour = event.target.value));
drawWithPointer(canvas);
drawWithKeyboard(canvas, byId("pointer"));

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
