"""Every check of `gpupool doctor`, when it is well and when it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpupool.doctor import facts
from gpupool.doctor.finding import Finding
from gpupool.doctor.machine import (
    Driver,
    check_driver,
    check_limits,
    check_lock_dir,
    check_ray,
    check_ray_nodes,
    check_shm,
)
from gpupool.doctor.models import Cache, check_cache, check_disk, check_versions
from gpupool.doctor.processes import (
    EngineProcess,
    check_fork,
    check_orphans,
    check_port,
    cuda_in,
)

GIB = 1 << 30
MASTER = ("python", "-m", "gunicorn", "--config", "/opt/gpupool/gunicorn_conf.py")
TITLE = ("gunicorn: worker [gpupool org/model]", "", "")
HOME = Cache("/home/x/hub", is_writable=True, free_bytes=100 * GIB)
FULL = Cache("/home/x/hub", is_writable=True, free_bytes=2 * GIB)
LOCKED = Cache("/root/hub", is_writable=False, free_bytes=100 * GIB)
NEEDED = ["gunicorn<28,>=27.0.1", "xxhash>=3", 'vllm<0.33,>=0.32; extra == "vllm"']
HAVE = {"gunicorn": "27.0.1", "xxhash": "3.1", "vllm": "0.32.0"}

WELL: dict[str, Callable[[], Finding]] = {
    "GPUs": lambda: check_driver(Driver(version="570.1", num_gpus=8)),
    "no GPUs": lambda: check_driver(Driver()),
    "shm": lambda: check_shm(16 * GIB, 15 * GIB, is_writable=True),
    "limits": lambda: check_limits(65536, 127000),
    "no limits": lambda: check_limits(-1, -1),
    "locks": lambda: check_lock_dir("/run/lock/gpupool", "", is_shared=True),
    "no ray": lambda: check_ray({}, 0.99, is_installed=False),
    "no ray, no nodes": lambda: check_ray_nodes({}, is_installed=False),
    "ray's nodes": lambda: check_ray_nodes({}, is_installed=True),
    "ray with room": lambda: check_ray({}, 0.5, is_installed=True),
    "ray at a higher mark": lambda: check_ray(
        {"RAY_memory_usage_threshold": "0.99"}, 0.93, is_installed=True
    ),
    "ray without": lambda: check_ray(
        {"RAY_memory_monitor_refresh_ms": "0"}, 0.99, is_installed=True
    ),
    "fork": lambda: check_fork(set(), {"a": set()}),
    "port": lambda: check_port("a", None, is_own=False),
    "own port": lambda: check_port("a", None, is_own=True),
    "engines": lambda: check_orphans([EngineProcess(2, "pid 2 (x)", ("bash", MASTER, "init"))]),
    "engines of a title": lambda: check_orphans([EngineProcess(2, "pid 2 (x)", (TITLE,))]),
    "engines of a long title": lambda: check_orphans(
        [EngineProcess(2, "pid 2 (x)", (TITLE[0].split(),))]
    ),
    "disk": lambda: check_disk(HOME, ["a/b"]),
    "small disk, nothing to fetch": lambda: check_disk(FULL, []),
    "cache": lambda: check_cache(HOME, {}, ["a/b"]),
    "offline with all models": lambda: check_cache(HOME, {"HF_HUB_OFFLINE": "1"}, []),
    "versions": lambda: check_versions((3, 11), NEEDED, HAVE),
    "without an extra": lambda: check_versions((3, 13), NEEDED, HAVE | {"vllm": "0.32.9"}),
}

WRONG: dict[str, tuple[Callable[[], Finding], str, str]] = {
    "mismatch": (
        lambda: check_driver(Driver(error="NVML: Driver/library version mismatch")),
        "mismatch",
        "reboot",
    ),
    "driver fails": (
        lambda: check_driver(Driver(error="NVML: Unknown Error")),
        "Unknown",
        "nvidia-smi",
    ),
    "a GPU fails": (
        lambda: check_driver(Driver("", "570", 8, ["GPU 3 (GPU-x): lost"])),
        "GPU 3 (GPU-x): lost",
        "--cuda_visible_devices",
    ),
    "docker's shm": (lambda: check_shm(64 << 20, 64 << 20, is_writable=True), "0.1", "--shm-size"),
    "shm is full": (lambda: check_shm(16 * GIB, 1 << 20, is_writable=True), "0.0 of 16.0", "ls -l"),
    "shm is closed": (lambda: check_shm(16 * GIB, GIB, is_writable=False), "cannot", "mount"),
    "few files": (lambda: check_limits(1024, -1), "1024 open files", "ulimit -Hn"),
    "few processes": (lambda: check_limits(-1, 512), "512 processes", "ulimit -Hu"),
    "no locks": (
        lambda: check_lock_dir("/x", "lock directory '/x': Permission denied", is_shared=False),
        "Permission denied",
        "mkdir -p /run/lock/gpupool",
    ),
    "locks of one's own": (
        lambda: check_lock_dir("/x", "", is_shared=False),
        "/x is closed to other users",
        "chmod 1777 /x",
    ),
    "ray's threshold is nonsense": (
        lambda: check_ray({"RAY_memory_usage_threshold": "95%"}, 0.1, is_installed=False),
        "'95%'",
        "0.99",
    ),
    "ray's checks are nonsense": (
        lambda: check_ray_nodes({"RAY_health_check_period_ms": "1s"}, is_installed=False),
        "'1s'",
        "RAY_health_check_period_ms=1000",
    ),
    "ray never checks": (
        lambda: check_ray_nodes({"RAY_health_check_failure_threshold": "0"}, is_installed=True),
        "'0'",
        "RAY_health_check_failure_threshold=3",
    ),
    "ray's period is nonsense": (
        lambda: check_ray({"RAY_memory_monitor_refresh_ms": "no"}, 0.1, is_installed=False),
        "'no'",
        "milliseconds",
    ),
    "ray is about to kill": (
        lambda: check_ray({}, 0.93, is_installed=True),
        "93% of the memory are used, it kills from 95% on",
        "RAY_memory_monitor_refresh_ms=0",
    ),
    "CUDA at Python's start": (
        lambda: check_fork({"libcuda.so"}, {}),
        "libcuda.so",
        ".pth file",
    ),
    "CUDA in a master": (
        lambda: check_fork(set(), {"a": {"libtorch"}, "b": set()}),
        "the master of a has libtorch",
        "gpupool stop a",
    ),
    "port taken": (
        lambda: check_port("a", "--port is 1: taken by nc (pid 3); stop that", is_own=False),
        "taken by nc (pid 3)",
        "stop that",
    ),
    "orphans": (
        lambda: check_orphans([EngineProcess(77, "pid 77 (VLLM)", ("systemd",))]),
        "1 without a worker: pid 77 (VLLM)",
        "kill 77, and where that does not help kill -9 77",
    ),
    "five orphans": (
        lambda: check_orphans([EngineProcess(n, f"pid {n} (x)", ()) for n in range(5)]),
        "5 without a worker: pid 0 (x), pid 1 (x), pid 2 (x), pid 3 (x), pid 4 (x)",
        "kill -9 0 1 2 3 4",
    ),
    "orphans of a pool": (
        lambda: check_orphans(
            [EngineProcess(7, "pid 7 (x)", (), "a"), EngineProcess(8, "pid 8 (x)", ())]
        ),
        "2 without a worker: pid 7 (x), pid 8 (x)",
        "gpupool stop a; kill 8, and",
    ),
    **{
        f"orphans below {shown}": (
            lambda words=words: check_orphans([EngineProcess(77, "pid 77 (x)", (words,))]),
            "1 without a worker",
            "kill -9 77",
        )
        for shown, words in {
            "an editor": ("vim", "/opt/gpupool/gunicorn_conf.py"),
            "a shell": ("bash", "-c", "tail -f gunicorn.log"),
            "another gunicorn": ("python", "-m", "gunicorn", "shop:app"),
            "its title": ("gunicorn: worker [shop:app]", ""),
            "nothing": (),
        }.items()
    },
    "disk is full": (lambda: check_disk(FULL, ["a/b"]), "2 GiB free", "HF_HOME"),
    "offline without the model": (
        lambda: check_cache(HOME, {"HF_HUB_OFFLINE": "1"}, ["a/b"]),
        "a/b is not there",
        "unset HF_HUB_OFFLINE",
    ),
    "cache is closed": (lambda: check_cache(LOCKED, {}, []), "cannot be written", "HF_HOME"),
    "old Python": (lambda: check_versions((3, 10), [], {}), "Python 3.10", "3.11"),
    "package is missing": (
        lambda: check_versions((3, 11), NEEDED, {"gunicorn": "27.0.1"}),
        "xxhash is missing",
        "pip install",
    ),
    "package is too new": (
        lambda: check_versions((3, 11), NEEDED, HAVE | {"gunicorn": "28.1"}),
        "gunicorn is 28.1, not <28,>=27.0.1",
        "pip install",
    ),
    "engine of another version": (
        lambda: check_versions((3, 11), NEEDED, HAVE | {"vllm": "0.31.2"}),
        "vllm is 0.31.2",
        "pip install",
    ),
}


@pytest.mark.parametrize("check", WELL.values(), ids=WELL.keys())
def test_what_is_well_needs_no_fix(check: Callable[[], Finding]) -> None:
    found = check()
    assert not found.is_wrong
    assert found.render().startswith("ok ")


@pytest.mark.parametrize(("check", "text", "fix"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_has_its_fix_on_the_same_line(
    check: Callable[[], Finding], text: str, fix: str
) -> None:
    found = check()
    assert found.is_wrong
    assert text in found.text
    assert fix in found.fix
    assert found.render() == f"WRONG  {found.name}: {found.text}; {found.fix}"


def test_libraries_are_found_in_a_process_memory() -> None:
    line = "7f00-7f01 r-xp 00000000 08:01 1 /usr/lib/{}\n"
    assert cuda_in(line.format("libcuda.so.570.1")) == {"libcuda.so"}
    assert cuda_in(line.format("python3.11")) == set()


def test_this_machine_can_be_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GPUPOOL_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("GPUPOOL_LOCK_DIR", str(tmp_path / "locks"))
    found = list(facts.examine(()))
    assert not [finding for finding in found if "cannot be looked at" in finding.text]
    assert len({finding.name for finding in found}) == len(found) == 11


def test_an_engine_whose_worker_is_gone_is_found() -> None:
    env = os.environ | {"GPUPOOL_LEASE": "of a dead worker"}
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE) as orphan:
        found = facts.orphans()
        orphan.communicate(b"\n")
    assert found.is_wrong
    assert str(orphan.pid) in found.fix.split()


PARENT = """
import os, setproctitle, subprocess, sys
setproctitle.setproctitle("gunicorn: worker [gpupool /models/" + "x" * 900 + "]")
env = os.environ | {"GPUPOOL_LEASE": "of a worker"}
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=env)
print(child.pid, flush=True)
input()
child.communicate(b"\\n")
"""


def test_a_worker_is_known_by_a_title_longer_than_its_arguments() -> None:
    """Such a title ends with one NUL, and psutil then takes each of its words for an argument:
    every engine of the pool was an orphan, to be killed."""
    import psutil

    env = {name: value for name, value in os.environ.items() if name != "SPT_NOENV"}
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdout is not None
        engine = int(worker.stdout.readline())
        words = psutil.Process(worker.pid).cmdline()
        found = facts.orphans()
        worker.communicate(b"\n")
    assert words[:2] == ["gunicorn:", "worker"]
    assert f"pid {engine} " not in found.text


def test_a_model_is_missing_until_it_is_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gpupool.pools.pool_file import read_pool_file

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    file = tmp_path / "pool.yaml"
    file.write_text("model_name: a/b\n")
    wanted = read_pool_file(file, {})
    assert facts.missing_models(wanted) == ["a/b"]
    (tmp_path / "hub" / "models--a--b" / "snapshots" / "1").mkdir(parents=True)
    assert facts.missing_models(wanted) == []


def test_ray_is_told_how_to_miss_a_dead_node_sooner_unless_it_does() -> None:
    soon = {
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "2000",
        "RAY_health_check_failure_threshold": "3",
    }
    assert all(
        f"{field}={value}" in check_ray_nodes({}, is_installed=True).text
        for field, value in soon.items()
    )
    told = check_ray_nodes(soon, is_installed=True).text
    assert "3 without an answer within 2000 ms, each 1000 ms after" in told
    assert "RAY_" not in told
