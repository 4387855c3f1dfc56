"""The `gpupool` command (a process of its own): puts the commands of gpupool/commands/ together.

Flags are spelled as those of start_gunicorn.sh, with underscores or hyphens. Imports no torch and
no engine.
"""

from __future__ import annotations

import sys

import typer
from typer.exceptions import Abort, TyperException

from gpupool.commands.import_file import EPILOG, import_file
from gpupool.commands.plan import plan
from gpupool.errors import ConfigError

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut the names of flags
    epilog="exit codes: 0 done, 1 the answer is no, 2 refused (one line says why), 130 Ctrl-C",
)


@app.callback()
def _commands(context: typer.Context) -> None:
    """One model on every GPU of a machine."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command(epilog="example: gpupool plan --model_name Qwen/Qwen2.5-7B-Instruct")(plan)
app.command("import", epilog=EPILOG)(import_file)


def main() -> None:
    """Run the command line; what cannot be is one line on stderr and exit 2."""
    try:
        code = app(prog_name="gpupool", standalone_mode=False)
    except ConfigError as error:
        _refuse(str(error))
    except TyperException as error:
        _refuse(f"{error.format_message().rstrip('.')}; see gpupool --help")
    except (Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(code or 0)


def _refuse(reason: str) -> None:
    print(f"gpupool: error: {reason}", file=sys.stderr)
    sys.exit(EXIT_REFUSED)


if __name__ == "__main__":
    main()
