"""What one check says (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's; with a fix where something is wrong."""

    name: str
    text: str
    fix: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether somebody has to do something."""
        return bool(self.fix)

    def as_data(self) -> dict[str, Any]:
        """For programs; `fix` is empty where nothing is wrong."""
        return {"name": self.name, "is_wrong": self.is_wrong, "text": self.text, "fix": self.fix}

    def render(self) -> str:
        """The line."""
        if not self.is_wrong:
            return f"ok     {self.name}: {self.text}"
        return f"WRONG  {self.name}: {self.text}; {self.fix}"
