"""The design before the pool: a gunicorn sync worker, Flask, one blocking LLM.generate per
request. `start_ancestor` runs in the driver, `create_app` in that gunicorn's worker.

A request's prompts are one call of the engine; requests never meet in a batch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.load import Endpoint
from benchmarks.offline import load_engine
from benchmarks.server import running
from benchmarks.work import SAMPLING
from tests.pool import free_port

if TYPE_CHECKING:
    from flask import Flask, Response


def create_app() -> Flask:
    """Loads the engine, then serves."""
    # Not at the top: vLLM's worker looks at the globals of every module that its process has
    # imported, and flask's request, which is none outside a request, makes it fail.
    from flask import Flask, jsonify, request
    from vllm import SamplingParams

    app = Flask("ancestor")
    engine = load_engine(sorted(os.sched_getaffinity(0)))

    @app.get("/ready")
    def ready() -> Response:
        return jsonify("ready")

    @app.post("/infer")
    def infer() -> Response:
        body: Any = request.get_json()
        params = SamplingParams(**body["params"])
        outputs = engine.generate(body["instances"], params, use_tqdm=False)
        found = [output.outputs[0] for output in outputs]
        # The counts tell the benchmark of a short answer.
        return jsonify(
            [{"text": one.text, "completion_tokens": len(one.token_ids)} for one in found]
        )

    return app


@contextmanager
def start_ancestor(folder: Path, cores: tuple[int, ...]) -> Iterator[Endpoint]:
    """One sync worker on these cores."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [
        sys.executable, "-m", "gunicorn", "--workers", "1", "--worker-class", "sync",
        "--timeout", "600", "--bind", f"127.0.0.1:{port}", "--no-control-socket",
        "benchmarks.ancestor:create_app()",
    ]  # fmt: skip
    log_path = folder / "ancestor.log"
    with running(
        command, env={}, cores=cores, ready_url=f"{url}/ready", log_path=log_path
    ) as list_pids:
        yield Endpoint(f"{url}/infer", list_pids, write_body, count_tokens)


def write_body(prompt: str) -> dict[str, Any]:
    return {"instances": [prompt], "params": SAMPLING}


def count_tokens(answer: Any) -> int:
    """Of an answer to one prompt."""
    return int(answer[0]["completion_tokens"])
