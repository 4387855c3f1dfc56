"""How pools, workers and leases are shown, and what one word stands for a pool."""

from __future__ import annotations

import fcntl
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpupool import lockdir, note, procfs
from gpupool.gpus import Gpu
from gpupool.pools import leases
from gpupool.pools.look import View, has_last_word, key_of, look, state_of
from gpupool.pools.record import Record
from gpupool.pools.render import ago, as_data, rates_between, render
from gpupool.reload_journal import ReloadJournal
from gpupool.settings import Settings

RECORD = Record("a", 1, 2, "boot", "ns", "http://127.0.0.1:1", "/models/M", "/f", "now", {})


JSON = '{"time": 1, "level": "info", "logger": "x", "worker": 0, "message": "%s", "pid": %d}'


def worker(slot: int = 0, state: str = "ready", **fields: Any) -> dict[str, Any]:
    known = {"slot": slot, "state": state, "phase": "", "fraction": None, "for_s": 3.0}
    known |= {"estimate_s": None, "gpus": ["GPU-12345678-aaaa"], "slots": 4, "inflight": 1}
    known |= {"generated_tokens": 10, "restarts": 2, "last_error": "", "memory_bytes": 3 << 30}
    return known | fields


@pytest.mark.parametrize(
    ("lines", "is_told"),
    [
        (["[t] [7] [INFO] Shutting down: Master", "[t] [7] [INFO] no worker can ever be ready"], 1),
        (["[t] [8] [INFO] Worker exiting (pid: 8)"], 0),
        (["[t] [7] [INFO] worker 0 is ready", "[t] [8] [INFO] x", "of an engine"], 0),
        (["gpupool: error: --port is taken"], 1),
        (["Traceback", "ValueError: x"], 1),
        (
            ["gpupool: error: of old", "[t] [7] [INFO] Starting gunicorn 27", "[t] [8] [INFO] x"],
            0,
        ),
        ([JSON % ("x", 8)], 0),
        ([JSON % ("Shutting down: Master", 7), JSON % ("x", 8)], 1),
        ([], 1),
    ],
)  # fmt: skip
def test_a_log_that_ends_amid_its_workers_is_a_killed_masters(
    lines: list[str], is_told: int
) -> None:
    assert has_last_word(lines, 7) is bool(is_told)


@pytest.mark.parametrize(
    ("states", "quorum", "word"),
    [
        (["ready", "loading"], 1, "ready"),
        (["ready", "loading"], 2, "loading"),
        (["waiting", "failed"], 1, "waiting"),
        (["failed", "failed"], 1, "failed"),
        (["starting"], 1, "starting"),
        ([], 1, "starting"),
    ],
)
def test_a_pool_is_as_its_best_workers(states: list[str], quorum: int, word: str) -> None:
    assert state_of([worker(state=state) for state in states], quorum) == word


def test_a_pool_that_is_told_to_end_drains() -> None:
    assert state_of([worker()], 1, is_stopping=True) == "draining"


def test_a_worker_is_a_line() -> None:
    busy = worker(last_error="it died once", last_error_ago_s=372.0)
    shown = render([View(RECORD, "ready", workers=[busy])], {("a", 0): 41.6})
    head, _, line = shown.splitlines()
    assert head == "a: ready 1 of 1  http://127.0.0.1:1  M"
    cells = "0 ready GPU-12345678 3.0 GiB 1/4 42 2 last error (6 min ago): it died once"
    assert " ".join(line.split()) == cells


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(5.2, "5 s ago"), (59.9, "60 s ago"), (372, "6 min ago"), (7300, "2 h ago"), (2e5, "2 d ago")],
)
def test_how_long_ago_is_one_number(seconds: float, shown: str) -> None:
    assert ago(seconds) == shown


def test_a_loading_worker_says_what_it_is_at() -> None:
    loading = worker(state="loading", phase="reading weights", fraction=0.4, estimate_s=20)
    assert "reading weights, 40%, 3 of about 20 s" in render(
        [View(RECORD, "loading", workers=[loading])]
    )


def test_two_workers_of_a_slot_count_once() -> None:
    view = View(RECORD, "ready", workers=[worker(0, "draining"), worker(0), worker(1, "loading")])
    assert (view.num_slots, view.num_ready) == (2, 1)


def test_an_ended_pool_says_why() -> None:
    assert "  out of memory" in render([View(RECORD, "ended", "out of memory")])


def test_rates_are_tokens_between_two_looks() -> None:
    before = [View(RECORD, "ready", workers=[worker(0), worker(1, generated_tokens=5)])]
    after = [View(RECORD, "ready", workers=[worker(0, generated_tokens=30), worker(2)])]
    assert rates_between(before, after, 2.0) == {("a", 0): 10.0}
    (pool,) = as_data(after, {("a", 0): 10.0})["pools"]
    assert [found["tokens_per_s"] for found in pool["workers"]] == [10.0, None]


def test_a_key_is_one_that_is_written_somewhere(tmp_path: Path) -> None:
    assert key_of(Settings(api_key=("one", "two"))) == "one"
    assert key_of(Settings()) == ""
    file = tmp_path / "keys"
    file.write_text(f"# people\nsha256:{'a' * 64}\nplain\n")
    assert key_of(Settings(api_key_file=file)) == "plain"


def test_a_pool_that_ended_by_itself_is_told_by_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    monkeypatch.setenv("GPUPOOL_RUN_DIR", str(run_dir))
    (run_dir / "a").mkdir(parents=True)
    run_dir.chmod(0o700)
    log = "[2026] [1] [INFO] x\n[2026] [1] [ERROR] no worker can ever be ready: no model\n\n"
    (run_dir / "a" / "pool.log").write_text(log)
    view = look(replace(RECORD, boot_id=procfs.boot_id()))
    assert (view.state, view.reason) == ("ended", "no worker can ever be ready: no model")
    assert look(RECORD).reason == "this machine has been started anew since"


def test_who_holds_a_gpu_is_asked_of_its_lock(tmp_path: Path) -> None:
    """A note alone tells nothing: its writer may be gone, or the GPU given back."""
    gpus = [Gpu(index, f"GPU-{index}", "x", 1, 1) for index in range(3)]
    written = note.new_note(note.new_trace("t"), "M", "7-8", 5, ())
    for gpu in gpus[:2]:
        fd = note.open_note(tmp_path, gpu.uuid)
        assert fd is not None
        note.write_note(fd, written)
        os.close(fd)
    lockdir.prepare(tmp_path, gpus)
    other = lockdir.lock_path(tmp_path, "GPU-9")
    locks = lockdir.try_lock(
        {lockdir.lock_path(tmp_path, "GPU-1"): fcntl.LOCK_EX, other: fcntl.LOCK_EX}
    )
    try:
        found = leases.read_leases(tmp_path, gpus, {"7-8": "mine"})
    finally:
        locks.release()
    assert [(lease.gpu, lease.is_held) for lease in found] == [
        ("GPU-0", False),
        ("GPU-1", True),
        ("GPU-2", False),
        ("GPU-9", True),
    ]
    assert (found[1].pool, found[1].worker, found[1].pid) == ("mine", 5, os.getpid())
    shown = leases.render(found, tmp_path).splitlines()
    assert shown[1].split() == ["0", "GPU-0", "free"]
    assert "pool mine, worker 5, pid" in shown[2]
    assert f"pid {os.getpid()} (" in shown[4]  # no note: the kernel says which process


def test_reloads_have_numbers_and_ends() -> None:
    journal = ReloadJournal()
    assert journal.describe() == {"asked": 0, "ended": 0, "given_up": None}
    journal.ask()
    journal.ask()
    journal.end(1, "worker 0 failed ü" * 100)
    told = journal.describe()
    assert (told["asked"], told["ended"]) == (2, 1)
    assert str(told["given_up"]).startswith("worker 0 failed ü")
    journal.end(2, None)
    assert journal.describe() == {"asked": 2, "ended": 2, "given_up": None}
