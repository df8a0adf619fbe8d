// What is served, and what its cards say.

import { ask } from "./api.js";
import { byId, make } from "./dom.js";

/** Every model in service, and how it is chosen. Tells `chosen` with its whole card. */
export class Models extends EventTarget {
  #cards = new Map();

  constructor(select) {
    super();
    this.select = select;
    select.addEventListener("change", () => this.dispatchEvent(new Event("picked")));
  }

  /** Ask which models there are; the default is chosen. */
  async load(signal) {
    const { models, default: preferred, limits } = await (await ask("models", { signal })).json();
    this.limits = limits;
    this.#cards.clear();
    const options = models.map(({ name, version, shape }) => {
      const reference = `${name}/${version}`;
      return make("option", { value: reference }, `${reference} · ${size(shape)}`);
    });
    this.select.replaceChildren(...options);
    this.select.value = preferred;
    this.select.disabled = false;
    return this.card(signal);
  }

  get reference() {
    return this.select.value;
  }

  /** The whole card of the chosen model. */
  async card(signal) {
    const reference = this.reference;
    if (!this.#cards.has(reference)) {
      this.#cards.set(reference, await (await ask(`models/${reference}`, { signal })).json());
    }
    return this.#cards.get(reference);
  }
}

const size = ([channels, height, width]) => `${width} × ${height} ${channels === 1 ? "grey" : "colour"}`;

/** Tell of a model what its card knows, warnings first. */
export function describe(card) {
  byId("about-title").textContent = `The model: ${card.name}, version ${card.version}`;
  byId("about-lead").textContent = card.description ?? "";
  const warnings = card.quality?.warnings ?? [];
  byId("about-warnings").hidden = warnings.length === 0;
  byId("about-warnings").replaceChildren(...warnings.map((warning) => make("li", {}, warning)));
  byId("about-facts").replaceChildren(
    ...facts(card).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
  );
}

function facts(card) {
  const { training, data, quality, reproducible } = card;
  const f = quality?.generation?.f;
  const floor = quality?.generation?.training;
  const noise = quality?.restoration?.["noise_0.8_8bit"];
  return [
    ["Pictures", `${size(card.shape)}${card.polarity === "none" ? "" : `, ${card.polarity.replaceAll("-", " ")}`}`],
    f && ["Fréchet distance", `${round(f.frechet)} for f of noise; real training pictures: ${round(floor?.frechet)}`],
    noise && [
      "Heavy noise",
      `recognised ${share(noise.input.accuracy)} of the time before f, ${share(noise.f.accuracy)} after`,
    ],
    quality?.drift?.f !== undefined && ["Drift", `a second f moves its pictures by ${quality.drift.f.toFixed(3)}`],
    ["Trained on", list(data?.pictures && `${count(data.pictures)} pictures of ${data.name}`, data?.licence)],
    training?.parameters && ["Parameters", count(training.parameters)],
    training?.config?.licence && ["Licence", training.config.licence],
    ["Runs on", list(card.device ?? card.provider, reproducible?.kind === "exact" && "the same bits every time")],
    ["Digest", make("code", {}, card.digest.slice(0, 19))],
  ].filter((fact) => fact && fact[1]);
}

const list = (...parts) => parts.filter(Boolean).join(", ");
const count = (value) => value.toLocaleString("en");
const round = (value) => (value === undefined ? "unknown" : value.toFixed(1));
const share = (value) => `${Math.round(100 * value)} %`;
