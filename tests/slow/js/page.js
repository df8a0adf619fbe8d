// What a page does with the package, for the tests in a browser.

import { Client, IgnError } from "@ign-service/client";

/** An image on a canvas, as a file. */
async function drawn({ blob }, width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.getContext("2d").drawImage(await createImageBitmap(blob), 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve));
}

export async function useService(url) {
  const client = new Client(url);
  const { images } = await client.generate({ n: 40, seed: 7, score: true });
  const [drawing, steps] = [await drawn(images[0], 28, 28), []];
  for await (const event of client.streamProject(drawing, { steps: 5, record: [1, 5] })) steps.push(event.step ?? event.type);
  const file = await client.generateAs("webp", { n: 4, seed: 7 });
  const error = await client.generate({ n: 0 }).catch((reason) => reason);
  const described = [error instanceof IgnError && error.requestId !== null, error.code, error.errors[0].field];
  return {
    images: images.map(({ bytes }) => Array.from(bytes)),
    facts: [...steps, file.blob.type, file.seed, file.steps.length, file.model.name, ...described],
  };
}

/** The results of the calls that a service and a site have: names of members, and images with their steps. */
export async function compareCalls(url, local) {
  const client = new Client(url, { local });
  const generated = await client.generate({ n: 70, seed: 7, score: true });
  const [first, second] = generated.images;
  const [narrow, tall] = [await drawn(first, 14, 28), await drawn(first, 28, 56)]; // what the browser need not resize
  const events = [];
  for await (const event of client.streamProject([first, narrow], { record: [1], steps: 2 })) events.push(event);
  const steps = events.filter(({ type }) => type === "step").sort((a, b) => a.index - b.index || a.step - b.step);
  const masked = { mask: second, record: [0, 2], strength: 0.8, steps: 2, model: "mnist" };
  const results = {
    generated,
    streamed: events.at(-1).answer,
    steps: { images: steps.map((step) => ({ ...step, bytes: step.bytes, change: null })) }, // a site lacks that of the last
    projected: await client.project([narrow, first, second], masked),
    cropped: await client.project(tall, { resize: "crop", steps: 1 }),
    walk: await client.latentInterpolate([1, { seed: 2, index: 3 }, first], { frames: 5, loop: true }),
    scored: await client.score([first, narrow]),
  };
  const shown = ({ bytes, ...image }) => ({ ...image, data: btoa(String.fromCharCode(...(bytes ?? first.bytes))) });
  const described = ({ images, ...members }) => ({
    members: [Object.keys(members).sort(), images.map((image) => Object.keys(image).sort())],
    images: images.flatMap((image) => [shown(image), ...(image.trajectory ?? []).map(shown)]),
  });
  return Object.fromEntries(Object.entries(results).map(([name, result]) => [name, described(result)]));
}

/** What a site cannot do, beside the code, status and field that say so. */
export async function failures(url) {
  const client = new Client(url, { local: true });
  const [image] = (await client.generate()).images;
  const expected = [
    [client.generate({ noise_scale: 0.5 }), "not_supported 501 noise_scale"],
    [client.generateAs("png"), "not_supported 501 "],
    [client.latentArithmetic([1, 2]), "not_supported 501 "],
    [client.latentInterpolate([1, Uint8Array.of(0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59)]), "not_supported 501 points.1"],
    [client.generate({ n: 0 }), "invalid_value 422 n"],
    [client.project(image, { resize: "bend" }), "invalid_value 422 resize"],
    [client.project([image, new Blob(["no image"])]), "undecodable_image 422 images.1"],
    [client.generate({ model: "nothing" }), "unknown_model 404 "],
  ];
  const settled = await Promise.allSettled(expected.map(([call]) => call));
  const said = settled.map(({ reason }) => `${reason?.code} ${reason?.status} ${reason?.errors[0]?.field ?? ""}`);
  return [said, expected.map(([, text]) => text)];
}
