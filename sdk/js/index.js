// Client of ign-service: the calls of its HTTP API, with retries, typed errors and events. `index.d.ts` documents it.

import { FORMS, Picture, documentOf, eventReader, fileOf, imagesOf, joined, limitsOf, scoresOf, textOf } from "./answers.js";
import { IgnError, invalid, placed, statusError, understood } from "./errors.js";
import { Limit, eventsOf, linked, now, pause, send } from "./http.js";
import { countOf, formOf, groups, json, latents, pictures } from "./inputs.js";

export { IgnError, Picture };

const TIMEOUT_S = 30;
const GRACE_S = 1; // added to the timeout, so that the service's 504 at its deadline still arrives
const EVENT_S = 30; // between two events of a stream; the service sends its progress each second
const EVENTS = ["step", "progress", "done", "error"];
const CONCURRENT = 4; // requests of one call that run at a time
const FEW = 16; // every service takes so many images in a request unless it is configured otherwise
const SMALL = 4 << 20; // bytes that every service takes
const ENLARGED = 1 << 10; // images of one request × scale²
const ROOM = 1 << 16; // bytes of a body for the options

/** How many images one request may have: enlarged ones are fewer, so that they keep below the limit of pixels. */
const mostOf = (scale, limit = FEW) => Math.max(1, Math.min(limit, scale > 0 ? Math.floor(ENLARGED / scale ** 2) : limit));

/** A URL without the slash at its end; in a page it may be relative. */
function rootOf(baseUrl) {
  let href = "";
  try {
    href = new URL(baseUrl, globalThis.document?.baseURI).href;
  } catch {
    // said below
  }
  if (/^https?:\/\/[^/@]+\/[^?#]*$/.test(href)) return href.replace(/\/+$/, "");
  throw invalid("baseUrl", "expected an http or https URL without user name, query and fragment");
}

/** What a site of `ign site` answers: its worker runs the models in this browser. */
function localFetch(root) {
  if (!globalThis.document || !globalThis.Worker) throw invalid("local", "only a page in a browser can run the models");
  return async (url, init) => {
    const { answer } = await import(/* webpackIgnore: true */ /* @vite-ignore */ `${root}/page/fetch.js`);
    return answer(url.slice(root.length), init);
  };
}

function seconds(name, value) {
  if (value === null) return Infinity;
  if (value === undefined || (typeof value === "number" && value > 0)) return value;
  throw invalid(name, "expected seconds above 0, or null for no limit");
}

/** The options of the client itself, and `sent`, those of the API. */
function parted({ signal, timeout, deadline, requestId, ...sent } = {}) {
  if (requestId !== undefined && !/^[\w.-]{1,128}$/.test(requestId)) {
    throw invalid("requestId", "expected 1 to 128 of A-Z a-z 0-9 . _ -");
  }
  return { signal, requestId, timeout: seconds("timeout", timeout), deadline: seconds("deadline", deadline), sent };
}

// A call: what `parted` returns, with path, body, and the images that are wanted.

const wanted = ({ format = "png" }, total = null, first = 0) => ({ format, total, first });

function generation(options) {
  const { sent, ...own } = parted(options);
  return { ...own, path: "/generate", sent, body: json(sent), wanted: wanted(sent, sent.n ?? 1, sent.offset ?? 0) };
}

async function uploading(path, images, options) {
  const { sent, ...own } = parted(options);
  const contents = await pictures(images);
  return { ...own, path, sent, contents, body: await formOf(contents, sent), wanted: wanted(sent, countOf(contents)) };
}

async function mixing(path, field, values, options, total) {
  const { sent, ...own } = parted(options);
  return { ...own, path, body: json({ ...sent, [field]: await latents(values, field) }), wanted: wanted(sent, total) };
}

const failure = (response) => statusError(response.status, response.headers, textOf(response));
const asking = (path, options) => ({ ...parted(options), path });
const projection = (...request) => uploading("/project", ...request);
const interpolation = (...request) => mixing("/latent-interpolate", "points", ...request);
const arithmetic = (...request) => mixing("/latent-arithmetic", "terms", ...request, 1);

export class Client {
  #root;
  #headers;
  #timeout;
  #deadline;
  #maxRetries;
  #fetch;
  #limits; // of the service, once a call may exceed them

  constructor(baseUrl = "http://127.0.0.1:8000", options = {}) {
    const { apiKey, local = false, timeout = local ? null : TIMEOUT_S, deadline = null, maxRetries, fetch } = options;
    this.#root = rootOf(baseUrl);
    try {
      this.#headers = new Headers(apiKey ? { Authorization: `Bearer ${apiKey}` } : {});
    } catch (cause) {
      throw invalid("apiKey", "it cannot be sent in a header", cause);
    }
    [this.#timeout, this.#deadline] = [seconds("timeout", timeout), seconds("deadline", deadline)];
    this.#maxRetries = maxRetries ?? Infinity;
    this.#fetch = local ? localFetch(this.#root) : (...request) => (fetch ?? globalThis.fetch)(...request);
  }

  async generate(options = {}) {
    const { n = 1, scale = 1, offset = 0 } = options;
    if (!Number.isSafeInteger(n) || n <= mostOf(scale)) return this.#json(generation(options), imagesOf);
    const seed = options.seed ?? Math.floor(Math.random() * 2 ** 32); // the same for all parts
    return this.#parts(parted(options), (limits) => {
      const most = mostOf(scale, limits.n);
      const starts = Array.from({ length: Math.ceil(n / most) }, (_, i) => i * most);
      const part = (start) => generation({ ...options, seed, offset: offset + start, n: Math.min(most, n - start) });
      return starts.map((start) => (rest) => this.#json({ ...part(start), ...rest }, imagesOf));
    });
  }

  project(images, options) {
    return this.#upload(projection(images, options), imagesOf);
  }

  score(images, options) {
    return this.#upload(uploading("/score", images, options), scoresOf);
  }

  async latentInterpolate(points, options) {
    return this.#json(await interpolation(points, options), imagesOf);
  }

  async latentArithmetic(terms, options) {
    return this.#json(await arithmetic(terms, options), imagesOf);
  }

  async generateAs(form, options) {
    return this.#file(form, generation(options));
  }

  async projectAs(form, images, options) {
    return this.#file(form, await projection(images, options));
  }

  async latentInterpolateAs(form, points, options) {
    return this.#file(form, await interpolation(points, options));
  }

  async latentArithmeticAs(form, terms, options) {
    return this.#file(form, await arithmetic(terms, options));
  }

  async *streamGenerate(options) {
    yield* this.#stream(generation(options));
  }

  async *streamProject(images, options) {
    yield* this.#stream(await projection(images, options));
  }

  async models(options) {
    return this.#json(asking("/models", options));
  }

  async model(name, options) {
    return this.#json(asking(`/models/${String(name).split("/").map(encodeURIComponent).join("/")}`, options));
  }

  async health(options) {
    return this.#json(asking("/healthz", options));
  }

  async ready(options) {
    return this.#run({ ...asking("/readyz", options), statuses: [200, 503] }, (response) => {
      const ready = response.status === 200;
      return { ready, detail: ready ? documentOf(response).status : failure(response).detail };
    });
  }

  #json(call, parse = (document) => document) {
    return this.#run(call, (response) => parse(documentOf(response), call.wanted));
  }

  #file(form, call) {
    if (!Object.hasOwn(FORMS, form)) throw invalid("form", `expected one of ${Object.keys(FORMS).join(", ")}, not ${form}`);
    return this.#run({ ...call, accept: FORMS[form] }, (response) => fileOf(form, response));
  }

  async *#stream(call) {
    const response = await this.#run({ ...call, accept: "text/event-stream", streams: true }, (response) => {
      if (!response.rest) throw new TypeError("it is no stream of events");
      return response;
    });
    const { headers, limit, rest } = response;
    const requestId = headers.get("X-Request-ID");
    const read = eventReader(call.wanted, call.sent.record ?? []);
    try {
      for await (const [type, data] of eventsOf(response)) {
        if (!EVENTS.includes(type)) continue; // of a later version of the service
        const event = understood(() => {
          const document = JSON.parse(data);
          if (type === "error") throw statusError(document.status, headers, data);
          return read(type, document);
        }, `an event ${type} that cannot be read`, requestId);
        limit.renew(Infinity); // while the caller works
        yield event;
        if (type === "done") return;
        limit.renew(EVENT_S);
      }
      throw new IgnError("the stream ended before its answer", { code: "unexpected_answer", requestId });
    } finally {
      await rest.return();
    }
  }

  async #upload(building, parse) {
    const { contents, sent, ...call } = await building;
    const { scale = 1, mask } = sent;
    const size = contents.reduce((total, bytes) => total + bytes.length, 0);
    const isOne = contents.length === 1 || (contents.length <= mostOf(scale) && size <= SMALL && call.wanted.total !== null);
    if (isOne) return this.#json(call, parse);
    return this.#parts(call, (limits) => {
      const room = limits.body_bytes - ROOM - (call.body.get("mask")?.size ?? 0);
      return groups(contents, mostOf(scale, limits.images), room).map(([start, some]) => async (rest) => {
        const part = { body: await formOf(some, sent), wanted: wanted(sent, countOf(some)) };
        return this.#json({ ...call, ...part, ...rest, place: (error) => placed(error, start) }, parse);
      });
    });
  }

  /** Run the requests of one call, some at a time; the first error ends the others. */
  async #parts(call, partsOf) {
    const { signal, timeout, requestId } = call;
    const ends = this.#ends(call);
    this.#limits ??= await this.#json({ signal, timeout, requestId, ends, path: "/models" }, limitsOf);
    const { controller, unlink } = linked(signal);
    const waiting = partsOf(this.#limits).entries();
    const results = [];
    const lane = async () => {
      for (const [i, run] of waiting) results[i] = await run({ signal: controller.signal, ends });
    };
    try {
      await Promise.all(Array.from({ length: CONCURRENT }, lane));
    } finally {
      controller.abort();
      unlink();
    }
    return joined(results);
  }

  /** When a call ends that begins now. */
  #ends({ deadline = this.#deadline }) {
    return now() + deadline;
  }

  /**
   * Send a request until it succeeds, and parse the response. Every call may be repeated, because the service keeps no
   * state for callers. The last repetition begins before the deadline; without one, before the timeout has passed since
   * the first attempt.
   */
  async #run(call, parse) {
    const { signal, timeout = this.#timeout, ends = this.#ends(call) } = call;
    const begun = now();
    const givesUp = begun + [ends - begun, timeout, TIMEOUT_S].find(Number.isFinite);
    for (let retries = 0; ; retries++) {
      signal?.throwIfAborted();
      try {
        return await this.#attempt({ ...call, ends, timeout: Math.min(timeout, ends - now()) }, parse);
      } catch (error) {
        const backoff = 0.5 * 2 ** Math.min(retries, 4) * (0.5 + 0.5 * Math.random());
        const delay = Math.max(backoff, (error?.retryAfter ?? 0) * (1 + 0.1 * Math.random()));
        const isOver = retries >= this.#maxRetries || now() + delay > givesUp;
        if (!(error instanceof IgnError && error.retryable) || isOver) throw error;
        await pause(delay, signal);
      }
    }
  }

  async #attempt({ path, body, accept = "application/json", statuses = [200], timeout, ends, ...call }, parse) {
    const headers = new Headers(this.#headers);
    headers.set("Accept", accept);
    if (typeof body === "string") headers.set("Content-Type", "application/json");
    if (call.requestId) headers.set("X-Request-ID", call.requestId);
    // The service stops at the client's timeout, because nobody would read the response.
    if (timeout < Infinity) headers.set("X-Request-Timeout", Math.max(timeout, 0.001).toFixed(3));
    const limit = new Limit(path, ends, call.signal);
    limit.renew(timeout + GRACE_S);
    const init = { method: body === undefined ? "GET" : "POST", headers, body };
    const response = await send(this.#fetch, this.#root + path, init, limit, call.streams);
    if (!statuses.includes(response.status)) {
      throw call.place ? call.place(failure(response)) : failure(response);
    }
    const requestId = response.headers.get("X-Request-ID");
    return understood(() => parse(response), `${path} answered with something that is not its answer`, requestId);
  }
}
