"""A host that speaks an API of its own, asked by litellm (preflight; worker, the engine's loop).

Imports litellm, which takes seconds and 190 MB, inside functions only, after the fork. It may
fetch nothing by itself, log nothing, and call nobody back: what it would tell has keys in it.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache, wraps
from typing import Any

from gpupool.engines.saas_args import OPENAI, REQUEST_FIELDS, VENDOR_FIELDS, SaasArgs
from gpupool.engines.saas_client import Json, Reply, Stream
from gpupool.engines.saas_errors import HostBroken, HostFailure, HostRefused, HostSilent
from gpupool.engines.saas_fields import COMPLETIONS, EMBEDDINGS
from gpupool.engines.saas_key import missing_key, silence_libraries
from gpupool.errors import BadRequest, ConfigError
from gpupool.json_object import object_or_empty
from gpupool.nearest import nearest_hint

CALLBACKS = (
    "callbacks", "success_callback", "failure_callback", "input_callback", "service_callback",
    "_async_success_callback", "_async_failure_callback", "_async_input_callback",
)  # fmt: skip
NAME_OF_THEIRS = re.compile(r"^(litellm\.\w+: |\w+(Error|Exception)( -|:) )+")
HINT_OF_THEIRS = re.compile(r"\s*To drop these, set .*", re.DOTALL)
NO_FIELDS = frozenset({"metadata"})
"""What litellm takes for its own."""


@cache
def import_litellm() -> Any:
    """The library, made silent."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ["LITELLM_OFFLINE_MODE"] = "true"
    os.environ["LITELLM_LOG"] = "CRITICAL"
    try:
        import litellm
    except ImportError as error:
        raise ConfigError(f"litellm cannot be imported: {error}") from None
    litellm.suppress_debug_info = True
    litellm.set_verbose = False
    litellm.telemetry = False
    for name in CALLBACKS:
        setattr(litellm, name, [])
    silence_libraries()
    _follow_no_redirects()
    return litellm


def _follow_no_redirects() -> None:
    """litellm's clients go wherever a host sends them, and of the headers only Authorization stays
    behind then: Anthropic's and Google's keys are in others."""
    import httpx

    for client in (httpx.AsyncClient, httpx.Client):
        client.send = _staying(client.send)  # type: ignore[method-assign]


def _staying(send: Any) -> Any:
    @wraps(send)
    def stay(*args: Any, **more: Any) -> Any:
        return send(*args, **more | {"follow_redirects": False})

    return stay


def find_vendor(args: SaasArgs, model_name: str) -> tuple[str, str]:
    """The vendor, and the model's name there; ConfigError where litellm knows none."""
    litellm = import_litellm()
    known = sorted({str(getattr(name, "value", name)) for name in litellm.provider_list})
    name = args.name_there(model_name)
    vendor, has_vendor, rest = name.partition("/")
    if args.api_type is not None:
        if args.api_type not in known:
            raise ConfigError(
                f"--saas.api_type {args.api_type!r} is no vendor that litellm knows"
                f"{nearest_hint(args.api_type, known)}; for an address that speaks OpenAI's API "
                f"give --saas.base_url alone"
            )
        return args.api_type, rest if has_vendor and vendor == args.api_type else name
    if not has_vendor or vendor not in known or vendor == OPENAI:
        raise ConfigError(
            f"the model {name!r} names no host: give --saas.base_url URL, --saas.api_type VENDOR, "
            "or a name as VENDOR/MODEL"
        )
    return vendor, rest


def check_vendor(args: SaasArgs, model_name: str, key: str | None) -> None:
    """ConfigError if the vendor lacks what it needs. Nothing is asked of it: few have a cheap
    question, and none the same."""
    vendor, model = find_vendor(args, model_name)
    found = import_litellm().validate_environment(
        model=f"{vendor}/{model}",
        api_key=key,
        api_base=args.base_url,
        api_version=args.extra.get("api_version"),
    )
    given = {"API_KEY": key, "API_BASE": args.base_url, "API_VERSION": "api_version" in args.extra}
    given |= {"PROJECT": "vertex_project" in args.extra, "REGION": "aws_region_name" in args.extra}
    missing = [
        name
        for name in found["missing_keys"]
        if not any(name.endswith(end) and value for end, value in given.items())
    ]
    if missing and key is None:
        raise missing_key(", ".join(missing))


class VendorClient:
    """Of a vendor that litellm knows."""

    def __init__(self, args: SaasArgs, model_name: str, key: str | None) -> None:
        self._litellm = import_litellm()
        vendor, self.model = find_vendor(args, model_name)
        self._timeout_s = args.timeout_s
        self._common: Json = {
            "custom_llm_provider": vendor,
            "timeout": args.timeout_s,
            # Tried again by us, who know what has been answered.
            "max_retries": 0,
            "num_retries": 0,
        }
        if args.base_url is not None:
            # Not base_url: for embeddings that is ignored, and the key sent to the vendor's own.
            self._common["api_base"] = args.base_url
        if key is not None:
            self._common["api_key"] = key
        fields = (VENDOR_FIELDS | {"extra_headers", "organization"}) - REQUEST_FIELDS
        self._common |= {name: args.extra[name] for name in fields if name in args.extra}

    async def ask(self, path: str, body: Json) -> Reply:
        """See saas_client.Client.ask."""
        answer = await self._call(path, body)
        headers = _headers(answer)
        content = _dump(answer)
        if path == EMBEDDINGS:
            content["data"] = [_dump(item) for item in content.get("data", ())]
            return Reply(content, headers)
        for choice in content.get("choices", ()):
            choice.setdefault("logprobs", None)
            choice.get("message", {}).setdefault("content", None)
        if path == COMPLETIONS:
            content = _as_text(content)
        return Reply(content, headers)

    @asynccontextmanager
    async def stream(self, path: str, body: Json) -> AsyncIterator[Stream]:
        """See saas_client.Client.stream."""
        if (body.get("n") or 1) > 1:
            # litellm ends a stream at the end of its first choice.
            raise BadRequest(
                "n is above 1; this model's host can have it in whole answers, not in streams",
                param="n",
                code="unsupported",
            )
        answer = await self._call(path, body)
        try:
            yield Stream(self._events(path, answer), _headers(answer))
        finally:
            await answer.aclose()

    async def aclose(self) -> None:
        """See saas_client.Client.aclose. litellm's connections end with the process."""

    async def _call(self, path: str, body: Json) -> Any:
        asked = {name: value for name, value in body.items() if name not in NO_FIELDS}
        asked |= self._common | {"model": self.model}
        if path == COMPLETIONS:
            prompt = asked.pop("prompt")
            if not isinstance(prompt, str):
                raise BadRequest(
                    "prompt must be one text: this model's host takes no token ids, and in a "
                    "stream no list",
                    param="prompt",
                )
            if asked.pop("logprobs", None) is not None or asked.pop("suffix", None):
                raise BadRequest(
                    "this model's host has chats only: a completion has neither logprobs nor a "
                    "suffix there; ask /v1/chat/completions",
                    code="unsupported",
                )
            asked["messages"] = [{"role": "user", "content": prompt}]
        call = self._litellm.aembedding if path == EMBEDDINGS else self._litellm.acompletion
        try:
            async with asyncio.timeout(self._timeout_s):
                return await call(**asked)
        except TimeoutError:
            raise HostSilent from None
        except Exception as error:
            raise self._failure(error) from None

    async def _events(self, path: str, answer: Any) -> AsyncGenerator[Json]:
        pieces = aiter(answer)
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):
                    piece = await anext(pieces, None)
            except TimeoutError:
                raise HostSilent from None
            except Exception as error:
                raise self._failure(error) from None
            if piece is None:
                return
            content = _dump(piece)
            yield _as_text(content) if path == COMPLETIONS else content

    def _failure(self, error: Exception) -> HostFailure:
        exceptions = self._litellm.exceptions
        if isinstance(error, exceptions.Timeout):
            return HostSilent()
        status = getattr(error, "status_code", None)
        broken = (exceptions.APIConnectionError, exceptions.MidStreamFallbackError)
        if isinstance(error, broken) or not isinstance(status, int):
            return HostBroken(f"{type(error).__name__}: {error}")
        text = NAME_OF_THEIRS.sub("", str(error))
        told = _told(HINT_OF_THEIRS.sub("", text)) | {"param": getattr(error, "param", None)}
        if isinstance(error, exceptions.ContextWindowExceededError):
            told["code"] = "context_length_exceeded"
        found = getattr(error, "litellm_response_headers", None)
        found = found or getattr(getattr(error, "response", None), "headers", None)
        return HostRefused(status, _lower(found or {}), {"error": told})


def _told(text: str) -> Json:
    """Of the vendor's own body, where litellm passes that on as the text."""
    found = object_or_empty(text.encode()).get("error")
    return found if isinstance(found, dict) else {"message": text}


def _headers(answer: Any) -> Mapping[str, str]:
    """A vendor's limits under OpenAI's names too, as litellm has them."""
    hidden = getattr(answer, "_hidden_params", None) or {}
    return _lower(getattr(answer, "_response_headers", None) or {}) | _lower(
        hidden.get("additional_headers") or {}
    )


def _lower(headers: Any) -> dict[str, str]:
    return {str(name).lower(): str(value) for name, value in dict(headers).items()}


def _dump(answer: Any) -> Json:
    """Without what litellm adds of its own, which is null or empty."""
    content: Json = answer if isinstance(answer, dict) else answer.model_dump(exclude_none=True)
    for choice in content.get("choices", ()):
        choice.pop("provider_specific_fields", None)
        choice.setdefault("finish_reason", None)
    return content


def _as_text(content: Json) -> Json:
    """A chat's answer as a completion's."""
    choices = []
    for choice in content.get("choices", ()):
        part = choice.get("message") or choice.get("delta") or {}
        kept = {name: choice[name] for name in ("index", "finish_reason")}
        choices.append({**kept, "text": part.get("content") or "", "logprobs": None})
    return content | {"object": "text_completion", "choices": choices}
