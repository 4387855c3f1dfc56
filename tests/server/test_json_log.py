"""With --log_format json no line on a pool's streams is anything else, whoever writes it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpupool.json_lines import KEYS
from tests.demo_model import gguf_path, model_folder
from tests.pool import Pool, is_alive, wait_until

pytestmark = pytest.mark.server

FLAGS = ("--model_name", "M", "--log_format", "json", "--workers", "2")
WRITES = ("--infer_type", "tests.engines.writes_anything:WritesAnything")


@pytest.fixture(scope="module", name="pool")
def _pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with Pool(tmp_path_factory.mktemp("json"), *FLAGS, *WRITES) as pool:
        yield pool.wait_ready(workers=2)


def lines(pool: Pool) -> list[dict[str, Any]]:
    """Every whole line; one that is no object of ours fails here."""
    found = [json.loads(line) for line in pool.log().splitlines(keepends=True) if line[-1] == "\n"]
    assert all(line.keys() >= KEYS | {"worker"} for line in found)
    return found


def of(pool: Pool, message: str) -> list[dict[str, Any]]:
    return [line for line in lines(pool) if message in line["message"]]


@pytest.mark.parametrize(
    ("message", "level", "logger"),
    [
        ("print on stdout", "info", "output"),
        ("python on stderr", "info", "output"),
        ("C on stderr: ", "info", "output"),
        ("bytes \ufffd", "info", "output"),
        ("100%", "info", "output"),
        ("a library warns", "warning", "some.library"),
        ("UserWarning: this is odd", "warning", "py.warnings"),
        ("the child's stdout", "info", "output"),
        ("the child's log", "info", "vllm"),
        ('{"no": "log line"}', "info", "output"),
        ("SystemError: the child's end", "error", "output"),
        ('KeyError: "the thread\'s end"', "error", "output"),
        ("model load finished", "info", "gpupool.replica"),
    ],
)
def test_whatever_a_worker_writes_is_an_object_with_its_worker(
    pool: Pool, message: str, level: str, logger: str
) -> None:
    wait_until(lambda: len(of(pool, message)) >= 2, 5, message)
    found = of(pool, message)
    assert {line["worker"] for line in found} == {0, 1}
    assert {(line["level"], line["logger"]) for line in found} == {(level, logger)}


def test_the_masters_lines_have_no_worker(pool: Pool) -> None:
    assert [line["worker"] for line in of(pool, "Starting gunicorn")] == [None]


def test_the_last_words_of_a_worker_are_read_and_its_successors_have_its_number(
    pool: Pool,
) -> None:
    before = {worker["pid"] for worker in pool.workers()}
    pool.send_infer("!", max_tokens=1).close()
    wait_until(lambda: of(pool, "last words"), 10, "the last words")
    pool.wait_ready(workers=2)
    wait_until(lambda: len(of(pool, "print on stdout")) == 3, 10, "the successor's words")
    assert len({worker["pid"] for worker in pool.workers()} - before) == 1
    assert of(pool, "print on stdout")[-1]["worker"] == of(pool, "last words")[0]["worker"]


def relays_of(pool: Pool) -> list[int]:
    found = []
    for child in psutil.Process(pool.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one, too
            if "gpupool.log_relay" in child.cmdline():
                found.append(child.pid)
    return found


def test_a_relay_that_is_killed_is_started_again(pool: Pool) -> None:
    """And nobody's write fails meanwhile: an engine would die of it."""
    [relay] = relays_of(pool)
    os.kill(relay, signal.SIGKILL)
    [other] = wait_until(lambda: set(relays_of(pool)) - {relay}, 15, "another relay")
    assert other != relay
    number = len(of(pool, "print on stdout"))
    pool.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(of(pool, "print on stdout")) == number + 2, 30, "words of new workers")


def test_a_pool_ends_with_its_relay(tmp_path: Path) -> None:
    with Pool(tmp_path, *FLAGS[:-2], *WRITES) as pool:
        pool.wait_ready()
        [relay] = relays_of(pool)
        assert pool.stop() == 0
        wait_until(lambda: not is_alive(relay), 5, "the relay's end")
        assert "Shutting down: Master" in lines(pool)[-1]["message"]


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(180)
@pytest.mark.parametrize("engine", ["llama_cpp", "vllm", "transformers"])
def test_the_real_engines_write_objects(engine: str, tmp_path: Path) -> None:
    model = gguf_path() if engine == "llama_cpp" else model_folder()
    flags = ("--model_name", str(model), "--infer_type", engine, "--log_format", "json")
    more = {"vllm": ("--", "--enforce-eager", "--max-model-len", "512")}.get(engine, ())
    env = {"VLLM_CPU_KVCACHE_SPACE": "1"}
    with Pool(tmp_path, *flags, *more, env=env) as pool:
        pool.wait_ready()
        pool.infer("hello", max_tokens=2)
        os.kill(pool.workers()[0]["pid"], signal.SIGABRT)
        wait_until(lambda: of(pool, " died"), 30, "the worker's end")
        assert {line["worker"] for line in lines(pool)} == {None, 0}
        if engine == "vllm":
            assert [line for line in lines(pool) if line["logger"] == "vllm" and "pid" in line]
