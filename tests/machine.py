"""A machine with GPUs for tests: a stand-in NVML library and the file it reads its state from.

The library is loaded by the real pynvml, in processes started with `Machine.env()`, or in this
process after `Machine.preload()`. Changes show at once in processes that already run.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

SOURCE = Path(__file__).parent / "nvml_stub" / "nvml_stub.c"
STATE_VARIABLE = "NVML_STUB_FILE"
DOUBLE_BIT_ECC_EVENT = 2
XID_EVENT = 8


def uuid_of(index: int) -> str:
    """The UUID of a GPU that was not given another."""
    return f"GPU-{0xFA4E0000 + index:08x}-0000-4000-8000-{index:012x}"


def mig_uuid_of(index: int, slot: int) -> str:
    """The UUID of a MIG device that was not given another."""
    return f"MIG-{0xFA4E0000 + index:08x}-0000-4000-8000-{slot:012x}"


class Machine:
    """The hardware. Every method takes effect at once, for running processes too."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder = folder
        self.library = library
        self.state_file = folder / "nvml_state.txt"
        self.lock_dir = folder / "locks"
        self._gpus: dict[int, dict[str, object]] = {}
        self._lines: dict[str, str] = {}
        self._processes: dict[int, dict[int, int]] = {}
        self._events: list[str] = []

    def env(self, **more: str) -> dict[str, str]:
        """Variables for a process that is to see this machine, and leases of its own."""
        path = os.environ.get("LD_LIBRARY_PATH")
        return {
            "LD_LIBRARY_PATH": f"{self.library.parent}{f':{path}' if path else ''}",
            STATE_VARIABLE: str(self.state_file),
            "GPUPOOL_LOCK_DIR": str(self.lock_dir),
            **more,
        }

    def preload(self) -> None:
        """Let pynvml find the library in this process: the loader knows it by its name then."""
        os.environ[STATE_VARIABLE] = str(self.state_file)
        ctypes.CDLL(str(self.library), mode=ctypes.RTLD_GLOBAL)

    def set_gpu(self, index: int, **fields: object) -> None:
        """Add a GPU or change fields of one, e.g. used=70 << 30, lost=1, ecc=3."""
        self._gpus.setdefault(index, {}).update(fields)
        self.write()

    def remove_gpu(self, index: int) -> None:
        """Take a GPU out of the machine."""
        del self._gpus[index]
        self.write()

    def set_process(self, index: int, pid: int, num_bytes: int) -> None:
        """Let a process use a GPU's memory; 0 bytes ends it."""
        processes = self._processes.setdefault(index, {})
        processes[pid] = num_bytes
        if not num_bytes:
            del processes[pid]
        self.set_gpu(index, used=sum(processes.values()))

    def link(self, a: int, b: int, count: int = 18) -> None:
        """Join two GPUs by NVLinks; 0 means through a switch."""
        self.set_line(f"nvlink {a} {b}", str(count))

    def topology(self, a: int, b: int, level: int) -> None:
        """Set how far apart two GPUs are on PCIe: 0 to 50 as in NVML."""
        self.set_line(f"topology {a} {b}", str(level))

    def mig(self, index: int, slot: int, **fields: object) -> None:
        """Switch a GPU to MIG mode and make one MIG device there."""
        self.set_gpu(index, mig=1)
        self.set_line(f"mig {index} {slot}", _render(fields))

    def xid(self, index: int, code: int) -> None:
        """Let the driver report an Xid of a GPU, once to everybody who listens now."""
        self.event(index, XID_EVENT, code)

    def event(self, index: int, kind: int, data: int = 0) -> None:
        """Any event of NVML's."""
        self._events.append(f"event {len(self._events) + 1} {index} {kind} {data}")
        self.write()

    def init_error(self, code: int) -> None:
        """Let nvmlInit fail with this code; 0 heals it."""
        self.set_line("init_error", str(code))

    def set_line(self, key: str, value: str) -> None:
        """Any other line of the state file."""
        self._lines[key] = value
        self.write()

    def write(self) -> None:
        """Put the state in place, in one piece."""
        lines = [f"{key} {value}" for key, value in self._lines.items()]
        lines += [f"gpu {index} {_render(fields)}" for index, fields in self._gpus.items()]
        for index, processes in self._processes.items():
            lines += [f"process {index} pid={p} bytes={b}" for p, b in processes.items()]
        lines += self._events
        new = self.state_file.with_suffix(".new")
        new.write_text("\n".join(lines) + "\n")
        new.replace(self.state_file)


def _render(fields: Mapping[str, object]) -> str:
    return " ".join(f'{name}="{value}"' for name, value in fields.items())


@contextmanager
def fake_machine(
    folder: Path, gpus: int = 0, links: Iterable[tuple[int, int]] = ()
) -> Iterator[Machine]:
    """A machine with so many GPUs and NVLinks; `env()` is for subprocesses."""
    machine = Machine(folder, build_library())
    machine.write()
    for index in range(gpus):
        machine.set_gpu(index)
    for a, b in links:
        machine.link(a, b)
    before = os.environ.get(STATE_VARIABLE)
    try:
        yield machine
    finally:
        if before is None:
            os.environ.pop(STATE_VARIABLE, None)
        else:
            os.environ[STATE_VARIABLE] = before


def build_library() -> Path:
    """The stub, compiled once for all tests. Each version of its source has a folder of its own,
    so that two working copies do not replace each other's."""
    version = sha256(SOURCE.read_bytes()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"gpupool-nvml-stub-{os.getuid()}-{version}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / "libnvidia-ml.so.1"
    with open(folder / "build.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            # Built aside and moved, so that a killed compiler leaves no half of a library.
            new = folder / "new.so"
            flags = ["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
            soname = "-Wl,-soname,libnvidia-ml.so.1"
            subprocess.run(["gcc", *flags, soname, "-o", new, SOURCE], check=True)
            new.replace(library)
    return library
