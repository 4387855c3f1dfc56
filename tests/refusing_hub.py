"""A Hugging Face hub that refuses every file, as the real one words it: X-Error-Code and status."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gpupool.hub import PROXIES

REFUSALS = {
    "GatedRepo": 403,
    "RepoNotFound": 404,
    "RevisionNotFound": 404,
    "EntryNotFound": 404,
}


@contextmanager
def refusing_hub(error_code: str, cache: Path, *, is_away: bool = False) -> Iterator[str]:
    """In this process the hub's client finds nobody else; yields the hub's address. Of a hub that
    is away nobody listens there, and only who asks for files all the same is refused."""

    class Refuses(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

        def do_HEAD(self) -> None:
            self.send_response(REFUSALS[error_code])
            self.send_header("X-Error-Code", error_code)
            self.send_header("X-Repo-Commit", "b" * 40)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    files = f"http://127.0.0.1:{server.server_port}"
    address = "http://127.0.0.1:9" if is_away else files
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in PROXIES:
                patch.delenv(name, raising=False)
            constants = "huggingface_hub.constants."
            template = files + "/{repo_id}/resolve/{revision}/{filename}"
            patch.setattr(f"{constants}ENDPOINT", address)
            patch.setattr(f"{constants}HUGGINGFACE_CO_URL_TEMPLATE", template)
            patch.setattr(f"{constants}HF_HUB_CACHE", str(cache))
            patch.setattr(f"{constants}HF_HUB_OFFLINE", False)
            yield address
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
