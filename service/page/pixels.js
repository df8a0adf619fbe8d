// Between what is drawn and what the model sees: colours, sizes, bytes.

const LARGE = 448; // pixels of the longer side of the drawing surface, about

/** The colour of empty places as the model has it, [r, g, b]; a card gives it in the model's range. */
export function paper({ background, range: [low, high], shape: [channels] }) {
  const levels = background.map((value) => Math.round(((value - low) * 255) / (high - low)));
  return channels === 1 ? [levels[0], levels[0], levels[0]] : levels;
}

/** What shows best on it, [r, g, b]. */
export function ink(card) {
  const [red, green, blue] = paper(card);
  return 0.299 * red + 0.587 * green + 0.114 * blue > 127.5 ? [0, 0, 0] : [255, 255, 255];
}

export const css = (colour) => `rgb(${colour.join(" ")})`;

/** How many pixels of the drawing surface are one of the model's. */
export const scaleOf = ([, height, width]) => Math.max(1, Math.round(LARGE / Math.max(height, width)));

/** Every pixel is the mean of those it stands for; a picture that was only enlarged comes back exactly. */
export function shrink(canvas, width, height) {
  const scale = canvas.width / width;
  const from = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
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

/** White where the mask was painted, black elsewhere; null where nowhere. */
export function stencil(mask) {
  const made = new ImageData(mask.width, mask.height);
  let some = false;
  for (let i = 0; i < mask.data.length; i += 4) {
    const level = mask.data[i + 3] > 127 ? 255 : 0; // its opacity
    some ||= level > 0;
    made.data.set([level, level, level, 255], i);
  }
  return some ? made : null;
}

/** Plain mid grey wherever the stencil is white: where the model is to forget what was there. */
export function forget(image, mask) {
  for (let i = 0; i < image.data.length; i += 4) {
    if (mask.data[i]) image.data.fill(128, i, i + 3);
  }
}

/** Noise of this standard deviation, in levels of 0…255, on a picture; one value for all channels of grey. */
export function noisy(image, deviation, channels) {
  for (let i = 0; i < image.data.length; i += 4) {
    const grey = normal();
    for (let c = 0; c < 3; c++) image.data[i + c] += deviation * (channels === 1 ? grey : normal());
  }
  return image;
}

function normal() {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}

/** @returns {HTMLCanvasElement} */
export function canvasOf(image) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  if (image instanceof ImageData) canvas.getContext("2d").putImageData(image, 0, 0);
  else canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas;
}

/** @returns {Promise<Blob>} a PNG */
export const png = (image) => new Promise((resolve) => canvasOf(image).toBlob(resolve, "image/png"));

/** @returns {string} its base64 */
export const base64 = (image) => canvasOf(image).toDataURL("image/png").split(",")[1];

/** A base64 picture as an address for an <img>. */
export const source = (data) => `data:image/png;base64,${data}`;

export const blobOf = (data) => new Blob([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], { type: "image/png" });
