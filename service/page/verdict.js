// What is said of a result: what f made of the picture, in words, and in per cent of the range of a pixel.
//
// A sparse drawing is mostly background, which f keeps: changes count as if there were as much ink, in the drawing or in
// the result, as in generated pictures.

import { byId } from "./dom.js";
import { contrastOf, inkOf, inkedShare } from "./pixels.js";

const KEPT = 90; // percentile of the change of real pictures up to which a picture is left nearly as it is
const MOST_KEPT = 0.1; // of the range: a network that moves real pictures further, such as an untrained one, keeps none
// How far a result may change when it is made real again: so many times as far as generated pictures in the model's own
// measurement, or as far as most real pictures where there is none.
const REAL = 1.5;
const MOST_REAL = 80; // percentile
// A picture that moves so many times as far as the real ones that move most is replaced rather than projected.
const GUESSED = 5;
const NEARLY_EMPTY = 0.5; // of the least ink of a generated picture
const FILLED = 0.9; // share of ink of pictures that have backgrounds of their own
const PLAIN = 0.04; // contrast: of a photo of a wall

/** A mean difference as a percentage of the model's range. */
export function formatShare(share) {
  const percent = 100 * share;
  // A no-break space, so that no line begins with the sign.
  return percent < 0.05 ? "less than 0.1\u00a0%" : `${percent.toFixed(percent < 0.95 ? 1 : 0)}\u00a0%`;
}

/** Percentile 0…100 of a value among 101 ascending quantiles, computed as the service does. */
export function percentile(value, quantiles) {
  if (value <= quantiles[0]) return 0;
  const above = quantiles.findIndex((quantile) => quantile > value);
  if (above < 0) return 100;
  const low = quantiles[above - 1];
  return above - 1 + (value - low) / (quantiles[above] - low);
}

/** What is said of a result, from how far f moved the picture, and from the pixels before and after. */
export function judge({ distance, drift, image, pixels, note = "" }, card, samples) {
  if (card.tiles) return { words: "Done.", numbers: `Drag the line to compare. ${note}`.trim() };
  if (!samples && card.noise !== null) return { words: "" }; // compared with nothing, it would be another one
  const nearlyEmpty = isNearlyEmpty(image, card, samples);
  if (!samples) return verdict({ distance, drift }, card, { nearlyEmpty });
  const filled = samples.inkedShare > FILLED;
  const sparse = filled ? 1 : Math.max(1, samples.inkedShare / inkedShare([image, pixels], card));
  const input = { nearlyEmpty, foreign: samples.isForeign(pixels) };
  return verdict({ distance: distance * sparse, drift: drift === null ? null : drift * sparse }, card, input);
}

/**
 * The verdict on one result.
 *
 * @param {{distance: number, drift: number | null}} result in the model's units; no drift if it was not measured. That
 *   of an exact model says nothing: it keeps whatever it made.
 * @param {object} card
 * @param {{nearlyEmpty: boolean, foreign: boolean}} input so little is drawn that nothing can be said of it; the result is
 *   like no generated picture
 * @returns {{words: string, numbers: string}} a sentence for everybody, and what was measured
 */
export function verdict({ distance, drift }, card, { nearlyEmpty = false, foreign = false } = {}) {
  const quantiles = card.distance_quantiles;
  const [low, high] = card.range;
  const share = (value) => formatShare(value / (high - low));
  const keeps = Boolean(quantiles) && quantiles[KEPT] <= MOST_KEPT * (high - low);
  const usual = card.quality?.drift?.f;
  const changes = drift !== null && drift > (usual ? REAL * usual : (quantiles?.[MOST_REAL] ?? Infinity));
  return { words: words(), numbers: `${numbers().join("; ")}.` };

  function words() {
    if (nearlyEmpty) return "There is too little to go on.";
    if (foreign) return `This does not look like ${thingOf(card)} to the network.`;
    if (changes) return "Not quite real yet: once more, and it changes again.";
    if (keeps && percentile(distance, quantiles) <= KEPT) return "The network leaves this nearly as it is.";
    if (card.exact || drift === null || !keeps) return "This is what the network makes of it.";
    if (distance > GUESSED * quantiles[99]) return "A guess: much of the picture had to change.";
    return "Made real.";
  }

  function numbers() {
    const real = quantiles && `real pictures change by ${share(quantiles[1]).replace("\u00a0%", "")} to ${share(quantiles[99])}`;
    return [`Changed by ${share(distance)}`, real, changes && `once more, by ${share(drift)}`].filter(Boolean);
  }
}

/** What the prompt of a card asks to draw, such as “a face”. */
const thingOf = ({ prompt }) => prompt?.match(/^Draw (an? .+?)(?:, (?!an? )|$)/)?.[1] ?? "anything real";

/** Whether so little is drawn, or to be seen, that nothing can be said of it. */
export const isNearlyEmpty = (image, card, samples) =>
  contrastOf(image) < PLAIN || (samples !== null && inkOf(image, card) < NEARLY_EMPTY * samples.leastInk);

/** Show a verdict, or another sentence. Screen readers are told of it once the pen is up. */
export function showVerdict({ words, numbers = "" }, { drawing = false } = {}) {
  const [line, hint] = ["status", "hint"].map((name) => byId("verdict").querySelector(`.${name}`));
  line.setAttribute("aria-live", drawing ? "off" : "polite");
  if (line.textContent !== words) line.textContent = words;
  hint.textContent = numbers;
}

export const formatTimes = (steps) => (steps === 1 ? "once" : steps === 2 ? "twice" : `${steps} times`);

/** How f was applied, in words; none if as usual. */
export function formatApplied(steps, strength, card) {
  if (steps === card.steps.project && strength === 1) return "";
  return `Applied ${formatTimes(steps)}${strength < 1 ? ` at strength ${Math.round(100 * strength)} %` : ""}.`;
}
