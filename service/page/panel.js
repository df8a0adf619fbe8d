// A panel of the page: runs one task at a time, and shows its status, its error and its curl command.

import { Problem } from "./api.js";
import { removeToast, showToast } from "./toast.js";

const LONGEST_WAIT_S = 60; // before a request is sent again without being asked to

export class Panel {
  #abort = null;
  #before = ""; // the status before the running task

  constructor(root) {
    this.root = root;
    this.status = root.querySelector(".status");
    this.curl = root.querySelector(".curl");
    this.curl?.querySelector(".copy").addEventListener("click", (event) => this.#copy(event.currentTarget));
  }

  get isRunning() {
    return this.#abort !== null;
  }

  /**
   * Run a task; aborts the one before. Shows a status after some ms, then the result, or the error as a toast. A task that
   * the service refuses for being busy (429, 503) runs again after Retry-After.
   *
   * @param {string} label what the task does, such as "Generating"
   * @param {(signal: AbortSignal) => Promise<string | undefined>} task returns the status to show; undefined keeps it
   * @returns {Promise<boolean>} whether it succeeded
   */
  async run(label, task, delay = 250) {
    if (!this.isRunning) this.#before = this.status.textContent;
    this.stop();
    const abort = (this.#abort = new AbortController());
    this.root.setAttribute("aria-busy", "true");
    const waiting = `${label} …`;
    const timer = delay ? setTimeout(() => this.say(waiting), delay) : this.say(waiting);
    try {
      const result = await this.#persist(task, abort.signal);
      if (abort.signal.aborted) return false;
      removeToast(this.root.id);
      if (result !== undefined) this.say(result);
      return true;
    } catch (error) {
      if (!abort.signal.aborted) this.#fail(error, () => this.run(label, task, delay));
      return false;
    } finally {
      clearTimeout(timer);
      if (this.#abort === abort) {
        if (this.status.textContent === waiting) this.say(this.#before);
        this.#abort = null;
        this.root.removeAttribute("aria-busy");
      }
    }
  }

  /** Abort the running task. */
  stop() {
    this.#abort?.abort();
  }

  /** Abort the running task and clear status and error. */
  reset() {
    this.stop();
    removeToast(this.root.id);
    this.say("");
    if (this.curl) this.curl.hidden = true;
  }

  say(text) {
    if (this.status.textContent !== text) this.status.textContent = text;
  }

  /** Show the curl command of the last task, if there is one. */
  showCommand(line) {
    this.curl.hidden = line === "";
    this.curl.querySelector("code").textContent = line;
  }

  async #persist(task, signal) {
    for (;;) {
      try {
        return await task(signal);
      } catch (error) {
        const busy = error instanceof Problem && [429, 503].includes(error.status) && error.retryAfter;
        if (signal.aborted || !busy || error.retryAfter > LONGEST_WAIT_S) throw error;
        await this.#wait(error, signal);
      }
    }
  }

  /** Count the seconds of Retry-After down. */
  async #wait({ message, code, retryAfter }, signal) {
    const text = (seconds) => `${message} Trying again in ${seconds} s.`;
    const toast = showToast({ owner: this.root.id, text: text(retryAfter), facts: code, quiet: true });
    for (let left = retryAfter; left > 0; left--) {
      toast.say(text(left));
      await new Promise((resolve) => setTimeout(resolve, 1000));
      if (signal.aborted) break;
    }
    toast.remove();
    signal.throwIfAborted();
  }

  #fail(error, retry) {
    if (error.status === 401) return; // the page asks for a key
    if (!(error instanceof Problem)) console.error(error);
    const problem = error instanceof Problem ? error : new Problem({ detail: "The page failed at this.", retry: false });
    const facts = [problem.code, problem.requestId && `request ${problem.requestId}`].filter(Boolean).join(" · ");
    const action = problem.retry ? { name: "Try again", run: retry } : undefined;
    const toast = showToast({ owner: this.root.id, text: problem.message, facts, action });
    if (!problem.offline) return;
    const again = () => toast.isShown() && retry();
    addEventListener("online", again, { once: true });
  }

  async #copy(button) {
    const code = this.curl.querySelector("code");
    await copyText(code.textContent, button, () => getSelection().selectAllChildren(code));
  }
}

/** Copy a text and say so on the button; `otherwise` runs where there is no clipboard, for example without HTTPS. */
export async function copyText(text, button, otherwise) {
  const name = button.dataset.name ?? (button.dataset.name = button.textContent);
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = otherwise() ?? "Selected";
  }
  setTimeout(() => (button.textContent = name), 2000);
}
