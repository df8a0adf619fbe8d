// The drawing canvas. It keeps a list of actions (strokes, images, clear). Undo removes the last one and repaints the
// rest. Positions are fractions of the sides and colours are names, so that a drawing survives a change of model.

import { backgroundColour, canvasScale, cssColour, downsample, fillMasked, inkColour, maskImage } from "./pixels.js";

const MASK = "#ff7448"; // the style sheet makes it half transparent

export class DrawingCanvas extends EventTarget {
  #actions = [];
  #undone = [];
  #card = null;
  #example = null; // "shown" or "playing" while actions are shown that nobody drew: the first action of the user replaces them
  #drawings = new Map(); // model and shape → {actions, undone} of another one

  constructor(paint, mask) {
    super();
    [this.paint, this.mask] = [paint, mask];
    this.colour = null; // chosen colour; null for grey models
    this.tool = "pen";
    this.brush = 0.09; // width as a fraction of the canvas
    this.isDrawing = false; // whether the pen is down
    this.revision = 0; // counts changes of the pixels
  }

  /** Use the shape and the colours of a model, and its own drawing: colours and sizes are of one model. */
  setModel(card) {
    const place = ({ name, version, shape }) => [name, version, ...shape].join();
    if (this.#card) this.#drawings.set(place(this.#card), { actions: this.#actions, undone: this.#undone });
    const { actions = [], undone = [] } = this.#drawings.get(place(card)) ?? {};
    [this.#actions, this.#undone, this.#card] = [actions, undone, card];
    const [, height, width] = card.shape;
    const scale = canvasScale(card.shape);
    for (const canvas of [this.paint, this.mask]) [canvas.width, canvas.height] = [width * scale, height * scale];
    this.#example = null;
    this.#repaint();
  }

  get isEmpty() {
    return this.#since("clear").length === 0;
  }

  /** Whether an example is shown that nobody drew. */
  get isExample() {
    return this.#example !== null;
  }

  /** Whether the example that is shown goes on changing by itself. */
  get isPlaying() {
    return this.#example === "playing";
  }

  /** What is drawn: the actions since the last clear, without images of the paint layer that others cover. */
  get actions() {
    const actions = this.#since("clear");
    return actions.slice(Math.max(0, actions.findLastIndex((action) => action.kind === "image")));
  }

  /** Replace the drawing; undo brings it back. */
  replace(actions) {
    this.clear();
    for (const action of actions) this.#do(action);
    this.finish();
  }

  get isMasked() {
    return this.#since("clear").some((action) => action.layer === "mask");
  }

  get canUndo() {
    return this.#actions.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  /** Begin a stroke; continue with `extend`, end with `finish`. A point is {x, y, pressure}, each 0…1. */
  begin(point) {
    this.isDrawing = true;
    const layer = this.tool === "mask" ? "mask" : "paint";
    const colour = this.tool === "eraser" ? "background" : (this.colour ?? "ink");
    this.#do({ kind: "stroke", layer, colour, size: this.brush, points: [point] });
  }

  extend(point) {
    const stroke = this.#actions.at(-1);
    stroke.points.push(point);
    this.#stroke(stroke, stroke.points.length - 1);
    this.revision++;
    this.dispatchEvent(new Event("extended"));
  }

  finish() {
    this.isDrawing = false;
    this.dispatchEvent(new Event("finished"));
  }

  /** Cover the canvas with an image of the model's size, and remove the mask. */
  placeImage(image) {
    if (this.isMasked) this.#do({ kind: "clear" });
    this.#do({ kind: "image", layer: "paint", image });
    this.finish();
  }

  /** Show actions that the first action of the user replaces; `playing` if others follow by themselves. */
  showExample(actions, { playing = false } = {}) {
    this.#example = playing ? "playing" : "shown";
    for (const action of [{ kind: "clear" }, ...actions]) this.#perform(action);
    this.revision++;
    this.dispatchEvent(new Event("changed"));
  }

  clear() {
    this.#do({ kind: "clear" });
    this.finish();
  }

  undo() {
    if (this.canUndo) this.#undone.push(this.#actions.pop());
    this.#repaint();
    this.finish();
  }

  redo() {
    if (this.canRedo) this.#actions.push(this.#undone.pop());
    this.#repaint();
    this.finish();
  }

  /** The model's input: {image, mask} as ImageData of its size; mask is null if nothing is masked. */
  modelInput({ greyUnderMask = false } = {}) {
    const [, height, width] = this.#card.shape;
    const image = downsample(this.paint, width, height);
    const mask = this.isMasked ? maskImage(downsample(this.mask, width, height)) : null;
    if (mask && greyUnderMask) fillMasked(image, mask);
    return { image, mask };
  }

  /** The actions after the last one of these kinds. */
  #since(...kinds) {
    return this.#actions.slice(this.#actions.findLastIndex((action) => kinds.includes(action.kind)) + 1);
  }

  #do(action) {
    if (this.isExample) {
      this.#example = null;
      this.#repaint();
    }
    this.#actions.push(action);
    this.#undone = [];
    this.#perform(action);
    this.revision++;
    this.dispatchEvent(new Event("changed"));
  }

  #repaint() {
    this.#perform({ kind: "clear" });
    for (const action of this.#since("clear")) this.#perform(action);
    this.revision++;
    this.dispatchEvent(new Event("changed"));
  }

  #paintImage(image) {
    const context = this.paint.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingEnabled = false;
    context.drawImage(image, 0, 0, this.paint.width, this.paint.height);
  }

  #perform(action) {
    if (action.kind === "stroke") {
      this.#stroke(action, 0);
    } else if (action.kind === "image") {
      this.#paintImage(action.image);
    } else {
      const { width, height } = this.paint;
      const context = this.paint.getContext("2d", { willReadFrequently: true });
      context.fillStyle = cssColour(backgroundColour(this.#card));
      context.fillRect(0, 0, width, height);
      this.mask.getContext("2d", { willReadFrequently: true }).clearRect(0, 0, width, height);
    }
  }

  /** Paint a stroke from one of its points on. Repainting a whole stroke gives the same pixels as extending it. */
  #stroke(stroke, from) {
    const context = this[stroke.layer].getContext("2d", { willReadFrequently: true });
    const { width, height } = this.paint;
    const named = { ink: inkColour, background: backgroundColour }[stroke.colour];
    context.strokeStyle = stroke.layer === "mask" ? MASK : named ? cssColour(named(this.#card)) : stroke.colour;
    [context.lineCap, context.lineJoin] = ["round", "round"];
    for (let i = from; i < stroke.points.length; i++) {
      const [a, b] = [stroke.points[Math.max(0, i - 1)], stroke.points[i]];
      context.lineWidth = stroke.size * width * (0.4 + 1.2 * b.pressure);
      context.beginPath();
      context.moveTo(a.x * width, a.y * height);
      context.lineTo(b.x * width, b.y * height + 0.01); // a line of length 0 would not be drawn
      context.stroke();
    }
  }
}
