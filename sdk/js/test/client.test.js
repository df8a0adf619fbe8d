// The client against a `fetch` that plays the service.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { Client, IgnError } from "@ign-service/client";

const encode = (text) => new TextEncoder().encode(text);
const member = (index) => ({
  index, data: btoa(`image ${index}`), format: "png", width: 1, height: 1, steps: 1, converged: false, distance: 0, drift: null, trajectory: null,
});
const TIMING = { decode_ms: 1, queue_ms: 0, compute_ms: 2, encode_ms: 0 };
const answer = (first = 0, n = 1, more = {}) => ({
  model: { name: "m", version: "1", digest: "sha256:0" }, request_id: "r", timing: TIMING,
  images: Array.from({ length: n }, (_, i) => ({ ...member(first + i), ...more })),
});
const ok = (document) => Response.json(document, { headers: { "X-Request-ID": "r" } });
const problem = (status, code, headers = {}, more = {}) =>
  Response.json({ status, code, detail: `why ${code}`, request_id: "r", ...more }, { status, headers });

/** A client whose requests the functions answer, in turn; the last one answers all others, too. */
function playing(replies, options) {
  const requests = [];
  const fetch = async (url, init) => {
    requests.push({ url, ...init });
    return replies[Math.min(requests.length, replies.length) - 1](requests.at(-1));
  };
  return { requests, client: new Client("http://service/prefix/", { fetch, ...options }) };
}

const fails = (promise, members) =>
  assert.rejects(promise, (error) => {
    assert.ok(error instanceof IgnError, error);
    for (const [name, value] of Object.entries(members)) assert.deepEqual(error[name], value, name);
    return true;
  });

test("a request carries what the API documents", async () => {
  const { client, requests } = playing([() => ok({ ...answer(), seed: 7 })], { apiKey: "key" });
  const { images, seed } = await client.generate({ seed: 7, noise_scale: 0.5, requestId: "mine", timeout: 2 });
  const [{ url, method, headers, body }] = requests;
  assert.deepEqual([url, method, JSON.parse(body)], ["http://service/prefix/generate", "POST", { seed: 7, noise_scale: 0.5 }]);
  const sent = ["Authorization", "Content-Type", "Accept", "X-Request-ID"].map((name) => headers.get(name));
  assert.deepEqual(sent, ["Bearer key", "application/json", "application/json", "mine"]);
  assert.ok(headers.get("X-Request-Timeout") <= 2);
  assert.deepEqual([seed, images[0].index, images[0].blob.type, images[0].trajectory], [7, 0, "image/png", []]);
  assert.deepEqual(images[0].bytes, encode("image 0"));
});

test("images of every type are a form, which a retry sends again", async () => {
  const { client, requests } = playing([() => problem(503, "draining"), () => ok(answer(0, 4))]);
  const bytes = encode("abcdef");
  const images = [new Blob([bytes]), bytes.buffer, new Uint8Array(bytes.buffer, 1, 2), new DataView(bytes.buffer)];
  await client.project(images, { mask: bytes, record: [0, 1], score: true, steps: undefined, tolerance: null });
  for (const { body, headers } of requests) {
    assert.equal(headers.get("Content-Type"), null); // fetch adds it, with a boundary
    const files = await Promise.all(body.getAll("image").map((file) => file.text()));
    assert.deepEqual(files, ["abcdef", "abcdef", "bc", "abcdef"]);
    assert.deepEqual([...body.keys()], ["record", "score", "image", "image", "image", "image", "mask"]);
    assert.deepEqual([body.get("record"), body.get("score")], ["0,1", "true"]);
  }
  assert.equal(requests.length, 2);
});

test("a path is the content of its file", async () => {
  const path = fileURLToPath(import.meta.url);
  const { client, requests } = playing([() => ok(answer()), () => ok(answer(0, 1, { t: 0 }))]);
  await client.project(path);
  await client.latentInterpolate([1, path]);
  const content = await readFile(path, "utf8");
  assert.equal(await requests[0].body.get("image").text(), content);
  assert.equal(atob(JSON.parse(requests[1].body).points[1].image), Buffer.from(content).toString("latin1"));
  await assert.rejects(client.project([path, "no/such.png"]), /images\.1: .*no\/such\.png/);
});

test("latents are seeds, images and arrays", async () => {
  const { client, requests } = playing([() => ok(answer(0, 1, { t: 0 }))]);
  const npy = Uint8Array.of(0x93, ...encode("NUMPY"));
  await client.latentInterpolate([1, { seed: "Ada", index: 3 }, new Blob(["ab"]), npy]);
  await client.latentArithmetic([1, { image: encode("ab"), weight: -0.5 }]);
  const [points, terms] = requests.map(({ body }) => JSON.parse(body));
  assert.deepEqual(points, { points: [{ seed: 1 }, { seed: "Ada", index: 3 }, { image: "YWI=" }, { latent: btoa("\x93NUMPY") }] });
  assert.deepEqual(terms, { terms: [{ seed: 1 }, { image: "YWI=", weight: -0.5 }] });
});

const broken = () => Promise.reject(Object.assign(new TypeError("fetch failed"), { cause: new Error("ECONNRESET") }));
for (const [name, reply] of [
  ["503", () => problem(503, "draining")],
  ["429", () => problem(429, "queue_full")],
  ["a proxy's 502", () => new Response("<html>", { status: 502 })],
  ["no connection", broken],
  ["a response that breaks off", () => new Response(new ReadableStream({ pull: () => broken() }))],
]) {
  test(`${name} is repeated`, async () => {
    const { client, requests } = playing([reply, () => ok(answer())]);
    assert.equal((await client.generate()).images.length, 1);
    assert.equal(requests.length, 2);
  });
}

for (const [name, reply, expected] of [
  ["422", () => problem(422, "invalid_value", {}, { errors: [{ field: "n", message: "no" }, null] }), { code: "invalid_value", errors: [{ field: "n", message: "no" }] }],
  ["500", () => problem(500, "internal"), { status: 500 }],
  ["a deadline out of reach", () => problem(504, "deadline_unreachable", { "X-Should-Retry": "false" }), { status: 504 }],
  ["a page", () => new Response("<html>"), { status: 0, code: "unexpected_answer" }],
  ["a redirect", () => new Response(null, { status: 307, headers: { Location: "/" } }), { status: 307, code: "unknown" }],
  ["another number of images", () => ok(answer(0, 2)), { code: "unexpected_answer", requestId: "r" }],
  ["other images", () => ok(answer(1, 1)), { code: "unexpected_answer" }],
  ["another format", () => ok(answer(0, 1, { format: "jpeg" })), { code: "unexpected_answer" }],
  ["damaged base64", () => ok(answer(0, 1, { data: "!" })), { code: "unexpected_answer" }],
]) {
  test(`${name} is an error at once`, async () => {
    const { client, requests } = playing([reply]);
    await fails(client.generate(), { retryable: false, ...expected });
    assert.equal(requests.length, 1);
  });
}

test("retries end with their number, and before a Retry-After beyond the deadline", async () => {
  const some = playing([() => problem(503, "draining")], { maxRetries: 1 });
  await fails(some.client.generate(), { status: 503, code: "draining", retryable: true, requestId: "r" });
  assert.equal(some.requests.length, 2);
  const late = playing([() => problem(503, "not_ready", { "Retry-After": "60" })], { deadline: 50 });
  await fails(late.client.generate(), { status: 503, retryAfter: 60 });
  assert.equal(late.requests.length, 1);
});

const never = ({ signal }) => new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));

test("a deadline ends the wait for a response, and for its end", async () => {
  const stalled = ({ signal }) => {
    const start = (controller) => signal.addEventListener("abort", () => controller.error(signal.reason));
    return new Response(new ReadableStream({ start }));
  };
  for (const reply of [never, stalled]) {
    const { client, requests } = playing([reply]);
    await fails(client.generate({ deadline: 0.05 }), { status: 0, code: "timed_out", retryable: true });
    assert.equal(requests.length, 1);
    assert.ok(Number(requests[0].headers.get("X-Request-Timeout")) <= 0.05);
  }
});

test("an abort ends a call with its reason, also between two attempts", async () => {
  const reason = new Error("enough");
  for (const reply of [never, () => problem(503, "draining", { "Retry-After": "20" })]) {
    const abort = new AbortController();
    const { client, requests } = playing([reply]);
    const call = client.generate({ signal: abort.signal });
    setTimeout(() => abort.abort(reason), 20);
    await assert.rejects(call, reason);
    await assert.rejects(client.generate({ signal: abort.signal }), reason);
    assert.equal(requests.length, 1);
  }
});

test("an endless response is not collected", async () => {
  const chunk = new Uint8Array(1 << 26);
  const { client } = playing([() => new Response(new ReadableStream({ pull: (controller) => controller.enqueue(chunk) }))]);
  await fails(client.generate(), { code: "unexpected_answer" });
});

test("what cannot be sent is not", async () => {
  const { client, requests } = playing([() => ok(answer())]);
  const unsendable = [
    () => client.generate({ noise_scale: NaN }),
    () => client.generate({ seed: 7n }),
    () => client.generate({ timeout: 0 }),
    () => client.generate({ requestId: "a b" }),
    () => client.generateAs("bmp"),
    () => client.project([]),
    () => client.project(["picture.png"]),
    () => client.project(Uint8Array.of(0x93, ...encode("NUMPY"))),
    () => client.latentInterpolate(7),
    () => client.latentInterpolate([1, "2"]),
    async () => new Client("http://user:secret@service"),
    async () => new Client("service"),
    async () => new Client("http://service", { apiKey: "a\nb" }),
  ];
  for (const call of unsendable) await fails(call(), { code: "invalid_input", status: 0, retryable: false });
  assert.equal(requests.length, 0);
});

const LIMITS = { n: 32, images: 32, body_bytes: 1 << 20 };

test("many images are several requests with one seed, four at a time", async () => {
  let [running, most] = [0, 0];
  const { client, requests } = playing([
    () => ok({ limits: LIMITS }),
    async ({ body }) => {
      const { seed, offset, n } = JSON.parse(body);
      most = Math.max(most, ++running);
      await new Promise((resolve) => setTimeout(resolve, Math.random() * 10));
      running--;
      return ok({ ...answer(offset, n), seed });
    },
  ]);
  const { images, seed, timing } = await client.generate({ n: 300, offset: 5, seed: null });
  assert.deepEqual(images.map(({ index }) => index), Array.from({ length: 300 }, (_, i) => i + 5));
  const sent = requests.slice(1).map(({ body }) => JSON.parse(body));
  assert.deepEqual([new Set(sent.map((each) => each.seed)), sent.length, most], [new Set([seed]), 10, 4]);
  assert.equal(timing.compute_ms, 20);
});

test("limits that are none are an error", async () => {
  const { client } = playing([() => ok({ models: [] }), () => ok({ limits: { n: 0 } })]);
  for (let i = 0; i < 2; i++) await fails(client.generate({ n: 100 }), { code: "unexpected_answer" });
});

test("uploads are grouped by number and bytes, a TIFF alone, and indices are those of the call", async () => {
  const { client, requests } = playing([
    () => ok({ limits: LIMITS }),
    ({ body }) => ok(answer(0, body.getAll("image").length, { trajectory: [{ step: 0, data: "", change: null }] })),
  ]);
  const large = new Uint8Array(400_000);
  const { images } = await client.project([...Array(40).fill(encode("a")), encode("II*\0"), large, large, large]);
  assert.deepEqual(requests.slice(1).map(({ body }) => body.getAll("image").length).sort(), [1, 1, 2, 32, 8]);
  assert.deepEqual(images.map(({ index, trajectory }) => [index, trajectory[0].index]), Array.from({ length: 44 }, (_, i) => [i, i]));
});

test("the first error ends the other requests, and names the image of the call", async () => {
  const { client, requests } = playing([
    () => ok({ limits: LIMITS }),
    never,
    () => problem(422, "undecodable_image", {}, { detail: "images.3: damaged", errors: [{ field: "images.3", message: "damaged" }] }),
    never,
  ]);
  const error = { detail: "images.35: damaged", errors: [{ field: "images.35", message: "damaged" }] };
  await fails(client.project(Array(100).fill(encode("a"))), error);
  assert.ok(requests.slice(1).every(({ signal }, i) => i === 1 || signal.aborted));
});

const events = (...some) => some.map(([type, data]) => `event: ${type}\ndata: ${JSON.stringify(data)}\n\n`).join("");
const STEPS = [0, 1, 2].map((step) => ["step", { index: 0, step, data: btoa(`step ${step}`), format: "png", change: null }]);
const PROGRESS = ["progress", { steps_done: 1, steps: 2, rows_done: 0, rows: 1 }];
const DONE = ["done", { ...answer(0, 1, { data: null }), seed: 1 }];
const streaming = (text, size) => () => {
  const bytes = encode(text);
  const chunks = Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) => bytes.slice(i * size, (i + 1) * size));
  return new Response(new ReadableStream({ start: (controller) => [chunks.forEach((chunk) => controller.enqueue(chunk)), controller.close()] }), {
    headers: { "Content-Type": "text/event-stream", "X-Request-ID": "r" },
  });
};

for (const size of [1, 7, 1e6]) {
  test(`a stream in chunks of ${size} bytes`, async () => {
    const text = `: a comment\n\n${events(...STEPS, PROGRESS, ["later", {}], DONE)}`;
    const { client } = playing([() => problem(503, "draining"), streaming(text, size)]);
    const seen = [];
    for await (const event of client.streamGenerate({ record: [0, 1] })) seen.push(event);
    assert.deepEqual(seen.map(({ type }) => type), ["step", "step", "step", "progress", "done"]);
    const [{ trajectory, bytes }] = seen.at(-1).answer.images;
    assert.deepEqual([bytes, trajectory.map(({ step }) => step), seen[1].bytes], [encode("step 2"), [0, 1], encode("step 1")]);
  });
}

test("a stream that fails, ends early, or is none", async () => {
  const failure = ["error", { status: 500, code: "model_failure", detail: "why\u2028not" }];
  for (const [reply, expected, count] of [
    [streaming(events(STEPS[0], failure), 9), { status: 500, detail: "why\u2028not", requestId: "r" }, 1],
    [streaming(events(...STEPS), 9), { code: "unexpected_answer" }, 3],
    [streaming(events(["done", answer()]), 9), { code: "unexpected_answer" }, 0],
    [() => ok(answer()), { code: "unexpected_answer" }, 0],
  ]) {
    const { client, requests } = playing([reply]);
    const seen = [];
    const run = async () => { for await (const event of client.streamGenerate()) seen.push(event); };
    await fails(run(), { retryable: false, ...expected });
    assert.deepEqual([seen.length, requests.length], [count, 1]);
  }
});

test("leaving the loop closes the connection", async () => {
  let closed = false;
  const body = new ReadableStream({
    start: (controller) => controller.enqueue(encode(events(STEPS[0]))),
    cancel: () => { closed = true; },
  });
  const { client } = playing([() => new Response(body, { headers: { "Content-Type": "text/event-stream" } })]);
  for await (const event of client.streamGenerate()) {
    assert.equal(event.type, "step");
    break;
  }
  assert.ok(closed);
});

test("a file has its metadata from the headers", async () => {
  const headers = {
    "Content-Type": "image/gif", "X-IGN-Model": "m/1@sha256:0123456789ab", "X-Request-ID": "r", "X-IGN-Seed": "7",
    "X-IGN-Steps": "1,2", "X-IGN-Distance": "0.5,1", "Server-Timing": "decode;dur=0.5, compute;dur=2",
  };
  const { client, requests } = playing([() => new Response("GIF", { headers })]);
  const { bytes, ...file } = await client.latentInterpolateAs("gif", [1, 2], { frames: 2 });
  assert.equal(requests[0].headers.get("Accept"), "image/gif");
  assert.deepEqual(bytes, encode("GIF"));
  assert.deepEqual(file, {
    format: "gif", model: { name: "m", version: "1", digest: "sha256:0123456789ab" }, request_id: "r", seed: 7, steps: [1, 2],
    timing: { decode_ms: 0.5, compute_ms: 2 }, distance: [0.5, 1], drift: [],
  });
  await fails(client.generateAs("png"), { code: "unexpected_answer" });
});

test("503 is a result of ready", async () => {
  const proxy = () => new Response("<html>", { status: 503 });
  const { client } = playing([() => problem(503, "not_ready"), () => ok({ status: "ready" }), proxy]);
  assert.deepEqual(await client.ready(), { ready: false, detail: "why not_ready" });
  assert.deepEqual(await client.ready(), { ready: true, detail: "ready" });
  assert.equal((await client.ready()).ready, false);
});
