"""Every row of every table: what its example is said to make is what the reader makes of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpupool.engines.llama_cpp_arguments import parse_engine_args
from gpupool.engines.saas_args import parse_engine_args as parse_saas_args
from gpupool.engines.transformers_args import parse_engine_args as parse_transformers_args
from gpupool.errors import ConfigError
from gpupool.migrate import byzerllm, flagscale, oci
from gpupool.migrate.hydra import override
from gpupool.migrate.keys import ENGINE_ARGS, Key
from gpupool.migrate.pools import Imported
from gpupool.migrate.source import read_words
from gpupool.migrate.tables import TABLES
from gpupool.settings import Settings

MODEL = "/models/m"
ENTRY = {"serve_id": "vllm_model", "engine": "vllm", "engine_args": {"model": MODEL}}


def concrete(row: Key) -> tuple[str, Any]:
    """The row's key as somebody writes it, and the value."""
    if row.name.endswith("*"):
        name, value = row.example
        return row.name[:-1] + name, value
    return row.name.replace("*", "m"), row.example


def in_flagscale(prefix: str) -> Callable[[str, Any], Imported]:
    def read(name: str, value: Any) -> Imported:
        config: dict[str, Any] = {"experiment": {}, "serve": [dict(ENTRY)]}
        override(config, prefix + name, value)
        return flagscale.read(config)

    return read


def in_entry(name: str, value: Any) -> Imported:
    entry = json.loads(json.dumps(ENTRY))
    override(entry, name, value)
    return flagscale.read([entry])


def in_engine_args(engine: str) -> Callable[[str, Any], Imported]:
    def read(name: str, value: Any) -> Imported:
        args = {"model": MODEL, name: value} if name != "model_tag" else {name: value}
        return flagscale.read([ENTRY | {"engine": engine, "engine_args": args}])

    return read


def run(*words: Any) -> Imported:
    try:
        found = read_words([str(word) for word in words], {})
    except ConfigError as error:
        return Imported({}, refusals=(str(error),))
    return found.imported or Imported({}, commands=(found.line or f"{found.stat}: asked",))


def in_deploy(name: str, value: Any) -> Imported:
    flags = {"model_path": MODEL, "infer_backend": "vllm"} | {name: value}
    if str(value).startswith("saas/"):
        del flags["infer_backend"]
    return run("byzerllm", "deploy", *(f"--{flag}={v}" for flag, v in flags.items()))


def in_params(backend: str) -> Callable[[str, Any], Imported]:
    def read(name: str, value: Any) -> Imported:
        flags = ("--model_path", MODEL, "--infer_backend", backend)
        if name.startswith("saas."):
            flags = ("--pretrained_model_type", "saas/openai")
            flags += () if name == "saas.model" else ("--model_path", MODEL)
        return run("byzerllm", "deploy", *flags, "--infer_params", f"{name}={value}")

    return read


def in_serve(name: str, value: Any) -> Imported:
    command = byzerllm.Command("deploy", {"model_path": MODEL})
    return byzerllm.read([command, byzerllm.Command("serve", {name: value})], {})


def in_variables(name: str, value: Any) -> Imported:
    return byzerllm.read([byzerllm.Command("deploy", {"model_path": MODEL})], {name: value})


def in_other_command(name: str, value: Any) -> Imported:
    program, _, flag = name.partition(" ")
    if program == "easy-byzerllm":
        return run(program, flag, value, *(["TEXT"] if flag == "chat" else []))
    if program == "storage":
        return run("byzerllm", program, value)
    flags = {"--model": "NAME"} | ({"--query": "TEXT"} if program == "query" else {})
    flags |= {flag: value}
    words = [
        w for flag, value in flags.items() for w in ([flag] if value is True else [flag, value])
    ]
    return run("byzerllm", program, *words)


def in_environment(name: str, value: Any) -> Imported:
    return oci.read({"BASE_MODEL": MODEL, name: value})


def in_create(name: str, value: Any) -> Imported:
    base = [] if name in ("model_id", "model_file") else ["--model_id", MODEL]
    return run("ads", "aqua", "deployment", "create", *base, f"--{name}", value)


def in_config(name: str, value: Any) -> Imported:
    config: dict[str, Any] = {"configuration": {}}
    override(config, name, value)
    return oci.read(config)


PLACES: dict[str, list[Callable[[str, Any], Imported]]] = {
    "flagscale_top": [in_flagscale("")],
    "flagscale_experiment": [in_flagscale("experiment.")],
    "flagscale_deploy": [
        in_flagscale("experiment.deploy."),
        in_flagscale("experiment.runner.deploy."),
    ],
    "flagscale_serve": [in_entry],
    "flagscale_commands": [lambda name, value: run("flagscale", value)],
    "vllm_args": [in_engine_args("vllm")],
    "llama_cpp_args": [in_engine_args("llama_cpp")],
    "byzerllm_deploy": [in_deploy],
    "byzerllm_params": [in_params("vllm")],
    "byzerllm_llama_cpp": [in_params("llama_cpp")],
    "byzerllm_serve": [in_serve],
    "byzerllm_variables": [in_variables],
    "byzerllm_others": [in_other_command],
    "oci_environment": [in_environment],
    "oci_create": [in_create],
    "oci_others": [lambda name, value: run("ads", "aqua", "deployment", *name.split(), value)],
    "oci_config": [in_config],
}
ROWS = [
    pytest.param(row, place, id=f"{title}-{row.name}-{index}-{number}")
    for title, rows in TABLES.items()
    for index, row in enumerate(rows)
    for number, place in enumerate(PLACES[title])
]


def told(imported: Imported) -> str:
    return "\n".join([*imported.notes, *imported.commands, *imported.pools])


@pytest.mark.parametrize(("row", "place"), ROWS)
def test_the_row_holds(row: Key, place: Callable[[str, Any], Imported]) -> None:
    name, value = concrete(row)
    imported = place(name, value)
    if row.refuses:
        assert any(row.refuses in reason for reason in imported.refusals), imported
        return
    assert imported.refusals == ()
    if row.gives:
        [pool] = imported.pools.values()
        for setting, expected in row.gives.items():
            if setting == ENGINE_ARGS:
                assert shlex.join(expected) in shlex.join(pool[ENGINE_ARGS])
            else:
                assert pool[setting] == expected
    else:
        assert row.says
        assert row.says in told(imported) or any(
            str(part) in told(imported) for part in (name.rpartition(".")[2], value)
        )


@pytest.mark.parametrize(
    "row", [row for rows in TABLES.values() for row in rows], ids=lambda row: row.name
)
def test_a_row_has_one_fate_and_what_it_gives_is_a_setting(row: Key) -> None:
    assert sum(map(bool, (row.gives, row.says, row.refuses))) == 1
    Settings(**row.gives)


@pytest.mark.parametrize("title", ["llama_cpp_args", "byzerllm_llama_cpp"])
def test_llama_cpp_takes_the_arguments(title: str, tmp_path: Path) -> None:
    adapter = tmp_path / "lora.gguf"
    adapter.touch()
    for row in TABLES[title]:
        words = [str(adapter) if "lora" in word and "/" in word else word
                 for word in row.gives.get(ENGINE_ARGS, [])]  # fmt: skip
        parse_engine_args(words)


def test_transformers_takes_the_argument_for_concurrency() -> None:
    imported = run(
        *("byzerllm", "deploy", "--model_path", MODEL, "--infer_backend", "transformers"),
        *("--worker_concurrency", 4),
    )
    [pool] = imported.pools.values()
    assert parse_transformers_args(pool[ENGINE_ARGS]).max_num_seqs == 4


def test_a_hosted_model_is_taken_over_whole() -> None:
    imported = run(
        *("byzerllm", "deploy", "--pretrained_model_type", "saas/openai", "--model", "chat"),
        *("--num_workers", 2, "--worker_concurrency", 10, "--gpus_per_worker", 1),
        *("--infer_params", "saas.base_url=https://api.example/v1", "saas.model=far"),
        *("saas.api_key=geheim",),
    )
    assert imported.refusals == ()
    assert "geheim" not in told(imported) + str(imported.pools)
    assert any("/dev/stdin chat.key" in line for line in imported.commands)
    [pool] = imported.pools.values()
    assert (pool["infer_type"], pool["model_name"], pool["workers"]) == ("saas", "far", 2)
    assert "per_proc_gpus" not in pool
    args = parse_saas_args(pool[ENGINE_ARGS])
    assert (args.base_url, args.max_parallel) == ("https://api.example/v1", 10)
    assert str(args.api_key_file) == "chat.key"


@pytest.mark.parametrize("row", [row for row in TABLES["byzerllm_params"] if "saas" in row.name])
def test_arguments_of_a_host_need_a_host(row: Key) -> None:
    name, value = concrete(row)
    imported = run(
        *("byzerllm", "deploy", "--model_path", MODEL, "--infer_params", f"{name}={value}")
    )
    assert any("--pretrained_model_type saas/VENDOR" in reason for reason in imported.refusals)


def test_what_no_host_takes_is_refused() -> None:
    flags = ("--pretrained_model_type", "saas/openai", "--model_path", MODEL)
    imported = run("byzerllm", "deploy", *flags, "--infer_params", "saas.resoning_effort=low")
    assert any("did you mean 'reasoning_effort'" in reason for reason in imported.refusals)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"max_model_len": 4096}, ["--ctx-size", "32768", "--parallel", "8"]),
        (
            {"max_num_seqs": 3, "max_model_len": "1k", "threads": 2},
            ["--ctx-size", "3000", "--parallel", "3", "--threads", "2"],
        ),
        ({"max_model_len": 131072}, ["--ctx-size", "131072", "--parallel", "1"]),
        ({"ctx_size": 4096}, ["--ctx-size", "4096"]),  # llama-server's own word
    ],
)
def test_a_request_has_the_context_that_it_had(args: dict[str, Any], words: list[str]) -> None:
    """llama.cpp divides --ctx-size among its slots; what was imported is each request's."""
    args = {"model": "/m.gguf", **args}
    found = flagscale.read([{"serve_id": "a", "engine": "llama_cpp", "engine_args": args}])
    assert not found.refusals
    assert found.pools["a"]["engine_args"] == words
