"""Watches a pool's GPUs and tells the master which must not be used any more.

A process of its own, run by the master as `python -m gpupool.gpu_watch MASTER_PID UUID...`: NVML
stays open here for as long as the pool runs, which it must not in a process that forks workers.
One JSON object a line on standard output: {"uuid", "reason"} for a fault, {"note"} and {"warning"}
for the log.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from gpupool import nvml, nvml_faults
from gpupool.errors import ConfigError

POLL_S = 2.0
PR_SET_PDEATHSIG = 1
APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})
"""What a program did wrong on a sound GPU, in NVIDIA's table of Xids; all others that the driver
calls critical are faults of the GPU."""
XID_NAMES = {
    48: "double-bit ECC error",
    62: "internal micro-controller halt",
    63: "row remapping",
    64: "row remapping failed",
    74: "NVLink error",
    79: "fell off the bus",
    92: "many single-bit ECC errors",
    94: "contained memory error",
    95: "uncontained memory error",
    119: "GSP does not answer",
    120: "GSP error",
}

Say = Callable[[dict[str, str]], None]


class Watch:
    """The faults of some whole GPUs, each told once, from driver events and from asking."""

    def __init__(self, uuids: Sequence[str], say: Say) -> None:
        self._uuids = uuids
        self._say = say
        self._told: set[str] = set()
        self._unclear: dict[str, str] = {}
        self._uuid_of_handle: dict[int, str] = {}

    def follow(self) -> None:
        """Open NVML and watch until it has to be opened anew. ConfigError if it cannot be."""
        with nvml.session() as opened:
            if not opened:
                raise ConfigError("NVML is gone")
            with self._registered() as events:
                is_sound = True
                while is_sound:
                    end = time.monotonic() + POLL_S
                    is_sound = events is None or self._take_events(events, end)
                    self._poll()
                    time.sleep(max(0.0, end - time.monotonic()))

    @contextmanager
    def _registered(self) -> Iterator[Any]:
        """What to wait for events with; None where the driver has none, as under WSL."""
        import pynvml

        try:
            events = pynvml.nvmlEventSetCreate()
        except pynvml.NVMLError:
            self._note(f"watching {len(self._healthy())} GPU(s), 0 by driver events")
            yield None
            return
        try:
            num_heard = sum(self._register(uuid, events) for uuid in self._healthy())
            self._note(f"watching {len(self._healthy())} GPU(s), {num_heard} by driver events")
            yield events if num_heard else None
        finally:
            with suppress(pynvml.NVMLError):
                pynvml.nvmlEventSetFree(events)

    def _healthy(self) -> list[str]:
        return [uuid for uuid in self._uuids if uuid not in self._told]

    def _register(self, uuid: str, events: Any) -> bool:
        """Whether the driver will tell of this GPU's faults; not every kind of GPU can."""
        import pynvml

        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            kinds = pynvml.nvmlEventTypeXidCriticalError | pynvml.nvmlEventTypeDoubleBitEccError
            kinds &= pynvml.nvmlDeviceGetSupportedEventTypes(handle)
            if kinds:
                pynvml.nvmlDeviceRegisterEvents(handle, kinds, events)
        except pynvml.NVMLError:
            return False  # a GPU that is lost already is found by asking
        self._uuid_of_handle[_address(handle)] = uuid
        return bool(kinds)

    def _take_events(self, events: Any, end: float) -> bool:
        """Wait for events until the given time. False at once if the driver cannot wait any
        more, as when a GPU is lost: the set must then be made anew without it."""
        import pynvml

        while (left_s := end - time.monotonic()) > 0:
            try:
                self._judge(pynvml.nvmlEventSetWait_v2(events, int(left_s * 1000) + 1))
            except pynvml.NVMLError as error:
                return bool(error.value == pynvml.NVML_ERROR_TIMEOUT)
        return True

    def _judge(self, event: Any) -> None:
        import pynvml

        # After a fatal Xid the driver may not even know the name of the GPU any more.
        uuid = nvml.ask_uuid(event.device) or ""
        uuid = uuid if uuid in self._uuids else self._uuid_of_handle.get(_address(event.device), "")
        reason = "double-bit ECC error"
        if event.eventType == pynvml.nvmlEventTypeXidCriticalError:
            code = int(event.eventData)
            reason = f"Xid {code} ({XID_NAMES[code]})" if code in XID_NAMES else f"Xid {code}"
            if code in APPLICATION_XIDS:
                self._note(f"GPU {uuid}: {reason} is an application's own and changes nothing")
                return
        if uuid:
            self._tell(uuid, reason)
        else:
            self._warn(f"{reason} of a GPU that the driver cannot name; all are asked")

    def _poll(self) -> None:
        """Ask every GPU that is not known to be at fault."""
        import pynvml

        for uuid in self._healthy():
            try:
                fault = nvml_faults.fault_of(uuid)
            except pynvml.NVMLError as error:
                # No reason to take a GPU away: the driver may be at fault, or be replaced.
                if self._unclear.get(uuid) != str(error):
                    self._unclear[uuid] = str(error)
                    self._warn(f"GPU {uuid} cannot be asked: NVML says {str(error)!r}")
                continue
            self._unclear.pop(uuid, None)
            if fault is not None:
                self._tell(uuid, fault)

    def _tell(self, uuid: str, reason: str) -> None:
        if uuid in self._healthy():
            self._told.add(uuid)
            self._say({"uuid": uuid, "reason": reason})

    def _note(self, text: str) -> None:
        self._say({"note": text})

    def _warn(self, text: str) -> None:
        self._say({"warning": text})


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _end_with(master: int) -> bool:
    """Let the kernel kill this process when the master ends; False if it has ended already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == master


def main(arguments: Sequence[str]) -> int:
    """Watch until the master ends or NVML fails."""
    if not _end_with(int(arguments[0])):
        return 0
    # What a library prints must not come between the lines.
    out = os.dup(1)
    os.dup2(2, 1)

    def say(message: dict[str, str]) -> None:
        os.write(out, json.dumps(message).encode() + b"\n")

    watch = Watch(arguments[1:], say)
    try:
        while True:
            watch.follow()
    except ConfigError as error:
        say({"warning": str(error)})
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
