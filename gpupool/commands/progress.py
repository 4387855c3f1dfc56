"""What a command that waits for pools prints meanwhile."""

from __future__ import annotations

import typer

from gpupool.pools.look import View


class Progress:
    """A line whenever a pool stands differently."""

    def __init__(self, what: str = "") -> None:
        self._what = what
        self._last: dict[str, str] = {}

    def show(self, views: list[View]) -> None:
        """One look."""
        for view in views:
            line = f"{view.record.name}: {self._what}{_summary(view)}"
            if self._last.get(view.record.name) != line and view.state != "ended":
                typer.echo(line)
            self._last[view.record.name] = line


def _summary(view: View) -> str:
    if view.is_ready:
        return f"ready, {view.num_ready} of {view.num_slots} worker(s), {view.record.url}"
    at = next((worker for worker in view.workers if worker["state"] == view.state), None)
    if at is None:
        return view.state
    # Without numbers that change with every look.
    told = [at["phase"], at["last_error"] and f"last error: {at['last_error']}"]
    return ", ".join([view.state, *filter(None, told)])
