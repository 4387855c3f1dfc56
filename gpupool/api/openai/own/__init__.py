"""The pool's own OpenAI application, over the Engine protocol (worker process, event loop).

It answers for engines that have no such API, and what the others leave to it. `app` finds the
handler; `completions`, `chat`, `embeddings` and `tokens` are the handlers; `runner` is their way
to the engine and `reply` their way to the client.
"""
