// Sixteen pictures of a seed, each of which can be taken further.

import { ask, curl } from "./api.js";
import { byId, make, whole } from "./dom.js";
import { decoded } from "./pictures.js";
import { source } from "./pixels.js";
import { Section } from "./section.js";

const COUNT = 16;

export class Generate {
  #section = new Section(byId("generate"));
  #chosen = null; // {seed, index, data}

  /**
   * @param {object} studio
   * @param {Models} studio.models
   * @param {Easel} studio.easel
   * @param {(which: "from" | "to", point: object) => void} studio.end makes a picture an end of the walk
   */
  constructor({ models, easel, end }) {
    this.models = models;
    byId("generate-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.generate();
    });
    byId("dice").addEventListener("click", () => {
      byId("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000; // short enough to remember
      this.generate();
    });
    byId("tile-canvas").addEventListener("click", async () => {
      easel.place(await decoded(this.#chosen.data));
      byId("real").scrollIntoView({ block: "start" });
      easel.paint.focus({ preventScroll: true });
    });
    for (const which of ["from", "to"]) {
      byId(`tile-${which}`).addEventListener("click", () => {
        end(which, this.#chosen);
        this.#section.say(`The walk ${which === "from" ? "begins" : "ends"} there.`);
      });
    }
    this.#empty();
  }

  fit(card) {
    this.card = card;
    this.count = Math.min(COUNT, this.models.limits.n);
    Object.assign(byId("generate-steps"), { value: card.steps.generate, max: this.models.limits.steps });
    this.#section.reset();
    this.#empty();
  }

  async generate() {
    const [seed, steps] = [whole(byId("seed")), whole(byId("generate-steps"))];
    if (!this.card || seed === null || steps === null) return;
    const json = { model: this.models.reference, n: this.count, seed, steps };
    await this.#section.run("Generating", async (signal) => {
      const answer = await (await ask("generate", { json, signal })).json();
      const tiles = answer.images.map((image) => this.#tile({ seed, index: image.index, data: image.data }));
      byId("tiles").classList.remove("empty");
      byId("tiles").replaceChildren(...tiles);
      byId("tile-tools").hidden = true;
      this.#section.explain(curl("generate", { json, accept: "image/png", file: "sheet.png" }));
      return `${answer.images.length} pictures of seed ${seed} in ${took(answer.timing)}. Choose one to go on with it.`;
    });
  }

  #tile(picture) {
    const button = make(
      "button",
      { type: "button", className: "tile", "aria-pressed": "false" },
      make("img", { className: "pixels", src: source(picture.data), alt: `Picture ${picture.index}` }),
    );
    button.addEventListener("click", () => this.#choose(picture, button));
    return button;
  }

  #choose(picture, chosen) {
    this.#chosen = picture;
    for (const tile of byId("tiles").children) tile.setAttribute("aria-pressed", tile === chosen);
    byId("tile-tools").hidden = false;
    Object.assign(byId("tile-save"), {
      href: source(picture.data),
      download: `seed-${picture.seed}-${picture.index}.png`,
    });
    this.#section.say(`Picture ${picture.index} of seed ${picture.seed}:`);
  }

  #empty() {
    byId("tiles").classList.add("empty");
    byId("tiles").replaceChildren(...Array.from({ length: COUNT }, () => make("span", { className: "tile" })));
    byId("tile-tools").hidden = true;
  }
}

/** The service's own time for it, without the network. */
function took({ decode_ms: decode, queue_ms: queue, compute_ms: compute, encode_ms: encode }) {
  const ms = decode + queue + compute + encode;
  return ms < 1000 ? `${Math.max(1, Math.round(ms))} ms` : `${(ms / 1000).toFixed(1)} s`;
}
