// Everything is made here, and told of the model that is chosen.

import { useKey } from "./api.js";
import { byId } from "./dom.js";
import { Easel } from "./easel.js";
import { Generate } from "./generate.js";
import { keys, pointers } from "./hands.js";
import { Models, describe } from "./models.js";
import { css, ink, paper } from "./pixels.js";
import { Real } from "./real.js";
import { Section } from "./section.js";
import { Walk } from "./walk.js";

const startup = new Section(byId("startup"));
const models = new Models(byId("model"));
const easel = new Easel(byId("paint"), byId("mask"));
const real = new Real(easel, models);
const walk = new Walk({ models, easel });
const generate = new Generate({ models, easel, end: (which, picture) => walk.ends[which].take(picture) });

function fit(card) {
  const [channels, height, width] = card.shape;
  document.body.classList.toggle("light-paper", ink(card)[0] === 0);
  for (const stage of document.querySelectorAll(".stage, .thumb, .tiles")) {
    stage.style.setProperty("--paper", css(paper(card)));
    stage.style.setProperty("--shape", `${width} / ${height}`);
  }
  byId("ink-label").hidden = channels === 1;
  easel.colour = channels === 1 ? null : byId("ink").value;
  // A stroke of handwriting is about a tenth of the picture wide; finer where there are more pixels to draw with.
  const usual = Math.max(0.03, 0.09 * Math.sqrt(28 / Math.max(height, width)));
  Object.assign(byId("brush"), { min: 0.5 / width, max: 0.3, step: "any", value: usual });
  easel.brush = usual;
  easel.fit(card);
  describe(card);
  for (const part of [real, generate, walk]) part.fit(card);
  for (const name of ["real", "generate", "walk"]) byId(name).inert = false; // there is a model to use them on
}

async function load() {
  await startup.run("Asking which models there are", async (signal) => {
    fit(await models.load(signal));
  });
}

models.addEventListener("picked", () => {
  startup.run("Asking for the model", async (signal) => fit(await models.card(signal)));
});

easel.addEventListener("changed", () => {
  byId("undo").disabled = !easel.canUndo;
  byId("redo").disabled = !easel.canRedo;
  byId("clear").disabled = easel.isEmpty;
  byId("invitation").hidden = !easel.isEmpty;
  byId("masking").hidden = !easel.isMasked && easel.tool !== "mask";
});
for (const act of ["undo", "redo", "clear"]) {
  byId(act).addEventListener("click", () => {
    easel[act]();
    easel.finish();
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
    easel.tool = tool.value;
    easel.dispatchEvent(new Event("changed"));
  });
}
byId("brush").addEventListener("input", (event) => (easel.brush = event.target.valueAsNumber));
byId("ink").addEventListener("input", (event) => (easel.colour = event.target.value));
pointers(easel);
keys(easel, byId("pointer"));

addEventListener("key-needed", () => {
  byId("key").hidden = false;
  byId("key-field").focus();
});
byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key-field").value.trim());
  byId("key-field").value = "";
  byId("key").hidden = true;
  if (!models.limits) load();
});

load();
