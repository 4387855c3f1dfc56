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

import pytest

from tests.commands import Commands, scripted, session_of
from tests.machine import fake_machine, uuid_of
from tests.pool import SCRIPTED, Pool, is_alive, wait_until
from tests.server.load import Load

pytestmark = pytest.mark.server


@pytest.fixture(name="gpupool")
def _gpupool(tmp_path: Path) -> Iterator[Commands]:
    with Commands(tmp_path) as commands:
        yield commands


def test_a_users_path_from_run_to_stop(tmp_path: Path) -> None:
    """Two pools share three GPUs; a restart under load loses no request; stop leaves nothing."""
    with fake_machine(tmp_path, gpus=3) as machine, Commands(tmp_path, **machine.env()) as gpupool:
        slow = ["--token-s", "0.01"]
        a = scripted(workers=2, engine_args=slow)
        b = scripted(workers=1, api_key="hush-hush")
        gpupool.write({"models": {"a": a, "b": b}})

        done = gpupool.run()
        assert f"of 2 worker(s), http://127.0.0.1:{a['port']}" in done.stdout
        wait_until(lambda: gpupool.pools()["a"]["ready"] == 2, 20, "both workers of a")
        pools = gpupool.pools()
        assert {name: pool["state"] for name, pool in pools.items()} == {"a": "ready", "b": "ready"}
        held = [uuid for pool in pools.values() for w in pool["workers"] for uuid in w["gpus"]]
        assert sorted(held) == [uuid_of(index) for index in range(3)]

        shown = gpupool("status")
        assert shown.returncode == 0
        assert shown.stdout.count("  ready  GPU-fa4e0") == 3
        assert "hush-hush" not in shown.stdout + json.dumps(pools)

        answer = gpupool("query", "b", "x|a whole answer")
        assert (answer.returncode, answer.stdout) == (0, "a whole answer\n")

        told = gpupool("leases").stdout.splitlines()[1:]
        assert sorted(line.split("  ")[2].partition(",")[0] for line in told) == [
            "pool a",
            "pool a",
            "pool b",
        ]

        before = {w["pid"] for w in pools["a"]["workers"]}
        gpupool.write({"models": {"a": a | {"served_model_name": "new"}, "b": b}})
        with Load(gpupool.attached(a["port"]), 4, max_tokens=5) as load:
            wait_until(lambda: load.statuses[200] >= 4, 10, "the first answers")
            restarted = gpupool("restart", "a")
        assert restarted.returncode == 0, restarted.stderr
        assert load.faults == []
        assert set(load.statuses) == {200}
        assert not before & {w["pid"] for w in gpupool.pools()["a"]["workers"]}
        assert gpupool("query", "new", "x|hello").stdout == "hello\n"

        masters = [pool["pid"] for pool in pools.values()]
        everything = [pid for master in masters for pid in session_of(master)]
        assert len(everything) > 8  # two masters, three workers, three guardians, two GPU watches
        stopped = gpupool("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert not [pid for pid in everything if is_alive(pid)]
        assert gpupool.pools() == {}
        assert [line.split("  ")[2] for line in gpupool("leases").stdout.splitlines()[1:]] == [
            "free"
        ] * 3
        assert "Shutting down: Master" in gpupool("logs", "a").stdout


def test_a_start_that_is_refused_leaves_nothing_running(gpupool: Commands) -> None:
    with Pool(gpupool.run_dir.parent, *SCRIPTED) as other:
        other.wait_ready()
        b = scripted(port=other.port)
        gpupool.write({"models": {"a": scripted(engine_args=["--load-s", "30"]), "b": b}})
        done = gpupool("run", "-f", gpupool.file)
        assert done.returncode == 2
        [line] = done.stderr.splitlines()
        assert line.startswith("gpupool: error: pool 'b' ended: --port (PORT) is")
        assert gpupool.pools() == {}
        assert other.get("/livez")[0] == 200  # it was there before, and is not ours


def test_a_pool_that_can_never_be_ready_says_why(gpupool: Commands) -> None:
    gpupool.write(scripted(infer_type="tests.engines.refuses_to_load:RefusesToLoad"))
    done = gpupool("run", "-f", gpupool.file)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "no worker can ever be ready" in line


def test_of_two_runs_at_once_one_starts(gpupool: Commands) -> None:
    gpupool.write(scripted())
    both = [gpupool.start("run", "-f", gpupool.file) for _ in range(2)]
    ends = [(process.communicate()[1], process.returncode) for process in both]
    assert sorted(code for _, code in ends) == [0, 2]
    [refused] = [err for err, code in ends if code == 2]
    assert "pool 'pool' runs already (pid " in refused
    assert refused.count("\n") == 1


def test_a_recycled_pid_is_never_signalled(gpupool: Commands) -> None:
    """A record's pid may be anybody's by now: after a crash, and a million processes later."""
    gpupool.write(scripted())
    gpupool.run()
    (record,) = gpupool.run_dir.glob("*/pool.json")
    written = json.loads(record.read_text())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        os.kill(written["pid"], signal.SIGKILL)
        record.write_text(json.dumps(written | {"pid": bystander.pid}))
        assert gpupool.pools()["pool"]["state"] == "ended"
        assert gpupool("restart").returncode == 1
        assert gpupool("stop").returncode == 0
        assert bystander.poll() is None
        bystander.communicate(b"")
    assert bystander.returncode != -signal.SIGTERM


def test_a_master_that_does_not_end_is_killed_with_all_that_is_its(gpupool: Commands) -> None:
    gpupool.write(scripted(graceful_timeout_s=1))
    gpupool.run()
    pid = gpupool.pools()["pool"]["pid"]
    everything = session_of(pid)
    os.kill(pid, signal.SIGSTOP)
    done = gpupool("stop", "--timeout_s", "1")
    assert done.returncode == 0
    assert "did not end within 1 s and is killed" in done.stdout
    assert not [found for found in everything if is_alive(found)]


def test_stop_lets_requests_finish_and_says_for_what_it_waits(gpupool: Commands) -> None:
    settings = scripted(engine_args=["--token-s", "0.05"])
    gpupool.write(settings)
    gpupool.run()
    pool = gpupool.attached(settings["port"])
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        answer = thread.submit(pool.infer, "ab", max_tokens=40)
        wait_until(lambda: pool.workers()[0]["inflight"], 10, "a running request")
        done = gpupool("stop")
        assert answer.result() == ["ab" * 20]
    assert "waits for 1 request(s) in flight" in done.stdout


def test_a_restart_that_fails_is_given_up_and_the_pool_serves_on(gpupool: Commands) -> None:
    settings = scripted()
    gpupool.write(settings)
    gpupool.run()
    gpupool.write(settings | {"prot": 1})
    refused = gpupool("restart")
    assert refused.returncode == 2
    assert "'prot' is not a setting (did you mean 'port'?)" in refused.stderr
    gpupool.write(settings | {"workers": 2})
    fixed = gpupool("restart")
    assert fixed.returncode == 2
    assert "use `gpupool stop pool` and `gpupool run -f" in fixed.stderr
    gpupool.write(settings | {"engine_args": ["--no-such-argument"]})
    given_up = gpupool("restart")
    assert given_up.returncode == 1
    assert "the restart was given up: worker 0 failed with it" in given_up.stderr
    assert gpupool("query", "pool", "x|still here").stdout == "still here\n"


def test_in_the_foreground_the_process_is_the_pool(gpupool: Commands) -> None:
    gpupool.write(scripted())
    with gpupool.start("run", "-f", gpupool.file, "--foreground") as process:
        wait_until(
            lambda: gpupool.pools().get("pool", {}).get("state") == "ready", 30, "a ready pool"
        )
        assert gpupool.pools()["pool"]["pid"] == process.pid
        assert gpupool("stop").returncode == 0
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert "Shutting down: Master" in process.stderr.read()


def test_logs_follow_one_worker(gpupool: Commands) -> None:
    gpupool.write(scripted(workers=2, ready_quorum=2))
    gpupool.run()
    pids = [worker["pid"] for worker in gpupool.pools()["pool"]["workers"]]
    everything = gpupool("logs").stdout
    assert f"[{pids[0]}]" in everything
    assert f"[{pids[1]}]" in everything
    with gpupool.start("logs", "-f", "--worker", "1") as following:
        assert following.stdout is not None
        first = following.stdout.readline()
        os.kill(pids[1], signal.SIGKILL)
        lines = [first]
        while "died; next in 0 s" not in lines[-1]:
            lines.append(following.stdout.readline())
        following.send_signal(signal.SIGINT)
        assert following.wait(10) == 0
    assert f"[{pids[0]}]" not in "".join(lines)
