// The endpoints of the API that the page uses, run by onnxruntime-web with one thread.

import { readFile, readIndex } from "./files.js";
import { coloured, fromBase64, sized, splitLuma, toBase64, toKeep, toPng, toRow } from "./images.js";
import { latent, path } from "./latents.js";
import { Tiling } from "./tiles.js";

const LIMITS = { n: 64, images: 1, steps: 1000, frames: 256, pixels: 16_000_000 };
const ROWS = 4; // of a model call: a drawing does not wait longer

/** Let messages arrive; timers would take 4 ms. */
const turn = () =>
  new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => resolve(port1.close());
    port2.postMessage(null);
  });

/** Lets one task run at a time, urgent ones first. */
class Turns {
  #waiting = { urgent: [], other: [] };
  #busy = false;

  async run(urgent, task) {
    if (this.#busy) await new Promise((resolve) => this.#waiting[urgent ? "urgent" : "other"].push(resolve));
    this.#busy = true;
    try {
      await turn();
      return await task();
    } finally {
      const next = this.#waiting.urgent.shift() ?? this.#waiting.other.shift();
      if (next) next();
      else this.#busy = false;
    }
  }
}

const mean = (values, map) => values.reduce((sum, value, i) => sum + map(value, i), 0) / values.length;
const distance = (a, b) => mean(a, (value, i) => Math.abs(value - b[i]));

export class Backend {
  #index = null; // promises
  #runtime = null;
  #sessions = new Map();
  #turns = new Turns();

  async call(path, options, context) {
    this.#index ??= readIndex();
    const { models, failures, default: usual } = await this.#index.catch((error) => {
      this.#index = null;
      throw error;
    });
    if (path === "models") return { models, failures, default: usual, limits: LIMITS };
    if (path === "v2/models/stats") return { model_stats: [] };
    const reference = options.model ?? path.replace("models/", "");
    const card = models.find(({ name, version }) => `${name}/${version}` === reference);
    if (!card) throw new Error(`There is no model ${reference}.`);
    if (path.startsWith("models/")) return card;
    return { generate, project, "latent-interpolate": interpolate }[path](card, options, { ...context, backend: this });
  }

  /**
   * f of rows, once.
   *
   * @param {Float32Array[]} rows
   * @returns {Promise<Float32Array[]>}
   */
  async apply(card, rows, { signal, urgent = false }) {
    const made = [];
    for (let i = 0; i < rows.length; i += ROWS) {
      const some = rows.slice(i, i + ROWS);
      const y = await this.#turns.run(urgent, async () => {
        signal.throwIfAborted();
        const session = await this.#session(card);
        const x = new Float32Array(some.length * some[0].length);
        some.forEach((row, at) => x.set(row, at * row.length));
        const { Tensor } = await this.#runtime;
        return (await session.run({ x: new Tensor("float32", x, [some.length, ...card.shape]) })).y.data;
      });
      made.push(...some.map((row, at) => y.slice(at * row.length, (at + 1) * row.length)));
    }
    return made;
  }

  async applyOften(card, rows, steps, context) {
    let made = rows;
    for (let step = 0; step < steps; step++) made = await this.apply(card, made, context);
    return made;
  }

  async #session(card) {
    const { digest } = card;
    if (!this.#sessions.has(digest)) this.#sessions.set(digest, this.#open(card));
    try {
      return await this.#sessions.get(digest);
    } catch (error) {
      this.#sessions.delete(digest);
      const missing = error instanceof TypeError; // of fetch: not there, or not the file that was meant
      const reason = missing ? "its file could not be loaded whole" : String(error.message ?? error).split("\n")[0];
      const problem = new Error(`The model ${card.title || card.name} cannot run here: ${reason}.`);
      throw Object.assign(problem, { retry: missing, fatal: !missing }); // out of memory, the runtime is of no use
    }
  }

  async #open(card) {
    const [model, { InferenceSession }] = await Promise.all([readFile(card.file), this.#startRuntime()]);
    return InferenceSession.create(model, { executionProviders: ["wasm"] });
  }

  #startRuntime() {
    this.#runtime ??= this.#loadRuntime();
    return this.#runtime.catch((error) => {
      this.#runtime = null;
      throw error;
    });
  }

  async #loadRuntime() {
    const { runtime } = await this.#index;
    const [ort, wasmBinary] = await Promise.all([import("../runtime/ort.wasm.min.js"), readFile(runtime)]);
    const mjs = new URL("../runtime/ort-wasm-simd-threaded.js", import.meta.url).href;
    Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary, wasmPaths: { mjs } });
    return ort;
  }
}

async function generate(card, { n = 1, seed, offset = 0, steps = card.steps.generate, score = false }, context) {
  const size = card.shape.reduce((product, side) => product * side);
  const start = performance.now();
  const noise = Array.from({ length: n }, (_, i) => latent(seed, offset + i, size));
  const rows = await context.backend.applyOften(card, noise, steps, context);
  const next = score ? await context.backend.apply(card, rows, context) : [];
  const images = rows.map(async (row, i) => {
    const drift = score ? distance(next[i], row) : null;
    return { index: offset + i, data: toBase64(await toPng([row], card)), drift };
  });
  const timing = { decode_ms: 0, queue_ms: 0, compute_ms: performance.now() - start, encode_ms: 0 };
  return { images: await Promise.all(images), timing };
}

async function project(card, options, { accept, emit, ...context }) {
  const [steps, strength] = [Number(options.steps ?? card.steps.project), Number(options.strength ?? 1)];
  const score = String(options.score) === "true"; // of a form, or of JSON
  const record = (options.record ?? "").split(",").filter(Boolean).map(Number);
  const invert = { true: true, false: false }[options.invert];
  const whole = await sized(card, options.image);
  const seen = card.color === "luma" ? coloured(whole) : whole;
  const input = await toRow(options.image, seen, { invert });
  const { luma: x, chroma } = card.color === "luma" ? splitLuma(input) : { luma: input };
  const keep = options.mask && (await toKeep(options.mask, whole));
  const shown = (row) => (chroma ? chroma.map((value, i) => value + row[i % row.length]) : row);
  const encode = async (row) => toBase64(await toPng([shown(blend(x, row, strength))], chroma ? seen : whole));
  if (strength === 0 && accept === "image/png") return toFile([shown(x)], chroma ? seen : whole); // what f would see

  const tiling = card.tiles && new Tiling(whole.shape, card);
  const tile = tiling ? { ...card, shape: tiling.shape } : card;
  const urgent = steps < LIMITS.steps / 20;
  const apply = async (rows) => (await context.backend.apply(tile, [rows], { ...context, urgent }))[0];
  const progress = { steps_done: 0, steps };
  if (tiling) Object.assign(progress, { rows_done: 0, rows: tiling.count * (steps + score) });
  const onTile = () => emit("progress", { ...progress, rows_done: ++progress.rows_done });
  const f = (image) => (tiling ? tiling.map(image, apply, onTile) : apply(image));

  const trajectory = [];
  let [row, moved, last] = [x, 0, null];
  for (let step = 0; step <= steps; step++) {
    let change = null;
    if (step > 0) {
      const next = await f(row);
      if (step === 1) moved = distance(next, row);
      if (keep) x.forEach((value, i) => keep[i % keep.length] && (next[i] = value));
      [row, change] = [next, distance(next, row)];
    }
    progress.steps_done = step;
    if (!record.includes(step) && step < steps) continue;
    last = { step, data: await encode(row), change };
    if (record.includes(step)) trajectory.push(last);
    emit("step", last);
    emit("progress", { ...progress });
  }
  const drift = score ? distance(await f(row), row) : null;
  const answer = { images: [{ data: last.data, distance: moved, drift, trajectory }] };
  emit("done", answer);
  return answer;
}

const blend = (start, end, strength) => (strength === 1 ? end : start.map((value, i) => (1 - strength) * value + strength * end[i]));

async function interpolate(card, { points, frames, loop, fps, scale }, context) {
  const size = card.shape.reduce((product, side) => product * side);
  const ends = points.map(({ seed, index, image }) => (image ? toRow(fromBase64(image), card) : latent(seed, index, size)));
  const rows = path(await Promise.all(ends), frames, loop);
  const made = await context.backend.applyOften(card, rows, card.steps.generate, context);
  return toFile(loop ? [...made, made[0]] : made, card, { fps, scale });
}

const toFile = async (...picture) => new Blob([await toPng(...picture)], { type: "image/png" });
