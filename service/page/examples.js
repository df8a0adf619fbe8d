// Examples: pictures of the model that are damaged, a page of print, and the animation at load.

import { byId } from "./dom.js";
import { NOISE, asDrawn, drawingOrder, drawnUntil, toGrey, toSketch, withNoise } from "./effects.js";
import { toCanvas } from "./pixels.js";

const DRAW_MS = 1500;
const NOISE_MS = 900;
const REVEAL_S = 1.1;
const ENDS = [0, 1].map((x) => ({ x, y: 0.75, pressure: 0.5 }));
const LOWER_HALF = { kind: "stroke", layer: "mask", colour: "ink", size: 0.5, points: ENDS };
const PAGE = new URL("example_page.webp", import.meta.url);
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

const frame = () => new Promise(requestAnimationFrame);

export class Examples {
  #samples = null;
  #running = null; // the abort controller of the animation

  /** @param {{canvas: DrawingCanvas, project: ProjectPanel}} parts */
  constructor({ canvas, project }) {
    [this.canvas, this.project] = [canvas, project];
    this.buttons = [...byId("examples").querySelectorAll("[data-example]")];
    for (const button of this.buttons) button.addEventListener("click", () => this.show(button.dataset.example));
    canvas.addEventListener("changed", () => !canvas.isExample && this.#running?.abort());
    this.#enable();
  }

  setModel(card) {
    this.card = card;
    this.#running?.abort();
    this.setSamples(null);
    const grey = card.shape[0] === 1;
    for (const button of this.buttons) {
      const { example } = button.dataset;
      // All but the page are generated pictures.
      if (example === "page") button.hidden = !(card.tiles && grey);
      else button.hidden = card.noise === null || (grey && ["grey", "sketch"].includes(example));
    }
  }

  setSamples(samples) {
    this.#samples = samples;
    this.#enable();
  }

  /** Put a damaged picture on the canvas, another one each time. */
  async show(kind) {
    this.#running?.abort();
    if (kind === "page") {
      await this.project.open(PAGE);
      return;
    }
    const picture = this.#samples.next();
    const { canvas, card } = this;
    const place = (image) => canvas.placeImage(toCanvas(image));
    if (kind === "noisy") place(withNoise(picture, NOISE, card.shape[0]));
    if (kind === "grey") place(toGrey(picture));
    if (kind === "sketch") place(toSketch(picture));
    if (kind === "hidden") canvas.replace([{ kind: "image", layer: "paint", image: toCanvas(picture) }, LOWER_HALF]);
    if (kind === "drawn") {
      const drawn = asDrawn(picture, card);
      if (await this.#animate((signal) => this.#draw(drawn, 0.6 * DRAW_MS, signal))) place(drawn);
    }
  }

  /** A picture draws itself, gets noise and is made real; without motion only its last moment is shown. */
  async introduce() {
    const picture = asDrawn(this.#samples.next(), this.card);
    const noisy = withNoise(picture, 0.6 * NOISE, this.card.shape[0]);
    if (reducedMotion.matches) {
      this.canvas.showExample(toCanvas(noisy));
      return;
    }
    await this.#animate(async (signal) => {
      await this.#draw(picture, DRAW_MS, signal);
      await this.#over(NOISE_MS, signal, (time) => {
        this.canvas.showExample(toCanvas(withNoise(picture, 0.6 * NOISE * time, this.card.shape[0])));
      });
      if (signal.aborted) return;
      this.canvas.showExample(toCanvas(noisy));
      await new Promise((resolve) => {
        for (const [source, event] of [[this.project, "projected"], [signal, "abort"]]) {
          source.addEventListener(event, resolve, { once: true });
        }
      });
      await this.project.result.reveal(REVEAL_S);
    });
  }

  async #draw(picture, milliseconds, signal) {
    const order = drawingOrder(picture, this.card);
    await this.#over(milliseconds, signal, (time) => {
      this.canvas.showExample(toCanvas(drawnUntil(picture, order, time, this.card)));
    });
  }

  /** Whether the animation came to its end. */
  async #animate(play) {
    const abort = (this.#running = new AbortController());
    if (reducedMotion.matches) return true;
    await play(abort.signal);
    return !abort.signal.aborted;
  }

  async #over(milliseconds, signal, paint) {
    const start = performance.now();
    for (let time = 0; time < 1 && !signal.aborted; ) {
      time = Math.min(1, (performance.now() - start) / milliseconds);
      paint(time);
      await frame();
    }
  }

  #enable() {
    for (const button of this.buttons) button.disabled = button.dataset.example !== "page" && this.#samples === null;
  }
}
