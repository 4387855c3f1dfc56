// Try it: a conversation, or single completions, as the answer streams.

import { byId, fromTemplate, setText, showText } from "./dom.js";
import { plural, speed } from "./format.js";
import { mode, readParameters } from "./parameters.js";
import { generate } from "./stream.js";

let messages = []; // of the chat, without the system prompt
let running = null; // the AbortController of the generation under way

export function startChat() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  byId("halt").addEventListener("click", () => running?.abort());
  byId("clear").addEventListener("click", clear);
  for (const radio of document.querySelectorAll("input[name=mode]")) radio.addEventListener("change", showMode);
  showMode();
}

function showMode() {
  const isChat = mode() === "chat";
  document.querySelector(".chat-only").hidden = !isChat;
  byId("prompt").placeholder = isChat ? "Message" : "Text to go on with";
}

function clear() {
  running?.abort();
  messages = [];
  byId("log").replaceChildren(byId("log-empty"));
  byId("log-empty").hidden = false;
  byId("prompt").focus();
}

async function send() {
  const prompt = byId("prompt").value;
  if (running || !prompt.trim()) return;
  const isChat = mode() === "chat";
  const asked = addTurn(isChat ? "You" : "Prompt", "asked", prompt);
  const answer = new Answer(addTurn(isChat ? "Answer" : "Completion", "answer", ""));
  byId("prompt").value = "";
  setRunning(new AbortController());
  try {
    const fields = { ...readParameters(), ...(isChat ? { messages: conversation(prompt) } : { prompt }) };
    for await (const piece of generate(mode(), fields, running.signal)) answer.add(piece);
    answer.end("");
  } catch (error) {
    answer.end(running.signal.aborted ? "stopped" : "failed", error);
  }
  setRunning(null);
  if (!asked.isConnected) return; // cleared meanwhile
  if (!answer.text) byId("prompt").value ||= prompt; // to be sent again
  else if (isChat) messages.push({ role: "user", content: prompt }, { role: "assistant", content: answer.text });
}

function conversation(prompt) {
  const system = byId("system").value.trim();
  const first = system ? [{ role: "system", content: system }] : [];
  return [...first, ...messages, { role: "user", content: prompt }];
}

function setRunning(controller) {
  running = controller;
  const hadFocus = document.activeElement === byId("halt");
  byId("send").hidden = Boolean(controller);
  byId("halt").hidden = !controller;
  byId("log").setAttribute("aria-busy", String(Boolean(controller))); // read aloud when it is whole
  if (hadFocus) byId("prompt").focus();
}

function addTurn(title, kind, text) {
  const turn = fromTemplate("turn-template");
  turn.classList.add(kind);
  setText(turn.querySelector("h3"), title);
  setText(turn.querySelector(".text"), text);
  byId("log-empty").hidden = true;
  byId("log").append(turn);
  byId("log").scrollTop = byId("log").scrollHeight;
  return turn;
}

// What comes of one request, and how fast. It is shown once for each frame: the browser lays all of the
// text out each time, and of a long answer there are more pieces than it has time for.
class Answer {
  text = "";
  #unseen = { text: "", thoughts: "" };
  #frame = null;
  #turn;
  #began = performance.now();
  #first = null;
  #last = null;
  #numPieces = 0;
  #usage = null;
  #finish = null;

  constructor(turn) {
    this.#turn = turn;
    turn.classList.add("growing");
  }

  add({ text, thoughts, finish, usage }) {
    this.#usage = usage ?? this.#usage;
    this.#finish = finish ?? this.#finish;
    if (!text && !thoughts) return;
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.#numPieces += 1;
    this.text += text;
    this.#unseen.text += text;
    this.#unseen.thoughts += thoughts;
    this.#frame ??= requestAnimationFrame(() => this.#show());
  }

  #show() {
    this.#frame = null;
    const log = byId("log");
    const followed = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    for (const [name, text] of Object.entries(this.#unseen)) {
      if (!text) continue;
      const element = this.#turn.querySelector(`.${name}`);
      element.hidden = false;
      element.append(text);
      this.#unseen[name] = "";
    }
    if (followed) log.scrollTop = log.scrollHeight;
  }

  end(how, error) {
    cancelAnimationFrame(this.#frame);
    this.#show();
    this.#turn.classList.remove("growing");
    showText(this.#turn.querySelector(".trouble"), how === "failed" ? error.message : "");
    showText(this.#turn.querySelector(".figures"), this.#figures(how === "stopped"));
    const log = byId("log");
    log.scrollTop = log.scrollHeight;
  }

  #figures(isStopped) {
    if (this.#first === null) return isStopped ? "Stopped before the first token." : "";
    const tokens = this.#usage?.completion_tokens ?? this.#numPieces;
    const seconds = (this.#last - this.#first) / 1000;
    return [
      isStopped && "Stopped",
      this.#usage && `${plural(this.#usage.prompt_tokens, "prompt token")}`,
      `${this.#usage ? "" : "about "}${plural(tokens, "token")}`,
      `first after ${((this.#first - this.#began) / 1000).toFixed(2)} s`,
      tokens > 1 && seconds > 0 && `${speed((tokens - 1) / seconds)} tokens/s`,
      this.#finish === "length" && "cut off at max tokens",
    ]
      .filter(Boolean)
      .join(" · ");
  }
}
