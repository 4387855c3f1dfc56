"""The OpenAI API: what holds for every engine, around the engine's own application (worker).

`gate` is the way in; it asks `routes`, `checks`, `keys` and `limits`, and mends the answers with
`answer`. The engine's application behind it is the engine's own where it has one (vLLM,
llama.cpp), else `own`.
"""
