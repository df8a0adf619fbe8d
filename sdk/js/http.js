// One attempt of a call: it sends the request by fetch and reads the response, within limits.

import { IgnError } from "./errors.js";

const MAX_ANSWER_BYTES = 2 ** 30;
const MAX_TIMER_MS = 2 ** 31 - 1; // of setTimeout

/** Seconds of a clock that only goes forward. */
export const now = () => performance.now() / 1000;

/** Wait; an abort ends it with its reason. */
export const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const abort = () => [clearTimeout(timer), reject(signal.reason)];
    const end = () => [signal?.removeEventListener("abort", abort), resolve()];
    const timer = setTimeout(end, Math.min(seconds * 1000, MAX_TIMER_MS));
    signal?.addEventListener("abort", abort, { once: true });
  });

/** A controller that another signal aborts, too, until `unlink` is called. */
export function linked(signal) {
  const controller = new AbortController();
  const abort = () => controller.abort(signal.reason);
  if (signal?.aborted) abort();
  signal?.addEventListener("abort", abort);
  return { controller, unlink: () => signal?.removeEventListener("abort", abort) };
}

/** How long the client waits: until the end of the attempt or the next event, and of the call. */
export class Limit {
  #link;
  #timer;
  #late = false;

  constructor(path, ends, outer) {
    this.#link = linked(outer);
    Object.assign(this, { path, ends, outer, signal: this.#link.controller.signal });
  }

  /** Begin to wait anew, for so many seconds. */
  renew(seconds) {
    clearTimeout(this.#timer);
    const left = Math.max(0, Math.min(seconds, this.ends - now())) * 1000;
    const abort = () => {
      this.#late = true;
      this.#link.controller.abort();
    };
    if (left <= MAX_TIMER_MS) this.#timer = setTimeout(abort, left);
  }

  end() {
    clearTimeout(this.#timer);
    this.#link.unlink();
  }

  /** What the caller gets for an error of fetch or of a read. */
  explain(cause) {
    if (cause instanceof IgnError) return cause;
    if (this.outer?.aborted) return this.outer.reason;
    if (this.#late) return new IgnError(`${this.path}: no answer in time`, { code: "timed_out", retryable: true });
    const reason = cause.cause?.message || cause.message;
    return new IgnError(`${this.path}: ${reason}`, { code: "connection_failed", retryable: true, cause });
  }
}

/**
 * Send a request and read the response; of a stream of events only its first chunk, and `rest` yields the others.
 *
 * @returns {Promise<{status: number, headers: Headers, content: Uint8Array, limit: Limit, rest?: AsyncGenerator}>}
 */
export async function send(fetch, url, init, limit, streams) {
  let response;
  try {
    response = await fetch(url, { ...init, signal: limit.signal, redirect: "manual", cache: "no-store" });
  } catch (error) {
    limit.end();
    throw limit.explain(error);
  }
  const { status, headers } = response;
  const rest = chunksOf(response, limit);
  if (streams && status === 200 && headers.get("Content-Type")?.startsWith("text/event-stream")) {
    return { status, headers, content: (await rest.next()).value ?? new Uint8Array(), limit, rest };
  }
  const chunks = [];
  for await (const chunk of rest) chunks.push(chunk);
  return { status, headers, content: new Uint8Array(await new Blob(chunks).arrayBuffer()), limit };
}

/** The content in pieces. Ending the iteration closes the connection, which stops the computation. */
async function* chunksOf(response, limit) {
  const reader = response.body?.getReader();
  let received = 0; // bytes
  try {
    for (;;) {
      const { value, done } = (await reader?.read()) ?? { done: true };
      if (done) return;
      if ((received += value.length) > MAX_ANSWER_BYTES) {
        throw new IgnError(`a response of more than ${MAX_ANSWER_BYTES} bytes`, { code: "unexpected_answer" });
      }
      yield value;
    }
  } catch (error) {
    throw limit.explain(error);
  } finally {
    limit.end();
    reader?.cancel().catch(() => {});
  }
}

/** Type and data of the server-sent events in a response, whose chunks may end anywhere; comments have no data. */
export async function* eventsOf({ content, rest }) {
  const decoder = new TextDecoder();
  let pending = [];
  for (let chunk = content; chunk; { value: chunk } = await rest.next()) {
    const text = decoder.decode(chunk, { stream: true });
    pending.push(text);
    if (!text.includes("\n")) continue; // a long line is joined once
    const blocks = pending.join("").split("\n\n");
    pending = [blocks.pop()];
    for (const block of blocks) {
      const { event, data } = Object.fromEntries(block.split("\n").map((line) => line.match(/^(\w*):? ?(.*)$/s)?.slice(1) ?? []));
      if (data !== undefined) yield [event, data];
    }
  }
}
