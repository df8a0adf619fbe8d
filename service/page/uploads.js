// Uploads: images that are opened, dropped or pasted. The service converts them to the model's input.

import { Problem, callApi } from "./api.js";
import { chooseCrop } from "./crop.js";

/** Call `onFiles` with the files that are opened, dropped or pasted at once. */
export function onUpload(inputs, area, onFiles) {
  const take = (files) => files.length && onFiles([...files]);
  for (const input of inputs) {
    input.addEventListener("change", () => {
      take(input.files);
      input.value = ""; // so that the same file can be opened again
    });
  }
  addEventListener("paste", (event) => take(event.clipboardData.files));
  // On the whole page: the browser would open a file that is dropped beside the area.
  addEventListener("dragover", (event) => {
    event.preventDefault();
    area.classList.toggle("target", event.dataTransfer.types.includes("Files"));
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) area.classList.remove("target");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    area.classList.remove("target");
    take(event.dataTransfer.files);
  });
}

const pdfProblem = ({ name, tiles }) => {
  const command = tiles ? ` To clean a PDF, run: ign project --local --model ${name} scan.pdf --out clean.pdf` : "";
  return new Problem({ detail: `This page opens pictures, no PDF.${command}`, retry: false });
};

/**
 * An image as the model sees it: the part that the user chooses if the proportions are not the model's, in its size and
 * polarity. Strength 0 returns the input itself. For a model that takes any size, the whole image.
 *
 * @returns {Promise<ImageBitmap | null>} null if the user cancels
 */
export async function prepareUpload(file, { card, model, limits, signal }) {
  let picture;
  if ((await file.slice(0, 5).text()) === "%PDF-") throw pdfProblem(card);
  try {
    picture = await createImageBitmap(file); // turned as its EXIF data says
  } catch {
    throw new Problem({ detail: `${file.name} is no picture that this browser can read.`, retry: false });
  }
  if (card.tiles) return reduced(picture, limits.pixels);
  const [, height, width] = card.shape;
  const part = await chooseCrop(picture, width / height);
  if (!part) return null;
  const form = new FormData();
  form.append("image", part, "picture.png");
  for (const [name, value] of Object.entries({ model, strength: "0", steps: "1", resize: "stretch" })) {
    form.append(name, value);
  }
  const response = await callApi("project", { form, accept: "image/png", signal });
  return createImageBitmap(await response.blob());
}

/** The image with at most so many pixels; with a note that says so, if it had more. */
async function reduced(picture, most) {
  const scale = Math.sqrt(most / (picture.width * picture.height));
  if (scale >= 1) return picture;
  const { width, height } = picture;
  const [resizeWidth, resizeHeight] = [width, height].map((side) => Math.max(1, Math.floor(side * scale)));
  const sizes = `${resizeWidth} × ${resizeHeight} pixels, not ${width} × ${height}`;
  const note = `The result has ${sizes}: at most ${Math.floor(most / 1e6)} million can be made here.`;
  const smaller = await createImageBitmap(picture, { resizeWidth, resizeHeight, resizeQuality: "high" });
  return Object.assign(smaller, { note });
}
