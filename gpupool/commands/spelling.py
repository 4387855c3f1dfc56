"""How flags are spelled on every command: with underscores or hyphens."""

from __future__ import annotations

from typing import Any

import typer


def flag(name: str, text: str, *more_spellings: str, **more: Any) -> Any:
    """An option by its name with underscores."""
    hyphens = name.replace("_", "-")
    spellings = dict.fromkeys((f"--{name}", f"--{hyphens}", *more_spellings))
    return typer.Option(*spellings, help=text, **more)
