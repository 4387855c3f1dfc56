// A generation as it comes: pieces of an answer from the server's events.

import { postJson } from "./api.js";

const BROKEN = "The answer broke off: its worker or the connection was lost.";
const PATHS = { chat: "v1/chat/completions", completion: "v1/completions" };

// Yields { text, thoughts, finish, usage } with what each event has; throws what went wrong.
export async function* generate(mode, fields, signal) {
  const body = { ...fields, stream: true, stream_options: { include_usage: true } };
  const response = await postJson(PATHS[mode], body, signal);
  for await (const data of dataOf(response.body, signal)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Error(event.error.message);
    const choice = event.choices?.[0] ?? {};
    const delta = choice.delta ?? choice;
    yield {
      text: delta.content ?? delta.text ?? "",
      thoughts: delta.reasoning_content ?? delta.reasoning ?? "",
      finish: choice.finish_reason ?? null,
      usage: event.usage ?? null,
    };
  }
  throw new Error(BROKEN);
}

// The data of each event. One may come in pieces, and several in one.
async function* dataOf(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  const lost = (error) => {
    throw signal.aborted ? error : new Error(BROKEN);
  };
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(lost);
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}
