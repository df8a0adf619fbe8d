// “Make it real”: what is drawn goes through f.

import { ask, curl } from "./api.js";
import { byId, make, show, unshow } from "./dom.js";
import { Film, recorded } from "./film.js";
import { decoded, incoming, prepared } from "./pictures.js";
import { blobOf, canvasOf, noisy, png, source } from "./pixels.js";
import { Section } from "./section.js";
import { amount, moved, power, settled, times } from "./words.js";

const STEPS = [1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100, 200, 500, 1000];
const NOISE = 0.4 * 255; // σ = 0.8 in a model's −1…1

export class Real {
  #section = new Section(byId("real"));
  #film = new Film(byId("film"), (frame) => this.#look(frame));
  #looking = null; // the frame that is shown
  #pending = null; // preview

  constructor(easel, models) {
    [this.easel, this.models] = [easel, models];
    byId("go").addEventListener("click", () => this.make());
    byId("again").addEventListener("click", () => this.again());
    byId("keep").addEventListener("click", async () => easel.place(await decoded(this.#looking.data)));
    byId("noise").addEventListener("click", () => this.#addNoise());
    byId("save-drawing").addEventListener("click", () => this.#saveDrawing());
    for (const name of ["steps", "strength"]) {
      byId(name).addEventListener("input", () => this.#label());
      byId(name).addEventListener("change", () => this.#ifLive());
    }
    byId("live").addEventListener("change", () => this.#ifLive());
    for (const event of ["changed", "extended"]) easel.addEventListener(event, () => this.#preview());
    byId("forget").addEventListener("change", () => this.#preview());
    easel.addEventListener("finished", () => this.#ifLive());
    incoming(byId("file"), byId("easel"), (file) => this.#take(file));
  }

  /** Belong to another model from now on. */
  fit(card) {
    this.card = card;
    const most = this.models.limits.steps;
    this.stops = STEPS.filter((steps) => steps <= most);
    const usual = this.stops.findIndex((steps) => steps >= card.steps.project);
    Object.assign(byId("steps"), { max: this.stops.length - 1, value: Math.max(0, usual) });
    this.#label();
    this.#section.reset();
    this.#film.clear();
    this.#show(null);
    this.#ifLive();
  }

  /** f^k of the drawing. */
  async make() {
    if (!this.card) return;
    const { image, mask } = this.easel.seen({ forgetting: byId("forget").checked });
    const [steps, strength] = [this.#steps, byId("strength").valueAsNumber / 100];
    await this.#section.run("Making it real", async (signal) => {
      const options = { steps, strength, record: recorded(steps), score: true };
      const answer = await this.#project(await png(image), mask, options, signal);
      this.#film.begin(answer.trajectory);
      this.#show(this.#film.last);
      this.#explain(options, mask);
      return [masked(mask), moved(answer.distance, this.card), this.#settled(answer)].join(" ").trim();
    });
  }

  /** f of the last result. */
  async again() {
    const { mask } = this.easel.seen();
    const before = this.#film.last;
    await this.#section.run("Once more", async (signal) => {
      const answer = await this.#project(blobOf(before.data), mask, { steps: 1, record: [0, 1], score: true }, signal);
      this.#film.add({ data: answer.data, change: answer.trajectory[1].change, steps: 1 });
      this.#show(this.#film.last);
      const change = amount(answer.trajectory[1].change);
      return `f, applied ${times(this.#film.last.step)}, moved it by ${change} this time. ${this.#settled(answer)}`;
    });
  }

  async #project(picture, mask, options, signal) {
    const form = new FormData();
    form.append("image", picture, "drawing.png");
    if (mask) form.append("mask", await png(mask), "mask.png");
    // What is on the canvas is in the model's own polarity and size.
    for (const [name, value] of Object.entries({ model: this.models.reference, invert: false, ...options })) {
      form.append(name, String(value));
    }
    return (await (await ask("project", { form, signal })).json()).images[0];
  }

  /** Show what f would see of the drawing as it is, at most once for every frame of the screen. */
  #preview() {
    this.#pending ??= requestAnimationFrame(() => {
      this.#pending = null;
      this.#paintPreview();
    });
  }

  #paintPreview() {
    const { image } = this.easel.seen({ forgetting: byId("forget").checked });
    const canvas = byId("seen");
    [canvas.width, canvas.height] = [image.width, image.height];
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  #settled({ drift, distance }) {
    return settled(drift, distance, this.card);
  }

  #explain({ steps, strength }, mask) {
    const fields = [["image", "@drawing.png"], ["model", this.models.reference], ["steps", String(steps)]];
    if (mask) fields.push(["mask", "@mask.png"]);
    if (strength < 1) fields.push(["strength", String(strength)]);
    fields.push(["invert", "false"]);
    this.#section.explain(curl("project", { fields, accept: "image/png", file: "real.png" }));
  }

  #show(frame) {
    byId("made-tools").hidden = frame === null;
    if (frame) this.#look(frame);
    else unshow(byId("made"));
  }

  #look(frame) {
    this.#looking = frame;
    const what = frame.step === 0 ? "Your picture as f saw it" : `${power(frame.step)} of your picture`;
    show(byId("made"), source(frame.data), what);
    byId("save-made").href = source(frame.data);
  }

  #take(file) {
    if (!this.card) return undefined; // dropped or pasted before there is a model to see it
    const { models } = this;
    return this.#section.run("Reading the picture", async (signal) => {
      const picture = await prepared(file, { model: models.reference, limits: models.limits, signal });
      if (!signal.aborted) this.easel.place(picture);
    });
  }

  #addNoise() {
    const { image } = this.easel.seen();
    this.easel.place(canvasOf(noisy(image, NOISE, this.card.shape[0])));
  }

  async #saveDrawing() {
    const { image, mask } = this.easel.seen({ forgetting: byId("forget").checked });
    for (const [name, what] of [["drawing.png", image], ["mask.png", mask]]) {
      if (what) make("a", { href: canvasOf(what).toDataURL(), download: name }).click();
    }
  }

  get #steps() {
    return this.stops[byId("steps").valueAsNumber];
  }

  #label() {
    byId("steps-out").value = times(this.#steps);
    byId("steps").setAttribute("aria-valuetext", times(this.#steps));
    byId("strength-out").value = `${byId("strength").value} %`;
  }

  #ifLive() {
    if (byId("live").checked && !this.easel.isEmpty) this.make();
  }
}

const masked = (mask) => (mask ? "Outside the mask everything is as it was." : "");
