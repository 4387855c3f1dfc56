"""The replicas' own answers to a control route as the pool's one answer (pure; Serve's proxy)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from gpupool.outgoing import render_json
from gpupool.ray_pool.flask_call import Reply

READY_PATHS = ("/readyz", "/health")
OF_FAMILY = re.compile(r"# (?:HELP|TYPE) (\S+)")


def join(path: str, replies: Sequence[Reply]) -> Reply:
    """One answer of several; at least one is given."""
    if path in READY_PATHS:
        return _join_ready(replies)
    refused = next((reply for reply in replies if reply.status != 200), None)
    if refused is not None:
        return refused
    if path == "/pool":
        return _with_json(replies[0], _join_workers([_read(reply) for reply in replies]))
    if path == "/metrics":
        text = _join_metrics([reply.body.decode() for reply in replies])
        return Reply(200, replies[0].headers, text.encode())
    return replies[0]


def _join_ready(replies: Sequence[Reply]) -> Reply:
    """Ready as soon as one is."""
    best = next((reply for reply in replies if reply.status == 200), replies[0])
    bodies = [_read(reply) for reply in replies]
    body = _read(best)
    if "workers" in body:
        body = _join_workers([body, *(other for other in bodies if other != body)])
        body["ready"] = sum(other.get("ready", 0) for other in bodies)
    return _with_json(best, body)


def _join_workers(bodies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    workers = [worker for body in bodies for worker in body["workers"]]
    return bodies[0] | {"workers": sorted(workers, key=lambda worker: int(worker["slot"]))}


def _join_metrics(texts: Sequence[str]) -> str:
    """What is said of a metric stands before its samples, once."""
    families: dict[str, list[str]] = {}
    for text in texts:
        name = ""
        for line in text.splitlines():
            if (header := OF_FAMILY.match(line)) is not None:
                name = header[1]
            families.setdefault(name, []).append(line)
    return "".join(f"{line}\n" for lines in families.values() for line in dict.fromkeys(lines))


def _read(reply: Reply) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(reply.body)
    return found


def _with_json(reply: Reply, body: dict[str, Any]) -> Reply:
    return Reply(reply.status, reply.headers, render_json(body))
