"""How a pool stands, asked of the pool itself (any command).

A pool with keys is asked with one of its own, which is never shown. What does not answer is
told by its process and the last line of its log.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from gpupool import json_lines, procfs
from gpupool.errors import ConfigError
from gpupool.keys import HASHED, key_lines
from gpupool.pools.record import Record
from gpupool.refusal import ERROR
from gpupool.settings import Settings

TIMEOUT_S = 5.0
TAIL_BYTES = 16_384
OF_GUNICORN = re.compile(r"\[[^\]]*\] \[(\d+)\] \[[A-Z]+\] ")
STARTS, LAST_WORDS = "Starting gunicorn", "Shutting down: Master"
"""Of gunicorn's master."""


@dataclass(frozen=True, slots=True)
class View:
    """One pool at one moment."""

    record: Record
    state: str
    reason: str = ""  # where no worker says it
    workers: list[dict[str, Any]] = field(default_factory=list)
    infer_type: str = ""
    reload: dict[str, Any] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it serves."""
        return self.state == "ready"

    @property
    def num_slots(self) -> int:
        """Its slices; each has two workers while one takes over from the other."""
        return len({worker["slot"] for worker in self.workers})

    @property
    def num_ready(self) -> int:
        """Slices with a worker that serves."""
        return len({worker["slot"] for worker in self.workers if worker["state"] == "ready"})


def look_at(records: Iterable[Record]) -> list[View]:
    """All of them at the same time, so that one that hangs holds up nobody."""
    records = list(records)
    with ThreadPoolExecutor(max(1, len(records))) as threads:
        return list(threads.map(look, records))


def look(record: Record, other_key: str = "") -> View:
    """Ask one pool; never raises. While it gets new settings, `other_key` may be the one that its
    workers still have."""
    if not record.is_running:
        return View(record, "ended", end_of(record))
    try:
        with client(record) as asked:
            answer = asked.get("/pool")
            if other_key and answer.status_code == httpx.codes.UNAUTHORIZED:
                answer = asked.get("/pool", headers=_headers(other_key))
            found = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        return _silent(record, error)
    except (OSError, ConfigError) as error:
        return View(record, "unknown", str(error))
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        return View(record, "unknown", _KEYLESS)
    if "workers" not in found:
        return View(record, "unknown", f"{record.url}/pool answers {answer.status_code}")
    if found.get("master_pid") not in (None, record.pid):
        said = f"another pool (master pid {found['master_pid']}) answers at {record.url}"
        return View(record, "starting", said)
    workers = found["workers"]
    quorum = record.settings().ready_quorum
    return View(
        record,
        state_of(workers, quorum, is_stopping=record.is_stopping),
        workers=workers,
        infer_type=found["infer_type"],
        reload=found.get("reload"),
    )


_KEYLESS = (
    "its keys are known as hashes only, or have changed; set GPUPOOL_API_KEY to one of them to ask"
)


def state_of(workers: list[dict[str, Any]], quorum: int, *, is_stopping: bool = False) -> str:
    """One word for a pool: its best workers'."""
    states = [worker["state"] for worker in workers]
    if is_stopping:
        return "draining"
    if states.count("ready") >= max(1, quorum):
        return "ready"
    order = ("loading", "ready", "waiting", "starting", "draining", "failed", "quarantined")
    found = next((state for state in order if state in states), "starting")
    return "loading" if found == "ready" else found


def client(record: Record, timeout_s: float = TIMEOUT_S) -> httpx.Client:
    """To ask a pool, with a key if it has any. No proxy: it is on this machine."""
    key = os.environ.get("GPUPOOL_API_KEY", "").split(",")[0] or key_of(record.settings())
    return httpx.Client(
        base_url=record.url,
        headers=_headers(key),
        timeout=timeout_s,
        trust_env=False,
        verify=False,  # no TLS here, and loading the certificates takes longer than asking
    )


def _headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def key_of(settings: Settings) -> str:
    """One of a pool's keys, "" where it has none that is written anywhere."""
    if settings.api_key:
        return settings.api_key[0]
    if settings.api_key_file is None:
        return ""
    keys = key_lines(settings.api_key_file)
    return next((key for key in keys if not HASHED.fullmatch(key)), "")


def end_of(record: Record) -> str:
    """Why a pool has ended: the end of its log says so, unless its master could not write it."""
    if record.boot_id != procfs.boot_id():
        return "this machine has been started anew since"
    if record.is_foreground or has_last_word(_last_lines(record), record.pid):
        return last_line(record)
    return (
        f"its master (pid {record.pid}) ended without a word, as one that is killed does; "
        f"gpupool logs {record.name} tells what was before"
    )


def refuse_ended(record: Record) -> None:
    """ConfigError for a pool that does not run any more."""
    if not record.is_running:
        raise ConfigError(
            f"pool {record.name!r} has ended; `gpupool run -f {record.file} {record.name}` starts "
            "it, `gpupool status` says why it ended"
        )


def last_line(record: Record) -> str:
    """The end of its log: a pool that ends by itself says there why."""
    if record.is_foreground:
        return "its log is where it was started"
    said = [_message_of(line) for line in _last_lines(record)]
    said = [line.removeprefix(ERROR) for line in said if line]
    return said[-1] if said else ""


def has_last_word(lines: Sequence[str], master: int) -> bool:
    """Whether a master's log ends as a master ends it. One that ends before it has workers says
    why in words that are not gunicorn's."""
    has_workers = False
    for line in reversed(lines):
        message = _message_of(line)
        if message.startswith((ERROR, LAST_WORDS)):
            return True
        if STARTS in message:
            break
        has_workers = has_workers or _pid_of(line) not in (None, master)
    return not has_workers


def _pid_of(line: str) -> int | None:
    if (found := json_lines.parse(line)) is not None:
        return found.get("pid")
    head = OF_GUNICORN.match(line)
    return int(head[1]) if head else None


def _last_lines(record: Record) -> list[str]:
    try:
        with (record.folder / "pool.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def _message_of(line: str) -> str:
    found = json_lines.parse(line)
    return OF_GUNICORN.sub("", line).strip() if found is None else str(found["message"])


def _silent(record: Record, error: Exception) -> View:
    if record.is_stopping:
        return View(record, "draining", "answers what it has")
    if isinstance(error, httpx.ConnectError):
        return View(record, "starting", last_line(record))
    return View(record, "unknown", f"{record.url}/pool does not answer ({type(error).__name__})")
