// The strip of images below a result: the input of f and its output after each recorded step.

import { createElement } from "./dom.js";
import { formatDistance, powerOfF } from "./messages.js";
import { dataUrl } from "./pixels.js";

const MAX_FRAMES = 10; // images of one response

/** The steps to record of 0…steps: all of them, or a few at growing distances. */
export function recordedSteps(steps) {
  if (steps < MAX_FRAMES) return Array.from({ length: steps + 1 }, (_, step) => step);
  const chosen = Array.from({ length: MAX_FRAMES - 1 }, (_, i) => Math.round(steps ** (i / (MAX_FRAMES - 2))));
  return [0, ...new Set(chosen)];
}

export class Trajectory {
  #frames = [];

  constructor(root, onSelect) {
    [this.root, this.list, this.onSelect] = [root, root.querySelector("ol"), onSelect];
  }

  /** Show the trajectory of a response: {step, data, change}. */
  start(trajectory) {
    this.#frames = trajectory.map(({ step, data, change }) => ({ step, data, change }));
    this.#draw();
  }

  /** Append f^steps of the last frame. */
  add({ data, change, steps }) {
    this.#frames.push({ step: this.#frames.at(-1).step + steps, data, change });
    this.#draw();
  }

  get last() {
    return this.#frames.at(-1);
  }

  clear() {
    this.#frames = [];
    this.#draw();
  }

  #draw() {
    this.root.hidden = this.#frames.length === 0;
    this.list.replaceChildren(...this.#frames.map((frame) => createElement("li", {}, this.#button(frame))));
    this.#select(this.list.lastElementChild?.firstElementChild);
    this.list.scrollLeft = this.list.scrollWidth;
  }

  #button(frame) {
    const first = frame.step === 0;
    const button = createElement(
      "button",
      { type: "button", "aria-pressed": "false" },
      createElement("img", { className: "pixels", src: dataUrl(frame.data), alt: "" }),
      createElement("b", {}, first ? "seen" : powerOfF(frame.step)),
    );
    if (!first) {
      const label = createElement("span", { className: "visually-hidden" }, "moved it by ");
      button.append(label, createElement("span", {}, formatDistance(frame.change)));
    }
    button.addEventListener("click", () => {
      this.#select(button);
      this.onSelect(frame);
    });
    return button;
  }

  #select(chosen) {
    for (const button of this.list.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", button === chosen);
    }
  }
}
