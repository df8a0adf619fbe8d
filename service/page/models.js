// The models of the service, and the choice of one.

import { callJson } from "./api.js";
import { byId, createElement } from "./dom.js";
import { dataUrl } from "./pixels.js";

const THUMBNAIL = { n: 1, seed: 7, offset: 3 };
const MOST_THUMBNAILS = 12;
const BUILT_IN = "mnist"; // the default of a service that was not told of another one

/** What people call a model: the title of its card, or its name in words. */
export function titleOf({ title, name }) {
  const words = name.replaceAll(/[_.-]+/g, " ");
  return title || words.charAt(0).toUpperCase() + words.slice(1);
}

/** The model to show first: the default, unless it is the built-in one; then that of the largest drawn images. */
export function firstOf(models, usual) {
  if (!usual.startsWith(`${BUILT_IN}/`)) return usual;
  const size = ({ shape, prompt, noise }) => (prompt && noise ? shape.reduce((product, side) => product * side) : 0);
  const [largest] = models.toSorted((a, b) => size(b) - size(a) || (referenceOf(b) === usual) - (referenceOf(a) === usual));
  return referenceOf(largest);
}

export const referenceOf = ({ name, version }) => `${name}/${version}`;

/** The list of models and the radio buttons that choose one; dispatches `selected` and `thumbnail`. */
export class Models extends EventTarget {
  #cards = new Map();
  #thumbnails = new Map();
  #chosen = "";
  list = [];

  constructor(root) {
    super();
    this.root = root;
    root.addEventListener("change", (event) => {
      this.#chosen = event.target.value;
      this.dispatchEvent(new Event("selected"));
    });
  }

  /** Load the list, select a model, and return its card. */
  async load(preferred, signal) {
    const { models, failures, default: usual, limits } = await callJson("models", { signal });
    Object.assign(this, { list: models, failures, limits });
    this.#cards.clear();
    const references = models.map(referenceOf);
    const first = firstOf(models, usual);
    const rank = (model) => [usual, first].lastIndexOf(referenceOf(model));
    models.sort((a, b) => rank(b) - rank(a));
    this.#chosen = references.includes(preferred) ? preferred : first;
    this.root.querySelector(".choices")?.remove();
    this.root.append(createElement("span", { className: "choices" }, ...models.map((model) => this.#choice(model))));
    this.root.disabled = false;
    return this.card(signal);
  }

  get reference() {
    return this.#chosen;
  }

  /** Choose a model as if its button had been pressed. */
  choose(reference) {
    const button = [...this.root.querySelectorAll("input")].find((input) => input.value === reference);
    if (button && !button.checked) button.click();
  }

  /** The full card of the selected model. */
  async card(signal) {
    const reference = this.reference;
    if (!this.#cards.has(reference)) this.#cards.set(reference, await callJson(`models/${reference}`, { signal }));
    return this.#cards.get(reference);
  }

  /** A small picture of a model as a URL, or "" before there is one. */
  thumbnail(reference) {
    return this.#thumbnails.get(reference) ?? "";
  }

  /** Generate the thumbnails that are missing, one after the other; a model without one keeps an empty square. */
  async loadThumbnails() {
    const generate = this.list.filter(({ noise }) => noise !== null);
    for (const reference of generate.slice(0, MOST_THUMBNAILS).map(referenceOf)) {
      if (this.#thumbnails.has(reference)) continue;
      try {
        const { images } = await callJson("generate", { json: { model: reference, ...THUMBNAIL } });
        this.#thumbnails.set(reference, dataUrl(images[0].data));
      } catch {
        continue; // it is decoration
      }
      this.#showThumbnail(reference);
      this.dispatchEvent(new Event("thumbnail"));
    }
  }

  #choice(model) {
    const reference = referenceOf(model);
    const input = createElement("input", { type: "radio", name: "model", value: reference });
    input.checked = reference === this.#chosen;
    const image = createElement("img", { className: "pixels", alt: "", hidden: model.noise === null });
    const same = this.list.filter((other) => titleOf(other) === titleOf(model)).length > 1;
    const name = same ? `${titleOf(model)} ${model.version}` : titleOf(model);
    return createElement("label", { title: reference }, input, createElement("span", {}, image, createElement("b", {}, name)));
  }

  #showThumbnail(reference) {
    const input = [...this.root.querySelectorAll("input")].find((each) => each.value === reference);
    const image = input?.parentElement.querySelector("img");
    if (image) image.src = this.thumbnail(reference);
  }
}
