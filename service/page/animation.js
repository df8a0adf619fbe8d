// Animated WebP, put together from still ones, which the browser encodes: the container of RFC 9649.

import { Problem } from "./api.js";
import { createElement } from "./dom.js";

const NO_BLEND = 2; // each frame replaces the one before
const ANIMATED = 2;

/**
 * @param {ImageBitmap[]} frames of one size
 * @param {{scale: number, fps: number}} options scale: whole number of pixels for one of a frame
 * @returns {Promise<Blob>} that repeats for ever
 */
export async function animatedWebp(frames, { scale, fps }) {
  const [width, height] = [frames[0].width * scale, frames[0].height * scale];
  const size = [...little(width - 1, 3), ...little(height - 1, 3)];
  const parts = [chunk("VP8X", [ANIMATED, 0, 0, 0, ...size]), chunk("ANIM", [0, 0, 0, 0, 0, 0])];
  const header = [...little(0, 6), ...size, ...little(Math.round(1000 / fps), 3), NO_BLEND];
  for (const frame of frames) parts.push(chunk("ANMF", header, await bitstream(frame, width, height)));
  const length = parts.reduce((sum, part) => sum + part.length, 4);
  return new Blob([ascii("RIFF"), Uint8Array.from(little(length, 4)), ascii("WEBP"), ...parts], { type: "image/webp" });
}

/** The chunks of a lossless still picture that hold its pixels. */
async function bitstream(frame, width, height) {
  const canvas = createElement("canvas", { width, height });
  const context = canvas.getContext("2d", { alpha: false });
  context.imageSmoothingEnabled = false;
  context.drawImage(frame, 0, 0, width, height);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/webp", 1));
  if (blob.type !== "image/webp") throw new Problem({ detail: "This browser cannot write WebP.", retry: false });
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const view = new DataView(bytes.buffer);
  const kept = [];
  for (let at = 12; at < bytes.length; ) {
    const name = String.fromCharCode(...bytes.subarray(at, at + 4));
    const end = at + 8 + 2 * Math.ceil(view.getUint32(at + 4, true) / 2);
    if (["VP8L", "VP8 ", "ALPH"].includes(name)) kept.push(...bytes.subarray(at, end));
    at = end;
  }
  return kept;
}

function chunk(name, ...contents) {
  const content = contents.flat();
  return Uint8Array.from([...ascii(name), ...little(content.length, 4), ...content, ...(content.length % 2 ? [0] : [])]);
}

const ascii = (text) => Uint8Array.from(text, (letter) => letter.charCodeAt(0));
const little = (number, count) => Array.from({ length: count }, (_, i) => Math.floor(number / 256 ** i) % 256);
