// Numbers in plain words.

/** A mean difference of pixels with as many digits as say something. */
export function amount(value) {
  return value >= 0.0995 ? value.toFixed(2) : value >= 0.00095 ? value.toFixed(3) : "below 0.001";
}

/** A mean difference as a share of the model's range. */
function share(value, [low, high]) {
  const percent = (100 * value) / (high - low);
  return `${percent.toFixed(percent < 0.95 ? 1 : 0)} %`;
}

/** Where a value lies among 101 ascending quantiles, 0…100; the service's `percentile`. */
export function percentile(value, quantiles) {
  if (value <= quantiles[0]) return 0;
  const above = quantiles.findIndex((quantile) => quantile > value);
  if (above < 0) return 100;
  const low = quantiles[above - 1];
  return above - 1 + (value - low) / (quantiles[above] - low);
}

/** How far f moved a picture, beside real ones where the card knows of some. */
export function moved(distance, { distance_quantiles: quantiles, range: [low, high] }) {
  const far = `f moved its pixels by ${share(distance, [low, high])} on average`;
  if (!quantiles) return `${far}.`;
  const place = percentile(distance, quantiles);
  if (place >= 100) return `${far}, more than any of the real pictures it was tested with.`;
  if (place > 99) return `${far}, more than 99 of 100 real pictures.`;
  const beside = place < 1 ? "less than nearly all" : `more than ${Math.round(place)} of 100`;
  return `${far}, ${beside} real pictures: ${place > 75 ? "within what real ones do" : "it looked real already"}.`;
}

/** How near to a fixed point of f a result is: at rest where f moves it no more than it does half of the real ones. */
export function settled(drift, distance, { distance_quantiles: quantiles, range }) {
  const more = `Once more would move it by ${share(drift, range)}`;
  if (drift <= (quantiles?.[50] ?? 0)) return `${more}: it is at rest.`;
  const less = distance / drift;
  if (less > 2) return `${more}, ${less >= 10 ? Math.round(less) : less.toFixed(1)} times less.`;
  return `${more}: f is not sure of it.`;
}

/** f, f², f³ … */
export function power(steps) {
  const raised = { 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
  return steps === 1 ? "f" : `f${[...String(steps)].map((digit) => raised[digit]).join("")}`;
}

export const times = (steps) => (steps === 1 ? "once" : steps === 2 ? "twice" : `${steps} times`);
