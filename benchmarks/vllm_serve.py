"""`vllm serve --data-parallel-size N` as a contender, by its /v1/completions (driver)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.contender import Running, Start
from benchmarks.load import Endpoint
from benchmarks.server import running
from benchmarks.work import SAMPLING, engine_flags
from gpupool.engines.vllm_environment import DEFAULTS, SAFE
from tests.demo_model import model_folder
from tests.pool import free_port

MODEL = "demo"


def start_vllm_serve(num_replicas: int, *, is_bound: bool) -> Start[Running]:
    """`vllm serve`; bound, each of its engines is given its own cores, else vLLM shares them
    out itself."""

    @contextmanager
    def start(folder: Path, cores: tuple[int, ...]) -> Iterator[Endpoint]:
        env = {**SAFE, **DEFAULTS}
        if is_bound:
            share = len(cores) // num_replicas
            parts = [cores[i * share : (i + 1) * share] for i in range(num_replicas)]
            env["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, p)) for p in parts)
            env["OMP_NUM_THREADS"] = str(share)
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        log_path = folder / f"vllm-serve-{port}.log"
        command = _command(num_replicas, port)
        with running(
            command, env=env, cores=cores, ready_url=f"{url}/health", log_path=log_path
        ) as list_pids:
            yield Endpoint(f"{url}/v1/completions", list_pids, write_body, count_tokens)

    return start


def _command(num_replicas: int, port: int) -> list[str]:
    return [
        sys.executable, "-m", "benchmarks.vllm_command", "serve", str(model_folder()),
        "--host", "127.0.0.1", "--port", str(port), "--served-model-name", MODEL,
        "--data-parallel-size", str(num_replicas), *engine_flags(),
    ]  # fmt: skip


def write_body(prompt: str) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, **SAMPLING}


def count_tokens(answer: Any) -> int:
    """Of one completion."""
    return int(answer["usage"]["completion_tokens"])
