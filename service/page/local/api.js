// Calls as those of the HTTP API, answered by a worker of this browser. `ign site` puts this file where the other
// `api.js` is on the page of a service.

import { Problem } from "./problem.js";

export { Problem };

// A function that returns a vector: valid where WebAssembly has SIMD.
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11];
const UNABLE = "This browser cannot run the models: it has no WebAssembly with SIMD.";

const trusted = { createScriptURL: (url) => url };
const policy = globalThis.trustedTypes?.createPolicy("ign", trusted) ?? trusted;
const ROOT = new URL("../", import.meta.url).href; // of the site, also for pages elsewhere
const calls = new Map(); // id → {resolve, reject, onEvent}
let last = 0; // id
let worker = null;

export const hasApiKey = () => false;
export const setApiKey = () => {};

/** No command does what the page did, for there is no service. */
export const curlCommand = () => "";

/**
 * The result of one call.
 *
 * @param {string} path of the API, such as "generate"
 * @param {{json?: object, form?: FormData, accept?: string, signal?: AbortSignal, onEvent?: Function}} request
 * @returns {Promise<object | Blob>} a Blob if a picture is to be accepted
 * @throws {Problem}
 */
export async function callJson(path, { json, form, accept, signal, onEvent } = {}) {
  const runs = Boolean(json || form);
  if (runs && !canRun()) throw new Problem({ detail: UNABLE, retry: false });
  signal?.throwIfAborted();
  const port = (worker ??= startWorker());
  const id = ++last;
  const result = await new Promise((resolve, reject) => {
    calls.set(id, { resolve, reject, onEvent });
    signal?.addEventListener("abort", () => {
      port.postMessage({ id, abort: true });
      calls.delete(id);
      reject(signal.reason);
    });
    port.postMessage({ id, path, options: json ?? Object.fromEntries(form ?? []), accept });
  });
  if (runs) keepPage();
  return result;
}

/** As `callJson`, for a picture. */
export const callApi = async (path, request) => new Response(await callJson(path, request));

/** The events of a call, as [name, data]. */
export async function* streamEvents(path, request) {
  const events = new ReadableStream({
    start(controller) {
      const onEvent = (event) => controller.enqueue(event);
      callJson(path, { ...request, onEvent }).then(() => controller.close(), (error) => controller.error(error));
    },
  }).getReader();
  for (;;) {
    const { value, done } = await events.read();
    if (done) return;
    yield value;
  }
}

function canRun() {
  return typeof WebAssembly === "object" && WebAssembly.validate(Uint8Array.from(SIMD));
}

/** Start the worker, which starts those of `runner.js`; from a Blob: only such ones are under the page's policy. */
function startWorker() {
  const url = (path) => JSON.stringify(new URL(path, ROOT).href);
  const script = `const trusted = { createScriptURL: (url) => url };
    const policy = globalThis.trustedTypes?.createPolicy("ign", trusted) ?? trusted;
    importScripts(policy.createScriptURL(${url("runtime/xz-decompress.min.js")}));
    const startRunner = () => new Worker(policy.createScriptURL(location.href), { name: "runner" });
    const program = import(name ? ${url("page/runner.js")} : ${url("page/worker.js")});
    const fail = (error) => postMessage({ broken: String(error) });
    onmessage = ({ data }) => program.then(({ answer }) => answer(data), fail);`;
  const address = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  const started = new Worker(policy.createScriptURL(address));
  const fail = () => {
    worker = null; // the next call tries again
    const problem = new Problem({ detail: "The program that runs the models could not be loaded.", status: 503 });
    calls.forEach(({ reject }) => reject(problem));
    calls.clear();
  };
  started.addEventListener("error", fail);
  started.addEventListener("message", ({ data: { id, broken, event, result, problem } }) => {
    if (broken) return fail();
    if (event) return calls.get(id)?.onEvent?.(event);
    if (problem) calls.get(id)?.reject(new Problem(problem));
    else calls.get(id)?.resolve(result);
    return calls.delete(id);
  });
  return started;
}

let kept = false;

/** Keep the page for the next visit, which then needs no network; once, after the first picture, which comes first. */
function keepPage() {
  const isSite = new URL("./", document.baseURI).href === ROOT;
  if (!kept && isSite) navigator.serviceWorker?.register(policy.createScriptURL("service-worker.js")).catch(() => {});
  kept = true;
}
