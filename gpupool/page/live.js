// Looks at the pool once a second while somebody looks at the page, and says when nobody answers.
// Where a proxy keeps the pool's state to itself, it says that, and that there is an answer.

import { askJson, Refused } from "./api.js";
import { byId, setText, showText } from "./dom.js";
import { count, plural, speed, time } from "./format.js";
import { showGpus } from "./gpus.js";
import { Plot } from "./plot.js";
import { Speed } from "./speed.js";
import { showWorkers } from "./workers.js";

const EVERY_MS = 1000;
const AT_MOST_MS = 10000;
const HIDDEN = [403, 404, 405, 410];

const speeds = new Map();
let plots = null;
let timer = null;
let isAsking = false;
let isBarred = false; // the pool wants a key, and nobody gave one
let failures = 0;
let lastAnswer = null;

// `onPool` is called with each answer of /pool; `onUntold` where there is none to be had, and it
// throws if nobody answers at all.
export function startLive(onPool, onUntold) {
  plots = { speed: new Plot(byId("plot-speed")), inflight: new Plot(byId("plot-inflight")) };
  const look = async () => {
    clearTimeout(timer);
    if (isAsking || document.hidden || isBarred) return;
    isAsking = true;
    const delay = await lookOnce(onPool, onUntold);
    isAsking = false;
    if (delay !== null) timer = setTimeout(look, delay);
  };
  document.addEventListener("visibilitychange", look);
  const lookAgain = () => {
    isBarred = false;
    look();
  };
  byId("give-key").addEventListener("click", lookAgain);
  addEventListener("key", lookAgain);
  look();
}

// How long to wait before the next look; null: until a key is given.
async function lookOnce(onPool, onUntold) {
  let pool;
  try {
    pool = await askPool();
    if (!pool) await onUntold();
  } catch (error) {
    if (error instanceof Refused && error.status === 401) {
      isBarred = true;
      showBanner("This pool tells about itself only to those with an API key.", true);
      return null;
    }
    failures += 1;
    showBanner(lastAnswer ? `No answer since ${time(lastAnswer)}.` : "No answer yet.");
    return Math.min(EVERY_MS * 2 ** (failures - 1), AT_MOST_MS);
  }
  failures = 0;
  lastAnswer = new Date();
  showBanner("");
  document.body.classList.toggle("untold", !pool);
  byId("untold").hidden = Boolean(pool);
  if (!pool) {
    byId("pool-state").dataset.state = "unknown";
    setText(byId("pool-state"), "answers");
    return AT_MOST_MS;
  }
  showPool(pool);
  onPool(pool);
  return EVERY_MS;
}

// Null where somebody else answers for it: one who has no such path, gives it to nobody, or has
// another page there.
async function askPool() {
  try {
    const pool = await askJson("pool");
    return Array.isArray(pool?.workers) ? pool : null;
  } catch (error) {
    if (error instanceof SyntaxError || HIDDEN.includes(error.status)) return null;
    throw error;
  }
}

function showBanner(text, needsKey = false) {
  showText(byId("banner-text"), text);
  byId("banner").hidden = !text;
  byId("give-key").hidden = !needsKey;
  document.body.classList.toggle("away", Boolean(text));
}

function showPool(pool) {
  const sums = new Map(); // by slot: a slot has two workers while one replaces the other
  for (const worker of pool.workers) {
    const sum = sums.get(worker.slot) ?? { given: 0, seen: 0, inflight: 0 };
    sum.given = add(sum.given, worker.generated_tokens);
    sum.seen = add(sum.seen, worker.seen_tokens);
    sum.inflight += worker.inflight ?? 0;
    sums.set(worker.slot, sum);
  }
  const now = performance.now();
  const came = new Map();
  for (const [slot, sum] of sums) {
    if (!speeds.has(slot)) speeds.set(slot, new Speed());
    const since = speeds.get(slot).feed(now, sum.given, sum.seen, sum.inflight);
    came.set(slot, { now: since, shown: speeds.get(slot).shown });
  }
  showWorkers(pool.workers, came);
  showGpus(pool.gpus);
  showTotals(pool, [...came.values()]);
}

const add = (sum, value) => (sum === null || value === null ? null : sum + value);

function showTotals(pool, came) {
  const { workers } = pool;
  const numReady = workers.filter((worker) => worker.state === "ready").length;
  const numSlots = new Set(workers.map((worker) => worker.slot)).size;
  const state = numReady >= numSlots ? "ready" : numReady ? "partly" : (workers[0]?.state ?? "unknown");
  byId("pool-state").dataset.state = state;
  setText(byId("pool-state"), `${numReady} of ${plural(numSlots, "worker")} ready`);
  const total = (values) => values.reduce(add, 0);
  setText(byId("total-speed"), speed(total(came.map((one) => one.shown))));
  plots.speed.push(total(came.map((one) => one.now)));
  const inflight = total(workers.map((worker) => worker.inflight));
  const slots = total(workers.map((worker) => worker.slots ?? 0));
  setText(byId("total-inflight"), count(inflight));
  plots.inflight.push(inflight, slots || 1);
  setText(byId("total-served"), count(total(workers.map((worker) => worker.served))));
  const tokens = total(workers.map((worker) => worker.generated_tokens));
  setText(byId("total-tokens"), tokens === null ? "" : plural(tokens, "token"));
  showText(byId("reload"), describeReload(pool.reload));
}

function describeReload(reload) {
  if (!reload) return "";
  if (reload.asked > reload.ended) return "A reload is under way: one worker after the other.";
  return reload.given_up ? `The last reload was given up: ${reload.given_up}` : "";
}
