"""The lock directory and its files, with real flocks by real processes."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpupool import lockdir
from gpupool.errors import ConfigError
from gpupool.gpus import Gpu
from gpupool.lockdir import Busy, Locks, lock_modes, lock_path, try_lock
from tests.forked import Forked, Say

GPU = Gpu(0, "GPU-0", "H200", 1, 1)
OTHER = Gpu(1, "GPU-1", "H200", 1, 1)
MIG_A = Gpu(0, "MIG-a", "H200 MIG", 1, 1, parent_uuid="GPU-0")
MIG_B = Gpu(0, "MIG-b", "H200 MIG", 1, 1, parent_uuid="GPU-0")
NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # pytest's own folders are closed to other users, and some tests act as another user.
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    return lockdir.open_lock_dir(tmp_path / "locks")


@pytest.fixture
def small_folder(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small enough to be filled."""
    target = tmp_path / "small"
    target.mkdir()
    options = ["-o", "size=64k,nr_inodes=8,mode=1777"]
    subprocess.run(["mount", "-t", "tmpfs", *options, "gpupool-test", target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)


def lock(folder: Path, *gpus: Gpu) -> Locks:
    return try_lock(lock_modes(folder, gpus))


def is_free(folder: Path, *gpus: Gpu) -> bool:
    try:
        lock(folder, *gpus).release()
    except Busy:
        return False
    return True


def test_a_new_directory_is_open_to_all_and_sticky(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777


def test_lock_files_can_be_read_by_all_whatever_the_umask(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        lock(folder, GPU).release()
    finally:
        os.umask(before)
    assert stat.S_IMODE(lock_path(folder, GPU.uuid).stat().st_mode) == 0o644


def test_a_held_lock_is_busy_for_another_process(folder: Path) -> None:
    with Forked(lambda say: say(str(lock(folder, GPU).fds))) as holder:
        holder.hear()
        with pytest.raises(Busy):
            lock(folder, GPU)


def test_sigkill_frees_the_lock(folder: Path) -> None:
    with Forked(lambda say: say(str(lock(folder, GPU).fds))) as holder:
        holder.hear()
        holder.kill()
        assert is_free(folder, GPU)


def test_all_or_nothing(folder: Path) -> None:
    with Forked(lambda say: say(str(lock(folder, OTHER).fds))) as holder:
        holder.hear()
        with pytest.raises(Busy):
            lock(folder, GPU, OTHER)
        assert is_free(folder, GPU)


def test_locks_are_taken_in_one_order_for_all() -> None:
    folder = Path("/x")
    assert list(lock_modes(folder, [OTHER, GPU])) == list(lock_modes(folder, [GPU, OTHER]))


def test_mig_devices_of_one_gpu_do_not_exclude_each_other(folder: Path) -> None:
    held = lock(folder, MIG_A)
    assert is_free(folder, MIG_B)
    held.release()


def test_a_mig_device_excludes_itself(folder: Path) -> None:
    held = lock(folder, MIG_A)
    assert not is_free(folder, MIG_A)
    held.release()


def test_a_mig_device_excludes_its_whole_gpu(folder: Path) -> None:
    held = lock(folder, MIG_A)
    assert not is_free(folder, GPU)
    held.release()


def test_a_whole_gpu_excludes_its_mig_devices(folder: Path) -> None:
    held = lock(folder, GPU)
    assert not is_free(folder, MIG_A)
    held.release()


def test_a_copy_in_another_process_keeps_the_lock(folder: Path) -> None:
    """What the guardian rests on: a FileLock object would let go in the forked child."""
    held = lock(folder, GPU)
    with Forked(lambda say: say("copied")) as copy:
        copy.hear()
        for fd in held.fds:
            os.close(fd)
        assert not is_free(folder, GPU)
    assert is_free(folder, GPU)


def test_release_frees_the_lock_though_copies_live(folder: Path) -> None:
    held = lock(folder, GPU)
    with Forked(lambda say: say("copied")) as copy:
        copy.hear()
        held.release()
        assert is_free(folder, GPU)


def test_release_in_a_forked_child_frees_nothing(folder: Path) -> None:
    held = lock(folder, GPU)

    def release(say: Say) -> None:
        held.release()
        say("released")

    with Forked(release) as child:
        child.hear()
        assert not is_free(folder, GPU)
    held.release()


def test_an_executed_program_does_not_inherit_the_lock(folder: Path) -> None:
    held = lock(folder, GPU)
    program = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        for fd in held.fds:
            os.close(fd)
        assert is_free(folder, GPU)
    finally:
        program.kill()
        program.wait()


def test_a_lock_taken_in_a_thread_outlives_the_thread(folder: Path) -> None:
    taken: list[Locks] = []
    thread = threading.Thread(target=lambda: taken.append(lock(folder, GPU)))
    thread.start()
    thread.join()
    assert not is_free(folder, GPU)
    taken[0].release()
    assert is_free(folder, GPU)


def test_garbage_collection_frees_nothing(folder: Path) -> None:
    fds = lock(folder, GPU).fds
    gc.collect()
    assert not is_free(folder, GPU)
    for fd in fds:
        os.close(fd)


def test_a_removed_lock_file_is_noticed(folder: Path) -> None:
    held = lock(folder, GPU)
    assert held.is_intact()
    lock_path(folder, GPU.uuid).unlink()
    assert not held.is_intact()
    held.release()


def test_a_replaced_lock_file_is_noticed(folder: Path) -> None:
    held = lock(folder, GPU)
    lock_path(folder, GPU.uuid).unlink()
    lock_path(folder, GPU.uuid).touch()
    assert not held.is_intact()
    held.release()


def test_a_file_removed_between_open_and_lock_is_not_taken_for_a_lock(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lock_path(folder, GPU.uuid)
    flock = fcntl.flock
    removed: list[Path] = []

    def remove_first(fd: int, operation: int) -> None:
        if not removed:
            path.unlink()
            removed.append(path)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    held = lock(folder, GPU)
    assert held.is_intact()
    held.release()


def as_nobody(folder: Path) -> str:
    """What another user's attempt to lock the GPU comes to."""

    def attempt(say: Say) -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            lock(folder, GPU)
            say("locked")
        except Busy:
            say("busy")
        except OSError as error:
            say(errno.errorcode[error.errno or 0])

    with Forked(attempt) as child:
        return child.hear()


def test_another_users_lock_file_excludes_and_serves(folder: Path) -> None:
    held = lock(folder, GPU)
    assert as_nobody(folder) == "busy"
    held.release()
    assert as_nobody(folder) == "locked"


def test_another_users_closed_lock_file_is_an_error_not_a_lock(folder: Path) -> None:
    lock(folder, GPU).release()
    lock_path(folder, GPU.uuid).chmod(0o600)
    assert as_nobody(folder) == "EACCES"


def test_a_read_only_directory_serves_if_the_lock_files_are_there(small_folder: Path) -> None:
    lockdir.prepare(small_folder, [GPU])
    subprocess.run(["mount", "-o", "remount,ro", small_folder], check=True)
    held = lock(small_folder, GPU)
    assert not is_free(small_folder, GPU)
    held.release()


def test_a_read_only_directory_without_lock_files_is_refused_before_any_fork(
    small_folder: Path,
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_folder], check=True)
    with pytest.raises(ConfigError, match="Read-only file system.*--lock_dir"):
        lockdir.prepare(small_folder, [GPU])


def test_a_directory_without_room_for_files_is_refused_before_any_fork(
    small_folder: Path,
) -> None:
    with pytest.raises(OSError, match="No space left"):  # noqa: PT012
        for number in range(100):
            (small_folder / f"file{number}").touch()
    with pytest.raises(ConfigError, match="No space left.*make room"):
        lockdir.prepare(small_folder, [GPU])


def test_a_full_disk_still_locks(small_folder: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        (small_folder / "filler").write_bytes(bytes(1 << 20))
    held = lock(small_folder, GPU)
    assert not is_free(small_folder, GPU)
    held.release()


def test_by_default_all_share_the_first_directory_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "run" / "gpupool", tmp_path / "shm" / "gpupool"
    second.mkdir(parents=True)
    monkeypatch.setattr(lockdir, "CANDIDATES", (first, second))
    assert lockdir.open_lock_dir(None) == second


def test_by_default_the_first_directory_that_can_be_made_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    made = tmp_path / "shm" / "gpupool"
    monkeypatch.setattr(lockdir, "CANDIDATES", (tmp_path / "file" / "gpupool", made))
    assert lockdir.open_lock_dir(None) == made
    assert stat.S_IMODE(made.stat().st_mode) == 0o1777


def test_a_missing_directory_is_created(tmp_path: Path) -> None:
    assert lockdir.open_lock_dir(tmp_path / "a" / "b").is_dir()


def test_a_directory_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file/locks.*Not a directory.*--lock_dir"):
        lockdir.open_lock_dir(tmp_path / "file" / "locks")


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="File exists"):
        lockdir.open_lock_dir(tmp_path / "file")


@pytest.mark.parametrize("trap", ["fifo", "link", "directory"])
def test_what_is_no_regular_file_is_neither_waited_for_nor_locked(folder: Path, trap: str) -> None:
    path = lock_path(folder, GPU.uuid)
    if trap == "fifo":
        os.mkfifo(path)
    elif trap == "link":
        path.symlink_to(folder / "elsewhere")
    else:
        path.mkdir()
    with pytest.raises(OSError, match=r"regular file|symbolic links"):
        lock(folder, GPU)


@pytest.mark.parametrize("type_name", ["nfs", "nfs4", "cifs", "fuse.sshfs", "9p"])
def test_a_network_file_system_is_refused(type_name: str) -> None:
    with pytest.raises(ConfigError, match=type_name):
        lockdir.refuse_remote(Path("/x"), type_name)


def test_the_file_system_of_a_directory_is_known(small_folder: Path) -> None:
    assert lockdir.file_system(small_folder.stat().st_dev) == "tmpfs"
    assert lockdir.file_system(Path("/proc").stat().st_dev) == "proc"


def test_the_kernel_names_the_holder(folder: Path) -> None:
    with Forked(lambda say: say(str(lock(folder, GPU).fds))) as holder:
        holder.hear()
        assert lockdir.holder_pid(lock_path(folder, GPU.uuid)) == holder.pid
    assert lockdir.holder_pid(lock_path(folder, GPU.uuid)) is None


def test_who_sits_on_the_allocator_lock_stops_nobody(folder: Path) -> None:
    def sit(say: Say) -> None:
        with lockdir.allocator(folder):
            say("sitting")
            os.kill(os.getpid(), signal.SIGSTOP)

    with Forked(sit) as sitter:
        sitter.hear()
        with lockdir.allocator(folder):
            assert is_free(folder, GPU)
