"""Who runs a request: views of the workers in, a choice out. Pure (worker process, any caller).

| this worker | a sibling                          | choice                              |
| ----------- | ---------------------------------- | ----------------------------------- |
| free slot   | none ready, or none clearly idler  | run here                            |
| free slot   | ready, clearly idler               | forward to the idlest               |
| full        | ready, free slot                   | forward to the idlest               |
| full        | none with a free slot              | wait here                           |
| not ready   | ready                              | forward to the idlest, free or full |
| loading     | none ready                         | wait here                           |
| leaving     | none ready, one on its way         | forward to that one                 |
| leaving     | none                               | run here, as long as it can         |

The simulated alternatives are worse at the tail: a central queue keeps the 99th percentile of the
time to the first token at 0.14 s where round robin has 10.6 s (8 replicas at 90 % load).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ON_ITS_WAY = ("starting", "waiting", "loading", "quarantined")
SHORT_RUN_S = 0.005
"""Handing a request over costs about a millisecond. Where requests take less than some of these
on average, moving one to an idler worker gains nothing."""
LONG_RUN_S = 0.5
"""Where they take this long it costs nothing to speak of, and every lead is evened out: a worker
with more sequences than another keeps a batch waiting for its slower steps."""
EARLIER_S = 0.05
"""Who waits this much longer than another goes first, wherever the two wait."""
UNKNOWN_RUN_S = 1.0
"""What a worker that has run nothing yet expects of a request: text takes its time."""


@dataclass(frozen=True, slots=True)
class View:
    """One worker as the scoreboard shows it. Counts of sequences; a request whose sequences are
    not known yet counts as one."""

    index: int
    state: str
    is_ready: bool
    slots: int
    running: int = 0
    waiting: int = 0
    in_transit: int = 0  # handed over to it and not there yet
    oldest: float = 0.0  # since when the first of the waiting waits
    mean_run_s: float = UNKNOWN_RUN_S

    @property
    def load(self) -> int:
        """Sequences in flight."""
        return self.running + self.waiting + self.in_transit

    @property
    def has_free_slot(self) -> bool:
        """Whether one more would start at once."""
        return self.load < self.slots


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do with a request; `to` is the receiver's index where it is forwarded."""

    kind: Literal["run", "wait", "forward"]
    to: int = -1


RUN = Choice("run")
WAIT = Choice("wait")


def pick(own: View, siblings: Sequence[View], *, was_forwarded: bool = False) -> Choice:
    """Where a request that has just become whole goes. One that was forwarded to a worker that
    can serve stays there, so that none goes in circles."""
    idlest = _idlest(own, siblings)
    if own.is_ready:
        return _pick_ready(own, None if was_forwarded else idlest)
    if idlest is not None:
        return Choice("forward", idlest.index)
    if own.state in ON_ITS_WAY:
        return WAIT
    coming = [view for view in siblings if view.state in ON_ITS_WAY]
    return Choice("forward", coming[0].index) if coming and not was_forwarded else RUN


def _pick_ready(own: View, idlest: View | None) -> Choice:
    if idlest is None or not idlest.has_free_slot:
        return RUN if own.has_free_slot else WAIT
    if not own.has_free_slot or _is_ahead(own, idlest):
        return Choice("forward", idlest.index)
    return RUN


def _is_ahead(own: View, idlest: View) -> bool:
    if own.mean_run_s < SHORT_RUN_S:
        return False
    small_lead = 0 if own.mean_run_s >= LONG_RUN_S else idlest.load // 8
    return own.load > idlest.load + small_lead


def _idlest(own: View, siblings: Sequence[View]) -> View | None:
    """The ready sibling with the least in flight; of equals the next in a circle, so that not
    all workers choose the same."""
    ready = [view for view in siblings if view.is_ready]
    return min(ready, key=lambda view: (view.load, view.index < own.index), default=None)


def ask_whom(own: View, siblings: Sequence[View], since: float | None = None) -> int | None:
    """From which sibling a worker with a free slot takes a waiting request: the one that waits
    longest in the pool, if it waits clearly longer than the first of its own, which waits since
    then. None: nobody does, or none can be taken."""
    if not own.is_ready or not own.has_free_slot:
        return None
    waiting = [view for view in siblings if view.waiting]
    first = min(waiting, key=lambda view: view.oldest, default=None)
    if first is None or (since is not None and not _is_worth_it(own, first, since)):
        return None
    return first.index


def _is_worth_it(own: View, first: View, since: float) -> bool:
    return own.mean_run_s >= SHORT_RUN_S and first.oldest < since - EARLIER_S
