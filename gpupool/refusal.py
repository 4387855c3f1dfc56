"""What is wrong with a setting, as one line of ours, and how a start that cannot be ends (every
process that reads settings)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gpupool.errors import ConfigError
from gpupool.nearest import nearest_hint

if TYPE_CHECKING:
    from pydantic import ValidationError

EXIT_REFUSED = 2
"""What cannot be, and nothing was touched: systemd does not try it again."""
ERROR = "gpupool: error: "
"""What the one line begins with that says why."""

SECRET = "api_key"
REMEDIES = {
    "int_parsing": "give a whole number",
    "int_from_float": "give a whole number",
    "int_type": "give a whole number",
    "float_parsing": "give a number",
    "float_type": "give a number",
    "bool_parsing": "give true or false",
    "bool_type": "give true or false",
    "string_type": "give a text, in quotes if it looks like a number",
    "path_type": "give a path",
    "greater_than": "give more than {gt:g}",
    "greater_than_equal": "give {ge} or more",
    "less_than_equal": "give {le} or less",
}
"""By pydantic's names; its own sentences do not say what to do."""


def explain_setting(error: ValidationError, variables: Mapping[str, str]) -> str:
    """The first thing that is wrong; `variables` are the settings, each with its variable."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        hint = nearest_hint(name, variables)
        return f"{name!r} in the configuration file is not a setting{hint}; see --help"
    field = next((f for f, variable in variables.items() if name in (f, variable)), name)
    given = first["input"]
    found = "refused" if field == SECRET else repr(str(given) if isinstance(given, Path) else given)
    reason = first["msg"].removeprefix("Value error, ")
    if (remedy := REMEDIES.get(first["type"])) is not None:
        reason = remedy.format(**first.get("ctx", {}))
    return f"--{field} ({variables.get(field, field)}) is {found}: {one_line(reason)}"


def explain_file(path: str, error: Exception) -> str:
    """Why a configuration file gives no settings."""
    asked = f"--config {path!r}"
    if isinstance(error, ConfigError):
        return f"{asked}: {error}"
    if isinstance(error, OSError):
        return f"{asked} cannot be read: {error.strerror}"
    if isinstance(error, UnicodeDecodeError):
        return f"{asked} is not a text file; give a YAML file"
    if isinstance(error, ValueError | TypeError):  # out of the reader, whose parser has others
        return f"{asked} has no settings; each is a line as `port: 5002`"
    return f"{asked} is not valid YAML: {one_line(error)}"


def one_line(text: object) -> str:
    """Without line breaks."""
    return " ".join(str(text).split())
