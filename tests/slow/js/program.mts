// What type checkers have to accept, and after `@ts-expect-error` what they have to reject.

import { Client, IgnError, type Event, type Generated, type ImageInput, type Picture, type Projected } from "@ign-service/client";

const client = new Client("http://127.0.0.1:8000", { apiKey: "k", timeout: 3, deadline: null, maxRetries: 3 });
const { signal } = new AbortController();
await client.generate({ seed: "Ada" });
const made: Generated = await client.generate({ n: 2, seed: 7, score: true, noise_scale: 0.5, signal });
const [first] = made.images;
if (first === undefined) throw new Error("no image");
export const results: [number, number | null, Uint8Array, string] = [made.seed, first.drift, first.bytes, made.model.digest];

const picture: Picture = first;
const images: ImageInput[] = [picture, first.blob, new Blob([first.bytes]), first.bytes.buffer];
for await (const event of client.streamProject(images, { record: [0, 1], mask: picture, invert: "auto", strength: 0.5 })) {
  show(event);
}

function show(event: Event<Projected>): number | boolean | null | undefined {
  if (event.type === "step") return event.blob.size + event.step;
  if (event.type === "progress") return event.rows_done;
  return event.answer.images[0]?.inverted ?? event.answer.images[0]?.trajectory[0]?.change;
}

const walk = await client.latentInterpolateAs("gif", [1, { seed: "Ada", index: 5 }, { image: picture }], { frames: 24, fps: 12 });
const sum = await client.latentArithmetic([1, { seed: 2, weight: -0.5 }], { normalize: false });
const [score] = (await client.score(picture)).images;
export const numbers: (number | null | undefined)[] = [walk.seed, sum.images.length, score?.worst.x, score?.percentile];

try {
  await client.models();
} catch (error) {
  if (error instanceof IgnError && error.code === "timed_out") console.log(error.retryable, error.errors[0]?.field, error.status);
}

// @ts-expect-error no such option
await client.generate({ sed: 1 });
// @ts-expect-error a number
await client.generate({ n: "1" });
// @ts-expect-error a sheet's, of generateAs
await client.generate({ columns: 3 });
// @ts-expect-error no animation
await client.generateAs("gif");
await client.project("picture.png");
// @ts-expect-error a property that results do not have
export const nothing = made.pictures;
