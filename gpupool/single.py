"""A single instance, as URLs/*_url.py start it: a pool of one worker on the GPUs of --gpuid.

Runs in the process that then becomes the master: flags -> environment -> exec of gunicorn, as
start_gunicorn.sh does. Asks NVML once, before the exec; imports no engine.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from typing import Any, NoReturn

from gpupool.errors import ConfigError
from gpupool.flags import Flag, flags, remedy
from gpupool.gpus import read_inventory, select_visible
from gpupool.master_command import command, with_root
from gpupool.nearest import nearest_hint
from gpupool.refusal import ERROR, EXIT_REFUSED
from gpupool.settings import env_name

OF_A_POOL = (
    "per_proc_gpus",
    "infer_type",
    "cuda_visible_devices",
    "workers",
    "launcher",
    "ray_address",
    "num_replicas",
    "min_replicas",
    "max_replicas",
    "downscale_delay_s",
)
"""What a single instance decides itself."""


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are ours: one line, exit 2."""

    def error(self, message: str) -> NoReturn:
        """Called for whatever does not parse."""
        raise ConfigError(f"{message}; see --help")


def main(infer_type: str, arguments: list[str]) -> NoReturn:
    """Become the master of a pool of one."""
    try:
        environment = make_environment(infer_type, arguments)
    except ConfigError as error:
        sys.stderr.write(f"{ERROR}{error}\n")
        sys.exit(EXIT_REFUSED)
    os.execve(sys.executable, command(), with_root(os.environ | environment))


def make_environment(infer_type: str, arguments: list[str]) -> dict[str, str]:
    """The variables of the pool that the command line asks for. Blocks on the driver;
    ConfigError for what cannot be."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    known = [flag for flag in flags() if flag.spellings[0] not in OF_A_POOL]
    given, rest = _parser(infer_type, known).parse_known_args(arguments[:end])
    if rest:
        raise ConfigError(_explain(rest[0], known))
    environment = {}
    for flag in known:
        if (value := getattr(given, flag.env)) is not None:
            environment[flag.env] = ",".join(value) if isinstance(value, list) else str(value)
    if end < len(arguments):
        environment[env_name("engine_args")] = shlex.join(arguments[end + 1 :])
    gpus, num_gpus = find_gpus(given.gpuid)
    if gpus is not None:
        environment[env_name("cuda_visible_devices")] = gpus
    return environment | {
        env_name("infer_type"): infer_type,
        env_name("per_proc_gpus"): str(num_gpus),
        env_name("workers"): "1",
        "GPUPOOL_SINGLE": "1",
    }


def find_gpus(gpuid: str | None) -> tuple[str | None, int]:
    """What CUDA_VISIBLE_DEVICES is to be, and how many GPUs that is; None leaves it as it is.

    Without --gpuid the first GPU that is visible, or the CPU where none is.
    """
    visible = os.environ.get(env_name("cuda_visible_devices"))
    # Who hides all GPUs may do so because the driver is broken: then it is not even asked.
    is_hidden = gpuid is None and visible is not None and visible.strip() in ("", "-1")
    inventory = None if is_hidden else read_inventory()
    if gpuid is None:
        chosen = select_visible(inventory, visible) if inventory else ()
        return (chosen[0].uuid, 1) if chosen else (None, 1)
    if inventory is None or not inventory.gpus:
        raise ConfigError(
            f"--gpuid is {gpuid!r}, but this machine has no GPU; leave --gpuid out to run on "
            "the CPU"
        )
    try:
        chosen = select_visible(inventory, gpuid)
    except ConfigError as error:
        shown = str(error).replace(f"CUDA_VISIBLE_DEVICES={gpuid!r}", f"--gpuid {gpuid!r}", 1)
        raise ConfigError(shown) from None
    if not chosen:
        raise ConfigError(f"--gpuid is {gpuid!r}, which names no GPU; give an index such as 0")
    return gpuid, len(chosen)


def _parser(infer_type: str, known: list[Flag]) -> Parser:
    parser = Parser(
        prog=f"{infer_type}_url.py",
        description="Serve one model on the GPUs of --gpuid, or on the CPU where there are none, "
        "as a pool of one worker. Arguments after -- go to the engine's own parser.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--gpuid",
        metavar="LIST",
        help="GPUs of the instance: indices, GPU- UUIDs or a MIG- id, comma-separated; default: "
        "the first one",
    )
    for flag in known:
        kinds: dict[str, dict[str, Any]] = {
            "switch": {"action": "store_const", "const": "1"},
            "list": {"action": "append", "metavar": flag.metavar},
            "value": {"metavar": flag.metavar},
        }
        spellings = [f"--{spelling}" for spelling in flag.spellings]
        text = flag.description.replace("%", "%%")
        parser.add_argument(*spellings, dest=flag.env, help=text, **kinds[flag.kind])
    return parser


def _explain(word: str, known: list[Flag]) -> str:
    name = word.removeprefix("--").partition("=")[0]
    if name.replace("-", "_") in OF_A_POOL:
        return f"{word!r} is for a pool (start_gunicorn.sh); a single instance has --gpuid"
    hint = nearest_hint(name, ["gpuid"]) or remedy(name, known)
    return f"{word!r} is no flag{hint}; see --help"
