"""The one loaded model of a worker, from boot to death (worker process; any thread).

The application reads it, the worker drives it. Without a worker (a single instance, Ray) the
host drives it the same way: `start`, then `close`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gpupool import calibration, load_times, model_source
from gpupool.engines.base import Engine, Report
from gpupool.errors import Unavailable
from gpupool.gpus import Gpu
from gpupool.keys import KeyRing
from gpupool.partition import Slice
from gpupool.settings import Settings, read_settings

if TYPE_CHECKING:
    from gpupool.front import Front

log = logging.getLogger(__name__)

Boot = Callable[[Slice, Settings, Report], Engine]


class Replica:
    """State words are the scoreboard's. `on_change` is called after each change, any thread."""

    def __init__(self, boot: Boot) -> None:
        self._boot = boot
        self._changed = threading.Condition()
        self._settings: Settings | None = None
        self._keys: KeyRing | None = None
        self.slot = 0
        self.gpus: tuple[Gpu, ...] = ()
        self.estimate_s: float | None = None
        self.state = "starting"
        self.phase = ""
        self.fraction: float | None = None
        self.since = time.monotonic()
        self.error: BaseException | None = None
        self.engine: Engine | None = None
        self.front: Front | None = None
        """Speaks the OpenAI API; there from when the engine is ready."""
        self.on_change: Callable[[], None] = lambda: None
        self.before_ready: Callable[[Engine], None] = lambda engine: None
        """Called on the loading thread, once the engine has loaded."""

    @property
    def settings(self) -> Settings:
        """The pool's settings, read on first use."""
        if self._settings is None:
            self._settings = read_settings()
        return self._settings

    @property
    def keys(self) -> KeyRing:
        """Who may ask; made once for the settings in force."""
        keys = self._keys
        if keys is None:
            keys = self._keys = KeyRing(self.settings.api_key, self.settings.api_key_file)
        return keys

    def adopt(self, settings: Settings) -> None:
        """Use these settings, not this process's environment: after a reload that was given up,
        the YAML file says something else."""
        self._settings, self._keys = settings, None

    def load(self, gpu_slice: Slice, settings: Settings) -> None:
        """Boot the engine and block until it is ready; raises what the engine raised."""
        self.adopt(settings)
        self.slot, self.gpus = gpu_slice.slot, gpu_slice.gpus
        load = load_times.load_of(settings, gpu_slice)
        self.estimate_s = load_times.read(load)
        self.enter("loading", "starting the engine")
        began = time.monotonic()
        local = model_source.fetch(settings, self.report)
        engine = self._boot(gpu_slice, local, self.report)
        with self._changed:
            self.engine = engine
        self.before_ready(engine)
        seconds = time.monotonic() - began
        self.enter("ready")
        log.info("model load finished worker=%d seconds=%.1f", self.slot, seconds)
        load_times.write(load, seconds)
        calibration.remember(local, gpu_slice, engine.model)

    def report(self, phase: str, fraction: float | None = None) -> None:
        """How far the load is; logged whenever the phase changes."""
        if phase != self.phase:
            log.info("loading worker=%d phase=%r", self.slot, phase)
        with self._changed:
            self.phase, self.fraction = phase, fraction
        self.on_change()

    def enter(self, state: str, phase: str = "") -> None:
        """Begin a state."""
        with self._changed:
            self.state, self.phase, self.fraction = state, phase, None
            self.since = time.monotonic()
            self._changed.notify_all()
        self.on_change()

    def fail(self, error: BaseException) -> None:
        """The engine cannot be loaded, or died."""
        with self._changed:
            self.error = error
        self.enter("failed", str(error).partition("\n")[0] or type(error).__name__)

    def ready_engine(self) -> Engine:
        """The engine, or 503 with what this worker is at."""
        with self._changed:
            if self.engine is not None and self.state in ("ready", "draining"):
                return self.engine
            phase = f": {self.phase}" if self.phase else ""
            for_s = time.monotonic() - self.since
            estimate_s = self.estimate_s if self.state == "loading" else None
            state = f"{self.state}{phase} for {for_s:.0f} s"
        if estimate_s is not None:
            state += f" of about {estimate_s:.0f} s"
        raise Unavailable(
            f"no model is ready yet; worker {self.slot} is {state}. Try again, or ask /readyz",
            retry_after_s=load_times.retry_after_s(for_s, estimate_s),
            code="not_ready",
        )

    def close(self) -> None:
        """End the engine and its processes; idempotent."""
        with self._changed:
            engine, self.engine = self.engine, None
        if engine is not None:
            engine.die()
