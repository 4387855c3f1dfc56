"""Ray's side of a pool, from its start to its end (launcher: the process that start_gunicorn.sh
became, in the place of gunicorn's master).

It deploys and watches; no request goes through it. Exit 0 after a signal, 1 where no replica can
ever work, 2 with one line where the pool cannot be.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

from gpupool.errors import ConfigError, GpupoolError
from gpupool.greeting import greet
from gpupool.ray_pool import cluster
from gpupool.ray_pool.application import make_application
from gpupool.ray_pool.capacity import Plan, Wanted, plan
from gpupool.ray_pool.draining import drain
from gpupool.ray_pool.names import APP, DEPLOYMENT
from gpupool.ray_pool.rules import DoorRules
from gpupool.refusal import ERROR, EXIT_REFUSED, one_line
from gpupool.settings import Settings, read_settings

log = logging.getLogger(__name__)

EXIT_FAILED = 1
POLL_S = 0.5
SLOTS_TIMEOUT_S = 30.0
LINE = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"
SERVE_LOGGING = {"enable_access_log": False, "log_level": "WARNING"}
NOT_HERE = {signal.SIGHUP: "a reload", signal.SIGUSR1: "opening the log files again"}


class Launcher:
    """One pool."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._secret = secrets.token_hex(16)
        self._told = threading.Event()
        self._is_urgent = False
        self._num_ready = -1

    def run(self) -> None:
        """Returns after a signal; GpupoolError if the pool failed."""
        rules = DoorRules.of_settings(self._settings, self._secret)
        variables = rules.as_environment()
        if self._settings.ray_address is None:
            variables |= cluster.python_path(os.environ)
        with cluster.opened(self._settings, variables):
            self._handle_signals()  # Ray has put its own in place
            self._settings = with_engine(self._settings)
            found = plan(
                cluster.node_resources(),
                self._settings.per_proc_gpus,
                Wanted.of_settings(self._settings),
            )
            try:
                self._serve(found)
            finally:
                self._end()

    def _handle_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self._note_end)
        for number in NOT_HERE:
            signal.signal(number, self._note_other)

    def _serve(self, found: Plan) -> None:
        log.info(
            "gpupool: %s by %s on http://%s:%d, %s replica(s) on Ray",
            self._settings.model_name,
            self._settings.infer_type,
            self._settings.host,
            self._settings.port,
            found.num_replicas if found.least is None else f"{found.least} to {found.num_replicas}",
        )
        _start_serve(self._settings)
        _deploy(self._settings, found, None)
        if (slots := self._await_slots()) is not None:
            _deploy(self._settings, found, slots)
            log.info("each replica has %d slot(s)", slots)
            greet(self._settings)
        while not self._told.wait(POLL_S):
            self._look()

    def _await_slots(self) -> int | None:
        """Until a ready replica tells how many it has; None if the pool is told to end before."""
        while not self._told.wait(POLL_S):
            if self._look() and (told := _slots()):
                return min(told)
        return None

    def _look(self) -> int:
        """How many replicas are ready; GpupoolError once there can never be one."""
        from ray import serve

        there = serve.status().applications.get(APP)
        if there is None:
            return 0
        if there.status == "DEPLOY_FAILED":
            raise GpupoolError(f"no replica can ever be ready: {_reason(there)}")
        states = there.deployments[DEPLOYMENT].replica_states if there.deployments else {}
        num_ready = int(states.get("RUNNING", 0))
        if num_ready != self._num_ready:
            log.info("%d replica(s) ready", num_ready)
            self._num_ready = num_ready
        return num_ready

    def _end(self) -> None:
        """Answer what was let in, then end the replicas and Serve."""
        from ray import serve

        if not self._is_urgent:
            drain(self._settings, self._secret)
            serve.delete(APP)
        serve.shutdown()

    def _note_end(self, number: int, frame: FrameType | None) -> None:
        self._is_urgent = self._is_urgent or number != signal.SIGTERM
        self._told.set()

    def _note_other(self, number: int, frame: FrameType | None) -> None:
        os.write(
            2, f"gpupool: on Ray there is not yet {NOT_HERE[signal.Signals(number)]}\n".encode()
        )


def with_engine(settings: Settings) -> Settings:
    """The settings with an engine's type, if they have none; Ray knows whether there are GPUs."""
    if settings.infer_type:
        return settings
    has_gpus = any(node.get("GPU") for node in cluster.node_resources())
    return settings.model_copy(update={"infer_type": "vllm" if has_gpus else "llama_cpp"})


def _start_serve(settings: Settings) -> None:
    from ray import serve

    serve.start(
        proxy_location="HeadOnly",
        http_options={
            "host": settings.host,
            "port": settings.port,
            "keep_alive_timeout_s": settings.keepalive_s,
        },
        logging_config=SERVE_LOGGING,
    )


def _deploy(settings: Settings, found: Plan, slots: int | None) -> None:
    from ray import serve

    application = make_application(settings, found, slots)
    target = serve.RunTarget(application, name=APP, route_prefix="/", logging_config=SERVE_LOGGING)
    serve.run_many([target], wait_for_applications_running=False)


def _slots() -> list[int]:
    """Of the engines that tell it, past Serve's queue; one may just have died."""
    from ray import serve

    handle = serve.get_deployment_handle(DEPLOYMENT, app_name=APP)
    asked = handle.broadcast("slots")
    try:
        told = asked.results(timeout_s=SLOTS_TIMEOUT_S, return_exceptions=True)
    except Exception as error:  # no common base: no replica any more, one that does not answer
        log.info("no replica tells its slots: %s", type(error).__name__)
        return []
    return [found for found in told if isinstance(found, int)]


def _reason(there: Any) -> str:
    """The last line that says something, of a text with tracebacks."""
    messages = [found.message for found in there.deployments.values()] + [there.message]
    lines = [line.strip() for line in messages[0].splitlines() if line.strip()]
    return one_line(lines[-1] if lines else there.message)


def log_to_stderr(settings: Settings) -> None:
    """As gunicorn's master does."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(LINE))
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ours = logging.getLogger("gpupool")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(settings.log_level.upper())


def main() -> NoReturn:
    """What this process does from now on."""
    try:
        settings = read_settings()
        log_to_stderr(settings)
        Launcher(settings).run()
    except ConfigError as error:
        sys.stderr.write(f"{ERROR}{error}\n")
        sys.exit(EXIT_REFUSED)
    except GpupoolError as error:
        log.error("%s", error)
        sys.exit(EXIT_FAILED)
    log.info("the pool has ended")
    sys.exit(0)


if __name__ == "__main__":
    main()
