// The worker of a page without a server: answers the calls of `api.js`.

import { Backend } from "./backend.js";

const backend = new Backend();
const running = new Map(); // id → AbortController

export async function answer({ id, path, options, accept, abort: isOver }) {
  if (isOver) return running.get(id)?.abort();
  const abort = new AbortController();
  running.set(id, abort);
  try {
    const context = { signal: abort.signal, accept, emit: (...event) => postMessage({ id, event }) };
    postMessage({ id, result: await backend.call(path, options, context) });
  } catch (error) {
    const { message: detail, status, code, retry = true } = error;
    if (!abort.signal.aborted) postMessage({ id, problem: { detail, status, code, retry } });
  } finally {
    running.delete(id);
  }
  return undefined;
}
