"""Kill cycles and two services racing for the same GPUs: no double grant, no leak."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpupool.lockdir import Busy, lock_path, try_lock
from tests.machine import Machine, fake_machine, uuid_of
from tests.pool import wait_until

NUM_GPUS = 8


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with fake_machine(tmp_path, gpus=NUM_GPUS) as machine:
        yield machine


def start(machine: Machine, num_kills: int, seed: int) -> subprocess.Popen[str]:
    claims = machine.folder / "claims"
    claims.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.lease_service", str(claims), str(num_kills), str(seed)]
    return subprocess.Popen(
        command,
        env=os.environ | machine.env(PER_PROC_GPUS="2"),
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(service: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = service.communicate(timeout=500)
    assert service.returncode == 0
    result: dict[str, Any] = json.loads(output)
    return result


def count_free(machine: Machine) -> int:
    free = 0
    for index in range(NUM_GPUS):
        try:
            try_lock({lock_path(machine.lock_dir, uuid_of(index)): fcntl.LOCK_EX}).release()
        except Busy:
            continue
        free += 1
    return free


def show(title: str, results: list[dict[str, Any]]) -> None:
    granted = sorted(ms for result in results for ms in result["ms"])
    p50, p99 = granted[len(granted) // 2], granted[int(len(granted) * 0.99)]
    tries = sum(result["tries"] for result in results)
    print(
        f"{title}: {len(granted)} leases in {tries} tries; a try that succeeds takes "
        f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {granted[-1]:.1f} ms"
    )


def check(machine: Machine, title: str, results: list[dict[str, Any]]) -> None:
    show(title, results)
    assert sum(result["doubles"] for result in results) == 0
    wait_until(lambda: count_free(machine) == NUM_GPUS, 10, "all GPUs to be free again")


def kill_cycles(machine: Machine, num_kills: int) -> None:
    result = finish(start(machine, num_kills, seed=1))
    assert len(result["ms"]) >= num_kills
    check(machine, "kill cycles", [result])


def race(machine: Machine, num_kills: int) -> None:
    services = [start(machine, num_kills, seed) for seed in (1, 2)]
    check(machine, "two services", [finish(service) for service in services])


def test_fifty_killed_workers_leave_no_gpu_taken_and_none_given_twice(machine: Machine) -> None:
    kill_cycles(machine, 50)


def test_two_services_that_race_never_hold_one_gpu_both(machine: Machine) -> None:
    race(machine, 50)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_killed_workers_leave_no_gpu_taken_and_none_given_twice(
    machine: Machine,
) -> None:
    kill_cycles(machine, 1000)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_services_that_race_a_thousand_times_never_hold_one_gpu_both(
    machine: Machine,
) -> None:
    race(machine, 1000)
