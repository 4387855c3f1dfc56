"""The `gpupool` command as a user types it, with a run directory and leases of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.pool import ROOT, Pool, clean_environment, free_port

TALKER = "tests.engines.talker:Talker"


class Started(subprocess.Popen[str]):
    """A command that runs; a test that fails ends it."""

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, error, trace)


class Commands:
    """Ends every pool that it started when the block is left."""

    def __init__(self, tmp_path: Path, **env: str) -> None:
        self.run_dir = tmp_path / "run"
        self.file = tmp_path / "pool.yaml"
        ours = {"GPUPOOL_RUN_DIR": str(self.run_dir), "GPUPOOL_LOCK_DIR": str(tmp_path / "leases")}
        self.env = clean_environment(**(ours | {"PYTHONPATH": str(ROOT)} | env))

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            for log in self.run_dir.glob("*/pool.log"):
                print(f"--- {log} ---\n{log.read_text(errors='replace')}")
        if any(self.run_dir.glob("*/pool.json")):
            self("stop")

    def __call__(self, *arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        with self.start(*arguments, stdin=subprocess.PIPE) as process:
            out, err = process.communicate(stdin, timeout=50)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, *arguments: object, stdin: int = subprocess.DEVNULL) -> Started:
        # Whoever runs the tests in the background has SIGINT ignored, which would be inherited.
        heeding = ["env", "--default-signal=INT"]
        return Started(
            [*heeding, sys.executable, "-m", "gpupool.cli", *map(str, arguments)],
            env=self.env,
            cwd=self.run_dir.parent,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def write(self, content: dict[str, Any]) -> None:
        self.file.write_text(yaml.safe_dump(content))

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Start the file's pools; fails unless they serve."""
        done = self("run", "-f", self.file, *arguments)
        assert done.returncode == 0, (done.stdout, done.stderr)
        return done

    def pools(self) -> dict[str, Any]:
        """What status tells, by the pools' names."""
        return {pool["name"]: pool for pool in json.loads(self("status", "--json").stdout)["pools"]}

    def master(self, name: str) -> int:
        """A pool's process, as its record says."""
        return int(json.loads((self.run_dir / name / "pool.json").read_text())["pid"])

    def attached(self, port: int) -> Pool:
        """A running pool's client."""
        pool = Pool(self.run_dir.parent, "--unused")
        pool.port, pool.url = port, f"http://127.0.0.1:{port}"
        return pool


def scripted(**settings: Any) -> dict[str, Any]:
    """Settings of a pool with the engine that talks."""
    return {"model_name": "M", "infer_type": TALKER, "port": free_port()} | settings


def session_of(pid: int) -> list[int]:
    """Every process of a session that runs."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.getsid(int(name)) == pid:
                state = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0]
                found += [int(name)] if state != "Z" else []
        except OSError:
            continue
    return found
