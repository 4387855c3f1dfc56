"""Whether a host is there, takes the pool's key and has the model: one cheap question (preflight,
before any fork; worker, before it is ready)."""

from __future__ import annotations

import asyncio

import httpx

from gpupool.engines.saas_args import HOW_TO_GIVE_A_KEY, SaasArgs
from gpupool.engines.saas_body import whole_of
from gpupool.engines.saas_client import headers_of
from gpupool.engines.saas_errors import HostGarbled
from gpupool.engines.saas_key import secrets_of
from gpupool.errors import ConfigError, GpupoolError
from gpupool.json_object import object_or_empty
from gpupool.nearest import nearest_hint

PATIENCE_S = 10.0
MAX_LIST_BYTES = 16 << 20
NO_LIST = (404, 405, 501)
"""From a host that answers, and has no list of its models."""
IS_THERE = (200, 401, 403)


class HostUnreachable(GpupoolError):
    """Nobody answers, or with an error of his own. Later somebody may."""


def check_address(url: str, args: SaasArgs, model: str, key: str | None) -> str | None:
    """Blocks for an answer of GET URL/models. ConfigError if the key is refused or the URL lacks
    its /v1, HostUnreachable if there is no answer; a model that is not in the list comes back as a
    warning, since hosts serve more than they list."""
    headers = headers_of(key, args)
    try:
        status, raw = asyncio.run(_ask(url, headers))
    except TimeoutError:
        raise HostUnreachable(f"no answer from {url} within {PATIENCE_S:.0f} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, HostGarbled) as error:
        told = secrets_of(key).hide(" ".join(str(error).split())) or type(error).__name__
        raise HostUnreachable(f"no answer from {url}: {told}") from None
    if status in (401, 403):
        asked = "refuses the pool's key" if key is not None else "wants a key"
        raise ConfigError(f"--saas.base_url {url} {asked} ({status}); {HOW_TO_GIVE_A_KEY}")
    if status in NO_LIST:
        if status == 404:
            _refuse_without_v1(url, headers)
        return None
    if status != 200:
        raise HostUnreachable(f"{url} answers {status} when it is asked for its models")
    return _missing(raw, url, model)


def _refuse_without_v1(url: str, headers: dict[str, str]) -> None:
    """An address without the list may be one without its last part: every request would fail."""
    try:
        status, _ = asyncio.run(_ask(f"{url}/v1", headers))
    except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, HostGarbled):
        return
    if status in IS_THERE:
        raise ConfigError(
            f"--saas.base_url {url} has no list of models (404), and {url}/v1 has; did you mean "
            f"{url}/v1?"
        )


async def _ask(url: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """The time is for all of it: a host may send one byte after the other."""
    async with (
        asyncio.timeout(PATIENCE_S),
        httpx.AsyncClient(headers=headers, timeout=None) as client,
        client.stream("GET", f"{url}/models") as answer,
    ):
        return answer.status_code, await whole_of(answer, MAX_LIST_BYTES)


def _missing(raw: bytes, url: str, model: str) -> str | None:
    listed = object_or_empty(raw).get("data")
    if not isinstance(listed, list):
        return None
    names = [str(item["id"]) for item in listed if isinstance(item, dict) and "id" in item]
    if not names or model in names:
        return None
    return f"{url} does not list the model {model!r}{nearest_hint(model, names)}"
