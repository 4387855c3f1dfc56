"""Noticing that a client has left."""

from __future__ import annotations

import selectors
import socket
from contextlib import closing

from gpupool.disconnect import HangupWatcher


def test_a_number_that_another_connection_had_is_watched_anew() -> None:
    """A handler thread may have closed a connection before it is forgotten here."""
    gone: list[str] = []
    with closing(selectors.DefaultSelector()) as poller:
        watcher = HangupWatcher(poller)
        first, client = socket.socketpair()
        with client:
            watcher.watch(first, lambda: gone.append("the first"))
            number = first.fileno()
            first.close()
            second, other = socket.socketpair()
            with second:
                assert second.fileno() == number
                watcher.watch(second, lambda: gone.append("the second"))
                other.close()
                for key, _ in poller.select(5):
                    key.data(key.fileobj)
        watcher._epoll.close()
    assert gone == ["the second"]
