"""gunicorn's methods are still those that were read when ours were written."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from tests.gunicorn_methods import TABLE, digest, table, watched

KNOWN: dict[str, str] = json.loads(TABLE.read_text())


@pytest.mark.parametrize(
    ("name", "function", "reader"),
    [pytest.param(*entry, id=f"{entry[0]}-{entry[2]}") for entry in watched()],
)
def test_a_method_of_gunicorn_is_as_it_was_read(
    name: str, function: Callable[..., Any], reader: str
) -> None:
    assert KNOWN.get(name) == digest(function), (
        f"gunicorn's {name} changed, or is new here: read it, then {reader}, then run "
        "`python -m tests.gunicorn_methods`"
    )


def test_the_table_has_nothing_else() -> None:
    assert set(KNOWN) == set(table())


def _function(source: str) -> Callable[..., Any]:
    """A function whose source can be looked up."""
    import linecache

    lines = textwrap.dedent(source).splitlines(keepends=True)
    name = f"<{hash(source)}>"
    linecache.cache[name] = (len(source), None, lines, name)
    found: dict[str, Any] = {}
    exec(compile("".join(lines), name, "exec"), found)
    made: Callable[..., Any] = found["f"]
    return made


def test_a_comment_changes_no_digest_and_a_statement_does() -> None:
    plain = digest(_function("def f(x):\n    return x\n"))
    told = digest(_function("def f(x):\n    '''Why.'''\n    # how\n    return x\n"))
    assert told == plain
    assert digest(_function("def f(x):\n    return -x\n")) != plain
