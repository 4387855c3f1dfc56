"""One service for the stress tests: a master of its own whose workers take leases and hold them.

    python -m tests.lease_service CLAIMS_FOLDER NUM_KILLS SEED

Workers use GPUDispatcher and the guardian as a pool does. Each also claims its GPUs by a second
mechanism, fcntl record locks on other files, which share nothing with flock: two holders of one
GPU show there whatever the lease code believes. Prints one JSON line.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

from dispatcher import GPUDispatcher
from gpupool import guardian
from gpupool.settings import read_settings

TRY_AGAIN_S = 0.02  # far more often than a pool does


def work(dispatcher: GPUDispatcher, slot: int, claims: Path, report: int) -> None:
    """Take the slot's lease, claim its GPUs, tell, and live until killed."""
    keeper = guardian.start()
    tries = 0
    while True:
        tries += 1
        started = time.perf_counter()
        lease = dispatcher.acquire(slot).lease
        granted_ms = (time.perf_counter() - started) * 1000
        if lease is not None:
            break
        time.sleep(TRY_AGAIN_S)
    keeper.hold(lease.fds)
    event = "granted"
    for gpu in lease.slice.gpus:
        fd = os.open(claims / gpu.uuid, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            event = "double"
    told = {"event": event, "slot": slot, "pid": os.getpid(), "tries": tries, "ms": granted_ms}
    os.write(report, f"{json.dumps(told)}\n".encode())
    signal.pause()


class Service:
    """Keeps one worker per slot alive, and kills them at random."""

    def __init__(self, claims: Path, seed: int) -> None:
        self.dispatcher = GPUDispatcher.for_settings(read_settings())
        self.claims = claims
        self.random = random.Random(seed)
        self.read_fd, self.write_fd = os.pipe()
        self.reports = os.fdopen(self.read_fd, "rb", 0)
        self.ready: dict[int, int] = {}  # slot -> pid
        self.doubles = 0
        self.tries = 0
        self.granted_ms: list[float] = []

    def spawn(self, slot: int) -> None:
        if os.fork() == 0:
            try:
                work(self.dispatcher, slot, self.claims, self.write_fd)
            finally:
                os._exit(1)

    def hear(self, timeout_s: float) -> bool:
        """Take one report in, if there is one in time."""
        if not select.select([self.read_fd], [], [], timeout_s)[0]:
            return False
        report = json.loads(self.reports.readline())
        self.doubles += report["event"] == "double"
        self.tries += report["tries"]
        self.granted_ms.append(report["ms"])
        self.ready[report["slot"]] = report["pid"]
        return True

    def kill_one(self) -> None:
        """The successor starts before the dead worker is reaped, as in a busy master."""
        slot = self.random.choice(list(self.ready))
        pid = self.ready.pop(slot)
        os.kill(pid, signal.SIGKILL)
        self.spawn(slot)
        os.waitpid(pid, 0)

    def run(self, num_kills: int) -> None:
        for slot in range(len(self.dispatcher.slices)):
            self.spawn(slot)
        for _ in range(num_kills):
            while not self.ready:
                assert self.hear(30), "no worker got a lease within 30 s"
            while self.hear(self.random.random() * 0.01):
                pass
            self.kill_one()


def main(claims: str, num_kills: str, seed: str) -> None:
    os.setpgid(0, 0)
    service = Service(Path(claims), int(seed))
    service.run(int(num_kills))
    result = {"doubles": service.doubles, "tries": service.tries, "ms": service.granted_ms}
    print(json.dumps(result), flush=True)
    # All workers at once, waiting ones too; the guardians end what they hold.
    for line in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        os.kill(int(line), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
