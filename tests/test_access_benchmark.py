"""The access experiment: that its clients are answered, and what is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import access, report
from benchmarks.contender import Contender
from benchmarks.one_token import Asked
from benchmarks.rounds import median, ratios


@pytest.mark.server
def test_every_request_is_answered_and_has_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "NUM_REQUESTS", 100)
    start = access.start_pool(access.FLAGS["json"])
    with start(tmp_path, (0,)) as site:
        outcome = access.ask_all(Contender("json", "", (0,), 100, start), 0)(site)
    assert outcome.find_fault() is None
    assert outcome.count_tokens() == 100
    [log] = tmp_path.glob("pool-*.log")
    assert log.read_text().count('"message": "access"') == 100


def test_a_lost_answer_is_a_fault() -> None:
    assert Asked(1.0, 300, 300).find_fault() is None
    assert Asked(1.0, 300, 298, "why").find_fault() == "2 of 300 answers lost: why"


def sample(rate: int) -> dict[str, Any]:
    cpu = {"client_cpu_s": 0.5, "own_cpu_s": 1.0, "stolen_cpu_s": 0.0, "foreign_cpu_s": 0.0}
    return cpu | {"seconds": 2.0, "tokens": 2 * rate, "fault": None, "facts": {}}


def one_round(off: int, text: int, json: int) -> dict[str, Any]:
    samples = {"off": sample(off), "text": sample(text), "json": sample(json)}
    return {"load_average": [0.1, 0, 0], "idle_cpu_share": 0.0, "samples": samples}


def test_ratios_are_taken_within_a_round_and_their_median_is_told() -> None:
    rounds = [one_round(1000, 900, 800), one_round(2000, 1900, 1000), one_round(500, 400, 450)]
    measured = {"date": "d", "cpu": "c", "cores": 2, "memory_gib": 8, "versions": {"python": "3"}}
    text = access.render_section({"measured": measured, "rounds": rounds})
    assert "| `--access_log on` | 900 (400 to 1900) | 0.90 (0.80 to 0.95) |\n" in text
    assert (
        "| `--access_log on --log_format json` | 800 (450 to 1000) | 0.80 (0.50 to 0.90) |" in text
    )


def test_the_ratio_of_the_document_is_the_measured_one() -> None:
    result = report.load_results()[access.NAME]
    told = access.render_section(result)
    page = (report.ROOT / "docs" / "metrics.md").read_text()
    for name in ("text", "json"):
        ratio = f"{median(ratios(result, name, 'off')):.2f}"
        assert f"| {ratio} (" in told
        assert f"{ratio} times" in page
