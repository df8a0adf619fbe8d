// One line about a result: what f made of the picture, in per cent of the range of a pixel.
//
// A sparse drawing is mostly background, which f keeps: changes count as if there were as much ink, in the drawing or in
// the result, as in generated pictures.

import { byId } from "./dom.js";
import { contrastOf, inkOf } from "./pixels.js";

const NEARLY_EMPTY = 0.5; // of the least ink of a generated picture
const FOREIGN = 10; // times as far as f moves nearly all real pictures: noise and holes move less, photos more
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
 * @returns {string} such as "Made real · moved 6 % · stable"
 */
export function verdict({ distance, drift }, card, { nearlyEmpty = false, foreign = false } = {}) {
  if (card.tiles) return "Done. Drag the line to compare.";
  const quantiles = card.distance_quantiles;
  const [low, high] = card.range;
  const stable = drift === null || drift <= Math.max(quantiles?.[99] ?? 0, distance / 10);
  const moved = `moved ${formatShare(distance / (high - low))}`;
  const rest = stable ? "stable" : `still moves ${formatShare(drift / (high - low))}`;
  return [word(), moved, ...(drift === null ? [] : [rest])].join(" · ");

  function word() {
    if (nearlyEmpty) return "Little to go on";
    if (quantiles && distance > FOREIGN * quantiles[99]) return "Not recognised";
    if (!stable) return "Not settled";
    if (foreign) return "Changed";
    return quantiles && percentile(distance, quantiles) <= 90 ? "Looked real already" : "Made real";
  }
}

/** Whether so little is drawn, or to be seen, that nothing can be said of it. */
export const isNearlyEmpty = (image, card, samples) =>
  contrastOf(image) < PLAIN || (samples !== null && inkOf(image, card) < NEARLY_EMPTY * samples.leastInk);

/** Show how far f moved the picture, beside how far it moves real ones. */
function showMeter(distance, card) {
  const meter = document.querySelector("#verdict .meter");
  meter.hidden = distance === null || Boolean(card.tiles);
  if (meter.hidden) return;
  const [low, high] = card.range;
  const quantiles = card.distance_quantiles;
  const [least, most] = quantiles ? [quantiles[1], quantiles[99]] : [0, 0];
  const full = Math.max(quantiles ? 2 * most : 0.3 * (high - low), 1.05 * distance);
  const percent = (value) => (100 * value) / full;
  setBar(meter.querySelector(".band"), percent(least), percent(most));
  setBar(meter.querySelector(".moved"), 0, percent(distance));
  const share = (value) => formatShare(value / (high - low));
  const hint = meter.querySelector(".hint");
  hint.hidden = !quantiles;
  hint.textContent = `Real pictures move ${share(least).replace("\u00a0%", "")} to ${share(most)}`;
}

function setBar(bar, from, to) {
  bar.setAttribute("x", from);
  bar.setAttribute("width", Math.max(0, to - from));
}

/** Show a verdict. Screen readers are told of it once the pen is up. */
export function showVerdict(text, distance, card, { drawing = false } = {}) {
  const line = byId("verdict").querySelector(".status");
  line.setAttribute("aria-live", drawing ? "off" : "polite");
  if (line.textContent !== text) line.textContent = text;
  showMeter(distance, card);
}

export const formatTimes = (steps) => (steps === 1 ? "once" : steps === 2 ? "twice" : `${steps} times`);
