// Panel “Models”: what is served and how busy it is, and the facts of the chosen model.

import { callJson } from "./api.js";
import { byId, createElement } from "./dom.js";
import { referenceOf, titleOf } from "./models.js";
import { Panel } from "./panel.js";
import { formatShare } from "./verdict.js";

const EVERY_MS = 2000; // between two looks at the statistics, while the panel is in view

export class ModelsPanel {
  #panel = new Panel(byId("about"));
  #timer = 0;
  #visible = false;
  #before = null; // the last statistics: {time, counts}

  /** @param {Models} models */
  constructor(models) {
    this.models = models;
    models.addEventListener("thumbnail", () => this.#showList());
    new IntersectionObserver(([entry]) => {
      this.#visible = entry.isIntersecting;
      this.#watch();
    }).observe(byId("served"));
    document.addEventListener("visibilitychange", () => this.#watch());
  }

  setModel(card) {
    this.card = card;
    this.#showList();
    this.#watch();
    showCard(card);
  }

  #showList() {
    const failures = this.models.failures ?? [];
    const failed = (reference) => failures.find((failure) => referenceOf(failure) === reference);
    const served = this.models.list.map((model) => this.#entry(model, failed(referenceOf(model))?.reason));
    const absent = failures.filter((failure) => !this.models.list.some((model) => referenceOf(model) === referenceOf(failure)));
    const focused = document.activeElement.closest("#served li")?.dataset.model;
    byId("served").replaceChildren(...served, ...absent.map((failure) => this.#entry(failure, failure.reason, false)));
    if (focused) byId("served").querySelector(`[data-model="${CSS.escape(focused)}"] button`)?.focus({ preventScroll: true });
  }

  #entry(model, reason = "", serves = true) {
    const reference = referenceOf(model);
    const source = this.models.thumbnail(reference);
    const image = source
      ? createElement("img", { className: "pixels", src: source, alt: "" })
      : createElement("span", { className: "blank" });
    const state = serves ? (reason ? "serves earlier files" : "ready") : "failed";
    const button = createElement(
      "button",
      { type: "button", disabled: !serves, "aria-pressed": String(reference === this.models.reference) },
      image,
      createElement("b", {}, titleOf(model)),
      createElement("span", { className: "hint" }, serves ? list(reference, size(model)) : reference),
      createElement("span", { className: `state ${serves && !reason ? "good" : "bad"}` }, state),
      createElement("span", { className: "hint load" }, reason),
    );
    button.addEventListener("click", () => {
      this.models.choose(reference);
      scrollTo({ top: 0 }); // to what it does
    });
    const entry = createElement("li", {}, button);
    entry.dataset.model = reference;
    return entry;
  }

  #watch() {
    clearTimeout(this.#timer);
    if (this.#visible && document.visibilityState === "visible" && this.card) this.#look();
  }

  async #look() {
    try {
      this.#showLoad(await callJson("v2/models/stats"));
    } catch {
      this.#before = null; // the panel shows no rates; what people do shows the error
    }
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#watch(), EVERY_MS);
  }

  /** Rates since the last look: pictures a second, and how long a request waited. */
  #showLoad({ model_stats: all }) {
    const now = { time: performance.now(), counts: new Map(all.map((each) => [referenceOf(each), each])) };
    for (const [reference, { inference_count: rows, inference_stats: stats }] of now.counts) {
      const line = byId("served").querySelector(`[data-model="${CSS.escape(reference)}"] .load`);
      const before = this.#before?.counts.get(reference);
      if (!line || !before) continue;
      const seconds = (now.time - this.#before.time) / 1000;
      const requests = stats.queue.count - before.inference_stats.queue.count;
      const waited = (stats.queue.ns - before.inference_stats.queue.ns) / 1e6 / Math.max(1, requests);
      const rate = (rows - before.inference_count) / seconds;
      line.textContent = rate > 0 ? `${count(Math.round(rate * 10) / 10)} pictures/s · waits ${waited.toFixed(1)} ms` : "idle";
    }
    this.#before = now;
  }
}

const size = ({ shape: [channels, height, width], tiles }) =>
  `${tiles ? "any size," : `${width} × ${height}`} ${channels === 1 ? "grey" : "colour"}`;

/** Show the facts of a model card. */
function showCard(card) {
  byId("about-name").textContent = `${titleOf(card)}: ${card.name}, version ${card.version}`;
  byId("about-lead").textContent = card.description ?? "";
  showFacts("about-facts", plainFacts(card));
  showFacts("about-details", technicalFacts(card));
}

function showFacts(id, facts) {
  byId(id).replaceChildren(
    ...facts.filter((fact) => fact && fact[1]).map(([name, value]) =>
      createElement("div", {}, createElement("dt", {}, name), createElement("dd", {}, value)),
    ),
  );
}

function plainFacts(card) {
  const { data, quality, origin, range: [low, high] } = card;
  return [
    ["Images", `${size(card)}${card.polarity === "none" ? "" : `, ${card.polarity.replaceAll("-", " ")}`}`],
    ["Heavy noise", recognised(quality?.restoration?.["noise_0.8_8bit"])],
    quality?.drift?.f !== undefined && ["Made real again", `its pictures change by ${formatShare(quality.drift.f / (high - low))}`],
    ["Trained on", list(data?.pictures && `${count(data.pictures)} pictures of ${data.name}`, data?.licence && `licence ${data.licence}`)],
    origin && ["Imported from", list(origin.file, ...origin.folded)],
    ["Limits", (quality?.warnings ?? []).join("; ")],
    card.licence && ["Licence of the weights", card.licence],
  ];
}

function technicalFacts(card) {
  const { training, quality, reproducible, steps } = card;
  const generated = quality?.generation?.[steps.generate === 1 ? "f" : `f${steps.generate}`];
  return [
    generated && ["Made of noise", `${round(generated.multiple)} times as far from real pictures as other real ones (Fréchet distance)`],
    ["Heavy noise", cleaned(quality?.restoration?.["noise_0.8_8bit"])],
    training?.parameters && ["Parameters", count(training.parameters)],
    ["Runs on", list(card.device ?? card.provider, reproducible?.kind === "exact" && "the same bits every time")],
    ["Digest", createElement("code", {}, card.digest.slice(0, 19))],
  ];
}

/** What f restores: recognised pictures where there are classes, and the signal-to-noise ratio. */
const recognised = ({ input, f } = {}) =>
  f?.accuracy !== undefined && `recognised ${share(input.accuracy)} of the time before, ${share(f.accuracy)} after`;
const cleaned = ({ input, f } = {}) => f && `${round(input.psnr)} dB before, ${round(f.psnr)} dB after (PSNR)`;

const list = (...parts) => parts.filter(Boolean).join(", ");
const count = (value) => value.toLocaleString("en");
const round = (value) => (value === undefined ? "unknown" : value.toFixed(1));
const share = (value) => `${Math.round(100 * value)} %`;
