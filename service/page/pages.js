// The pages that were opened together: they are made real one after the other, can be shown again, and saved as one file.

import { byId, createElement } from "./dom.js";
import { toBlob } from "./pixels.js";
import { saveBlob, zipOf } from "./saving.js";

export class Pages {
  #items = new Map(); // model → [{file, result}]; the result is null while there is none
  #running = false;

  /** @param {{project: ProjectPanel, canvas: DrawingCanvas}} parts */
  constructor({ project, canvas }) {
    Object.assign(this, { project, canvas });
    byId("save-all").addEventListener("click", () => this.#save());
  }

  setModel(card) {
    this.card = card;
    this.#show();
  }

  get #list() {
    return this.#items.get(this.card.name) ?? [];
  }

  /** Whether pages of this model were opened before. */
  get hasSome() {
    return this.#list.length > 0;
  }

  /** Make these files real, in their order; one that fails stays without a result. */
  async open(files) {
    const items = files.map((file) => ({ file, result: null }));
    const { card } = this;
    this.#items.set(card.name, items);
    this.#running = true;
    this.#show();
    for (const item of items) {
      item.result = await this.project.openAndProject(item.file);
      if (this.card !== card || this.#items.get(card.name) !== items) return; // others came meanwhile
      this.#show(item);
    }
    this.#running = false;
    this.#show(items.at(-1));
  }

  /** Show a page and its result again; without one, the last. */
  async showAgain(item = this.#list.findLast(({ result }) => result)) {
    if (!item) return;
    if (!(await this.project.place(item.file))) return;
    this.project.showResult(item.result);
    this.#show(item);
  }

  #show(current) {
    const items = this.card.tiles ? this.#list : [];
    byId("pages").hidden = items.length < 2;
    byId("save-all").disabled = this.#running || !items.some(({ result }) => result);
    byId("page-list").replaceChildren(...items.map((item, i) => this.#button(item, `Page ${i + 1}`, item === current)));
  }

  #button(item, name, current) {
    const properties = { type: "button", title: item.file.name, disabled: !item.result || this.#running, "aria-pressed": String(current) };
    const button = createElement("button", properties, name);
    button.addEventListener("click", () => this.showAgain(item));
    return createElement("li", {}, button);
  }

  async #save() {
    const done = this.#list.filter(({ result }) => result);
    const files = done.map(({ file, result }, i) => [`${i + 1}-${file.name.replace(/\.[^.]*$/, "")}.png`, toBlob(result.made)]);
    saveBlob(await zipOf(files), "pages.zip");
  }
}
