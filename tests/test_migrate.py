"""`gpupool import`: whole files and command lines of predecessors, and the pool.yaml of each."""

from __future__ import annotations

import shlex
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpupool import cli
from gpupool.errors import ConfigError
from gpupool.migrate.byzerllm_stat import KEYS, as_stat
from gpupool.migrate.source import Found, read_file, read_words
from gpupool.settings import Settings
from tests.pool import ROOT

EXPERIMENT = """
defaults: [_self_, {serve: 7b}]
experiment:
  exp_name: qwen2.5_7b
  exp_dir: outputs/${experiment.exp_name}
  task: {type: serve, entrypoint: null}
  runner: {hostfile: null, deploy: {port: 6701, use_fs_serve: true}}
  envs: {CUDA_VISIBLE_DEVICES: 0, CUDA_DEVICE_MAX_CONNECTIONS: 1}
  cmds: {before_start: source env.sh}
action: run
hydra: {run: {dir: "${experiment.exp_dir}/hydra"}}
"""
SERVE = """
- serve_id: vllm_model
  engine: vllm
  engine_args:
    model: /models/Qwen2.5-7B-Instruct
    tensor_parallel_size: 2
    max_model_len: 32768
    trust_remote_code: true
    enforce_eager: false
    port: 8000
  resources: {num_replicas: 4, num_gpus: 2}
"""
OLD_SERVE = """
model_args:
  vllm_model:
    model-tag: /models/Qwen2.5-7B-Instruct
    tensor-parallel-size: 1
    gpu-memory-utilization: 0.9
    port: 4567
    action-args: [trust-remote-code, enable-chunked-prefill]
deploy:
  command-line-mode: true
  models: {vllm_model: {num_gpus: 1}}
"""


@pytest.fixture(name="experiment")
def _experiment(tmp_path: Path) -> Path:
    (tmp_path / "serve").mkdir()
    (tmp_path / "serve" / "7b.yaml").write_text(SERVE)
    path = tmp_path / "serve.yaml"
    path.write_text(EXPERIMENT)
    return path


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def pools(found: Found) -> dict[str, Any]:
    assert found.imported is not None
    assert found.imported.refusals == ()
    return found.imported.pools


def refusals(found: Found) -> str:
    assert found.imported is not None
    return "\n".join(found.imported.refusals)


class Command:
    """The command in this process: exit code, output, errors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["gpupool", "import", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = self._capfd.readouterr()
        return int(ended.value.code or 0), out, err


@pytest.fixture(name="command")
def _command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


# FlagScale.


def test_an_experiment_is_composed_with_its_serve_file(experiment: Path) -> None:
    assert pools(read_file(experiment, {})) == {
        "qwen2.5_7b": {
            "model_name": "/models/Qwen2.5-7B-Instruct",
            "per_proc_gpus": 2,
            "infer_type": "vllm",
            "cuda_visible_devices": "0",
            "port": 6701,
            "workers": 4,
            "trust_remote_code": True,
            "engine_args": ["--max-model-len", "32768"],
        }
    }


def test_the_older_form_is_read(tmp_path: Path) -> None:
    [pool] = pools(read_file(write(tmp_path, "old.yaml", OLD_SERVE), {})).values()
    assert pool == {
        "model_name": "/models/Qwen2.5-7B-Instruct",
        "per_proc_gpus": 1,
        "infer_type": "vllm",
        "port": 4567,
        "workers": 1,
        "trust_remote_code": True,
        "engine_args": ["--gpu-memory-utilization", "0.9", "--enable-chunked-prefill"],
    }


def test_models_of_one_file_are_pools_with_ports_of_their_own(tmp_path: Path) -> None:
    text = SERVE.replace("vllm_model", "a") + SERVE.replace("vllm_model", "b")
    found = pools(read_file(write(tmp_path, "two.yaml", text.replace("    port: 8000\n", "")), {}))
    assert [(name, pool["port"]) for name, pool in found.items()] == [("a", 8000), ("b", 8001)]


def test_replicas_are_as_many_as_before(tmp_path: Path) -> None:
    text = SERVE.replace("num_replicas: 4, ", "")
    assert pools(read_file(write(tmp_path, "a.yaml", text), {}))["vllm_model"]["workers"] == 1
    text = SERVE.replace("num_replicas: 4", "num_replicas: auto")
    assert "workers" not in pools(read_file(write(tmp_path, "b.yaml", text), {}))["vllm_model"]


def test_gpus_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    text = SERVE.replace("num_gpus: 2", "num_gpus: 4")
    assert "make both the same" in refusals(read_file(write(tmp_path, "a.yaml", text), {}))


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    text = SERVE.replace("num_replicas", "num_replica")
    reasons = refusals(read_file(write(tmp_path, "a.yaml", text), {}))
    assert "serve.resources.num_replica: not a known key (did you mean" in reasons


def test_a_reference_to_nothing_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", SERVE.replace("/models/Qwen2.5-7B-Instruct", "${nowhere.x}"))
    assert "${nowhere.x}" in refusals(read_file(path, {}))


def test_a_missing_serve_file_is_named(experiment: Path) -> None:
    (experiment.parent / "serve" / "7b.yaml").unlink()
    with pytest.raises(ConfigError, match="serve/7b.yaml"):
        read_file(experiment, {})


def test_flagscale_serve_wins_over_its_file(experiment: Path) -> None:
    flags = ("--model-path", "/m", "--port=9000", "--engine-args", '{"max_model_len": 512}')
    [pool] = pools(read_words(["flagscale", "serve", "qwen", str(experiment), *flags], {})).values()
    assert (pool["model_name"], pool["engine_args"]) == ("/m", ["--max-model-len", "512"])


def test_run_py_takes_overrides(experiment: Path) -> None:
    words = ["python", "run.py", "--config-path", str(experiment.parent), "--config-name", "serve"]
    found = read_words([*words, "action=stop", "experiment.runner.deploy.port=7000"], {})
    [pool] = pools(found).values()
    assert pool["port"] == 7000
    assert found.imported is not None
    assert any("gpupool stop" in note for note in found.imported.notes)


# byzerllm.

DEPLOY = ("deploy", "--model_path", "/models/z", "--model", "zephyr", "--infer_backend")


def test_a_deploy_is_a_pool() -> None:
    words = ["byzerllm", *DEPLOY, "vllm", "--num_workers", "2", "--gpus_per_worker", "1"]
    words += ["--infer_params", "backend.max_model_len=28000", "backend.enforce_eager=true"]
    assert pools(read_words(words, {})) == {
        "zephyr": {
            "model_name": "/models/z",
            "per_proc_gpus": 1,
            "infer_type": "vllm",
            "workers": 2,
            "served_model_name": ["zephyr"],
            "engine_args": ["--max-model-len", "28000", "--enforce-eager"],
        }
    }


def test_all_refusals_are_told_at_once_and_no_secret() -> None:
    words = ["byzerllm", *DEPLOY, "deepspeed", "--gpus_per_worker", "0.4"]
    words += ["--infer_params", "saas.api_key=geheim"]
    reasons = refusals(read_words(words, {}))
    assert reasons.count("\n") == 2
    assert "geheim" not in reasons


def test_a_file_of_flags_takes_variables(tmp_path: Path) -> None:
    text = "model: m\nmodel_path: ENV {{MODEL_DIR}}/m\ninfer_params: {backend.max_model_len: 9}\n"
    path = write(tmp_path, "deploy.yaml", text)
    for found in (
        read_file(path, {"MODEL_DIR": "/data"}),
        read_words(["byzerllm", "deploy", "--file", str(path)], {"MODEL_DIR": "/data"}),
    ):
        assert pools(found)["m"]["model_name"] == "/data/m"
        assert pools(found)["m"]["engine_args"] == ["--max-model-len", "9"]
    with pytest.raises(ConfigError, match="MODEL_DIR"):
        read_file(path, {})


def test_a_script_that_deploys_and_serves_is_one_file(tmp_path: Path) -> None:
    text = """#!/bin/bash
ray start --head
export BYZERLLM_API_KEY=geheim
DIR=/models
byzerllm deploy --model_path $DIR/a \\
  --model a --gpus_per_worker 1
byzerllm deploy --model_path ${DIR}/b --model b
byzerllm serve --port 8100 --host 0.0.0.0
"""
    found = read_file(write(tmp_path, "start.sh", text), {})
    assert [pool["port"] for pool in pools(found).values()] == [8100, 8101]
    assert {pool["api_key"][0] for pool in pools(found).values()} == {"geheim"}
    assert pools(found)["a"]["model_name"] == "/models/a"
    assert found.imported is not None
    assert "stays in your script: ray start --head" in found.imported.notes


def test_stat_has_the_keys_of_byzerllm() -> None:
    workers = [
        {"inflight": 2, "running": 2, "slots": 8, "served": 33},
        {"inflight": 0, "running": 0, "slots": 8, "served": 32},
        {"inflight": 0, "running": None, "slots": None, "served": 0},
    ]
    found = as_stat({"workers": workers})
    assert list(found) == list(KEYS)
    assert (found["total_workers"], found["busy_workers"], found["idle_workers"]) == (3, 1, 2)
    assert found["total_requests"] == [33, 32, 0]
    assert (found["state"], found["worker_max_concurrency"]) == ([6, 8, 0], 8)


# Oracle.


def test_an_environment_is_a_pool(tmp_path: Path) -> None:
    text = """
BASE_MODEL=/models/llama
PARAMS="--served-model-name odsc-llm -tp 2 --max-model-len 4096 --trust-remote-code"
MODEL_DEPLOY_PREDICT_ENDPOINT=/v1/completions
MODEL_DEPLOY_ENABLE_STREAMING=true
NCCL_CUMEM_ENABLE=0
"""
    found = read_file(write(tmp_path, "deployment.env", text), {})
    assert pools(found) == {
        "odsc-llm": {
            "model_name": "/models/llama",
            "per_proc_gpus": 2,
            "infer_type": "vllm",
            "port": 8080,
            "workers": 1,
            "served_model_name": ["odsc-llm"],
            "trust_remote_code": True,
            "engine_args": ["--max-model-len", "4096"],
        }
    }
    assert found.imported is not None
    assert found.imported.commands == ("export NCCL_CUMEM_ENABLE=0",)


def test_a_description_of_a_deployment_is_read(tmp_path: Path) -> None:
    text = '{"id": "x", "environment_variables": {"BASE_MODEL": "m", "PORT": "8080"}}'
    assert pools(read_file(write(tmp_path, "d.json", text), {}))["m"]["port"] == 8080


def test_the_family_of_the_container_is_the_engine() -> None:
    words = ["ads", "aqua", "deployment", "create", "--cmd_var", "--ctx-size 4096"]
    words += ["--model_file=/m.gguf", "--container_family", "odsc-llama-cpp-serving"]
    [pool] = pools(read_words(words, {})).values()
    assert (pool["infer_type"], pool["engine_args"]) == ("llama_cpp", ["--ctx-size", "4096"])


# The command.


def test_what_is_written_reads_back_as_settings(experiment: Path, command: Command) -> None:
    code, out, err = command(experiment)
    assert (code, err) == (0, "")
    [pool] = yaml.safe_load(out)["models"].values()
    assert Settings(**pool).engine_args == ("--max-model-len", "32768")
    assert "#   source env.sh\n#   export CUDA_DEVICE_MAX_CONNECTIONS='1'\n#   gpupool run" in out


def test_every_command_of_the_document_runs(
    experiment: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    for name in ("serve.yaml", "serve"):
        (tmp_path / name).rename(tmp_path / "conf" / name)
    write(tmp_path, "deploy.yaml", "model: m\nmodel_path: /m\n")
    write(tmp_path, "start.sh", "byzerllm deploy --model_path /m --model m\n")
    write(tmp_path, "deployment.env", "BASE_MODEL=/m\n")
    block = (ROOT / "docs" / "migrate.md").read_text().split("```")[1]
    lines = [shlex.split(line, comments=True) for line in block.splitlines() if line]
    assert len(lines) == 8
    for line in lines:
        assert line[:2] == ["gpupool", "import"]
        assert command(*line[2:])[::2] == (0, ""), line


def test_output_is_for_its_owner_and_never_overwritten(
    experiment: Path, tmp_path: Path, command: Command
) -> None:
    path = tmp_path / "pool.yaml"
    assert command(experiment, "-o", path) == (0, "", "")
    assert f"#   gpupool run -f {path}\n" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    code, _, err = command(experiment, "-o", path)
    assert (code, str(path) in err) == (2, True)


def test_a_refusal_ends_with_2_unless_it_is_left_out(command: Command) -> None:
    words = ("--", "byzerllm", *DEPLOY, "vllm", "--gpus_per_worker", "0.4")
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert err.startswith("gpupool: error: deploy --gpus_per_worker '0.4': a GPU belongs to one")
    code, out, _ = command("--without", "deploy --gpus_per_worker", *words)
    assert code == 0
    assert "# - left out: deploy --gpus_per_worker" in out


def test_what_is_not_refused_cannot_be_left_out(experiment: Path, command: Command) -> None:
    assert command("--without", "port", experiment)[0] == 2


def test_what_is_none_of_it_is_refused(tmp_path: Path, command: Command) -> None:
    code, _, err = command(write(tmp_path, "a.yaml", "a: 1\n"))
    assert (code, "cannot tell what it is" in err) == (2, True)
    code, _, err = command("--", "vllm", "serve")
    assert (code, "neither a file nor a command line" in err) == (2, True)


def test_a_command_that_makes_no_pool_is_told_in_our_words(command: Command) -> None:
    words = ("--", "byzerllm", "query", "--model", "m", "--query", "it's")
    assert command(*words) == (0, "gpupool query m 'it'\"'\"'s'\n", "")
