"""A whole pool for tests: start_gunicorn.sh as a user runs it, on a free port."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
VENV_BIN = ROOT / ".venv" / "bin"
SCRIPTED = ("--model_name", "M", "--infer_type", "tests.engines.scripted:ScriptedEngine")
# A killed test run must not leave a pool behind.
AT_OUR_END = ("setpriv", "--pdeathsig", "TERM")
# Passes a listening socket as systemd does: as descriptor 3, with the pid of what is executed.
ACTIVATE = """
(($0 == 3)) || exec 3<&"$0"-
LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment less every variable that is a setting."""
    ours = ("HF_MODEL_NAME", "PER_PROC_GPUS", "INFER_TYPE", "CUDA_VISIBLE_DEVICES", "PORT")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ours and not name.startswith("GPUPOOL_")
    }
    return kept | extra


def wait_until(
    condition: Callable[[], Any], deadline_s: float = 30.0, what: str = "the condition"
) -> Any:
    """The first true value of condition(); fails after the deadline."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come true within {deadline_s} s")


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


class Pool:
    """Starts a pool and ends it, with everything in its process tree; shows its log on failure.
    `command` is what the flags are given to."""

    def __init__(
        self,
        tmp_path: Path,
        *flags: str,
        env: dict[str, str] | None = None,
        limit_files: int | None = None,
        listener: socket.socket | None = None,
        command: tuple[str, ...] = ("bash", str(ROOT / "start_gunicorn.sh")),
        port: int | None = None,
    ) -> None:
        self._command = command
        self._limit = [] if limit_files is None else ["prlimit", f"--nofile={limit_files}"]
        self._passed = listener
        self.port = listener.getsockname()[1] if listener else port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = tmp_path / f"pool-{self.port}.log"
        self._flags = [*flags[: _before_engine(flags)], "--port", str(self.port)]
        self._flags += flags[_before_engine(flags) :]
        self._env = clean_environment(
            **{"GPUPOOL_LOCK_DIR": str(tmp_path / "leases")} | (env or {})
        )

    def __enter__(self) -> Pool:
        activate = [] if self._passed is None else ["bash", "-c", ACTIVATE, self._passed.fileno()]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*map(str, [*self._limit, *activate]), *AT_OUR_END, *self._command, *self._flags],
                env=self._env,
                pass_fds=() if self._passed is None else (self._passed.fileno(),),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        pids = self.pids()
        self.stop()
        for pid in pids:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        if kind is not None:
            print(f"--- log of the pool ---\n{self.log()}\n--- end of the log ---")

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def stop(self, number: int = signal.SIGTERM, deadline_s: float = 40.0) -> int:
        """Signal the master and wait for it; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def pids(self) -> list[int]:
        """The master and everything below it, guardians included."""
        import psutil

        try:
            master = psutil.Process(self.process.pid)
            return [master.pid, *(child.pid for child in master.children(recursive=True))]
        except psutil.NoSuchProcess:
            return []

    def wait_ready(self, workers: int = 1, deadline_s: float = 120.0, **headers: str) -> Pool:
        """Until so many workers are ready; fails at once if the master ends. A pool with keys
        tells their number to those with one."""

        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(
                    f"the pool ended with {self.process.returncode}:\n{self.log()}"
                )
            try:
                return int(self.get("/readyz", **headers)[1].get("ready", 0)) >= workers
            except OSError:
                return False

        try:
            wait_until(ready, deadline_s, f"{workers} ready worker(s)")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None
        return self

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        return self._ask(urllib.request.Request(self.url + path, headers=headers))

    def post(
        self, path: str, body: Any, timeout_s: float = 120.0, **headers: str
    ) -> tuple[int, Any]:
        """Status and parsed JSON of a POST; bytes are sent as they are."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | headers
        request = urllib.request.Request(self.url + path, raw, headers, method="POST")
        return self._ask(request, timeout_s)

    def infer(self, instances: Any, **params: Any) -> Any:
        """The answer's list; fails unless it is a 200."""
        status, answer = self.post("/infer", {"instances": instances, "params": params})
        assert status == 200, answer
        return answer

    def send_infer(self, instances: Any, **params: Any) -> socket.socket:
        """Ask and do not wait for the answer; the connection."""
        return self.send("/infer", {"instances": instances, "params": params})

    def send(self, path: str, body: dict[str, Any]) -> socket.socket:
        """POST and do not wait for the answer; the connection."""
        raw = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        client = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        client.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        return client

    def workers(self, **headers: str) -> list[dict[str, Any]]:
        return list(self.get("/pool", **headers)[1]["workers"])

    def _ask(self, request: urllib.request.Request, timeout_s: float = 30.0) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


def _before_engine(flags: tuple[str, ...]) -> int:
    """Where the engine's own arguments start."""
    return flags.index("--") if "--" in flags else len(flags)
