"""The tables of the documentation and the schema of pool.yaml, made from the code.

`python docs/tables.py` writes them.

A developer's tool, not part of the package. tests/test_docs.py fails when a table is old.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from gpupool.api.params import ALIASES, CLIENTS_OWN, FLAGS  # noqa: E402
from gpupool.api.values import MAX_STOPS, NUMBERS  # noqa: E402
from gpupool.capabilities import ENGINES, FEATURES  # noqa: E402
from gpupool.engines.catalog import import_engine  # noqa: E402
from gpupool.flags import flags  # noqa: E402
from gpupool.metrics import pool_families  # noqa: E402
from gpupool.migrate.byzerllm_keys import METHODS  # noqa: E402
from gpupool.migrate.byzerllm_stat import KEYS as STAT_KEYS  # noqa: E402
from gpupool.migrate.keys import ENGINE_ARGS, Key  # noqa: E402
from gpupool.migrate.tables import TABLES as FOREIGN  # noqa: E402
from gpupool.pools.schema import render_schema  # noqa: E402
from gpupool.scoreboard import Scoreboard  # noqa: E402
from gpupool.settings import Settings  # noqa: E402
from gpupool.vitals import GpuUse, Use  # noqa: E402


def row(*cells: str) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def flags_table() -> str:
    """Every flag with its variable and meaning."""
    lines = [row("flag", "variable", "meaning"), row("---", "---", "---")]
    for flag in flags():
        text, _, variable = flag.description.rpartition(" [")
        names = f"`--{flag.spellings[0]}`"
        lines.append(row(names, f"`{variable.rstrip(']')}`", text))
    return "".join(lines)


def parameters_table() -> str:
    """Every name that `params` takes."""
    lines = [row("parameter", "values"), row("---", "---")]
    for name, rule in NUMBERS.items():
        kind = "whole number" if rule.kind is int else "number"
        lines.append(row(f"`{name}`", f"{kind}, {_bound(rule.low)} to {_bound(rule.high)}"))
    lines += [row(f"`{name}`", "true or false") for name in FLAGS]
    lines.append(row("`stop`", f"a string or up to {MAX_STOPS} of them; not part of the text"))
    lines.append(row("`stop_token_ids`", f"up to {MAX_STOPS} token ids"))
    lines.append(row("`logit_bias`", "object of token ids with numbers from -100 to 100"))
    lines.append(row("`early_stopping`", 'true, false or "never"'))
    lines += [row(f"`{alias}`", f"the same as `{name}`") for alias, name in ALIASES.items()]
    lines += [row(f"`{name}`", "the client's own; taken and ignored") for name in CLIENTS_OWN]
    return "".join(lines)


def defaults_table() -> str:
    """What each engine assumes for what a request leaves out."""
    lines = [row("engine", "defaults"), row("---", "---")]
    common = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 16}
    for name in ENGINES:
        defaults = common | dict(import_engine(name).default_params)
        lines.append(row(name, ", ".join(f"`{k}` {v:g}" for k, v in defaults.items())))
    return "".join(lines)


def capabilities_table() -> str:
    """What each engine honours; the rest is a 400."""
    lines = [row("feature", "meaning", *ENGINES), row(*["---"] * (2 + len(ENGINES)))]
    for feature, meaning in FEATURES.items():
        marks = ["yes" if feature in able else "400" for able in ENGINES.values()]
        lines.append(row(f"`{feature}`", meaning, *marks))
    return "".join(lines)


def metrics_table() -> str:
    """Every metric of ours, as a pool with everything known renders it."""
    scoreboard = Scoreboard(1)
    scoreboard.claim(0)
    scoreboard[0].pid = scoreboard[0].slots = 1
    scoreboard[0].describe(gpus=("GPU-0",))
    scoreboard.vitals.publish(0, Use(0, (GpuUse(0, 0, 0, 0, 0),)), valid_s=60)
    lines = [row("metric", "type", "labels", "meaning"), row(*["---"] * 4)]
    for family in pool_families(Settings(), scoreboard):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = [label for label in family.samples[0].labels if label != "le"]
        shown = ", ".join(f"`{label}`" for label in labels)
        lines.append(row(f"`{name}`", family.type, shown, family.documentation))
    return "".join(lines)


def foreign_table(keys: tuple[Key, ...]) -> str:
    """What becomes of each key of a predecessor."""
    lines = [row("there", "for example", "here"), row("---", "---", "---")]
    for key in keys:
        example = key.example
        if key.name.endswith("*"):
            name, value = example
            example = {name: value}
        lines.append(row(f"`{key.name}`", f"`{_shown(example)}`", _fate(key)))
    return "".join(lines)


def _fate(key: Key) -> str:
    if key.refuses:
        return f"**refused**: {key.refuses}"
    if key.says:
        return key.says
    settings = [f"{k}: {_shown(v)}" for k, v in key.gives.items() if k != ENGINE_ARGS]
    words = " ".join(key.gives.get(ENGINE_ARGS, ()))
    return ", ".join(f"`{text}`" for text in [*settings, *([f"-- {words}"] if words else [])])


def _shown(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def words_table(meanings: dict[str, str]) -> str:
    """Names and what they are here."""
    lines = [row("there", "here"), row("---", "---")]
    return "".join([*lines, *(row(f"`{name}`", text) for name, text in meanings.items())])


def _bound(value: float) -> str:
    exact = {1 << 31: "2^31", (1 << 64) - 1: "2^64-1", -(1 << 63): "-2^63"}
    return exact.get(int(value), f"{value:g}") if value == int(value) else f"{value:g}"


MIGRATE = ROOT / "docs" / "migrate.md"
TABLES = {
    "flags": (ROOT / "README.md", flags_table),
    "parameters": (ROOT / "docs" / "infer.md", parameters_table),
    "defaults": (ROOT / "docs" / "infer.md", defaults_table),
    "capabilities": (ROOT / "docs" / "infer.md", capabilities_table),
    "metrics": (ROOT / "docs" / "metrics.md", metrics_table),
    **{
        name: (MIGRATE, lambda keys=keys: foreign_table(keys))  # type: ignore[misc]
        for name, keys in FOREIGN.items()
    },
    "byzerllm_stat": (MIGRATE, lambda: words_table(STAT_KEYS)),
    "byzerllm_python": (MIGRATE, lambda: words_table(METHODS)),
}


def rendered(path: Path) -> str:
    """A document's text with its tables made anew."""
    text = path.read_text()
    for name, (home, make) in TABLES.items():
        if home == path:
            pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end of {name} -->)"
            text, found = re.subn(
                pattern, lambda m, make=make: m[1] + make() + m[2], text, flags=re.DOTALL
            )
            assert found == 1, f"{path} has no place for the table {name!r}"
    return text


SCHEMA = ROOT / "gpupool" / "pools" / "pool.schema.json"


def main() -> None:
    """Write every table, and the schema."""
    SCHEMA.write_text(render_schema())
    for path in {home for home, _ in TABLES.values()}:
        path.write_text(rendered(path))


if __name__ == "__main__":
    main()
