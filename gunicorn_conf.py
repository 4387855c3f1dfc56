"""The master's story, top to bottom; read by gunicorn in the master before anything forks.

`start_gunicorn.sh` ends here, and so does a plain `gunicorn -c gunicorn_conf.py` with the same
environment. Globals are gunicorn settings; what is ours starts with an underscore. Nobody
imports this file: gunicorn executes it under another name. Never imports torch, vllm,
transformers or ray; NVML is opened and shut before the first fork.
"""

import os as _os
import signal as _signal
import sys as _sys
from typing import Any as _Any

_sys.path.insert(0, _os.path.dirname(_os.path.abspath(__file__)))

from gpupool import hooks as _hooks
from gpupool import logs as _logs
from gpupool import master as _master
from gpupool import preflight as _preflight
from gpupool.engines.catalog import find_entry as _find_entry
from gpupool.settings import read_settings as _read_settings

# What cannot work is refused here, with one line and exit code 2.
_preflight.refuse_or_return()

# On Ray there is no gunicorn: from here on this process is the launcher.
_hooks.leave_to_ray()

# Read again by a reload, which keeps the slices, their leases and the scoreboard.
_settings = _preflight.with_engine(_read_settings(), _hooks.shared_dispatcher())
_dispatcher = _hooks.shared_dispatcher().with_settings(_settings)
_scoreboard = _hooks.shared_scoreboard(len(_dispatcher.slices))

# One worker per slice, each with threads that wait for its engine.
bind = _hooks.bind_address(_settings)
workers = len(_dispatcher.slices)
worker_class = "gpupool.worker.PoolWorker"
wsgi_app = f"{_find_entry(_settings.infer_type).app_module}:app"
threads = _settings.threads
worker_connections = _hooks.raise_file_limit(10_000)
proc_name = _hooks.process_name(_settings)

# An engine must never be loaded before the fork, so the application is not either.
preload_app = False

# The heartbeat is the worker's main loop, which neither a load nor a request holds up.
timeout = _settings.heartbeat_timeout_s
graceful_timeout = _settings.graceful_timeout_s
keepalive = _settings.keepalive_s
worker_tmp_dir = "/dev/shm" if _os.access("/dev/shm", _os.W_OK) else None

# Every user's second gunicorn would unlink the control socket of the first.
control_socket_disable = True

loglevel = _settings.log_level
logger_class = _logs.LOGGERS[_settings.log_format]
limit_request_line = 4094
limit_request_fields = 100
limit_request_field_size = 8190


def on_starting(server: _Any) -> None:
    """Master, once, before the port is bound."""
    _logs.adopt(server.log.error_log)
    _hooks.announce(_settings, _dispatcher)
    _master.adopt(server, _settings, _dispatcher, _scoreboard)


def on_reload(server: _Any) -> None:
    """Master, after a SIGHUP has run this file again."""
    server.offered = _settings


def pre_fork(server: _Any, worker: _Any) -> None:
    """Master, before each fork: the worker's slot, and a row of the scoreboard."""
    server.seat(worker)


def post_fork(server: _Any, worker: _Any) -> None:
    """Worker, first thing: its guardian, then its slice. Must not raise."""
    worker.settle(_settings, _dispatcher)


def child_exit(server: _Any, worker: _Any) -> None:
    """Master, after a worker ended, however it did."""
    _hooks.note_exit(worker)


def on_exit(server: _Any) -> None:
    """Master, last thing: nothing of any worker may outlive it."""
    for worker in list(server.WORKERS.values()):
        _hooks.kill_group(worker.pid, _signal.SIGKILL)
