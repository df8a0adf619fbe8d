// A worker of `pool.js`: runs models by onnxruntime-web, with one thread.

import { readFile } from "./files.js";

let runtime = null; // a promise
const sessions = new Map(); // of promises, by the digests of models

/** Answer a task, {card, runtime, x, dims}: f of the rows x, or what went wrong. */
export async function answer({ card, x, dims, ...files }) {
  try {
    const session = await sessionOf(card, files.runtime);
    const { Tensor } = await runtime;
    const { y } = await session.run({ x: new Tensor("float32", x, dims) });
    postMessage({ y: y.data }, [y.data.buffer]);
  } catch (error) {
    sessions.delete(card.digest);
    const missing = error instanceof TypeError; // of fetch: not there, or not the file that was meant
    const reason = missing ? "its file could not be loaded whole" : String(error.message ?? error).split("\n")[0];
    const detail = `The model ${card.title || card.name} cannot run here: ${reason}.`;
    postMessage({ problem: { detail, retry: missing, status: missing ? 503 : 500 } });
  }
}

function sessionOf(card, file) {
  if (!sessions.has(card.digest)) sessions.set(card.digest, open(card, file));
  return sessions.get(card.digest);
}

async function open(card, file) {
  runtime ??= loadRuntime(file);
  const started = runtime.catch((error) => {
    runtime = null;
    throw error;
  });
  const [model, { InferenceSession }] = await Promise.all([readFile(card.file), started]);
  return InferenceSession.create(model, { executionProviders: ["wasm"] });
}

async function loadRuntime(file) {
  const [ort, wasmBinary] = await Promise.all([import("../runtime/ort.wasm.min.js"), readFile(file)]);
  const mjs = new URL("../runtime/ort-wasm-simd-threaded.js", import.meta.url).href;
  Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary, wasmPaths: { mjs } });
  return ort;
}
