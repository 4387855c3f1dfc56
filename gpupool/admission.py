"""Who runs a request, put into action: run it, let it wait, hand it over (worker, main thread).

`balancer` decides; this sees to it. Requests travel between workers with their connection
(`transfer`), so no worker is a proxy.
"""

from __future__ import annotations

import logging
import socket
import time

from gpupool.api import may_be_refused
from gpupool.asking import Asking
from gpupool.balancer import ON_ITS_WAY, View, pick
from gpupool.call import Call
from gpupool.connection import Connection
from gpupool.disconnect import HangupWatcher
from gpupool.errors import EngineDead, Overloaded
from gpupool.host import Host
from gpupool.mailbox import Mailboxes, Message, close_all
from gpupool.room import Room
from gpupool.scoreboard import Row, Scoreboard
from gpupool.slots import Slots
from gpupool.transfer import Transfer

log = logging.getLogger(__name__)

MAX_MESSAGES_A_TURN = 64
MAX_MOVES = 2
RETRY_AFTER_S = 1


class Admission:
    """One worker's part of the pool's queue."""

    def __init__(
        self,
        host: Host,
        index: int,
        scoreboard: Scoreboard,
        mailboxes: Mailboxes,
        slots: Slots,
        hangups: HangupWatcher,
        transfer: Transfer,
        *,
        max_wait_s: float,
        max_waiting: int,
    ) -> None:
        self._host = host
        self._index = index
        self._scoreboard = scoreboard
        self._mailboxes = mailboxes
        self._slots = slots
        self._hangups = hangups
        self._transfer = transfer
        self._max_waiting = max_waiting
        self._row = scoreboard[index]
        self._asking = Asking(index, mailboxes)
        self._suspects: set[Connection] = set()  # that run here
        self.is_settle_due = False
        self.room = Room(max_wait_s)
        self.has_successor = False
        """This worker will be replaced, and leaves its mailbox to the next."""

    def admit(self, conn: Connection) -> None:
        """A generation request is whole: run it, hand it over, or let it wait."""
        own, siblings = self._views()
        choice = pick(own, siblings, was_forwarded=conn.was_forwarded)
        if choice.kind == "forward" and self._transfer.hand_over(conn, choice.to):
            return
        if choice.kind == "run" and not self._may_run(conn):
            self._let_wait(conn)
        elif choice.kind == "run" or not (own.is_ready or own.state in ON_ITS_WAY):
            self._run(conn, own)
        elif may_be_refused(conn.parser.request.path) and self._num_waiting() >= self._max_waiting:
            self._host.refuse(conn, self._full())
        else:
            self._let_wait(conn)

    def settle(self) -> None:
        """A slot may have become free, here or there: let those go who waited longest."""
        self.is_settle_due = False
        while (conn := self.room.first()) is not None:
            own, siblings = self._views(is_head_waiting=True)
            choice = pick(own, siblings)
            if choice.kind == "wait" or (choice.kind == "run" and not self._may_run(conn)):
                break
            if choice.kind == "run" and self._asking.keeps_slot(conn.history.since, own, siblings):
                break
            self._leave_room(conn)
            if choice.kind == "run":
                self._run(conn, own)
            elif not self._transfer.hand_over(conn, choice.to):
                self._let_wait(conn)
                break
        if not len(self.room):
            self._ask()

    def expire(self) -> None:
        """Answer those who waited as long as they may."""
        for conn in self.room.take_expired():
            self._leave_room(conn)
            if self._scoreboard.num_ready():
                self._host.refuse(conn, self._full())
            else:
                self._host.answer(conn)  # the application says what the worker is at

    def leave_to_ready(self, conn: Connection) -> bool:
        """Give a request to a worker that has a model, if this one has none."""
        own, siblings = self._views()
        ready = [view.index for view in siblings if view.is_ready]
        return not own.is_ready and bool(ready) and self._transfer.hand_over(conn, ready[0])

    def hand_over_unread(self, conn: Connection) -> bool:
        """Give a connection whose next request is not there, or not whole, to a worker that
        stays."""
        _, siblings = self._views()
        staying = [view for view in siblings if view.is_ready]
        staying = staying or [view for view in siblings if view.state in ON_ITS_WAY]
        if not staying:
            return False
        to = min(staying, key=lambda view: view.load).index
        hand_over = self._transfer.hand_over if conn.is_begun else self._transfer.hand_over_idle
        return hand_over(conn, to)

    def move(self, conn: Connection) -> None:
        """The engine died under a request that nobody else could take: a worker that comes will
        answer, unless the request is what kills engines."""
        self._end(conn)
        own, siblings = self._views()
        choice = pick(own, siblings)
        to = choice.to if choice.kind == "forward" else self._index
        if conn.history.num_moves > MAX_MOVES or not self._transfer.hand_over(conn, to):
            self._host.refuse(conn, EngineDead("the engine died while it ran this request"))

    def finish(self, conn: Connection) -> None:
        """A handler thread is done with a request."""
        if conn.call.holds_slot:
            run_s = time.monotonic() - conn.call.since
            self._row.mean_run_s += (run_s - self._row.mean_run_s) / 8
        self._end(conn)
        conn.forget_request()

    def open_mailbox(self, index: int) -> None:
        """Take what siblings sent to a row: this worker's, or one that nobody has any more."""
        for _ in range(MAX_MESSAGES_A_TURN):
            message = self._mailboxes.receive(index)
            if message is None:
                return
            self._take(message, index)

    # What follows is how.

    def _views(self, *, is_head_waiting: bool = False) -> tuple[View, list[View]]:
        own, siblings = View(self._index, "free", False, 0), []
        for index, row in enumerate(self._scoreboard):
            if index == self._index:
                waiting = 0 if is_head_waiting else len(self.room)
                own = self._view(index, row, waiting)
            elif row.pid:
                siblings.append(self._view(index, row, row.waiting))
        return own, siblings

    def _view(self, index: int, row: Row, waiting: int) -> View:
        # A worker that was forked before its slot's back-off is over waits for that.
        is_backing_off = row.state == "failed" and row.not_before > 0 and not row.ready_since
        return View(
            index=index,
            state="waiting" if is_backing_off else row.state,
            is_ready=row.is_ready,
            slots=row.slots,
            running=row.running,
            waiting=waiting,
            in_transit=self._scoreboard.in_transit(index),
            oldest=row.oldest,
            mean_run_s=row.mean_run_s,
        )

    def _run(self, conn: Connection, own: View) -> None:
        """Here; in a worker that cannot any more, by its successor, who opens its mailbox."""
        is_left_to_next = self.has_successor or own.state == "failed"
        if own.is_ready or not is_left_to_next or not self._transfer.hand_over(conn, self._index):
            self._start(conn)

    def _start(self, conn: Connection) -> None:
        conn.settle_here()
        if self._is_suspect(conn):
            self._suspects.add(conn)
        self._slots.take()
        conn.call = Call(self._slots, lambda: self._transfer.message(conn, "fanout"), conn.history)
        self._hangups.watch(conn.sock, conn.call.hang_up)
        self._host.answer(conn)

    def _end(self, conn: Connection) -> None:
        self._hangups.forget(conn.sock)
        self._suspects.discard(conn)
        conn.call.step_aside()
        conn.call = Call(history=conn.history)

    def _is_suspect(self, conn: Connection) -> bool:
        """Engines died while they ran it. Such requests run one at a time in each worker, so
        that the one that kills engines does not take the others along a third time."""
        return conn.history.num_moves >= MAX_MOVES

    def _may_run(self, conn: Connection) -> bool:
        return not (self._suspects and self._is_suspect(conn))

    def _let_wait(self, conn: Connection) -> None:
        """A sibling that looked for waiting requests just before has not seen this one; so the
        worker settles once more at the end of each turn of its loop."""
        self.room.add(conn)
        self._hangups.watch(conn.sock, lambda: self._forget_gone(conn))
        self._publish()

    def _leave_room(self, conn: Connection) -> None:
        self.room.remove(conn)
        self._hangups.forget(conn.sock)
        self._publish()

    def _forget_gone(self, conn: Connection) -> None:
        log.info("a client left while its request waited")
        self._leave_room(conn)
        self._host.hang_up(conn)

    def _publish(self) -> None:
        self._row.oldest = self.room.oldest
        self._row.waiting = len(self.room)

    def _num_waiting(self) -> int:
        return sum(row.waiting for row in self._scoreboard if row.pid)

    def _full(self) -> Overloaded:
        return Overloaded(
            f"all slots are taken and {self._num_waiting()} requests wait already; try again later",
            retry_after_s=RETRY_AFTER_S,
            code="overloaded",
        )

    def _ask(self) -> None:
        if self._num_waiting():  # in most turns of the loop nobody does; cheaper than to look
            self._asking.ask(*self._views())

    def _take(self, message: Message, to: int) -> None:
        if message.kind == "request":
            self._scoreboard.note_arrived(message.sender, to, message.fields["number"])
            self._asking.note_arrived()
            self.take_over(message)
        elif message.kind == "idle":
            conn = self._transfer.adopt(message)
            conn.intake.watch(conn)
        elif message.kind == "ask":
            self._answer_ask(message.sender, message.fields["count"])
        elif message.kind == "nothing":
            self._asking.note_nothing()
        elif message.kind == "metrics":
            self._host.tell_metrics(socket.socket(fileno=message.fds.pop()))
        elif message.kind == "fanout":
            self._host.open_lane(socket.socket(fileno=message.fds.pop(0)), message)
            return
        else:
            log.error("unknown message kind=%r", message.kind)
        close_all(message.fds)

    def take_over(self, message: Message) -> None:
        """Answer a request that another worker had read."""
        conn = self._transfer.adopt(message)
        conn.intake.read(conn)

    def _answer_ask(self, sender: int, count: int) -> None:
        for num_sent in range(count):
            conn = self.room.first()
            if conn is None:
                if not num_sent:
                    self._mailboxes.send(sender, Message("nothing", self._index))
                return
            self._leave_room(conn)
            if not self._transfer.hand_over(conn, sender):
                self._let_wait(conn)
                return
