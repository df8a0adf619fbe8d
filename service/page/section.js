// A part of the page that asks the service: one task at a time, its status and its problem in place.

import { Problem } from "./api.js";
import { make } from "./dom.js";

export class Section {
  #abort = null;
  #timer = 0;

  constructor(root) {
    this.root = root;
    this.status = root.querySelector(".status");
    this.problem = root.querySelector(".problem");
    this.curl = root.querySelector(".curl");
    this.curl?.querySelector("button").addEventListener("click", (event) => this.#copy(event.currentTarget));
  }

  /** Run a task in place of the one before, which is given up; what goes wrong is shown here. */
  async run(doing, task) {
    this.#abort?.abort();
    const abort = (this.#abort = new AbortController());
    this.root.setAttribute("aria-busy", "true");
    const slow = setTimeout(() => this.say(`${doing} …`), 250);
    try {
      const result = await task(abort.signal);
      if (abort.signal.aborted) return;
      this.clear();
      this.say(result ?? "");
    } catch (error) {
      if (abort.signal.aborted) return;
      this.say("");
      this.#fail(error, () => this.run(doing, task));
    } finally {
      clearTimeout(slow);
      if (this.#abort === abort) {
        this.#abort = null;
        this.root.removeAttribute("aria-busy");
      }
    }
  }

  /** Give up what is under way, and forget what went wrong. */
  reset() {
    this.#abort?.abort();
    this.clear();
    this.say("");
    if (this.curl) this.curl.hidden = true;
  }

  say(text) {
    if (this.status.textContent !== text) this.status.textContent = text;
  }

  clear() {
    clearTimeout(this.#timer);
    this.problem.hidden = true;
    this.problem.replaceChildren();
  }

  /** The command line of what was done last. */
  explain(line) {
    this.curl.hidden = false;
    this.curl.querySelector("code").textContent = line;
  }

  #fail(error, again) {
    clearTimeout(this.#timer);
    if (!(error instanceof Problem)) console.error(error);
    const known = error instanceof Problem ? error : new Problem({ detail: "The page failed at this.", retry: false });
    const facts = [known.code, known.requestId && `request ${known.requestId}`].filter(Boolean).join(" · ");
    this.problem.replaceChildren(make("p", {}, known.message));
    if (known.retryAfter) {
      const unit = known.retryAfter === 1 ? "second" : "seconds";
      this.problem.append(make("p", {}, `It can be tried again in ${known.retryAfter} ${unit}.`));
    }
    if (facts) this.problem.append(make("p", { className: "facts" }, facts));
    if (known.retry) this.problem.append(this.#retry(again, known.retryAfter ?? 0));
    this.problem.hidden = false;
  }

  #retry(again, seconds) {
    const button = make("button", { type: "button", disabled: seconds > 0 }, "Try again");
    button.addEventListener("click", again);
    this.#timer = setTimeout(() => (button.disabled = false), seconds * 1000);
    return button;
  }

  async #copy(button) {
    const code = this.curl.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // where the page is not trusted with the clipboard
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  }
}
