// The dialog that asks which part of a picture to use.

import { byId, createElement } from "./dom.js";

const MOST = 6; // times the smallest zoom
const SIDE = 1024; // most pixels of the longer side that are sent
const SAME = 0.02; // proportions that differ by less need no dialog
const ARROWS = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

/**
 * Ask for a part of a picture with the given proportions; at once the whole picture if it has them.
 *
 * @param {ImageBitmap} picture
 * @param {number} shape width / height
 * @returns {Promise<Blob | null>} a PNG, or null if the user cancels
 */
export async function chooseCrop(picture, shape) {
  const crop = new Crop(picture, shape);
  if (Math.abs(picture.width / picture.height / shape - 1) > SAME && !(await crop.ask())) return null;
  return crop.toPng();
}

class Crop {
  #zoom = 1;
  #centre = [0.5, 0.5]; // of the part, as shares of the picture

  constructor(picture, shape) {
    [this.picture, this.shape] = [picture, shape];
  }

  /** The part: x, y, width, height in pixels of the picture. */
  get part() {
    const { width, height } = this.picture;
    const size = Math.min(width, height * this.shape) / this.#zoom;
    const sizes = [size, size / this.shape];
    const corner = [width, height].map((whole, i) => {
      return Math.min(whole - sizes[i], Math.max(0, this.#centre[i] * whole - sizes[i] / 2));
    });
    return [...corner, ...sizes];
  }

  /** Show the dialog; whether the user wants the part. */
  ask() {
    const [dialog, canvas, zoom] = ["crop", "crop-canvas", "crop-zoom"].map(byId);
    canvas.height = Math.round(canvas.width / this.shape);
    zoom.value = 0;
    const abort = new AbortController();
    const listen = (element, type, handle) => element.addEventListener(type, handle, { signal: abort.signal });
    const setZoom = (share) => {
      zoom.value = Math.min(1, Math.max(0, share));
      this.#zoom = MOST ** zoom.valueAsNumber;
      this.#draw(canvas);
    };
    listen(zoom, "input", () => setZoom(zoom.valueAsNumber));
    listen(canvas, "wheel", (event) => {
      event.preventDefault();
      setZoom(zoom.valueAsNumber - event.deltaY / 1500);
    });
    let held = null; // where the pointer was; the movementX of events is not in CSS pixels everywhere
    listen(canvas, "pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      held = [event.clientX, event.clientY];
    });
    listen(canvas, "pointermove", (event) => {
      if (!event.buttons || !held) return;
      const box = canvas.getBoundingClientRect();
      this.#move((event.clientX - held[0]) / box.width, (event.clientY - held[1]) / box.height, canvas);
      held = [event.clientX, event.clientY];
    });
    listen(canvas, "keydown", (event) => {
      const arrow = ARROWS[event.key];
      if (arrow) this.#move(arrow[0] / 20, arrow[1] / 20, canvas);
      else if (["+", "-"].includes(event.key)) setZoom(zoom.valueAsNumber + (event.key === "+" ? 0.1 : -0.1));
      else return;
      event.preventDefault();
    });
    dialog.returnValue = "";
    dialog.showModal();
    this.#draw(canvas);
    return new Promise((resolve) => {
      listen(dialog, "close", () => {
        abort.abort();
        resolve(dialog.returnValue === "use");
      });
    });
  }

  /** @returns {Promise<Blob>} */
  toPng() {
    const [, , width, height] = this.part;
    const scale = Math.min(1, SIDE / Math.max(width, height));
    const size = { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
    const canvas = createElement("canvas", size);
    this.#draw(canvas);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  /** Move the picture under the part by shares of the part. */
  #move(dx, dy, canvas) {
    const [x, y, width, height] = this.part;
    this.#centre = [
      (x + width * (0.5 - dx)) / this.picture.width,
      (y + height * (0.5 - dy)) / this.picture.height,
    ];
    this.#draw(canvas);
  }

  #draw(canvas) {
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(this.picture, ...this.part, 0, 0, canvas.width, canvas.height);
  }
}
