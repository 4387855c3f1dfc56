"""The run directory and the records in it: whose they are, and which process they mean."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpupool import master_command, procfs
from gpupool.doctor import facts
from gpupool.errors import ConfigError
from gpupool.pools import launch, run_dir, stopping
from gpupool.pools.pool_file import Wanted, read_pool_file
from gpupool.pools.record import (
    SETTINGS,
    Record,
    identity_of,
    opened,
    read_records,
    select_records,
    url_of,
    write_settings,
)
from gpupool.settings import Settings
from tests.pool import ROOT, is_alive


@pytest.fixture(name="folder", autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "run"
    monkeypatch.setenv("GPUPOOL_RUN_DIR", str(folder))
    return folder


@pytest.fixture(name="child")
def _child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


def record_of(pid: int, name: str = "a") -> Record:
    run_dir.folder_of(name)
    return Record(
        name=name,
        **identity_of(pid),
        url="http://127.0.0.1:1",
        model="M",
        file="/pool.yaml",
        since="now",
        overlay={},
    )


def test_a_record_is_read_as_it_was_written() -> None:
    record = record_of(os.getpid())
    record.write()
    assert read_records() == [record]
    assert record.is_running
    record.remove()
    assert read_records() == []


def test_what_is_kept_is_for_this_user_alone(folder: Path) -> None:
    record_of(os.getpid()).write()
    write_settings(run_dir.folder_of("a"), {"api_key": "s3cret"})
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_others_may_enter_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigError, match="not a folder for this user alone"):
        run_dir.open_run_dir()


def test_a_link_is_no_run_directory(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="not a folder for this user alone"):
        run_dir.open_run_dir()


def test_each_machine_has_its_own_folder_in_a_shared_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GPUPOOL_RUN_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone-at-logout"))
    assert run_dir.open_run_dir() == tmp_path / "state" / "gpupool" / os.uname().nodename


def test_a_pid_that_is_somebody_elses_by_now_is_not_the_pool(
    child: subprocess.Popen[bytes],
) -> None:
    record = record_of(child.pid)
    assert record.is_running
    for other in (
        replace(record, start_ticks=record.start_ticks - 1),
        replace(record, boot_id="an earlier boot"),
        replace(record, pid_namespace="pid:[1]"),
    ):
        assert not other.is_running
        with opened(other) as process:
            assert process is None


def test_an_open_process_is_signalled_and_awaited(child: subprocess.Popen[bytes]) -> None:
    with opened(record_of(child.pid)) as process:
        assert process is not None
        assert not process.wait(0)
        assert process.send(signal.SIGTERM)
        assert process.wait(10)
        child.wait()
        assert not process.send(signal.SIGTERM)  # not whoever has its number now


def test_a_pool_started_meanwhile_is_not_forgotten_with_the_one_before() -> None:
    before = record_of(os.getppid())
    record_of(os.getpid()).write()
    before.remove()
    assert [record.pid for record in read_records()] == [os.getpid()]


def test_a_record_of_another_version_is_left_out(folder: Path) -> None:
    record_of(os.getpid()).write()
    (run_dir.folder_of("b") / "pool.json").write_text('{"name": "b"}')
    (run_dir.folder_of("c") / "pool.json").write_text("torn")
    assert [record.name for record in read_records()] == ["a"]


def test_a_pool_that_is_not_there_is_named_with_the_nearest() -> None:
    record_of(os.getpid(), "small").write()
    with pytest.raises(ConfigError, match=r"did you mean 'small'\?\); there is small"):
        select_records(["smal"])
    assert [record.name for record in select_records([])] == ["small"]


def test_only_one_command_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir, "LOCK_TIMEOUT_S", 0.05)
    with (
        run_dir.only_one(),
        pytest.raises(ConfigError, match="another gpupool command has held"),
        run_dir.only_one(),
    ):
        pass
    with run_dir.only_one():
        pass


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:5002"),
        ("0.0.0.0", "http://127.0.0.1:5002"),
        ("::", "http://[::1]:5002"),
        ("fe80::1", "http://[fe80::1]:5002"),
        ("10.1.2.3", "http://10.1.2.3:5002"),
    ],
)
def test_a_pool_is_asked_on_this_machine(host: str, url: str) -> None:
    assert url_of(Settings(host=host)) == url


@pytest.fixture(name="wanted")
def _wanted(tmp_path: Path) -> Wanted:
    path = tmp_path / "pool.yaml"
    path.write_text("model_name: A\ncuda_visible_devices: ''\n")
    (found,) = read_pool_file(path, {"GPUPOOL_WORKERS": "2"})
    return found


def test_the_master_gets_its_settings_from_one_file(wanted: Wanted, folder: Path) -> None:
    """A variable that was in the environment is in the file by then; given twice, a reload
    could not change it."""
    given = {"GPUPOOL_WORKERS": "2", "PORT": "7", "HF_TOKEN": "t", "PATH": "/bin"}
    made = launch.environment(wanted, given, run_dir.folder_of(wanted.name))
    assert made["GPUPOOL_CONFIG"] == str(folder / "pool" / "settings.yaml")
    assert not {"GPUPOOL_WORKERS", "PORT"} & set(made)
    assert (made["HF_TOKEN"], made["PATH"]) == ("t", "/bin")
    assert made["CUDA_VISIBLE_DEVICES"] == ""
    assert made["PYTHONPATH"].split(":")[0] == str(ROOT)


def test_a_pool_does_not_need_the_script(wanted: Wanted) -> None:
    *_, option, configuration = master_command.command()
    assert option == "--config"
    assert Path(configuration) == ROOT / "gunicorn_conf.py"


ENDS = """
import os, subprocess, sys
os.setsid()
env = os.environ | {"GPUPOOL_CONFIG": sys.argv[1], "GPUPOOL_LEASE": "of a dead worker"}
for env in (env, os.environ):
    print(subprocess.Popen(["sleep", "60"], env=env, stdout=subprocess.DEVNULL).pid, flush=True)
input()
"""


def test_what_the_engines_of_an_ended_pool_left_is_found_and_ended() -> None:
    settings = run_dir.folder_of("a") / SETTINGS
    command = [sys.executable, "-c", ENDS, str(settings)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as master:
        assert master.stdout is not None
        engine, other = (int(master.stdout.readline()) for _ in range(2))
        record = record_of(master.pid)
        record.write()
        master.kill()
    found = facts.orphans()
    assert f"pid {engine} (sleep, user {procfs.user_name(os.getuid())}, pool a)" in found.text
    assert "gpupool stop a" in found.fix
    said: list[str] = []
    assert stopping.stop(record, said.append)
    assert said == ["a: had ended already, and 1 process(es) of its engines are ended"]
    assert not is_alive(engine)
    assert is_alive(other)  # it is no engine
    os.kill(other, signal.SIGKILL)
