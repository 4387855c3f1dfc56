"""What a SIGHUP reads, before anything of the running pool is touched (master).

New settings are looked at three times: do they parse, can a running pool take them, and does the
engine accept them. The last runs in a process of its own, since an engine's parser may import
torch. Imports no engine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from gpupool.refusal import ERROR
from gpupool.settings import Settings, env_name

FIXED = (
    "launcher",
    "host",
    "port",
    "cuda_visible_devices",
    "per_proc_gpus",
    "workers",
    "lock_dir",
    "log_format",
)
"""Fields that a pool keeps for its whole life: they made its socket, slices, leases and log."""

RECHECK_TIMEOUT_S = 300.0


@dataclass(slots=True, eq=False)
class Edition:
    """What a worker is forked with: the settings, and gunicorn's configuration made of them."""

    settings: Settings
    cfg: Any
    app_uri: str
    was_ready: bool = False  # whether a worker with these settings ever was


def find_fixed_change(running: Settings, asked: Settings) -> str | None:
    """Why a running pool cannot take these settings, or None."""
    for field in FIXED:
        now, wanted = getattr(running, field), getattr(asked, field)
        if now != wanted:
            return (
                f"--{field} ({env_name(field)}) is {wanted!r}, but the running pool has {now!r} "
                "and keeps it; restart the pool to change it"
            )
    return None


class Recheck:
    """The preflight of new settings; one short-lived child of the master, which reaps it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._output = os.memfd_create("recheck")
        self._deadline = time.monotonic() + RECHECK_TIMEOUT_S
        command = [sys.executable, "-m", "gpupool.preflight", "--running"]
        env = os.environ | {env_name("infer_type"): settings.infer_type}
        # Not waited for here: the master's reaping takes every child, and hands over the status.
        try:
            self._process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output
            )
        except OSError:
            os.close(self._output)
            raise

    @property
    def pid(self) -> int:
        """The child's."""
        return self._process.pid

    @property
    def is_overdue(self) -> bool:
        """Whether it takes longer than any check should."""
        return time.monotonic() > self._deadline

    def end(self, status: int) -> str | None:
        """The child ended; returns why the settings are refused, or None."""
        self._process.returncode = os.waitstatus_to_exitcode(status)
        with os.fdopen(self._output, "rb") as output:
            output.seek(0)
            lines = output.read().decode(errors="replace").split("\n")
        if self._process.returncode == 0:
            return None
        if self.is_overdue:
            return f"the check of the new settings took longer than {RECHECK_TIMEOUT_S:.0f} s"
        said = [line.strip() for line in lines if line.strip()]
        return (
            said[-1].removeprefix(ERROR)
            if said
            else (f"the check of the new settings ended with {self._process.returncode}")
        )

    def kill(self) -> None:
        """Give up."""
        if self._process.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
