"""Starts and ends an HTTP server that is no pool of ours (driver)."""

from __future__ import annotations

import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.contender import on_cores
from tests.pool import ROOT, clean_environment, wait_until

LOAD_TIMEOUT_S = 300
STOP_TIMEOUT_S = 20
AT_OUR_END = ("setpriv", "--pdeathsig", "TERM")
"""A driver that is killed must not leave its servers behind."""
NO_GPUS = {"CUDA_VISIBLE_DEVICES": ""}
"""All contenders run on CPU cores, also where there are GPUs."""


@contextmanager
def running(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cores: Sequence[int],
    ready_url: str,
    log_path: Path,
) -> Iterator[Callable[[], list[int]]]:
    """Once `ready_url` answers 200, what lists the server's processes; ends them all."""
    with log_path.open("wb") as log, on_cores(cores):
        popen = subprocess.Popen(
            [*AT_OUR_END, *command],
            cwd=ROOT,
            env=clean_environment(PYTHONPATH=str(ROOT), **NO_GPUS, **env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process = psutil.Process(popen.pid)
    try:
        wait_until(lambda: _is_ready(popen, ready_url, log_path), LOAD_TIMEOUT_S, ready_url)
        yield lambda: [member.pid for member in list_tree(process)]
    finally:
        _end(popen, process)


def list_tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and everything below it."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_all(processes: Sequence[psutil.Process]) -> None:
    """SIGKILL those that are still the processes they were."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _is_ready(popen: subprocess.Popen[bytes], url: str, log_path: Path) -> bool:
    if popen.poll() is not None:
        log = log_path.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{popen.args!r} ended with {popen.returncode} while loading:\n{log}")
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _end(popen: subprocess.Popen[bytes], process: psutil.Process) -> None:
    everyone = list_tree(process)
    popen.terminate()
    try:
        popen.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()
    kill_all(everyone)
