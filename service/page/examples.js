// Examples: drawings that draw themselves, pictures of the model that are damaged, and a page with its result.

import { decodeDrawing } from "./address.js";
import { byId, createElement } from "./dom.js";
import { DRAWINGS } from "./drawings.js";
import { NOISE, asDrawn, drawingOrder, drawnUntil, toGrey, toSketch, withNoise } from "./effects.js";
import { toBase64, toCanvas, toPng } from "./pixels.js";

const DRAW_MS = 1500;
const STROKE_MS = 2600; // of a drawing of strokes
const NOISE_MS = 900;
const REVEAL_S = 1.1;
const ENDS = [0, 1].map((x) => ({ x, y: 0.75, pressure: 0.5 }));
const LOWER_HALF = { kind: "stroke", layer: "mask", colour: "ink", size: 0.5, points: ENDS };
const PAGE = new URL("example_page.webp", import.meta.url);
// What this model makes of the page; another one is asked.
const PAGE_MADE = { model: "scans", url: new URL("example_page_made.webp", import.meta.url) };
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

/** The image of a URL: the one of the document, where that shows it. */
async function decoded(url) {
  const image = createElement("img", { src: url });
  await image.decode();
  return image;
}

const frame = () => new Promise(requestAnimationFrame);
const imageAction = (image) => ({ kind: "image", layer: "paint", image: toCanvas(image) });

export class Examples {
  #samples = null;
  #running = null; // the abort controller of the animation
  #drawings = []; // of the model, each a list of strokes
  #next = 0; // drawing
  #page = null; // a promise of the example page and its result

  /** @param {{canvas: DrawingCanvas, project: ProjectPanel}} parts */
  constructor({ canvas, project }) {
    [this.canvas, this.project] = [canvas, project];
    this.buttons = [...byId("examples").querySelectorAll("[data-example]")];
    for (const button of this.buttons) button.addEventListener("click", () => this.show(button.dataset.example));
    canvas.addEventListener("changed", () => !canvas.isExample && this.#running?.abort());
    this.#enable();
  }

  async setModel(card) {
    this.card = card;
    this.#running?.abort();
    this.setSamples(null);
    const grey = card.shape[0] === 1;
    for (const button of this.buttons) {
      const { example } = button.dataset;
      if (example === "page") button.hidden = !(card.tiles && grey);
      else if (example === "drawn") button.hidden = card.noise === null || !(grey || card.name in DRAWINGS);
      else button.hidden = card.noise === null || (grey && ["grey", "sketch"].includes(example));
    }
    [this.#drawings, this.#next] = [[], 0];
    this.#drawings = await Promise.all((DRAWINGS[card.name] ?? []).map(decodeDrawing));
  }

  setSamples(samples) {
    this.#samples = samples;
    this.#enable();
  }

  /** Put an example on the canvas, another one each time. */
  async show(kind) {
    this.#running?.abort();
    if (kind === "page") return this.#showPage();
    const { canvas, card } = this;
    if (kind === "drawn" && this.#drawings.length) {
      const drawing = this.#nextDrawing();
      if (await this.#animate((signal) => this.#replay(drawing, signal))) canvas.replace(drawing);
      return undefined;
    }
    const picture = this.#samples.next();
    const place = (image) => canvas.placeImage(toCanvas(image));
    if (kind === "noisy") place(withNoise(picture, NOISE, card.shape[0]));
    if (kind === "grey") place(toGrey(picture));
    if (kind === "sketch") place(toSketch(picture));
    if (kind === "hidden") canvas.replace([imageAction(picture), LOWER_HALF]);
    if (kind === "drawn") {
      const drawn = asDrawn(picture, card);
      if (await this.#animate((signal) => this.#draw(drawn, 0.6 * DRAW_MS, signal))) place(drawn);
    }
    return undefined;
  }

  /** Show what the model does, before anybody asks: without motion only the last moment of it. */
  async introduce() {
    if (this.card.noise === null) {
      if (this.card.tiles && this.card.shape[0] === 1 && this.project.isFree) await this.#showPage();
      return;
    }
    const drawing = this.#drawings.length ? this.#nextDrawing() : null;
    const picture = drawing ? null : asDrawn(this.#samples.next(), this.card);
    const noisy = drawing ? null : withNoise(picture, 0.6 * NOISE, this.card.shape[0]);
    const last = drawing ?? [imageAction(noisy)];
    if (reducedMotion.matches) {
      this.canvas.showExample(last);
      return;
    }
    await this.#animate(async (signal) => {
      if (drawing) await this.#replay(drawing, signal);
      else await this.#drawAndDamage(picture, signal);
      if (signal.aborted) return;
      this.canvas.showExample(last);
      await new Promise((resolve) => {
        for (const [source, event] of [[this.project, "projected"], [signal, "abort"]]) {
          source.addEventListener(event, resolve, { once: true });
        }
      });
      await this.project.result.reveal(REVEAL_S);
    });
  }

  /** The page beside what the model makes of it: at once, where that is known. */
  #showPage() {
    if (this.card.name !== PAGE_MADE.model) return this.project.openAndProject(PAGE);
    return this.project.showExample(() => (this.#page ??= this.#loadPage()));
  }

  async #loadPage() {
    const [image, made] = await Promise.all([PAGE, PAGE_MADE.url].map(decoded));
    const description = "The example page, made clean";
    const [seen, clean] = await Promise.all([image, made].map(async (each) => toBase64(await toPng(each))));
    return { image, result: { seen, made: clean, description, measured: {}, source: "page.webp" } };
  }

  #nextDrawing() {
    return this.#drawings[this.#next++ % this.#drawings.length];
  }

  /** Draw the strokes point by point. */
  async #replay(strokes, signal) {
    const total = strokes.reduce((sum, { points }) => sum + points.length, 0);
    await this.#over(STROKE_MS, signal, (time) => {
      let left = Math.ceil(time * total);
      const drawn = strokes.flatMap((stroke) => {
        const points = stroke.points.slice(0, Math.max(0, left));
        left -= stroke.points.length;
        return points.length ? [{ ...stroke, points }] : [];
      });
      this.canvas.showExample(drawn, { playing: true });
    });
  }

  async #drawAndDamage(picture, signal) {
    await this.#draw(picture, DRAW_MS, signal);
    await this.#over(NOISE_MS, signal, (time) => {
      const noisy = withNoise(picture, 0.6 * NOISE * time, this.card.shape[0]);
      this.canvas.showExample([imageAction(noisy)], { playing: true });
    });
  }

  async #draw(picture, milliseconds, signal) {
    const order = drawingOrder(picture, this.card);
    await this.#over(milliseconds, signal, (time) => {
      this.canvas.showExample([imageAction(drawnUntil(picture, order, time, this.card))], { playing: true });
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
