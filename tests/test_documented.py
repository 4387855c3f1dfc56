"""Every command of README and docs/, and every example, is run by a test, or it is said why not.

A new command that nothing runs fails here: write its test, and name it in RUN_BY.
"""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.documented import commands_of
from tests.pool import ROOT

DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
COMMANDS = sorted({command for path in DOCUMENTS for command in commands_of(path)})
DEMO = "server/test_readme.py::test_the_commands_run_the_demo_file_from_its_start_to_its_end"
NODES = "ray_pool/test_nodes.py::test_a_dead_node_loses_no_request_and_stops_costing_any_within_5_s"
MIGRATE = "test_migrate.py::test_every_command_of_the_document_runs"

RUN_BY = {
    "make demo": "server/test_readme.py::test_make_demo_answers_and_ctrl_c_leaves_nothing",
    "curl -s http://127.0.0.1:5002/infer ": (
        "server/test_readme.py::test_make_demo_answers_and_ctrl_c_leaves_nothing"
    ),
    "curl -s http://127.0.0.1:5002/v1/chat/completions ": (
        "server/test_readme.py::test_make_demo_answers_and_ctrl_c_leaves_nothing"
    ),
    "curl -s http://127.0.0.1:5002/v1/rerank ": (
        "server/test_rerank_llama.py::test_the_example_of_the_document_runs"
    ),
    "bash start_gunicorn.sh --model_name Qwen/Qwen2.5-7B-Instruct": (
        "server/test_readme.py::test_the_start_lines_get_as_far_as_the_model"
    ),
    "bash start_gunicorn.sh --model_name /models/llama-70b ": (
        "server/test_readme.py::test_the_start_lines_get_as_far_as_the_model"
    ),
    "bash start_gunicorn.sh --model_name Qwen/Qwen2.5-72B-Instruct --infer_type saas ": (
        "server/test_saas_pool.py::test_a_prompt_is_continued_by_the_other_pool"
    ),
    "bash start_gunicorn.sh --launcher ray ": (
        "ray_pool/test_whole.py::"
        "test_a_pool_answers_streams_and_when_stopped_what_it_let_in_and_leaves_nothing"
    ),
    "export RAY_": NODES,
    "ray start ": NODES,
    "gpupool run -f examples/demo.yaml": DEMO,
    "gpupool status": DEMO,
    "gpupool query small ": DEMO,
    "gpupool logs small ": DEMO,
    "gpupool restart small": DEMO,
    "gpupool stop": DEMO,
    "gpupool plan ": "test_cli.py::test_the_examples_in_the_documentation_are_what_is_printed",
    "gpupool import ": MIGRATE,
    "cp deploy/nginx/": "server/test_nginx.py::test_nginx_takes_the_example_as_it_is",
    "nginx -t ": "server/test_nginx.py::test_nginx_takes_the_example_as_it_is",
    "install -m 644 gpupool@.service ": (
        "test_deploy.py::test_systemd_has_nothing_to_say_of_the_units"
    ),
    "systemd-tmpfiles ": "test_deploy.py::test_the_folder_of_the_leases_is_made_open_to_all_users",
    "install -D -m 600 gpupool.env.example ": (
        "test_deploy.py::test_every_line_of_the_environment_example_is_a_setting"
    ),
}
"""What a command begins with, and the test that runs it, or what it does, as far as that can be
without its machine."""

MODEL = "the model is not here: a line of `gpupool plan`, which test_cli.py has read again as flags"
OWN = "it runs the tests, so no test can; that it is there: test_the_make_targets_are_there"
SYSTEMD = "it needs systemd as the first process and root; the files are tested in test_deploy.py"
NOT_RUN = {
    "pip install ": "it downloads; what it names exists: test_the_extras_of_the_install_line_exist",
    "make install": "what the tests run in was made by it",
    "make test": OWN,
    "make test-fast": OWN,
    "make prove": OWN,
    "bash start_gunicorn.sh --model_name bge-reranker": (
        "the model is not here: server/test_rerank_llama.py has one of random weights"
    ),
    "bash start_gunicorn.sh --model_name meta-llama/": MODEL,
    "bash start_gunicorn.sh --model_name Qwen/Qwen2.5-7B-Instruct --per_proc_gpus 1 ": MODEL,
    "bash start_gunicorn.sh --model_name deepseek-ai/": MODEL,
    "ANTHROPIC_API_KEY=... ": (
        "it needs a vendor's key: server/test_saas.py::test_a_vendor_is_asked_by_litellm has a host"
    ),
    "python3 -m venv .venv && ": "it downloads: the lines of README",
    ". .venv/bin/activate": "it changes the shell for the next line",
    "kubectl ": "it needs a Kubernetes; the file is tested in test_deploy.py",
    "install -m 600 /dev/stdin ": "it waits for a key that is typed",
    "python3 -m venv /opt": "it writes to /opt",
    "/opt/gpupool/.venv/bin/pip ": "it writes to /opt, and downloads",
    "cd ": "it changes the folder for the next line",
    "install -m 644 gpupool.": SYSTEMD,
    "systemd-sysusers": SYSTEMD,
    "systemctl ": SYSTEMD,
}
"""What a command begins with, and why no test runs it."""

EXAMPLES = {
    "demo.sh": "server/test_readme.py::test_make_demo_answers_and_ctrl_c_leaves_nothing",
    "demo.yaml": DEMO,
}


def entry_of(command: str) -> str | None:
    """The longest one that it begins with."""
    found = [start for start in (*RUN_BY, *NOT_RUN) if (command + " ").startswith(start)]
    return max(found, key=len, default=None)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_run_by_a_test_or_it_is_said_why_not(command: str) -> None:
    assert entry_of(command) is not None, "no test runs it: see tests/test_documented.py"


@pytest.mark.parametrize("start", [*RUN_BY, *NOT_RUN])
def test_no_entry_is_without_a_command(start: str) -> None:
    assert start in map(entry_of, COMMANDS)


@pytest.mark.parametrize("node", sorted({*RUN_BY.values(), *EXAMPLES.values()}))
def test_a_test_that_is_named_exists(node: str) -> None:
    path, _, name = node.partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / "tests" / path).read_text(), re.MULTILINE)


def test_every_example_is_run_by_a_test() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "examples"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    names = {line.removeprefix("examples/") for line in listed.stdout.splitlines()}
    assert names == set(EXAMPLES)


def test_commands_are_found_whole_and_without_comments() -> None:
    commands = commands_of(ROOT / "docs" / "llama-cpp.md")
    assert len([one for one in commands if one.startswith("curl") and one.endswith("}'")]) == 1
    assert "gpupool import deploy.yaml" in commands_of(ROOT / "docs" / "migrate.md")
    assert 'gpupool plan --model_name deepseek-ai/DeepSeek-V3 --gpu "8x H200"' in COMMANDS
