"""What the master does beside its workers (master process)."""

from __future__ import annotations

from typing import Protocol


class Attendant(Protocol):
    """Such as telling systemd, or watching the GPUs."""

    def turn(self) -> None:
        """Once a second or more often, on the master's main loop; must not block or raise."""

    def stop(self) -> None:
        """The pool begins to end; the workers have not been told yet."""
