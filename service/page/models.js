// The models of the service, and the choice of one.

import { callJson } from "./api.js";
import { byId, createElement } from "./dom.js";
import { dataUrl } from "./pixels.js";

const THUMBNAIL = { n: 1, seed: 7, offset: 6 }; // a digit, a shoe and a face that everybody recognises
const PAGE = { name: "scans", url: new URL("example_page_made.webp", import.meta.url).href }; // of a model that generates nothing
const MOST_THUMBNAILS = 12;
const BUILT_IN = "mnist"; // the default of a service that was not told of another one

/** What people call a model: the title of its card, or its name in words. */
export function titleOf({ title, name }) {
  const words = name.replaceAll(/[_.-]+/g, " ");
  return title || words.charAt(0).toUpperCase() + words.slice(1);
}

/** The models as the page lists them: a chosen default first; else that of any size, then by the size of the images. */
export function inOrder(models, usual) {
  const chosen = (model) => referenceOf(model) === usual && model.name !== BUILT_IN;
  const size = ({ shape, prompt }) => (prompt ? shape.reduce((product, side) => product * side) : 0);
  return models.toSorted((a, b) => chosen(b) - chosen(a) || size(b) - size(a) || (referenceOf(b) === usual) - (referenceOf(a) === usual));
}

/** The reference of the model that a link names, as `name` or `name/version`; a version that went is the newest now. */
function find(models, wanted = "") {
  const [name] = wanted.split("/");
  const same = models.filter((model) => model.name === name);
  const newest = same.toSorted((a, b) => b.version.localeCompare(a.version, "en", { numeric: true }))[0];
  const found = same.find((model) => referenceOf(model) === wanted) ?? newest;
  return found && referenceOf(found);
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
    const list = inOrder(models, usual);
    Object.assign(this, { list, failures, limits });
    this.#cards.clear();
    this.#chosen = find(list, preferred) ?? referenceOf(list[0]);
    this.root.querySelector(".choices")?.remove();
    this.root.append(createElement("span", { className: "choices" }, ...list.map((model) => this.#choice(model))));
    this.root.disabled = false;
    return this.card(signal);
  }

  get reference() {
    return this.#chosen;
  }

  /** Choose a model as if its button had been pressed; whether it is another one. */
  choose(wanted) {
    const reference = find(this.list, wanted);
    const button = [...this.root.querySelectorAll("input")].find((input) => input.value === reference);
    const other = Boolean(button) && !button.checked;
    if (other) button.click();
    return other;
  }

  /** The full card of the selected model. */
  async card(signal) {
    const reference = this.reference;
    if (!this.#cards.has(reference)) this.#cards.set(reference, await callJson(`models/${reference}`, { signal }));
    return this.#cards.get(reference);
  }

  /** A small picture of a model as a URL, or "" before there is one. */
  thumbnail(reference) {
    return this.#thumbnails.get(reference) ?? (reference.startsWith(`${PAGE.name}/`) ? PAGE.url : "");
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
    const thumbnail = this.thumbnail(reference);
    const image = createElement("img", { className: "pixels", alt: "", ...(thumbnail && { src: thumbnail }) });
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
