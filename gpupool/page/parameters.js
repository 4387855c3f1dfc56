// What a request asks for besides its text. The server knows the limits and says them.

import { byId } from "./dom.js";

const NUMBERS = ["max_tokens", "temperature", "top_p", "seed"];

// The fields of a request; throws an Error for what is no number.
export function readParameters() {
  const model = byId("model").value; // a pool takes its own where none is named; there is none named ""
  const found = model ? { model } : {};
  for (const name of NUMBERS) {
    const text = byId(name).value.trim();
    if (!text) continue;
    found[name] = Number(text);
    if (!Number.isFinite(found[name])) throw new Error(`${name} is ${JSON.stringify(text)}, which is no number.`);
    if (name === "seed" && !Number.isSafeInteger(found[name])) throw new Error("The seed must be a whole number below 2^53.");
  }
  const stop = byId("stop").value.split("\n").filter(Boolean);
  if (stop.length) found.stop = stop;
  return found;
}

export const mode = () => document.querySelector("input[name=mode]:checked").value;
