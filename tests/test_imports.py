"""Who may import whom, and what never stands at the top of a module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "vllm", "transformers", "ray", "pynvml", "xllamacpp", "modelscope", "litellm"}
FILES = sorted([*ROOT.glob("*.py"), *ROOT.glob("URLs/*.py"), *ROOT.glob("gpupool/**/*.py")])
ENTRY_POINTS = {"gunicorn_conf", "vllm_url_m", "transformers_url_m", "llama_cpp_url_m"}
ENTRY_POINTS |= {"plugin_url_m", "saas_url_m", "URLs.vllm_url", "URLs.transformers_url"}

ENGINE_FREE = {"gpupool.engines", "gpupool.engines.base"}
VALUES = {
    "gpupool.capabilities",
    "gpupool.engines.base",
    "gpupool.errors",
    "gpupool.nearest",
}
CHECKS = VALUES | {
    "gpupool.api.values",
    "gpupool.api.openai.routes",
    "gpupool.api.openai.content",
    "gpupool.api.openai.extras",
    "gpupool.api.openai.grammars",
}
PLANNER = {"gpupool.planner", "gpupool.errors", "gpupool.nearest"}
PLANNER |= {
    f"gpupool.planner.{name}"
    for name in ("model", "fields", "dtypes", "families", "weights", "vision", "config")
}
FITTING = PLANNER | {
    f"gpupool.planner.{name}"
    for name in ("kv_cache", "split", "fit", "option", "remedies", "advice")
}
MIGRATE = {"gpupool.errors", "gpupool.nearest", "gpupool.settings", "gpupool.setting_types"}
MIGRATE |= {"gpupool.migrate", "gpupool.engines.llama_cpp_arguments", "gpupool.engines.saas_args"}
MIGRATE |= {
    f"gpupool.migrate.{path.stem}"
    for path in ROOT.glob("gpupool/migrate/*.py")
    if path.stem not in ("__init__", "source")
}
DOCTOR = {"gpupool.doctor", "gpupool.doctor.finding", "gpupool.pool_process"}
PURE: dict[str, set[str]] = {
    **dict.fromkeys(sorted(name for name in MIGRATE if "migrate." in name), MIGRATE),
    "gpupool.planner.config": PLANNER,
    **dict.fromkeys(sorted(FITTING - {"gpupool.nearest"}), FITTING),
    "gpupool.backoff": set(),
    "gpupool.balancer": set(),
    "gpupool.watchdog": {"gpupool.procfs"},
    "gpupool.key_budget": {"gpupool.errors"},
    "gpupool.roll": set(),
    "gpupool.partition": {"gpupool.gpus"},
    **{f"gpupool.doctor.{name}": DOCTOR for name in ("finding", "machine", "models", "processes")},
    "gpupool.api.values": VALUES,
    "gpupool.api.params": VALUES | {"gpupool.api.values"},
    "gpupool.api.openai.routes": set(),
    "gpupool.api.openai.content": VALUES | {"gpupool.api.values"},
    "gpupool.api.openai.extras": VALUES | {"gpupool.api.values"},
    "gpupool.api.openai.grammars": VALUES | {"gpupool.api.values"},
    "gpupool.api.openai.checks": CHECKS,
    "gpupool.api.openai.models": CHECKS | {"gpupool.api.openai.checks"},
    "gpupool.api.openai.spread": CHECKS | {"gpupool.api.openai.checks"},
}
MASTER = {"gunicorn_conf", "dispatcher", "gpupool.hooks", "gpupool.master", "gpupool.worker"}
MASTER |= {"gpupool.preflight", "gpupool.gpu_guard", "gpupool.gpu_watch", "gpupool.notify"}
MASTER |= {"gpupool.single", "gpupool.life", "gpupool.reload", "gpupool.reloader"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST) -> Iterator[str]:
    """Names of modules imported by the statements given, not below functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        ):
            yield from imported(node)


MODULES = {module_name(path): set(imported(ast.parse(path.read_text()))) for path in FILES}


def ours(name: str) -> set[str]:
    """The modules of this project that a module imports when it is imported."""
    return {found for found in MODULES[name] if found in MODULES and found != "gpupool"}


def closure(name: str) -> set[str]:
    seen: set[str] = set()
    left = [name]
    while left:
        for found in ours(left.pop()) - seen:
            seen.add(found)
            left.append(found)
    return seen


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_module_imports_a_heavy_library_at_its_top(name: str) -> None:
    assert not {found.partition(".")[0] for found in MODULES[name]} & HEAVY


@pytest.mark.parametrize("name", sorted(ENTRY_POINTS))
def test_entry_points_do_not_import_each_other(name: str) -> None:
    assert not closure(name) & (ENTRY_POINTS - {name})


@pytest.mark.parametrize("name", [name for name in sorted(MODULES) if ".api" in name])
def test_the_api_knows_no_engine_and_no_dispatcher(name: str) -> None:
    found = closure(name)
    assert "dispatcher" not in found
    assert {other for other in found if ".engines" in other} <= ENGINE_FREE


@pytest.mark.parametrize(("name", "allowed"), PURE.items(), ids=PURE.keys())
def test_policy_imports_only_policy(name: str, allowed: set[str]) -> None:
    assert ours(name) <= allowed


@pytest.mark.parametrize("name", sorted(MASTER))
def test_the_master_imports_no_application_and_no_engine(name: str) -> None:
    found = closure(name)
    assert "gpupool.app" not in found
    allowed = ENGINE_FREE | {"gpupool.engines.catalog"}
    if name == "gpupool.single":  # reads flags, and becomes the master by exec
        allowed |= {"gpupool.engines.llama_cpp_arguments", "gpupool.engines.llama_cpp_uses"}
    assert {other for other in found if ".engines" in other} <= allowed


@pytest.mark.parametrize("name", sorted(MASTER | {"gpupool.app"}))
def test_a_pool_knows_nothing_of_the_commands(name: str) -> None:
    commands = ("gpupool.commands", "gpupool.pools", "gpupool.doctor")
    assert not [found for found in closure(name) if found.startswith(commands)]


def test_nobody_imports_the_configuration_file() -> None:
    assert not [name for name, found in MODULES.items() if "gunicorn_conf" in found]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))
