// Panel "Walk": an animated interpolation between two latents.

import { callApi, callJson, curlCommand } from "./api.js";
import { byId, hideImage, readInteger, showImage } from "./dom.js";
import { Panel } from "./panel.js";
import { dataUrl, toCanvas } from "./pixels.js";
import { saveBlob } from "./saving.js";

const FPS = 12;
const SAVED_SIDE = 448; // about the pixels of a saved animation
const MOST_SCALE = 32; // of the API
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

/** One end of the path: a seed and an index, or an image. */
class Endpoint {
  #image = null;

  constructor(root, canvas, onChange) {
    this.name = root.id;
    this.onChange = onChange;
    this.thumb = root.querySelector("img");
    [this.seed, this.index] = ["seed", "index"].map((name) => root.querySelector(`[name=${name}]`));
    for (const field of [this.seed, this.index]) field.addEventListener("input", () => this.#clearImage());
    root.querySelector("button").addEventListener("click", () => {
      const url = toCanvas(canvas.modelInput().image).toDataURL("image/png");
      this.#image = url.split(",")[1];
      showImage(this.thumb, url, "What is on the canvas");
      onChange();
    });
  }

  /** Use a generated image. */
  setImage({ seed, index, data }) {
    this.#image = null;
    [this.seed.value, this.index.value] = [seed, index];
    showImage(this.thumb, dataUrl(data), `Picture ${index} of number ${seed}`);
    this.onChange();
  }

  /** The point of the API request, or null if a field is invalid. */
  get point() {
    if (this.#image) return { image: this.#image };
    const [seed, index] = [readInteger(this.seed), readInteger(this.index)];
    return seed === null || index === null ? null : { seed, index };
  }

  /** Generate and show the image of this end, unless it is shown already. */
  async loadThumbnail(model, signal) {
    if (!this.thumb.hidden) return;
    const { seed, index } = this.point;
    const json = { model, seed, offset: index };
    const { images } = await callJson("generate", { json, signal });
    showImage(this.thumb, dataUrl(images[0].data), `Picture ${index} of number ${seed}`);
  }

  #clearImage() {
    this.#image = null;
    hideImage(this.thumb);
  }

  reset() {
    this.#clearImage();
  }
}

export class InterpolatePanel {
  #panel = new Panel(byId("walk"));
  #animationUrl = "";
  #firstFrameUrl = ""; // shown while paused
  #request = null; // of the walk that is shown

  constructor({ models, canvas }) {
    this.models = models;
    const end = (name) => new Endpoint(byId(name), canvas, () => this.interpolate());
    this.endpoints = { from: end("from"), to: end("to") };
    byId("walk-form").addEventListener("input", () => this.#compare());
    byId("walk-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.interpolate();
    });
    byId("frames").addEventListener("input", () => this.#showFrames());
    byId("walk-save").addEventListener("click", () => this.#save());
    byId("pause").addEventListener("click", () => this.#play(byId("walked").src !== this.#animationUrl));
    reducedMotion.addEventListener("change", () => this.#animationUrl && this.#play(!reducedMotion.matches));
    this.#showFrames();
  }

  setModel(card) {
    this.card = card;
    byId("frames").max = Math.min(96, this.models.limits.frames);
    this.#panel.reset();
    this.#request = null;
    this.#compare();
    for (const endpoint of Object.values(this.endpoints)) endpoint.reset();
    hideImage(byId("walked"));
    byId("walk-tools").hidden = true;
  }

  /** The request for the walk that the form describes, or null if a field is invalid. */
  get #wanted() {
    const points = Object.values(this.endpoints).map((endpoint) => endpoint.point);
    if (points.includes(null)) return null;
    const frames = byId("frames").valueAsNumber;
    return { model: this.models.reference, points, frames, loop: byId("loop").checked, fps: FPS };
  }

  /** Dim a walk that is not the one of the form. */
  #compare() {
    const stale = this.#request !== null && JSON.stringify(this.#wanted) !== JSON.stringify(this.#request);
    byId("walk").toggleAttribute("data-stale", stale);
  }

  async interpolate() {
    const { from, to } = this.endpoints;
    const json = this.card && this.#wanted;
    if (!json) return;
    this.#compare();
    const { model, frames } = json;
    await this.#panel.run("Walking", async (signal) => {
      const [response] = await Promise.all([
        callApi("latent-interpolate", { json, accept: "image/webp", signal }),
        from.loadThumbnail(model, signal),
        to.loadThumbnail(model, signal),
      ]);
      await this.#load(await response.blob());
      this.#request = json;
      this.#compare();
      this.#showCommand(json);
      return `${frames} frames, each of them made real.`;
    });
  }

  async #load(animation) {
    URL.revokeObjectURL(this.#animationUrl);
    this.#animationUrl = URL.createObjectURL(animation);
    this.#firstFrameUrl = toCanvas(await createImageBitmap(animation)).toDataURL();
    byId("walk-tools").hidden = false;
    this.#play(!reducedMotion.matches);
  }

  #play(animated) {
    const url = animated ? this.#animationUrl : this.#firstFrameUrl;
    showImage(byId("walked"), url, "A walk from one picture to the other");
    byId("pause").textContent = animated ? "Pause" : "Play";
  }

  /** Save the walk at a size worth showing. */
  #save() {
    return this.#panel.run("Saving", async (signal) => {
      const [, height, width] = this.card.shape;
      const allowed = Math.sqrt(this.models.limits.pixels / (this.#request.frames * height * width));
      const wanted = Math.round(SAVED_SIDE / Math.max(height, width));
      const scale = Math.max(1, Math.floor(Math.min(wanted, allowed, MOST_SCALE)));
      const json = { ...this.#request, scale };
      const blob = await (await callApi("latent-interpolate", { json, accept: "image/webp", signal })).blob();
      saveBlob(blob, `walk.${blob.type.split("/")[1]}`);
      return undefined;
    });
  }

  #showCommand(json) {
    const points = json.points.map((point, i) => (point.image ? { image: `@${["from", "to"][i]}.png` } : point));
    const request = { json: { ...json, points }, accept: "image/webp", file: "walk.webp" };
    this.#panel.showCommand(curlCommand("latent-interpolate", request));
  }

  #showFrames() {
    byId("frames-out").value = byId("frames").value;
  }
}
