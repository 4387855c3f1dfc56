"""The `gpupool` command (a process of its own): puts the commands of gpupool/commands/ together.

Flags are spelled as those of start_gunicorn.sh, with underscores or hyphens. Imports no torch and
no engine, and of the commands only the one that is asked for.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from gpupool import __version__
from gpupool.engine_flags import KNOWN
from gpupool.errors import ConfigError
from gpupool.refusal import ERROR, EXIT_REFUSED

EXIT_INTERRUPTED = 130

EXAMPLES = {
    "run": "gpupool run -f examples/demo.yaml",
    "stop": "gpupool stop",
    "status": "gpupool status --watch",
    "restart": "gpupool restart small",
    "logs": "gpupool logs -f small --worker 0",
    "query": 'gpupool query small "Name three fruits." --temperature 0',
    "leases": "gpupool leases",
    "doctor": "gpupool doctor -f examples/demo.yaml",
    "plan": "gpupool plan --model_name Qwen/Qwen2.5-7B-Instruct",
    "import": "gpupool import serve.yaml -o pool.yaml",
    "schema": "gpupool schema -o pool.schema.json",
}
"""Every command: gpupool/commands/NAME.py has a function of this name."""

MODULES = {"import": "import_file"}
"""Where NAME is a word of Python's own."""

CODES = "exit codes: 0 done, 1 the answer is no, 2 refused (one line says why), 130 Ctrl-C"


def build(names: Sequence[str] = tuple(EXAMPLES)) -> typer.Typer:
    """The command line with these commands."""
    app = typer.Typer(
        context_settings={"help_option_names": ["-h", "--help"]},
        invoke_without_command=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # its tables cut the names of flags
        epilog=CODES,
    )
    app.callback()(_help)
    for name in names:
        module = MODULES.get(name, name)
        command = getattr(import_module(f"gpupool.commands.{module}"), module)
        app.command(name, epilog=f"example: {EXAMPLES[name]}")(command)
    return app


def _help(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    """One model on every GPU of a machine, or several, from the command line."""
    if version:
        typer.echo(f"gpupool {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line; what cannot be is one line on stderr and exit 2."""
    asked = sys.argv[1:2]
    app = build(asked if asked and asked[0] in EXAMPLES else tuple(EXAMPLES))
    try:
        code = app(prog_name="gpupool", standalone_mode=False)
    except ConfigError as error:
        _refuse(str(error))
    except TyperException as error:
        command = f" {asked[0]}" if asked and asked[0] in EXAMPLES else ""
        message = error.format_message().rstrip(".")
        _refuse(f"{message}{_remedy(message)}; see gpupool{command} --help")
    except OSError as error:
        if error.filename is None:
            raise
        _refuse(f"{error.filename}: {error.strerror}; see whether this user may use it")
    except (Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(code or 0)


def _remedy(message: str) -> str:
    """Where an engine's flag belongs that was given to a command."""
    asked = re.match(r"No such option: (--?[\w-]+)", message)
    if asked is None or asked[1].replace("_", "-") not in KNOWN:
        return ""
    return f"; engine arguments stand in the file, as `engine_args: {asked[1]} ...`"


def _refuse(reason: str) -> None:
    print(f"{ERROR}{reason}", file=sys.stderr)
    sys.exit(EXIT_REFUSED)


if __name__ == "__main__":
    main()
