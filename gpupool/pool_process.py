"""Which processes are pools: by the titles that gunicorn gives them (preflight, the doctor).

Imports psutil inside functions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

TITLE = re.compile(r"gunicorn: (?:master|worker) \[gpupool (?:([A-Za-z0-9._-]+): )?")
"""With the name of a pool that `gpupool run` started. What follows is the model."""
CONFIGURATION = re.compile(r"(^|[/=:])gunicorn_conf(\.py)?$")


def is_pool(command_line: Sequence[str]) -> bool:
    """Whether a process is a gunicorn of ours: by the title that it gives itself, or by the program
    and our configuration file, where it could give none."""
    # A title that leaves one NUL of the arguments' room is taken for words by psutil.
    if TITLE.match(" ".join(command_line)):
        return True
    programs = [word.rpartition("/")[2] for word in command_line[:3]]
    return "gunicorn" in programs and any(map(CONFIGURATION.search, command_line))


def describe(pid: int) -> str:
    """` by pool NAME (master pid N)` where a process is one of a pool's, else nothing; without
    NAME where `gpupool run` did not start it. psutil.Error where the process is gone."""
    import psutil

    process = psutil.Process(pid)
    family = [process, *process.parents()]
    ours = [one for one in family if is_pool(one.cmdline())]
    if not ours:
        return ""
    master = ours[-1]
    found = TITLE.match(" ".join(master.cmdline()))
    name = f"pool {found[1]}" if found and found[1] else "another pool"
    return f" by {name} (master pid {master.pid})"
