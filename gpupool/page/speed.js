// Tokens per second of a slot. The pool counts tokens twice: as they come, where it sees them come,
// and all of them when an answer is whole. Each is to count once, as early as it was seen.

const SHOWN_OVER = 3; // polls: a single one is too short to be read

export class Speed {
  #last = null;
  #ahead = 0; // tokens that were seen, and whose answers are not whole yet
  #recent = [];

  // The speed since the last call, null if there was none.
  feed(now, given, seen, inflight) {
    const last = this.#last;
    this.#last = { now, given, seen };
    if (!last || given === null || given < last.given || seen < last.seen) {
      this.#ahead = 0; // the first answer, or a pool that was started anew
      this.#recent = [];
      return null;
    }
    let tokens = seen - last.seen;
    this.#ahead += tokens - (given - last.given);
    if (this.#ahead < 0) {
      tokens -= this.#ahead;
      this.#ahead = 0;
    }
    if (!inflight) this.#ahead = 0; // left behind by those who went away
    const seconds = (now - last.now) / 1000;
    this.#recent = [...this.#recent, { tokens, seconds }].slice(-SHOWN_OVER);
    return tokens / seconds;
  }

  // What to write beside the curve.
  get shown() {
    const sum = (name) => this.#recent.reduce((total, one) => total + one[name], 0);
    return this.#recent.length ? sum("tokens") / sum("seconds") : null;
  }
}
