from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpupool.errors import ConfigError
from gpupool.gpus import Inventory, are_computing, read_gpus, read_inventory, select_visible
from tests.machine import Machine, fake_machine, mig_uuid_of, uuid_of

GIB = 1 << 30
READ = "from gpupool.gpus import read_inventory; print(read_inventory())"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with fake_machine(tmp_path) as machine:
        machine.preload()
        yield machine


def inventory() -> Inventory:
    found = read_inventory()
    assert found is not None
    return found


def test_what_the_driver_keeps_is_nobodys_memory(machine: Machine) -> None:
    machine.set_gpu(0, total=80 * GIB, reserved=GIB, used=3 * GIB)
    [gpu] = inventory().gpus
    assert (gpu.total_bytes, gpu.free_bytes) == (79 * GIB, 76 * GIB)


def test_inventory_tells_what_nvml_tells(machine: Machine) -> None:
    machine.set_line("driver", "570.12.01")
    machine.set_line("cuda", "12080")
    machine.set_gpu(0, name="NVIDIA L4", total=24 * GIB, used=GIB, numa=1, cpus="0xf0")
    machine.set_process(0, 4242, 3 * GIB)
    found = inventory()
    gpu = found.gpus[0]
    assert (found.driver, found.cuda) == ("570.12.01", "12.8")
    assert (gpu.index, gpu.uuid, gpu.name) == (0, uuid_of(0), "NVIDIA L4")
    assert (gpu.total_bytes, gpu.free_bytes) == (24 * GIB, 21 * GIB)
    assert (gpu.numa_node, gpu.cpus) == (1, (4, 5, 6, 7))
    assert gpu.processes == ((4242, 3 * GIB),)
    assert gpu.fault is None


def test_nvml_is_shut_after_each_read(machine: Machine) -> None:
    import pynvml

    machine.set_gpu(0)
    inventory()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetCount()


def run_read(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", READ],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_machine_without_the_library_has_no_inventory() -> None:
    probe = [sys.executable, "-c", "import ctypes; ctypes.CDLL('libnvidia-ml.so.1')"]
    is_installed = subprocess.run(probe, check=False, capture_output=True).returncode == 0
    done = run_read()
    assert (done.stdout == "None\n") is not is_installed, done.stderr


def test_a_broken_library_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    done = run_read(LD_LIBRARY_PATH=str(tmp_path))
    assert "ConfigError: libnvidia-ml.so.1 is there but cannot be loaded" in done.stderr


@pytest.mark.parametrize(
    ("code", "error", "remedy"),
    [
        (18, "version mismatch", "reboot"),
        (9, "Driver Not Loaded", "modprobe nvidia"),
        (999, "Unknown Error", "nvidia-smi"),
    ],
)
def test_a_failing_driver_is_an_error_with_its_words_and_a_remedy(
    machine: Machine, code: int, error: str, remedy: str
) -> None:
    machine.init_error(code)
    with pytest.raises(ConfigError) as caught:
        read_inventory()
    assert error in str(caught.value)
    assert remedy in str(caught.value)
    assert "CUDA_VISIBLE_DEVICES=''" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("lost", 1, "lost"),
        ("ecc", 3, "ECC uncorrected 3"),
        ("remap_failed", 1, "row remapping failed"),
        ("remap_pending", 1, "row remapping pending"),
        ("retired_pending", 1, "page retirement pending"),
        ("compute_mode", 2, "Prohibited"),
    ],
)
def test_a_sick_gpu_has_its_fault_and_the_others_none(
    machine: Machine, field: str, value: int, fault: str
) -> None:
    machine.set_gpu(0)
    machine.set_gpu(1, **{field: value})
    machine.set_gpu(2)
    faults = [gpu.fault for gpu in inventory().gpus]
    assert fault in (faults[1] or "")
    assert [faults[0], faults[2]] == [None, None]


def test_exclusive_process_mode_is_no_fault(machine: Machine) -> None:
    machine.set_gpu(0, compute_mode=3)
    assert inventory().gpus[0].fault is None


def test_a_gpu_in_mig_mode_is_there_as_its_mig_devices(machine: Machine) -> None:
    machine.set_gpu(0)
    machine.mig(1, 0, total=18 * GIB)
    machine.mig(1, 2, total=36 * GIB)
    gpus = inventory().gpus
    assert [gpu.uuid for gpu in gpus] == [uuid_of(0), mig_uuid_of(1, 0), mig_uuid_of(1, 2)]
    assert [gpu.parent_uuid for gpu in gpus] == [None, uuid_of(1), uuid_of(1)]
    assert [gpu.total_bytes for gpu in gpus[1:]] == [18 * GIB, 36 * GIB]


def test_mig_devices_carry_the_fault_of_their_gpu(machine: Machine) -> None:
    machine.mig(0, 0)
    machine.set_gpu(0, ecc=1)
    assert inventory().gpus[0].fault == "ECC uncorrected 1"


def test_mig_mode_without_devices_is_a_fault(machine: Machine) -> None:
    machine.set_gpu(0, mig=1)
    assert "no MIG device" in (inventory().gpus[0].fault or "")


def test_links_name_nvlink_numa_and_pcie(machine: Machine) -> None:
    for index in range(4):
        machine.set_gpu(index, numa=index // 2)
    machine.link(0, 1, 18)
    machine.link(0, 2, 0)
    machine.topology(2, 3, 10)
    links = inventory().links
    direct = links[frozenset((uuid_of(0), uuid_of(1)))]
    switched = links[frozenset((uuid_of(0), uuid_of(2)))]
    near = links[frozenset((uuid_of(2), uuid_of(3)))]
    far = links[frozenset((uuid_of(1), uuid_of(3)))]
    assert [link.label for link in (direct, switched, near, far)] == ["NV18", "NV1", "PIX", "SYS"]
    assert (near.same_numa, far.same_numa) == (True, False)
    assert direct.score > switched.score > near.score > far.score


def test_a_lost_gpu_leaves_the_links_of_the_others(machine: Machine) -> None:
    for index in range(3):
        machine.set_gpu(index)
    machine.set_gpu(1, lost=1)
    assert list(inventory().links) == [frozenset((uuid_of(0), uuid_of(2)))]


def test_gpus_read_again_show_what_changed_meanwhile(machine: Machine) -> None:
    machine.set_gpu(0)
    machine.set_gpu(1)
    before = inventory().gpus
    machine.set_gpu(0, used=70 * GIB)
    machine.set_gpu(1, lost=1)
    now = read_gpus(before)
    assert now[uuid_of(0)].used_bytes == 70 * GIB
    assert "lost" in (now[uuid_of(1)].fault or "")


def test_a_gpu_taken_out_of_the_machine_is_lost(machine: Machine) -> None:
    machine.set_gpu(0)
    machine.set_gpu(1)
    before = inventory().gpus
    machine.remove_gpu(1)
    assert "lost" in (read_gpus(before)[uuid_of(1)].fault or "")


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        (uuid_of(1), [1]),
        (uuid_of(1).upper(), [1]),
        ("GPU-fa4e0002", [2]),
        (f"0,{uuid_of(2)}", [0, 2]),
    ],
)
def test_visible_devices_are_taken_in_their_order(
    machine: Machine, visible: str | None, indices: list[int]
) -> None:
    for index in range(3):
        machine.set_gpu(index)
    assert [gpu.index for gpu in select_visible(inventory(), visible)] == indices


@pytest.mark.parametrize("visible", ["GPU-fa4e0001", uuid_of(1), "1"])
def test_naming_a_gpu_in_mig_mode_names_all_its_devices(machine: Machine, visible: str) -> None:
    machine.set_gpu(0)
    machine.mig(1, 0)
    machine.mig(1, 1)
    chosen = select_visible(inventory(), visible)
    assert [gpu.uuid for gpu in chosen] == [mig_uuid_of(1, 0), mig_uuid_of(1, 1)]


def test_one_mig_device_can_be_named(machine: Machine) -> None:
    machine.mig(0, 0)
    machine.mig(0, 1)
    chosen = select_visible(inventory(), mig_uuid_of(0, 1))
    assert [gpu.uuid for gpu in chosen] == [mig_uuid_of(0, 1)]


@pytest.mark.parametrize("visible", ["7", "0,7", "GPU-dead", "cuda:0", "0,,1", "MIG-fa4e0000"])
def test_an_unknown_device_is_named_together_with_what_there_is(
    machine: Machine, visible: str
) -> None:
    machine.set_gpu(0)
    machine.set_gpu(1)
    with pytest.raises(ConfigError) as caught:
        select_visible(inventory(), visible)
    unknown = next(part for part in visible.split(",") if part not in ("0", "1"))
    assert f"no GPU {unknown!r}" in str(caught.value)
    assert uuid_of(1) in str(caught.value)


@pytest.mark.parametrize("visible", ["0,0", f"1,{uuid_of(1)}"])
def test_a_device_named_twice_is_an_error(machine: Machine, visible: str) -> None:
    machine.set_gpu(0)
    machine.set_gpu(1)
    with pytest.raises(ConfigError, match="twice"):
        select_visible(inventory(), visible)


def test_an_ambiguous_beginning_is_an_error(machine: Machine) -> None:
    machine.set_gpu(0)
    machine.set_gpu(1)
    with pytest.raises(ConfigError, match="write more of it"):
        select_visible(inventory(), "GPU-fa4e")


def test_one_gpu_of_several_that_computes_is_seen(machine: Machine) -> None:
    machine.set_gpu(0, utilization=0)
    machine.set_gpu(1, utilization=0)
    both = [uuid_of(0), uuid_of(1)]
    assert not are_computing(both)
    machine.set_gpu(1, utilization=3)
    assert are_computing(both)


def test_a_gpu_that_is_lost_computes_nothing(machine: Machine) -> None:
    machine.set_gpu(0, utilization=100, lost=1)
    assert not are_computing([uuid_of(0)])


def test_a_mig_device_may_always_compute(machine: Machine) -> None:
    """Its driver cannot say."""
    machine.mig(0, 0)
    assert are_computing([mig_uuid_of(0, 0)])


def test_without_an_answer_of_the_driver_a_gpu_may_compute(machine: Machine) -> None:
    machine.set_gpu(0)
    machine.init_error(18)
    assert are_computing([uuid_of(0)])
