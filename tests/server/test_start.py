"""start_gunicorn.sh: flags, refusals, and that a plain gunicorn is the same pool."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gpupool import __version__
from tests.machine import fake_machine
from tests.pool import ROOT, Pool, clean_environment, free_port, is_alive, wait_until

pytestmark = pytest.mark.server

SCRIPTED = "tests.engines.scripted:ScriptedEngine"


def start(*flags: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the script until it ends by itself."""
    return subprocess.run(
        ["bash", str(ROOT / "start_gunicorn.sh"), *flags],
        env=clean_environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refusal(*flags: str, env: dict[str, str] | None = None) -> str:
    """The one line of a refused start."""
    done = start(*flags, env=env)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("gpupool: error: ")
    return lines[0]


def test_an_unknown_flag_is_named_with_the_nearest() -> None:
    assert "(did you mean --model_name?)" in refusal("--modle_name", "x")


def test_a_missing_value_is_named() -> None:
    assert "'--model_name' requires an argument" in refusal("--model_name")


@pytest.mark.parametrize("follows", [["--port", "1"], ["--port=1"], ["--per-proc-gpus", "1"]])
def test_a_flag_is_not_taken_for_a_missing_value(follows: list[str]) -> None:
    line = refusal("--model_name", *follows)
    assert f"'--model_name' requires an argument, but '{follows[0]}' follows" in line


@pytest.mark.parametrize("flag", ["--api_key", "--api-key", "--served_model_name", "--cors_origin"])
def test_a_value_with_a_comma_does_not_silently_become_two(flag: str) -> None:
    line = refusal("--model_name", "x", "--infer_type", SCRIPTED, flag, "secret,word")
    assert f"{flag}: a value has a comma" in line
    assert "secret" not in line


def test_a_word_that_is_no_flag_is_named() -> None:
    assert "'x'" in refusal("x")


def test_no_model_says_how_to_give_one() -> None:
    assert "--model_name (HF_MODEL_NAME)" in refusal("--infer_type", SCRIPTED)


def test_an_unknown_engine_is_named() -> None:
    assert "did you mean 'vllm'" in refusal("--model_name", "x", "--infer_type", "vlm")


def test_a_plugin_that_is_not_there_is_named() -> None:
    assert "'nowhere'" in refusal("--model_name", "x", "--infer_type", "nowhere:Engine")


def test_a_taken_port_names_who_has_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = refusal("--model_name", "x", "--infer_type", SCRIPTED, "--port", port)
    assert port in line
    assert f"pid {os.getpid()}" in line


def test_a_quorum_that_cannot_be_reached_is_refused() -> None:
    flags = ("--model_name", "x", "--infer_type", SCRIPTED, "--host", "192.0.2.1")
    line = refusal(*flags, "--ready_quorum", "2")
    assert "--ready_quorum (GPUPOOL_READY_QUORUM) is 2" in line


def test_a_host_that_is_not_ours_is_refused() -> None:
    line = refusal("--model_name", "x", "--infer_type", SCRIPTED, "--host", "192.0.2.1")
    assert "192.0.2.1" in line


def test_a_path_that_is_not_there_is_refused_before_an_engine_is_imported(tmp_path: Path) -> None:
    line = refusal("--model_name", f"{tmp_path}/none", "--infer_type", "vllm")
    assert f"{tmp_path}/none': no such file or folder; check the path" in line


@pytest.mark.parametrize("infer_type", ["vllm", "transformers", "llama_cpp"])
def test_a_path_that_is_no_model_is_refused(infer_type: str, tmp_path: Path) -> None:
    line = refusal("--model_name", str(tmp_path), "--infer_type", infer_type)
    assert str(tmp_path) in line


def test_more_gpus_per_worker_than_there_are_is_refused(tmp_path: Path) -> None:
    with fake_machine(tmp_path, gpus=2) as machine:
        flags = ("--model_name", "x", "--infer_type", SCRIPTED, "--per_proc_gpus", "4")
        line = refusal(*flags, env=machine.env())
    assert "--per_proc_gpus (PER_PROC_GPUS) is 4" in line


def test_more_gpus_per_worker_without_gpus_is_refused() -> None:
    flags = ("--model_name", "x", "--infer_type", SCRIPTED, "--per_proc_gpus", "2")
    assert "--per_proc_gpus (PER_PROC_GPUS) is 2" in refusal(*flags)


def test_help_is_printed_and_nothing_is_started() -> None:
    done = start("--help")
    assert done.returncode == 0
    assert "--model_name MODEL" in done.stdout
    assert start("-h").stdout == done.stdout
    assert start("--version").stdout == f"gpupool {__version__}\n"


SPELLINGS = {
    "ours": ["--model_name", "M", "--infer_type", SCRIPTED],
    "hyphens": ["--model-name", "M", "--infer-type", SCRIPTED],
    "oldest": ["--hf-model-name", "M", "--infer-type", SCRIPTED, "--per-proc-gpus", "1"],
    "short": ["--model", "M", "--infer_type", SCRIPTED],
    "equals": ["--model_name=M", f"--infer_type={SCRIPTED}"],
}


@pytest.mark.parametrize("flags", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_every_spelling_starts_the_pool(flags: list[str], tmp_path: Path) -> None:
    with Pool(tmp_path, *flags, "--", "--slots", "3") as pool:
        pool.wait_ready()
        assert pool.get("/pool")[1]["model"] == "M"
        assert pool.infer("abc", max_tokens=4) == ["abca"]


def test_a_repeated_api_key_is_a_list_of_keys(tmp_path: Path) -> None:
    flags = ("--model_name", "M", "--infer_type", SCRIPTED, "--api_key", "one", "--api-key", "two")
    with Pool(tmp_path, *flags) as pool:
        pool.wait_ready(Authorization="Bearer two")
        body = {"instances": "ab", "params": {"max_tokens": 2}}
        assert pool.post("/infer", body)[0] == 401
        for key in ("one", "two"):
            assert pool.post("/infer", body, Authorization=f"Bearer {key}") == (200, ["ab"])


def test_a_yaml_file_gives_what_flags_do_not(tmp_path: Path) -> None:
    config = tmp_path / "pool.yaml"
    config.write_text(f"model_name: from-yaml\ninfer_type: {SCRIPTED}\nport: 1\n")
    with Pool(tmp_path, "--config", str(config)) as pool:
        pool.wait_ready()
        assert pool.get("/pool")[1]["model"] == "from-yaml"


def test_engine_arguments_reach_the_engine_as_they_were_typed(tmp_path: Path) -> None:
    flags = ("--model_name", "M", "--infer_type", "tests.engines.echoes_arguments:EchoesArguments")
    typed = ["--a", "two words", "it's", '"quoted"', "$HOME", "", "--model_name", "*"]
    with Pool(tmp_path, *flags, "--", *typed) as pool:
        pool.wait_ready()
        assert pool.get("/pool")[1]["model"] == "M"
        assert f"arguments: {tuple(typed)!r}" in pool.log()


def test_the_active_environment_goes_before_the_one_beside(tmp_path: Path) -> None:
    active = tmp_path / "bin" / "python"
    active.parent.mkdir()
    active.write_text("#!/bin/sh\necho the active python was asked >&2\nexit 1\n")
    active.chmod(0o755)
    path = f"{active.parent}:{os.environ['PATH']}"
    done = start("--help", env={"VIRTUAL_ENV": str(tmp_path), "PATH": path})
    assert done.returncode == 2
    assert "the active python was asked" in done.stderr


def test_a_plain_gunicorn_with_the_same_environment_is_the_same_pool(tmp_path: Path) -> None:
    port = free_port()
    env = clean_environment(
        HF_MODEL_NAME="M",
        INFER_TYPE=SCRIPTED,
        PORT=str(port),
        GPUPOOL_WORKERS="2",
        GPUPOOL_ENGINE_ARGS="--slots 3",
        PYTHONPATH=str(ROOT),
    )
    pool = Pool(tmp_path, "--model_name", "unused")
    pool.port, pool.url = port, f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn_conf.py")]
    with pool.log_path.open("wb") as log:
        pool.process = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=log)
    try:
        pool.wait_ready(workers=2)
        assert pool.get("/pool")[1]["model"] == "M"
    finally:
        assert pool.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "term"])
def test_a_stopped_pool_leaves_nothing_running(number: int, tmp_path: Path) -> None:
    with Pool(tmp_path, "--model_name", "M", "--infer_type", SCRIPTED, "--workers", "2") as pool:
        pool.wait_ready(workers=2)
        pids = pool.pids()
        assert len(pids) == 5  # the master, two workers, two guardians
        assert pool.stop(number) == 0
        wait_until(lambda: not any(map(is_alive, pids)), 5, "the end of every process")


def test_the_master_never_imports_what_a_worker_does(tmp_path: Path) -> None:
    with Pool(tmp_path, "--model_name", "M", "--infer_type", SCRIPTED) as pool:
        pool.wait_ready()
        assert heavy_libraries(pool.process.pid) == []
        pool.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "reload: done" in pool.log(), 30, "the end of a reload")
        assert heavy_libraries(pool.process.pid) == []


def heavy_libraries(pid: int) -> list[str]:
    maps = Path(f"/proc/{pid}/maps").read_text()
    return [name for name in ("libtorch", "libcuda", "libnvidia-ml") if name in maps]
