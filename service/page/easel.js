// The drawing surface: a list of acts, painted in turn. Undo takes the last one away and paints the rest anew, so a
// drawing survives undo, redo and a change of model: places are shares of the sides, colours are named, not fixed.

import { css, forget, ink, paper, scaleOf, shrink, stencil } from "./pixels.js";

const MASK = "#ff7448"; // the style sheet makes a veil of it

export class Easel extends EventTarget {
  #acts = [];
  #undone = [];
  #card = null;

  constructor(paint, mask) {
    super();
    [this.paint, this.mask] = [paint, mask];
    this.colour = null; // chosen ink, for models with colours
    this.tool = "pen";
    this.brush = 0.09; // share of the width
  }

  /** Be in the shape and polarity of a model. */
  fit(card) {
    this.#card = card;
    const [, height, width] = card.shape;
    const scale = scaleOf(card.shape);
    for (const canvas of [this.paint, this.mask]) [canvas.width, canvas.height] = [width * scale, height * scale];
    this.#repaint();
  }

  get isEmpty() {
    return this.#since("clear").length === 0;
  }

  get isMasked() {
    return this.#since("clear", "unmask").some((act) => act.layer === "mask");
  }

  get canUndo() {
    return this.#acts.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  /** Begin a stroke at a place, {x, y} in shares of the sides and pressure 0…1; `extend` and `finish` it. */
  begin(place) {
    const layer = this.tool === "mask" ? "mask" : "paint";
    const colour = this.tool === "eraser" ? "paper" : (this.colour ?? "ink");
    this.#do({ kind: "stroke", layer, colour, size: this.brush, places: [place] });
  }

  extend(place) {
    const act = this.#acts.at(-1);
    act.places.push(place);
    this.#stroke(act, act.places.length - 1);
    this.dispatchEvent(new Event("extended"));
  }

  finish() {
    this.dispatchEvent(new Event("finished"));
  }

  /** Put a picture of the model's size on the whole surface. */
  place(picture) {
    this.#do({ kind: "picture", layer: "paint", picture });
    this.finish();
  }

  clear() {
    this.#do({ kind: "clear" });
  }

  undo() {
    if (this.canUndo) this.#undone.push(this.#acts.pop());
    this.#repaint();
  }

  redo() {
    if (this.canRedo) this.#acts.push(this.#undone.pop());
    this.#repaint();
  }

  /** What the model will see: {image, mask}, ImageData of its size; mask is null where nothing is painted over. */
  seen({ forgetting = false } = {}) {
    const [, height, width] = this.#card.shape;
    const image = shrink(this.paint, width, height);
    const mask = this.isMasked ? stencil(shrink(this.mask, width, height)) : null;
    if (mask && forgetting) forget(image, mask);
    return { image, mask };
  }

  #since(...kinds) {
    return this.#acts.slice(this.#acts.findLastIndex((act) => kinds.includes(act.kind)) + 1);
  }

  #do(act) {
    this.#acts.push(act);
    this.#undone = [];
    this.#perform(act);
    this.dispatchEvent(new Event("changed"));
  }

  #repaint() {
    this.#perform({ kind: "clear" });
    for (const act of this.#since("clear")) this.#perform(act);
    this.dispatchEvent(new Event("changed"));
  }

  #perform(act) {
    const { width, height } = this.paint;
    const context = this.paint.getContext("2d", { willReadFrequently: true });
    if (act.kind === "stroke") {
      this.#stroke(act, 0);
    } else if (act.kind === "picture") {
      context.imageSmoothingEnabled = false;
      context.drawImage(act.picture, 0, 0, width, height);
    } else {
      context.fillStyle = css(paper(this.#card));
      context.fillRect(0, 0, width, height);
      this.mask.getContext("2d", { willReadFrequently: true }).clearRect(0, 0, width, height);
    }
  }

  /** Paint a stroke from one of its places on, each time the same, whether at once or bit by bit. */
  #stroke(act, from) {
    const context = this[act.layer].getContext("2d", { willReadFrequently: true });
    const { width, height } = this.paint;
    const named = { ink, paper }[act.colour];
    context.strokeStyle = act.layer === "mask" ? MASK : named ? css(named(this.#card)) : act.colour;
    [context.lineCap, context.lineJoin] = ["round", "round"];
    for (let i = from; i < act.places.length; i++) {
      const [a, b] = [act.places[Math.max(0, i - 1)], act.places[i]];
      context.lineWidth = act.size * width * (0.4 + 1.2 * b.pressure);
      context.beginPath();
      context.moveTo(a.x * width, a.y * height);
      context.lineTo(b.x * width, b.y * height + 0.01); // a dot is a very short line
      context.stroke();
    }
  }
}
