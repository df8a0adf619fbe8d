import type { components } from "./openapi.js";

type Schemas = components["schemas"];
type Replace<T, New> = Omit<T, keyof New> & New;

export interface ClientOptions {
  /**
   * Whether the URL is that of a site that `ign site` wrote, whose models run in this browser. The site has to allow
   * other origins to read it (CORS). Calls and options that it lacks fail with `not_supported`. `timeout` is null then.
   */
  local?: boolean;
  /** Sent as `Authorization: Bearer …`. */
  apiKey?: string;
  /** Seconds for one attempt, not for the call, which the service is told, too; 30 by default; null for the service's limit. */
  timeout?: number | null;
  /** Seconds for a whole call with its retries, a stream to its end; null, the default, for no limit. */
  deadline?: number | null;
  /** Attempts after the first one; by default as many as begin before the deadline, or without one the timeout. */
  maxRetries?: number;
  /** Instead of the global `fetch`. */
  fetch?: (url: string, init: RequestInit) => Promise<Response>;
}

/** Options of every method; they are not part of the request's body. */
export interface CallOptions {
  /** Its abort ends the call and the work of the service; the call then throws the signal's reason. */
  signal?: AbortSignal;
  timeout?: number | null;
  deadline?: number | null;
  /** 1 to 128 of A-Z a-z 0-9 . _ -, repeated in the response. */
  requestId?: string;
}

/** The content of an image file, such as a `File` or a Buffer, an image of an earlier result or, in Node, a path. */
export type ImageInput = string | Blob | ArrayBuffer | ArrayBufferView | Picture;
/** A latent: a seed (a text only as a member), an image, or the content of an `.npy` file of float32, C×H×W. */
export type Point = number | ImageInput | { seed: number | string; index?: number } | { image: ImageInput };
export type Term = Point | ({ weight?: number } & ({ seed: number | string; index?: number } | { image: ImageInput }));

export type Format = NonNullable<Schemas["GenerateRequest"]["format"]>;
export type FileFormat = Format | "tiff";
export type PathFormat = Format | "gif" | "apng";

type Sheet = "columns" | "gap";
type Upload = "images" | "masks" | "mask" | Sheet;
type Masked = { /** For all images: white is regenerated, black kept. */ mask?: ImageInput | null };
type FileOnly = "format" | "record";

export type GenerateOptions = Omit<Schemas["GenerateRequest"], Sheet> & CallOptions;
export type GenerateFileOptions = Omit<Schemas["GenerateRequest"], FileOnly> & CallOptions;
export type ProjectOptions = Omit<Schemas["ProjectRequest"], Upload> & Masked & CallOptions;
export type ProjectFileOptions = Omit<Schemas["ProjectRequest"], Exclude<Upload, Sheet> | FileOnly> & Masked & CallOptions;
export type InterpolateOptions = Omit<Schemas["InterpolateRequest"], "points" | "fps" | Sheet> & CallOptions;
export type InterpolateFileOptions = Omit<Schemas["InterpolateRequest"], "points" | "format"> & CallOptions;
export type ArithmeticOptions = Omit<Schemas["ArithmeticRequest"], "terms" | Sheet> & CallOptions;
export type ArithmeticFileOptions = Omit<Schemas["ArithmeticRequest"], "terms" | "format"> & CallOptions;
export type ScoreOptions = Omit<Schemas["ScoreRequest"], Upload | "scale"> & CallOptions;

/** One file; an image can be the input of another call. */
export class Picture {
  private constructor();
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly format: string;
  /** The same with its media type, such as for `URL.createObjectURL`. */
  readonly blob: Blob;
}

type Decoded<T> = Omit<T, "data" | "trajectory" | "format"> & Picture & { readonly format: Format };

/** One recorded step of one row; `index` is that of its image. */
export type Step = Decoded<Schemas["StepEvent"]>;
type Imaged<T> = Decoded<T> & { /** The steps of `record`. */ readonly trajectory: Step[] };
export type Image = Imaged<Schemas["Image"]>;
/** `inverted`: whether light and dark were exchanged before f. */
export type ProjectedImage = Imaged<Schemas["ProjectedImage"]>;
/** At `t` in 0…1 of a path, or at `row` and `col` of a grid. */
export type Frame = Imaged<Schemas["FrameImage"]>;

export type Generated = Replace<Schemas["GenerateAnswer"], { images: Image[] }>;
export type Projected = Replace<Schemas["ProjectAnswer"], { images: ProjectedImage[] }>;
export type Interpolated = Replace<Schemas["InterpolateAnswer"], { images: Frame[] }>;
export type Summed = Replace<Schemas["ArithmeticAnswer"], { images: Image[] }>;
export type Scores = Schemas["ScoreAnswer"];
export type Models = Schemas["ModelList"];
export type Card = Schemas["ServedCard"];

/** All rows in one file; `steps`, `distance` and `drift` have a value for each row, `drift` only with `score`. */
export interface ImageFile extends Picture {
  readonly format: FileFormat | PathFormat;
  readonly model: Schemas["ModelRef"];
  readonly request_id: string;
  readonly timing: Schemas["Timing"];
  readonly seed: number | null;
  readonly steps: number[];
  readonly distance: number[];
  readonly drift: number[];
}

/** An event of a stream; the last one is `done`, with the result that the method without a stream returns. */
export type Event<Answer> =
  | (Step & { readonly type: "step" })
  | (Schemas["ProgressEvent"] & { readonly type: "progress" })
  | { readonly type: "done"; readonly answer: Answer };

export type ClientErrorCode = "invalid_input" | "connection_failed" | "timed_out" | "unexpected_answer";

/** Every failure of a call but an abort. Of a retryable one, the last attempt's error is thrown. */
export class IgnError extends Error {
  private constructor();
  /** Of the response; 0 if there was none, or if it was not one of ign-service. */
  readonly status: number;
  /** `code` of the problem document, `unknown` if the response is none; or one of the client. */
  readonly code: ClientErrorCode | (string & {});
  readonly detail: string;
  readonly requestId: string | null;
  /** Seconds that the service asks to wait. */
  readonly retryAfter: number | null;
  /** Whether the same request may succeed later. */
  readonly retryable: boolean;
  readonly errors: Schemas["FieldError"][];
}

/**
 * The calls of the HTTP API. Options and results have its names, and its documentation describes them. The client sends
 * `generate`, `project` and `score` of more images than one request may have as several requests.
 */
export class Client {
  /** @param baseUrl http://127.0.0.1:8000 by default; in a page it may be relative. */
  constructor(baseUrl?: string | URL, options?: ClientOptions);

  /** f^k of noise. */
  generate(options?: GenerateOptions): Promise<Generated>;
  /** f^k of images. */
  project(images: ImageInput | readonly ImageInput[], options?: ProjectOptions): Promise<Projected>;
  /** f^k along a path of latents, or over a grid between four. */
  latentInterpolate(points: readonly Point[], options?: InterpolateOptions): Promise<Interpolated>;
  /** f^k of a weighted sum of latents: one image. */
  latentArithmetic(terms: readonly Term[], options?: ArithmeticOptions): Promise<Summed>;
  /** How far f moves images, compared with held-out real images. */
  score(images: ImageInput | readonly ImageInput[], options?: ScoreOptions): Promise<Scores>;

  /** As one file: an image, a sheet, or the rows as `npy` or `tiff`. */
  generateAs(form: FileFormat, options?: GenerateFileOptions): Promise<ImageFile>;
  projectAs(form: FileFormat, images: ImageInput | readonly ImageInput[], options?: ProjectFileOptions): Promise<ImageFile>;
  /** `gif`, `apng` and `webp` are animations. */
  latentInterpolateAs(form: PathFormat, points: readonly Point[], options?: InterpolateFileOptions): Promise<ImageFile>;
  latentArithmeticAs(form: FileFormat, terms: readonly Term[], options?: ArithmeticFileOptions): Promise<ImageFile>;

  /** As events, during the run. Leaving the loop cancels the work. Retries end with the first event. */
  streamGenerate(options?: GenerateOptions): AsyncGenerator<Event<Generated>, void, undefined>;
  streamProject(
    images: ImageInput | readonly ImageInput[],
    options?: ProjectOptions,
  ): AsyncGenerator<Event<Projected>, void, undefined>;

  /** The models in service, the default one, and the limits of a request. */
  models(options?: CallOptions): Promise<Models>;
  /** @param name `name` for the highest version, or `name/version`. */
  model(name: string, options?: CallOptions): Promise<Card>;
  /** Resolves while the process responds. */
  health(options?: CallOptions): Promise<{ status: string }>;
  /** Whether the service accepts requests, and why not. Status 503 is a result here: it is neither thrown nor retried. */
  ready(options?: CallOptions): Promise<{ ready: boolean; detail: string }>;
}
