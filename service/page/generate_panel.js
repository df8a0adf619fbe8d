// Panel "Generate": sixteen images of a seed. Each can be put on the canvas or become an end of an interpolation.

import { callJson, curlCommand } from "./api.js";
import { byId, createElement, readInteger } from "./dom.js";
import { Panel } from "./panel.js";
import { dataUrl, decodeImage } from "./pixels.js";
import { savePicture } from "./saving.js";

const COUNT = 16;
const COLUMNS = 4;

/** Dispatches `generated`, with the seed and the pictures as its detail. */
export class GeneratePanel extends EventTarget {
  #panel = new Panel(byId("generate"));
  #chosen = null; // {seed, index, data}
  #shown = ""; // the seed and the steps of the tiles
  #layout = { n: COUNT, columns: COLUMNS };

  /**
   * @param {object} parts
   * @param {Models} parts.models
   * @param {DrawingCanvas} parts.canvas
   * @param {(which: "from" | "to", image: object) => void} parts.setEndpoint makes an image an end of the interpolation
   */
  constructor({ models, canvas, setEndpoint }) {
    super();
    this.models = models;
    byId("generate-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.generate();
    });
    byId("generate-form").addEventListener("input", () => this.#compare());
    byId("dice").addEventListener("click", () => {
      byId("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000; // short enough to remember
      this.generate();
    });
    byId("tile-save").addEventListener("click", () => {
      const { seed, index, data } = this.#chosen;
      savePicture(data, `seed-${seed}-${index}.png`, this.card);
    });
    byId("tile-canvas").addEventListener("click", async () => {
      canvas.placeImage(await decodeImage(this.#chosen.data));
      byId("real").scrollIntoView({ block: "start" });
      canvas.paint.focus({ preventScroll: true });
    });
    for (const which of ["from", "to"]) {
      byId(`tile-${which}`).addEventListener("click", () => {
        setEndpoint(which, this.#chosen);
        byId("walk").scrollIntoView({ block: "nearest" });
      });
    }
    this.#clear();
  }

  setModel(card) {
    this.card = card;
    this.#layout = layoutOf(this.models.limits.n);
    Object.assign(byId("generate-steps"), { value: card.steps.generate, max: this.models.limits.steps });
    this.#panel.reset();
    this.#clear();
  }

  async generate() {
    const [seed, steps] = [readInteger(byId("seed")), readInteger(byId("generate-steps"))];
    if (!this.card || seed === null || steps === null) return;
    const { n, columns } = this.#layout;
    const json = { model: this.models.reference, n, seed, steps };
    await this.#panel.run("Generating", async (signal) => {
      const answer = await callJson("generate", { json: { ...json, score: true }, signal });
      signal.throwIfAborted();
      const tiles = answer.images.map((image) => this.#tile({ seed, index: image.index, data: image.data }));
      this.#shown = [seed, steps].join();
      this.#compare();
      byId("tiles").classList.remove("empty");
      byId("tiles").replaceChildren(...tiles);
      byId("tile-tools").hidden = true;
      this.#panel.showCommand(curlCommand("generate", { json: { ...json, columns }, accept: "image/png", file: "sheet.png" }));
      this.dispatchEvent(new CustomEvent("generated", { detail: { seed, images: answer.images } }));
      const made = `${answer.images.length} pictures of number ${seed} in ${serviceTime(answer.timing)}.`;
      return `${made} Choose one to go on with it.`;
    });
  }

  #tile(image) {
    const button = createElement(
      "button",
      { type: "button", className: "tile", "aria-pressed": "false" },
      createElement("img", { className: "pixels", src: dataUrl(image.data), alt: `Picture ${image.index}` }),
    );
    button.addEventListener("click", () => this.#choose(image, button));
    return button;
  }

  #choose(image, button) {
    this.#chosen = image;
    for (const tile of byId("tiles").children) tile.setAttribute("aria-pressed", tile === button);
    byId("tile-tools").hidden = false;
    this.#panel.say(`Picture ${image.index} of number ${image.seed}:`);
  }

  /** Dim tiles that are not those of the form. */
  #compare() {
    const wanted = [byId("seed").valueAsNumber, byId("generate-steps").valueAsNumber].join();
    byId("generate").toggleAttribute("data-stale", this.#shown !== "" && wanted !== this.#shown);
  }

  #clear() {
    this.#shown = "";
    this.#compare();
    const { n, columns } = this.#layout;
    byId("tiles").classList.add("empty");
    byId("tiles").style.setProperty("--columns", columns);
    byId("tiles").replaceChildren(...Array.from({ length: n }, () => createElement("span", { className: "tile" })));
    byId("tile-tools").hidden = true;
  }
}

/** How many pictures to show of those that one request may make: full rows, without an empty cell. */
function layoutOf(most) {
  const columns = Math.min(COLUMNS, most);
  const n = Math.min(COUNT, most);
  return { n: n - (n % columns), columns };
}

/** Time in the service, without the network. */
function serviceTime({ decode_ms: decode, queue_ms: queue, compute_ms: compute, encode_ms: encode }) {
  const ms = decode + queue + compute + encode;
  return ms < 1000 ? `${Math.max(1, Math.round(ms))} ms` : `${(ms / 1000).toFixed(1)} s`;
}
