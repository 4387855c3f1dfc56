"""URLs/vllm_url.py and URLs/transformers_url.py: a pool of one, as its ancestor was started."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import demo_model
from tests.machine import fake_machine, uuid_of
from tests.pool import ROOT, Pool, clean_environment

pytestmark = pytest.mark.server

START = (
    "import sys; from gpupool.single import main; "
    "main('tests.engines.scripted:ScriptedEngine', sys.argv[1:])"
)


def said(pool: Pool) -> list[str]:
    """The lines that scripts wait for, in the order in which they came."""
    wanted = ("model load finished", f"Running on {pool.url}")
    return [line for line in pool.log().splitlines() if line in wanted]


def test_two_gpus_are_one_worker_and_it_says_when_it_is_ready(tmp_path: Path) -> None:
    command = (sys.executable, "-c", START)
    with (
        fake_machine(tmp_path, gpus=4) as machine,
        Pool(
            tmp_path,
            *("--model_name", "M", "--gpuid", "1,3", "--", "--load-s", "0.5"),
            env=machine.env(PYTHONPATH=str(ROOT)),
            command=command,
        ) as pool,
    ):
        assert not said(pool)
        pool.wait_ready()
        [worker] = pool.workers()
        assert sorted(worker["gpus"]) == [uuid_of(1), uuid_of(3)]
        assert said(pool) == ["model load finished", f"Running on {pool.url}"]
        assert pool.infer("abc", max_tokens=4) == ["abca"]
        words = ("--url", pool.url, "--", "byzerllm", "stat", "--model", "M")
        command = [sys.executable, "-m", "gpupool.cli", "import", *words]
        told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        assert (told["total_workers"], told["total_requests"]) == (1, [1])


def refusal(script: str, *flags: str) -> str:
    """The one line of a refused start."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "URLs" / script), "--model_name", "M", *flags],
        env=clean_environment(),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    return line


def test_a_taken_port_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = refusal("transformers_url.py", "--port", port)
    assert f"--port (PORT) is {port}" in line
    assert f"pid {os.getpid()}" in line


def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert re.match("gpupool: error: --gpuid .*'99'", refusal("vllm_url.py", "--gpuid", "99"))


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("script", "engine_args"),
    [("vllm_url.py", ("--enforce-eager", "--max-model-len", "512")), ("transformers_url.py", ())],
)
def test_a_real_engine_answers(script: str, engine_args: tuple[str, ...], tmp_path: Path) -> None:
    model = str(demo_model.model_folder())
    rest = ("--", *engine_args) if engine_args else ()
    with Pool(
        tmp_path,
        *("--model_name", model, *rest),
        env={"VLLM_CPU_KVCACHE_SPACE": "1"},
        command=(sys.executable, str(ROOT / "URLs" / script)),
    ) as pool:
        pool.wait_ready(deadline_s=240)
        assert said(pool) == ["model load finished", f"Running on {pool.url}"]
        assert "Paris" in pool.infer("The capital of France is", max_tokens=8, temperature=0)[0]
