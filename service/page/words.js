// Numbers in plain words.

/** A mean difference of pixels with as many digits as say something. */
export function amount(value) {
  return value >= 0.0995 ? value.toFixed(2) : value >= 0.00095 ? value.toFixed(3) : "below 0.001";
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
  const share = `${((100 * distance) / (high - low)).toFixed(distance / (high - low) < 0.0095 ? 1 : 0)} %`;
  const far = `f moved its pixels by ${share} on average`;
  if (!quantiles) return `${far}.`;
  const place = percentile(distance, quantiles);
  if (place >= 100) return `${far}, more than any of the real pictures it was tested with.`;
  if (place > 99) return `${far}, more than 99 of 100 real pictures.`;
  const beside = place < 1 ? "less than nearly all real pictures" : `more than ${Math.round(place)} of 100 real pictures`;
  return `${far}, ${beside}: ${place > 75 ? "within what real ones do" : "it looked real already"}.`;
}

/** How near to a fixed point of f a result is. */
export function settled(drift, distance) {
  if (drift === null) return "";
  if (drift < 0.0005) return "Once more would change nothing: it is real to f.";
  const times = distance / drift;
  return times > 2
    ? `Once more would move it ${times >= 10 ? Math.round(times) : times.toFixed(1)} times less.`
    : "Once more would move it about as far: f is not sure of it.";
}

/** f, f², f³ … */
export function power(steps) {
  const raised = { 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
  return steps === 1 ? "f" : `f${[...String(steps)].map((digit) => raised[digit]).join("")}`;
}

export const times = (steps) => (steps === 1 ? "once" : steps === 2 ? "twice" : `${steps} times`);
