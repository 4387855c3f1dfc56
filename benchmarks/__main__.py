"""`python -m benchmarks`: run the experiments, print the tables, write results and document."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import access, balance, report, rounds, streams
from benchmarks.experiments import EXPERIMENTS
from benchmarks.report import NAMES
from tests.demo_model import model_folder

ROUNDS = 7
QUIET_TIMEOUT_S = 60


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
        help=f"default: {ROUNDS}; of each scene of {balance.NAME}: {balance.NUM_ROUNDS}, "
        f"of {streams.NAME}: {streams.NUM_ROUNDS}, of {access.NAME}: {access.NUM_ROUNDS}",
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
        if name == balance.NAME:
            num_rounds = num_rounds or balance.NUM_ROUNDS
            result = balance.run(num_rounds, Path(folder), quiet_timeout_s)
            series = balance.series_of(result)
        elif name == streams.NAME:
            num_rounds = num_rounds or streams.NUM_ROUNDS
            result = streams.run(num_rounds, Path(folder), quiet_timeout_s)
            series = streams.series_of(result)
        elif name == access.NAME:
            num_rounds = num_rounds or access.NUM_ROUNDS
            result = access.run(num_rounds, Path(folder), quiet_timeout_s)
            series = [result["rounds"]]
        else:
            num_rounds = num_rounds or ROUNDS
            model_folder()
            result = rounds.run(EXPERIMENTS[name], num_rounds, Path(folder), quiet_timeout_s)
            series = [result["rounds"]]
    return result, all(
        all(map(rounds.is_valid, one)) and sum(map(rounds.counts, one)) >= num_rounds
        for one in series
    )


if __name__ == "__main__":
    sys.exit(main())
