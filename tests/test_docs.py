"""What the documentation says is what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

import gpupool
from gpupool.settings import Settings

ROOT = Path(__file__).parent.parent
PROMISES = ROOT / "docs" / "promises.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def tables() -> Any:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", ["README.md", "docs/infer.md", "docs/metrics.md", "docs/migrate.md"]
)
def test_the_tables_are_those_of_the_code(name: str) -> None:
    path = ROOT / name
    assert path.read_text() == tables().rendered(path), "run `make docs`"


def test_every_flag_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    for name in Settings.model_fields:
        assert name == "engine_args" or f"`--{name}`" in text


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / link).exists(), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_make_target_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z][a-z-]*)`", path.read_text())) <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_module_that_is_named_exists(path: Path) -> None:
    tracked = [f"/{file.relative_to(ROOT)}" for file in ROOT.glob("*.py")]
    for folder in ("gpupool", "tests", "docs", "benchmarks"):
        tracked += [f"/{file.relative_to(ROOT)}" for file in (ROOT / folder).rglob("*.py")]
    for named in re.findall(r"`([a-z_/]+\.py)`", path.read_text()):
        if named.startswith("my/"):
            continue  # a user's
        assert any(file.endswith(f"/{named}") for file in tracked), named


def test_every_promise_names_a_test_and_a_mutant_that_exist() -> None:
    rows = re.findall(r"^\| ([^|]+) \| (`[^|]+) \| ([^|]+) \|$", PROMISES.read_text(), re.MULTILINE)
    assert len(rows) > 20
    for promise, tests, mutants in rows:
        for path, name in re.findall(r"`([\w/]+\.py)::(\w+)`", tests):
            source = (ROOT / "tests" / path).read_text()
            assert re.search(rf"^def {name}\(", source, re.MULTILINE), (promise, name)
        assert tests.count("`") == 2 * len(re.findall(r"`[\w/]+\.py::\w+`", tests)), promise
        names = re.findall(r"`(\w+)`", mutants)
        assert names, promise
        for name in names:
            assert (ROOT / "tests" / "mutants" / f"{name}.patch").exists(), (promise, name)


def test_the_changelog_speaks_of_this_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == gpupool.__version__


def test_the_package_has_this_version() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{gpupool.__version__}"' in text


def test_the_source_has_no_word_of_unfinished_work() -> None:
    words = re.compile(r"\b(TO" + "DO|FIX" + "ME|XX" + r"X)\b")
    for path in [*ROOT.glob("*.py"), *ROOT.glob("gpupool/**/*.py"), *ROOT.glob("tests/**/*.py")]:
        assert not words.search(path.read_text()), path
