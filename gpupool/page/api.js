// Asks the pool. The one place that knows where it is, sends the key and reads its errors.

import { askForKey, key } from "./key.js";

// The page may stand behind a proxy, under a path of its own.
export const ROOT = new URL(".", location.href.split(/[?#]/)[0]).href;

export const wants = { key: false }; // whether the pool was found to ask for one

// The pool has answered that it will not.
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// A response with status 200; Refused for another, an Error if nobody answers. Patience, in
// milliseconds, is for the pool's answer alone: whoever types a key may take longer.
export async function ask(path, { patience, ...options } = {}) {
  for (;;) {
    const sent = key();
    const headers = { ...options.headers, ...(sent && { Authorization: `Bearer ${sent}` }) };
    const signal = patience ? AbortSignal.timeout(patience) : options.signal;
    const response = await reach(ROOT + path, { ...options, headers, signal });
    if (response.ok) return response;
    const message = await messageOf(response);
    if (response.status !== 401) throw new Refused(response.status, message);
    wants.key = true;
    const isNew = key() !== sent; // somebody else was asked for it meanwhile
    if (!isNew && !(await askForKey(message))) throw new Refused(401, message);
  }
}

async function reach(url, options) {
  try {
    return await fetch(url, { cache: "no-store", credentials: "omit", redirect: "error", ...options });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Error(`Nobody answers at ${ROOT}`);
  }
}

export async function askJson(path) {
  return (await ask(path, { headers: { Accept: "application/json" }, patience: 5000 })).json();
}

export function postJson(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return ask(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

async function messageOf(response) {
  const after = response.headers.get("Retry-After");
  const hint = after ? ` (try again in ${after} s)` : "";
  try {
    return `${response.status}: ${(await response.json()).error.message}${hint}`;
  } catch {
    return `${response.status} ${response.statusText}${hint}`; // a proxy's, say
  }
}
