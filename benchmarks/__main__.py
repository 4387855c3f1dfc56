"""`python -m benchmarks`: run the experiments, print the tables, write results and document."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import access, balance, launchers, report, rounds, streams
from benchmarks.experiments import EXPERIMENTS
from benchmarks.report import NAMES
from tests.demo_model import model_folder

ROUNDS = 7
QUIET_TIMEOUT_S = 60

OWN: dict[str, Any] = {one.NAME: one for one in (balance, streams, access, launchers)}
"""Experiments that are no comparison of whole batches; some have several scenes."""


def main() -> int:
    """The exit code: 1 when there was an invalid round, or too few that count."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"{balance.NAME} takes nginx from PATH or from the variable NGINX, if it is there",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        help=f"default: {ROUNDS}; "
        + ", ".join(f"of {name}: {own.NUM_ROUNDS}" for name, own in OWN.items()),
    )
    parser.add_argument("--only", choices=NAMES, help="default: all")
    parser.add_argument(
        "--quiet-timeout",
        type=float,
        default=QUIET_TIMEOUT_S,
        metavar="S",
        help=f"wait so long for a quiet machine before each run; default: {QUIET_TIMEOUT_S}",
    )
    parser.add_argument(
        "--try", action="store_true", dest="is_trial", help="print the tables and write nothing"
    )
    asked = parser.parse_args()
    if asked.rounds is not None and asked.rounds < 1:
        parser.error(f"--rounds is {asked.rounds}; at least one is needed")
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("the benchmarks need two cores, and this process may use only one")
    # The default action would leave the contenders running, and a background job of a shell
    # ignores SIGINT.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    is_whole = True
    for name in [asked.only] if asked.only else NAMES:
        result, is_complete = measure(name, asked.rounds, asked.quiet_timeout)
        is_whole = is_whole and is_complete
        if not asked.is_trial:
            report.write_result(result)
            report.write_documents()
        print(report.render(name, result))
    return 0 if is_whole else 1


def measure(
    name: str, num_rounds: int | None, quiet_timeout_s: float
) -> tuple[dict[str, Any], bool]:
    """The raw numbers, and whether there are enough rounds that count and none is invalid."""
    with tempfile.TemporaryDirectory(prefix="gpupool-bench-") as folder:
        own = OWN.get(name)
        num_rounds = num_rounds or (own.NUM_ROUNDS if own else ROUNDS)
        if own:
            result = own.run(num_rounds, Path(folder), quiet_timeout_s)
            series = own.series_of(result)
        else:
            model_folder()
            result = rounds.run(EXPERIMENTS[name], num_rounds, Path(folder), quiet_timeout_s)
            series = [result["rounds"]]
    return result, all(
        all(map(rounds.is_valid, one)) and sum(map(rounds.counts, one)) >= num_rounds
        for one in series
    )


if __name__ == "__main__":
    sys.exit(main())
