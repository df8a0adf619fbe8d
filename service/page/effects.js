// What examples are made of: noise, grey, sketches, and pictures that draw themselves.

import { backgroundColour, copyOf } from "./pixels.js";

export const NOISE = 0.4 * 255; // σ = 0.8 in a model's −1…1
const SKETCH_SIGMA = 3.5 / 64; // of the side, as in the IGN paper

/** With Gaussian noise; deviation in levels of 0…255. Grey images get one value for all channels. */
export function withNoise(image, deviation, channels) {
  const noisy = copyOf(image);
  for (let i = 0; i < noisy.data.length; i += 4) {
    const grey = randomNormal();
    for (let c = 0; c < 3; c++) noisy.data[i + c] += deviation * (channels === 1 ? grey : randomNormal());
  }
  return noisy;
}

const randomNormal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

/** The mean of the channels, as models are trained to colour it. */
export function toGrey(image) {
  const grey = copyOf(image);
  for (let i = 0; i < grey.data.length; i += 4) {
    grey.data.fill((image.data[i] + image.data[i + 1] + image.data[i + 2]) / 3, i, i + 3);
  }
  return grey;
}

/** Lines on a light ground: g / blur(g), where g is grey (the IGN paper, appendix). */
export function toSketch(image) {
  const { width, height } = image;
  const sketch = toGrey(image);
  const light = Float64Array.from({ length: width * height }, (_, i) => sketch.data[4 * i]);
  const kernel = gaussian(SKETCH_SIGMA * width);
  const blurred = blurLines(blurLines(light, width, height, 1, width, kernel), height, width, width, 1, kernel);
  light.forEach((level, i) => sketch.data.fill((127.5 * level) / (blurred[i] + 1e-10), 4 * i, 4 * i + 3));
  return sketch;
}

function gaussian(sigma) {
  const radius = Math.max(1, Math.ceil(3 * sigma));
  const weights = Array.from({ length: 2 * radius + 1 }, (_, i) => Math.exp(-((i - radius) ** 2) / (2 * sigma ** 2)));
  const sum = weights.reduce((total, weight) => total + weight);
  return weights.map((weight) => weight / sum);
}

/** Blur `lines` lines of `length` levels, mirrored at their ends; neighbours in a line are `stride` apart. */
function blurLines(levels, length, lines, stride, pitch, kernel) {
  const out = new Float64Array(levels.length);
  const radius = (kernel.length - 1) / 2;
  const mirror = (i) => Math.min(length - 1, Math.max(0, i < 0 ? -i - 1 : i >= length ? 2 * length - 1 - i : i));
  for (let line = 0; line < lines; line++) {
    for (let i = 0; i < length; i++) {
      let sum = 0;
      for (let k = -radius; k <= radius; k++) sum += kernel[k + radius] * levels[line * pitch + mirror(i + k) * stride];
      out[line * pitch + i * stride] = sum;
    }
  }
  return out;
}

/** As drawn with a felt pen: grey pictures in full ink and a little wider, colours in few flat ones. */
export function asDrawn(image, card) {
  const drawn = copyOf(image);
  const { width, height } = image;
  const paper = backgroundColour(card);
  if (card.shape[0] === 3) {
    for (let i = 0; i < drawn.data.length; i++) if (i % 4 < 3) drawn.data[i] = Math.round(drawn.data[i] / 64) * 64;
    return drawn;
  }
  const inked = (x, y) =>
    x >= 0 && y >= 0 && x < width && y < height && Math.abs(image.data[4 * (y * width + x)] - paper[0]) > 110;
  for (let i = 0; i < width * height; i++) {
    const [x, y] = [i % width, Math.floor(i / width)];
    const level = inked(x, y) || inked(x - 1, y) || inked(x, y - 1) ? 255 - paper[0] : paper[0];
    drawn.data.fill(level, 4 * i, 4 * i + 3);
  }
  return drawn;
}

/**
 * The order in which a picture is drawn: for every pixel 0…1, along its strokes from the topmost one, which is found by
 * a search from pixel to pixel that goes through ink first.
 *
 * @returns {Float64Array}
 */
export function drawingOrder(image, card) {
  const { width, height } = image;
  const paper = backgroundColour(card);
  const ink = (i) => [0, 1, 2].reduce((sum, c) => sum + Math.abs(image.data[4 * i + c] - paper[c]), 0) > 90;
  const order = new Float64Array(width * height).fill(-1);
  const rings = [[], []]; // pixels to go on from: inked ones before the others
  const start = Array.from({ length: width * height }, (_, i) => i).find(ink) ?? 0;
  rings[0].push(start);
  let count = 0;
  while (rings[0].length || rings[1].length) {
    const i = rings[rings[0].length ? 0 : 1].shift();
    if (order[i] >= 0) continue;
    order[i] = ink(i) ? count++ : count;
    const [x, y] = [i % width, Math.floor(i / width)];
    for (const [dx, dy] of [[1, 0], [0, 1], [-1, 0], [0, -1], [1, 1], [-1, 1], [1, -1], [-1, -1]]) {
      const [u, v] = [x + dx, y + dy];
      const next = v * width + u;
      if (u >= 0 && v >= 0 && u < width && v < height && order[next] < 0) rings[ink(next) ? 0 : 1].push(next);
    }
  }
  return order.map((at) => at / Math.max(1, count));
}

/** The part of a picture that is drawn at a time of 0…1. */
export function drawnUntil(image, order, time, card) {
  const paper = backgroundColour(card);
  const part = copyOf(image);
  order.forEach((at, i) => {
    if (at > time) for (let c = 0; c < 3; c++) part.data[4 * i + c] = paper[c];
  });
  return part;
}
