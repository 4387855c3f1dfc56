// The API key: asked for when the pool wants one, kept by this tab alone, shown nowhere.

import { byId, showText } from "./dom.js";

const NAME = "gpupool.key";
let asking = null;

export const key = () => sessionStorage.getItem(NAME);

export function forgetKey() {
  sessionStorage.removeItem(NAME);
  byId("forget-key").hidden = true;
}

// Whether a key was given. All who ask at the same time wait for the same dialog.
export function askForKey(message) {
  asking ??= ask(message).finally(() => (asking = null));
  return asking;
}

function ask(message) {
  const dialog = byId("key-dialog");
  const input = byId("key");
  showText(byId("key-message"), key() ? message : "");
  forgetKey();
  input.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  input.focus();
  return new Promise((resolve) => {
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      const given = input.value.trim();
      // What a header cannot carry is no key of any pool.
      if (!/^[\x21-\x7e]+$/.test(given)) {
        showText(byId("key-message"), "A key has no spaces and only ASCII characters.");
        return;
      }
      sessionStorage.setItem(NAME, given);
      byId("forget-key").hidden = false;
      dialog.close("given");
      dispatchEvent(new Event("key"));
    };
    byId("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      input.value = "";
      resolve(dialog.returnValue === "given");
    };
  });
}
