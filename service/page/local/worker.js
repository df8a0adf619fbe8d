// The worker of a page without a server: answers the calls of `api.js`.

import { Backend } from "./backend.js";

const backend = new Backend();
const running = new Map(); // id → AbortController

async function answer({ id, path, options, accept }) {
  const abort = new AbortController();
  running.set(id, abort);
  try {
    const context = { signal: abort.signal, accept, emit: (...event) => postMessage({ id, event }) };
    postMessage({ id, result: await backend.call(path, options, context) });
  } catch (error) {
    const { message: detail, status, code, retry = true, fatal = false } = error;
    if (fatal || !abort.signal.aborted) postMessage({ id, problem: { detail, status, code, retry, fatal } });
  } finally {
    running.delete(id);
  }
}

addEventListener("message", ({ data }) => {
  if (data.abort) running.get(data.id)?.abort();
  else answer(data);
});
postMessage({ ready: true });
