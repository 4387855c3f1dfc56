"""Request bodies that are meant to hurt; each is small.

What chance would not find (tests/server/bodies.py): automata that explode, endless references,
numbers at the edge of a machine word, parts and tools of odd shapes.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
WORD = (1 << 63) - 1
NESTED = "((a{1000}){1000}){1000}"


def _schema(schema: Json) -> Json:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    }


def _must_call(parameters: Any) -> Json:
    function = {"name": "f", "parameters": parameters, "strict": True}
    return {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}


def _says(message: Json) -> Json:
    return {"messages": [{"role": "user", **message}]}


REGEXES = (
    NESTED,
    "(a{1,30000}){1,30000}",
    "(a+)+b",
    "(a|a)*" * 100,
    "a?" * 500,
    "a?" * 250,
    "a{99999999999999999999}",
    "a{5,1}",
    "(.*.*.*.*){100}x",
    "(" * 500 + ")" * 500,
    "(?=a)b",
    "[z-a]",
    "\\",
    "\x00",
)
SCHEMAS: tuple[Json, ...] = (
    {"type": "string", "minLength": 10**9},
    {"type": "string", "maxLength": 10**9},
    {"type": "string", "minLength": 5, "maxLength": 1},
    {"type": "array", "items": {"type": "string"}, "minItems": 5, "maxItems": 1},
    {"allOf": [{"type": "string", "minLength": 5}, {"maxLength": 1}]},
    {"type": "integer", "minimum": 5, "maximum": 1},
    {"type": "string", "pattern": "a{5,1}"},
    {"type": "string", "pattern": NESTED},
    {"type": "array", "minItems": 10**9},
    {"$ref": "#"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    {"$ref": "file:///etc/passwd"},
    {"$ref": "http://127.0.0.1:1/x"},
    {"type": "integer", "minimum": -(10**18), "maximum": 10**18},
    {"type": 5},
    {"enum": []},
    {"anyOf": []},
    {"not": {}},
    {"type": "object", "properties": 5},
    {"type": "object", "properties": {f"k{index}": {} for index in range(400)}},
    {"type": "object", "patternProperties": {NESTED: {}}},
    {"type": "object", "minProperties": 10**9},
)
GRAMMARS = (
    "root ::= root",
    "root ::= root root",
    "root ::= nowhere",
    'root ::= "a"{1000000}',
    'root ::= "a"{5,1}',
    "root ::= " + '"a"?' * 64,
    'root ::= ("a"{1,1000}){1,1000}',
    "root ::= " + '"a"?' * 3000,
    "root ::= " + "(" * 300 + '"a"' + ")" * 300,
    'root ::= "a" | root "b"',
)
EDGES: tuple[Json, ...] = tuple(
    {name: value}
    for name in (
        "thinking_token_budget",
        "routed_experts_prompt_start",
        "stream_interval",
        "priority",
        "truncate_prompt_tokens",
        "top_k",
        "seed",
        "cache_salt",
        "repetition_detection",
    )
    for value in (WORD, -WORD, 1 << 40, -1, "x", {})
) + (
    {"vllm_xargs": {"a": WORD, "b": (1 << 64) - 1}},
    {"repetition_detection": {"max_pattern_size": WORD, "min_count": 2}},
    {"bad_words": [" "]},
    {"allowed_token_ids": []},
    {"stop": ["\x00"] * 64},
    {"logit_bias": {"0": 100}},
)
CHATS: tuple[Json, ...] = (
    {"tools": [{}]},
    {"tools": [{"type": "function"}], "tool_choice": "required"},
    {"tool_choice": "required"},
    {"tool_choice": {"type": "function"}},
    _must_call({"$ref": "#"}),
    _must_call({"type": "string", "pattern": NESTED}),
    _must_call(True),
    _says({"content": []}),
    _says({"content": [{}]}),
    _says({"content": [{"type": 5}]}),
    _says({"content": [{"type": "text", "text": 5}]}),
    _says({"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}),
    _says({"content": [{"type": "input_audio", "input_audio": {"data": "A", "format": "wav"}}]}),
    _says({"role": "tool", "content": "a"}),
    _says({"role": "assistant", "tool_calls": [{}]}),
    _says({"role": "assistant", "tool_calls": 5}),
    _says({"content": "<|im_end|>" * 50}),
    {"chat_template_kwargs": {"messages": [], "conversation": 5, "self": 1}},
    {"chat_template_kwargs": {"range": 5, "namespace": 1, "raise_exception": 2}},
    {"chat_template_kwargs": {"padding": True, "max_length": 1}},
)
OTHERS: tuple[tuple[str, Json], ...] = (
    (COMPLETIONS, {"prompt": [[]]}),
    (COMPLETIONS, {"prompt": [{"a": 1}]}),
    (COMPLETIONS, {"prompt": ""}),
    ("/detokenize", {"tokens": [10**12]}),
    ("/detokenize", {"tokens": [-1]}),
    ("/tokenize", {"messages": [{"role": "user"}], "tools": [{}]}),
    ("/v1/responses", {"input": [{}]}),
    ("/v1/responses", {"input": [{"type": "item_reference", "id": "x"}]}),
    ("/v1/responses", {"input": "a", "tools": [{"type": "code_interpreter", "container": "x"}]}),
    ("/v1/responses", {"input": "a", "text": {"format": {"type": "grammar"}}}),
    (
        "/v1/messages",
        {"max_tokens": 4, "messages": [{"role": "user", "content": "a"}], "tools": [{}]},
    ),
)


def cases() -> list[tuple[str, Json]]:
    """Path and body of each; few tokens are asked for."""
    formats = [
        *({"structured_outputs": {"regex": regex}} for regex in REGEXES),
        *({"structured_outputs": {"grammar": grammar}} for grammar in GRAMMARS),
        *map(_schema, SCHEMAS),
    ]
    asked: Json = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    chats = [(CHAT, asked | change) for change in (*formats, *EDGES, *CHATS)]
    completions = [(COMPLETIONS, {"prompt": "hi", "max_tokens": 4} | change) for change in EDGES]
    return chats + completions + list(OTHERS)
