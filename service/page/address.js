// The address of the page: model, seed and drawing in its fragment, which browsers send to nobody.
//
// A drawing is bytes as base64url. Each action is a byte for its kind, and
//   a stroke: colour (0 ink, 1 background, 2 mask, 3 three bytes r, g, b), width/2⁸·… as share · 512, the number of
//             points (2 bytes), then x and y of each as share · 255, and its pressure · 255 where the kind is `PRESSED`;
//   an image: the number of its bytes (3 bytes), and a WebP or PNG of the model's size.

import { toCanvas } from "./pixels.js";

const [STROKE, PRESSED, IMAGE] = [1, 2, 3];
const COLOURS = ["ink", "background", "mask"];
const MOST_BYTES = 48 * 1024; // of a drawing; a longer one is not put into the address
const NEAR = 1 / 128; // points nearer to the last one are left out

const LAST = "ign-address";

/** The address without a fragment goes on where this tab was last. */
export function continueAddress() {
  const last = sessionStorage.getItem(LAST);
  if (!location.hash && last) history.replaceState(null, "", last);
}

/** @returns {{m?: string, s?: string, d?: string}} model, seed and drawing of the present address */
export const readAddress = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

/** Change parts of the address; an empty text removes one. */
export function writeAddress(parts) {
  const now = { ...readAddress(), ...parts };
  const kept = Object.entries(now).filter(([name, value]) => ["m", "s", "d"].includes(name) && value);
  // URLSearchParams would escape the slash of a model, which may stand in a fragment.
  const fragment = kept.map(([name, value]) => `${name}=${encodeURIComponent(value).replaceAll("%2F", "/")}`).join("&");
  history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname + location.search);
  sessionStorage.setItem(LAST, location.hash);
}

/**
 * A drawing as text; empty if there is none, or if it is too large.
 *
 * @param {object[]} actions of the drawing canvas
 * @param {[number, number]} size width and height of the model
 */
export async function encodeDrawing(actions, size) {
  const bytes = [];
  for (const action of actions) {
    if (action.kind === "image") bytes.push(...(await encodeImage(action.image, size)));
    else bytes.push(...encodeStroke(action));
  }
  if (bytes.length > MOST_BYTES) return "";
  const text = bytes.map((byte) => String.fromCharCode(byte)).join("");
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** The actions of a text of `encodeDrawing`, as many as are whole. */
export async function decodeDrawing(text) {
  const actions = [];
  try {
    const plain = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    const reader = new Reader(Uint8Array.from(plain, (c) => c.charCodeAt(0)));
    while (!reader.ended) actions.push(await decodeAction(reader));
  } catch {
    // A cut or foreign address: what was whole is shown.
  }
  return actions;
}

function encodeStroke({ layer, colour, size, points }) {
  const known = COLOURS.indexOf(layer === "mask" ? "mask" : colour);
  const rgb = known < 0 ? [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)) : [];
  const kept = points.filter((point, i) => i === 0 || i === points.length - 1 || far(point, points, i));
  const pressed = kept.some((point) => point.pressure !== 0.5);
  const bytes = [pressed ? PRESSED : STROKE, known < 0 ? 3 : known, ...rgb, byteOf(size * 2)];
  bytes.push(kept.length >> 8, kept.length & 255);
  for (const { x, y, pressure } of kept) bytes.push(byteOf(x), byteOf(y), ...(pressed ? [byteOf(pressure)] : []));
  return bytes;
}

/** Whether a point adds to a line: every second one does, unless they lie close. */
function far(point, points, i) {
  const before = points[i - 1];
  return Math.hypot(point.x - before.x, point.y - before.y) > NEAR || i % 4 === 0;
}

const byteOf = (share) => Math.round(255 * Math.min(1, Math.max(0, share)));

async function encodeImage(image, [width, height]) {
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").drawImage(image, 0, 0, width, height);
  const lossy = width * height > 2048;
  const blob = await canvas.convertToBlob({ type: "image/webp", quality: lossy ? 0.8 : 1 });
  const bytes = new Uint8Array(await blob.arrayBuffer());
  return [IMAGE, bytes.length >> 16, (bytes.length >> 8) & 255, bytes.length & 255, ...bytes];
}

class Reader {
  #at = 0;

  constructor(bytes) {
    this.bytes = bytes;
  }

  get ended() {
    return this.#at >= this.bytes.length;
  }

  /** @throws {RangeError} at the end */
  take(count) {
    if (this.#at + count > this.bytes.length) throw new RangeError("the drawing is cut");
    return this.bytes.slice(this.#at, (this.#at += count));
  }

  number(bytes) {
    return this.take(bytes).reduce((sum, byte) => 256 * sum + byte, 0);
  }
}

async function decodeAction(reader) {
  const kind = reader.number(1);
  if (kind === IMAGE) {
    const bitmap = await createImageBitmap(new Blob([reader.take(reader.number(3))]));
    return { kind: "image", layer: "paint", image: toCanvas(bitmap) };
  }
  if (kind !== STROKE && kind !== PRESSED) throw new RangeError("no action of a drawing");
  const known = reader.number(1);
  const colour = known === 3 ? `#${[...reader.take(3)].map((byte) => byte.toString(16).padStart(2, "0")).join("")}` : COLOURS[known];
  const size = reader.number(1) / 510;
  const points = Array.from({ length: reader.number(2) }, () => {
    const [x, y] = reader.take(2);
    return { x: x / 255, y: y / 255, pressure: kind === PRESSED ? reader.number(1) / 255 : 0.5 };
  });
  const mask = colour === "mask";
  return { kind: "stroke", layer: mask ? "mask" : "paint", colour: mask ? "ink" : colour, size, points };
}
