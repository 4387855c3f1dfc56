// Which names the model answers to, and whether it chats.

import { askJson } from "./api.js";
import { byId, setText, showText } from "./dom.js";

let known = null; // the ready workers of which the names are known
let isAsking = false;

// Called with each answer of the pool; `onModel` when the name to ask for may be another.
export async function showModels(pool, onModel) {
  const file = pool.model.split("/").at(-1);
  setText(byId("served-model"), /^[./~]/.test(pool.model) ? file : pool.model); // a path is long
  byId("served-model").title = pool.model;
  showText(byId("served-engine"), pool.infer_type);
  document.title = `${file} · gpupool`;
  const ready = pool.workers.filter((worker) => worker.state === "ready").map((worker) => worker.pid);
  const now = ready.join();
  if (!ready.length || now === known || isAsking) return;
  isAsking = true;
  try {
    const [models, index] = [await askJson("v1/models"), await askJson("")];
    fill(models.data.map((model) => model.id));
    offer(index.routes);
    onModel();
    known = now;
  } catch {
    // Asked again at the next look: the worker that was ready may have gone.
  } finally {
    isAsking = false;
  }
}

// The same where nobody tells of the pool: the first name stands for the model.
export async function showModelsAlone(onModel) {
  const names = (await askJson("v1/models")).data.map((model) => model.id);
  if (!names.length) return;
  setText(byId("served-model"), names[0]);
  document.title = `${names[0]} · gpupool`;
  fill(names);
  offer(await askJson("").then((index) => index.routes ?? {}).catch(() => ({})));
  onModel();
  known = null;
}

function fill(names) {
  const select = byId("model");
  const chosen = select.value;
  select.replaceChildren(...names.map((name) => new Option(name)));
  if (names.includes(chosen)) select.value = chosen;
}

// A model without a chat template completes only.
function offer(routes) {
  if (!routes["/v1/models"]) return; // a worker told that has no model yet
  const chats = "/v1/chat/completions" in routes;
  const radio = document.querySelector("input[value=chat]");
  radio.disabled = !chats;
  radio.parentElement.title = chats ? "" : "This model has no chat template.";
  if (!chats && radio.checked) document.querySelector("input[value=completion]").click();
}
