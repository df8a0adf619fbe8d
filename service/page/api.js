// Calls of the HTTP API. URLs are relative to the page, so that it also works behind a proxy that adds a path prefix.

import { Problem } from "./problem.js";

export { Problem };

const KEY = "ign-api-key";

export const hasApiKey = () => sessionStorage.getItem(KEY) !== null;

export function setApiKey(key) {
  sessionStorage.setItem(KEY, key);
}

export const absoluteUrl = (path) => new URL(path, document.baseURI).href;

/**
 * Send one request.
 *
 * @param {string} path relative, such as "generate"
 * @param {{json?: object, form?: FormData, accept?: string, signal?: AbortSignal}} request
 * @returns {Promise<Response>} of status 200
 * @throws {Problem}
 */
export async function callApi(path, { json, form, accept = "application/json", signal } = {}) {
  const headers = { Accept: accept };
  if (json) headers["Content-Type"] = "application/json";
  if (hasApiKey()) headers.Authorization = `Bearer ${sessionStorage.getItem(KEY)}`;
  let response;
  try {
    response = await fetch(absoluteUrl(path), {
      method: json || form ? "POST" : "GET",
      body: json ? JSON.stringify(json) : form,
      headers,
      signal,
      credentials: "same-origin",
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ detail: "The service cannot be reached.", offline: true });
  }
  if (response.ok) return response;
  throw await parseProblem(response);
}

/** The JSON of one response; see `callApi`. */
export const callJson = async (path, request) => (await callApi(path, request)).json();

/**
 * The events of a stream, as [name, data].
 *
 * @throws {Problem} also for an event `error`
 */
export async function* streamEvents(path, request) {
  const response = await callApi(path, { ...request, accept: "text/event-stream" });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const lines = Object.fromEntries(event.split("\n").map((line) => line.match(/^(\w*): ?(.*)$/)?.slice(1) ?? ["", ""]));
      if (!lines.data) continue; // a comment
      const data = JSON.parse(lines.data);
      if (lines.event === "error") throw new Problem(data);
      yield [lines.event, data];
    }
  }
}

async function parseProblem(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    // An error page of a proxy has no JSON.
  }
  const problem = new Problem({
    detail: body.detail ?? `${response.status} ${response.statusText}`,
    status: response.status,
    code: body.code,
    request_id: body.request_id ?? response.headers.get("X-Request-ID") ?? "",
    retryAfter: Number(response.headers.get("Retry-After")) || null,
    retry: response.headers.get("X-Should-Retry") !== "false" && (response.status >= 500 || response.status === 429),
  });
  if (response.status === 401) {
    const detail = hasApiKey() ? problem.message : ""; // of the key that was sent
    sessionStorage.removeItem(KEY);
    dispatchEvent(new CustomEvent("key-needed", { detail }));
  }
  return problem;
}

/**
 * The curl command that does what the page did.
 *
 * @param {string} path
 * @param {{json?: object, fields?: [string, string][], accept: string, file?: string}} request
 */
export function curlCommand(path, { json, fields = [], accept, file }) {
  const parts = ["curl", shellQuote(absoluteUrl(path))];
  if (hasApiKey()) parts.push('-H "Authorization: Bearer $IGN_API_KEY"');
  parts.push(`-H 'Accept: ${accept}'`);
  for (const [name, value] of fields) parts.push(`-F ${shellQuote(`${name}=${value}`)}`);
  // @name.png stands for the base64 of a file: replace it by a shell substitution.
  if (json) parts.push("-H 'Content-Type: application/json'", `-d ${shellQuote(JSON.stringify(json)).replace(/@([\w-]+\.png)/g, `'"$(base64 < $1 | tr -d "\\n")"'`)}`);
  if (file) parts.push("-o", file);
  return parts.join(" ");
}

const shellQuote = (text) => (/^[\w./:=@,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
