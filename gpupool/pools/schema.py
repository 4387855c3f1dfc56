"""The JSON schema of pool.yaml, made from the settings (`gpupool schema`, and a developer's tool).

pool.schema.json beside this file is what it makes, for whoever has the package alone.
"""

from __future__ import annotations

import json
from typing import Any

from gpupool.pools.pool_file import KEYS
from gpupool.settings import Settings

NAME = {"pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"}
WORDS = {
    "memory_plan": ["refuse", "warn", "off", False],
    "log_level": ["debug", "info", "warning", "error", "critical"],
    "log_format": ["text", "json"],
    "access_log": ["on", "off", True, False],
}
"""What may stand there; `on` and `off` without quotes are truth values to many readers of YAML."""


def make_schema() -> dict[str, Any]:
    """Draft 2020-12; what the settings themselves check beyond it is refused by gpupool run."""
    made = Settings.model_json_schema(by_alias=False, mode="validation")["properties"]
    properties = {key: _property(key, made[key]) for key in KEYS}
    pool = {"type": "object", "properties": properties, "additionalProperties": False}
    common = {key: {"$ref": f"#/$defs/pool/properties/{key}"} for key in KEYS}
    models = {
        "description": "several pools, each by its name; what stands beside holds for all of them",
        "type": "object",
        "minProperties": 1,
        "propertyNames": NAME,
        "additionalProperties": {"$ref": "#/$defs/pool"},
    }
    name = {"description": "name of the pool; default: the file's", "type": "string"} | NAME
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:gpupool:pool.yaml",
        "title": "pool.yaml of gpupool",
        "type": "object",
        "properties": {"name": name, "models": models} | common,
        "additionalProperties": False,
        "anyOf": [{"required": ["models"]}, {"required": ["model_name"]}],
        "not": {"required": ["name", "models"]},
        "$defs": {"pool": pool},
    }


def render_schema() -> str:
    """The schema as it is kept and printed."""
    return json.dumps(make_schema(), indent=2) + "\n"


def _property(key: str, made: dict[str, Any]) -> dict[str, Any]:
    """A setting's, as people may write it."""
    field = Settings.model_fields[key]
    kept: dict[str, Any] = {
        name: made[name] for name in ("type", "anyOf", "minimum", "maximum") if name in made
    }
    if "exclusiveMinimum" in made:
        kept["exclusiveMinimum"] = made["exclusiveMinimum"]
    if made.get("type") == "array":
        text = {"type": "string"}
        kept = {"anyOf": [text, {"type": "array", "items": text}]}
    if key == "per_proc_gpus":
        kept = {"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}
    if key in WORDS:
        kept = {"enum": WORDS[key]}
    for option in kept.get("anyOf", ()):
        option.pop("format", None)
    default = {} if field.default in ("", None, ()) else {"default": field.default}
    return {"description": field.description} | kept | default
