"""Bodies of chats: what each changes, and the field that is refused for it, if one is."""

from __future__ import annotations

from typing import Any

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
PROMPT: dict[str, Any] = {"prompt": "hello"}


def deep(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return schema


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}


PICTURE = [{"type": "input_image", "image_url": "http://10.0.0.1/"}]


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


def content(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


CHATS = {
    "temperature": ({"temperature": "hot"}, "temperature"),
    "temperature of NaN": ({"temperature": float("nan")}, "temperature"),
    "temperature below 0": ({"temperature": -0.1}, "temperature"),
    "top_p above 1": ({"top_p": 1.1}, "top_p"),
    "seed of 65 bits": ({"seed": 1 << 64}, "seed"),
    "n of 0": ({"n": 0}, "n"),
    "n of a billion": ({"n": 10**9}, "n"),
    "n of true": ({"n": True}, "n"),
    "max_tokens of 0": ({"max_tokens": 0}, "max_tokens"),
    "max_tokens over the context": ({"max_tokens": 101}, "max_tokens"),
    "max_completion_tokens over the context": (
        {"max_completion_tokens": 10**12},
        "max_completion_tokens",
    ),
    "logprobs of a number": ({"logprobs": 5}, "logprobs"),
    "top_logprobs of 21": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "top_logprobs alone": ({"top_logprobs": 2}, "top_logprobs"),
    "stop of numbers": ({"stop": [1]}, "stop"),
    "65 stops": ({"stop": ["a"] * 65}, "stop"),
    "a stop of 1025 characters": ({"stop": "a" * 1025}, "stop"),
    "bias of 1025 tokens": ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    "bias of infinity": ({"logit_bias": {"1": float("inf")}}, "logit_bias"),
    "bias of no token": ({"logit_bias": {"1000": 1}}, "logit_bias"),
    "stream of a string": ({"stream": "yes"}, "stream"),
    "stream_options without stream": ({"stream_options": {}}, None),
    "stream_options of a list": ({"stream": True, "stream_options": [1]}, "stream_options"),
    "usage without a stream": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "an unknown field": ({"temprature": 1}, "temprature"),
    "a template": ({"chat_template": "{{ x }}"}, "chat_template"),
    "tensors": ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
    "no messages": ({"messages": []}, "messages"),
    "1025 messages": ({"messages": HELLO["messages"] * 1025}, "messages"),
    "messages of strings": ({"messages": ["hello"]}, "messages[0]"),
    "a message without a role": ({"messages": [{"content": "a"}]}, "messages[0]"),
    "content of a number": ({"messages": [{"role": "user", "content": 5}]}, "messages[0]"),
    "more text than any context": (
        {"messages": [{"role": "user", "content": "a" * 51_201}]},
        "messages",
    ),
    "a picture from the network": (
        content({"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}),
        "messages[0]",
    ),
    "a picture from a file": (
        content({"type": "image_url", "image_url": "file:///etc/passwd"}),
        "messages[0]",
    ),
    "a picture within the answer of a tool": (
        content(
            {"type": "tool_result", "content": [{"source": {"type": "url", "url": "http://x"}}]}
        ),
        "messages[0]",
    ),
    "a part of text without one": (content({"type": "text"}), "messages[0]"),
    "a text of a number": (content({"type": "text", "text": 5}), "messages[0]"),
    "calls of a number": ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "messages[0]"),
    "a call of nothing": ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0]"),
    "a tensor": (content({"type": "image_embeds", "image_embeds": "AAAA"}), "messages[0]"),
    "a tensor with a name": (content({"uuid": "1", "video_embeds": "AAAA"}), "messages[0]"),
    "a tensor as a prompt": (content({"type": "prompt_embeds", "data": "AA"}), "messages[0]"),
    "more text in calls than any context": (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": "a" * 51_201}}],
                }
            ]
        },
        "messages",
    ),
    "more text in variables than any context": (
        {"chat_template_kwargs": {"a": "a" * 51_201}},
        "messages",
    ),
    "a template among its variables": (
        {"chat_template_kwargs": {"chat_template": "{{ x }}"}},
        "chat_template_kwargs",
    ),
    "an argument of the renderer": (
        {"chat_template_kwargs": {"tokenize": True}},
        "chat_template_kwargs",
    ),
    "variables of a string": ({"chat_template_kwargs": "a"}, "chat_template_kwargs"),
    "a transfer of caches": (
        {"vllm_xargs": {"kv_transfer_params": "a"}},
        "vllm_xargs",
    ),
    "a transfer of vectors": ({"ec_transfer_params": {"a": 1}}, "ec_transfer_params"),
    "a transfer": ({"kv_transfer_params": {"a": 1}}, "kv_transfer_params"),
    "129 bad words": ({"bad_words": ["a"] * 129}, "bad_words"),
    "a bad word of 1025 characters": ({"bad_words": ["a" * 1025]}, "bad_words"),
    "bad words of numbers": ({"bad_words": [1]}, "bad_words"),
    "an allowed token that is none": ({"allowed_token_ids": [1000]}, "allowed_token_ids"),
    "more allowed tokens than there are": ({"allowed_token_ids": [1] * 1001}, "allowed_token_ids"),
    "allowed tokens of a number": ({"allowed_token_ids": 5}, "allowed_token_ids"),
    "a format that is none": ({"response_format": {"type": "xml"}}, "response_format"),
    "a format of a string": ({"response_format": "json"}, "response_format"),
    "a schema that is missing": (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
    ),
    "a schema of 33 levels": (
        {"response_format": schema_format(deep(17))},
        "response_format.json_schema.schema",
    ),
    "a schema of 17 kilobytes": (
        {"response_format": schema_format({"enum": ["x" * 17_000]})},
        "response_format.json_schema.schema",
    ),
    "a schema of at least 5 and at most 1": (
        {"response_format": schema_format({"items": {"minLength": 5, "maxLength": 1}})},
        "response_format.json_schema.schema",
    ),
    "a schema of a billion items in a tag": (
        {
            "response_format": {
                "type": "structural_tag",
                "structures": [{"schema": {"minItems": 9999}}],
            }
        },
        "response_format",
    ),
    "a schema of a billion items in a tag of text": (
        {"structured_outputs": {"structural_tag": '{"format": {"minItems": 9999}}'}},
        "structured_outputs.structural_tag",
    ),
    "a long pattern in a tag": (
        {"response_format": {"type": "structural_tag", "format": {"pattern": "a" * 1025}}},
        "response_format pattern",
    ),
    "a long pattern of names": (
        {"response_format": schema_format({"patternProperties": {"a" * 1025: {}}})},
        "response_format.json_schema.schema pattern",
    ),
    "a schema that is itself": (
        {"response_format": schema_format({"$ref": "#"})},
        "response_format.json_schema.schema",
    ),
    "a schema in a circle": (
        {
            "response_format": schema_format(
                {
                    "properties": {"a": {"$ref": "#/$defs/a"}},
                    "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
                }
            )
        },
        "response_format.json_schema.schema",
    ),
    "a schema of a billion items": (
        {"response_format": schema_format({"items": {"minItems": 10**9}})},
        "response_format.json_schema.schema",
    ),
    "a pattern of 1025 characters": (
        {"response_format": schema_format({"pattern": "a" * 1025})},
        "response_format.json_schema.schema pattern",
    ),
    "a regex of 1025 characters": (
        {"structured_outputs": {"regex": "a" * 1025}},
        "structured_outputs.regex",
    ),
    "a regex that ends within an escape": (
        {"structured_outputs": {"regex": "a\\\\\\"}},
        "structured_outputs.regex",
    ),
    "a regex of at least 5 and at most 1": (
        {"structured_outputs": {"regex": "a{5,1}"}},
        "structured_outputs.regex",
    ),
    "a grammar of at least 5 and at most 1": (
        {"structured_outputs": {"grammar": 'root ::= "a"{5, 1}'}},
        "structured_outputs.grammar",
    ),
    "a grammar of a range without end": (
        {"structured_outputs": {"grammar": 'root ::= "a"{1,' + "9" * 5000 + "}"}},
        "structured_outputs.grammar",
    ),
    "a grammar of 257 repeats": (
        {"structured_outputs": {"grammar": "root ::= " + '"a"?' * 257}},
        "structured_outputs.grammar",
    ),
    "a pattern of 257 repeats": (
        {"response_format": schema_format({"pattern": "a*" * 257})},
        "response_format.json_schema.schema pattern",
    ),
    "blanks by a regex of 1025 characters": (
        {"structured_outputs": {"whitespace_pattern": " " * 1025}},
        "structured_outputs.whitespace_pattern",
    ),
    "a schema in text that is no JSON": (
        {"structured_outputs": {"json": "{"}},
        "structured_outputs.json",
    ),
    "no choice": ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    "tools of a string": ({"tools": "f"}, "tools"),
    "129 tools": ({"tools": [tool()] * 129}, "tools"),
    "a tool of a string": ({"tools": ["f"]}, "tools[0]"),
    "a tool's name of blanks": ({"tools": [tool(name="a b")]}, "tools[0]"),
    "a tool's deep schema": ({"tools": [tool(parameters=deep(17))]}, "tools[0].parameters"),
}

GOOD = {
    "as little as can be": {},
    "everything at its edge": {
        "temperature": 2,
        "top_p": 1,
        "seed": (1 << 64) - 1,
        "n": 128,
        "max_tokens": 100,
        "logprobs": True,
        "top_logprobs": 20,
        "stop": ["a" * 1024] * 64,
        "logit_bias": {"999": -100},
    },
    "nulls": {"temperature": None, "stop": None, "tools": None, "stream": None},
    "a schema that comes again within": {
        "response_format": schema_format(
            {"properties": {"a": {"$ref": "#"}, "b": {"$ref": "#/nowhere"}, "c": {"$ref": "x"}}}
        )
    },
    "a schema of 32 levels": {"response_format": schema_format(deep(15))},
    "parts": content({"type": "text", "text": "a"}),
    "a picture in the request": content(
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    ),
    "a call whose arguments have our names": {
        "messages": [
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "input": {"image_url": "http://x", "source": "http://x"}}
                ],
            }
        ]
    },
    "a document that says where it is from": {"documents": [{"text": "a", "source": "http://x"}]},
    "variables of a template": {"chat_template_kwargs": {"enable_thinking": False}},
    "a tool": {"tools": [tool(parameters={"type": "object"})]},
    "a regex that ends with a backslash": {"structured_outputs": {"regex": "a\\\\"}},
    "a grammar that repeats": {
        "structured_outputs": {"grammar": "root ::= " + '"a"{1,5}' * 256},
    },
    "a schema in text": {"structured_outputs": {"json": '{"type": "object"}'}},
}
