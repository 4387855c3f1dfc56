"""A pool's record: which process it is, where it listens, what it was made of (any command).

A process is known by its pid and the moment it started, within one boot and one pid namespace: a
pid that somebody else has by now is never believed, and never signalled.
"""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from gpupool import procfs
from gpupool.errors import ConfigError
from gpupool.nearest import nearest_hint
from gpupool.pools.given import settings_of
from gpupool.pools.run_dir import only_one, open_run_dir, write_private
from gpupool.settings import Settings

RECORD = "pool.json"
SETTINGS = "settings.yaml"


@dataclass(frozen=True, slots=True)
class Record:
    """One pool that was started; its folder has its settings and its log."""

    name: str
    pid: int
    start_ticks: int
    boot_id: str
    pid_namespace: str
    url: str
    model: str
    file: str
    since: str  # for people
    overlay: dict[str, str]  # the settings that came from the environment, by field
    is_foreground: bool = False  # its log is not kept here
    is_stopping: bool = False

    @property
    def is_running(self) -> bool:
        """Whether that very process still runs."""
        if self.boot_id != procfs.boot_id() or self.pid_namespace != procfs.pid_namespace():
            return False
        process = procfs.read_process(self.pid)
        return (
            process is not None and process.start_ticks == self.start_ticks and process.is_running
        )

    @property
    def lease_owner(self) -> str:
        """How the notes beside the GPUs' locks name this pool."""
        return f"{self.pid}-{self.start_ticks}"

    @property
    def folder(self) -> Path:
        """Its part of the run directory."""
        return open_run_dir() / self.name

    def is_engine(self, pid: int) -> bool:
        """Whether a process is an engine of this very start of the pool, whose master may have
        ended. In its session, whose number is nobody else's while one of its processes runs."""
        try:
            is_in_session = os.getsid(pid) == self.pid
        except OSError:
            return False
        settings = f"GPUPOOL_CONFIG={self.folder / SETTINGS}"
        return (
            is_in_session
            and procfs.environ_holds(pid, settings)
            and procfs.environ_names(pid, "GPUPOOL_LEASE")
        )

    def settings(self) -> Settings:
        """What its master has read."""
        values = yaml.safe_load((self.folder / SETTINGS).read_text())
        return settings_of(values)

    def write(self) -> None:
        """Put it in place."""
        write_private(self.folder / RECORD, json.dumps(asdict(self), indent=1) + "\n")

    def remove(self) -> None:
        """Forget the pool; its log stays. Not one that was started under its name meanwhile."""
        with only_one():
            if any(self.is_same(other) for other in read_records()):
                for name in (RECORD, SETTINGS):
                    (self.folder / name).unlink(missing_ok=True)

    def is_same(self, other: Record) -> bool:
        """Whether both mean one start of one pool."""
        return (self.name, self.lease_owner) == (other.name, other.lease_owner)


def identity_of(pid: int) -> dict[str, Any]:
    """The fields of a record that say which process it is."""
    return {
        "pid": pid,
        "start_ticks": procfs.start_ticks(pid),
        "boot_id": procfs.boot_id(),
        "pid_namespace": procfs.pid_namespace(),
    }


def url_of(settings: Settings) -> str:
    """Where this machine asks a pool."""
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def write_settings(folder: Path, values: dict[str, Any]) -> None:
    """What the master reads, at once and at each reload."""
    write_private(folder / SETTINGS, yaml.safe_dump(values, sort_keys=False))


def read_records() -> list[Record]:
    """Every pool that was started here and not stopped, whether it still runs or not."""
    found = []
    for path in sorted(open_run_dir().glob(f"*/{RECORD}")):
        try:
            found.append(Record(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            continue  # just removed, or of another version
    return found


def select_records(names: list[str]) -> list[Record]:
    """Those of these names; all if none is named."""
    found = read_records()
    known = [record.name for record in found]
    for name in names:
        if name not in known:
            there = f"there is {', '.join(known)}" if known else "no pool runs"
            raise ConfigError(
                f"{name!r} is no pool that gpupool run started{nearest_hint(name, known)}; {there}"
            )
    return [record for record in found if not names or record.name in names]


class Process:
    """A pool's master, held by a pidfd: what is signalled is that process or nothing."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def send(self, number: int) -> bool:
        """Signal it; False if it has ended."""
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        return True

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended within this time."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(max(0.0, timeout_s) * 1000))


@contextmanager
def opened(record: Record) -> Iterator[Process | None]:
    """The record's process, or None where it has ended."""
    try:
        fd = os.pidfd_open(record.pid)
    except OSError:
        yield None
        return
    try:
        # Looked at with the descriptor in hand: from here on it cannot become another process.
        yield Process(fd) if record.is_running else None
    finally:
        os.close(fd)
