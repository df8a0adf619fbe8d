// Generated pictures of a model: what examples start from, and what drawings are compared to.

import { decodePixels, difference, inkOf, inkedShare } from "./pixels.js";

const SWATCHES = 10;
// Deviations above the mean: of digits, it holds 19 of 20 others that the model makes, and no smiley, house or scribble.
const WIDE = 1.5;
const BASIC = ["#000000", "#ffffff", "#d13c2f", "#f2a33a", "#4f9d52", "#2f6db3"]; // beside few colours of pictures

export class Samples {
  #next = 0;

  /** @param {ImageData[]} pictures @param {object} card */
  constructor(pictures, card) {
    this.pictures = pictures;
    /** Least ink of a picture; a drawing of half of it is nearly empty. */
    this.leastInk = Math.min(...pictures.map((picture) => inkOf(picture, card)));
    this.inkedShare = median(pictures.map((picture) => inkedShare([picture], card)));
    const apart = pictures.map((picture) => this.#nearest(picture));
    const usual = meanOf(apart);
    this.apartAtMost = usual + WIDE * Math.sqrt(meanOf(apart.map((distance) => (distance - usual) ** 2)));
    /** Median difference between two pictures, as a share of the range. */
    this.apart = median(pictures.slice(1).map((picture, i) => difference(picture, pictures[i])));
  }

  /** @param {{data: string, drift: number}[]} images base64 of PNG files; those that the model moves least come first */
  static async decode(images, card) {
    const lasting = images.toSorted((a, b) => a.drift - b.drift);
    return new Samples(await Promise.all(lasting.map(({ data }) => decodePixels(data))), card);
  }

  /** Whether a picture is further from these than nearly all of them are from the others. */
  isForeign(picture) {
    return this.#nearest(picture) > this.apartAtMost;
  }

  #nearest(picture) {
    return Math.min(...this.pictures.filter((other) => other !== picture).map((other) => difference(picture, other)));
  }

  /** A picture, another one each time. */
  next() {
    return this.pictures[this.#next++ % this.pictures.length];
  }

  /** The most frequent colours of the pictures, as #rrggbb, from dark to light; then basic ones. */
  palette() {
    const counts = new Map();
    for (const { data } of this.pictures) {
      for (let i = 0; i < data.length; i += 4) {
        const key = [0, 1, 2].map((c) => data[i + c] >> 5).join();
        const entry = counts.get(key) ?? { count: 0, sum: [0, 0, 0] };
        entry.count++;
        entry.sum.forEach((_, c) => (entry.sum[c] += data[i + c]));
        counts.set(key, entry);
      }
    }
    const chosen = [];
    for (const { count, sum } of [...counts.values()].sort((a, b) => b.count - a.count)) {
      const colour = sum.map((value) => Math.round(value / count));
      const near = chosen.some((other) => other.reduce((d, value, c) => d + Math.abs(value - colour[c]), 0) < 72);
      if (!near) chosen.push(colour);
      if (chosen.length === SWATCHES) break;
    }
    const light = ([r, g, b]) => 0.299 * r + 0.587 * g + 0.114 * b;
    const colours = chosen.sort((a, b) => light(a) - light(b)).map(hex);
    return colours.concat(BASIC.filter((colour) => !colours.includes(colour)).slice(0, SWATCHES - colours.length));
  }
}

const hex = (colour) => `#${colour.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
const meanOf = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const median = (values) => values.sort((a, b) => a - b)[values.length >> 1] ?? 0;
