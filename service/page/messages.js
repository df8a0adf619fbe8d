// Texts about the numbers of the API.

/** A mean pixel difference with its significant digits. */
export function formatDistance(value) {
  return value >= 0.0995 ? value.toFixed(2) : value >= 0.00095 ? value.toFixed(3) : "below 0.001";
}

/** A mean difference as a percentage of the model's range. */
function formatShare(value, [low, high]) {
  const percent = (100 * value) / (high - low);
  return `${percent.toFixed(percent < 0.95 ? 1 : 0)} %`;
}

/** Percentile 0…100 of a value among 101 ascending quantiles, computed as the service does. */
export function percentile(value, quantiles) {
  if (value <= quantiles[0]) return 0;
  const above = quantiles.findIndex((quantile) => quantile > value);
  if (above < 0) return 100;
  const low = quantiles[above - 1];
  return above - 1 + (value - low) / (quantiles[above] - low);
}

/** How far f moved an image, compared to real images if the card has their quantiles. */
export function distanceMessage(distance, { distance_quantiles: quantiles, range: [low, high] }) {
  const movedBy = `f moved its pixels by ${formatShare(distance, [low, high])} on average`;
  if (!quantiles) return `${movedBy}.`;
  const rank = percentile(distance, quantiles);
  if (rank >= 100) return `${movedBy}, more than any of the real pictures it was tested with.`;
  if (rank > 99) return `${movedBy}, more than 99 of 100 real pictures.`;
  const beside = rank < 1 ? "less than nearly all" : `more than ${Math.round(rank)} of 100`;
  return `${movedBy}, ${beside} real pictures: ${rank > 75 ? "within what real ones do" : "it looked real already"}.`;
}

/** How near a result is to a fixed point: "at rest" if f moves it no more than the median real image. */
export function driftMessage(drift, distance, { distance_quantiles: quantiles, range }) {
  const more = `Once more would move it by ${formatShare(drift, range)}`;
  if (drift <= (quantiles?.[50] ?? 0)) return `${more}: it is at rest.`;
  const less = distance / drift;
  if (less > 2) return `${more}, ${less >= 10 ? Math.round(less) : less.toFixed(1)} times less.`;
  return `${more}: f is not sure of it.`;
}

/** f, f², f³ … */
export function powerOfF(steps) {
  const raised = { 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
  return steps === 1 ? "f" : `f${[...String(steps)].map((digit) => raised[digit]).join("")}`;
}

export const formatTimes = (steps) => (steps === 1 ? "once" : steps === 2 ? "twice" : `${steps} times`);
