// Images, masks and latents of any accepted type as bytes, and the bodies of requests.

import { Picture } from "./answers.js";
import { IgnError, invalid } from "./errors.js";

const NPY = "\x93NUMPY";
const TIFF = ["II*\0", "MM\0*"];
const ALONE = 2 ** 62; // more than a request may have
const PER_PART = 512; // bytes of a part's headers
const FILES = "node:fs/promises"; // a variable, so that bundlers for browsers do not look for it
const BASE64_CHUNK = 1 << 15; // arguments of a call

const textOf = (bytes) => String.fromCharCode(...bytes);
const isLatent = (bytes) => textOf(bytes.subarray(0, NPY.length)) === NPY;
const mayHavePages = (bytes) => TIFF.includes(textOf(bytes.subarray(0, 4)));

async function contentOf(source, field) {
  if (source instanceof Picture) return source.bytes;
  if (source instanceof ArrayBuffer) return new Uint8Array(source);
  if (ArrayBuffer.isView(source)) return new Uint8Array(source.buffer, source.byteOffset, source.byteLength);
  if (typeof source === "string" && globalThis.process?.versions?.node) {
    const { readFile } = await import(/* webpackIgnore: true */ /* @vite-ignore */ FILES);
    return readFile(source).catch((cause) => { throw invalid(field, cause.message, cause); });
  }
  if (!(source instanceof Blob)) throw invalid(field, "expected a Blob, an ArrayBuffer, bytes, an image of a result or, in Node, a path");
  return new Uint8Array(await source.arrayBuffer().catch((cause) => { throw invalid(field, cause.message, cause); }));
}

async function picture(source, field) {
  const bytes = await contentOf(source, field);
  if (isLatent(bytes)) throw invalid(field, "an .npy file is a latent, not an image");
  return bytes;
}

/** One or several images as the content of files. */
export async function pictures(images) {
  if (!Array.isArray(images)) return [await picture(images, "images")];
  if (images.length === 0) throw invalid("images", "at least one is required");
  return Promise.all(images.map((image, i) => picture(image, `images.${i}`)));
}

/** The number of images, null if the service counts the pages of a TIFF. */
export const countOf = (contents) => (contents.some(mayHavePages) ? null : contents.length);

/** A multipart form of images and options. */
export async function formOf(contents, { mask, ...sent }) {
  const form = new FormData();
  for (const [name, value] of Object.entries(sent)) if (value !== undefined && value !== null) form.append(name, value);
  for (const bytes of contents) form.append("image", new Blob([bytes]), "image");
  if (mask) form.append("mask", new Blob([await picture(mask, "mask")]), "mask");
  return form;
}

/** Neighbours that fit in one request; a file that may have pages has its own. @returns {[number, Uint8Array[]][]} */
export function groups(contents, most, room) {
  const found = [];
  let total = Infinity;
  contents.forEach((bytes, i) => {
    const size = mayHavePages(bytes) ? ALONE : bytes.length + PER_PART;
    if (total + size > room || found.at(-1)[1].length >= most) {
      found.push([i, []]);
      total = 0;
    }
    found.at(-1)[1].push(bytes);
    total += size;
  });
  return found;
}

/** Latents as members of a JSON body. */
export async function latents(values, field) {
  if (!Array.isArray(values)) throw invalid(field, "expected an array of latents");
  return Promise.all(values.map((value, i) => latent(value, `${field}.${i}`)));
}

async function latent(value, field) {
  if (typeof value === "number") return { seed: value };
  const isMember = Object.getPrototypeOf(Object(value)) === Object.prototype;
  const { image, ...others } = isMember ? value : { image: value };
  if (isMember && image === undefined) return others;
  const bytes = await contentOf(image, field);
  return { ...others, [isLatent(bytes) ? "latent" : "image"]: toBase64(bytes) };
}

function toBase64(bytes) {
  const starts = Array.from({ length: Math.ceil(bytes.length / BASE64_CHUNK) }, (_, i) => i * BASE64_CHUNK);
  return btoa(starts.map((at) => textOf(bytes.subarray(at, at + BASE64_CHUNK))).join(""));
}

export function json(value) {
  const check = (name, member) => {
    if (typeof member !== "number" || Number.isFinite(member)) return member;
    throw invalid(name, `${member} cannot be sent`);
  };
  try {
    return JSON.stringify(value, check);
  } catch (error) {
    throw error instanceof IgnError ? error : invalid("options", error.message, error);
  }
}
