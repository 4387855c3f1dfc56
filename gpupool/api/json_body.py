"""Strict JSON request bodies (worker process)."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from gpupool.errors import BadRequest

MAX_DEPTH = 64
HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


def read_object(raw: bytes) -> dict[str, Any]:
    """The JSON object of a request's body. 400 for anything else: NaN and Infinity, which JSON
    does not have, bottomless nesting, numbers of thousands of digits, bytes that are not UTF-8."""
    if not raw:
        raise BadRequest("the body is empty; send a JSON object", code="invalid_json")
    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise BadRequest("the body is not UTF-8", code="invalid_json") from None
    except json.JSONDecodeError as error:
        message = f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        raise BadRequest(message, code="invalid_json") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply", code="invalid_json") from None
    except ValueError:
        # CPython refuses integers of more than 4,300 digits.
        raise BadRequest("the body has a number that is too long", code="invalid_json") from None
    if not isinstance(body, dict):
        raise BadRequest(f"the body is a JSON {_name(body)}; send an object", code="invalid_json")
    _check_depth(body)
    return body


def refuse_half_pairs(raw: bytes, body: dict[str, Any]) -> None:
    """400 for half of a surrogate pair in any text: it is no character, and no tokenizer or JSON
    writer takes it."""
    if HALF_PAIR.search(raw) is None:
        return
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRequest("the body has half of a surrogate pair", code="invalid_json") from None


def _refuse_constant(name: str) -> NoReturn:
    raise BadRequest(f"the body has {name}, which is not JSON", code="invalid_json")


def _check_depth(body: Any) -> None:
    level = [body]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise BadRequest(f"the body is nested more than {MAX_DEPTH} levels deep", code="invalid_json")


def _name(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
