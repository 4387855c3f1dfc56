"""Machines described by cards, by a shape, or found by NVML."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from gpupool.errors import ConfigError
from gpupool.gpus import Gpu
from gpupool.planner.advice import make_plan
from gpupool.planner.fit import GIB, MIB, Ask
from gpupool.planner.machine import here, of_cards, of_gpus, of_shape, shapes
from gpupool.planner.option import Subject
from tests.machine import fake_machine
from tests.plan_models import model

DATA = files("gpupool.planner").joinpath("machines.json").read_text()


@pytest.mark.parametrize(
    ("asked", "count", "gib"),
    [
        ("8x A100-80GB", 8, 79.14),
        ("2 x H100", 2, 79.11),
        ("H200", 1, 139.81),
        ("4xA10", 4, 22.18),
        ("1x NVIDIA GeForce RTX 4090", 1, 23.52),
        ("2* l40s", 2, 44.53),
    ],
)
def test_cards_have_the_memory_that_cuda_has(asked: str, count: int, gib: float) -> None:
    machine = of_cards(asked)
    assert [card.total_bytes for card in machine.cards] == [int(gib * GIB)] * count


@pytest.mark.parametrize("name", json.loads(DATA)["cards"])
def test_the_driver_keeps_some_of_what_nvidia_smi_shows(name: str) -> None:
    shown = json.loads(DATA)["cards"][name]["mib"] * MIB
    assert 0.95 * shown < of_cards(name).cards[0].total_bytes < 0.998 * shown


def test_an_unknown_card_has_the_memory_of_its_name() -> None:
    assert of_cards("2x Some Card 48GB").cards[0].total_bytes == 48_000_000_000


@pytest.mark.parametrize("asked", ["0x A100", "", "8x", "65x A100", "2x Mystery", "48GB", "X-0GB"])
def test_what_is_no_card_is_refused(asked: str) -> None:
    with pytest.raises(ConfigError, match="--gpu") as raised:
        of_cards(asked)
    assert "\n" not in str(raised.value)


def test_a_shape_is_its_cards() -> None:
    machine = of_shape("bm.gpu.h100.8")
    assert len(machine.cards) == 8
    assert machine.cards[0].total_bytes == int(79.11 * GIB)


# GB as Oracle's documentation has them, for all GPUs of a shape.
SHAPE_GB = {
    "VM.GPU2.1": 16,
    "VM.GPU3.4": 64,
    "VM.GPU.A10.2": 48,
    "BM.GPU2.2": 32,
    "BM.GPU3.8": 128,
    "BM.GPU4.8": 320,
    "BM.GPU.B4.8": 320,
    "BM.GPU.A100-V2.8": 640,
    "BM.GPU.A10.4": 96,
    "BM.GPU.L40S.4": 192,
    "BM.GPU.H100.8": 640,
    "BM.GPU.H200.8": 1128,
    "BM.GPU.MI300X.8": 1536,
}


@pytest.mark.parametrize(("shape", "gigabytes"), SHAPE_GB.items())
def test_a_shape_has_about_the_memory_published(shape: str, gigabytes: int) -> None:
    found = sum(card.total_bytes for card in of_shape(shape).cards)
    assert 0.92 * gigabytes * GIB < found <= 1.06 * gigabytes * GIB


def test_every_shape_can_be_read() -> None:
    assert all(of_shape(shape).cards for shape in shapes())
    assert len(shapes()) >= 18


def test_an_unknown_shape_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"BM\.GPU\.H100\.8"):
        of_shape("BM.GPU.H100.9")


def test_a_broken_driver_is_not_asked_where_all_gpus_are_hidden(tmp_path: Path) -> None:
    with fake_machine(tmp_path, gpus=1) as machine:
        machine.preload()
        machine.init_error(999)
        assert here("") is None
        assert here("-1") is None
        with pytest.raises(ConfigError):
            here(None)


def test_the_gpus_of_this_machine_are_those_that_nvml_sees(tmp_path: Path) -> None:
    with fake_machine(tmp_path, gpus=3) as machine:
        machine.preload()
        machine.set_gpu(0, total=80 * GIB, used=60 * GIB)
        machine.set_gpu(2, ecc=3)
        found = here("0,2")
    assert found is not None
    [card] = found.cards  # the other has a fault
    assert (card.total_bytes, card.free_bytes) == (80 * GIB, 20 * GIB)


def test_a_worker_gets_one_mig_device(tmp_path: Path) -> None:
    with fake_machine(tmp_path) as machine:
        machine.preload()
        for slot in range(2):
            machine.mig(0, slot, total=20 * GIB)
        found = here(None)
    assert found is not None
    subject = Subject("m", model("Llama-3.2-1B"))
    assert [o.fit.num_gpus for o in make_plan(subject, found, Ask()).options] == [1]
    too_large = make_plan(Subject("m", model("phi-4")), found, Ask(max_model_len=4096))
    more = {r.what: r.arguments for r in too_large.remedies if "per worker" in r.what}
    assert more == {"2 GPUs per worker (here: 1)": ""}


def test_gpus_in_use_make_fewer_replicas_now(tmp_path: Path) -> None:
    with fake_machine(tmp_path, gpus=4) as machine:
        machine.preload()
        machine.set_gpu(3, used=60 * GIB)
        found = here(None)
    assert found is not None
    options = make_plan(Subject("m", model("Llama-3.2-1B")), found, Ask()).options
    assert [(o.num_replicas, o.num_now) for o in options] == [(4, 3), (2, 1), (1, 0)]


def test_mixed_gpus_are_planned_by_the_smallest() -> None:
    gpus = [
        Gpu(i, f"GPU-{i}", name, size, size)
        for i, (name, size) in enumerate([("NVIDIA A100", 80 * GIB), ("NVIDIA L4", 24 * GIB)])
    ]
    machine = of_gpus(gpus)
    assert machine.name == "2x NVIDIA A100 and NVIDIA L4"
    assert machine.smallest.total_bytes == 24 * GIB
