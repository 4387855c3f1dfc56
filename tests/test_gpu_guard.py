"""The master's side of the GPU watch, with a real watch, real pids and no pool."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dispatcher import GPUDispatcher
from gpupool.gpu_guard import GpuGuard
from gpupool.scoreboard import Scoreboard
from gpupool.settings import Settings
from tests.forked import Forked, Say
from tests.machine import Machine, fake_machine, mig_uuid_of, uuid_of
from tests.pool import ROOT, is_alive, wait_until


@pytest.fixture(name="machine")
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """For this process and those it starts."""
    with fake_machine(tmp_path, gpus=2) as machine:
        machine.preload()
        monkeypatch.setenv("LD_LIBRARY_PATH", machine.env()["LD_LIBRARY_PATH"])
        monkeypatch.chdir(ROOT)
        yield machine


class Guarded:
    """A dispatcher and its guard; patience is half a second."""

    def __init__(self, machine: Machine) -> None:
        self.dispatcher = GPUDispatcher.for_settings(Settings(lock_dir=machine.lock_dir))
        self.board = Scoreboard(len(self.dispatcher.slices))
        self.guard = GpuGuard(self.dispatcher, self.board, os.kill, patience_s=0.5)

    def close(self) -> None:
        process = self.guard._process
        self.guard.stop()
        if process is not None and process.stdout is not None:
            process.wait()
            process.stdout.close()

    def is_quarantined(self, uuid: str) -> bool:
        self.guard.turn()
        return self.dispatcher.quarantine_reason(uuid) is not None

    def put(self, slot: int, pid: int) -> None:
        """A worker on the first GPU of its slice."""
        self.board.claim(slot)
        self.board[slot].pid = pid
        self.board[slot].describe(gpus=(self.dispatcher.slices[slot].gpus[0].uuid,))


def stubborn(say: Say) -> None:
    signal.signal(signal.SIGTERM, lambda *_: say("told to leave"))
    say("here")


def test_a_worker_that_does_not_leave_a_faulty_gpu_is_killed(machine: Machine) -> None:
    """An engine may hang for ever in the driver of a dead GPU."""
    with closing(Guarded(machine)) as guarded, Forked(stubborn) as worker:
        assert worker.hear() == "here"
        guarded.put(0, worker.pid)
        machine.set_gpu(0, ecc=1)
        wait_until(lambda: guarded.is_quarantined(uuid_of(0)), 10, "a quarantine")
        assert worker.hear() == "told to leave"
        wait_until(lambda: guarded.guard.turn() or not is_alive(worker.pid), 10, "its end")


def test_a_worker_on_another_gpu_is_left_alone(machine: Machine) -> None:
    with (
        closing(Guarded(machine)) as guarded,
        Forked(stubborn) as worker,
        Forked(stubborn) as other,
    ):
        assert [worker.hear(), other.hear()] == ["here", "here"]
        guarded.put(0, worker.pid)
        guarded.put(1, other.pid)
        machine.set_gpu(0, ecc=1)
        wait_until(lambda: guarded.guard.turn() or not is_alive(worker.pid), 15, "the first's end")
        assert is_alive(other.pid)


def test_a_worker_that_takes_the_gpu_as_it_fails_is_drained_too(machine: Machine) -> None:
    """Its lease was granted before the quarantine, and published after it."""
    with closing(Guarded(machine)) as guarded, Forked(stubborn) as worker:
        assert worker.hear() == "here"
        machine.set_gpu(0, ecc=1)
        wait_until(lambda: guarded.is_quarantined(uuid_of(0)), 10, "a quarantine")
        guarded.put(0, worker.pid)
        guarded.guard.turn()
        assert worker.hear() == "told to leave"


def test_a_fault_of_a_gpu_quarantines_its_mig_devices(machine: Machine) -> None:
    machine.mig(1, 0)
    machine.mig(1, 1)
    with closing(Guarded(machine)) as guarded:
        machine.set_gpu(1, ecc=1)
        wait_until(lambda: guarded.is_quarantined(mig_uuid_of(1, 0)), 10, "a quarantine")
        assert guarded.is_quarantined(mig_uuid_of(1, 1))
        assert not guarded.is_quarantined(uuid_of(0))
