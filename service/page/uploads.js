// Uploads: images that are opened, dropped or pasted. The service converts them to the model's input.

import { Problem, callApi } from "./api.js";
import { toBlob } from "./pixels.js";

const TYPES = ["image/png", "image/jpeg", "image/webp"];

/** Call `onFile` with each image file that is opened, dropped or pasted. */
export function onUpload(input, area, onFile) {
  input.addEventListener("change", () => {
    if (input.files[0]) onFile(input.files[0]);
    input.value = ""; // so that the same file can be opened again
  });
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files][0];
    if (file) onFile(file);
  });
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
    if (event.dataTransfer.files[0]) onFile(event.dataTransfer.files[0]);
  });
}

/**
 * An image as the model sees it: rotated, fitted to its shape, in its polarity. Strength 0 returns the input itself.
 *
 * @returns {Promise<ImageBitmap>}
 */
export async function prepareUpload(file, { model, limits, signal }) {
  if (file.type && !TYPES.includes(file.type)) {
    throw new Problem({ detail: `${file.name} is no PNG, JPEG or WebP.`, retry: false });
  }
  if (file.size >= limits.body_bytes) {
    const limit = Math.floor(limits.body_bytes / 2 ** 20);
    const detail = `${file.name} is larger than the ${limit} MiB that this service takes.`;
    throw new Problem({ detail, retry: false });
  }
  const form = new FormData();
  form.append("image", file);
  for (const [name, value] of Object.entries({ model, strength: "0", steps: "1" })) form.append(name, value);
  const response = await callApi("project", { form, accept: "image/png", signal });
  return createImageBitmap(await response.blob());
}

/** @returns {Promise<ImageBitmap>} of a base64 PNG */
export const decodeImage = (data) => createImageBitmap(toBlob(data));
