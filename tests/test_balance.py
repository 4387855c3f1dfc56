"""The balance experiment: its servers, and what is told of it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import balance, balance_report, nginx, plot, report
from benchmarks.contender import Start
from benchmarks.open_loop import Arrival, offer
from benchmarks.rounds import counts
from benchmarks.site import Site, StepModel, start_pool
from benchmarks.stock import start_stock

QUICK = StepModel("benchmarks.step_engine:StepEngine", step_s=0.002, batch_cost=16, slots=2)


@pytest.mark.server
@pytest.mark.parametrize("start", [start_pool, start_stock], ids=["pool", "stock"])
def test_a_server_answers_every_client_from_its_workers(start: Any, tmp_path: Path) -> None:
    start_two: Start[Site] = start(2, QUICK)
    with start_two(tmp_path, (0,)) as site:
        found = offer(site, [Arrival(index / 100, 40) for index in range(40)], 2)
    assert found.find_fault() is None
    assert min(found.facts()["tokens_by_worker"]) > 0


def test_nginx_has_all_servers_and_keeps_their_connections() -> None:
    text = nginx.write_configuration(Path("/tmp/x"), 1000, [1001, 1002])
    assert "server 127.0.0.1:1001;\n        server 127.0.0.1:1002;" in text
    assert text.count("least_conn;") == text.count("keepalive 1024;") == 1
    assert text.count("{") == text.count("}") == 5


def test_without_nginx_the_others_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(nginx, "PLACES", ())
    monkeypatch.delenv("NGINX", raising=False)
    assert nginx.find_nginx() is None
    assert [c.name for c in balance.contenders_of(2, None, (0,))] == ["pool", "stock"]


# What is told.


def sample(ttft_ms: float, rate: float, fault: str | None = None) -> dict[str, Any]:
    cpu = {"client_cpu_s": 0.5, "own_cpu_s": 1.0, "stolen_cpu_s": 0.0, "foreign_cpu_s": 0.0}
    facts = {
        "requests": 100,
        "ttft_ms": {"50": 5, "90": ttft_ms / 2, "99": ttft_ms},
        "latency_ms": {"50": 50, "99": 500},
        "tokens_by_worker": [90, 30, 30, 30],
    }
    return cpu | {"seconds": 2.0, "tokens": 2 * rate, "fault": fault, "facts": facts}


def rounds_of(*pairs: tuple[dict[str, Any], dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"load_average": [0.5, 0, 0], "idle_cpu_share": 0, "samples": {"pool": own, "stock": other}}
        for own, other in pairs
    ]


RESULT = {
    "measured": {"date": "D", "cpu": "C", "cores": 2, "memory_gib": 1, "versions": {"x": "1"}},
    "model": {"step_s": 0.008, "batch_cost": 16, "slots": 8},
    "run_s": 6.0,
    "scenes": [
        {
            "workers": 4,
            "load": 0.9,
            "rounds": rounds_of(
                (sample(100, 1), sample(1000, 1)),
                (sample(300, 1), sample(1200, 1)),
                (sample(200, 1), sample(1600, 1)),
                (sample(1, 1, "1 of 9 answers lost"), sample(9000, 1)),
            ),
            "ideal_ttft_ms": [{"50": 4, "90": 50, "99": x} for x in (60, 80, 70, 1)],
        }
    ],
    "overhead": [
        {"clients": 1, "rounds": rounds_of((sample(1, 100), sample(1, 200)))},
        {
            "clients": 16,
            "rounds": rounds_of((sample(1, 90), sample(1, 100)), (sample(1, 50), sample(1, 100))),
        },
    ],
}


def section() -> str:
    return balance_report.render_section(RESULT)


def test_a_row_shows_percentiles_the_busiest_worker_and_the_cost() -> None:
    row = "| 4 | 90% | `pool` | 5 | 100 | 200 (100 to 300) | 50 | 500 | 2.00 | 10.0 |\n"
    assert row in section()


def test_ratios_of_a_scene_are_taken_within_a_round() -> None:
    assert "| 4 | 90% | `stock` | 0.12 (0.10 to 0.25) | 0.12 (0.10 to 0.25) |\n" in section()


def test_an_invalid_round_of_a_scene_counts_for_nobody_and_is_told() -> None:
    assert "9000" not in section()
    assert "1 of 9 answers lost" in section()


def test_the_goal_is_of_all_clients_and_judged_by_the_median() -> None:
    assert "| 1 | 0.50 (0.50 to 0.50) |  |  |\n" in section()
    assert "| 16 | 0.70 (0.50 to 0.90) | 0.7 | met |\n" in section()


def test_a_missing_nginx_is_told() -> None:
    assert "nginx is not among the contenders" in section()


def test_the_plot_goes_through_the_medians_of_the_rounds_that_count() -> None:
    root = ElementTree.fromstring(plot.render(RESULT))
    space = "{http://www.w3.org/2000/svg}"
    heights = [float(one.attrib["cy"]) for one in root.iter(f"{space}circle")]
    # 200 and 1200 ms, where 10 ms is at the lower edge and 10000 ms at the upper one.
    scale = plot.Scale(1, 4)
    assert heights == [round(scale.y(200), 1), round(scale.y(1200), 1)]


def test_the_ideal_of_the_rounds_that_count_is_shown() -> None:
    assert "| 4 | 90% | ideal | 4 | 50 | 70 (60 to 80) |  |  |  |  |\n" in section()


def test_the_ideal_plot_is_dashed() -> None:
    assert plot.render(RESULT).count("stroke-dasharray") == 2  # the legend's and the one panel's


def committed() -> list[dict[str, Any]]:
    """None, or one."""
    return [one for name, one in report.load_results().items() if name == balance.NAME]


def test_committed_numbers_are_of_the_scenes_as_they_are_now() -> None:
    for result in committed():
        scenes = [(scene["workers"], scene["load"]) for scene in result["scenes"]]
        assert scenes == [(size, share) for size in balance.WORKERS for share in balance.LOADS]
        assert [one["clients"] for one in result["overhead"]] == list(balance.CLIENTS)
        assert result["model"] == asdict(balance.MODEL)
        assert result["run_s"] == balance.RUN_S


def test_committed_scenes_have_three_rounds_or_more_that_count() -> None:
    for result in committed():
        for series in balance.series_of(result):
            assert sum(map(counts, series)) >= balance.NUM_ROUNDS


def test_there_is_a_plot_if_there_are_numbers_and_it_shows_them() -> None:
    plots = [report.PLOT.read_text()] if report.PLOT.exists() else []
    assert plots == [plot.render(result) for result in committed()]
