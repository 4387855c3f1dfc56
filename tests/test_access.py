"""The line that the log has of each request, and log lines as JSON."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator

import pytest

from gpupool.access import AccessLog
from gpupool.call import Call, History, Seen
from gpupool.clock import RequestClock
from gpupool.json_lines import JsonFormatter
from gpupool.totals import PoolTotals


@pytest.fixture(name="records")
def _records() -> Iterator[list[logging.LogRecord]]:
    found: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = found.append  # type: ignore[method-assign]
    log = logging.getLogger("gpupool.access")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield found
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


def call(**history: float) -> Call:
    found = Call(history=History(**history))  # type: ignore[arg-type]
    found.num_tokens, found.num_prompt_tokens = 7, 3
    return found


def test_a_request_is_one_line_with_all_there_is_to_know(records: list[logging.LogRecord]) -> None:
    asked = call()
    asked.history.seen = Seen("abc", "/infer", "10.0.0.7", "2bb80d53")
    asked.clock = RequestClock(PoolTotals(1)[0], asked.since)
    asked.clock.start_sequence().tick(1)
    AccessLog(2, is_on=True).write(asked, "/infer", 200, "abc")
    [record] = records
    fields = json.loads(JsonFormatter().format(record))
    assert fields["message"] == "access"
    assert (fields["id"], fields["route"], fields["status"]) == ("abc", "/infer", 200)
    assert (fields["prompt_tokens"], fields["generated_tokens"], fields["worker"]) == (3, 4, 2)
    assert 0 <= fields["queue_s"] <= fields["first_token_s"] <= fields["total_s"] < 10
    text = record.getMessage()
    assert text.startswith("access id=abc route=/infer status=200 prompt_tokens=3 ")
    assert text.endswith("worker=2 client=10.0.0.7 key=2bb80d53")
    assert (fields["client"], fields["key"]) == ("10.0.0.7", "2bb80d53")


def test_what_never_was_is_no_number(records: list[logging.LogRecord]) -> None:
    AccessLog(is_on=True).write(call(), "/infer", 429)
    assert "queue_s=- first_token_s=- " in records[0].getMessage()
    assert "client=- key=-" in records[0].getMessage()
    assert json.loads(JsonFormatter().format(records[0]))["queue_s"] is None


def test_probes_are_left_out_unless_they_are_refused(records: list[logging.LogRecord]) -> None:
    log = AccessLog(is_on=True)
    log.write(call(), "/readyz", 200)
    log.write(call(), "/readyz", 503)
    log.write(call(), "/metrics", 401)
    assert [record.getMessage().split()[3] for record in records] == ["status=401"]


def test_it_can_be_off(records: list[logging.LogRecord]) -> None:
    AccessLog().write(call(), "/infer", 200)
    assert not records


@pytest.mark.parametrize("route", ["/\x1b[2J", "/a b", "/é", "/" + "x" * 900])
def test_a_path_cannot_forge_or_flood_the_log(route: str, records: list[logging.LogRecord]) -> None:
    AccessLog(is_on=True).write(call(), route, 404)
    text = records[0].getMessage()
    assert text.isascii()
    assert text.isprintable()
    assert len(text) < 500


def test_an_exception_is_a_field() -> None:
    try:
        raise ValueError("x\ny")
    except ValueError:
        record = logging.LogRecord("a.b", logging.ERROR, "f", 1, "no %s", ("n",), sys.exc_info())
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["level"], line["logger"], line["message"]) == ("error", "a.b", "no n")
    assert line["exception"].endswith("ValueError: x\ny")
