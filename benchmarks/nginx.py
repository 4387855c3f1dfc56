"""nginx with least_conn before one-worker stock servers, as a contender (driver).

What is usually put before several servers. Its binary is found by the variable NGINX, on PATH, or
where requirements/nginx.sh unpacks one; without it the contender is left out.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.contender import Start
from benchmarks.server import running
from benchmarks.site import Site, StepModel
from benchmarks.stock import KEEPALIVE_S, serve_stock
from tests.pool import ROOT, free_port

PLACES = ("/usr/sbin", str(ROOT / ".cache" / "nginx" / "usr" / "sbin"))
"""Besides PATH, where a user other than root has no sbin."""

# One process, so that it knows of all connections. The limits are lifted that would make it
# open new connections in the middle of a run.
CONFIGURATION = """\
daemon off;
worker_processes 1;
pid {folder}/nginx-{port}.pid;
error_log stderr;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000;
    keepalive_timeout {keepalive_s}s;
    upstream workers {{
        least_conn;
{servers}
        keepalive 1024;
        keepalive_requests 1000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            proxy_pass http://workers;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_read_timeout 600s;
        }}
    }}
}}
"""


def find_nginx() -> str | None:
    """The binary, if there is one."""
    path = os.pathsep.join((os.environ.get("PATH", ""), *PLACES))
    return os.environ.get("NGINX") or shutil.which("nginx", path=path)


def start_nginx(num_workers: int, model: StepModel, binary: str) -> Start[Site]:
    """So many servers of one worker each, and nginx before them."""

    @contextmanager
    def start(folder: Path, cores: tuple[int, ...]) -> Iterator[Site]:
        with ExitStack() as stack:
            servers = [
                stack.enter_context(serve_stock(folder, cores, 1, model))
                for _ in range(num_workers)
            ]
            port = free_port()
            path = folder / f"nginx-{port}.conf"
            path.write_text(write_configuration(folder, port, [server for server, _ in servers]))
            list_own = stack.enter_context(
                running(
                    [binary, "-c", str(path), "-p", str(folder)],
                    env={},
                    cores=cores,
                    ready_url=f"http://127.0.0.1:{port}/readyz",
                    log_path=folder / f"nginx-{port}.log",
                )
            )
            lists = [list_own, *(list_pids for _, list_pids in servers)]
            yield Site(f"http://127.0.0.1:{port}", lambda: [pid for one in lists for pid in one()])

    return start


def write_configuration(folder: Path, port: int, server_ports: list[int]) -> str:
    """nginx.conf before servers on these ports."""
    return CONFIGURATION.format(
        folder=folder,
        port=port,
        keepalive_s=KEEPALIVE_S,
        servers="\n".join(f"        server 127.0.0.1:{one};" for one in server_ports),
    )
