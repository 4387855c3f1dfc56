"""Requests that wait at a sibling and get this worker's free slot (worker, main thread).

Every worker keeps those that came to it; by asking, all rooms together are one queue.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from gpupool.balancer import View, ask_whom
from gpupool.mailbox import Mailboxes, Message

ASK_AGAIN_S = 0.05
KEEP_SLOT_S = 0.2
"""So long a free slot is kept for a request that is to come from a sibling."""
DO_WITHOUT_S = 1.0
"""So long a worker looks after its own first when a sibling gave nothing: it may hang, and the
slots here must not stay empty for it."""


class Asking:
    """One worker's questions; one at a time."""

    def __init__(self, index: int, mailboxes: Mailboxes) -> None:
        self._index = index
        self._mailboxes = mailboxes
        self._asked = 0.0
        self._is_slot_kept = False
        self._do_without_until = 0.0

    def ask(self, own: View, siblings: Sequence[View]) -> None:
        """Slots are free here, and nobody waits for them here."""
        to = ask_whom(own, siblings)
        if to is not None and time.monotonic() - self._asked >= ASK_AGAIN_S:
            self._send(to, own.slots - own.load)

    def keeps_slot(self, since: float, own: View, siblings: Sequence[View]) -> bool:
        """Whether the first of this worker's own, who waits since then, leaves the free slot to
        one who waits longer elsewhere; that one is on its way then."""
        now = time.monotonic()
        if self._is_slot_kept and now - self._asked >= KEEP_SLOT_S:
            self.note_nothing()
        if now < self._do_without_until:
            return False
        to = ask_whom(own, siblings, since)
        if to is None:
            return False
        if not self._is_slot_kept and now - self._asked >= ASK_AGAIN_S:
            self._is_slot_kept = self._send(to, 1)
        return self._is_slot_kept

    def note_arrived(self) -> None:
        """A sibling sent a request."""
        self._asked = 0.0
        self._is_slot_kept = False

    def note_nothing(self) -> None:
        """A sibling had none left, or says nothing."""
        self._is_slot_kept = False
        self._do_without_until = time.monotonic() + DO_WITHOUT_S

    def _send(self, to: int, count: int) -> bool:
        self._asked = time.monotonic()
        return self._mailboxes.send(to, Message("ask", self._index, {"count": count}))
