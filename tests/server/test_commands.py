"""A user's path: run, status, query, restart, logs, leases, stop, and nothing is left."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands import Commands, scripted, session_of
from tests.demo_model import gguf_path
from tests.machine import fake_machine, uuid_of
from tests.pool import Pool, is_alive, wait_until
from tests.server.load import Load

pytestmark = [pytest.mark.server, pytest.mark.timeout(180)]


@pytest.fixture(name="gpupool")
def _gpupool(tmp_path: Path) -> Iterator[Commands]:
    with Commands(tmp_path) as commands:
        yield commands


def test_a_users_path_from_run_to_stop(tmp_path: Path) -> None:
    """A plan first. Two pools share three GPUs; a restart under load loses no request; stop answers
    what is in flight, and leaves nothing."""
    with fake_machine(tmp_path, gpus=3) as machine, Commands(tmp_path, **machine.env()) as gpupool:
        a = scripted(workers=2, ready_quorum=2, engine_args=["--token-s", "0.02"])
        b = scripted(workers=1, api_key="hush-hush")
        gpupool.write({"models": {"a": a, "b": b}})
        planned = gpupool("plan", "--model_name", gguf_path())
        assert (planned.returncode, "KV cache" in planned.stdout) == (0, True)
        done = gpupool.run()
        assert f"a: ready, 2 of 2 worker(s), http://127.0.0.1:{a['port']}" in done.stdout
        pool = gpupool.attached(a["port"])
        masters = [gpupool.master(name) for name in ("a", "b")]

        shown = gpupool("status")
        assert shown.returncode == 0
        assert shown.stdout.count("  ready  GPU-fa4e0") == 3
        assert gpupool("query", "b", "x|a whole answer").stdout == "a whole answer\n"
        told = gpupool("leases").stdout
        assert [told.count(f"pool {name}, worker ") for name in ("a", "b")] == [2, 1]
        assert all(uuid_of(index) in told for index in range(3))
        assert "hush-hush" not in shown.stdout + told + done.stdout

        before = {worker["pid"] for worker in pool.workers()}
        gpupool.write({"models": {"a": a | {"served_model_name": "new"}, "b": b}})
        with Load(pool, 4, max_tokens=5) as load:
            wait_until(lambda: load.statuses[200] >= 4, 10, "the first answers")
            restarted = gpupool("restart", "a")
        assert restarted.returncode == 0, restarted.stderr
        assert load.faults == []
        assert set(load.statuses) == {200}
        assert not before & {worker["pid"] for worker in pool.workers()}
        assert gpupool("query", "new", "x|hello").stdout == "hello\n"

        everything = [pid for master in masters for pid in session_of(master)]
        assert len(everything) > 8  # two masters, three workers, three guardians, two GPU watches
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            answer = thread.submit(pool.infer, "ab", max_tokens=100)
            busy = wait_until(lambda: at_work(pool), 10, "a running request")
            os.kill(busy, signal.SIGSTOP)  # so that it is not over before the command looks
            told = stop_until_it_waits(gpupool, busy)
            assert answer.result() == ["ab" * 50]
        assert "a: waits for 1 request(s) in flight" in told
        assert not [pid for pid in everything if is_alive(pid)]
        assert gpupool.pools() == {}
        assert gpupool("leases").stdout.count("  free\n") == 3
        assert "Shutting down: Master" in gpupool("logs", "a").stdout


def at_work(pool: Pool) -> int | None:
    """The process of a worker that has a request."""
    return next((worker["pid"] for worker in pool.workers() if worker["inflight"]), None)


def stop_until_it_waits(gpupool: Commands, busy: int) -> str:
    """What `gpupool stop` prints; the worker goes on once the command says for what it waits."""
    with gpupool.start("stop") as stopping:
        assert stopping.stdout is not None
        lines = []
        for line in stopping.stdout:
            lines.append(line)
            if "waits for" in line:
                os.kill(busy, signal.SIGCONT)
        assert stopping.wait() == 0, lines
    return "".join(lines)


@pytest.fixture(scope="module", name="started")
def _started(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Commands, dict[str, Any], list[tuple[str, int]]]]:
    """A pool that two commands wanted to start at the same time, its settings, and their ends."""
    with Commands(tmp_path_factory.mktemp("started")) as gpupool:
        settings = scripted(workers=2, ready_quorum=2, api_key="old")
        gpupool.write(settings)
        both = [gpupool.start("run", "-f", gpupool.file) for _ in range(2)]
        yield gpupool, settings, [(p.communicate()[0], p.returncode) for p in both]


def test_of_two_runs_at_once_one_starts(
    started: tuple[Commands, dict[str, Any], list[tuple[str, int]]],
) -> None:
    _, _, ends = started
    assert [code for _, code in ends] == [0, 0]
    [told] = [out for out, _ in ends if "runs already" in out]
    assert told.startswith("pool: runs already (pid ")


def test_a_restart_that_fails_is_given_up_and_the_pool_serves_on(
    started: tuple[Commands, dict[str, Any], Any],
) -> None:
    """Also where the settings that failed have another key than the pool goes on with."""
    gpupool, settings, _ = started
    gpupool.write(settings | {"prot": 1})
    refused = gpupool("restart")
    assert refused.returncode == 2
    assert "'prot' is not a setting (did you mean 'port'?)" in refused.stderr
    gpupool.write(settings | {"workers": 3})
    fixed = gpupool("restart")
    assert fixed.returncode == 2
    assert "use `gpupool stop pool` and `gpupool run -f" in fixed.stderr
    gpupool.write(settings | {"api_key": "new", "engine_args": ["--no-such-argument"]})
    given_up = gpupool("restart")
    assert given_up.returncode == 1
    assert "the restart was given up: worker 0 failed with it" in given_up.stderr
    assert gpupool("query", "pool", "x|still here").stdout == "still here\n"  # with the old key


def test_logs_follow_one_worker(started: tuple[Commands, dict[str, Any], Any]) -> None:
    gpupool, settings, _ = started
    pool = gpupool.attached(settings["port"])
    pids = [worker["pid"] for worker in pool.workers(Authorization="Bearer old")]
    everything = gpupool("logs", "--lines", "0").stdout
    assert f"[{pids[0]}]" in everything
    assert f"[{pids[1]}]" in everything
    with gpupool.start("logs", "-f", "--worker", "1") as following:
        assert following.stdout is not None
        lines = [following.stdout.readline()]
        os.kill(pids[1], signal.SIGKILL)
        while f"pid={pids[1]} died; next in" not in lines[-1]:
            lines.append(following.stdout.readline())
            assert lines[-1], lines
        following.send_signal(signal.SIGINT)
        assert following.wait(10) == 0
    assert f"[{pids[0]}]" not in "".join(lines)


def test_a_start_that_is_refused_leaves_nothing_running(
    gpupool: Commands, started: tuple[Commands, dict[str, Any], Any]
) -> None:
    """All start or none: here the other pool's port is taken, by a pool that is not of this run."""
    port = started[1]["port"]
    slow = scripted(engine_args=["--load-s", "30"])
    gpupool.write({"models": {"a": slow, "b": scripted(port=port)}})
    done = gpupool("run", "-f", gpupool.file)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("gpupool: error: pool 'b' ended: --port (PORT) is")
    assert gpupool.pools() == {}
    assert gpupool.attached(port).get("/livez")[0] == 200
    with pytest.raises(OSError, match="refused"):
        gpupool.attached(slow["port"]).get("/livez")


def test_run_starts_what_does_not_run_and_a_killed_master_is_no_mystery(
    gpupool: Commands,
) -> None:
    gpupool.write({"models": {"a": scripted(), "b": scripted()}})
    gpupool.run("a")
    before = gpupool.master("a")
    done = gpupool.run()
    assert f"a: runs already (pid {before}, http://127.0.0.1:" in done.stdout
    assert {pool["state"] for pool in gpupool.pools().values()} == {"ready"}
    assert gpupool.master("a") == before
    taken = scripted(port=int(gpupool.pools()["a"]["url"].rpartition(":")[2]))
    other = gpupool.file.with_name("other.yaml")
    other.write_text(yaml.safe_dump(taken))
    refused = gpupool("run", "-f", other)
    assert refused.returncode == 2
    assert f"taken by pool a (master pid {before}); " in refused.stderr
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: not is_alive(before), 10, "the end of the master")
    assert gpupool.pools()["a"]["reason"] == (
        f"its master (pid {before}) ended without a word, as one that is killed does; gpupool "
        "logs a tells what was before"
    )
    for arguments in (("restart",), ("query", "a", "x|hello")):
        refused = gpupool(*arguments)
        assert refused.returncode == 2
        assert refused.stderr.startswith("gpupool: error: pool 'a' has ended; `gpupool run -f ")


def test_a_pool_that_can_never_be_ready_says_why(gpupool: Commands) -> None:
    gpupool.write(scripted(infer_type="tests.engines.refuses_to_load:RefusesToLoad"))
    done = gpupool("run", "-f", gpupool.file)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "no worker can ever be ready" in line


def test_stop_ends_exactly_what_run_started(gpupool: Commands) -> None:
    """A record's pid may be anybody's by now. And a master that hangs does not save its pool."""
    gpupool.write(scripted(graceful_timeout_s=1))
    gpupool.run()
    (record,) = gpupool.run_dir.glob("*/pool.json")
    written = json.loads(record.read_text())
    everything = session_of(written["pid"])
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        record.write_text(json.dumps(written | {"pid": bystander.pid}))
        assert gpupool("restart").returncode == 2
        stopped = gpupool("stop")
        assert (stopped.returncode, stopped.stdout) == (0, "pool: had ended already\n")
        assert bystander.poll() is None
        bystander.communicate(b"\n")
    assert bystander.returncode == 0
    assert all(map(is_alive, everything))

    record.write_text(json.dumps(written))
    settings = {"model_name": "M", "graceful_timeout_s": 1}
    record.with_name("settings.yaml").write_text(json.dumps(settings))
    os.kill(written["pid"], signal.SIGSTOP)
    done = gpupool("stop", "--timeout_s", "1")
    assert done.returncode == 0
    assert "did not end within 1 s and is killed" in done.stdout
    assert not [pid for pid in everything if is_alive(pid)]


def test_in_the_foreground_the_process_is_the_pool(gpupool: Commands) -> None:
    settings = scripted()
    gpupool.write(settings)
    with gpupool.start("run", "-f", gpupool.file, "--foreground") as process:
        pool = gpupool.attached(settings["port"])
        pool.process = process  # type: ignore[assignment]
        pool.wait_ready()
        assert gpupool.pools()["pool"]["pid"] == process.pid
        assert gpupool("stop").returncode == 0
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert "Shutting down: Master" in process.stderr.read()
