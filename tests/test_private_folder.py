"""The folders for Unix sockets that a killed worker leaves to its successor."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gpupool.engines.private_folder import PrivateFolder


def test_folder_is_for_this_user_alone() -> None:
    folder = PrivateFolder("gpupool-test-", longest_name=9)
    try:
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    finally:
        folder.remove()
    assert not folder.path.exists()


def test_folder_of_a_dead_process_is_removed_and_of_a_living_one_kept() -> None:
    script = (
        "from gpupool.engines.private_folder import PrivateFolder\n"
        "import os\n"
        "print(PrivateFolder('gpupool-test-', longest_name=9).path, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, env=environment
    )
    left = Path(done.stdout.strip())
    assert left.is_dir()
    living = PrivateFolder("gpupool-test-", longest_name=9)
    other = PrivateFolder("gpupool-test-", longest_name=9)
    try:
        assert not left.exists()
        assert living.path.is_dir()
    finally:
        living.remove()
        other.remove()


@pytest.mark.parametrize("depth", [20, 40, 50, 80])
def test_a_socket_with_the_longest_name_can_be_bound(
    monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "d" * depth)
    root = Path(tempfile.tempdir)
    root.mkdir()
    folder = PrivateFolder("gpupool-test-", longest_name=36)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(folder.path / ("n" * 36)))
    finally:
        folder.remove()
        root.rmdir()
