"""What may follow `--` for a hosted model, parsed (pure; any process).

Every argument is --saas.NAME: where the model is and how it is asked, and by their own names the
fields that all requests get. A secret is refused wherever it stands: a command line is seen by
everybody on the machine, and files of settings are shared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gpupool.errors import ConfigError
from gpupool.nearest import nearest_hint

PREFIX = "--saas."
OPENAI = "openai"
OPENAI_PREFIX = "openai/"
OPENAI_URL = "https://api.openai.com/v1"
KEY_VARIABLE = "GPUPOOL_SAAS_API_KEY"
HOW_TO_GIVE_A_KEY = (
    f"put it into a file that only you can read and give --saas.api_key_file FILE, or set "
    f"{KEY_VARIABLE}"
)

REQUEST_FIELDS = frozenset(
    {
        "extra_body", "modalities", "prompt_cache_key", "prompt_cache_retention",
        "reasoning_effort", "safety_identifier", "service_tier", "store", "thinking", "user",
        "verbosity", "web_search_options",
    }
)  # fmt: skip
"""Fields that every request gets, unless it has them itself."""
VENDOR_FIELDS = frozenset(
    {
        "additional_drop_params", "allowed_openai_params", "api_version", "aws_profile_name",
        "aws_region_name", "aws_role_name", "aws_session_name", "deployment_id", "drop_params",
        "vertex_location", "vertex_project",
    }
)  # fmt: skip
"""What only litellm takes, for its vendors."""
HEADER_FIELDS = frozenset({"extra_headers", "organization"})
EXTRA = REQUEST_FIELDS | VENDOR_FIELDS | HEADER_FIELDS

SECRETS = frozenset(
    {
        "api_key", "aws_access_key_id", "aws_secret_access_key", "aws_session_token",
        "azure_ad_token", "azure_password", "client_secret", "vertex_credentials",
    }
)  # fmt: skip
NOT_IN_EXTRA_BODY = frozenset({"messages", "model", "n", "stream", "stream_options"})
"""What says how a request is answered and counted here."""
SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "api-key", "x-api-key"})
OF_REQUESTS = frozenset(
    {
        "temperature", "top_p", "top_k", "n", "stop", "seed", "max_tokens", "logprobs", "tools",
        "max_completion_tokens", "presence_penalty", "frequency_penalty", "logit_bias", "stream",
        "response_format", "tool_choice", "messages", "top_logprobs", "stream_options",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SaasArgs:
    """Where a hosted model is and how it is asked."""

    model: str | None = None  # its name there; None: --model_name
    base_url: str | None = None
    api_type: str | None = None  # a vendor, by litellm's name
    api_key_file: Path | None = None
    timeout_s: float = 600.0  # until an answer, or the next piece of it, begins
    max_retries: int = 2
    max_parallel: int = 64
    infer_as: str = "chat"  # what a prompt of /infer becomes: chat or completion
    extra: Mapping[str, Any] = field(default_factory=dict)

    def direct_url(self, model_name: str) -> str | None:
        """Where OpenAI's API is spoken, which needs no litellm; None for a vendor's own."""
        if self.api_type not in (None, OPENAI):
            return None
        if self.base_url is not None:
            return self.base_url
        name = self.model or model_name
        return OPENAI_URL if self.api_type == OPENAI or name.startswith(OPENAI_PREFIX) else None

    def name_there(self, model_name: str) -> str:
        """The model's name at its host; for litellm, with what names the vendor."""
        name = self.model or model_name
        is_at_openai = self.direct_url(model_name) == OPENAI_URL and self.base_url is None
        return name.removeprefix(OPENAI_PREFIX) if is_at_openai else name


def parse_engine_args(words: Sequence[str]) -> SaasArgs:
    """The arguments after `--`; ConfigError names the first that cannot be."""
    given = _read_words(words)
    known = {name: value for name, value in given.items() if name in READERS}
    values = {name: READERS[name](name, value) for name, value in known.items()}
    extra = {name: _extra(name, given[name]) for name in given if name not in READERS}
    args = SaasArgs(**values, extra=extra)
    if args.api_type in (None, OPENAI) and args.base_url is not None:
        for name in sorted(VENDOR_FIELDS.intersection(extra)):
            raise ConfigError(
                f"{PREFIX}{name} is for a vendor that litellm knows, and {PREFIX}base_url alone is "
                f"an address that speaks OpenAI's API; give {PREFIX}api_type too, or leave it out"
            )
    return args


def _read_words(words: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    left = list(words)
    while left:
        word, has_value, value = left.pop(0).partition("=")
        name = word.removeprefix(PREFIX).replace("-", "_")
        if not word.startswith(PREFIX):
            raise ConfigError(
                f"arguments after --: {word!r} is not one of a hosted model; they are {PREFIX}NAME "
                f"VALUE, with {', '.join(READERS)} and others (docs/saas.md)"
            )
        if name not in READERS:
            _refuse_unknown(name)
        if name in given:
            raise ConfigError(f"{PREFIX}{name} is given twice; give it once")
        if not has_value and (not left or left[0].startswith(PREFIX)):
            raise ConfigError(f"{PREFIX}{name} has no value; give one")
        given[name] = value if has_value else left.pop(0)
    return given


def _refuse_unknown(name: str) -> None:
    """What is no name of ours and none that all requests may get. Values are never shown here."""
    if name in SECRETS:
        raise ConfigError(
            f"{PREFIX}{name} is refused: everybody on this machine sees a command line (ps), and "
            f"files of settings are shared; {HOW_TO_GIVE_A_KEY}"
        )
    if name in OF_REQUESTS:
        raise ConfigError(f"{PREFIX}{name} is refused: each request says that itself")
    if name not in EXTRA:
        hint = nearest_hint(name, [*READERS, *sorted(EXTRA)])
        raise ConfigError(
            f"{PREFIX}{name} is not known{hint}; docs/saas.md has the names. What only the host "
            f"knows goes into {PREFIX}extra_body"
        )


def _text(name: str, value: str) -> str:
    if not value or not value.isprintable():
        raise ConfigError(f"{PREFIX}{name} is {value!r}; give a name")
    return value


def _file(name: str, value: str) -> Path:
    return Path(_text(name, value)).expanduser()


def _url(name: str, value: str) -> str:
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        shown = "refused" if "@" in value else repr(value)
        raise ConfigError(f"{PREFIX}{name} is {shown}; give a URL as https://host/v1")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(
            f"{PREFIX}{name} has more than a host and a path, which may be a secret; "
            f"{HOW_TO_GIVE_A_KEY}"
        )
    return value.rstrip("/")


def _seconds(name: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise ConfigError(f"{PREFIX}{name} is {value!r}; give seconds, more than 0, at most 86400")
    return seconds


def _number(low: int, high: int) -> Callable[[str, str], int]:
    def read(name: str, value: str) -> int:
        if not value.isascii() or not value.isdigit() or not low <= int(value) <= high:
            raise ConfigError(
                f"{PREFIX}{name} is {value!r}; give a whole number from {low} to {high}"
            )
        return int(value)

    return read


def _kind(name: str, value: str) -> str:
    if value not in ("chat", "completion"):
        raise ConfigError(f"{PREFIX}{name} is {value!r}; use chat or completion")
    return value


READERS: dict[str, Callable[[str, str], Any]] = {
    "model": _text,
    "base_url": _url,
    "api_type": _text,
    "api_key_file": _file,
    "timeout_s": _seconds,
    "max_retries": _number(0, 20),
    "max_parallel": _number(1, 4096),
    "infer_as": _kind,
}


def _extra(name: str, value: str) -> Any:
    """JSON where it is JSON, else the text."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        found = value
    if name in ("extra_body", "extra_headers") and not isinstance(found, dict):
        raise ConfigError(f"{PREFIX}{name} must be a JSON object; write it in quotes")
    if name == "extra_body":
        for field_name in sorted(NOT_IN_EXTRA_BODY.intersection(found)):
            raise ConfigError(
                f"{PREFIX}{name} has {field_name!r}, which each request says itself; leave it out"
            )
    if name == "extra_headers":
        for header, content in found.items():
            if header.lower() in SECRET_HEADERS:
                raise ConfigError(
                    f"{PREFIX}{name} has {header!r}, which is refused: everybody on this machine "
                    f"sees a command line (ps); {HOW_TO_GIVE_A_KEY}"
                )
            if not isinstance(content, str) or not f"{header}{content}".isprintable():
                raise ConfigError(f"{PREFIX}{name}: {header!r} must be a text of one line")
    return found
