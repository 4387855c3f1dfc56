"""`python -m benchmarks`: run the experiments, print the tables, write results and document."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks import report, rounds
from benchmarks.experiments import EXPERIMENTS
from tests.demo_model import model_folder

ROUNDS = 7
QUIET_TIMEOUT_S = 60


def main() -> int:
    """The exit code: 1 when there was an invalid round, or too few that count."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument("--only", choices=EXPERIMENTS, help="default: all")
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
    if asked.rounds < 1:
        parser.error(f"--rounds is {asked.rounds}; at least one is needed")
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("the benchmarks need two cores, and this process may use only one")
    # The default action would leave the contenders running, and a background job of a shell
    # ignores SIGINT.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    model_folder()
    is_whole = True
    for name in [asked.only] if asked.only else EXPERIMENTS:
        with tempfile.TemporaryDirectory(prefix="gpupool-bench-") as folder:
            result = rounds.run(EXPERIMENTS[name], asked.rounds, Path(folder), asked.quiet_timeout)
        is_whole = is_whole and all(map(rounds.is_valid, result["rounds"]))
        is_whole = is_whole and sum(map(rounds.counts, result["rounds"])) >= asked.rounds
        if not asked.is_trial:
            report.write_result(result)
            report.DOCUMENT.write_text(report.render_document(report.load_results()))
        print(report.render_section(EXPERIMENTS[name], result))
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
