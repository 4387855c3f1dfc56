"""One replica's life: hold the GPUs, load the engine, watch it, end it (replica process).

What boot.py, answering.py and worker.py do for a worker of gunicorn's; the replica, its states,
the application and the engines are the same objects.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from flask import Flask

from gpupool.access import AccessLog
from gpupool.boot import freeze_heap
from gpupool.engine_watch import EngineWatch, end_hung_engine
from gpupool.engines.base import Engine
from gpupool.engines.catalog import find_entry
from gpupool.errors import EngineDead
from gpupool.front import Front
from gpupool.ray_pool.holding import Holding, Seat
from gpupool.ray_pool.spread import MAX_BATCHES, Ask, Spread
from gpupool.replica import Replica
from gpupool.settings import Settings
from gpupool.totals import Totals

log = logging.getLogger(__name__)

ENGINE_FAILED = 70  # as a worker's
CHECK_PERIOD_S = 0.5
LAST_ANSWERS_S = 2.0  # for what ran in a dead engine to be told so
NUM_CONTROL_THREADS = 4
LINE = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"


class ReplicaHost:
    """From the start of Ray's actor to its end."""

    def __init__(self, settings: Settings, gpu_ids: Sequence[str], seat: Seat, ask: Ask) -> None:
        _log_to_ray(settings)
        self._settings = settings
        self.app: Flask = importlib.import_module(find_entry(settings.infer_type).app_module).app
        self.replica: Replica = self.app.extensions["gpupool"]
        self.access = AccessLog(seat.rank, is_on=settings.access_log == "on")
        self.app.extensions["gpupool.access"] = self.access
        self.totals: Totals = self.app.extensions["gpupool.totals"]
        self.spread = Spread(self.replica, ask, settings.max_wait_s)
        self.app.extensions["gpupool.fanout"] = self.spread
        self.num_threads = settings.threads
        self.threads = ThreadPoolExecutor(settings.threads + MAX_BATCHES, "request")
        self.control_threads = ThreadPoolExecutor(NUM_CONTROL_THREADS, "control")
        self.replica.before_ready = self._make_front
        self.replica.enter("waiting", "for its GPUs")
        self._trouble: str | None = None
        self._stopping = threading.Event()
        self._holding = Holding(settings, gpu_ids, seat)

    def load(self) -> None:
        """Block until the engine is ready; raises what it raised."""
        gpu_slice = self._holding.take()
        self._watch = EngineWatch(
            self._settings.stall_timeout_s, lambda: [gpu.uuid for gpu in gpu_slice.gpus]
        )
        try:
            self.replica.load(gpu_slice, self._settings)
        except BaseException as error:
            log.exception("replica %d could not load its engine", gpu_slice.slot)
            self.replica.fail(error)
            raise
        threading.Thread(target=self._check, name="check", daemon=True).start()

    @property
    def trouble(self) -> str | None:
        """Why this replica is to be replaced, or None."""
        return self._trouble

    def is_able(self) -> bool:
        """Whether a request that comes now can be run; any thread."""
        engine = self.replica.engine
        return engine is not None and engine.dead_reason is None and self._trouble is None

    def close(self) -> None:
        """End the engine and its processes; idempotent."""
        self._stopping.set()
        if self.replica.state != "failed":
            self.replica.enter("draining")
        if self.replica.front is not None:
            self.replica.front.close()
        self.replica.close()

    def _make_front(self, engine: Engine) -> None:
        self.replica.front = Front(
            engine, self._settings, self.replica.keys, self.totals, access=self.access
        )
        freeze_heap()

    def _check(self) -> None:
        """Leave as soon as the engine or the hold on the GPUs is lost: Serve starts the next
        replica when this one is gone, sooner than after so many failed health checks."""
        while not self._stopping.wait(CHECK_PERIOD_S):
            engine = self.replica.engine
            if engine is None:
                return
            hung = self._watch.find_trouble(engine)
            reason = engine.dead_reason or hung or self._holding.trouble()
            if reason is not None:
                self._leave(engine, reason, is_hung=hung is not None)

    def _leave(self, engine: Engine, reason: str, *, is_hung: bool) -> None:
        log.error("replica %d leaves: %s", self.replica.slot, reason)
        self.replica.fail(EngineDead(reason))
        self._trouble = reason
        if is_hung:
            end_hung_engine(engine, ENGINE_FAILED)
        time.sleep(LAST_ANSWERS_S)
        os._exit(ENGINE_FAILED)


def _log_to_ray(settings: Settings) -> None:
    """Ray keeps what a process writes to its standard error, and shows it to the launcher."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(LINE))
    ours = logging.getLogger("gpupool")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(settings.log_level.upper())
