"""The last load's time: found again by the same load only, and never in the way."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from gpupool import load_times
from gpupool.gpus import Gpu
from gpupool.load_times import Load
from gpupool.partition import Slice
from gpupool.settings import Settings

LOAD = Load("m", "vllm", 2, "NVIDIA H200")


@pytest.fixture(name="cache", autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_the_last_time_is_found_again() -> None:
    assert load_times.read(LOAD) is None
    load_times.write(LOAD, 12.5)
    load_times.write(LOAD, 13.25)
    assert load_times.read(LOAD) == 13.25


@pytest.mark.parametrize(
    "other",
    [
        replace(LOAD, model="n"),
        replace(LOAD, engine="transformers"),
        replace(LOAD, num_gpus=1),
        replace(LOAD, device="cpu"),
    ],
    ids=["model", "engine", "number of GPUs", "kind of GPU"],
)
def test_another_load_has_its_own_time(other: Load) -> None:
    load_times.write(LOAD, 12.5)
    assert load_times.read(other) is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"seconds": 3}', b"\xff", b"null"], ids=repr
)
def test_a_broken_file_is_no_estimate(cache: Path, content: bytes) -> None:
    load_times.write(LOAD, 12.5)
    [path] = (cache / "gpupool").iterdir()
    path.write_bytes(content)
    assert load_times.read(LOAD) is None


@pytest.mark.parametrize("seconds", ["NaN", "-1", "Infinity", "null", '"x"'])
def test_a_time_that_cannot_be_is_no_estimate(cache: Path, seconds: str) -> None:
    load_times.write(LOAD, 12.5)
    [path] = (cache / "gpupool").iterdir()
    path.write_text(path.read_text().replace("12.5", seconds))
    assert load_times.read(LOAD) is None


def test_without_a_place_for_it_nothing_happens(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "a file"))
    load_times.write(LOAD, 12.5)
    assert load_times.read(LOAD) is None


def test_workers_that_write_together_leave_whole_files(cache: Path) -> None:
    load_times.write(LOAD, 1)
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            load_times.write(LOAD, 2)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert {load_times.read(LOAD) for _ in range(1000)} <= {1, 2}
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert len(list((cache / "gpupool").iterdir())) == 1


def test_a_slice_with_gpus_is_named_by_them(tmp_path: Path) -> None:
    gpus = tuple(Gpu(index, f"GPU-{index}", "NVIDIA L4", 1, 1) for index in range(2))
    settings = Settings(model_name=str(tmp_path / "." / "m"), infer_type="vllm")
    load = load_times.load_of(settings, Slice(0, gpus, ()))
    assert load == Load(str(tmp_path / "m"), "vllm", 2, "NVIDIA L4")
    assert load_times.load_of(settings, Slice(0, (), (0,))).device == "cpu"


@pytest.mark.parametrize(
    ("for_s", "estimate_s", "retry_after_s"),
    [(0, None, 5), (0, 20.2, 21), (15, 20.2, 6), (30, 20.2, 1), (0, 900, 60)],
    ids=["unknown", "rounded up", "what is left", "overdue", "not for ever"],
)
def test_when_to_ask_again(for_s: float, estimate_s: float | None, retry_after_s: int) -> None:
    assert load_times.retry_after_s(for_s, estimate_s) == retry_after_s
