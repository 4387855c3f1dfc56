"""The files of deploy/: what systemd itself says of them, and that they fit the code."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from gpupool import __version__
from gpupool.lockdir import CANDIDATES
from gpupool.notify import TEARDOWN_S
from gpupool.refusal import EXIT_REFUSED
from gpupool.settings import Settings, read_settings
from tests.documented import commands_of
from tests.pool import ROOT

DEPLOY = ROOT / "deploy"
INSTALLED = "/opt/gpupool/"
ASSIGNMENT = r"(RAY_[a-z]\w+)=(\d+)"  # what Ray's daemons read; the token is KubeRay's
# Each would hide the GPUs, stop their compilers, or hide who holds them.
BREAKS_CUDA = {
    "PrivateDevices",
    "DevicePolicy",
    "DeviceAllow",
    "ProtectClock",
    "MemoryDenyWriteExecute",
    "ProtectProc",
    "ProcSubset",
    "SystemCallFilter",
}


@pytest.fixture(name="service")
def _service() -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "gpupool@.service")
    return parser["Service"]


def test_systemd_has_nothing_to_say_of_the_units() -> None:
    units = sorted(map(str, DEPLOY.glob("gpupool@.*")))
    assert len(units) == 2
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_folder_of_the_leases_is_made_open_to_all_users(tmp_path: Path) -> None:
    conf = DEPLOY / "gpupool.tmpfiles.conf"
    subprocess.run(["systemd-tmpfiles", "--create", f"--root={tmp_path}", conf], check=True)
    made = tmp_path / CANDIDATES[0].relative_to("/")
    assert made.stat().st_mode & 0o7777 == 0o1777


def test_the_service_may_write_its_leases(service: configparser.SectionProxy) -> None:
    assert service["ReadWritePaths"] == str(CANDIDATES[0])


def test_what_the_units_name_is_there() -> None:
    text = "".join(unit.read_text() for unit in DEPLOY.glob("gpupool@.*"))
    named = set(re.findall(rf"{INSTALLED}([\w./]+)", text))
    assert named == {"start_gunicorn.sh", "docs/systemd.md"}
    assert all((ROOT / name).is_file() for name in named)


def test_the_stop_timeout_leaves_the_drain_its_time(service: configparser.SectionProxy) -> None:
    grace_s = int(Settings.model_fields["graceful_timeout_s"].default)
    assert int(service["TimeoutStopSec"]) > grace_s + TEARDOWN_S


def test_a_refused_configuration_is_not_tried_again(service: configparser.SectionProxy) -> None:
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == str(EXIT_REFUSED)


def test_only_the_master_is_signalled_and_heard(service: configparser.SectionProxy) -> None:
    assert service["KillMode"] == "mixed"
    assert service["NotifyAccess"] == "main"
    assert service["ExecReload"].endswith("-HUP $MAINPID")


def test_the_hardening_leaves_cuda_alone(service: configparser.SectionProxy) -> None:
    assert not BREAKS_CUDA & set(service)


def test_every_line_of_the_environment_example_is_a_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The commented ones too, each with a value that is taken."""
    text = (DEPLOY / "gpupool.env.example").read_text()
    found = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", text, re.MULTILINE))
    foreign = {"HF_TOKEN", "HF_HUB_OFFLINE"}
    assert foreign < set(found)
    for name in set(found) - foreign:
        monkeypatch.setenv(name, found[name] or "some-key")
    settings = read_settings()
    assert settings.model_name == "Qwen/Qwen2.5-7B-Instruct"
    assert settings.engine_args == ("--max-model-len", "8192")
    assert settings.ready_quorum == 1


def test_the_kubernetes_example_starts_what_the_page_starts_by_hand() -> None:
    job, service = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
    command = shlex.split(job["spec"]["entrypoint"])
    assert command[:2] == ["bash", f"{INSTALLED}start_gunicorn.sh"]
    flags = dict(zip(command[2::2], command[3::2], strict=True))
    assert {flag.removeprefix("--") for flag in flags} <= Settings.model_fields.keys()
    cluster = job["spec"]["rayClusterSpec"]
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "requirements/full.lock").read_text()
    lines = [one for one in commands_of(ROOT / "docs/growing.md") if one.startswith("export ")]
    told = {f"{name}={value}" for line in lines for name, value in re.findall(ASSIGNMENT, line)}
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        [container] = group["template"]["spec"]["containers"]
        given = {f"{one['name']}={one['value']}" for one in container["env"] if "value" in one}
        assert given == told
        assert container["image"].endswith(f":{__version__}")
    [port] = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    assert port["containerPort"] == service["spec"]["ports"][0]["port"] == int(flags["--port"])
