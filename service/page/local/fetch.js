// Requests of the HTTP API, of the JavaScript client with `local` (`sdk/js`), answered by the worker of this site.

import { Problem, callJson } from "./api.js";

// Path → its options here. Others are refused unless they are the default.
const RUN = ["model", "steps"];
const OPTIONS = {
  generate: [...RUN, "n", "seed", "offset", "score"],
  project: [...RUN, "strength", "record", "score", "resize", "invert", "image", "mask"],
  score: ["model", "resize", "invert", "image"],
  "latent-interpolate": [...RUN, "points", "frames", "loop"],
};
const DEFAULTS = { format: "png", noise_scale: 1, scale: 1, resample: "nearest", gap: 0, method: "slerp" };
const SEEDS = [0, 2 ** 32 - 1];
const BOUNDS = { n: [1, 64], steps: [1, 1000], frames: [2, 256], strength: [0, 1], seed: SEEDS, offset: SEEDS };
const CHOICES = { resize: ["fit", "crop", "stretch"], invert: ["auto", "true", "false"] };
let count = 0; // of requests

/**
 * As `fetch`.
 *
 * @param {string} path such as "/generate"
 * @param {{headers: Headers, body?: string | FormData, signal?: AbortSignal}} request
 * @returns {Promise<Response>}
 */
export async function answer(path, { headers, body, signal }) {
  const requestId = headers.get("X-Request-ID") ?? `local-${++count}`;
  const own = { headers: { "X-Request-ID": requestId } };
  try {
    if (["/healthz", "/readyz"].includes(path)) return Response.json({ status: "ready" }, own);
    const name = decodeURIComponent(path.slice(1));
    if (body === undefined) return Response.json(await callJson(name, { signal }), own);
    const requests = requestsOf(name, body);
    const accept = headers.get("Accept");
    if (accept === "text/event-stream") {
      own.headers["Content-Type"] = accept;
      return new Response(eventsOf(name, requests, { signal, requestId }), own);
    }
    if (accept !== "application/json") throw notSupported(`a response of ${accept}`);
    return Response.json({ ...(await run(name, requests, { signal })), request_id: requestId }, own);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    const problem = problemOf(error, requestId);
    return Response.json(problem, { status: problem.status, ...own });
  }
}

const notSupported = (what) => {
  return new Problem({ detail: `${what}: not available in the browser`, status: 501, code: "not_supported" });
};
const invalid = (detail) => new Problem({ detail, status: 422, code: "invalid_value" });

function problemOf({ message: detail, status, code }, requestId) {
  const field = /^([\w.]+):/.exec(detail)?.[1];
  const errors = field && [{ field, message: detail.slice(field.length + 2) }];
  const usual = status === 503 ? "not_ready" : "model_failure";
  return { status: status || 500, code: code || usual, detail, request_id: requestId, errors };
}

/** The requests of one image each, or the one request, whose answers are that of a request. */
function requestsOf(name, body) {
  const options = body instanceof FormData ? Object.fromEntries(body) : JSON.parse(body);
  if (!Object.hasOwn(OPTIONS, name)) throw notSupported(`/${name}`);
  for (const [key, value] of Object.entries(options)) {
    if (value === null) delete options[key];
    else if (!OPTIONS[name].includes(key) && String(DEFAULTS[key]) !== String(value)) throw notSupported(key);
  }
  for (const [key, [least, most]] of Object.entries(BOUNDS)) {
    const value = Number(options[key] ?? least);
    const isOne = value >= least && value <= most && (Number.isInteger(value) || key === "strength");
    if (!isOne) throw invalid(`${key}: expected ${least} to ${most}`);
  }
  for (const [key, values] of Object.entries(CHOICES)) {
    if (!values.includes(String(options[key] ?? values[0]))) throw invalid(`${key}: expected one of ${values.join(", ")}`);
  }
  for (const [i, { seed, index = 0, image }] of (options.points ?? []).entries()) {
    if (!image && !(Number.isInteger(seed) && Number.isInteger(index))) throw notSupported(`points.${i}`);
  }
  if (name === "generate") options.seed ??= Math.floor(Math.random() * 2 ** 32);
  if (!(body instanceof FormData)) return [{ json: options }];
  return body.getAll("image").map((image) => ({ form: Object.entries({ ...options, image }) }));
}

/** The answer of all requests, one after the other. */
async function run(name, requests, { signal, emit = () => {} }) {
  const results = [];
  for (const [i, request] of requests.entries()) {
    const onEvent = ([type, data]) => emit(type, data, i);
    const result = await callJson(name, { ...request, accept: "application/json", signal, onEvent }).catch((error) => {
      if (error?.status === 422) error.message = `images.${i}: ${error.message}`;
      throw error;
    });
    results.push(result);
    if (requests.length > 1) result.images[0].index = i;
  }
  return { ...results[0], images: results.flatMap(({ images }) => images) };
}

/** The bytes of a stream of events. */
function eventsOf(name, requests, { signal, requestId }) {
  const abort = new AbortController();
  signal?.addEventListener("abort", () => abort.abort(signal.reason));
  return new ReadableStream({
    async start(controller) {
      const send = (type, data) => {
        controller.enqueue(new TextEncoder().encode(`event: ${type}\ndata: ${JSON.stringify(data)}\n\n`));
      };
      const sent = new Set(); // places of the images whose last step was sent
      const emit = (type, data, index) => {
        if (type === "step") send(type, { index, format: "png", ...data });
        if (type === "progress") send(type, { rows_done: index, rows: requests.length, ...data });
        if (type === "done") sent.add(index);
      };
      try {
        const result = await run(name, requests, { signal: abort.signal, emit });
        for (const { index, steps: step, data, format } of result.images) {
          if (!sent.has(index)) send("step", { index, step, data, format, change: null });
        }
        const images = result.images.map((image) => ({ ...image, data: null, trajectory: null }));
        send("done", { ...result, images, request_id: requestId });
      } catch (error) {
        if (!(error instanceof Problem)) return controller.error(error);
        send("error", problemOf(error, requestId));
      }
      controller.close();
    },
    cancel: () => abort.abort(),
  });
}
