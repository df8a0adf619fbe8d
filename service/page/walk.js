// A walk between two latents, as an animation that can be stopped.

import { ask, curl } from "./api.js";
import { byId, show, unshow, whole } from "./dom.js";
import { base64, canvasOf, source } from "./pixels.js";
import { Section } from "./section.js";

const FPS = 12;
const still = matchMedia("(prefers-reduced-motion: reduce)");

/** One end: a seed and a number, or a picture of the canvas. */
class End {
  #image = null;

  constructor(root, easel) {
    this.name = root.id;
    this.thumb = root.querySelector("img");
    [this.seed, this.index] = ["seed", "index"].map((name) => root.querySelector(`[name=${name}]`));
    for (const field of [this.seed, this.index]) field.addEventListener("input", () => this.#forget());
    root.querySelector("button").addEventListener("click", () => {
      this.#image = base64(easel.seen().image);
      show(this.thumb, source(this.#image), "What is on the canvas");
    });
  }

  /** Be a picture that was generated. */
  take({ seed, index, data }) {
    this.#image = null;
    [this.seed.value, this.index.value] = [seed, index];
    show(this.thumb, source(data), `Picture ${index} of seed ${seed}`);
  }

  /** The point as the service wants it, or null while the fields make none. */
  get point() {
    if (this.#image) return { image: this.#image };
    const [seed, index] = [whole(this.seed), whole(this.index)];
    return seed === null || index === null ? null : { seed, index };
  }

  /** Show a picture of this end, where it has none yet. */
  async picture(model, signal) {
    if (!this.thumb.hidden) return;
    const { seed, index } = this.point;
    const json = { model, seed, offset: index };
    const { images } = await (await ask("generate", { json, signal })).json();
    show(this.thumb, source(images[0].data), `Picture ${index} of seed ${seed}`);
  }

  #forget() {
    this.#image = null;
    unshow(this.thumb);
  }

  reset() {
    this.#forget();
  }
}

export class Walk {
  #section = new Section(byId("walk"));
  #moving = ""; // address of the animation
  #resting = ""; // of its first frame

  constructor({ models, easel }) {
    this.models = models;
    this.ends = { from: new End(byId("from"), easel), to: new End(byId("to"), easel) };
    byId("walk-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.walk();
    });
    byId("frames").addEventListener("input", () => this.#label());
    byId("pause").addEventListener("click", () => this.#play(byId("walked").src !== this.#moving));
    still.addEventListener("change", () => this.#moving && this.#play(!still.matches));
    this.#label();
  }

  fit(card) {
    this.card = card;
    byId("frames").max = Math.min(96, this.models.limits.frames);
    this.#section.reset();
    for (const end of Object.values(this.ends)) end.reset();
    unshow(byId("walked"));
    byId("walk-tools").hidden = true;
  }

  async walk() {
    const { from, to } = this.ends;
    const points = [from.point, to.point];
    if (!this.card || points.includes(null)) return;
    const model = this.models.reference;
    const frames = byId("frames").valueAsNumber;
    const json = { model, points, frames, loop: byId("loop").checked, fps: FPS };
    await this.#section.run("Walking", async (signal) => {
      const [response] = await Promise.all([
        ask("latent-interpolate", { json, accept: "image/webp", signal }),
        from.picture(model, signal),
        to.picture(model, signal),
      ]);
      await this.#load(await response.blob());
      this.#explain(json);
      return `${frames} frames, each of them f of a point between the two.`;
    });
  }

  async #load(animation) {
    URL.revokeObjectURL(this.#moving);
    this.#moving = URL.createObjectURL(animation);
    this.#resting = canvasOf(await createImageBitmap(animation)).toDataURL();
    byId("walk-save").href = this.#moving;
    byId("walk-tools").hidden = false;
    this.#play(!still.matches);
  }

  #play(moving) {
    show(byId("walked"), moving ? this.#moving : this.#resting, "A walk from one picture to the other");
    byId("pause").textContent = moving ? "Pause" : "Play";
  }

  #explain(json) {
    const points = json.points.map((point, i) => (point.image ? { image: `@${["from", "to"][i]}.png` } : point));
    const request = { json: { ...json, points }, accept: "image/webp", file: "walk.webp" };
    this.#section.explain(curl("latent-interpolate", request));
  }

  #label() {
    byId("frames-out").value = byId("frames").value;
  }
}
