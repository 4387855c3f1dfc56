"""What slices use: measured where it is, unknown where nobody knows it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from gpupool.gpus import Gpu
from gpupool.meter import group_bytes, measure
from gpupool.partition import Slice
from gpupool.vitals import MAX_GPUS, UNKNOWN, GpuUse, Use, Vitals
from tests.machine import fake_machine, mig_uuid_of, uuid_of

MIB = 1 << 20


def gpu(index: int, uuid: str = "", parent_uuid: str | None = None) -> Gpu:
    return Gpu(index, uuid or uuid_of(index), "NVIDIA H200", 1, 1, parent_uuid=parent_uuid)


def test_what_is_published_is_read() -> None:
    vitals = Vitals(2)
    use = Use(70 << 30, (GpuUse(70 << 30, 141 << 30, 0.5, 61.0, 500.25), GpuUse()))
    vitals.publish(1, use, valid_s=60)
    assert vitals.read(1) == use
    assert vitals.read(0) == UNKNOWN


def test_a_whole_machine_fits() -> None:
    vitals = Vitals(1)
    use = Use(1, tuple(GpuUse(index) for index in range(MAX_GPUS)))
    vitals.publish(0, use, valid_s=60)
    assert vitals.read(0) == use


def test_what_is_old_is_unknown() -> None:
    vitals = Vitals(1)
    vitals.publish(0, Use(5), valid_s=-1)
    assert vitals.read(0) == UNKNOWN


def test_a_new_worker_starts_unknown() -> None:
    vitals = Vitals(1)
    vitals.publish(0, Use(5), valid_s=60)
    vitals.clear(0)
    assert vitals.read(0) == UNKNOWN


def test_gpus_are_measured_by_nvml(tmp_path: Path) -> None:
    with fake_machine(tmp_path, gpus=2) as machine:
        machine.preload()
        machine.set_gpu(0, used=70 << 30, utilization=85, temperature=61, milliwatts=512500)
        machine.set_gpu(1, used=5 << 30)
        assert measure(Slice(0, (gpu(0), gpu(1)), ())) == Use(
            75 << 30,
            (
                GpuUse(70 << 30, 141 << 30, 0.85, 61.0, 512.5),
                GpuUse(5 << 30, 141 << 30, None, None, None),
            ),
        )


def test_of_a_lost_gpu_nothing_is_known(tmp_path: Path) -> None:
    with fake_machine(tmp_path, gpus=2) as machine:
        machine.preload()
        machine.set_gpu(1, lost=1)
        use = measure(Slice(0, (gpu(0), gpu(1)), ()))
    assert use.memory_bytes is None
    assert use.gpus[1] == GpuUse()


def test_a_mig_device_has_memory_of_its_own(tmp_path: Path) -> None:
    with fake_machine(tmp_path, gpus=1) as machine:
        machine.preload()
        machine.mig(0, 1, used=3 << 30)
        device = gpu(0, mig_uuid_of(0, 1), uuid_of(0))
        assert measure(Slice(0, (device,), ())).memory_bytes == 3 << 30


def test_of_processes_that_cannot_be_read_nothing_is_known() -> None:
    """It was told as 0 bytes."""
    assert group_bytes(1 << 30) is None


def test_without_a_lease_nothing_is_known() -> None:
    assert measure(None) == UNKNOWN


TWO_PROCESSES = """
import mmap, os, signal
shared = mmap.mmap(-1, 64 << 20)
own = b"x" * (64 << 20)
if os.fork() == 0:
    own_of_child = b"y" * (64 << 20)
    shared[:] = own_of_child
    os.write(1, b"child\\n")  # print() writes the text and its end by themselves
    signal.pause()
shared[:] = own
os.write(1, b"parent\\n")
signal.pause()
"""


def test_a_cpu_slice_counts_every_process_and_shared_pages_once() -> None:
    command = [sys.executable, "-c", TWO_PROCESSES]
    with subprocess.Popen(command, stdout=subprocess.PIPE, process_group=0) as leader:
        assert leader.stdout is not None
        try:
            assert {leader.stdout.readline(), leader.stdout.readline()} == {b"child\n", b"parent\n"}
            found = group_bytes(leader.pid)
        finally:
            os.killpg(leader.pid, signal.SIGKILL)
    # 64 MiB of bytes that both share, 64 of the child's, 64 mapped by both; and two interpreters.
    assert 190 * MIB < found < 230 * MIB
