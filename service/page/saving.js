// Files to keep and to show: pictures of 512 pixels, and a card of before and after.

import { createElement } from "./dom.js";
import { backgroundColour, cssColour, dataUrl, decodeImage } from "./pixels.js";

const SIDE = 512;
const CARD = { width: 1200, height: 630 }; // as link previews show it
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif';

/** Save a URL as a file. */
export function saveUrl(url, name) {
  createElement("a", { href: url, download: name }).click();
}

/** Save a Blob as a file. */
export function saveBlob(blob, name) {
  const url = URL.createObjectURL(blob);
  saveUrl(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // the browser reads it meanwhile
}

/**
 * The files as one ZIP archive, stored as they are: pictures are compressed already.
 *
 * @param {[string, Blob][]} files names and contents
 */
export async function zipOf(files) {
  const [parts, directory] = [[], []];
  let at = 0;
  for (const [name, blob] of files) {
    const [letters, bytes] = [new TextEncoder().encode(name), new Uint8Array(await blob.arrayBuffer())];
    // What both headers of a file have in common: version 2.0, names in UTF-8, stored, 1 January 1980.
    const common = [u16(20), u16(0x800), u16(0), u16(0), u16(0x21), u32(crc32(bytes)), u32(bytes.length), u32(bytes.length), u16(letters.length), u16(0)];
    const header = [u32(0x04034b50), ...common, letters];
    directory.push(u32(0x02014b50), u16(20), ...common, u16(0), u16(0), u16(0), u32(0), u32(at), letters);
    parts.push(...header, bytes);
    at += sizeOf(header) + bytes.length;
  }
  const end = [u32(0x06054b50), u32(0), u16(files.length), u16(files.length), u32(sizeOf(directory)), u32(at), u16(0)];
  return new Blob([...parts, ...directory, ...end], { type: "application/zip" });
}

const u16 = (value) => Uint8Array.of(value, value >> 8);
const u32 = (value) => Uint8Array.of(value, value >> 8, value >> 16, value >> 24);
const sizeOf = (parts) => parts.reduce((sum, { length }) => sum + length, 0);

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc;
}

/** Save a picture, base64 of a PNG: enlarged to 512 pixels, or as it is if the model takes any size. */
export async function savePicture(data, name, card) {
  if (card.tiles) {
    saveUrl(dataUrl(data), name);
    return;
  }
  const canvas = createElement("canvas", { width: SIDE, height: SIDE });
  const context = canvas.getContext("2d");
  context.fillStyle = cssColour(backgroundColour(card));
  context.fillRect(0, 0, SIDE, SIDE);
  drawEnlarged(context, await decodeImage(data), 0, 0, SIDE);
  saveCanvas(canvas, name);
}

/** Save the drawing and the result side by side, with words about them. */
export async function saveCard({ seen, made }, card, words) {
  const canvas = createElement("canvas", { ...CARD });
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  context.fillStyle = colour("--ground");
  context.fillRect(0, 0, CARD.width, CARD.height);
  const [top, side, left] = [56, 448, 96];
  for (const [data, x] of [[seen, left], [made, CARD.width - left - side]]) {
    context.save();
    context.beginPath();
    context.roundRect(x, top, side, side, 20);
    context.clip();
    context.fillStyle = cssColour(backgroundColour(card));
    context.fillRect(x, top, side, side);
    drawEnlarged(context, await decodeImage(data), x, top, side);
    context.restore();
  }
  context.strokeStyle = colour("--accent");
  [context.lineWidth, context.lineCap, context.lineJoin] = [9, "round", "round"];
  context.stroke(new Path2D(`M566 ${top + side / 2}h66m-27 -27 27 27-27 27`));
  context.textBaseline = "middle";
  text(context, card.tiles ? "Before and after" : "Make it real", left, 568, `800 44px ${FONT}`, colour("--ink"), "left");
  if (!card.tiles) text(context, words, CARD.width - left, 568, `400 26px ${FONT}`, colour("--soft"), "right");
  saveCanvas(canvas, "before-after.png");
}

function text(context, words, x, y, font, colour, align) {
  Object.assign(context, { font, fillStyle: colour, textAlign: align });
  context.fillText(words, x, y, 620);
}

/** Draw an image into a square; small ones in whole pixels, so that all of them have the same size. */
function drawEnlarged(context, image, x, y, side) {
  const largest = Math.max(image.width, image.height);
  const scale = largest <= side ? Math.floor(side / largest) : side / largest;
  const [width, height] = [image.width * scale, image.height * scale];
  context.imageSmoothingEnabled = false;
  context.drawImage(image, x + (side - width) / 2, y + (side - height) / 2, width, height);
}

function saveCanvas(canvas, name) {
  saveUrl(canvas.toDataURL("image/png"), name);
}
