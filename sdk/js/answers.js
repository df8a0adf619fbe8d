// What the service answers, checked against what was asked for.

export const FORMS = {
  png: "image/png",
  jpeg: "image/jpeg",
  webp: "image/webp",
  npy: "application/x-npy",
  tiff: "image/tiff",
  gif: "image/gif",
  apng: "image/apng",
};

/** One file with its metadata; an image can be the input of another call. */
export class Picture {
  constructor(bytes, members) {
    Object.assign(this, members, { bytes });
  }

  get blob() {
    return new Blob([this.bytes], { type: FORMS[this.format] });
  }
}

export const textOf = ({ content }) => new TextDecoder().decode(content);
export const documentOf = (response) => JSON.parse(textOf(response));

function fromBase64(data) {
  const text = atob(data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

function decoded({ data, ...members }, { format }) {
  if (members.format !== format) throw new TypeError(`format: expected ${format}`);
  return new Picture(fromBase64(data), members);
}

/** A result, if it has the images from index `first` on, as many as were asked for; `total` is null if that is open. */
function checked(document, { first = 0, total }) {
  const { images, model, timing } = document;
  const isWhole = images.length === (total ?? images.length) && images.every(({ index }, i) => index === first + i);
  if (!isWhole || !model || !timing) throw new TypeError(`expected ${total ?? "the"} images from index ${first} on`);
  return document;
}

/** The limits of one request, from the list of the models. */
export function limitsOf({ limits }) {
  if ([limits.n, limits.images, limits.body_bytes].every((limit) => limit > 0)) return limits;
  throw new TypeError("no limits");
}

export const scoresOf = (document, wanted) => checked(document, wanted);

export function imagesOf(document, wanted) {
  const images = checked(document, wanted).images.map((member) => {
    const { index, format } = member;
    const trajectory = (member.trajectory ?? []).map((step) => decoded({ index, format, ...step }, wanted));
    return decoded({ ...member, trajectory }, wanted);
  });
  return { ...document, images };
}

/** Makes what the caller gets of events, and the result of all at the end. */
export function eventReader(wanted, record) {
  const steps = new Map(); // index → events
  const whole = (member) => {
    const made = steps.get(member.index);
    return { ...member, data: made.at(-1).data, trajectory: made.filter(({ step }) => record.includes(step)) };
  };
  return (type, document) => {
    if (type === "progress") return { ...document, type };
    if (type === "done") return { type, answer: imagesOf({ ...document, images: document.images.map(whole) }, wanted) };
    steps.set(document.index, [...(steps.get(document.index) ?? []), document]);
    return decoded({ ...document, type }, wanted);
  };
}

/** A response that is one file in this format; the metadata is in its headers. */
export function fileOf(format, { headers, content }) {
  const type = headers.get("Content-Type");
  if (type !== FORMS[format]) throw new TypeError(`expected ${FORMS[format]}, not ${type}`);
  const [name, version, digest] = headers.get("X-IGN-Model").split(/[/@]/);
  const numbers = (header) => (headers.get(header) ?? "").split(",").filter(Boolean).map(Number);
  const times = headers.get("Server-Timing").matchAll(/(\w+);dur=([\d.]+)/g);
  return new Picture(content, {
    format,
    model: { name, version, digest },
    request_id: headers.get("X-Request-ID"),
    timing: Object.fromEntries(Array.from(times, ([, part, duration]) => [`${part}_ms`, Number(duration)])),
    seed: numbers("X-IGN-Seed")[0] ?? null,
    steps: numbers("X-IGN-Steps"),
    distance: numbers("X-IGN-Distance"),
    drift: numbers("X-IGN-Drift"),
  });
}

/** One result of all parts: model and request id of the first, times added. */
export function joined(parts) {
  const images = parts.flatMap((part) => part.images);
  const first = images[0].index;
  images.forEach((image, i) => [image, ...(image.trajectory ?? [])].forEach((each) => (each.index = first + i)));
  const sum = (name) => parts.reduce((total, { timing }) => total + timing[name], 0);
  const timing = Object.fromEntries(Object.keys(parts[0].timing).map((name) => [name, sum(name)]));
  return { ...parts[0], images, timing };
}
