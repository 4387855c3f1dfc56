"""pool.yaml: what it means, what is refused, and its schema."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from gpupool.errors import ConfigError
from gpupool.pools.pool_file import KEYS, read_one, read_pool_file, select
from gpupool.settings import Settings
from tests.demo_model import gguf_path
from tests.pool import ROOT

DEMO = ROOT / "examples" / "demo.yaml"
SCHEMA = json.loads((ROOT / "gpupool" / "pools" / "pool.schema.json").read_text())
TWO = {"models": {"a": {"model_name": "A", "port": 1}, "b": {"model_name": "B", "port": 2}}}


def write(folder: Path, content: Any, name: str = "pool.yaml") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def refusal(folder: Path, content: Any, **environ: str) -> str:
    with pytest.raises(ConfigError) as error:
        read_pool_file(write(folder, content), environ)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_of_one_pool_is_called_as_the_file(tmp_path: Path) -> None:
    (found,) = read_pool_file(write(tmp_path, {"model_name": "A"}, "llama.yaml"), {})
    assert (found.name, found.settings.model_name) == ("llama", "A")
    (named,) = read_pool_file(write(tmp_path, {"model_name": "A", "name": "mine"}), {})
    assert named.name == "mine"


def test_what_stands_beside_models_holds_for_all_unless_they_say_otherwise(tmp_path: Path) -> None:
    a, b = read_pool_file(write(tmp_path, TWO | {"workers": 3, "port": 9}), {})
    assert (a.name, a.settings.workers, a.settings.port) == ("a", 3, 1)
    assert (b.name, b.settings.workers, b.settings.port) == ("b", 3, 2)


def test_the_environment_wins_and_is_remembered(tmp_path: Path) -> None:
    path = write(tmp_path, TWO | {"workers": 3})
    a, _ = read_pool_file(path, {"GPUPOOL_WORKERS": "4", "HOME": "/x"})
    assert a.settings.workers == 4
    assert a.overlay == {"workers": "4"}
    again = read_one(path, "a", a.overlay)
    assert again.settings.workers == 4


def test_what_the_process_has_in_its_environment_does_not_leak_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUPOOL_WORKERS", "7")
    (found,) = read_pool_file(write(tmp_path, {"model_name": "A"}), {})
    assert found.settings.workers is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model_name": "A", "prot": 1}, "'prot' is not a setting (did you mean 'port'?)"),
        (
            {"models": {"a": {"model_name": "A", "wrokers": 1}}},
            "pool 'a': 'wrokers' is not a setting (did you mean 'workers'?)",
        ),
        ({"model_name": "A", "config": "x"}, "'config' is not a setting"),
        ("model_name: A\nport: 1\nport: 2\n", "'port' is given twice (line 3)"),
        (
            "models:\n  a: {model_name: A}\n  a: {model_name: B}\n",
            "'a' is given twice (line 3)",
        ),
        ({"models": {"a": {"port": 1}}}, "pool 'a': no model; write `model_name: MODEL`"),
        ({"model_name": "A", "port": 0}, "--port (PORT) is 0"),
        ({"model_name": "A", "name": "../up"}, "'../up' is no name for a pool"),
        ({"models": ["a"]}, "below `models` each pool stands by its name"),
        ({"models": {"a": None}}, "pool 'a' is None"),
        ("", "write settings into it"),
        ("a: [", "is not valid YAML"),
        ({"model_name": "package:nowhere/x"}, "install the package 'nowhere'"),
        ({"model_name": "A", "launcher": "ray"}, "use start_gunicorn.sh --launcher ray"),
    ],
)
def test_what_cannot_be_is_named(tmp_path: Path, content: Any, said: str) -> None:
    found = refusal(tmp_path, content)
    assert said in found
    assert str(tmp_path / "pool.yaml") in found


def test_two_pools_cannot_have_one_port(tmp_path: Path) -> None:
    same = {"models": {"a": {"model_name": "A"}, "b": {"model_name": "B"}}}
    assert "pools 'a' and 'b' both have port 5002; give each its own" in refusal(tmp_path, same)
    by_variable = refusal(tmp_path, TWO, PORT="7")
    assert "both have port 7 (PORT in the environment wins over the file)" in by_variable


def test_an_unknown_variable_is_refused(tmp_path: Path) -> None:
    assert "GPUPOOL_WROKERS" in refusal(tmp_path, TWO, GPUPOOL_WROKERS="1")


def test_a_refused_key_is_not_shown(tmp_path: Path) -> None:
    assert "s3cret" not in refusal(tmp_path, {"model_name": "A", "api_key": "s3cret,"})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory; give the file with -f"):
        read_pool_file(tmp_path / "nowhere.yaml", {})


def test_paths_count_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("k\n")
    (found,) = read_pool_file(write(tmp_path, {"model_name": "A", "api_key_file": "keys"}), {})
    assert found.settings.api_key_file == tmp_path / "keys"


def test_a_model_may_come_in_a_package() -> None:
    small, other = read_pool_file(DEMO, {})
    assert Path(small.settings.model_name) == Path(gguf_path())
    assert small.settings.port != other.settings.port


def test_only_pools_of_the_file_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path, TWO)
    found = read_pool_file(path, {})
    assert [wanted.name for wanted in select(found, ["b"], path)] == ["b"]
    assert len(select(found, [], path)) == 2
    with pytest.raises(ConfigError, match="has no pool 'c'.*; it has a, b"):
        select(found, ["c"], path)


def test_a_pool_that_left_its_file_is_not_taken_for_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no pool 'c' any more, only a, b"):
        read_one(write(tmp_path, TWO), "c", {})


def test_the_schema_is_made_from_the_settings() -> None:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.SCHEMA.read_text() == tables.render_schema(), "run `make docs`"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_schema_knows_every_setting() -> None:
    known = SCHEMA["$defs"]["pool"]["properties"]
    assert set(known) == set(Settings.model_fields) - {"config"} == set(KEYS)
    assert all(known[key]["description"] for key in KEYS)
    assert set(known) < set(SCHEMA["properties"])


@pytest.mark.parametrize(
    "content",
    [
        yaml.safe_load(DEMO.read_text()),
        TWO,
        {"model_name": "A", "per_proc_gpus": "auto", "api_key": "k", "workers": 2},
        {"model_name": "A", "engine_args": ["--x", "1"], "cuda_visible_devices": "0,1"},
        yaml.safe_load("{model_name: A, access_log: off, memory_plan: off}"),
        yaml.safe_load("{model_name: A, access_log: on, log_format: json}"),
    ],
)
def test_the_schema_takes_what_run_takes(tmp_path: Path, content: Any) -> None:
    jsonschema.validate(content, SCHEMA)
    assert read_pool_file(write(tmp_path, content), {})


@pytest.mark.parametrize(
    "content",
    [
        {"model_name": "A", "prot": 1},
        {"models": {"a": {"model_name": "A", "prot": 1}}},
        {"models": {"../a": {"model_name": "A"}}},
        {"model_name": "A", "port": 0},
        {"model_name": "A", "memory_plan": "perhaps"},
        {"model_name": "A", "memory_plan": True},
        {"model_name": "A", "access_log": "no"},
        {"model_name": "A", "per_proc_gpus": 0},
        {"port": 1},
    ],
)
def test_the_schema_refuses_what_run_refuses(tmp_path: Path, content: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, SCHEMA)
    refusal(tmp_path, content)
