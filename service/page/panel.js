// A panel of the page: runs one task at a time, and shows its status, its error and its curl command.

import { Problem } from "./api.js";
import { createElement } from "./dom.js";

export class Panel {
  #abort = null;
  #timer = 0;

  constructor(root) {
    this.root = root;
    this.status = root.querySelector(".status");
    this.problem = root.querySelector(".problem");
    this.curl = root.querySelector(".curl");
    this.curl?.querySelector("button").addEventListener("click", (event) => this.#copy(event.currentTarget));
  }

  /**
   * Run a task; aborts the one before. Shows a status after 250 ms, then the result or the error.
   *
   * @param {string} label what the task does, such as "Generating"
   * @param {(signal: AbortSignal) => Promise<string | undefined>} task returns the status to show
   */
  async run(label, task) {
    this.#abort?.abort();
    const abort = (this.#abort = new AbortController());
    this.root.setAttribute("aria-busy", "true");
    const timer = setTimeout(() => this.say(`${label} …`), 250);
    try {
      const result = await task(abort.signal);
      if (abort.signal.aborted) return;
      this.clear();
      this.say(result ?? "");
    } catch (error) {
      if (abort.signal.aborted) return;
      this.say("");
      this.#fail(error, () => this.run(label, task));
    } finally {
      clearTimeout(timer);
      if (this.#abort === abort) {
        this.#abort = null;
        this.root.removeAttribute("aria-busy");
      }
    }
  }

  /** Abort the running task and clear status and error. */
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

  /** Show the curl command of the last task. */
  showCommand(line) {
    this.curl.hidden = false;
    this.curl.querySelector("code").textContent = line;
  }

  #fail(error, retry) {
    clearTimeout(this.#timer);
    if (!(error instanceof Problem)) console.error(error);
    const failure = { detail: "The page failed at this.", retry: false };
    const problem = error instanceof Problem ? error : new Problem(failure);
    const facts = [problem.code, problem.requestId && `request ${problem.requestId}`].filter(Boolean).join(" · ");
    this.problem.replaceChildren(createElement("p", {}, problem.message));
    if (problem.retryAfter) {
      const unit = problem.retryAfter === 1 ? "second" : "seconds";
      this.problem.append(createElement("p", {}, `It can be tried again in ${problem.retryAfter} ${unit}.`));
    }
    if (facts) this.problem.append(createElement("p", { className: "facts" }, facts));
    if (problem.retry) this.problem.append(this.#retryButton(retry, problem.retryAfter ?? 0));
    this.problem.hidden = false;
  }

  #retryButton(retry, seconds) {
    const button = createElement("button", { type: "button", disabled: seconds > 0 }, "Try again");
    button.addEventListener("click", retry);
    this.#timer = setTimeout(() => (button.disabled = false), seconds * 1000);
    return button;
  }

  async #copy(button) {
    const code = this.curl.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // no clipboard access, for example without HTTPS
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  }
}
