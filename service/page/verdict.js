// What is said of a result: what f made of the picture, in words, and in per cent of the range of a pixel.
//
// A sparse drawing is mostly background, which f keeps: changes count as if there were as much ink, in the drawing or in
// the result, as in generated pictures.

import { byId } from "./dom.js";
import { contrastOf, inkOf } from "./pixels.js";

const NEARLY_EMPTY = 0.5; // of the least ink of a generated picture
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

/**
 * The verdict on one result.
 *
 * @param {{distance: number, drift: number | null}} result in the model's units; no drift if it was not measured
 * @param {object} card
 * @param {{nearlyEmpty: boolean, foreign: boolean}} input so little is drawn that nothing can be said of it; the result is
 *   like no generated picture
 * @returns {{words: string, numbers: string}} a sentence for everybody, and what was measured
 */
export function verdict({ distance, drift }, card, { nearlyEmpty = false, foreign = false } = {}) {
  const quantiles = card.distance_quantiles;
  const [low, high] = card.range;
  const share = (value) => formatShare(value / (high - low));
  const settled = drift === null || drift <= Math.max(quantiles?.[99] ?? 0, distance / 10);
  return { words: words(), numbers: `${numbers().join("; ")}.` };

  function words() {
    if (nearlyEmpty) return "There is too little to go on.";
    if (foreign) return `This does not look like ${thingOf(card)} to the network.`;
    if (!settled) return "Not quite real yet: once more, and it changes again.";
    return quantiles && percentile(distance, quantiles) <= 90 ? "This looked real already." : "Made real.";
  }

  function numbers() {
    const real = quantiles && `real pictures change by ${share(quantiles[1]).replace("\u00a0%", "")} to ${share(quantiles[99])}`;
    return [`Changed by ${share(distance)}`, real, !settled && `once more, by ${share(drift)}`].filter(Boolean);
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
