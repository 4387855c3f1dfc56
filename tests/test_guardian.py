"""The guardian, with real workers, engines that ignore everything, and SIGKILL."""

from __future__ import annotations

import builtins
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import patch

import pytest

from gpupool import guardian, procfs
from gpupool.gpus import Gpu
from gpupool.lockdir import Busy, lock_modes, open_lock_dir, try_lock
from tests.forked import Forked, Say
from tests.pool import is_alive, wait_until

GPU = Gpu(0, "GPU-0", "H200", 1, 1)
STUBBORN = (
    "import signal, subprocess, sys, time\n"
    "for number in range(1, 65):\n"
    "    if number not in (9, 19, 32, 33): signal.signal(number, signal.SIG_IGN)\n"
    "if len(sys.argv) > 1:\n"
    "    child = subprocess.Popen([sys.executable, '-c', sys.argv[1]])\n"
    "    print(child.pid, flush=True)\n"
    "time.sleep(120)\n"
)
OF_ANOTHER_USER = (
    "import os, time; os.setgid(65534); os.setuid(65534); print(flush=True); time.sleep(120)"
)

SHARING = (
    "import time\n"
    "from multiprocessing.shared_memory import SharedMemory\n"
    "block = SharedMemory(create=True, size=4096)\n"
    "print(block.name, flush=True)\n"
    "time.sleep(120)\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return open_lock_dir(tmp_path / "locks")


def is_free(folder: Path) -> bool:
    try:
        try_lock(lock_modes(folder, [GPU])).release()
    except Busy:
        return False
    return True


def start_family() -> list[int]:
    """An engine that ignores all signals, and its child that does."""
    command = [sys.executable, "-c", STUBBORN, STUBBORN]
    engine = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert engine.stdout is not None
    return [engine.pid, int(engine.stdout.readline())]


def work_with_family(folder: Path, say: Say) -> None:
    """What a worker does: guardian, lease, engine. Says the pids of all that must end."""
    keeper = guardian.start()
    keeper.hold(try_lock(lock_modes(folder, [GPU])).fds)
    say(" ".join(map(str, [keeper.pid, *start_family()])))


def work_beside_threads(folder: Path, say: Say) -> None:
    """What a replica on Ray does, in a process that has threads from its start."""
    threading.Thread(target=time.sleep, args=(120,), daemon=True).start()
    keeper = guardian.start_beside()
    keeper.hold(try_lock(lock_modes(folder, [GPU])).fds)
    assert keeper.is_alive()
    say(" ".join(map(str, [keeper.pid, *start_family()])))


def pids(line: str) -> list[int]:
    return [int(word) for word in line.split()]


def test_the_group_is_gone_within_a_second_of_the_workers_sigkill(folder: Path) -> None:
    with Forked(lambda say: work_with_family(folder, say)) as worker:
        family = pids(worker.hear())
        worker.kill()
        wait_until(lambda: not any(map(is_alive, family)), 1, "the end of the group")


def test_a_guardian_that_is_a_program_of_its_own_does_the_same(folder: Path) -> None:
    with Forked(lambda say: work_beside_threads(folder, say)) as worker:
        family = pids(worker.hear())
        keeper = Path(f"/proc/{family[0]}")
        assert os.getpgid(family[0]) == family[0]
        assert "SigBlk:\tfffffffe7ffbfeff" in (keeper / "status").read_text()
        assert not is_free(folder)
        worker.kill()
        wait_until(lambda: not any(map(is_alive, family)), 1, "the end of the group")
        wait_until(lambda: is_free(folder), 1, "the lease given back")


def test_a_killed_engine_leaves_no_shared_memory(folder: Path) -> None:
    """vLLM's blocks have hundreds of megabytes, and /dev/shm would fill over the months."""

    def work(say: Say) -> None:
        guardian.start()
        command = [sys.executable, "-c", SHARING]
        engine = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert engine.stdout is not None
        say(f"{os.getpid()} /dev/shm/{engine.stdout.readline()}")

    with Forked(work) as worker:
        group, block = worker.hear().split()
        assert Path(block).exists()
        worker.kill()
        wait_until(lambda: not procfs.group_members(int(group)), 1, "the end of the group")
        assert not Path(block).exists()


def test_a_free_lease_means_a_dead_engine(folder: Path) -> None:
    with Forked(lambda say: work_with_family(folder, say)) as worker:
        _, *family = pids(worker.hear())
        assert not is_free(folder)
        worker.kill()
        deadline = time.monotonic() + 5
        while not is_free(folder):
            assert time.monotonic() < deadline
        assert not any(map(is_alive, family))


def test_the_lease_is_kept_while_the_group_cannot_end(folder: Path) -> None:
    """A process that another user owns stands for one that hangs in the driver."""

    def work(say: Say) -> None:
        drop_cap_kill()
        keeper = guardian.start(keep=try_lock(lock_modes(folder, [GPU])).fds)
        command = [sys.executable, "-c", OF_ANOTHER_USER]
        hung = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert hung.stdout is not None
        hung.stdout.readline()
        say(f"{keeper.pid} {hung.pid}")

    with Forked(work) as worker:
        keeper, hung = pids(worker.hear())
        worker.kill()
        time.sleep(0.3)  # nothing shall happen, so there is nothing to wait for
        assert is_alive(keeper)
        assert is_alive(hung)
        assert not is_free(folder)
        os.kill(hung, signal.SIGKILL)
        wait_until(lambda: is_free(folder), 3, "the lease to be free")


def drop_cap_kill() -> None:
    """Take CAP_KILL (5) from this process, by capget(2) and capset(2)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for word in range(3):
        sets[word] &= ~(1 << 5)
    assert libc.capset(header, sets) == 0


def test_master_and_worker_killed_together_leave_nothing(folder: Path) -> None:
    def master(say: Say) -> None:
        with Forked(lambda tell: work_with_family(folder, tell)) as worker:
            say(f"{worker.pid} {worker.hear()}")
            signal.pause()

    with Forked(master) as both:
        worker, *family = pids(both.hear())
        os.kill(both.pid, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        both.reap()
        wait_until(lambda: not any(map(is_alive, family)), 1, "the end of the group")
        wait_until(lambda: is_free(folder), 1, "the lease to be free")


def test_an_unreaped_worker_does_not_keep_the_guardian(folder: Path) -> None:
    with Forked(lambda say: work_with_family(folder, say)) as worker:
        keeper, *_ = pids(worker.hear())
        worker.kill(reap=False)
        wait_until(lambda: not is_alive(keeper), 2, "the guardian's end")
        assert procfs.read_process(worker.pid) is not None


def test_a_worker_that_ends_in_order_is_cleaned_up_after_too(folder: Path) -> None:
    def work(say: Say) -> None:
        work_with_family(folder, say)
        os._exit(0)

    with Forked(work) as worker:
        family = pids(worker.hear())
        wait_until(lambda: not any(map(is_alive, family)), 2, "the end of the group")


@pytest.mark.parametrize("name", ["TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "ALRM"])
def test_signals_do_not_end_the_guardian(folder: Path, name: str) -> None:
    with Forked(lambda say: work_with_family(folder, say)) as worker:
        keeper, *family = pids(worker.hear())
        os.kill(keeper, getattr(signal, f"SIG{name}"))
        worker.kill()
        wait_until(lambda: not any(map(is_alive, family)), 2, "the end of the group")


def test_the_worker_gets_its_signals_as_before() -> None:
    def work(say: Say) -> None:
        signal.signal(signal.SIGTERM, lambda *_: say("told"))
        guardian.start()
        say(str(signal.pthread_sigmask(signal.SIG_BLOCK, ())))

    with Forked(work) as worker:
        assert worker.hear() == "set()"
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.hear() == "told"


def test_the_worker_leads_a_group_and_the_guardian_another(folder: Path) -> None:
    with Forked(lambda say: work_with_family(folder, say)) as worker:
        keeper, engine, grandchild = pids(worker.hear())
        assert os.getpgid(worker.pid) == worker.pid
        assert [os.getpgid(pid) for pid in (engine, grandchild)] == [worker.pid, worker.pid]
        assert os.getpgid(keeper) == keeper


def test_the_guardian_keeps_no_listening_socket_and_no_output_open(folder: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def work(say: Say) -> None:
        keeper = guardian.start(keep=try_lock(lock_modes(folder, [GPU])).fds)
        say(str(keeper.pid))

    with listener, Forked(work) as worker:
        keeper = int(worker.hear())
        links = open_files(keeper)
    kinds = sorted(re.sub(r"[:\[].*", "", link) for link in links if ".lock" not in link)
    assert kinds == ["/dev/null"] * 3 + ["anon_inode", "socket"]
    assert sum("GPU-0.lock" in link for link in links) == 1


def test_the_port_is_free_once_the_worker_is_gone(folder: Path) -> None:
    """The group cannot end for a while, and the port must not wait for it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with Forked(lambda say: say(str(guardian.start().pid))) as worker:
            keeper = int(worker.hear())
            os.kill(keeper, signal.SIGSTOP)
            try:
                listener.close()
                worker.kill()
                socket.create_server(("127.0.0.1", port)).close()
            finally:
                os.kill(keeper, signal.SIGCONT)


def test_newly_held_descriptors_replace_the_old(folder: Path) -> None:
    def work(say: Say) -> None:
        keeper = guardian.start()
        for _ in range(20):
            lease = try_lock(lock_modes(folder, [GPU]))
            keeper.hold(lease.fds)
            lease.release()
        say(str(keeper.pid))

    with Forked(work) as worker:
        keeper = int(worker.hear())
        wait_until(lambda: len(os.listdir(f"/proc/{keeper}/fd")) <= 7, 5, "old ones to be closed")


def test_the_worker_notices_that_its_guardian_is_gone() -> None:
    def work(say: Say) -> None:
        keeper = guardian.start()
        say(f"{keeper.is_alive()} {keeper.pid}")
        os.kill(keeper.pid, signal.SIGKILL)
        os.waitpid(keeper.pid, 0)
        with open(os.devnull) as file:
            say(f"{keeper.is_alive()} {keeper.hold([file.fileno()])}")

    with Forked(work) as worker:
        assert worker.hear().startswith("True ")
        assert worker.hear() == "False False"


def test_a_descriptor_sent_just_before_the_end_is_held_until_the_group_is_gone(
    folder: Path,
) -> None:
    def work(say: Say) -> None:
        keeper = guardian.start()
        _, *family = [keeper.pid, *start_family()]
        say(" ".join(map(str, family)))
        os.kill(keeper.pid, signal.SIGSTOP)
        keeper.hold(try_lock(lock_modes(folder, [GPU])).fds)
        say(str(keeper.pid))
        os.kill(os.getpid(), signal.SIGKILL)

    with Forked(work) as worker:
        family, keeper = pids(worker.hear()), int(worker.hear())
        os.waitpid(worker.pid, 0)
        worker.returncode = -9
        assert not is_free(folder)
        os.kill(keeper, signal.SIGCONT)
        wait_until(lambda: is_free(folder), 3, "the lease to be free")
        assert not any(map(is_alive, family))


def test_the_guardian_imports_nothing_after_its_fork(folder: Path) -> None:
    def work(say: Say) -> None:
        with patch.object(builtins, "__import__", side_effect=ImportError):
            keeper = guardian.start()
        keeper.hold(try_lock(lock_modes(folder, [GPU])).fds)
        say(" ".join(map(str, start_family())))

    with Forked(work) as worker:
        family = pids(worker.hear())
        worker.kill()
        wait_until(lambda: not any(map(is_alive, family)), 2, "the end of the group")


def test_the_guardian_is_small(folder: Path) -> None:
    with Forked(lambda say: work_with_family(folder, say)) as worker:
        keeper, *_ = pids(worker.hear())
        rollup = Path(f"/proc/{keeper}/smaps_rollup").read_text()
    private = sum(int(kib) for kib in re.findall(r"Private_\w+: +(\d+)", rollup))
    print(f"guardian private memory: {private} KiB")
    assert private < 6_000


def test_a_lock_on_the_same_file_description_is_what_the_guardian_holds(folder: Path) -> None:
    """The kernel ties flock to the open file: a copy sent over a socket is the same lock."""
    path = next(iter(lock_modes(folder, [GPU])))

    def work(say: Say) -> None:
        keeper = guardian.start()
        held = try_lock(lock_modes(folder, [GPU]))
        keeper.hold(held.fds)
        say(str(keeper.pid))
        wait_until(lambda: "GPU-0.lock" in " ".join(open_files(keeper.pid)))
        for fd in held.fds:
            os.close(fd)
        say("closed")

    with Forked(work) as worker:
        worker.hear()
        worker.hear()
        with open(path) as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def open_files(pid: int) -> list[str]:
    return [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
