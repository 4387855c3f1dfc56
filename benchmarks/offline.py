"""The bare engine as a contender: vLLM's LLM.generate in a process of its own. `start_engine`
runs in the driver, `serve_engine` in that process.

Imports vLLM only inside `load_engine` and `serve_engine`.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from benchmarks.contender import Answered, on_cores
from benchmarks.server import LOAD_TIMEOUT_S, NO_GPUS, STOP_TIMEOUT_S, kill_all, list_tree
from benchmarks.work import ENGINE, SAMPLING
from gpupool.engines.vllm_environment import set_environment
from tests.demo_model import model_folder


class RunningEngine:
    """An LLM that is loaded, at the other end of a pipe."""

    def __init__(self, process: psutil.Process, pipe: Connection) -> None:
        self._process = process
        self._pipe = pipe

    def pids(self) -> list[int]:
        return [process.pid for process in list_tree(self._process)]

    def generate(self, prompts: Sequence[str]) -> Answered:
        """The time is that of LLM.generate alone, taken by the child."""
        self._pipe.send(list(prompts))
        seconds, tokens = self._pipe.recv()
        return Answered(seconds, tuple(tokens))


@contextmanager
def start_engine(folder: Path, cores: tuple[int, ...]) -> Iterator[RunningEngine]:
    """The engine on these cores, with the environment that the pool gives to its own."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    log_path = folder / "offline.log"
    child = spawn.Process(target=serve_engine, args=(theirs, cores, str(log_path)))
    with on_cores(cores):
        child.start()
    # The child's end must be the child's alone, so that its death ends our recv().
    theirs.close()
    process = psutil.Process(child.pid)
    try:
        if not ours.poll(LOAD_TIMEOUT_S):
            raise RuntimeError(f"the bare engine did not load in {LOAD_TIMEOUT_S} s: {log_path}")
        try:
            ours.recv()
        except EOFError:
            log = log_path.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"the bare engine ended while loading:\n{log}") from None
        yield RunningEngine(process, ours)
    finally:
        everyone = list_tree(process)
        ours.close()
        child.join(STOP_TIMEOUT_S)
        kill_all(everyone)
        child.join()


def serve_engine(pipe: Connection, cores: Sequence[int], log_path: str) -> None:
    """Load, then generate what comes down the pipe until it is closed."""
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    engine = load_engine(cores)
    from vllm import SamplingParams

    params = SamplingParams(**SAMPLING)
    pipe.send("ready")
    while True:
        try:
            prompts = pipe.recv()
        except EOFError:
            break
        began = time.perf_counter()
        outputs = engine.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        pipe.send((seconds, [len(output.outputs[0].token_ids) for output in outputs]))
    engine.llm_engine.engine_core.shutdown()


def load_engine(cores: Sequence[int]) -> Any:
    """vLLM's LLM with one OpenMP thread on each of these cores."""
    os.environ.update(NO_GPUS)
    set_environment(cores)
    from vllm import LLM

    return LLM(model=str(model_folder()), **ENGINE)
