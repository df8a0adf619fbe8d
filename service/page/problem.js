/** Why something cannot be done: an error response (problem+json), or a failure to reach the service. */
export class Problem extends Error {
  constructor({ detail, status = 0, code = "", request_id: requestId = "", retryAfter = null, retry = true, offline = false }) {
    super(detail);
    Object.assign(this, { status, code, requestId, retryAfter, retry, offline });
  }
}
