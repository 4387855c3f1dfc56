"""The commands of the documentation, as a reader would type them."""

from __future__ import annotations

import re
from pathlib import Path

FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"\s+# ?[^\"]*$")
PROMPT = "$ "
OURS = ("gpupool ", "bash start_gunicorn.sh ", "python ", "make ")


def commands_of(document: Path) -> list[str]:
    """Every command in a fenced block, whole, in its order. A block without a language shows
    what is typed and what is answered: there a command has a prompt, or is one of ours."""
    found = []
    for language, block in FENCED.findall(document.read_text()):
        if language not in ("", "bash"):
            continue
        for command in _whole_lines(block.replace("\\\n", " ")):
            is_typed = command.startswith(PROMPT)
            if language or is_typed or command.startswith(OURS):
                found.append(command.removeprefix(PROMPT))
    return found


def _whole_lines(block: str) -> list[str]:
    """Lines; one whose quote is open goes on in the next."""
    lines: list[str] = []
    for line in filter(str.strip, block.splitlines()):
        if lines and lines[-1].count("'") % 2:
            lines[-1] += "\n" + line
        else:
            lines.append(COMMENT.sub("", line.strip()))
    return lines
