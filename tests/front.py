"""A real nginx with a file of deploy/nginx, on ports of its own, before pools of ours."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.nginx import find_nginx
from tests.pool import AT_OUR_END, ROOT, Pool, free_port, wait_until

FOLDER = ROOT / "deploy" / "nginx"
MISSING = "no nginx here: run `bash requirements/nginx.sh`, or name one with NGINX=..."
# What a distribution's nginx.conf is around the file.
AROUND = """\
daemon off;
user {user};
worker_processes 2;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/gpupool.conf;
}}
"""


class Front:
    """Ends nginx when the block is left, and shows what it said if a test failed. What a test asks
    of a pool it asks of `client`, whose port is nginx's."""

    def __init__(self, folder: Path, example: str, *pool_ports: int) -> None:
        self._folder = folder
        self.client = Pool(folder, "--unused")
        self.log_path = folder / "gpupool.log"
        gates = [free_port() for _ in pool_ports]
        text = (FOLDER / example).read_text()
        text = text.replace("/var/log/nginx", str(folder))
        text = text.replace("listen 8080", f"listen 127.0.0.1:{self.client.port}")
        for stock, port in zip((5002, 5003), pool_ports, strict=False):
            text = text.replace(str(stock), str(port))
        for stock, port in zip((5902, 5903), gates, strict=False):
            text = text.replace(str(stock), str(port))
        text = text.replace("5901", str(free_port()))
        assert not re.search(r"\b(5002|5003|5901|5902|5903|8080)\b", text)
        (folder / "gpupool.conf").write_text(text)
        shutil.copy(FOLDER / "gpupool_proxy.conf", folder)
        self._conf = folder / "nginx.conf"
        self._conf.write_text(AROUND.format(user=getpass.getuser(), folder=folder))

    def check(self) -> subprocess.CompletedProcess[str]:
        """`nginx -t`."""
        return subprocess.run(
            [*self._command(), "-t"], capture_output=True, text=True, check=False, timeout=30
        )

    def _command(self) -> list[str]:
        binary = find_nginx()
        assert binary is not None, MISSING
        return [binary, "-c", str(self._conf), "-p", str(self._folder)]

    def __enter__(self) -> Front:
        self._errors = self._folder / "errors.log"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [*AT_OUR_END, *self._command()], stdout=errors, stderr=errors, env={**os.environ}
            )
        wait_until(self._listens, 10, f"nginx\n{self._errors.read_text()}")
        return self

    def _listens(self) -> bool:
        assert self._process.poll() is None, self._errors.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.client.port)) == 0

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._process.terminate()
        self._process.wait(20)
        if kind is not None:
            print(f"--- nginx ---\n{self._errors.read_text()}\n{self.log_path.read_text()}")
