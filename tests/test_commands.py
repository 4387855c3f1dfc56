"""The command line as such: help, examples, exit codes, refusals, completion."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from gpupool import __version__, cli
from tests.pool import ROOT, free_port

PAGE = (ROOT / "docs" / "cli.md").read_text()
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.yaml")])


class Command:
    """`gpupool ...` in this process, with a run directory of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capfd = capfd

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["gpupool", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = self._capfd.readouterr()
        return int(ended.value.code or 0), out, err


@pytest.fixture(name="gpupool")
def _gpupool(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    monkeypatch.setenv("GPUPOOL_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("GPUPOOL_LOCK_DIR", str(tmp_path / "locks"))
    return Command(monkeypatch, capfd)


@pytest.mark.parametrize("name", cli.EXAMPLES)
def test_every_command_has_an_example_and_a_place_in_the_documentation(
    gpupool: Command, name: str
) -> None:
    code, out, _ = gpupool(name, "--help")
    assert code == 0
    assert f"example: {cli.EXAMPLES[name]}" in out
    assert re.search(rf"^\| `{name}[ `]", PAGE, re.MULTILINE)


def test_help_lists_every_command_and_the_exit_codes(gpupool: Command) -> None:
    for arguments in ((), ("--help",)):
        code, out, _ = gpupool(*arguments)
        assert code == 0
        assert re.findall(r"^  ([a-z]+)  ", out, re.MULTILINE) == list(cli.EXAMPLES)
        assert " ".join(cli.CODES.split()) in " ".join(out.split())
    for code in re.findall(r"\d+", cli.CODES):
        assert re.search(rf"^\| {code} \|", PAGE, re.MULTILINE)


def documented() -> list[str]:
    """Every line of the documentation that is a command."""
    lines = [line for path in DOCUMENTS for line in path.read_text().splitlines()]
    found = [re.sub(r"\s+#.*", "", line).removeprefix("$ ") for line in lines]
    quoted = [match for line in lines for match in re.findall(r"`(gpupool [^`]+)`", line)]
    found = [line for line in found if line.startswith("gpupool ")] + quoted
    return sorted({*found, *cli.EXAMPLES.values()})


@pytest.mark.parametrize("line", documented())
def test_every_documented_command_line_is_understood(line: str) -> None:
    _, name, *words = shlex.split(line)
    if name == "--install-completion" or "--help" in words:
        return
    group = typer.main.get_command(cli.build([name]))
    command = group.get_command(typer.Context(group), name)  # type: ignore[attr-defined]
    if name == "plan" and "--model_name" not in words:
        words += ["--model_name", "M"]  # where the text only speaks of the command
    if name in ("query", "import") and not words:
        words += ["M"]
    command.make_context(name, words)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--ctx-size", "1"), "engine arguments stand in the file, as `engine_args: --ctx-"),
        (("leses",), "Did you mean 'leases'?; see gpupool --help"),
        (("run", "--fiel", "x"), "No such option: --fiel"),
        (("run", "-f", "/nowhere.yaml"), "/nowhere.yaml: No such file or directory"),
        (("restart",), "no pool runs; start one with gpupool run"),
        (("stop", "x"), "'x' is no pool that gpupool run started; no pool runs"),
        (("logs",), "no pool was started here"),
        (("logs", "x"), "no log of a pool 'x'"),
        (("query", "x", "y"), "'x' is no pool or model that runs here; none runs"),
        (("query", "x", "--url", "here"), "--url 'here' is no address"),
        (("query", "x", "--url", "http://x"), "nothing to ask"),
        (("query", "x", "--url", "http://x", "-f", "/nowhere"), "--file '/nowhere': No such file"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_2(
    gpupool: Command, arguments: tuple[str, ...], said: str
) -> None:
    code, out, err = gpupool(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("gpupool: error: ")
    assert err.count("\n") == 1


def test_the_schema_that_is_printed_is_the_one_in_the_package(
    gpupool: Command, tmp_path: Path
) -> None:
    kept = ROOT / "gpupool" / "pools" / "pool.schema.json"
    assert gpupool("schema") == (0, kept.read_text(), "")
    assert gpupool("schema", "-o", tmp_path / "s.json")[:2] == (0, "")
    assert (tmp_path / "s.json").read_text() == kept.read_text()
    assert json.loads(kept.read_text())["$id"] == "urn:gpupool:pool.yaml"


def test_without_pools_there_is_nothing_to_show_or_stop(gpupool: Command) -> None:
    code, out, _ = gpupool("status")
    assert (code, "no pool runs" in out) == (0, True)
    assert gpupool("status", "--json")[1].split() == ["{", '"pools":', "[]", "}"]
    assert gpupool("stop")[:2] == (0, "no pool runs\n")


def test_a_dry_run_says_what_would_start_and_starts_nothing(
    gpupool: Command, tmp_path: Path
) -> None:
    file = tmp_path / "pool.yaml"
    port, other = free_port(), free_port()
    file.write_text(
        "infer_type: tests.engines.scripted:ScriptedEngine\napi_key: s3cret\nworkers: 2\n"
        f"models: {{a: {{model_name: A, port: {port}}}, b: {{model_name: B, port: {other}}}}}\n"
    )
    code, out, err = gpupool("run", "-f", file, "--dry-run")
    assert code == 0, err
    assert f"a: A by tests.engines.scripted:ScriptedEngine on http://127.0.0.1:{port}" in out
    assert out.count("  worker 1: CPU cores") == 2
    assert "lock_dir: " + str(tmp_path / "locks") + "  (environment)" in out
    assert "s3cret" not in out
    assert not list((tmp_path / "run").glob("*/"))


def test_a_dry_run_refuses_what_a_start_would(gpupool: Command, tmp_path: Path) -> None:
    file = tmp_path / "pool.yaml"
    file.write_text("model_name: A\ninfer_type: nowhere:Engine\n")
    code, _, err = gpupool("run", "-f", file, "--dry-run")
    assert code == 2
    assert "pool 'pool': " in err
    assert "'nowhere'" in err


def test_only_one_pool_can_be_in_the_foreground(gpupool: Command, tmp_path: Path) -> None:
    file = tmp_path / "pool.yaml"
    file.write_text("model_name: A\nmodels: {a: {port: 1}, b: {port: 2}}\n")
    code, _, err = gpupool("run", "-f", file, "--foreground")
    assert code == 2
    assert "name one of a, b" in err


def test_names_of_pools_are_completed(gpupool: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpupool.commands import names
    from gpupool.pools import run_dir

    record = '{"name": "%s", "pid": 1, "start_ticks": 1, "boot_id": "", "pid_namespace": "",'
    record += '"url": "", "model": "", "file": "", "since": "", "overlay": {}}'
    for name in ("small", "other"):
        (run_dir.folder_of(name) / "pool.json").write_text(record % name)
    assert names.complete("s") == ["small"]
    monkeypatch.setenv("GPUPOOL_RUN_DIR", "/proc/none")
    assert names.complete("s") == []


def test_names_of_a_files_pools_are_completed(tmp_path: Path) -> None:
    from gpupool.commands import names

    file = tmp_path / "pool.yaml"
    file.write_text("models: {small: {port: 1}, other: {port: 2}}\n")
    context = typer.Context(typer.main.get_command(cli.build(["run"])))
    context.params = {"file": file}
    assert names.complete_of_file(context, "s") == ["small"]
    context.params = {"file": tmp_path / "none"}
    assert names.complete_of_file(context, "s") == []


@pytest.mark.parametrize("flag", ["--version", "-h"])
def test_version_and_help_are_where_they_are_looked_for(gpupool: Command, flag: str) -> None:
    code, out, _ = gpupool(flag)
    assert code == 0
    assert out.startswith("gpupool " if flag == "--version" else "Usage: gpupool ")
    assert gpupool("run", "-h")[1].startswith("Usage: gpupool run ")


def test_the_package_is_a_command() -> None:
    command = [sys.executable, "-m", "gpupool", "--version"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == f"gpupool {__version__}\n"


def test_logs_of_a_worker_that_is_not_there_are_refused(gpupool: Command) -> None:
    from gpupool.pools import run_dir

    run_dir.folder_of("a")
    run_dir.log_of("a").write_text("[t] [8] [INFO] ready worker=0 pid=8\n")
    assert gpupool("logs", "a", "--worker", "0")[0] == 0
    code, out, err = gpupool("logs", "a", "--worker", "7")
    assert (code, out) == (2, "")
    assert "--worker 7: pool 'a' has no such worker" in err


def test_doctor_tells_programs_too(gpupool: Command) -> None:
    code, out, _ = gpupool("doctor", "--json")
    checks = json.loads(out)["checks"]
    assert {"name", "is_wrong", "text", "fix"} == set(checks[0])
    assert code == int(any(check["is_wrong"] for check in checks))


def test_doctor_ends_with_1_where_something_is_wrong(
    gpupool: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_memory_usage_threshold", "95%")
    code, out, _ = gpupool("doctor")
    assert code == 1
    [line] = [line for line in out.splitlines() if "RAY_memory_usage_threshold" in line]
    assert line.startswith("WRONG  Ray's memory monitor: ")
