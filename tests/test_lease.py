"""What a worker does with its lease: bind, wait for what is left of others, give back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dispatcher import GPUDispatcher, Lease
from gpupool import note
from gpupool.errors import NotGranted
from gpupool.lockdir import lock_path
from gpupool.settings import Settings
from tests.forked import Forked, Say
from tests.machine import Machine, fake_machine, uuid_of
from tests.pool import is_alive

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with fake_machine(tmp_path, gpus=2) as machine:
        machine.preload()
        yield machine


@pytest.fixture
def planned(machine: Machine) -> GPUDispatcher:
    return plan(machine)


def plan(machine: Machine, **settings: Any) -> GPUDispatcher:
    return GPUDispatcher.for_settings(
        Settings(lock_dir=machine.lock_dir, per_proc_gpus=2, **settings)
    )


def take(planned: GPUDispatcher) -> Lease:
    grant = planned.acquire(0)
    assert grant.lease is not None, grant.reason
    return grant.lease


def read_note(machine: Machine, index: int = 0) -> note.Note:
    return note.read_notes(machine.lock_dir, uuid_of(index))[0]


# Binding.


def test_bind_shows_the_process_its_gpus_by_uuid_in_bus_order(planned: GPUDispatcher) -> None:
    def work(say: Say) -> None:
        take(planned).bind()
        say(os.environ["CUDA_VISIBLE_DEVICES"])
        say(os.environ["CUDA_DEVICE_ORDER"])

    with Forked(work) as worker:
        assert worker.hear() == f"{uuid_of(0)},{uuid_of(1)}"
        assert worker.hear() == "PCI_BUS_ID"


def test_bind_gives_ports_and_a_cookie(planned: GPUDispatcher) -> None:
    lease = take(planned)
    variables = lease.environment()
    assert variables["GPUPOOL_LEASE"] == lease.token
    assert variables["SPT_NOENV"] == "1"
    assert lease.port_base <= int(variables["MASTER_PORT"]) < int(variables["VLLM_PORT"])
    assert int(variables["VLLM_PORT"]) < lease.port_base + 64
    lease.release()


def test_bind_pins_threads_that_are_there_already(machine: Machine) -> None:
    core = max(os.sched_getaffinity(0))
    for index in (0, 1):
        machine.set_gpu(index, cpus=hex(1 << core))
    planned = plan(machine)

    def work(say: Say) -> None:
        ready, go_on = threading.Event(), threading.Event()
        seen: list[set[int]] = []

        def look() -> None:
            ready.set()
            go_on.wait()
            seen.append(os.sched_getaffinity(0))

        thread = threading.Thread(target=look)
        thread.start()
        ready.wait()
        take(planned).bind()
        go_on.set()
        thread.join()
        say(f"{seen[0]} {os.sched_getaffinity(0)}")

    with Forked(work) as worker:
        assert worker.hear() == f"{{{core}}} {{{core}}}"


def test_near_cores_that_are_not_ours_are_not_pinned_to(machine: Machine) -> None:
    for index in (0, 1):
        machine.set_gpu(index, cpus=hex(1 << 60))
    planned = plan(machine)
    allowed = os.sched_getaffinity(0)

    def work(say: Say) -> None:
        take(planned).bind()
        say(str(os.sched_getaffinity(0) == allowed))

    with Forked(work) as worker:
        assert worker.hear() == "True"


# Waiting for free GPUs.


def test_free_gpus_are_not_waited_for(planned: GPUDispatcher) -> None:
    lease = take(planned)
    started = time.monotonic()
    lease.await_free(10)
    assert time.monotonic() - started < 1
    lease.release()


def test_memory_that_is_given_back_ends_the_wait(machine: Machine, planned: GPUDispatcher) -> None:
    lease = take(planned)
    machine.set_gpu(1, used=50 * GIB)
    done = threading.Event()

    def wait() -> None:
        lease.await_free(20)
        done.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert not done.wait(0.6)
    machine.set_gpu(1, used=0)
    waiter.join(10)
    assert done.is_set()
    lease.release()


def test_memory_that_is_not_given_back_names_who_has_it(
    machine: Machine, planned: GPUDispatcher
) -> None:
    lease = take(planned)
    machine.set_process(1, os.getpid(), 50 * GIB)
    with pytest.raises(NotGranted, match=rf"50.0 GiB of GPU 1 .* pid {os.getpid()} \("):
        lease.await_free(0.1)
    lease.release()


def test_a_gpu_lost_while_waiting_is_named(machine: Machine, planned: GPUDispatcher) -> None:
    lease = take(planned)
    machine.set_gpu(1, lost=1)
    with pytest.raises(NotGranted, match=r"GPU 1 .*lost"):
        lease.await_free(0.1)
    lease.release()


def test_a_vain_wait_is_not_repeated_for_the_same_user(
    machine: Machine, planned: GPUDispatcher
) -> None:
    """Otherwise each worker would take the memory for its dead predecessor's and wait again."""

    def work(say: Say) -> None:
        lease = take(planned)
        machine.set_gpu(1, used=50 * GIB)
        try:
            lease.await_free(0.1)
        except NotGranted:
            say("in vain")

    with Forked(work) as worker:
        assert worker.hear() == "in vain"
    machine.set_gpu(1, used=50 * GIB)
    assert "50.0 GiB of GPU 1" in planned.acquire(0).reason


def start_engine(
    variables: dict[str, str], *, own_session: bool = False, own_group: bool = False
) -> subprocess.Popen[bytes]:
    """An engine process that ignores what can be ignored."""
    code = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(90)"
    )
    engine = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        start_new_session=own_session,
        process_group=0 if own_group else None,
    )
    assert engine.stdout is not None
    engine.stdout.readline()
    return engine


def dies_and_leaves_an_engine(planned: GPUDispatcher, *, leaves_group: bool = False) -> int:
    """The pid of what a killed worker left, where there was no guardian."""

    def work(say: Say) -> None:
        os.setpgid(0, 0)
        lease = take(planned)
        cookie = {"GPUPOOL_LEASE": lease.token} if leaves_group else {}
        say(str(start_engine(cookie, own_session=leaves_group).pid))

    with Forked(work) as worker:
        return int(worker.hear())


def test_what_a_dead_worker_left_in_its_group_is_killed(planned: GPUDispatcher) -> None:
    engine = dies_and_leaves_an_engine(planned)
    lease = take(planned)
    assert is_alive(engine)
    lease.await_free(10)
    assert not is_alive(engine)
    lease.release()


def test_what_left_the_group_is_found_by_its_cookie(planned: GPUDispatcher) -> None:
    engine = dies_and_leaves_an_engine(planned, leaves_group=True)
    lease = take(planned)
    lease.await_free(10)
    assert not is_alive(engine)
    lease.release()


def test_a_shells_process_group_is_not_killed(planned: GPUDispatcher) -> None:
    """A worker that leads no group of its own shares it with whoever started it."""

    def work(say: Say) -> None:
        shell = start_engine({}, own_group=True)
        os.setpgid(0, shell.pid)
        take(planned)
        bystander = start_engine({})
        shell.kill()
        shell.wait()
        say(str(bystander.pid))

    with Forked(work) as worker:
        bystander = int(worker.hear())
    try:
        lease = take(planned)
        lease.await_free(10)
        assert is_alive(bystander)
        lease.release()
    finally:
        os.kill(bystander, signal.SIGKILL)


def test_what_is_left_is_still_found_after_a_second_death(planned: GPUDispatcher) -> None:
    """The second worker dies between taking the lease and cleaning up."""
    engine = dies_and_leaves_an_engine(planned)
    with Forked(lambda say: say(take(planned).token)) as second:
        second.hear()
        second.kill()
    lease = take(planned)
    assert is_alive(engine)
    lease.await_free(10)
    assert not is_alive(engine)
    lease.release()


def edit_note(machine: Machine, **changes: Any) -> None:
    """Change the note on both GPUs, in the trace or else in the note itself."""
    for path in machine.lock_dir.glob("*.note"):
        fields = json.loads(path.read_text())
        for name, value in changes.items():
            (fields["trace"] if name in fields["trace"] else fields)[name] = value
        path.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    "changes",
    [{"boot_id": "another boot"}, {"pid_namespace": "pid:[1]"}, {"start_ticks": 1 << 60}],
    ids=["another boot", "another container", "a reused number"],
)
def test_a_stale_note_kills_nobody(
    machine: Machine, planned: GPUDispatcher, changes: dict[str, Any]
) -> None:
    engine = dies_and_leaves_an_engine(planned)
    try:
        edit_note(machine, **changes)
        lease = take(planned)
        lease.await_free(10)
        assert is_alive(engine)
        lease.release()
    finally:
        os.kill(engine, signal.SIGKILL)


def test_another_users_note_kills_nobody(machine: Machine, planned: GPUDispatcher) -> None:
    """Root would otherwise kill for whoever can write a file."""
    engine = dies_and_leaves_an_engine(planned)
    try:
        for path in machine.lock_dir.glob("*.note"):
            os.chown(path, 12345, -1)
        lease = take(planned)
        lease.await_free(10)
        assert is_alive(engine)
        lease.release()
    finally:
        os.kill(engine, signal.SIGKILL)


def test_a_living_worker_without_its_lease_is_not_killed(planned: GPUDispatcher) -> None:
    def work(say: Say) -> None:
        os.setpgid(0, 0)
        lease = take(planned)
        for fd in lease.fds:
            os.close(fd)
        say("let go")

    with Forked(work) as worker:
        worker.hear()
        lease = take(planned)
        lease.await_free(10)
        assert is_alive(worker.pid)
        lease.release()


# Notes.


def test_the_note_tells_who_holds_the_gpu(machine: Machine) -> None:
    lease = take(plan(machine, model_name="demo"))
    found = read_note(machine)
    assert (found.trace.pid, found.user, found.model) == (os.getpid(), "root", "demo")
    assert found.is_held
    lease.release()


def test_a_released_lease_has_no_holder(machine: Machine, planned: GPUDispatcher) -> None:
    take(planned).release()
    assert planned.holder(uuid_of(0)) is None


def test_memory_just_given_back_is_no_reason_to_refuse(
    machine: Machine, planned: GPUDispatcher
) -> None:
    take(planned).release()
    machine.set_gpu(0, used=70 * GIB)
    take(planned).release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"trace": 1}', "[" * 100_000, "\0" * 99])
def test_a_damaged_note_changes_nothing(
    machine: Machine, planned: GPUDispatcher, text: str
) -> None:
    take(planned).release()
    for path in machine.lock_dir.glob("*.note"):
        path.write_text(text)
    lease = take(planned)
    lease.await_free(5)
    lease.release()


def test_a_note_that_cannot_be_written_does_not_cost_the_lease(
    machine: Machine, planned: GPUDispatcher
) -> None:
    for index in (0, 1):
        (machine.lock_dir / f"{uuid_of(index)}.{os.geteuid()}.note").mkdir()
    lease = take(planned)
    assert len(lease.fds) == 2
    lease.release()


# The end.


def test_a_released_lease_can_be_taken_by_another(machine: Machine, planned: GPUDispatcher) -> None:
    lease = take(planned)
    lease.release()
    with Forked(lambda say: say(take(planned).token)) as other:
        other.hear()


def test_releasing_twice_is_harmless(planned: GPUDispatcher) -> None:
    lease = take(planned)
    lease.release()
    lease.release()
    take(planned).release()


def test_a_lease_knows_when_its_lock_file_was_removed(
    machine: Machine, planned: GPUDispatcher
) -> None:
    lease = take(planned)
    assert lease.is_intact()
    lock_path(machine.lock_dir, uuid_of(1)).unlink()
    assert not lease.is_intact()
    lease.release()


def test_no_descriptor_is_left_open(planned: GPUDispatcher) -> None:
    take(planned).release()
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(5):
        take(planned).release()
    assert sorted(os.listdir("/proc/self/fd")) == before
