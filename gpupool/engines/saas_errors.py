"""What a host answers in place of an answer, as one of our errors (pure; worker process).

A host's own text is for the client only where it is about the client's request.
"""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpupool.engines.saas_key import Secrets
from gpupool.errors import BadRequest, HostError, Overloaded, RequestError, TooLarge

Json = dict[str, Any]

PASSED_ON = "x-ratelimit-"
MAX_HEADERS = 32
MAX_HEADER_CHARS = 200
MAX_TEXT_CHARS = 1000
RETRY_AFTER_S = 1
MAX_RETRY_AFTER_S = 86_400
"""Some hosts say a date of another year, or a number that no client can read."""
OVERLOADED = (503, 529)
CALLERS_FAULT = (400, 413, 415, 422)
TO_BE_TRIED_AGAIN = (408, 409, 429)
CONTEXT = re.compile(r"context[ _](length|window)", re.IGNORECASE)


@dataclass(eq=False)
class HostRefused(Exception):
    """An answer that is an error."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: Json = field(default_factory=dict)


class HostSilent(Exception):
    """No answer, or no next piece of one, within the time that it has."""


class HostBroken(Exception):
    """No connection, or one that broke."""


class HostGarbled(HostBroken):
    """An answer that is none; the host may have done its work, and bill it."""


HostFailure = HostRefused | HostSilent | HostBroken


def may_be_tried_again(failure: HostFailure) -> bool:
    """Whether the same request may get an answer a little later. One that was silent for as long
    as it may be is not asked again: its client has waited that long, and the host may bill it."""
    if isinstance(failure, HostRefused):
        return failure.status in TO_BE_TRIED_AGAIN or failure.status >= 500
    return isinstance(failure, HostBroken) and not isinstance(failure, HostGarbled)


def is_full(failure: HostFailure) -> bool:
    """Whether the host only says that it has no room now."""
    return isinstance(failure, HostRefused) and failure.status in (429, *OVERLOADED)


def retry_after_s(failure: HostFailure) -> float | None:
    """When the host says that it can be asked again; it may say so as a date."""
    if not isinstance(failure, HostRefused):
        return None
    text = failure.headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S) if math.isfinite(seconds) else None


def limits_of(headers: Mapping[str, str], secrets: Secrets) -> dict[str, str]:
    """What a host says of its limits, for the client."""
    found = {
        name.lower(): value[:MAX_HEADER_CHARS]
        for name, value in headers.items()
        if name.lower().startswith(PASSED_ON)
        and f"{name}{value}".isascii()
        and f"{name}{value}".isprintable()
        and not secrets.are_told_by(value)
    }
    return dict(list(found.items())[:MAX_HEADERS])


def error_of(failure: HostFailure, secrets: Secrets) -> RequestError:
    """The client's error."""
    if isinstance(failure, HostSilent):
        # No 504: what stands in front of several pools takes that for "send it to another".
        return HostError(
            "the host of this model did not answer in time (--saas.timeout_s)", code="host_timeout"
        )
    if isinstance(failure, HostBroken):
        return HostError("the host of this model gave no answer; try again", code="host_failed")
    error = _of_status(failure, secrets)
    error.headers |= limits_of(failure.headers, secrets)
    return error


def _of_status(failure: HostRefused, secrets: Secrets) -> RequestError:
    status = failure.status
    wait_s = max(RETRY_AFTER_S, math.ceil(retry_after_s(failure) or 0))
    if status in CALLERS_FAULT:
        return _callers_fault(failure, secrets)
    if status in (401, 403):
        return HostError(
            "the host of this model refuses the pool's own key; whoever runs the pool has to give "
            "it another",
            code="host_key_refused",
        )
    if status == 429:
        return Overloaded(
            "the host of this model takes no more requests now; try again",
            code="host_rate_limit",
            retry_after_s=wait_s,
        )
    if status in OVERLOADED:
        error = HostError(
            "the host of this model is overloaded or down; try again",
            code="host_unavailable",
            retry_after_s=wait_s,
        )
        error.status = 503
        return error
    if status == 404:
        return HostError("the host has no such model or no such route", code="host_not_found")
    return HostError(f"the host of this model failed with {status}", code="host_failed")


def _callers_fault(failure: HostRefused, secrets: Secrets) -> RequestError:
    told = failure.content.get("error")
    fields = told if isinstance(told, dict) else {"message": told or failure.content.get("detail")}
    message, param, code = (fields.get(name) for name in ("message", "param", "code"))
    text = message if isinstance(message, str) and message else "it does not say why"
    if not isinstance(code, str) and CONTEXT.search(text):
        code = "context_length_exceeded"
    kind = TooLarge if failure.status == 413 else BadRequest
    return kind(
        f"the host of this model refuses the request: {secrets.hide(text)[:MAX_TEXT_CHARS]}",
        param=secrets.hide(param) if isinstance(param, str) else None,
        code=secrets.hide(code) if isinstance(code, str) else None,
    )
