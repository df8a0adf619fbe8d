// Conversions between the canvas and the model's input: colours, sizes, bytes.

const CANVAS_SIDE = 448; // about the pixels of the longer side of the canvas
const INKED = 25; // levels of 0…255 from the background

/** The background colour of a model, [r, g, b] in 0…255; the card has it in the model's range. */
export function backgroundColour({ background, range: [low, high], shape: [channels] }) {
  const levels = background.map((value) => Math.round(((value - low) * 255) / (high - low)));
  return channels === 1 ? [levels[0], levels[0], levels[0]] : levels;
}

/** Black or white, [r, g, b], whichever contrasts with the background. */
export function inkColour(card) {
  const [red, green, blue] = backgroundColour(card);
  return 0.299 * red + 0.587 * green + 0.114 * blue > 127.5 ? [0, 0, 0] : [255, 255, 255];
}

export const cssColour = (colour) => `rgb(${colour.join(" ")})`;

/** Canvas pixels per pixel of the model. */
export const canvasScale = ([, height, width]) => Math.max(1, Math.round(CANVAS_SIDE / Math.max(height, width)));

/** Reduce the canvas to the model's size. Each pixel is the mean of a block, so that enlarged images return exactly. */
export function downsample(canvas, width, height) {
  const scale = canvas.width / width;
  const all = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  if (scale === 1) return all;
  const from = all.data;
  const to = new ImageData(width, height);
  const sums = new Float64Array(width * height * 4);
  for (let y = 0; y < canvas.height; y++) {
    const row = Math.floor(y / scale) * width;
    for (let x = 0; x < canvas.width; x++) {
      const cell = (row + Math.floor(x / scale)) * 4;
      const at = (y * canvas.width + x) * 4;
      for (let c = 0; c < 4; c++) sums[cell + c] += from[at + c];
    }
  }
  const count = scale * scale;
  for (let i = 0; i < sums.length; i++) to.data[i] = Math.round(sums[i] / count);
  return to;
}

/** White where the mask was painted, black elsewhere; null if nothing was painted. */
export function maskImage(mask) {
  const made = new ImageData(mask.width, mask.height);
  let some = false;
  for (let i = 0; i < mask.data.length; i += 4) {
    const level = mask.data[i + 3] > 127 ? 255 : 0; // alpha
    some ||= level > 0;
    made.data.set([level, level, level, 255], i);
  }
  return some ? made : null;
}

/** Fill an image with mid grey where the mask is white, so that the model does not see what was there. */
export function fillMasked(image, mask) {
  for (let i = 0; i < image.data.length; i += 4) {
    if (mask.data[i]) image.data.fill(128, i, i + 3);
  }
}

/** Mean absolute difference of two images of one size, as a share of the range. */
export function difference(a, b) {
  let sum = 0;
  for (let i = 0; i < a.data.length; i++) if (i % 4 < 3) sum += Math.abs(a.data[i] - b.data[i]);
  return sum / ((a.data.length / 4) * 3 * 255);
}

/** Mean absolute difference of an image from the background, as a share of the range: how much is drawn. */
export function inkOf(image, card) {
  const background = backgroundColour(card);
  let sum = 0;
  for (let i = 0; i < image.data.length; i++) if (i % 4 < 3) sum += Math.abs(image.data[i] - background[i % 4]);
  return sum / ((image.data.length / 4) * 3 * 255);
}

/** The share of pixels that differ from the background in one of the images at least. */
export function inkedShare(images, card) {
  const background = backgroundColour(card);
  const inked = ({ data }, i) => [0, 1, 2].some((c) => Math.abs(data[i + c] - background[c]) > INKED);
  let count = 0;
  for (let i = 0; i < images[0].data.length; i += 4) count += images.some((image) => inked(image, i));
  return (4 * count) / images[0].data.length;
}

/** The standard deviation of an image, as a share of the range: 0 if it is plain. */
export function contrastOf(image) {
  const levels = image.data.filter((_, i) => i % 4 < 3);
  const mean = levels.reduce((sum, level) => sum + level, 0) / levels.length;
  return Math.sqrt(levels.reduce((sum, level) => sum + (level - mean) ** 2, 0) / levels.length) / 255;
}

/** @returns {HTMLCanvasElement} */
export function toCanvas(image) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  if (image instanceof ImageData) canvas.getContext("2d").putImageData(image, 0, 0);
  else canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas;
}

/** @returns {Promise<Blob>} a PNG */
export const toPng = (image) => new Promise((resolve) => toCanvas(image).toBlob(resolve, "image/png"));

/** @returns {Promise<Blob>} a JPEG of high quality */
export const toJpeg = (image) => new Promise((resolve) => toCanvas(image).toBlob(resolve, "image/jpeg", 0.95));

/** @returns {Promise<string>} base64 of a file */
export async function toBase64(blob) {
  const reader = new FileReader();
  reader.readAsDataURL(blob);
  await new Promise((resolve) => reader.addEventListener("load", resolve));
  return reader.result.split(",")[1];
}

/** The data URL of a base64 PNG. */
export const dataUrl = (data) => `data:image/png;base64,${data}`;

/** @returns {Promise<ImageBitmap>} of a base64 PNG */
export const decodeImage = (data) => createImageBitmap(toBlob(data));

/** @returns {Promise<ImageData>} of a base64 PNG */
export async function decodePixels(data) {
  const canvas = toCanvas(await decodeImage(data));
  return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
}

/** A copy of an image. */
export const copyOf = (image) => new ImageData(new Uint8ClampedArray(image.data), image.width, image.height);

export const toBlob = (data) => new Blob([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], { type: "image/png" });
