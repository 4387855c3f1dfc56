"""What one check says (pure)."""

from __future__ import annotations

from dataclasses import dataclass


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

    def render(self) -> str:
        """The line."""
        if not self.is_wrong:
            return f"ok     {self.name}: {self.text}"
        return f"WRONG  {self.name}: {self.text}; {self.fix}"
