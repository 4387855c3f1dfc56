"""The rolling reload: which worker is replaced next (pure policy; used by the master).

The successor is forked first and waits for its predecessor's slice, so that somebody takes
connections at every moment; then the predecessor is told to end. A worker that serves is only
taken away while every other slot that can serve does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class SlotView:
    """One slot as the roll sees it; workers' states as on the scoreboard, "silent" for a ready one
    whose main loop hangs, None: no worker."""

    slot: int
    old: str | None = None  # the worker with the settings before
    is_old_told: bool = False  # to end
    new: str | None = None  # the worker with the new settings
    is_held: bool = False  # its back-off is not over: it gets no worker now
    is_stuck: bool = False  # its loads fail, or its GPUs are somebody else's: not waited for

    @property
    def is_serving(self) -> bool:
        """Whether the slot has a ready worker."""
        return "ready" in (self.old, self.new)


class Act(Enum):
    """What to do with one slot."""

    FORK = "fork its successor"
    RETIRE = "tell its old worker to end"


@dataclass(frozen=True, slots=True)
class Step:
    """The next thing to do."""

    act: Act
    slot: int


class Roll:
    """One reload of all slots, from the first fork to the last old worker's end."""

    def __init__(self) -> None:
        self.slot: int | None = None  # the one whose worker is being replaced
        self._is_awaited = False  # it served before: the next one keeps serving until it does again

    def next_step(self, views: Sequence[SlotView]) -> Step | None:
        """What to do now; None: nothing yet, or (see is_done) nothing any more."""
        if self.slot is not None:
            view = views[self.slot]
            if view.old is not None:
                return self._replace(view, views)
            if self._is_awaited and not view.is_serving:
                return None
            self.slot = None
        candidates = [view for view in views if view.old is not None and not view.is_old_told]
        # Those that do not serve cost nothing.
        candidates.sort(key=lambda view: view.is_serving)
        if not candidates or not _may_retire(candidates[0], views):
            return None
        self.slot, self._is_awaited = candidates[0].slot, False
        return self._replace(candidates[0], views)

    def is_done(self, views: Sequence[SlotView]) -> bool:
        """Whether every slot has its successor, as far as it can."""
        return self.slot is None and all(view.old is None for view in views)

    def _replace(self, view: SlotView, views: Sequence[SlotView]) -> Step | None:
        self._is_awaited |= view.old == "ready"
        if view.new is None:
            return None if view.is_held else Step(Act.FORK, view.slot)
        is_up = view.new in ("waiting", "loading", "ready")
        if view.is_old_told or not is_up or not _may_retire(view, views):
            return None
        return Step(Act.RETIRE, view.slot)


def _may_retire(view: SlotView, views: Sequence[SlotView]) -> bool:
    """Whether the slot's worker can go without a second one missing."""
    if view.old != "ready":
        return True
    return all(other.is_serving or other.is_stuck for other in views if other.slot != view.slot)
