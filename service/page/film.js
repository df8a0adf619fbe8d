// The strip below a result: what f saw, and what it made of it, step by step.

import { make } from "./dom.js";
import { source } from "./pixels.js";
import { amount, power } from "./words.js";

const MOST = 10; // pictures of one answer

/** Steps worth looking at, 0…steps: all, or ever fewer of them. */
export function recorded(steps) {
  if (steps < MOST) return Array.from({ length: steps + 1 }, (_, step) => step);
  const chosen = Array.from({ length: MOST - 1 }, (_, i) => Math.round(steps ** (i / (MOST - 2))));
  return [0, ...new Set(chosen)];
}

export class Film {
  #frames = [];

  constructor(root, choose) {
    [this.root, this.list, this.choose] = [root, root.querySelector("ol"), choose];
  }

  /** The frames of an answer: {step, data, change}. */
  begin(trajectory) {
    this.#frames = trajectory.map(({ step, data, change }) => ({ step, data, change }));
    this.#draw();
  }

  /** What f made of the last frame. */
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
    this.list.replaceChildren(...this.#frames.map((frame) => make("li", {}, this.#button(frame))));
    this.#press(this.list.lastElementChild?.firstElementChild);
    this.list.scrollLeft = this.list.scrollWidth;
  }

  #button(frame) {
    const first = frame.step === 0;
    const button = make(
      "button",
      { type: "button", "aria-pressed": "false" },
      make("img", { className: "pixels", src: source(frame.data), alt: "" }),
      make("b", {}, first ? "seen" : power(frame.step)),
      ...(first ? [] : [make("span", { className: "unseen" }, "moved it by "), make("span", {}, amount(frame.change))]),
    );
    button.addEventListener("click", () => {
      this.#press(button);
      this.choose(frame);
    });
    return button;
  }

  #press(chosen) {
    for (const button of this.list.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", button === chosen);
    }
  }
}
