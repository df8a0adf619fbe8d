// Pictures ⇄ rows of a model, as `service/images` and `service/artifact/pixels.py` convert them, and PNG files.

const GREY_TYPE = 0; // colour types of PNG
const RGB_TYPE = 2;
const MID_GREY = 127.5;
const PIECE = 1 << 15; // arguments of a call
const SIGNATURE = Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10);

/**
 * A picture as a row of the model, in its size; transparent parts show the background.
 *
 * @param {Blob} blob
 * @param {object} card
 * @param {{invert?: string, resize?: string}} options as those of the service
 * @returns {Promise<{row: Float32Array, inverted: boolean}>} C×H×W in the model's range
 */
export async function toRow(blob, card, { invert = "auto", resize } = {}) {
  const { range: [low, high], shape: [channels] } = card;
  const paper = Uint8ClampedArray.from(card.background, (value) => ((value - low) * 255) / (high - low));
  const picture = await drawn(blob, card, resize);
  const { data, width, height } = picture;
  const area = width * height;
  const auto = invert === "auto" && card.polarity === "light-on-dark";
  const darkInk = auto && isDarkInk(data);
  const levels = new Uint8Array(channels * area);
  for (let c = 0; c < channels; c++) {
    const ground = darkInk ? 255 : paper[c];
    for (let i = 0; i < area; i++) {
      const ink = channels === 1 ? luma(data, 4 * i) : data[4 * i + c];
      levels[c * area + i] = Math.round(ground + ((ink - ground) * data[4 * i + 3]) / 255);
    }
  }
  const inverted = String(invert) === "true" || darkInk || (auto && ringMean(levels, width, height) > MID_GREY);
  if (inverted) levels.forEach((value, i) => (levels[i] = 255 - value));
  const row = new Float32Array(onCanvas(levels, picture, card, (c) => paper[c]));
  return { row: row.map((value) => low + (value * (high - low)) / 255), inverted };
}

/** The card for a picture: with its size if the model takes any. */
export async function sized(card, blob) {
  if (!card.tiles) return card;
  const picture = await createImageBitmap(blob);
  const { height, width } = picture;
  picture.close();
  return { ...card, shape: [card.shape[0], height, width] };
}

/** The card of a colour model with the size and the background of a grey one. */
export const coloured = ({ background: [grey], shape: [, ...size], ...card }) => {
  return { ...card, background: [grey, grey, grey], shape: [3, ...size] };
};

/** The luma of a colour row, and the chroma that gives the row again; none if it is grey: `service/domain/tasks.py`. */
export function splitLuma(row) {
  const area = row.length / 3;
  const luma = row.subarray(0, area).map((red, i) => 0.299 * red + 0.587 * row[area + i] + 0.114 * row[2 * area + i]);
  const isGrey = row.every((value, i) => value === row[i % area]);
  return isGrey ? { luma: row.slice(0, area) } : { luma, chroma: row.map((value, i) => value - luma[i % area]) };
}

/** The grey of a pixel, 0…255 (ITU-R 601, as Pillow computes it). */
const luma = (data, at) => (data[at] * 19595 + data[at + 1] * 38470 + data[at + 2] * 7471 + 32768) >> 16;

/** The pixels of a picture in the model's size; with `fit` in the largest size of its proportions within that. */
async function drawn(blob, { shape: [, height, width] }, resize = "fit") {
  const how = { premultiplyAlpha: "none", colorSpaceConversion: "none" };
  const picture = await createImageBitmap(blob, how).catch(() => {
    throw Object.assign(new Error("This browser cannot decode the picture."), { status: 422, code: "undecodable_image" });
  });
  const [across, down] = [width / picture.width, height / picture.height];
  const scaled = (factor) => [picture.width, picture.height].map((side) => Math.max(1, Math.round(side * factor)));
  const size = { fit: scaled(Math.min(across, down)), crop: scaled(Math.max(across, down)), stretch: [width, height] }[resize];
  const [w, h] = [Math.min(size[0], width), Math.min(size[1], height)];
  const context = new OffscreenCanvas(w, h).getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, (w - size[0]) / 2, (h - size[1]) / 2, ...size);
  picture.close();
  return context.getImageData(0, 0, w, h);
}

/** The values of a picture, C×h×w, in the middle of those of the model's size, C×H×W. */
function onCanvas(values, { width: w, height: h }, { shape: [, height, width] }, fill) {
  if (w === width && h === height) return values;
  const [left, top] = [Math.floor((width - w) / 2), Math.floor((height - h) / 2)];
  const channels = values.length / (w * h);
  return Array.from({ length: channels * height * width }, (_, i) => {
    const [c, y, x] = [Math.floor(i / (height * width)), (Math.floor(i / width) % height) - top, (i % width) - left];
    return x >= 0 && x < w && y >= 0 && y < h ? values[(c * h + y) * w + x] : fill(c);
  });
}

/** Whether a picture is partly transparent and what is visible is dark. */
function isDarkInk(data) {
  let [visible, sum] = [0, 0];
  for (let at = 0; at < data.length; at += 4) [visible, sum] = [visible + data[at + 3], sum + data[at + 3] * luma(data, at)];
  return visible > 0 && visible < (data.length / 4) * 255 && sum / visible < MID_GREY;
}

/** The mean of the outermost ring of pixels. */
function ringMean(levels, width, height) {
  const isRing = (_, i) => i % width === 0 || i % width === width - 1 || i < width || i >= width * (height - 1);
  const ring = levels.slice(0, width * height).filter(isRing);
  return ring.reduce((sum, value) => sum + value, 0) / ring.length;
}

/** A mask as booleans of the model's size: true where the picture is kept. */
export async function toKeep(blob, card, { resize }) {
  const picture = await drawn(blob, card, resize);
  const { data, width, height } = picture;
  const keep = Array.from({ length: width * height }, (_, i) => (luma(data, 4 * i) * data[4 * i + 3]) / 255 < 128);
  return onCanvas(keep, picture, card, () => true);
}

/** The 8-bit levels of a row, interleaved: H×W×C. The array clips and rounds, ties to even. */
function toLevels(row, { range: [low, high], shape: [channels, height, width] }) {
  const area = height * width;
  const levels = new Uint8ClampedArray(row.length);
  row.forEach((value, i) => (levels[(i % area) * channels + Math.floor(i / area)] = ((value - low) * 255) / (high - low)));
  return levels;
}

/**
 * A PNG of a row, or an animation of several (APNG), of which every pixel becomes a square.
 *
 * @param {Float32Array[]} rows
 * @param {{fps?: number, scale?: number}} options
 * @returns {Promise<Uint8Array>} without a Blob on the way: the browser's main process keeps those
 */
export async function toPng(rows, card, { fps = 1, scale = 1 } = {}) {
  const [channels, height, width] = card.shape;
  const size = [...uint32(width * scale), ...uint32(height * scale)];
  const parts = [SIGNATURE, chunk("IHDR", [...size, 8, channels === 1 ? GREY_TYPE : RGB_TYPE, 0, 0, 0])];
  if (rows.length > 1) parts.push(chunk("acTL", [...uint32(rows.length), ...uint32(0)])); // for ever
  let sequence = 0; // number of the next chunk of the animation
  for (const [i, row] of rows.entries()) {
    const timing = [0, 1, fps >> 8, fps & 255]; // 1/fps seconds
    if (rows.length > 1) parts.push(chunk("fcTL", [...uint32(sequence++), ...size, ...uint32(0), ...uint32(0), ...timing, 0, 0]));
    const content = await deflate(scanlines(toLevels(row, card), card.shape, scale));
    parts.push(i === 0 ? chunk("IDAT", content) : chunk("fdAT", [...uint32(sequence++), ...content]));
  }
  return joined([...parts, chunk("IEND", [])]);
}

/** The lines of a picture, enlarged, each after the byte 0: not filtered. */
function scanlines(levels, [channels, height, width], scale) {
  const length = width * scale * channels;
  const lines = new Uint8Array(height * scale * (1 + length));
  for (let y = 0; y < height * scale; y++) {
    const line = levels.subarray(Math.floor(y / scale) * width * channels);
    for (let i = 0; i < length; i++) {
      lines[y * (1 + length) + 1 + i] = line[Math.floor(i / channels / scale) * channels + (i % channels)];
    }
  }
  return lines;
}

async function deflate(bytes) {
  const packed = new Response(bytes).body.pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(packed).arrayBuffer());
}

const uint32 = (value) => [value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255];

function chunk(type, content) {
  const body = joined([[...type].map((letter) => letter.charCodeAt(0)), content]);
  return joined([uint32(content.length), body, uint32(crc32(body))]);
}

function joined(parts) {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

export function toBase64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += PIECE) text += String.fromCharCode(...bytes.subarray(i, i + PIECE));
  return btoa(text);
}

export const fromBase64 = (text) => new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))]);
