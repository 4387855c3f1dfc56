"""Every command of the README, as a reader would type it."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import Commands
from tests.machine import fake_machine
from tests.pool import ROOT, clean_environment, free_port, is_alive, wait_until

pytestmark = pytest.mark.server

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    re.sub(r"\s+#.*", "", line)
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line
]


def test_every_command_of_the_readme_has_a_test() -> None:
    tested = ("make demo", "make test", "curl ", "pip install '.[vllm]'", "bash start_gunicorn.sh ")
    tested += ("gpupool ",)
    assert [command for command in COMMANDS if not command.startswith(tested)] == []


@pytest.mark.model
@pytest.mark.timeout(180)
def test_make_demo_answers_and_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    port = free_port()
    log_path = tmp_path / "demo.log"
    with log_path.open("wb") as log:
        demo = subprocess.Popen(
            ["make", "demo"],
            cwd=ROOT,
            env=clean_environment(PORT=str(port), GPUPOOL_LOCK_DIR=str(tmp_path)),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    import psutil

    try:
        line = wait_until(
            lambda: re.search(r"try: (curl .*)", log_path.read_text()), 120, "the line to try"
        )
        answer = subprocess.run(
            shlex.split(line[1]), capture_output=True, text=True, timeout=60, check=True
        )
        assert "Paris" in answer.stdout
        asking = [command for command in COMMANDS if command.startswith("curl")]
        for command, expected in zip(asking, ("Paris", '"chat.completion"'), strict=True):
            here = shlex.split(command.replace("5002", str(port)))
            answer = subprocess.run(here, capture_output=True, text=True, timeout=60, check=True)
            assert expected in answer.stdout
        tree = psutil.Process(demo.pid).children(recursive=True)
        assert len(tree) >= 5
    except BaseException:
        print(log_path.read_text())
        raise
    finally:
        # What a terminal does at Ctrl-C: the whole foreground group gets it.
        os.killpg(demo.pid, signal.SIGINT)
        demo.wait(30)
    wait_until(lambda: not any(is_alive(p.pid) for p in tree), 5, "the end of every process")


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(180)
def test_the_commands_run_the_demo_file_from_its_start_to_its_end(tmp_path: Path) -> None:
    demo = (ROOT / "examples" / "demo.yaml").read_text()
    for port in (5002, 5003):
        demo = demo.replace(str(port), str(free_port()))
    with Commands(tmp_path) as gpupool:
        gpupool.file.write_text(demo)
        outputs = {}
        for command in COMMANDS:
            if command.startswith("gpupool "):
                _, *words = shlex.split(command.replace("examples/demo.yaml", str(gpupool.file)))
                if words[0] == "query":
                    words += ["--temperature", "0", "--max_tokens", "4"]
                done = gpupool(*words)
                assert done.returncode == 0, (command, done.stdout, done.stderr)
                outputs[words[0]] = done.stdout
    assert outputs["status"].count(": ready 1 of 1") == 2
    assert outputs["query"].strip()
    assert "small: restarted" in outputs["restart"]
    assert sorted(outputs["stop"].splitlines()) == ["other: stopped", "small: stopped"]


@pytest.mark.model
@pytest.mark.timeout(120)
def test_where_gpus_are_the_demo_says_how_to_use_them(tmp_path: Path) -> None:
    with fake_machine(tmp_path, gpus=2) as machine:
        env = clean_environment(PORT=str(free_port()), **machine.env())
        lines = []
        with subprocess.Popen(
            ["bash", str(ROOT / "examples" / "demo.sh")],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as demo:
            assert demo.stdout is not None
            for line in demo.stdout:
                lines.append(line)
                if "try: curl" in line:
                    os.killpg(demo.pid, signal.SIGINT)
    assert "GPUs found" in lines[0]
    assert "bash start_gunicorn.sh --model_name" in lines[1]


@pytest.mark.timeout(180)
def test_the_start_lines_get_as_far_as_the_model(tmp_path: Path) -> None:
    lines = [command for command in COMMANDS if command.startswith("bash start_gunicorn.sh")]
    assert len(lines) == 2
    with fake_machine(tmp_path, gpus=4, links=[(0, 1), (2, 3)]) as machine:
        for line in lines:
            offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "VLLM_TARGET_DEVICE": "cpu"}
            env = clean_environment(**offline, **machine.env())
            done = subprocess.run(
                shlex.split(line),
                cwd=ROOT,
                env=env | {"PORT": str(free_port())},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            model = shlex.split(line)[shlex.split(line).index("--model_name") + 1]
            assert done.returncode == 2, done
            assert "gpupool: error: --model_name" in done.stderr
            assert model in done.stderr


def test_the_extras_of_the_install_line_exist() -> None:
    metadata = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"\.\[([a-z-]+)\]", README):
        assert re.search(rf"^{extra} = \[", metadata, re.MULTILINE), extra


@pytest.mark.parametrize("target", ["test", "test-fast", "test-long", "prove", "demo"])
def test_the_make_targets_are_there(target: str) -> None:
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_the_machine_is_shown(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "dispatcher.py"), *arguments],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "slice" in done.stdout
