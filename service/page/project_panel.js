// Panel “Make it real”: applies f to the drawing.

import { callApi, curlCommand } from "./api.js";
import { byId, createElement, hideImage, showImage } from "./dom.js";
import { distanceMessage, driftMessage, formatDistance, formatTimes, powerOfF } from "./messages.js";
import { Panel } from "./panel.js";
import { addNoise, dataUrl, toBlob, toCanvas, toPng } from "./pixels.js";
import { Trajectory, recordedSteps } from "./trajectory.js";
import { decodeImage, onUpload, prepareUpload } from "./uploads.js";

const STEPS = [1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100, 200, 500, 1000];
const NOISE = 0.4 * 255; // σ = 0.8 in a model's −1…1

export class ProjectPanel {
  #panel = new Panel(byId("real"));
  #trajectory = new Trajectory(byId("trajectory"), (frame) => this.#showFrame(frame));
  #shown = null; // the frame on display
  #pending = null; // animation frame of the preview

  constructor(canvas, models) {
    [this.canvas, this.models] = [canvas, models];
    byId("go").addEventListener("click", () => this.project());
    byId("again").addEventListener("click", () => this.applyAgain());
    byId("keep").addEventListener("click", async () => canvas.placeImage(await decodeImage(this.#shown.data)));
    byId("noise").addEventListener("click", () => this.#addNoise());
    byId("save-drawing").addEventListener("click", () => this.#saveDrawing());
    for (const name of ["steps", "strength"]) {
      byId(name).addEventListener("input", () => this.#showSettings());
      byId(name).addEventListener("change", () => this.#projectIfLive());
    }
    byId("live").addEventListener("change", () => this.#projectIfLive());
    for (const event of ["changed", "extended"]) canvas.addEventListener(event, () => this.#preview());
    byId("forget").addEventListener("change", () => this.#preview());
    canvas.addEventListener("finished", () => this.#projectIfLive());
    onUpload(byId("file"), byId("drawing"), (file) => this.#upload(file));
  }

  /** Switch to another model. */
  setModel(card) {
    this.card = card;
    const limit = this.models.limits.steps;
    this.stops = STEPS.filter((steps) => steps <= limit);
    const recommended = this.stops.findIndex((steps) => steps >= card.steps.project);
    Object.assign(byId("steps"), { max: this.stops.length - 1, value: Math.max(0, recommended) });
    this.#showSettings();
    this.#panel.reset();
    this.#trajectory.clear();
    this.#show(null);
    this.#projectIfLive();
  }

  /** Show f^k of the drawing. */
  async project() {
    if (!this.card) return;
    const { image, mask } = this.canvas.modelInput({ greyUnderMask: byId("forget").checked });
    const [steps, strength] = [this.#steps, byId("strength").valueAsNumber / 100];
    await this.#panel.run("Making it real", async (signal) => {
      const options = { steps, strength, record: recordedSteps(steps), score: true };
      const answer = await this.#send(await toPng(image), mask, options, signal);
      this.#trajectory.start(answer.trajectory);
      this.#show(this.#trajectory.last);
      this.#showCommand(options, mask);
      const messages = [maskMessage(mask), distanceMessage(answer.distance, this.card), this.#driftMessage(answer)];
      return messages.join(" ").trim();
    });
  }

  /** Apply f once more to the last result. */
  async applyAgain() {
    const { mask } = this.canvas.modelInput();
    const last = this.#trajectory.last;
    await this.#panel.run("Once more", async (signal) => {
      const answer = await this.#send(toBlob(last.data), mask, { steps: 1, record: [0, 1], score: true }, signal);
      this.#trajectory.add({ data: answer.data, change: answer.trajectory[1].change, steps: 1 });
      this.#show(this.#trajectory.last);
      const change = formatDistance(answer.trajectory[1].change);
      const applied = formatTimes(this.#trajectory.last.step);
      return `f, applied ${applied}, moved it by ${change} this time. ${this.#driftMessage(answer)}`;
    });
  }

  async #send(image, mask, options, signal) {
    const form = new FormData();
    form.append("image", image, "drawing.png");
    if (mask) form.append("mask", await toPng(mask), "mask.png");
    // The canvas already has the polarity and the size of the model.
    for (const [name, value] of Object.entries({ model: this.models.reference, invert: false, ...options })) {
      form.append(name, String(value));
    }
    return (await (await callApi("project", { form, signal })).json()).images[0];
  }

  /** Update the preview of the model's input, at most once per screen frame. */
  #preview() {
    this.#pending ??= requestAnimationFrame(() => {
      this.#pending = null;
      this.#paintPreview();
    });
  }

  #paintPreview() {
    const { image } = this.canvas.modelInput({ greyUnderMask: byId("forget").checked });
    const canvas = byId("seen");
    [canvas.width, canvas.height] = [image.width, image.height];
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  #driftMessage({ drift, distance }) {
    return driftMessage(drift, distance, this.card);
  }

  #showCommand({ steps, strength }, mask) {
    const fields = [["image", "@drawing.png"], ["model", this.models.reference], ["steps", String(steps)]];
    if (mask) fields.push(["mask", "@mask.png"]);
    if (strength < 1) fields.push(["strength", String(strength)]);
    fields.push(["invert", "false"]);
    this.#panel.showCommand(curlCommand("project", { fields, accept: "image/png", file: "real.png" }));
  }

  #show(frame) {
    byId("made-tools").hidden = frame === null;
    if (frame) this.#showFrame(frame);
    else hideImage(byId("made"));
  }

  #showFrame(frame) {
    this.#shown = frame;
    const description = frame.step === 0 ? "Your picture as f saw it" : `${powerOfF(frame.step)} of your picture`;
    showImage(byId("made"), dataUrl(frame.data), description);
    byId("save-made").href = dataUrl(frame.data);
  }

  #upload(file) {
    if (!this.card) return undefined; // dropped or pasted before the models are loaded
    const { models } = this;
    return this.#panel.run("Reading the picture", async (signal) => {
      const picture = await prepareUpload(file, { model: models.reference, limits: models.limits, signal });
      if (!signal.aborted) this.canvas.placeImage(picture);
    });
  }

  #addNoise() {
    const { image } = this.canvas.modelInput();
    this.canvas.placeImage(toCanvas(addNoise(image, NOISE, this.card.shape[0])));
  }

  async #saveDrawing() {
    const { image, mask } = this.canvas.modelInput({ greyUnderMask: byId("forget").checked });
    for (const [name, pixels] of [["drawing.png", image], ["mask.png", mask]]) {
      if (pixels) createElement("a", { href: toCanvas(pixels).toDataURL(), download: name }).click();
    }
  }

  get #steps() {
    return this.stops[byId("steps").valueAsNumber];
  }

  #showSettings() {
    byId("steps-out").value = formatTimes(this.#steps);
    byId("steps").setAttribute("aria-valuetext", formatTimes(this.#steps));
    byId("strength-out").value = `${byId("strength").value} %`;
  }

  #projectIfLive() {
    if (byId("live").checked && !this.canvas.isEmpty) this.project();
  }
}

const maskMessage = (mask) => (mask ? "Outside the mask everything is as it was." : "");
