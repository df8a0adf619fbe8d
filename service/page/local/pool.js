// Workers that run models. Threads of one runtime would need headers that few web servers send.

// Each takes up to half a GB for tiles. A browser that does not say how much memory there is may be on a phone.
const MOST = Math.max(1, Math.min(4, navigator.hardwareConcurrency, Math.floor((navigator.deviceMemory ?? 4) / 2)));
const BROKEN = { problem: { detail: "The program that runs the models could not be loaded.", status: 503 } };

/** A worker of `runner.js`, which starts with its first task. */
class Runner {
  #worker = null;

  /** The answer to a task, {y} or {problem}. */
  async ask(task) {
    this.#worker ??= startRunner();
    const answer = await new Promise((resolve) => {
      this.#worker.onmessage = ({ data }) => resolve(data.broken ? BROKEN : data);
      this.#worker.onerror = (event) => resolve(BROKEN, event.preventDefault());
      this.#worker.postMessage(task);
    });
    if (answer.problem && !answer.problem.retry) {
      this.#worker.terminate(); // out of memory, the runtime is of no use
      this.#worker = null;
    }
    return answer;
  }
}

/** Lets each runner do one task at a time, urgent ones first. */
export class Pool {
  #most = MOST;
  #count = 0; // of runners
  #idle = [];
  #waiting = { urgent: [], other: [] };

  /**
   * f of some rows.
   *
   * @param {object} task of `runner.js`
   * @param {{signal: AbortSignal, urgent?: boolean, beside?: boolean}} how beside: with another runner than other tasks
   * @returns {Promise<Float32Array>}
   */
  async run(task, how) {
    const runner = await this.#take(how);
    const before = this.#count;
    const { y, problem } = how.signal.aborted ? {} : await runner.ask(task);
    const isOneOfSeveral = problem && !problem.retry && Math.max(before, this.#count) > 1;
    if (isOneOfSeveral && this.#count > 1) this.#most = --this.#count; // there was no memory for so many
    else this.#give(runner);
    how.signal.throwIfAborted();
    if (isOneOfSeveral) return this.run(task, how);
    if (problem) throw Object.assign(new Error(problem.detail), problem);
    return y;
  }

  #take({ urgent = false, beside = false }) {
    if (this.#idle.length > 0) return this.#idle.pop();
    if (this.#count < (beside ? this.#most : 1)) {
      this.#count++;
      return new Runner();
    }
    return new Promise((resolve) => this.#waiting[urgent ? "urgent" : "other"].push(resolve));
  }

  #give(runner) {
    const next = this.#waiting.urgent.shift() ?? this.#waiting.other.shift();
    if (next) next(runner);
    else this.#idle.push(runner);
  }
}
