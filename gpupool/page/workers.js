// A card for each worker: what it is at, what it does, what it holds.

import { fromTemplate, byId, setText, showText } from "./dom.js";
import { bytes, count, duration, plural, speed, use } from "./format.js";
import { Plot } from "./plot.js";

const cards = new Map();

// Shows all workers of one answer of the pool; `speeds` by slot, with what came since the last one.
export function showWorkers(workers, speeds) {
  const shown = new Set();
  workers.forEach((worker, i) => {
    const isSecond = i > 0 && workers[i - 1].slot === worker.slot; // amid a reload
    const name = `${worker.slot}${isSecond ? "b" : ""}`;
    shown.add(name);
    if (!cards.has(name)) cards.set(name, new Card());
    cards.get(name).show(worker, speeds.get(worker.slot), isSecond);
    byId("workers").append(...(byId("workers").children[i] === cards.get(name).root ? [] : [cards.get(name).root]));
  });
  for (const [name, card] of cards) {
    if (shown.has(name)) continue;
    card.root.remove();
    cards.delete(name);
  }
}

class Card {
  constructor() {
    this.root = fromTemplate("worker-template");
    const plots = this.root.querySelectorAll(".plot");
    [this.speedPlot, this.inflightPlot, this.memoryPlot] = [...plots].map((svg) => new Plot(svg));
  }

  #part = (selector) => this.root.querySelector(selector);

  show(worker, came, isSecond) {
    this.root.dataset.slot = worker.slot;
    this.root.dataset.state = worker.state;
    setText(this.#part("h3"), `Worker ${worker.slot}`);
    setText(this.#part(".state"), worker.state);
    this.#part(".state").dataset.state = worker.state;
    setText(this.#part(".since"), `for ${duration(worker.for_s)}`);
    this.#showLoading(worker);
    this.#part(".working").hidden = isSecond;
    this.#showWork(worker, came);
    this.#showGpus(worker);
    setText(this.#part(".facts"), facts(worker).join(" · "));
    showText(this.#part(".trouble"), worker.last_error ? `Last error: ${worker.last_error}` : "");
  }

  #showLoading(worker) {
    const isLoading = worker.state === "loading" || worker.state === "waiting";
    this.#part(".loading").hidden = !isLoading;
    if (!isLoading) return;
    const bar = this.#part("progress");
    const done = worker.estimate_s ? Math.min(worker.for_s / worker.estimate_s, 0.99) : worker.fraction;
    if (done === null) bar.removeAttribute("value");
    else bar.value = done;
    bar.setAttribute("aria-label", `Worker ${worker.slot} loads`);
    const of = worker.estimate_s === null ? "" : ` of about ${duration(worker.estimate_s)}`;
    const percent = worker.fraction === null ? "" : `, ${Math.round(100 * worker.fraction)} %`;
    setText(this.#part(".phase"), `${worker.phase || worker.state}${percent} · ${duration(worker.for_s)}${of}`);
  }

  #showWork(worker, came) {
    setText(this.#part(".speed"), speed(came.shown));
    this.speedPlot.push(came.now);
    const slots = worker.slots === null ? "" : ` of ${count(worker.slots)}`;
    const waiting = worker.waiting ? ` + ${count(worker.waiting)} waiting` : "";
    setText(this.#part(".inflight"), `${count(worker.running)}${slots}${waiting}`);
    this.inflightPlot.push(worker.inflight, worker.slots ?? 1);
    const total = sum(worker.gpu_use, "total_bytes");
    setText(this.#part(".memory"), bytes(worker.memory_bytes) + (total ? ` of ${bytes(total)}` : ""));
    this.memoryPlot.push(worker.memory_bytes, total || 1);
  }

  #showGpus(worker) {
    const lines = worker.gpus.map((uuid, i) => describeGpu(uuid, worker.gpu_use?.[i] ?? {}));
    const list = this.#part(".gpus");
    while (list.children.length > lines.length) list.lastElementChild.remove();
    while (list.children.length < lines.length) list.append(document.createElement("li"));
    lines.forEach((line, i) => setText(list.children[i], line));
  }
}

// Null unless it is known of each.
function sum(gpus, name) {
  if (!gpus?.length || gpus.some((gpu) => gpu[name] === null)) return null;
  return gpus.reduce((total, gpu) => total + gpu[name], 0);
}

function describeGpu(uuid, gpu) {
  return [uuid.length > 16 ? `${uuid.slice(0, 12)}…` : uuid, ...use(gpu)].join(" · ");
}

function facts(worker) {
  const found = [];
  if (worker.pid !== null) found.push(`pid ${worker.pid}`);
  if (worker.served !== null) found.push(`${count(worker.served)} answered`);
  if (worker.restarts !== null) found.push(plural(worker.restarts, "restart"));
  return found;
}
