// Panel “Make it real”: applies f to the drawing, live while it changes, with one request in flight.

import { callJson, curlCommand } from "./api.js";
import { byId } from "./dom.js";
import { NOISE, toGrey, toSketch, withNoise } from "./effects.js";
import { Panel } from "./panel.js";
import { decodePixels, inkOf, toBase64, toCanvas, toJpeg, toPng } from "./pixels.js";
import { projectTiles, showProgress } from "./progress.js";
import { Result } from "./result.js";
import { saveUrl } from "./saving.js";
import { onUpload, prepareUpload } from "./uploads.js";
import { formatApplied, formatTimes, judge, showVerdict } from "./verdict.js";

const BLANK = 0.002; // least ink of a drawing, as a share of the range
const MASK_STEPS = 8; // with fewer, a large hole stays grey
const DRAWING_STEPS = 8; // of a model that takes several from noise: with 4, the mouth of a drawn face stays smeared

export class ProjectPanel extends EventTarget {
  #panel = new Panel(byId("real"));
  #uploads = new Panel(byId("real")); // of pictures for the canvas: the newest ends those before, but no projection
  #placing = null; // a promise of the newest
  #wanted = false; // whether the drawing has changed since the last request
  running = null; // a promise, while requests are sent
  #stepsChosen = false; // by the user, for this model
  #samples = null;
  #source = {}; // of the picture on the canvas: {name: of the file, note: about its size}

  constructor(canvas, models) {
    super();
    [this.canvas, this.models] = [canvas, models];
    this.result = new Result((image) => {
      canvas.placeImage(image);
      byId("drawing").scrollIntoView({ block: "nearest" });
    });
    byId("go").addEventListener("click", () => this.project());
    byId("cancel").addEventListener("click", () => this.#cancel());
    for (const name of ["steps", "strength"]) {
      byId(name).addEventListener("input", () => {
        this.#stepsChosen ||= name === "steps";
        this.#showSettings();
        this.#changed();
      });
      // A page takes seconds: once the slider is let go, and at once.
      byId(name).addEventListener("change", () => {
        if (!this.card.tiles || (!this.result.made && !this.running)) return;
        this.#panel.stop();
        this.project();
      });
    }
    byId("live").addEventListener("change", () => {
      byId("go").hidden = byId("live").checked;
      this.#changed();
    });
    byId("forget").addEventListener("change", () => this.#changed());
    for (const event of ["changed", "extended"]) canvas.addEventListener(event, () => this.#changed());
    // A result that came while the pen was down is that of the whole stroke, if nothing was drawn since.
    canvas.addEventListener("finished", () => this.isSettled && this.dispatchEvent(new Event("projected")));
    byId("noise").addEventListener("click", () => this.edit((image) => withNoise(image, NOISE, this.card.shape[0])));
    byId("grey").addEventListener("click", () => this.edit(toGrey));
    byId("sketch").addEventListener("click", () => this.edit(toSketch));
    byId("save-drawing").addEventListener("click", () => this.#saveDrawing());
    onUpload([byId("file"), byId("photo")], byId("drawing"), (files) => {
      if (!this.card) return; // dropped or pasted before the models are loaded
      if (this.card.tiles) this.dispatchEvent(new CustomEvent("opened", { detail: files }));
      else this.place(files[0]).then((placed) => placed && !byId("live").checked && this.project());
    });
  }

  /** Switch to another model. */
  setModel(card) {
    this.#stepsChosen &&= this.card.digest === card.digest;
    this.card = card;
    this.#samples = null;
    this.#wanted = false; // of the model before
    byId("steps").max = Math.min(16, this.models.limits.steps);
    for (const id of ["grey", "sketch"]) byId(id).hidden = card.shape[0] === 1;
    this.#panel.reset();
    this.result.setModel(card);
    showVerdict({ words: "" });
    // Nobody draws on an image of any size, and it takes seconds.
    byId("live").checked = !card.tiles;
    byId("live").parentElement.hidden = Boolean(card.tiles);
    byId("go").hidden = true;
    this.#changed();
  }

  /** Whether nothing is on the canvas, or on its way there. */
  get isFree() {
    return this.canvas.isEmpty && !this.#uploads.isRunning;
  }

  /** Whether there is a result, and it belongs to what is on the canvas, with the pen up. */
  get isSettled() {
    return this.result.isCurrent && !this.canvas.isDrawing;
  }

  /** Generated pictures, which verdicts compare with. A result that came before them is judged again. */
  get samples() {
    return this.#samples;
  }

  set samples(samples) {
    this.#samples = samples;
    if (this.result.measured) this.#showVerdict(this.result.measured);
  }

  /** What the next request sends beside the picture, as text. */
  get settings() {
    return [byId("steps").value, byId("strength").value, byId("forget").checked, this.models.reference].join();
  }

  /** What the next request sends, as text: results of another one are out of date. */
  get #mark() {
    return `${this.canvas.revision},${this.settings}`;
  }

  #changed() {
    if (!this.card) return;
    if (!this.#stepsChosen) {
      const { generate, project } = this.card.steps;
      const usual = this.canvas.isMasked ? MASK_STEPS : Math.min(DRAWING_STEPS, generate);
      byId("steps").value = Math.max(usual, project);
      this.#showSettings();
    }
    this.result.expect(this.#mark);
    // An example that draws itself makes one request, at its end.
    if (this.canvas.isPlaying) showVerdict({ words: "" });
    else if (byId("live").checked) this.project();
    else if (this.result.made) showVerdict({ words: this.card.tiles ? "" : "Press “Make it real” to see the result." });
  }

  /** Show f^k of the drawing as it is now; if a request is in flight, after that. */
  project() {
    if (this.card.tiles) byId("go").hidden = true;
    this.#wanted = true;
    this.running ??= this.#run();
  }

  async #run() {
    // Two events of one gesture make one request.
    await new Promise(requestAnimationFrame);
    const label = this.card.tiles ? "Applying the network" : "Making it real";
    while (this.#wanted) await this.#panel.run(label, (signal) => this.#once(signal));
    this.running = null;
    showProgress(null);
  }

  async #once(signal) {
    this.#wanted = false;
    const [mark, settings, { name: source, note }] = [this.#mark, this.settings, this.#source];
    const { image, mask } = this.canvas.modelInput({ greyUnderMask: byId("forget").checked });
    if (inkOf(image, this.card) < BLANK && !mask) {
      this.result.clear();
      showVerdict({ words: "Draw something first." });
      return undefined;
    }
    const { card } = this;
    const [steps, strength] = [byId("steps").valueAsNumber, byId("strength").valueAsNumber / 100];
    // Of a page, the original is shown, with its colours.
    const options = { steps, strength, ...(card.tiles ? {} : { record: "0", score: true }) };
    const request = { form: await this.#form(image, mask, options), signal };
    const answer = card.tiles ? await projectTiles(request) : (await callJson("project", request)).images[0];
    const { data: made, distance, drift } = answer;
    const seen = card.tiles ? await toBase64(request.form.get("image")) : answer.trajectory[0].data;
    const pixels = card.tiles ? null : await decodePixels(made);
    const measured = { distance, drift, image, pixels, note: [formatApplied(steps, strength, card), note].join(" ") };
    await this.#placing; // the next picture, which ends this unless it cannot be read
    signal.throwIfAborted();
    const description = `${card.tiles ? source : "The drawing"} made real ${formatTimes(steps)}`;
    this.showResult({ seen, made, description, measured, source, settings }, mark);
    this.#showCommand(options, mask);
    this.dispatchEvent(new Event("projected"));
    return undefined;
  }

  #showVerdict(measured) {
    showVerdict(judge(measured, this.card, this.samples), { drawing: this.canvas.isDrawing });
  }

  /** Show a result of what is on the canvas. */
  showResult(result, mark = this.#mark) {
    this.result.expect(this.#mark);
    this.result.show({ ...result, mark });
    if (this.card.tiles) byId("go").hidden = true;
    this.#showVerdict(result.measured);
  }

  /** End what is on its way, of the page and of those that wait. */
  #cancel() {
    this.#wanted = false;
    for (const panel of [this.#uploads, this.#panel]) panel.stop();
    showProgress(null);
    this.result.expect(this.#mark);
    showVerdict({ words: "Cancelled." });
    byId("go").hidden = this.isSettled || this.canvas.isEmpty;
    byId("go").focus({ preventScroll: true }); // the focused button is hidden
    this.dispatchEvent(new Event("cancelled"));
  }

  async #form(image, mask, options) {
    const form = new FormData();
    const png = await toPng(image); // that of a large photograph is more than a body may have
    form.append("image", png.size < 0.95 * this.models.limits.body_bytes ? png : await toJpeg(image), "drawing.png");
    if (mask) form.append("mask", await toPng(mask), "mask.png");
    // The canvas already has the polarity and the size of the model.
    for (const [name, value] of Object.entries({ model: this.models.reference, invert: false, ...options })) {
      form.append(name, String(value));
    }
    return form;
  }

  #showCommand({ steps, strength }, mask) {
    const fields = [["image", "@drawing.png"], ["model", this.models.reference], ["steps", String(steps)]];
    if (mask) fields.push(["mask", "@mask.png"]);
    if (strength < 1) fields.push(["strength", String(strength)]);
    fields.push(["invert", "false"]);
    this.#panel.showCommand(curlCommand("project", { fields, accept: "image/png", file: "real.png" }));
  }

  /** Replace the drawing by a function of it. */
  edit(change) {
    const { image } = this.canvas.modelInput();
    this.canvas.placeImage(toCanvas(change(image)));
  }

  /** Make an image real; its result, or null if that failed or another picture came. */
  async openAndProject(source) {
    showProgress(0); // reading a large file takes a second
    if (!(await this.place(source))) {
      if (!this.#uploads.isRunning && !this.running) showProgress(null);
      return null;
    }
    const { revision } = this.canvas;
    this.project();
    await this.running;
    return this.canvas.revision === revision ? this.result.current : null;
  }

  /** Put an image on the canvas: a file, or what a URL has. Whether that succeeded. */
  place(source) {
    const { card, models } = this;
    return this.#place(async (signal) => {
      const fetched = source instanceof URL && (await (await fetch(source, { signal })).blob());
      const file = fetched ? new File([fetched], source.pathname.split("/").at(-1)) : source;
      const picture = await prepareUpload(file, { card, model: models.reference, limits: models.limits, signal });
      return picture && [picture, () => {
        this.#source = { name: file.name, note: picture.note };
        this.canvas.placeImage(picture);
      }];
    }, 0);
  }

  /** Show an image and its result, once they are there, as an example: the first action of the user replaces it. */
  showExample(load) {
    return this.#place(async () => {
      const { image, result } = await load();
      return [image, () => {
        this.#source = { name: result.source };
        this.canvas.showExample([{ kind: "image", layer: "paint", image }]);
        this.showResult(result);
      }];
    });
  }

  /** End what is on its way to the canvas. */
  stopPlacing() {
    this.#uploads.stop();
  }

  /** Show what `load` returns, an image and how to show it, unless another one is wanted meanwhile. */
  #place(load, delay) {
    this.#placing = this.#uploads.run("Reading the picture", async (signal) => {
      this.result.expect(null);
      try {
        const [image, show] = (await load(signal)) ?? [];
        if (!image || signal.aborted) return undefined;
        if (this.card.tiles) this.dispatchEvent(new CustomEvent("sized", { detail: [image.height, image.width] }));
        show();
      } finally {
        if (!signal.aborted) this.result.expect(this.#mark);
      }
      return undefined;
    }, delay);
    return this.#placing;
  }

  #saveDrawing() {
    const { image, mask } = this.canvas.modelInput({ greyUnderMask: byId("forget").checked });
    for (const [name, pixels] of [["drawing.png", image], ["mask.png", mask]]) {
      if (pixels) saveUrl(toCanvas(pixels).toDataURL(), name);
    }
  }

  #showSettings() {
    const steps = formatTimes(byId("steps").valueAsNumber);
    byId("steps-out").value = steps;
    byId("steps").setAttribute("aria-valuetext", steps);
    byId("strength-out").value = `${byId("strength").value} %`;
  }
}
