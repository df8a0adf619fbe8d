// Pictures from outside, opened, dropped or pasted: the service makes them what its model sees, and that is painted on.

import { Problem, ask } from "./api.js";
import { blobOf } from "./pixels.js";

const KINDS = ["image/png", "image/jpeg", "image/webp"];

/** Call `take` with every picture that is opened, dropped or pasted. */
export function incoming(input, area, take) {
  input.addEventListener("change", () => {
    if (input.files[0]) take(input.files[0]);
    input.value = ""; // the same one may be opened again
  });
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files][0];
    if (file) take(file);
  });
  // Everywhere, since a picture that misses the area would replace the page.
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
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
}

/**
 * A picture as the model sees it: turned, cut to its shape, in its polarity. Strength 0 asks for just that.
 *
 * @returns {Promise<ImageBitmap>}
 */
export async function prepared(file, { model, limits, signal }) {
  if (file.type && !KINDS.includes(file.type)) {
    throw new Problem({ detail: `${file.name} is no PNG, JPEG or WebP.`, retry: false });
  }
  if (file.size >= limits.body_bytes) {
    const most = Math.floor(limits.body_bytes / 2 ** 20);
    throw new Problem({ detail: `${file.name} is larger than the ${most} MiB that this service takes.`, retry: false });
  }
  const form = new FormData();
  form.append("image", file);
  for (const [name, value] of Object.entries({ model, strength: "0", steps: "1" })) form.append(name, value);
  const response = await ask("project", { form, accept: "image/png", signal });
  return createImageBitmap(await response.blob());
}

/** @returns {Promise<ImageBitmap>} of a base64 PNG */
export const decoded = (data) => createImageBitmap(blobOf(data));
