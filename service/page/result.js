// The result beside the canvas: its picture, the comparison with the drawing, and what can be done with it.

import { byId, hideImage, showImage } from "./dom.js";
import { dataUrl, decodeImage } from "./pixels.js";
import { saveCard, savePicture } from "./saving.js";

const EXAMPLE = "scans"; // the model of the example page that the document begins with

const CLICK = 4; // pixels: a pointer that moves further drags the line
const ACTIONS = ["save-made", "save-card", "keep"];

export class Result {
  #shown = null; // as `show` takes it
  #mark = null; // of what is on the canvas now
  #left = new Map(); // the digest of a model → what was shown of it last
  #begin = 0; // where the pointer went down on the stage, in pixels
  #dragged = false; // whether the pointer that is down, or was last, moved the line

  /** @param {(image: ImageBitmap) => void} onKeep puts the result on the canvas */
  constructor(onKeep) {
    this.stage = byId("made-stage");
    byId("compare").addEventListener("input", () => this.#split());
    byId("save-made").addEventListener("click", () => savePicture(this.#shown.made, this.#name, this.card));
    byId("save-card").addEventListener("click", () => {
      saveCard(this.#shown, this.card, byId("verdict").querySelector(".status").textContent);
    });
    // That a key makes has no detail, and is never the end of a drag.
    byId("enlarge").addEventListener("click", ({ detail }) => (detail && this.#dragged) || this.#enlarge());
    this.stage.addEventListener("pointerdown", (event) => this.#beginDrag(event));
    this.stage.addEventListener("pointermove", (event) => this.#drag(event));
    byId("large").addEventListener("click", (event) => this.#zoom(event));
    byId("keep").addEventListener("click", async () => onKeep(await decodeImage(this.#shown.made)));
  }

  setModel(card) {
    const begins = !this.card && card.name === EXAMPLE;
    const changes = this.card?.digest !== card.digest;
    if (changes && this.card) this.#left.set(this.card.digest, this.#shown);
    this.card = card;
    if (!begins) this.clear();
    const left = changes && this.#left.get(card.digest);
    if (left) this.show(left);
  }

  get made() {
    return this.#shown?.made ?? null;
  }

  /** What was measured of the result that is shown. */
  get measured() {
    return this.#shown?.measured ?? null;
  }

  /** The name of the file to save: of a page, like that of its source. */
  get #name() {
    return this.card.tiles ? `${this.#shown.source.replace(/\.[^.]*$/, "")}-clean.png` : "real.png";
  }

  /** What is shown, if it belongs to what is on the canvas. */
  get current() {
    return this.isCurrent ? this.#shown : null;
  }

  /** Whether a result is shown that belongs to what is on the canvas. */
  get isCurrent() {
    return this.#shown !== null && this.#shown.mark === this.#mark;
  }

  /**
   * Show a result.
   *
   * @param {{seen: string, made: string, description: string, measured: object, source: string, mark: string}} result
   *   source: the name of the file that was made real; mark: of the canvas that it belongs to
   */
  show(result) {
    const first = this.#shown === null;
    if (first) byId("compare").value = this.card.tiles ? 50 : 0; // half of a page before, half after
    this.#shown = result;
    byId("seen").src = dataUrl(result.seen);
    byId("seen").hidden = byId("compare").hidden = false;
    showImage(byId("made"), dataUrl(result.made), result.description, { arrives: first });
    for (const id of ACTIONS) byId(id).disabled = false;
    byId("enlarge").hidden = false;
    this.#split();
    this.#dim();
  }

  /** Say what is on the canvas now; the result is dimmed until it belongs to that. */
  expect(mark) {
    this.#mark = mark;
    this.#dim();
  }

  /** Show the drawing, and wipe the result over it. */
  async reveal(seconds) {
    const compare = byId("compare");
    const start = performance.now();
    for (let time = 0; time < 1; time = (performance.now() - start) / 1000 / seconds) {
      compare.value = 100 * (1 - time * time * (3 - 2 * time));
      this.#split();
      await new Promise(requestAnimationFrame);
    }
    compare.value = 0;
    this.#split();
  }

  clear() {
    this.#shown = null;
    hideImage(byId("made"));
    byId("seen").hidden = byId("compare").hidden = byId("enlarge").hidden = true;
    for (const id of ACTIONS) byId(id).disabled = true;
    this.#dim();
  }

  #beginDrag({ clientX }) {
    this.#begin = clientX;
    this.#dragged = false;
  }

  /** Move the line to the pointer, wherever on the stage that went down. */
  #drag({ clientX, buttons, target }) {
    if (!buttons || byId("compare").hidden || target === byId("compare")) return;
    this.#dragged ||= Math.abs(clientX - this.#begin) >= CLICK;
    if (!this.#dragged) return;
    const { left, width } = this.stage.getBoundingClientRect();
    byId("compare").value = (100 * (clientX - left)) / width;
    this.#split();
  }

  /** Show the whole result, as large as the screen. */
  #enlarge() {
    const { src, alt } = byId("made");
    Object.assign(byId("large-picture"), { src, alt });
    byId("large").classList.remove("zoomed");
    byId("large").showModal();
    byId("large").classList.toggle("zooms", byId("made").naturalWidth > byId("large-picture").clientWidth);
  }

  /** Show a picture that is larger than the screen in its own pixels, where it was clicked; another click closes it. */
  #zoom({ target, clientX, clientY }) {
    const [dialog, image] = [byId("large"), byId("large-picture")];
    const zooms = target === image && dialog.matches(".zooms:not(.zoomed)");
    if (!zooms) return dialog.close();
    const { left, top, width, height } = image.getBoundingClientRect();
    dialog.classList.add("zoomed");
    dialog.scrollLeft = ((clientX - left) / width) * dialog.scrollWidth - dialog.clientWidth / 2;
    dialog.scrollTop = ((clientY - top) / height) * dialog.scrollHeight - dialog.clientHeight / 2;
    return undefined;
  }

  #dim() {
    byId("real").toggleAttribute("data-stale", this.#shown !== null && !this.isCurrent);
  }

  #split() {
    const compare = byId("compare");
    this.stage.style.setProperty("--at", compare.valueAsNumber / 100);
    compare.setAttribute("aria-valuetext", `${compare.value} % of it is what went in`);
  }
}
