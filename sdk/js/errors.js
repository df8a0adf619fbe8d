const RETRIED = new Set([408, 429, 502, 503, 504]);

/** Why a call failed; `index.d.ts` documents the members. */
export class IgnError extends Error {
  constructor(detail, { status = 0, code, requestId = null, retryAfter = null, retryable = false, errors = [], cause }) {
    const text = status ? `${status} ${code}: ${detail}` : detail;
    super(requestId ? `${text} (request ${requestId})` : text, { cause });
    Object.assign(this, { name: "IgnError", status, code, detail, requestId, retryAfter, retryable, errors });
  }
}

export const invalid = (field, reason, cause) => new IgnError(`${field}: ${reason}`, { code: "invalid_input", cause });

/** The result of a function that parses what a server sent, whose errors are the server's. */
export function understood(parse, what, requestId) {
  try {
    return parse();
  } catch (cause) {
    if (cause instanceof IgnError) throw cause;
    throw new IgnError(`${what}: ${cause.message}`, { code: "unexpected_answer", requestId, cause });
  }
}

/** The error of a response that is no success: a problem document (RFC 9457), or the error page of a proxy. */
export function statusError(status, headers, text) {
  let problem = {};
  try {
    problem = Object(JSON.parse(text));
  } catch {
    // no JSON
  }
  const { detail = "an error without a description", code = "unknown", errors } = problem;
  return new IgnError(String(detail), {
    status,
    code: String(code),
    requestId: headers.get("X-Request-ID") ?? problem.request_id,
    retryAfter: Number(headers.get("Retry-After")) || null,
    retryable: RETRIED.has(status) && headers.get("X-Should-Retry") !== "false",
    errors: Array.isArray(errors) ? errors.filter((each) => typeof each?.field === "string") : [],
  });
}

/** An error with the indices of the whole call, of a request whose images begin at `start`. */
export function placed(error, start) {
  const moved = (field) => field.replace(/^image(s?)(\.\d{1,9})?$/, (_, s, at) => `images.${Number(at?.slice(1) ?? 0) + start}`);
  const detail = error.detail.replace(/^[^:]*/, moved);
  return new IgnError(detail, { ...error, errors: error.errors.map((each) => ({ ...each, field: moved(each.field) })) });
}
