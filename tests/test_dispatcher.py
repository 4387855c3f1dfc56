"""GPUDispatcher over a stand-in NVML library, with workers that are real forks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dispatcher import GPUDispatcher, main
from gpupool.errors import ConfigError
from gpupool.lockdir import lock_path
from gpupool.settings import Settings
from tests.forked import Forked, Say
from tests.machine import Machine, fake_machine, mig_uuid_of, uuid_of
from tests.pool import clean_environment

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with fake_machine(tmp_path, gpus=4, links=[(0, 1), (2, 3)]) as machine:
        machine.preload()
        yield machine


def plan(machine: Machine, per_proc_gpus: int = 2, **settings: Any) -> GPUDispatcher:
    return GPUDispatcher.for_settings(
        Settings(lock_dir=machine.lock_dir, per_proc_gpus=per_proc_gpus, **settings)
    )


def holding(dispatcher: GPUDispatcher, slot: int) -> Callable[[Say], None]:
    """A worker that holds what it is granted until it is killed, and says what that is."""

    def work(say: Say) -> None:
        os.setpgid(0, 0)
        grant = dispatcher.acquire(slot)
        if grant.lease is None:
            say(f"none: {grant.reason}")
        else:
            say(",".join(str(gpu.index) for gpu in grant.lease.slice.gpus))

    return work


def other_pool(machine: Machine, slot: int, **settings: Any) -> Callable[[Say], None]:
    """A worker of another service, with a dispatcher of its own."""

    def work(say: Say) -> None:
        holding(plan(machine, **settings), slot)(say)

    return work


def granted(dispatcher: GPUDispatcher, slot: int) -> list[int]:
    """The GPUs a worker of the slot gets now; it ends at once."""
    grant = dispatcher.acquire(slot)
    if grant.lease is None:
        return []
    indices = [gpu.index for gpu in grant.lease.slice.gpus]
    grant.lease.release()
    return indices


# Planning.


def test_a_hosted_model_takes_no_gpu_and_asks_no_driver(machine: Machine) -> None:
    machine.init_error(999)
    planned = plan(machine, per_proc_gpus=1, workers=3, infer_type="saas")
    assert [one.gpus for one in planned.slices] == [()] * 3
    lease = planned.acquire(0).lease
    assert lease is not None
    assert lease.environment()["CUDA_VISIBLE_DEVICES"] == ""


def test_gpus_for_a_hosted_model_are_refused(machine: Machine) -> None:
    with pytest.raises(ConfigError, match=r"is 2, but a hosted model .* takes no GPU"):
        plan(machine, infer_type="saas")


def test_linked_gpus_are_one_slice_and_the_rest_is_spare(machine: Machine) -> None:
    machine.set_gpu(4)
    machine.link(2, 3, 2)
    machine.link(3, 4, 8)
    planned = plan(machine)
    assert [[gpu.index for gpu in one.gpus] for one in planned.slices] == [[0, 1], [3, 4]]
    assert [gpu.index for gpu in planned.spares] == [2]


def test_seven_gpus_at_two_each_are_three_slices_and_a_spare(machine: Machine) -> None:
    for index in (4, 5, 6):
        machine.set_gpu(index)
    planned = plan(machine)
    assert (len(planned.slices), len(planned.spares)) == (3, 1)


def test_fewer_workers_than_slices_leave_their_gpus_spare(machine: Machine) -> None:
    planned = plan(machine, workers=1)
    assert [gpu.index for gpu in planned.spares] == [2, 3]


def test_visible_devices_limit_the_plan(machine: Machine) -> None:
    planned = plan(machine, per_proc_gpus=1, cuda_visible_devices="3,1")
    assert [one.gpus[0].index for one in planned.slices] == [3, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"per_proc_gpus": 8},
            r"--per_proc_gpus \(PER_PROC_GPUS\) is 8, but 4 of 4 visible .* Use 4 or fewer",
        ),
        ({"per_proc_gpus": 3, "cuda_visible_devices": "0,1"}, "2 of 2 visible .*'0,1'"),
        ({"workers": 3}, r"--workers \(GPUPOOL_WORKERS\) is 3, but .* make 2 slices"),
        ({"cuda_visible_devices": "9"}, "no GPU '9'"),
        ({"per_proc_gpus": 5}, r"\(CUDA_VISIBLE_DEVICES is not set\)"),
        ({"cuda_visible_devices": ""}, "is 2, but there is no GPU .*CUDA_VISIBLE_DEVICES=''"),
    ],
)
def test_what_cannot_be_is_refused_before_any_fork(
    machine: Machine, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(machine, **settings)


def test_a_faulty_gpu_is_named_when_it_makes_the_difference(machine: Machine) -> None:
    machine.set_gpu(1, ecc=3)
    with pytest.raises(ConfigError, match="3 of 4 .*GPU 1 is left out: ECC uncorrected 3"):
        plan(machine, per_proc_gpus=4)


def test_faulty_gpus_alone_never_mean_the_cpu(machine: Machine) -> None:
    for index in range(4):
        machine.set_gpu(index, lost=1)
    with pytest.raises(ConfigError, match="0 of 4 visible"):
        plan(machine, per_proc_gpus=1)


def test_a_broken_driver_never_means_the_cpu(machine: Machine) -> None:
    machine.init_error(18)
    with pytest.raises(ConfigError, match="version mismatch"):
        plan(machine, per_proc_gpus=1)


def test_hidden_gpus_mean_the_cpu_even_if_the_driver_is_broken(machine: Machine) -> None:
    machine.init_error(18)
    planned = plan(machine, per_proc_gpus=1, cuda_visible_devices="")
    assert planned.slices[0].gpus == ()


def test_mig_devices_cannot_share_a_slice(machine: Machine) -> None:
    machine.mig(0, 0)
    machine.mig(0, 1)
    with pytest.raises(ConfigError, match="only one MIG device"):
        plan(machine)


# Leases.


def test_each_slot_gets_its_own_slice(machine: Machine) -> None:
    planned = plan(machine)
    with Forked(holding(planned, 0)) as first, Forked(holding(planned, 1)) as second:
        assert [first.hear(), second.hear()] == ["0,1", "2,3"]


def test_a_held_slice_is_not_granted_and_the_reason_names_the_holder(machine: Machine) -> None:
    with Forked(other_pool(machine, 0, workers=2, model_name="their-model")) as other:
        assert other.hear() == "0,1"
        grant = plan(machine, cuda_visible_devices="0,1").acquire(0)
    assert grant.lease is None
    assert f"is held by pid {other.pid} (user root, model their-model, since " in grant.reason


def test_the_holder_is_named_without_a_note_too(machine: Machine) -> None:
    with Forked(other_pool(machine, 0)) as other:
        other.hear()
        for found in machine.lock_dir.glob("*.note"):
            found.unlink()
        grant = plan(machine, cuda_visible_devices="0,1").acquire(0)
    assert f"held by pid {other.pid} (" in grant.reason


def test_a_killed_workers_slice_is_granted_again(machine: Machine) -> None:
    planned = plan(machine)
    with Forked(holding(planned, 0)) as worker:
        worker.hear()
        worker.kill()
        assert granted(planned, 0) == [0, 1]


def test_a_slice_held_by_another_service_moves_to_spare_gpus(machine: Machine) -> None:
    for index in (4, 5):
        machine.set_gpu(index)
    planned = plan(machine, cuda_visible_devices="0,1,4,5", workers=1)
    with Forked(other_pool(machine, 0)) as other:
        assert other.hear() == "0,1"
        assert granted(planned, 0) == [4, 5]


@pytest.mark.parametrize("trouble", [{"lost": 1}, {"ecc": 1}, {"used": 60 * GIB}])
def test_a_gpu_gone_bad_is_replaced_by_a_spare(machine: Machine, trouble: dict[str, int]) -> None:
    machine.set_gpu(4)
    planned = plan(machine)
    machine.set_gpu(0, **trouble)
    assert granted(planned, 0) == [1, 4]


def test_a_quarantined_gpu_is_replaced_by_a_spare(machine: Machine) -> None:
    machine.set_gpu(4)
    planned = plan(machine)

    def watch(say: Say) -> None:
        planned.quarantine(uuid_of(1), "Xid 79")
        say("quarantined")

    with Forked(watch) as watcher:
        watcher.hear()
    assert granted(planned, 0) == [0, 4]
    assert planned.quarantine_reason(uuid_of(1)) == "Xid 79"


def test_a_quarantined_gpu_without_a_spare_is_named(machine: Machine) -> None:
    planned = plan(machine)
    planned.quarantine(uuid_of(1), "Xid 79")
    assert f"GPU 1 ({uuid_of(1)}) is quarantined: Xid 79" in planned.acquire(0).reason


def test_another_slots_free_slice_is_not_taken(machine: Machine) -> None:
    """Slot 1's worker may only be between its death and its successor."""
    planned = plan(machine)
    machine.set_gpu(0, lost=1)
    assert granted(planned, 0) == []


def test_what_another_slot_cannot_use_is_taken(machine: Machine) -> None:
    planned = plan(machine)
    machine.set_gpu(0, lost=1)
    machine.set_gpu(2, lost=1)
    assert granted(planned, 0) == [1, 3]


def test_what_another_slot_left_for_others_is_taken(machine: Machine) -> None:
    machine.set_gpu(4)
    planned = plan(machine)
    machine.set_gpu(0, lost=1)
    with Forked(holding(planned, 0)) as moved:
        assert moved.hear() == "1,4"
        machine.set_gpu(0, lost=0)
        machine.set_gpu(2, lost=1)
        assert granted(planned, 1) == [0, 3]


def test_a_dead_workers_slice_is_kept_for_its_successor(machine: Machine) -> None:
    planned = plan(machine)
    with Forked(holding(planned, 1)) as worker:
        assert worker.hear() == "2,3"
        worker.kill(reap=False)
        machine.set_gpu(0, lost=1)
        assert granted(planned, 0) == []


def test_a_slot_waits_for_its_own_dying_worker_instead_of_moving(machine: Machine) -> None:
    for index in (4, 5):
        machine.set_gpu(index)
    planned = plan(machine, workers=1, cuda_visible_devices="0,1,4,5")
    with Forked(holding(planned, 0)) as worker:
        assert worker.hear() == "0,1"
        assert planned.acquire(0).lease is None


def test_a_gpu_that_somebody_else_uses_is_not_granted(machine: Machine) -> None:
    planned = plan(machine)
    machine.set_process(1, os.getpid(), 70 * GIB)
    grant = planned.acquire(0)
    assert grant.lease is None
    assert "70.0 GiB of GPU 1" in grant.reason
    assert f"pid {os.getpid()} (" in grant.reason


def test_memory_in_use_by_nobody_visible_is_use_too(machine: Machine) -> None:
    planned = plan(machine)
    machine.set_gpu(1, used=70 * GIB)
    assert "processes that are not visible from here" in planned.acquire(0).reason


def test_a_little_memory_in_use_is_no_use(machine: Machine) -> None:
    planned = plan(machine)
    machine.set_gpu(1, used=2 * GIB)
    assert granted(planned, 0) == [0, 1]


def test_memory_of_a_killed_worker_is_no_reason_to_refuse(machine: Machine) -> None:
    planned = plan(machine)
    with Forked(holding(planned, 0)) as worker:
        worker.hear()
        machine.set_gpu(1, used=70 * GIB)
        worker.kill()
        assert granted(planned, 0) == [0, 1]


def test_a_refused_try_leaves_nothing_locked(machine: Machine) -> None:
    planned = plan(machine)
    machine.set_gpu(1, used=70 * GIB)
    planned.acquire(0)
    with Forked(other_pool(machine, 0, per_proc_gpus=1, cuda_visible_devices="0")) as other:
        assert other.hear() == "0"


def test_a_driver_that_fails_later_is_a_reason_not_an_exception(machine: Machine) -> None:
    planned = plan(machine)
    machine.init_error(18)
    grant = planned.acquire(0)
    assert (grant.lease, "version mismatch" in grant.reason) == (None, True)
    machine.init_error(0)
    assert granted(planned, 0) == [0, 1]


def test_a_lock_directory_that_breaks_is_a_reason_not_an_exception(machine: Machine) -> None:
    planned = plan(machine)
    path = lock_path(machine.lock_dir, uuid_of(0))
    path.unlink()
    path.mkdir()
    assert "not a regular file" in planned.acquire(0).reason


def test_a_removed_lock_directory_is_a_reason_not_an_exception(machine: Machine) -> None:
    planned = plan(machine)
    for file in machine.lock_dir.iterdir():
        file.unlink()
    machine.lock_dir.rmdir()
    assert "No such file or directory" in planned.acquire(0).reason


def test_an_unknown_slot_is_a_reason_not_an_exception(machine: Machine) -> None:
    assert "failed" in plan(machine).acquire(99).reason


def test_mig_devices_are_leased_one_by_one(machine: Machine) -> None:
    machine.mig(0, 0)
    machine.mig(0, 1)
    chosen = f"{mig_uuid_of(0, 0)},{mig_uuid_of(0, 1)}"
    planned = plan(machine, per_proc_gpus=1, cuda_visible_devices=chosen)
    first, second = planned.acquire(0).lease, planned.acquire(1).lease
    assert first is not None
    assert second is not None
    assert first.environment()["CUDA_VISIBLE_DEVICES"] == mig_uuid_of(0, 0)
    assert second.environment()["CUDA_VISIBLE_DEVICES"] == mig_uuid_of(0, 1)
    first.release()
    second.release()


def test_without_gpus_each_slot_has_cores_and_no_locks(machine: Machine) -> None:
    planned = plan(machine, per_proc_gpus=1, cuda_visible_devices="", workers=2)
    leases = [planned.acquire(slot).lease for slot in (0, 1)]
    assert [lease.fds for lease in leases if lease] == [(), ()]
    assert {core for lease in leases if lease for core in lease.slice.cpus} == (
        os.sched_getaffinity(0)
    )
    assert not machine.lock_dir.exists()


def test_leases_of_one_machine_have_ports_of_their_own(machine: Machine) -> None:
    ours = plan(machine, per_proc_gpus=1, cuda_visible_devices="0,1")
    theirs = plan(machine, per_proc_gpus=1, cuda_visible_devices="2,3")
    leases = [pool.acquire(slot).lease for pool in (ours, theirs) for slot in (0, 1)]
    bases = sorted(lease.port_base for lease in leases if lease)
    assert len(bases) == 4
    assert all(b - a >= 64 for a, b in zip(bases, bases[1:], strict=False))
    for lease in leases:
        if lease:
            lease.release()


# The table.


def run_dispatcher(machine: Machine, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = Path(sys.modules["dispatcher"].__file__ or "")
    return subprocess.run(
        [sys.executable, script, *arguments],
        env=os.environ | machine.env(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_table_shows_slices_peers_and_holders(machine: Machine) -> None:
    with Forked(other_pool(machine, 0)) as other:
        other.hear()
        done = run_dispatcher(machine, "--per_proc_gpus", "2")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert uuid_of(0) in lines[2]
    assert "1:NV18" in lines[2]
    assert f"pid {other.pid} (user root" in lines[2]
    assert "141.0/141.0 GiB" in lines[4]
    assert lines[-1] == "2 workers at 2 GPUs each"


def test_looking_at_the_machine_takes_nothing(machine: Machine) -> None:
    planned = plan(machine)
    run_dispatcher(machine)
    assert granted(planned, 0) == [0, 1]


def test_the_table_is_there_as_json(machine: Machine) -> None:
    machine.set_gpu(3, ecc=2)
    done = run_dispatcher(machine, "--per-proc-gpus=3", "--json")
    report = json.loads(done.stdout)
    assert report["slices"][0]["gpus"] == [uuid_of(0), uuid_of(1), uuid_of(2)]
    assert report["gpus"][3]["fault"] == "ECC uncorrected 2"


def test_the_table_of_a_machine_without_gpus_shows_cores(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--cuda_visible_devices", ""]) == 0
    assert "slice 0: cores " in capsys.readouterr().out


def test_named_gpus_without_a_driver_never_mean_the_cpu(tmp_path: Path) -> None:
    """A container started without its GPUs would compute a large model on the CPU, unnoticed."""
    probe = [sys.executable, "-c", "import ctypes; ctypes.CDLL('libnvidia-ml.so.1')"]
    is_installed = subprocess.run(probe, check=False, capture_output=True).returncode == 0
    script = Path(sys.modules["dispatcher"].__file__ or "")
    done = subprocess.run(
        [sys.executable, script, "--cuda_visible_devices", "0,1"],
        env=clean_environment(GPUPOOL_LOCK_DIR=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
    )
    named = "(CUDA_VISIBLE_DEVICES) is '0,1', but there is no NVIDIA driver library"
    assert (named in done.stderr) is not is_installed, done
    assert is_installed or done.returncode == 2


def test_what_cannot_be_is_one_line_and_exit_2(machine: Machine) -> None:
    done = run_dispatcher(machine, "--per_proc_gpus", "5")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "4 of 4 visible GPUs" in done.stderr
