// The models of the service, and the facts of their cards.

import { callApi } from "./api.js";
import { byId, createElement } from "./dom.js";

/** The list of models and the <select> that chooses one; dispatches `selected`. */
export class Models extends EventTarget {
  #cards = new Map();

  constructor(select) {
    super();
    this.select = select;
    select.addEventListener("change", () => this.dispatchEvent(new Event("selected")));
  }

  /** Load the list, select the default model, and return its card. */
  async load(signal) {
    const { models, default: preferred, limits } = await (await callApi("models", { signal })).json();
    this.limits = limits;
    this.#cards.clear();
    const options = models.map(({ name, version, shape }) => {
      const reference = `${name}/${version}`;
      return createElement("option", { value: reference }, `${reference} · ${size(shape)}`);
    });
    this.select.replaceChildren(...options);
    this.select.value = preferred;
    this.select.disabled = false;
    return this.card(signal);
  }

  get reference() {
    return this.select.value;
  }

  /** The full card of the selected model. */
  async card(signal) {
    const reference = this.reference;
    if (!this.#cards.has(reference)) {
      this.#cards.set(reference, await (await callApi(`models/${reference}`, { signal })).json());
    }
    return this.#cards.get(reference);
  }
}

const size = ([channels, height, width]) => `${width} × ${height} ${channels === 1 ? "grey" : "colour"}`;

/** Show the facts of a model card, warnings first. */
export function showCard(card) {
  byId("about-title").textContent = `The model: ${card.name}, version ${card.version}`;
  byId("about-lead").textContent = card.description ?? "";
  const warnings = card.quality?.warnings ?? [];
  byId("about-warnings").hidden = warnings.length === 0;
  byId("about-warnings").replaceChildren(...warnings.map((warning) => createElement("li", {}, warning)));
  byId("about-facts").replaceChildren(
    ...cardFacts(card).map(([name, value]) =>
      createElement("div", {}, createElement("dt", {}, name), createElement("dd", {}, value)),
    ),
  );
}

function cardFacts(card) {
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
    ["Digest", createElement("code", {}, card.digest.slice(0, 19))],
  ].filter((fact) => fact && fact[1]);
}

const list = (...parts) => parts.filter(Boolean).join(", ");
const count = (value) => value.toLocaleString("en");
const round = (value) => (value === undefined ? "unknown" : value.toFixed(1));
const share = (value) => `${Math.round(100 * value)} %`;
