"""Mailboxes of a pool that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gpupool.mailbox import Mailboxes


@contextmanager
def open_mailboxes(count: int) -> Iterator[Mailboxes]:
    """So many; in a pool they end with the processes."""
    mailboxes = Mailboxes(count)
    yield mailboxes
    for sending, receiving in mailboxes._pairs:
        sending.close()
        receiving.close()
