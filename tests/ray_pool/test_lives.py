"""Replicas and pools on a real Ray that die, drain and end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.machine import fake_machine, uuid_of
from tests.pool import ROOT, SCRIPTED, Pool, is_alive, wait_until
from tests.ray_pool.cluster import START_S, environment, own_network, ray_pool, replica_pids

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(300)]

KEY = {"Authorization": "Bearer a-key"}


@pytest.fixture(autouse=True)
def _network() -> Iterator[None]:
    with own_network():
        yield


def scripted(name: str) -> tuple[str, ...]:
    return ("--model_name", "M", "--infer_type", f"tests.engines.{name}")


def stream(pool: Pool, **more: Any) -> list[str]:
    body = {"model": "M", "prompt": "ab", "stream": True, **more}
    with httpx.stream("POST", f"{pool.url}/v1/completions", json=body, timeout=60) as answer:
        return [line for line in answer.iter_lines() if line]


def test_a_killed_replica_costs_nobody_an_answer_and_comes_back(tmp_path: Path) -> None:
    flags = (*SCRIPTED, "--num_replicas", "2", "--", "--token-s", "0.02", "--slots", "8")
    with ray_pool(tmp_path, *flags) as pool, ThreadPoolExecutor(16) as threads:
        pool.wait_ready(2, deadline_s=START_S)
        pids = replica_pids(pool)
        answers = [threads.submit(pool.infer, "ab", max_tokens=100) for _ in range(8)]
        streams = [threads.submit(stream, pool, max_tokens=100) for _ in range(8)]
        wait_until(
            lambda: sum(worker["inflight"] for worker in pool.workers()) == 16, 10, "16 requests"
        )
        os.kill(pids[0], signal.SIGKILL)
        began = time.monotonic()
        assert all(answer.result() == ["ab" * 50] for answer in answers)
        ends = [found.result()[-1] for found in streams]
        cut = [end for end in ends if end != "data: [DONE]"]
        assert 0 < len(cut) < 8
        assert all("died" in json.loads(end[6:])["error"]["message"] for end in cut)
        wait_until(lambda: len(replica_pids(pool)) == 2, 30, "the next replica")
        assert time.monotonic() - began < 15
        assert pids[0] not in replica_pids(pool)


def test_a_batch_outlives_a_killed_replica(tmp_path: Path) -> None:
    flags = (*SCRIPTED, "--num_replicas", "2", "--", "--token-s", "0.02", "--slots", "4")
    with ray_pool(tmp_path, *flags) as pool, ThreadPoolExecutor(1) as threads:
        pool.wait_ready(2, deadline_s=START_S)
        pids = replica_pids(pool)
        prompts = [f"{i:03}" for i in range(200)]
        batch = threads.submit(pool.infer, prompts, max_tokens=9)
        wait_until(lambda: min(worker["inflight"] for worker in pool.workers()) > 2, 10, "a batch")
        os.kill(pids[0], signal.SIGKILL)
        assert batch.result() == [prompt * 3 for prompt in prompts]


def test_what_an_engine_left_is_gone_with_its_killed_replica(tmp_path: Path) -> None:
    with ray_pool(tmp_path, *scripted("has_child:HasChild")) as pool:
        pool.wait_ready(deadline_s=START_S)
        [replica] = replica_pids(pool)
        children = {child.pid for child in psutil.Process(replica).children(recursive=True)}
        assert len(children) == 2  # the engine's, and the guardian
        os.kill(replica, signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, children)), 2, "the end of all")


def test_an_engine_that_dies_is_replaced_and_what_kills_it_is_told(tmp_path: Path) -> None:
    flags = (*scripted("dies_on_demand:DiesOnDemand"), "--num_replicas", "2")
    with ray_pool(tmp_path, *flags, "--", "--token-s", "0.02") as pool:
        pool.wait_ready(2, deadline_s=START_S)
        with ThreadPoolExecutor(4) as threads:
            other = threads.submit(pool.infer, "ab", max_tokens=200)
            status, answer = pool.post("/infer", {"instances": "die"})
            assert (status, answer["error"]["type"]) == (503, "unavailable_error")
            assert other.result() == ["ab" * 100]
        wait_until(lambda: pool.log().count(" leaves: asked to") == 3, 10, "three replicas' end")
        assert pool.infer("ab", max_tokens=4) == ["abab"]
        wait_until(lambda: pool.get("/readyz")[1].get("ready") == 2, 30, "both replicas")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_end_of_the_launcher_leaves_anything(tmp_path: Path, number: int) -> None:
    with ray_pool(tmp_path, *scripted("has_child:HasChild")) as pool:
        pool.wait_ready(deadline_s=START_S)
        pids = pool.pids()
        assert len(pids) > 8
        pool.process.send_signal(number)
        assert pool.process.wait(30) == (0 if number == signal.SIGINT else -number)
        wait_until(lambda: not any(map(is_alive, pids)), 10, "the end of all processes")


def test_a_pool_that_can_never_be_ready_ends_with_the_reason(tmp_path: Path) -> None:
    with ray_pool(tmp_path, *scripted("refuses_to_load:RefusesToLoad")) as pool:
        assert pool.process.wait(START_S) == 1
    last = [line for line in pool.log().splitlines() if "no replica can ever be ready" in line]
    assert len(last) == 1


def test_requests_wait_for_a_model_that_loads(tmp_path: Path) -> None:
    flags = (*SCRIPTED, "--", "--load-s", "6")
    with ray_pool(tmp_path, *flags) as pool:

        def is_open() -> bool:
            try:
                return pool.get("/livez")[0] == 200
            except OSError:
                return False

        wait_until(is_open, START_S, "an open door")
        answer = httpx.get(f"{pool.url}/readyz")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json() == {"status": "not ready", "ready": 0, "workers": []}
        assert pool.get("/pool")[1]["error"]["code"] == "not_ready"
        assert pool.infer("ab", max_tokens=4) == ["abab"]


def test_a_key_is_needed_as_everywhere(tmp_path: Path) -> None:
    with ray_pool(tmp_path, *SCRIPTED, "--api_key", "a-key") as pool:
        pool.wait_ready(deadline_s=START_S, **KEY)
        for path in ("/pool", "/metrics", "/", "/v1/models", "/openapi.json", "/nonsense"):
            assert pool.get(path)[0] == 401, path
        for path, body in (
            ("/infer", {"instances": "a"}),
            ("/v1/completions", {"prompt": "a", "model": "M"}),
        ):
            assert pool.post(path, body)[0] == 401
            assert pool.post(path, body, **KEY)[0] == 200
        assert pool.get("/readyz") == (200, {"status": "ready"})
        assert pool.get("/pool", **KEY)[0] == 200
        assert "a-key" not in pool.log()


def test_each_replica_has_the_gpus_that_ray_gave_it_and_their_lease(
    tmp_path: Path,
) -> None:
    flags = (*scripted("has_child:HasChild"), "--per_proc_gpus", "2")
    with (
        fake_machine(tmp_path, gpus=4) as machine,
        ray_pool(tmp_path, *flags, env=machine.env()) as pool,
    ):
        pool.wait_ready(2, deadline_s=START_S)
        gpus = [worker["gpus"] for worker in pool.workers()]
        assert sorted(gpu for found in gpus for gpu in found) == sorted(map(uuid_of, range(4)))
        assert [len(found) for found in gpus] == [2, 2]
        for pid, mine in zip(replica_pids(pool), gpus, strict=True):
            [engine] = [
                child
                for child in psutil.Process(pid).children()
                if "gpupool.guardian" not in child.cmdline()
            ]
            visible = engine.environ()["CUDA_VISIBLE_DEVICES"]  # set after the replica's start
            assert set(visible.split(",")) == set(mine)
        shown = subprocess.run(
            [sys.executable, "dispatcher.py", "--json"],
            env=os.environ | machine.env(),
            check=True,
            capture_output=True,
            text=True,
        )
        holders = [gpu["holder"] for gpu in json.loads(shown.stdout)["gpus"]]
        assert all(holder is not None and "M" in holder for holder in holders)


def test_more_replicas_than_there_is_room_for_are_refused(tmp_path: Path) -> None:
    with ray_pool(tmp_path, *SCRIPTED, "--num_replicas", "2", "--per_proc_gpus", "2") as pool:
        assert pool.process.wait(START_S) == 2
    [line] = pool.log().strip().splitlines()
    assert line.startswith("gpupool: error: --per_proc_gpus (PER_PROC_GPUS) is 2, but")


@contextmanager
def cluster(address: str, token: dict[str, str]) -> Iterator[None]:
    """Somebody else's, with two cores."""
    program = Path(sys.prefix) / "bin" / "ray"
    port = address.rpartition(":")[2]
    head = subprocess.Popen(
        [program, "start", "--head", f"--port={port}", "--num-cpus=2", "--block"]
        + ["--include-dashboard=false", f"--node-ip-address={address.partition(':')[0]}"],
        env=os.environ | environment() | token | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _is_open(address), START_S, "the cluster's head")
        yield
        assert head.poll() is None
    finally:
        mine = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
        for process in mine:
            process.kill()
        head.wait()


def _is_open(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port))).close()
    except OSError:
        return False
    return True


def refusal(tmp_path: Path, address: str, token: dict[str, str]) -> str:
    """The last line of a pool that may not join."""
    with ray_pool(tmp_path, *SCRIPTED, "--ray_address", address, env=token) as pool:
        assert pool.process.wait(START_S) == 2
    return [line for line in pool.log().splitlines() if line.startswith("gpupool: error: ")][-1]


def test_a_pool_joins_a_cluster_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 64}
    address = "127.0.0.1:6399"
    flags = (*SCRIPTED, "--num_replicas", "2", "--ray_address", address)
    with cluster(address, token):
        for _ in range(2):  # once more, when the first has left
            with ray_pool(tmp_path, *flags, env=token) as pool:
                pool.wait_ready(2, deadline_s=START_S)
                assert pool.infer("ab", max_tokens=4) == ["abab"]
                assert "runs a gpupool already" in refusal(tmp_path, address, token)
                assert pool.stop() == 0
        wrong = token | {"RAY_AUTH_TOKEN": "w" * 64}
        assert "--ray_address (GPUPOOL_RAY_ADDRESS) is" in refusal(tmp_path, address, wrong)
