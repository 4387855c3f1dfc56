"""The alerts and the dashboard ask for metrics, labels and states that the pool has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpupool.metrics import pool_families, render_families
from gpupool.scoreboard import STATES, Scoreboard
from gpupool.settings import Settings
from gpupool.vitals import GpuUse, Use
from tests.scrape import parse

DEPLOY = Path(__file__).parent.parent / "deploy"


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_a_full_pool_is_not_a_key_at_its_limit() -> None:
    [full] = [rule["expr"] for rule in alerts() if rule["alert"] == "GpupoolFull"]
    assert 'status="429", reason="full"' in full


def panels() -> list[dict[str, Any]]:
    board = json.loads((DEPLOY / "grafana" / "gpupool.json").read_text())
    return list(board["panels"])


def expressions() -> dict[str, str]:
    found = {rule["alert"]: rule["expr"] for rule in alerts()}
    for panel in panels():
        for target in panel["targets"]:
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    return found


def known_labels() -> dict[str, set[str]]:
    """Every sample name of a pool that knows everything, and its labels."""
    scoreboard = Scoreboard(1)
    scoreboard.claim(0)
    scoreboard[0].pid = scoreboard[0].slots = 1
    scoreboard[0].describe(gpus=("GPU-0",))
    scoreboard.vitals.publish(0, Use(1, (GpuUse(1, 1, 1, 1, 1),)), valid_s=60)
    found: dict[str, set[str]] = {}
    for name, labels in parse(render_families(pool_families(Settings(), scoreboard))):
        found.setdefault(name, set()).update(dict(labels))
    return found


@pytest.mark.parametrize(("title", "expression"), expressions().items(), ids=expressions())
def test_every_expression_asks_for_what_there_is(title: str, expression: str) -> None:
    known = known_labels()
    used = re.findall(r"\b(gpupool_\w+)(?:\{([^}]*)\})?", expression)
    assert used or expression.startswith("up{")
    for name, selectors in used:
        for label, wanted in re.findall(r'(\w+)=~?"([^"]*)"', selectors):
            assert label in known[name] | {"job", "instance"}, title
            assert label != "state" or wanted in STATES
        assert name in known, title
    for label in re.findall(r"\bby \(([^)]*)\)", expression):
        grouped = {"job", "instance", "le", "status", "reason", "state"}
        assert set(re.split(r", *", label)) <= grouped
    assert expression.count("(") == expression.count(")")


def test_alerts_say_where_and_how_bad() -> None:
    assert all({"severity"} <= set(rule["labels"]) for rule in alerts())
    assert all("$labels.instance" in rule["annotations"]["summary"] for rule in alerts())
    assert len({rule["alert"] for rule in alerts()}) == len(alerts())


def test_the_dashboards_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_scrape_configuration_names_the_alerts() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    for name in config["rule_files"]:
        assert (DEPLOY / "prometheus" / name).exists()
    [job] = config["scrape_configs"]
    assert job["job_name"] == "gpupool"
    assert "metrics_path" not in job  # the default is /metrics
