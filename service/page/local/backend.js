// The endpoints of the API that the page uses; the models run in the workers of `pool.js`.

import { readIndex } from "./files.js";
import { coloured, fromBase64, sized, splitLuma, toBase64, toKeep, toPng, toRow } from "./images.js";
import { latent, path } from "./latents.js";
import { Pool } from "./pool.js";
import { Tiling } from "./tiles.js";

const LIMITS = { n: 64, images: 1, steps: 1000, frames: 256, body_bytes: 1 << 24, pixels: 16_000_000 };
const ROWS = 4; // of a model call: a drawing does not wait longer

const distance = (a, b) => a.reduce((sum, value, i) => sum + Math.abs(value - b[i]), 0) / a.length;

export class Backend {
  #index = null; // a promise
  #pool = new Pool();

  async call(path, options, context) {
    this.#index ??= readIndex();
    const { models, failures, default: usual } = await this.#index.catch((error) => {
      this.#index = null;
      throw error;
    });
    if (path === "models") return { models, failures, default: usual, limits: LIMITS };
    if (path === "v2/models/stats") return { model_stats: [] };
    const reference = path.startsWith("models/") ? path.replace("models/", "") : (options.model ?? usual);
    const matching = models.filter(({ name, version }) => [name, `${name}/${version}`].includes(reference));
    const [card] = matching.sort((a, b) => b.version - a.version);
    if (!card) throw Object.assign(new Error(`There is no model ${reference}.`), { status: 404, code: "unknown_model" });
    if (path.startsWith("models/")) return card;
    const run = { generate, project, score, "latent-interpolate": interpolate }[path];
    const start = performance.now();
    const result = await run(card, options, { ...context, backend: this });
    if (result instanceof Blob) return result;
    const timing = { decode_ms: 0, queue_ms: 0, compute_ms: performance.now() - start, encode_ms: 0 };
    return { model: { name: card.name, version: card.version, digest: card.digest }, timing, ...result };
  }

  /**
   * f of rows, once.
   *
   * @param {Float32Array[]} rows
   * @returns {Promise<Float32Array[]>}
   */
  async apply(card, rows, { signal, urgent }) {
    const { runtime } = await this.#index;
    const made = [];
    for (let i = 0; i < rows.length; i += ROWS) {
      const some = rows.slice(i, i + ROWS);
      const x = new Float32Array(some.length * some[0].length);
      some.forEach((row, at) => x.set(row, at * row.length));
      const task = { card, runtime, x, dims: [some.length, ...card.shape] };
      const y = await this.#pool.run(task, { signal, urgent, beside: Boolean(card.tiles) });
      made.push(...some.map((row, at) => y.slice(at * row.length, (at + 1) * row.length)));
    }
    return made;
  }

  async applyOften(card, rows, steps, context) {
    let made = rows;
    for (let step = 0; step < steps; step++) made = await this.apply(card, made, context);
    return made;
  }
}

async function generate(card, { n = 1, seed, offset = 0, steps = card.steps.generate, score = false }, context) {
  const size = card.shape.reduce((product, side) => product * side);
  const noise = Array.from({ length: n }, (_, i) => latent(seed, offset + i, size));
  const first = await context.backend.apply(card, noise, context);
  const rows = await context.backend.applyOften(card, first, steps - 1, context);
  const next = score ? await context.backend.apply(card, rows, context) : [];
  const images = rows.map(async (row, i) => {
    const measured = { distance: distance(first[i], noise[i]), drift: score ? distance(next[i], row) : null };
    return { index: offset + i, ...(await encoded(row, card)), steps, converged: false, ...measured, trajectory: null };
  });
  return { images: await Promise.all(images), seed };
}

/** The picture of a row, as members of a JSON response. */
async function encoded(row, card) {
  const [, height, width] = card.shape;
  return { data: toBase64(await toPng([row], card)), format: "png", width, height };
}

async function project(card, options, { accept, emit, ...context }) {
  const [steps, strength] = [Number(options.steps ?? card.steps.project), Number(options.strength ?? 1)];
  const score = String(options.score) === "true"; // of a form, or of JSON
  const record = (options.record ?? "").split(",").filter(Boolean).map(Number);
  const whole = await sized(card, options.image);
  const seen = card.color === "luma" ? coloured(whole) : whole;
  const { row: input, inverted } = await toRow(options.image, seen, options);
  const { luma: x, chroma } = card.color === "luma" ? splitLuma(input) : { luma: input };
  const keep = options.mask && (await toKeep(options.mask, whole, options));
  const restored = (row) => (chroma ? chroma.map((value, i) => value + row[i % row.length]) : row);
  const picture = chroma ? seen : whole;
  const encode = (row) => encoded(restored(blend(x, row, strength)), picture);
  if (strength === 0 && accept === "image/png") return toFile([restored(x)], picture); // what f would see

  const progress = { steps_done: 0, steps };
  const [f, tiles] = applied(whole, { ...context, card, urgent: steps < LIMITS.steps / 20 }, () => {
    emit("progress", { ...progress, rows_done: ++progress.rows_done });
  });
  if (card.tiles) Object.assign(progress, { rows_done: 0, rows: tiles * (steps + score) });

  const trajectory = [];
  let [row, moved, made, shown] = [x, 0, null, null];
  for (let step = 0; step <= steps; step++) {
    let change = null;
    if (step > 0) {
      const next = await made;
      if (step === 1) moved = distance(next, row);
      if (keep) x.forEach((value, i) => keep[i % keep.length] && (next[i] = value));
      [row, change] = [next, distance(next, row)];
    }
    if (step < steps) made = f(row); // the runners work while this worker encodes
    made?.catch(() => {}); // it is awaited later
    progress.steps_done = step;
    if (!record.includes(step) && step < steps) continue;
    shown = await encode(row);
    const last = { step, data: shown.data, change };
    if (record.includes(step)) trajectory.push(last);
    emit("step", last);
    emit("progress", { ...progress });
  }
  const drift = score ? distance(await f(row), row) : null;
  const measured = { steps, converged: false, distance: moved, drift };
  const answer = { images: [{ index: 0, ...shown, ...measured, trajectory, inverted }] };
  emit("done", answer);
  return answer;
}

/** f of one image with this card, in tiles if the model has them, and their number; `onTile` is called after each. */
function applied(card, context, onTile = () => {}) {
  const tiling = card.tiles && new Tiling(card.shape, context.card);
  const tile = tiling ? { ...card, shape: tiling.shape } : card;
  const apply = async (row) => (await context.backend.apply(tile, [row], context))[0];
  return tiling ? [(image) => tiling.map(image, apply, onTile), tiling.count] : [apply, 1];
}

/** How far f moves an image, and that among the distances of real ones, as `service/api/native/responses.py` has it. */
async function score(card, options, context) {
  const whole = await sized(card, options.image);
  const { row: x } = await toRow(options.image, whole, options);
  const [f] = applied(whole, { ...context, card });
  const y = await f(x);
  const z = await f(y);
  const moved = distance(x, y);
  const percentile = card.distance_quantiles && percentileOf(moved, card.distance_quantiles);
  const real = { percentile, in_distribution: card.distance_quantiles && percentile <= 99 };
  return { images: [{ index: 0, distance: moved, drift: distance(y, z), ...real, worst: worstBox(x, y, whole.shape) }] };
}

/** The percentile of a value among 101 quantiles, linear between them. */
function percentileOf(value, quantiles) {
  const above = quantiles.findIndex((quantile) => quantile > value);
  if (above <= 0) return above === 0 ? 0 : 100;
  const [low, high] = [quantiles[above - 1], quantiles[above]];
  return above - 1 + (value - low) / (high - low);
}

/** The square with the largest mean of |y − x|; its side is a quarter of the shorter one of the image. */
function worstBox(x, y, [channels, height, width]) {
  const side = Math.max(1, Math.floor(Math.min(height, width) / 4));
  const sums = new Float64Array((height + 1) * (width + 1)); // of all above and to the left
  const sum = (line, column) => sums[line * (width + 1) + column];
  const rectangle = (i, j, line, column) => sum(line, column) - sum(i, column) - sum(line, j) + sum(i, j);
  let worst = { distance: -1 };
  for (let line = 1; line <= height; line++) {
    for (let column = 1; column <= width; column++) {
      let moved = sum(line - 1, column) + sum(line, column - 1) - sum(line - 1, column - 1);
      for (let at = (line - 1) * width + column - 1; at < x.length; at += height * width) moved += Math.abs(y[at] - x[at]);
      sums[line * (width + 1) + column] = moved;
      if (line < side || column < side) continue;
      const [top, left] = [line - side, column - side];
      const distance = rectangle(top, left, line, column) / (channels * side ** 2);
      if (distance > worst.distance) worst = { x: left, y: top, width: side, height: side, distance };
    }
  }
  return worst;
}

const blend = (start, end, strength) => (strength === 1 ? end : start.map((value, i) => (1 - strength) * value + strength * end[i]));

async function interpolate(card, { points, frames = 9, loop = false, steps = card.steps.generate, fps, scale }, context) {
  const size = card.shape.reduce((product, side) => product * side);
  const ends = points.map(async ({ seed, index = 0, image }) => {
    return image ? (await toRow(fromBase64(image), card)).row : latent(seed, index, size);
  });
  const rows = path(await Promise.all(ends), frames, loop);
  const first = await context.backend.apply(card, rows, context);
  const made = await context.backend.applyOften(card, first, steps - 1, context);
  const shown = loop ? [...made, made[0]] : made;
  if (context.accept !== "application/json") return toFile(shown, card, { fps, scale });
  const images = shown.map(async (row, index) => {
    const measured = { distance: distance(rows[index % rows.length], first[index % rows.length]), drift: null };
    const t = index / (frames - 1);
    return { index, ...(await encoded(row, card)), steps, converged: false, ...measured, trajectory: null, t };
  });
  return { images: await Promise.all(images) };
}

const toFile = async (...picture) => new Blob([await toPng(...picture)], { type: "image/png" });
