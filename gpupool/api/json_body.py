"""Strict JSON request bodies (worker process)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from gpupool.errors import BadRequest

MAX_DEPTH = 64
LARGE = re.compile(rb"[0-9]{19}|[0-9][eE]\+?[0-9]{3}")
"""Stands in every text that has a number beyond 64 bits or beyond any float."""
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


def refuse_large_numbers(raw: bytes, body: dict[str, Any]) -> None:
    """400 for a whole number of more than 64 bits, and for one that is infinity when it is read,
    wherever it stands: an engine's processes cannot tell each other such a number, and vLLM never
    forgets a request that it could not pass on."""
    if LARGE.search(raw) is None:
        return
    for name, value in body.items():
        for inner in _values_in(value):
            is_large = type(inner) is int and not -(1 << 63) <= inner < 1 << 64
            if is_large or (isinstance(inner, float) and not math.isfinite(inner)):
                raise BadRequest(
                    f"{name[:60]} has a number that does not fit 64 bits",
                    param=name[:60],
                    code="invalid_json",
                )


def _values_in(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _values_in(inner)
    else:
        yield value


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
