"""What a pool says of itself while its workers load."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpupool import load_times
from gpupool.load_times import Load
from tests.pool import SCRIPTED, Pool, wait_until

pytestmark = pytest.mark.server

LOAD = Load("M", "tests.engines.scripted:ScriptedEngine", 0, "cpu")
ESTIMATE_S = 40.0


def ask(pool: Pool, path: str, body: Any = None, **headers: str) -> tuple[int, int, Any]:
    """Status, Retry-After (0 if there is none) and JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(pool.url + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, 0, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, int(error.headers.get("Retry-After", 0)), json.load(error)


def _is_loading(pool: Pool, **headers: str) -> bool:
    """Whether every worker is."""
    try:
        workers = ask(pool, "/readyz", **headers)[2]["workers"]
    except OSError:
        return False
    return all(worker["phase"] == "counting sheep" for worker in workers)


@pytest.fixture(scope="module", name="loading")
def _loading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A pool that loads for a minute, of a model that took 40 seconds the last time."""
    folder = tmp_path_factory.mktemp("pool")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        load_times.write(LOAD, ESTIMATE_S)
    flags = (*SCRIPTED, "--workers", "2", "--max_wait_s", "0")
    env = {"XDG_CACHE_HOME": str(folder / "cache")}
    with Pool(folder, *flags, "--", "--load-s", "60", env=env) as pool:
        wait_until(lambda: _is_loading(pool), 20, "loading workers")
        yield pool


@pytest.mark.parametrize("path", ["/readyz", "/health"])
def test_each_workers_phase_time_and_estimate_are_told(loading: Pool, path: str) -> None:
    status, _, body = ask(loading, path)
    assert status == 503
    assert (body["status"], body["ready"]) == ("not ready", 0)
    assert [worker["slot"] for worker in body["workers"]] == [0, 1]
    for worker in body["workers"]:
        assert (worker["state"], worker["phase"]) == ("loading", "counting sheep")
        assert worker["estimate_s"] == ESTIMATE_S
        assert 0 <= worker["for_s"] < 60


def test_the_process_is_live_while_it_loads(loading: Pool) -> None:
    assert ask(loading, "/livez") == (200, 0, {"status": "live"})


def test_retry_after_is_what_is_left_of_the_estimate(loading: Pool) -> None:
    _, retry_after_s, body = ask(loading, "/readyz")
    elapsed_s = max(worker["for_s"] for worker in body["workers"])
    assert ESTIMATE_S - elapsed_s - 1 <= retry_after_s <= ESTIMATE_S - elapsed_s + 2


def test_the_503_of_infer_says_phase_and_estimate(loading: Pool) -> None:
    status, retry_after_s, body = ask(loading, "/infer", {"instances": "a"})
    assert status == 503
    assert 1 <= retry_after_s <= ESTIMATE_S
    message = body["error"]["message"]
    assert re.search(r"loading: counting sheep for \d+ s of about 40 s", message), message


def test_the_time_of_a_load_is_the_estimate_of_the_next(tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with Pool(tmp_path, *SCRIPTED, "--", "--load-s", "1.5", env=env) as pool:
        wait_until(lambda: _is_loading(pool), 20, "a loading worker")
        _, retry_after_s, body = ask(pool, "/readyz")
        assert body["workers"][0]["estimate_s"] is None
        assert retry_after_s == load_times.DEFAULT_RETRY_AFTER_S
        pool.wait_ready()
    with Pool(tmp_path, *SCRIPTED, "--", "--load-s", "60", env=env) as pool:
        wait_until(lambda: _is_loading(pool), 20, "a loading worker")
        [worker] = ask(pool, "/readyz")[2]["workers"]
        assert 1.5 <= worker["estimate_s"] < 6


def test_a_load_needs_no_place_to_keep_its_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Pool(tmp_path, *SCRIPTED, env={"XDG_CACHE_HOME": str(tmp_path / "file")}) as pool:
        pool.wait_ready()
        assert pool.infer("ab", max_tokens=2) == ["ab"]


def test_with_a_key_the_probes_tell_strangers_no_details(tmp_path: Path) -> None:
    key = {"Authorization": "Bearer secret"}
    with Pool(tmp_path, *SCRIPTED, "--api_key", "secret", "--", "--load-s", "3") as pool:
        wait_until(lambda: _is_loading(pool, **key), 20, "a loading worker")
        for path in ("/readyz", "/health"):
            assert ask(pool, path)[::2] == (503, {"status": "not ready"})
            assert ask(pool, path, Authorization="Bearer wrong")[2] == {"status": "not ready"}
            assert ask(pool, path, **key)[2]["workers"]
        wait_until(lambda: ask(pool, "/readyz")[0] == 200, 20, "a ready worker")
        assert ask(pool, "/readyz") == (200, 0, {"status": "ready"})


def test_strangers_do_not_wait_for_the_model(tmp_path: Path) -> None:
    key = {"Authorization": "Bearer secret"}
    with Pool(tmp_path, *SCRIPTED, "--api_key", "secret", "--", "--load-s", "60") as pool:
        wait_until(lambda: _is_loading(pool, **key), 20, "a loading worker")
        assert pool.post("/infer", {"instances": "a"}, timeout_s=5)[0] == 401
