"""What the preflight warns of, and starts nevertheless."""

from __future__ import annotations

import os

import pytest

from dispatcher import GPUDispatcher
from gpupool.preflight import _warn_of_cores, check
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


def test_workers_whose_model_is_hosted_elsewhere_need_no_cores() -> None:
    settings = Settings(model_name="M", infer_type="saas", cuda_visible_devices="", workers=999)
    assert _warn_of_cores(settings, GPUDispatcher.for_settings(settings)) is None
