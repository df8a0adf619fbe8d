// Calls of the service: addresses are relative to the page, so that it also works behind a proxy's path prefix.

const KEY = "ign-api-key";

/** What the service says went wrong, as problem+json, or that it cannot be reached. */
export class Problem extends Error {
  constructor({ detail, status = 0, code = "", request_id: requestId = "", retryAfter = null, retry = true }) {
    super(detail);
    Object.assign(this, { status, code, requestId, retryAfter, retry });
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

export const address = (path) => new URL(path, document.baseURI).href;

/**
 * Ask the service.
 *
 * @param {string} path relative, such as "generate"
 * @param {{json?: object, form?: FormData, accept?: string, signal?: AbortSignal}} request
 * @returns {Promise<Response>} of status 200
 * @throws {Problem}
 */
export async function ask(path, { json, form, accept = "application/json", signal } = {}) {
  const headers = { Accept: accept };
  if (json) headers["Content-Type"] = "application/json";
  if (hasKey()) headers.Authorization = `Bearer ${sessionStorage.getItem(KEY)}`;
  let response;
  try {
    response = await fetch(address(path), {
      method: json || form ? "POST" : "GET",
      body: json ? JSON.stringify(json) : form,
      headers,
      signal,
      credentials: "same-origin",
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ detail: "The service cannot be reached.", code: "unreachable" });
  }
  if (response.ok) return response;
  throw await problemOf(response);
}

async function problemOf(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    // not from the service, but from a proxy before it
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
    if (!hasKey()) problem.message = "This service needs an API key.";
    sessionStorage.removeItem(KEY);
    dispatchEvent(new CustomEvent("key-needed"));
  }
  return problem;
}

/**
 * A command line that does what the page did, and writes a picture.
 *
 * @param {string} path
 * @param {{json?: object, fields?: [string, string][], accept: string, file: string}} request
 */
export function curl(path, { json, fields = [], accept, file }) {
  const words = ["curl", quoted(address(path))];
  if (hasKey()) words.push('-H "Authorization: Bearer $IGN_API_KEY"');
  words.push(`-H 'Accept: ${accept}'`);
  for (const [name, value] of fields) words.push(`-F ${quoted(`${name}=${value}`)}`);
  // A picture in the JSON is read from a file: @name stands for its base64.
  if (json) words.push(`--json ${quoted(JSON.stringify(json)).replace(/@([\w-]+\.png)/g, `'"$(base64 -w0 $1)"'`)}`);
  words.push("-o", file);
  return words.join(" ");
}

const quoted = (text) => (/^[\w./:=@,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
