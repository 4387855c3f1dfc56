"""Every command of the README, as a reader would type it."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser import browser, tab
from tests.commands import TALKER, Commands, session_of
from tests.demo_model import gguf_path
from tests.documented import commands_of
from tests.machine import fake_machine
from tests.pool import ROOT, Pool, clean_environment, free_port, is_alive, wait_until

pytestmark = pytest.mark.server

README = (ROOT / "README.md").read_text()
COMMANDS = commands_of(ROOT / "README.md")


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
@pytest.mark.timeout(240)
@pytest.mark.parametrize("document", ["README.md", "docs/cli.md"])
def test_the_commands_run_the_demo_file_from_its_start_to_its_end(
    document: str, tmp_path: Path
) -> None:
    """As a new user does, who asks first whether the model fits, and whose clients ask on while a
    pool restarts."""
    demo = (ROOT / "examples" / "demo.yaml").read_text()
    ports = {"small": free_port(), "other": free_port()}
    for stock, port in zip((5002, 5003), ports.values(), strict=True):
        demo = demo.replace(str(stock), str(port))
    with Commands(tmp_path) as gpupool:
        gpupool.file.write_text(demo)
        outputs = {}
        plan = f"gpupool plan --model_name {gguf_path()} --gpu A10"
        for command in [plan, *commands_of(ROOT / document)]:
            if not command.startswith("gpupool "):
                continue
            _, *words = shlex.split(command.replace("examples/demo.yaml", str(gpupool.file)))
            if words[0] == "query":
                words += ["--temperature", "0", "--max_tokens", "4"]
            if words[0] == "restart":
                done = restart_under_load(gpupool, ports["small"], words)
            else:
                done = gpupool(*words)
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            outputs[words[0]] = done.stdout
            if words[0] == "query":
                open_the_page(ports["small"])
            if words[0] == "run":
                everything = [pid for name in ports for pid in session_of(gpupool.master(name))]
    assert "KV cache" in outputs["plan"]
    assert outputs["status"].count(": ready 1 of 1") == 2
    assert outputs["query"].strip()
    assert "small: restarted" in outputs["restart"]
    assert sorted(outputs["stop"].splitlines()) == ["other: stopped", "small: stopped"]
    assert len(everything) > 4
    assert not [pid for pid in everything if is_alive(pid)]


def open_the_page(port: int) -> None:
    """And ask what it has to say."""
    with browser() as chromium, tab(chromium, f"http://127.0.0.1:{port}") as page:
        expect(page.get_by_text("1 of 1 worker ready")).to_be_visible()
        expect(page.locator("#model option")).not_to_have_count(0)
        page.locator("#prompt").fill("Say hello.")
        page.locator("#prompt").press("Enter")
        expect(page.locator(".turn:last-of-type .figures")).to_contain_text("tokens/s")


def restart_under_load(
    gpupool: Commands, port: int, words: list[str]
) -> subprocess.CompletedProcess[str]:
    """Two clients ask on; none is refused or left without its answer."""
    stop, statuses = threading.Event(), []

    def ask_on() -> None:
        while not stop.is_set():
            body = {"instances": ["The capital of France is"], "params": {"max_tokens": 4}}
            statuses.append(gpupool.attached(port).post("/infer", body)[0])

    with ThreadPoolExecutor(2) as threads:
        clients = [threads.submit(ask_on) for _ in range(2)]
        try:
            done = gpupool(*words)
        finally:
            stop.set()
        for client in clients:
            client.result()
    assert set(statuses) == {200}
    return done


def test_the_python_example_of_the_openai_page_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "openai.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    flags = ("--model_name", "M", "--infer_type", TALKER, "--api_key", "secret")
    with Pool(tmp_path, *flags) as pool:
        pool.wait_ready(Authorization="Bearer secret")
        here = example.replace("5002", str(pool.port))
        here, changed = re.subn('api_key="[^"]+"', 'api_key="secret"', here)
        assert changed == 1
        names: dict[str, Any] = {}
        exec(here, names)
        names["client"].close()
    assert "Hello" in capsys.readouterr().out


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
