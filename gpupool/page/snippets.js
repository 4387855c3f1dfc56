// The same questions from a program, for this very pool. A key is named, never shown.

import { ROOT, wants } from "./api.js";
import { byId, fromTemplate, setText } from "./dom.js";
import { key } from "./key.js";

const PROMPT = "Name three fruits.";
const LIKELY = { max_tokens: 64, temperature: 0.2 }; // the page asks so, too
const figures = new Map();

// Called when the model, its kinds of request or the need for a key may have changed.
export function showSnippets() {
  const model = byId("model").value || "MODEL";
  const hasKey = wants.key || Boolean(key());
  const isChat = !document.querySelector("input[value=chat]").disabled;
  for (const [title, text] of Object.entries(write(model, hasKey, isChat))) {
    if (!figures.has(title)) figures.set(title, makeFigure(title));
    setText(figures.get(title), text);
  }
}

function makeFigure(title) {
  const figure = fromTemplate("snippet-template");
  const text = figure.querySelector("pre");
  const button = figure.querySelector("button");
  setText(figure.querySelector("figcaption span"), title);
  text.setAttribute("aria-label", title);
  button.setAttribute("aria-label", `Copy: ${title}`);
  button.addEventListener("click", async () => {
    setText(button, (await copy(text)) ? "Copied" : "Press Ctrl+C");
    setTimeout(() => setText(button, "Copy"), 2000);
  });
  byId("snippets").append(figure);
  return text;
}

// Browsers have no clipboard for pages without TLS, but on the machine itself.
async function copy(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(element);
    return document.execCommand("copy");
  }
}

function write(model, hasKey, isChat) {
  const ask = isChat ? { messages: [{ role: "user", content: PROMPT }] } : { prompt: PROMPT };
  const body = JSON.stringify({ model, ...ask, ...LIKELY });
  const path = isChat ? "v1/chat/completions" : "v1/completions";
  const infer = JSON.stringify({ instances: [PROMPT], params: LIKELY });
  const curl = (where, json) =>
    `curl -s ${shell(ROOT + where)} \\\n  -H 'Content-Type: application/json' \\\n` +
    (hasKey ? "  -H 'Authorization: Bearer YOUR_KEY' \\\n" : "") +
    `  -d ${shell(json)}`;
  return {
    "curl, OpenAI API": curl(path, body),
    "curl, /infer": curl("infer", infer),
    "Python, /infer": requests(hasKey),
    "Python, OpenAI API": openai(model, hasKey, isChat),
  };
}

function openai(model, hasKey, isChat) {
  const call = isChat
    ? `stream = client.chat.completions.create(
    model=${python(model)},
    messages=[{"role": "user", "content": ${python(PROMPT)}}],
    max_tokens=64,
    temperature=0.2,
    stream=True,
)
for event in stream:
    print(event.choices[0].delta.content or "", end="", flush=True)`
    : `stream = client.completions.create(
    model=${python(model)},
    prompt=${python(PROMPT)},
    max_tokens=64,
    temperature=0.2,
    stream=True,
)
for event in stream:
    print(event.choices[0].text, end="", flush=True)`;
  return `from openai import OpenAI

client = OpenAI(
    base_url=${python(`${ROOT}v1`)},
    api_key="${hasKey ? "YOUR_KEY" : "none"}",
)
${call}`;
}

function requests(hasKey) {
  return `import requests

answer = requests.post(
    ${python(`${ROOT}infer`)},${hasKey ? '\n    headers={"Authorization": "Bearer YOUR_KEY"},' : ""}
    json={"instances": [${python(PROMPT)}], "params": ${JSON.stringify(LIKELY)}},
)
answer.raise_for_status()
print(answer.json()[0])`;
}

const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

const python = (text) => JSON.stringify(text); // whose strings are Python's, too
