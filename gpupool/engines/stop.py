"""Stop strings in a text that arrives piece by piece (pure; any thread, one at a time)."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Holds back text that may still become a stop string; lives as long as its sequence."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may go out, and whether a stop string ended it (it is not part of it)."""
        if not self._stops:
            return text, False
        pending = self._held + text
        found = [at for at in (pending.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self._held = ""
            return pending[: min(found)], True
        keep = max(_overlap(pending, stop) for stop in self._stops)
        cut = len(pending) - keep
        self._held = pending[cut:]
        return pending[:cut], False

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text are a beginning of the stop string."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
