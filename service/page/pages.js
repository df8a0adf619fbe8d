// The pages that were opened together: they are made real one after the other, can be shown again, and saved as one file.

import { byId, createElement } from "./dom.js";
import { toBlob } from "./pixels.js";
import { saveBlob, zipOf } from "./saving.js";
import { showToast } from "./toast.js";

const NO_PICTURES = /^(text|audio|video)\//; // types of files that are not tried among others

export class Pages {
  #items = new Map(); // model → [{file, result}]; the result is undefined while it is awaited, null if there will be none
  #current = null; // the item that is shown
  #running = null; // the items that are being made real

  /** @param {{project: ProjectPanel, canvas: DrawingCanvas}} parts */
  constructor({ project, canvas }) {
    Object.assign(this, { project, canvas });
    byId("save-all").addEventListener("click", () => this.#save());
    project.addEventListener("cancelled", () => this.#cancel());
    project.addEventListener("projected", () => {
      const result = project.result.current; // of other settings, too
      const [current, idle] = [this.#current, !this.#running];
      if (current && idle && result?.source === current.file.name) current.result = result;
    });
  }

  setModel(card) {
    this.card = card;
    this.#running = null;
    byId("page-of").textContent = "";
    this.#show(null);
  }

  /** The pages that have a result, or wait for it. */
  get #list() {
    const items = this.#items.get(this.card.name) ?? [];
    return items.filter(({ result }) => result || (result === undefined && items === this.#running));
  }

  /** Whether pages of this model were opened before. */
  get hasSome() {
    return this.#list.length > 0;
  }

  /** Make these files real, in their order; one that fails leaves nothing behind. */
  async open(files) {
    const pictures = files.filter(({ type }) => files.length === 1 || !NO_PICTURES.test(type));
    const items = (this.#running = pictures.map((file) => ({ file })));
    const before = this.#list;
    this.#items.set(this.card.name, items);
    this.#show();
    for (const [i, item] of items.entries()) {
      byId("page-of").textContent = items.length > 1 ? `Page ${i + 1} of ${items.length}` : "";
      item.result = await this.project.openAndProject(item.file);
      if (this.#running !== items) return; // others came meanwhile
      this.#show(item.result ? item : this.#current);
    }
    this.#running = null;
    byId("page-of").textContent = "";
    if (this.#list.length === 0) this.#items.set(this.card.name, before);
    this.#show();
    const failed = files.filter((file) => !pictures.includes(file) || items.some((item) => item.file === file && !item.result));
    if (files.length > 1 && failed.length) {
      showToast({ owner: "pages", text: `Not cleaned: ${failed.map(({ name }) => name).join(", ")}.` });
    }
    const [cancelled, last] = [items.length < pictures.length, this.#list.at(-1)];
    if (cancelled && last?.result.settings === this.project.settings) await this.showAgain(last);
  }

  /** Leave out the page in work and those that wait. */
  #cancel() {
    const items = this.#running ?? [];
    items.splice(items.filter(({ result }) => result !== undefined).length);
  }

  /** Show a page and its result again; without one, the last. */
  async showAgain(item = this.#list.at(-1)) {
    if (!item) return;
    const { project } = this;
    this.#current = item;
    if (item.result.settings !== project.settings) item.result = (await project.openAndProject(item.file)) ?? item.result;
    else if (await project.place(item.file)) project.showResult(item.result);
    this.#show();
  }

  #show(current = this.#current) {
    this.#current = current;
    const items = this.card.tiles ? this.#list : [];
    byId("pages").hidden = items.length < 2;
    byId("save-all").disabled = this.#running !== null;
    byId("page-list").replaceChildren(...items.map((item, i) => this.#button(item, `Page ${i + 1}`, item === current)));
  }

  #button(item, name, current) {
    const properties = { type: "button", title: item.file.name, disabled: this.#running !== null, "aria-pressed": String(current) };
    const button = createElement("button", properties, name);
    button.addEventListener("click", () => this.showAgain(item));
    return createElement("li", {}, button);
  }

  async #save() {
    for (const item of this.#list) if (item.result.settings !== this.project.settings) await this.showAgain(item);
    const files = this.#list.map(({ file, result }, i) => [`${i + 1}-${file.name.replace(/\.[^.]*$/, "")}.png`, toBlob(result.made)]);
    saveBlob(await zipOf(files), "pages.zip");
  }
}
