"""The balance experiment's numbers as docs/balance.svg (driver, tests). Pure.

A panel per number of workers: the 99th percentile of the time to the first token by load, on a
logarithmic scale; a line goes through the medians of the rounds, a bar from lowest to highest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.balance_report import ideals_of, names_of, values_of
from benchmarks.rounds import counts, median

COLOURS = {"pool": "#0a7a5c", "stock": "#c4452f", "nginx": "#5b5bd6", "ideal": "#888888"}
INK, GRID, PAPER = "#333333", "#dddddd", "#ffffff"
PANEL_WIDTH, PANEL_HEIGHT = 220, 240
LEFT, TOP, GAP, BOTTOM = 60, 60, 24, 48
INSET = 30  # of the first and the last load from the panel's edges
SHIFT = 5  # between the contenders of one load, so that their bars can be told apart


@dataclass(frozen=True, slots=True)
class Scale:
    """From milliseconds to a height, by powers of ten."""

    low: int
    high: int

    def y(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return TOP + PANEL_HEIGHT * (1 - share)


def render(result: Mapping[str, Any]) -> str:
    """The whole picture; a scene without a round that counts is left out of it."""
    scenes = [scene for scene in result["scenes"] if any(map(counts, scene["rounds"]))]
    if not scenes:
        return ""
    sizes = sorted({scene["workers"] for scene in scenes})
    scale = _scale_of(scenes)
    width = LEFT + len(sizes) * (PANEL_WIDTH + GAP)
    height = TOP + PANEL_HEIGHT + BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        *_legend([*names_of(scenes[0]), "ideal"]),
    ]
    for index, size in enumerate(sizes):
        left = LEFT + index * (PANEL_WIDTH + GAP)
        own = [scene for scene in scenes if scene["workers"] == size]
        lines += _frame(left, f"{size} workers", [scene["load"] for scene in own], scale)
        lines += _ticks(scale) if index == 0 else []
        lines += _ideal(left, own, scale)
        for place, name in enumerate(names_of(scenes[0])):
            lines += _curve(left, own, name, (place - 1) * SHIFT, scale)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _scale_of(scenes: Sequence[Mapping[str, Any]]) -> Scale:
    values = [
        value
        for scene in scenes
        for name in names_of(scene)
        for value in values_of(scene, name, "ttft_ms", "99") + ideals_of(scene, "99")
    ]
    low = math.floor(math.log10(min(values)))
    return Scale(low, max(low + 1, math.ceil(math.log10(max(values)))))


def _x(left: float, loads: Sequence[float], index: int) -> float:
    step = (PANEL_WIDTH - 2 * INSET) / max(1, len(loads) - 1)
    return left + INSET + step * index


def _legend(names: Sequence[str]) -> Iterator[str]:
    yield _text(LEFT, 20, "99th percentile of the time to the first token, ms", weight="bold")
    x = LEFT + 340
    for name in names:
        yield f'<line x1="{x}" y1="16" x2="{x + 22}" y2="16" {_stroke(name)}/>'
        yield _text(x + 28, 20, name)
        x += 76


def _frame(left: float, title: str, loads: Sequence[float], scale: Scale) -> Iterator[str]:
    yield _text(left + PANEL_WIDTH / 2, TOP - 10, title, anchor="middle")
    for power in range(scale.low, scale.high + 1):
        y = scale.y(10.0**power)
        yield _line(left, y, left + PANEL_WIDTH, y)
    for index, load in enumerate(loads):
        x = _x(left, loads, index)
        yield _text(x, TOP + PANEL_HEIGHT + 18, f"{load:.0%}", anchor="middle")
    yield _text(left + PANEL_WIDTH / 2, TOP + PANEL_HEIGHT + 38, "load", anchor="middle")


def _ticks(scale: Scale) -> Iterator[str]:
    for power in range(scale.low, scale.high + 1):
        yield _text(LEFT - 8, scale.y(10.0**power) + 4, f"{10.0**power:g}", anchor="end")


def _ideal(left: float, scenes: Sequence[Mapping[str, Any]], scale: Scale) -> Iterator[str]:
    loads = [scene["load"] for scene in scenes]
    points = " ".join(
        f"{_x(left, loads, index):.1f},{scale.y(median(ideals_of(scene, '99'))):.1f}"
        for index, scene in enumerate(scenes)
    )
    yield f'<polyline points="{points}" fill="none" {_stroke("ideal")}/>'


def _curve(
    left: float, scenes: Sequence[Mapping[str, Any]], name: str, shift: float, scale: Scale
) -> Iterator[str]:
    points = []
    loads = [scene["load"] for scene in scenes]
    for index, scene in enumerate(scenes):
        values = values_of(scene, name, "ttft_ms", "99")
        x = _x(left, loads, index) + shift
        points.append((x, scale.y(median(values))))
        ends = f'y1="{scale.y(min(values)):.1f}" x2="{x:.1f}" y2="{scale.y(max(values)):.1f}"'
        yield f'<line x1="{x:.1f}" {ends} {_stroke(name)}/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    yield f'<polyline points="{path}" fill="none" {_stroke(name)}/>'
    for x, y in points:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{COLOURS[name]}"/>'


def _stroke(name: str) -> str:
    dashes = ' stroke-dasharray="5 4"' if name == "ideal" else ""
    return f'stroke="{COLOURS[name]}" stroke-width="2"{dashes}'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{GRID}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {place}>{text}</text>"
