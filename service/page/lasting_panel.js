// Panel “How long does it last?”: f again and again on the result, shown while it runs.

import { curlCommand, streamEvents } from "./api.js";
import { drawChart } from "./chart.js";
import { byId, createElement } from "./dom.js";
import { Panel } from "./panel.js";
import { dataUrl, decodePixels, difference, inkOf, toBlob } from "./pixels.js";
import { formatShare } from "./verdict.js";

const FRAMES = 17; // about so many pictures of a run
// Of the distance between two pictures: nearer ones are the same picture, further ones are others.
const [SAME, OTHER] = [0.25, 0.6];
const APART = 0.2; // the distance where no generated pictures are known

/** The steps to record of 0…steps, at growing distances. */
export function recordedSteps(steps) {
  const chosen = Array.from({ length: FRAMES }, (_, i) => Math.round((steps + 1) ** (i / (FRAMES - 1))) - 1);
  return [...new Set([...chosen, ...[1, 2, 3].filter((step) => step <= steps)])].sort((a, b) => a - b);
}

/**
 * What happened to a picture, in words.
 *
 * @param {{step: number, from: number}[]} points how far each is from the first, as a share of the range
 * @param {number} apart how far two pictures are from each other
 */
export function story(points, apart) {
  const last = points.at(-1);
  const after = ({ step }) => `After ${step.toLocaleString("en")} time${step === 1 ? "" : "s"}`;
  const far = `${formatShare(last.from)} from the first; another picture would be ${formatShare(apart)} away`;
  if (last.from <= SAME * apart) return `${after(last)} it is still the same picture, ${far}.`;
  if (last.from <= OTHER * apart) return `${after(last)} it has changed a little, ${far}.`;
  return `${after(points.find(({ from }) => from > OTHER * apart))} it is another picture: in the end ${far}.`;
}

export class LastingPanel {
  #panel = new Panel(byId("lasting"));
  #points = [];
  #first = null;
  #axes = { steps: 100, other: 0 };

  /** @param {{models: Models, project: ProjectPanel}} parts */
  constructor({ models, project }) {
    [this.models, this.project] = [models, project];
    byId("lasting-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    byId("lasting-stop").addEventListener("click", () => this.#panel.stop());
    project.addEventListener("projected", () => this.#compareWithResult());
    new ResizeObserver(() => this.#draw()).observe(byId("chart").parentElement);
  }

  setModel(card) {
    this.card = card;
    this.#panel.reset();
    this.#start(this.#steps);
  }

  /** Run by itself, once there is a result, unless the user has started a run. */
  async runWithResult() {
    const { card } = this;
    while (!this.project.isSettled) {
      await new Promise((resolve) => this.project.addEventListener("projected", resolve, { once: true }));
    }
    if (this.card === card && this.#points.length === 0) this.run();
  }

  async run() {
    const picture = this.project.result.made;
    if (!picture) {
      this.#panel.say("Draw something first.");
      return;
    }
    const steps = this.#steps;
    const options = { model: this.models.reference, steps, invert: false, record: recordedSteps(steps).join() };
    this.#picture = picture;
    byId("lasting-stop").hidden = false;
    await this.#panel.run("Running", async (signal) => {
      this.#start(steps);
      const form = new FormData();
      form.append("image", toBlob(picture), "real.png");
      for (const [name, value] of Object.entries(options)) form.append(name, String(value));
      for await (const [name, event] of streamEvents("project", { form, signal })) {
        signal.throwIfAborted(); // events of a run that was ended may still come
        if (name === "step") await this.#add(event, signal);
        if (name === "progress") this.#panel.say(`${event.steps_done} of ${event.steps} times`);
      }
      const fields = [["image", "@real.png"], ...Object.entries(options).map(([key, value]) => [key, String(value)])];
      this.#panel.showCommand(curlCommand("project", { fields, accept: "text/event-stream" }));
      return this.#story();
    });
    const busy = byId("lasting").hasAttribute("aria-busy"); // with a newer run
    if (!busy && document.activeElement === byId("lasting-stop")) byId("lasting-form").querySelector(".primary").focus();
    byId("lasting-stop").hidden = !busy;
    if (this.#points.length > 1 && !busy) this.#panel.say(this.#story());
  }

  #picture = null; // that the run began with

  get #steps() {
    const chosen = Number(document.querySelector("[name=horizon]:checked").value);
    return Math.min(chosen, this.models.limits.steps);
  }

  #start(steps) {
    [this.#points, this.#first] = [[], null];
    this.#axes = { steps, other: this.project.samples?.apart ?? 0 };
    byId("strip").replaceChildren();
    this.#panel.say("");
    this.#compareWithResult();
    this.#draw();
  }

  async #add({ step, data, change }, signal) {
    const pixels = await decodePixels(data);
    signal.throwIfAborted();
    this.#first ??= pixels;
    const [low, high] = this.card.range;
    const by = change === null ? null : change / (high - low);
    this.#points.push({ step, from: difference(pixels, this.#first), by, ink: inkOf(pixels, this.card) });
    const image = createElement("img", { className: "pixels", src: dataUrl(data), alt: `After ${step} times` });
    byId("strip").append(createElement("li", {}, image, createElement("span", { "aria-hidden": "true" }, step.toLocaleString("en"))));
    this.#draw();
  }

  #story() {
    const words = story(this.#points, this.#axes.other || APART);
    byId("chart").setAttribute("aria-label", words);
    return words;
  }

  /** Dim a run that began with another picture. */
  #compareWithResult() {
    const stale = this.#points.length > 0 && this.project.result.made !== this.#picture;
    byId("lasting").toggleAttribute("data-stale", stale);
  }

  #draw() {
    drawChart(byId("chart"), this.#points, this.#axes);
  }
}
