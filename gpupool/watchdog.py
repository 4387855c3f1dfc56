"""Does an engine that has work still work? The judgement on what was seen of it (pure; worker).

`engine_watch` looks and acts. Time counts only as far as it was watched: while this process is
itself stopped, or the machine sleeps, nothing is held against the engine.
"""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import dataclass

from gpupool.procfs import Process, ticks_per_second

STOPPED_S = 0.8  # longer than a tool that stops a process for a look takes
SILENT_S = 10.0
MAX_STEP_S = 2.0  # between two looks; what is longer was not watched
COMPUTES_S = 0.5
"""CPU time of one process within SILENT_S that counts as computing; a busy core's is 10 s.

Measured in 10 s without work, on two cores: vLLM's worker process 0.14 s (after 1 s in which it
spins), its EngineCore 0.00, llama.cpp's process 0.00, a worker with transformers 0.03 s, and
with 10 probes a second 0.16 s.
"""

ProcessId = tuple[int, int]
"""(pid, start_ticks): names a process for the whole boot."""

ASKED_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at an engine saw."""

    at: float  # time.monotonic()
    num_inflight: int
    last_progress: float
    processes: tuple[Process, ...]  # those that compute for it
    gpus_compute: bool = False


class Watchdog:
    """Judges one engine, look by look."""

    def __init__(self, stall_timeout_s: float) -> None:
        self._stall_timeout_s = stall_timeout_s
        self._last: Look | None = None
        self.silent_s = 0.0  # without CPU time and progress
        self._stalled_s = 0.0  # without progress
        self._cpu_ticks: Counter[ProcessId] = Counter()  # while silent
        self._broken_s: dict[int, float] = {}

    def judge(self, look: Look) -> str | None:
        """Why the engine must be replaced, for the operator; None while all is well.

        An engine without work is never judged, and none while a debugger holds it.
        """
        before, self._last = self._last, look
        if before is None or not before.num_inflight or not look.num_inflight:
            self._begin()
            return None
        if any(process.state == "t" for process in look.processes):
            return None
        step_s = min(look.at - before.at, MAX_STEP_S)
        reason = self._find_broken(before, look, step_s) or self._find_silent(before, look, step_s)
        if reason is None:
            return None
        sequences = "sequence" if look.num_inflight == 1 else "sequences"
        return f"{reason} with {look.num_inflight} {sequences} in flight"

    def _begin(self) -> None:
        self.silent_s = self._stalled_s = 0.0
        self._cpu_ticks.clear()
        self._broken_s = {}

    def _find_broken(self, before: Look, look: Look, step_s: float) -> str | None:
        """A process that is stopped, or was killed and whose parent has not noticed."""
        was_broken = {process.pid for process in before.processes if _is_broken(process)}
        broken = {process.pid: process for process in look.processes if _is_broken(process)}
        self._broken_s = {
            pid: self._broken_s.get(pid, 0.0) + (step_s if pid in was_broken else 0.0)
            for pid in broken
        }
        for pid, process in broken.items():
            if self._broken_s[pid] >= STOPPED_S:
                how = "is stopped" if process.state == "T" else "was killed"
                return f"engine process {pid} ({process.name}) {how} ({_signal_name(process)})"
        return None

    def _find_silent(self, before: Look, look: Look, step_s: float) -> str | None:
        self._cpu_ticks.update(_cpu_growth(before, look))
        has_progressed = look.last_progress > before.last_progress
        most_ticks = max(self._cpu_ticks.values(), default=0)
        computes = look.gpus_compute or most_ticks >= COMPUTES_S * ticks_per_second()
        self._stalled_s = 0.0 if has_progressed else self._stalled_s + step_s
        if has_progressed or computes:
            self.silent_s = 0.0
            self._cpu_ticks.clear()
        else:
            self.silent_s += step_s
        if self.silent_s >= SILENT_S:
            return f"the engine has neither computed nor progressed for {self.silent_s:.0f} s"
        if self._stalled_s >= self._stall_timeout_s:
            return (
                f"the engine has made no progress for {self._stalled_s:.0f} s (--stall_timeout_s)"
            )
        return None


def _is_broken(process: Process) -> bool:
    if process.state == "T":
        return True
    # Parents do end helpers of theirs, by these signals, and reap them late.
    return not process.is_running and process.last_signal not in (0, *ASKED_TO_END)


def _signal_name(process: Process) -> str:
    try:
        return signal.Signals(process.last_signal).name
    except ValueError:  # Shown only to whoever may trace the process, and by newer kernels.
        return "SIGSTOP" if process.state == "T" else f"signal {process.last_signal}"


def _cpu_growth(before: Look, look: Look) -> dict[ProcessId, int]:
    """Ticks since the look before; a process that is new counts from the next look on."""
    known = {(process.pid, process.start_ticks): process.cpu_ticks for process in before.processes}
    now = {(process.pid, process.start_ticks): process.cpu_ticks for process in look.processes}
    return {key: now[key] - known[key] for key in now.keys() & known.keys()}
