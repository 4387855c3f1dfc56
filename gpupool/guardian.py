"""The guardian: one small process per worker that ends what the worker leaves behind.

Forked in the worker's post_fork, before any thread, engine or CUDA exists; where threads are from
the start, as on Ray, it is a program of its own. It holds a copy of
the lease's descriptors and lets go only when the worker's process group is gone, so that a free
lease means a dead engine, also when master and worker are killed together. After the fork it
imports nothing and opens nothing but files of /proc.
"""

from __future__ import annotations

import array
import contextlib
import gc
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import NoReturn

from gpupool import procfs
from gpupool.process_group import kill_all_but_trackers

log = logging.getLogger(__name__)

MAX_FDS = 128
FAST_POLL_S = 0.01
SLOW_POLL_S = 0.25
TRACKER_S = 0.3
"""What Python's resource tracker gets to tidy up behind the others; it takes milliseconds."""


class Guardian:
    """The worker's end; lives as long as the worker. Closing it is not needed."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self._control = control

    def fileno(self) -> int:
        """Readable once the guardian is gone, which nothing but an outsider's SIGKILL makes it:
        for the worker's poller."""
        return self._control.fileno()

    def is_alive(self) -> bool:
        """One poll(2), no waiting. Without a guardian the worker is still safe, but if it is
        killed as well its engine may be left behind: best drain and be replaced."""
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        return not poller.poll(0)

    def hold(self, fds: Iterable[int]) -> bool:
        """Let the guardian keep these descriptors instead of those it has; False if it is gone."""
        rights = array.array("i", fds)
        try:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
            self._control.sendmsg([b"h"], ancillary)
        except OSError as error:
            log.error("guardian is gone pid=%s error=%s", self.pid, error)
            return False
        return True


def start(keep: Iterable[int] = ()) -> Guardian:
    """Make this process the leader of a group of its own, and fork its guardian.

    Call it in the worker while it has one thread. `keep` are descriptors that the guardian
    keeps from the start, as `hold` gives it later.
    """
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    worker = os.getpid()
    worker_fd = os.pidfd_open(worker)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # All signals stay blocked in the guardian for good: not even between the fork and its first
    # line can a SIGTERM to the old group, or a handler of the master's, get at it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _run(worker, worker_fd, theirs, list(keep))
    finally:
        if os.getpid() == worker:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(worker_fd)
    theirs.close()
    ours.recv(1)  # it has left the group and closed what it must not keep, or it is gone
    return Guardian(pid, ours)


def start_beside() -> Guardian:
    """The same for a process that has threads already: forked, one of their locks might be taken
    for ever. Takes as long as Python takes to start."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    worker_fd = os.pidfd_open(os.getpid())
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    given = (os.getpid(), worker_fd, theirs.fileno())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "gpupool.guardian", *map(str, given)],
            pass_fds=given[1:],
            process_group=0,
            stdin=subprocess.DEVNULL,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(worker_fd)
    theirs.close()
    ours.recv(1)
    child.returncode = 0  # never waited for: it outlives this process
    return Guardian(child.pid, ours)


def _run(worker: int, worker_fd: int, control: socket.socket, held: list[int]) -> NoReturn:
    try:
        gc.disable()  # a collection would write to, and so copy, the pages shared with the worker
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        _close_all_but({worker_fd, control.fileno(), *held})
        control.send(b"r")
        _wait_for_end(worker_fd, control, held)
        _end_group(worker)
    finally:
        os._exit(0)


def _close_all_but(kept: set[int]) -> None:
    """Above all the listening socket: an open copy keeps the port taken after the pool's end.

    Standard streams point nowhere, so that whoever reads the pool's output sees its end.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        if fd not in kept:
            os.dup2(null, fd)
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in kept:
            try:
                os.close(fd)
            except OSError:
                continue  # the descriptor that listed the directory


def _wait_for_end(worker_fd: int, control: socket.socket, held: list[int]) -> None:
    """Take over what the worker sends until the worker is gone."""
    poller = select.poll()
    poller.register(worker_fd, select.POLLIN)
    poller.register(control, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poller.poll()}
        if worker_fd in ready:
            return  # what was sent and not yet taken over is held by the socket itself
        if not _take_over(control, held):
            poller.unregister(control)


def _take_over(control: socket.socket, held: list[int]) -> bool:
    """Replace the held descriptors; False at the end of the stream."""
    size = array.array("i").itemsize
    message, ancillary, _, _ = control.recvmsg(1, socket.CMSG_SPACE(MAX_FDS * size))
    if not message:
        return False
    received = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received.frombytes(data[: len(data) - len(data) % size])
    for fd in held:
        os.close(fd)
    held[:] = received
    return True


def _end_group(pgid: int) -> None:
    """SIGKILL the group until none of it runs.

    Zombies count as gone: they hold nothing, and whoever should reap them may never do it. A
    process that the kernel cannot end (in a hung driver call) keeps the lease taken: its GPU
    is not free.
    """
    started = time.monotonic()
    _await_trackers(pgid, started)
    # Twice empty: one look can miss a child born behind it to a parent that died ahead of it.
    while procfs.group_members(pgid) or procfs.group_members(pgid):
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to kill: then wait
            os.killpg(pgid, signal.SIGKILL)
        _pause(started)


def _await_trackers(pgid: int, started: float) -> None:
    """End all others, and let the trackers see it."""
    alone_since = started
    while True:
        num_others, num_trackers = kill_all_but_trackers(pgid)
        if num_others:
            alone_since = time.monotonic()
        if not num_trackers or time.monotonic() - alone_since > TRACKER_S:
            return
        _pause(started)


def _pause(started: float) -> None:
    is_fast = time.monotonic() - started < 2
    time.sleep(FAST_POLL_S if is_fast else SLOW_POLL_S)


if __name__ == "__main__":
    _worker, _worker_fd, _control = map(int, sys.argv[1:])
    _run(_worker, _worker_fd, socket.socket(fileno=_control), [])
