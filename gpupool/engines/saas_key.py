"""The pool's own key at the host of its model: where it comes from, and that nobody is told it
(preflight and worker).

It is read after the fork, and once: a SIGHUP, which replaces the workers, reads it again.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

from gpupool.engines.saas_args import HOW_TO_GIVE_A_KEY, KEY_VARIABLE, SaasArgs
from gpupool.errors import ConfigError
from gpupool.keys import key_lines

KEY_FLAG = "--saas.api_key_file"
OPENAI_VARIABLE = "OPENAI_API_KEY"
LIKE_A_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)$")
MIN_SECRET_CHARS = 6
PART_CHARS = 12
"""A text that has so many characters of a key in a row tells too much of it."""
TALKATIVE = ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router", "httpcore", "httpx", "openai")


def silence_libraries() -> None:
    """Let none of them log, at whatever level: they tell whole requests and answers."""
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


class Secrets:
    """What must be in no log and no answer."""

    def __init__(self, texts: set[str]) -> None:
        self._texts = {text for text in texts if len(text) >= MIN_SECRET_CHARS}

    def are_told_by(self, text: str) -> bool:
        """Whether a text has a secret in it, or a good part of one."""
        return any(
            secret[at : at + PART_CHARS] in text
            for secret in self._texts
            for at in range(max(1, len(secret) - PART_CHARS + 1))
        )

    def hide(self, text: str) -> str:
        """The text, or that it cannot be shown."""
        if self.are_told_by(text):
            return "(not shown, as it has the pool's own key in it)"
        return text


def read_key(args: SaasArgs, given: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The key, or None where the host is asked without one, or litellm finds the vendor's own.
    `given` is what KEY_VARIABLE holds. ConfigError for one that cannot be; it is never shown.

    OpenAI's variable is meant for OpenAI: another address is never sent it.
    """
    if args.api_key_file is not None:
        return _checked(_only_line(args.api_key_file), f"{KEY_FLAG} {args.api_key_file}")
    if given:
        return _checked(given.strip(), KEY_VARIABLE)
    if args.base_url is None and args.api_type in (None, "openai"):
        return environ.get(OPENAI_VARIABLE) or None
    return None


def secrets_of(key: str | None, environ: Mapping[str, str] = os.environ) -> Secrets:
    """The key, and whatever litellm may find in the environment for a vendor."""
    found = {value for name, value in environ.items() if LIKE_A_SECRET.search(name.upper())}
    return Secrets(found | ({key} if key else set()))


def _only_line(path: Path) -> str:
    found = key_lines(path, KEY_FLAG)
    if len(found) != 1:
        raise ConfigError(f"{KEY_FLAG} {str(path)!r} has {len(found)} keys; write one alone")
    return found[0]


def _checked(key: str, where: str) -> str:
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{where} holds no key: it must be printable ASCII without spaces")
    return key


def missing_key(names: str) -> ConfigError:
    """Of a vendor, without one of its own variables."""
    return ConfigError(f"no key for the host of this model: set {names}, or {HOW_TO_GIVE_A_KEY}")
