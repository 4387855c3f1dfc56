"""What the replicas tell of themselves, as one answer of the pool."""

from __future__ import annotations

import json
from typing import Any

from gpupool.ray_pool.control import join
from gpupool.ray_pool.flask_call import Reply


def told(body: Any, status: int = 200) -> Reply:
    text = body if isinstance(body, str) else json.dumps(body)
    return Reply(status, [(b"content-type", b"application/json")], text.encode())


def worker(slot: int, state: str = "ready") -> dict[str, Any]:
    return {"slot": slot, "state": state}


def test_pool_has_every_replica_by_rank() -> None:
    replies = [told({"model": "M", "workers": [worker(slot)]}) for slot in (1, 0)]
    found = json.loads(join("/pool", replies).body)
    assert found == {"model": "M", "workers": [worker(0), worker(1)]}


def test_ready_as_soon_as_one_is() -> None:
    replies = [
        told({"status": "not ready", "ready": 0, "workers": [worker(0, "draining")]}, 503),
        told({"status": "ready", "ready": 1, "workers": [worker(1)]}),
    ]
    reply = join("/readyz", replies)
    assert reply.status == 200
    body = json.loads(reply.body)
    assert (body["status"], body["ready"], len(body["workers"])) == ("ready", 1, 2)


def test_who_has_no_key_is_told_no_more_than_by_one() -> None:
    reply = join("/readyz", [told({"status": "ready"})] * 2)
    assert json.loads(reply.body) == {"status": "ready"}


def test_a_refusal_is_the_answer() -> None:
    assert join("/pool", [told({"error": 1}, 401)] * 2).status == 401


def test_what_is_said_of_a_metric_stands_once_before_all_its_samples() -> None:
    texts = [
        f'# HELP a b\n# TYPE a counter\na{{worker="{i}"}} 1\n# TYPE c gauge\nc{{worker="{i}"}} 2\n'
        for i in range(2)
    ]
    lines = join("/metrics", [told(text) for text in texts]).body.decode().splitlines()
    assert lines == [
        "# HELP a b",
        "# TYPE a counter",
        'a{worker="0"} 1',
        'a{worker="1"} 1',
        "# TYPE c gauge",
        'c{worker="0"} 2',
        'c{worker="1"} 2',
    ]
