// Finding and making elements. Text goes in as text: nothing here, or on this page, parses markup.

export const byId = (id) => document.getElementById(id);

export const fromTemplate = (id) => byId(id).content.firstElementChild.cloneNode(true);

// Writes only what is new, so that a selection, or what a screen reader reads, is left alone.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Shows an element with a text, or hides it if there is none.
export function showText(element, text) {
  setText(element, text);
  element.hidden = !text;
}
