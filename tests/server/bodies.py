"""Request bodies by chance: what /openapi.json allows, and what it does not (hypothesis)."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]

WORDS = ("", "a", "stop", "\x00", "\ud800", "é", "𝄞", "<|im_start|>", "{{ 7 * 7 }}", "x" * 3000)
NUMBERS = (0, -1, 1, 2, 128, 1 << 31, 1 << 63, 1 << 64, 10**25, 0.5, -0.0, 1e308, 1e-308)
TEXTS = st.sampled_from(WORDS) | st.text(max_size=20)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


def by_schema(schema: Json) -> st.SearchStrategy[Any]:
    """What a schema of the document allows; of texts and lists only short ones."""
    if "anyOf" in schema:
        return st.one_of([by_schema(one) for one in schema["anyOf"]])
    kind = schema.get("type")
    if isinstance(kind, list):
        return st.one_of([by_schema({**schema, "type": one}) for one in kind])
    if kind == "object":
        return _object(schema)
    if kind == "array":
        low = schema.get("minItems", 0)
        return st.lists(by_schema(schema.get("items", {})), min_size=low, max_size=low + 3)
    if kind == "integer":
        return st.integers(schema.get("minimum"), schema.get("maximum"))
    if kind == "number":
        return st.floats(
            schema.get("minimum"), schema.get("maximum"), allow_nan=False, allow_infinity=False
        )
    return {
        "string": st.text(min_size=schema.get("minLength", 0), max_size=20),
        "boolean": st.booleans(),
        "null": st.none(),
    }.get(str(kind), ANYTHING)


def _object(schema: Json) -> st.SearchStrategy[Json]:
    known = {name: by_schema(one) for name, one in schema.get("properties", {}).items()}
    required = {name: known.pop(name) for name in schema.get("required", ()) if name in known}
    optional = st.lists(st.sampled_from(sorted(known)), max_size=4) if known else st.just([])
    return optional.flatmap(
        lambda names: st.fixed_dictionaries(required | {name: known[name] for name in names})
    )


@st.composite
def raw_bodies(draw: st.DrawFn, schema: Json) -> bytes:
    """A body that fits, or one that was spoilt: a field of any value, a name nobody knows, a byte
    changed, cut off, nested without end, or no JSON at all."""
    body = draw(by_schema(schema))
    spoilt = draw(st.sampled_from(("no", "value", "name", "byte", "cut", "deep", "noise")))
    if spoilt == "value" and body:
        body[draw(st.sampled_from(sorted(body)))] = draw(ANYTHING)
    if spoilt == "name":
        body[draw(TEXTS)] = draw(ANYTHING)
    raw = json.dumps(body).encode()
    if spoilt == "byte":
        place = draw(st.integers(0, len(raw) - 1))
        raw = raw[:place] + bytes([draw(st.integers(0, 255))]) + raw[place + 1 :]
    if spoilt == "cut":
        raw = raw[: draw(st.integers(0, len(raw)))]
    if spoilt == "deep":
        raw = b'{"a": ' * draw(st.sampled_from((10, 64, 65, 10_000))) + raw
    return draw(st.binary(max_size=200)) if spoilt == "noise" else raw


LENGTHS = {
    "/infer": "max_tokens",
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/messages": "max_tokens",
    "/v1/responses": "max_output_tokens",
}
SHORT = 4


def shorten(path: str, raw: bytes) -> bytes:
    """The same body, if it is one, for an engine that needs time: with few tokens to generate."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    asked = body.get("params", {}) if path == "/infer" and isinstance(body, dict) else body
    if path not in LENGTHS or not isinstance(asked, dict):
        return raw
    for name in (LENGTHS[path], "max_completion_tokens"):
        if type(asked.get(name)) is int and asked[name] > SHORT:
            asked[name] = SHORT
    asked.setdefault(LENGTHS[path], SHORT)
    if path == "/infer":
        body["params"] = asked
    return json.dumps(body).encode()
