"""The watch alone, as a process under the real pynvml: what it tells of which events."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType

import pytest

from gpupool.gpu_watch import APPLICATION_XIDS
from tests.machine import DOUBLE_BIT_ECC_EVENT, Machine, fake_machine, uuid_of
from tests.pool import ROOT, is_alive, wait_until

GPU_UNKNOWN_TO_THE_WATCH = 2
NVML_ERROR_UNKNOWN = 999


class Watch:
    """Watches GPUs 0 and 1; started, and registered with the driver, for the block."""

    def __init__(self, machine: Machine, master: int | None = None) -> None:
        watched = [uuid_of(0), uuid_of(1)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpupool.gpu_watch", str(master or os.getpid()), *watched],
            cwd=ROOT,
            env=os.environ | machine.env(),
            stdout=subprocess.PIPE,
            bufsize=0,  # what is read but not returned would escape the wait
        )

    def __enter__(self) -> Watch:
        assert self.hear()["note"].startswith("watching 2 GPU(s)")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType
    ) -> None:
        self.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def hear(self, deadline_s: float = 10.0) -> dict[str, str]:
        """The next message; the end of the stream is {}."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], deadline_s)[0]:
            raise AssertionError(f"nothing was said for {deadline_s} s")
        return dict(json.loads(self.process.stdout.readline() or "{}"))


@pytest.fixture(name="machine")
def _machine(tmp_path: Path) -> Iterator[Machine]:
    with fake_machine(tmp_path, gpus=3) as machine:
        yield machine


def test_a_fatal_xid_is_a_fault(machine: Machine) -> None:
    with Watch(machine) as watch:
        machine.xid(1, 79)
        assert watch.hear() == {"uuid": uuid_of(1), "reason": "Xid 79 (fell off the bus)"}


def test_an_xid_that_nobody_has_named_is_a_fault(machine: Machine) -> None:
    with Watch(machine) as watch:
        machine.xid(0, 999)
        assert watch.hear() == {"uuid": uuid_of(0), "reason": "Xid 999"}


def test_an_applications_own_xids_are_none(machine: Machine) -> None:
    with Watch(machine) as watch:
        for code in sorted(APPLICATION_XIDS):
            machine.xid(0, code)
            assert f"Xid {code} is an application's own" in watch.hear()["note"]


def test_a_double_bit_error_is_a_fault(machine: Machine) -> None:
    with Watch(machine) as watch:
        machine.event(0, DOUBLE_BIT_ECC_EVENT)
        assert watch.hear() == {"uuid": uuid_of(0), "reason": "double-bit ECC error"}


def test_another_pools_gpu_is_not_watched(machine: Machine) -> None:
    with Watch(machine) as watch:
        machine.xid(GPU_UNKNOWN_TO_THE_WATCH, 79)
        machine.xid(1, 48)
        assert watch.hear()["uuid"] == uuid_of(1)


def test_what_only_asking_shows_is_a_fault(machine: Machine) -> None:
    with Watch(machine) as watch:
        machine.set_gpu(0, ecc=3)
        machine.set_gpu(1, remap_pending=1)
        found = [watch.hear() for _ in range(2)]
    assert {message["uuid"]: message["reason"] for message in found} == {
        uuid_of(0): "ECC uncorrected 3",
        uuid_of(1): "row remapping pending (reset the GPU)",
    }


def test_a_gpu_that_is_not_there_any_more_is_a_fault(machine: Machine) -> None:
    with Watch(machine) as watch:
        machine.remove_gpu(1)
        assert watch.hear() == {"uuid": uuid_of(1), "reason": "lost (fell off the bus)"}


def test_after_one_gpu_is_lost_the_events_of_the_others_are_heard(machine: Machine) -> None:
    """The driver's wait fails for as long as a lost GPU is among those waited for."""
    with Watch(machine) as watch:
        machine.set_gpu(0, lost=1)
        assert watch.hear()["uuid"] == uuid_of(0)
        assert watch.hear()["note"] == "watching 1 GPU(s), 1 by driver events"
        machine.xid(1, 79)
        began = time.monotonic()
        assert watch.hear()["uuid"] == uuid_of(1)
        assert time.monotonic() - began < 1


def test_a_fault_is_told_once(machine: Machine) -> None:
    with Watch(machine) as watch:
        machine.xid(0, 79)
        machine.xid(0, 48)
        machine.set_gpu(0, ecc=1)
        machine.xid(1, 48)
        assert [watch.hear()["uuid"] for _ in range(2)] == [uuid_of(0), uuid_of(1)]


def test_gpus_without_driver_events_are_asked(machine: Machine) -> None:
    for index in range(2):
        machine.set_gpu(index, no_events=1)
    with Watch(machine) as watch:
        machine.set_gpu(1, lost=1)
        assert watch.hear()["uuid"] == uuid_of(1)


def test_a_driver_without_events_is_asked(machine: Machine) -> None:
    machine.set_line("no_event_sets", "1")
    with Watch(machine) as watch:
        machine.set_gpu(1, lost=1)
        assert watch.hear()["uuid"] == uuid_of(1)


def test_an_answer_that_says_nothing_takes_no_gpu_away(machine: Machine) -> None:
    """The driver may be at fault for all GPUs at once, and the models go on running."""
    with Watch(machine) as watch:
        machine.set_gpu(0, error=NVML_ERROR_UNKNOWN)
        assert "'Unknown Error'" in watch.hear()["warning"]
        machine.set_gpu(0, error=0)
        machine.xid(1, 79)
        assert watch.hear()["uuid"] == uuid_of(1)


def test_a_driver_that_fails_says_why_and_ends_the_watch(machine: Machine) -> None:
    machine.init_error(18)
    watch = Watch(machine)
    with closing(watch):
        assert "the NVIDIA driver does not answer" in watch.hear()["warning"]
        assert watch.process.wait(10) == 1


def test_the_watch_ends_with_its_master(machine: Machine, tmp_path: Path) -> None:
    """Also when the master is killed while the driver makes the watch wait."""
    told = tmp_path / "watch.pid"
    master = subprocess.Popen(
        [sys.executable, "-c", MASTER, str(told), uuid_of(0)],
        cwd=ROOT,
        env=os.environ | machine.env(),
        stdin=subprocess.PIPE,
    )
    pid = int(wait_until(lambda: told.exists() and told.read_text(), 10, "the watch"))
    assert is_alive(pid)
    master.kill()
    master.communicate()
    wait_until(lambda: not is_alive(pid), 2, "the end of the watch")


MASTER = """
import os, pathlib, subprocess, sys
watch = subprocess.Popen(
    [sys.executable, "-m", "gpupool.gpu_watch", str(os.getpid()), sys.argv[2]],
    stdout=subprocess.PIPE,
)
watch.stdout.readline()
pathlib.Path(sys.argv[1]).write_text(str(watch.pid))
sys.stdin.read()
"""


def test_a_watch_whose_master_is_gone_already_does_not_begin(machine: Machine) -> None:
    watch = Watch(machine, master=1)
    with closing(watch):
        assert watch.hear() == {}
        assert watch.process.wait(10) == 0
