"""What the preflight warns of, and starts nevertheless."""

from __future__ import annotations

import os

import pytest

from gpupool.preflight import check
from gpupool.settings import Settings
from tests.pool import free_port


def warnings(workers: int | None) -> tuple[str, ...]:
    settings = Settings(
        model_name="M",
        infer_type="tests.engines.scripted:ScriptedEngine",
        cuda_visible_devices="",
        port=free_port(),
        workers=workers,
    )
    return check(settings).warnings


def test_more_workers_than_cores_are_said() -> None:
    num_cores = len(os.sched_getaffinity(0))
    [warning] = warnings(100 * num_cores)
    asked = f"--workers (GPUPOOL_WORKERS) is {100 * num_cores}, but only {num_cores} CPU core(s)"
    assert warning.startswith(asked)
    assert "\n" not in warning


@pytest.mark.parametrize("workers", [None, 1, len(os.sched_getaffinity(0))])
def test_a_core_for_each_worker_is_nothing_to_speak_of(workers: int | None) -> None:
    assert warnings(workers) == ()
