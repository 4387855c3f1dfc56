"""Everything that can be refused before a fork, in a short-lived process of its own.

Run by gunicorn_conf.py, because an engine's own argument parser may import torch, which the
master never does. Exit 0, or 2 with one line on stderr that says what was asked, what was found
and what to do.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dispatcher import GPUDispatcher
from gpupool import json_lines, pool_process
from gpupool.engines.catalog import import_engine
from gpupool.errors import ConfigError
from gpupool.ray_pool import preflight as ray_preflight
from gpupool.refusal import ERROR, EXIT_REFUSED
from gpupool.setting_types import AUTO_GPUS, ENGINE_NAMES, HOSTED
from gpupool.settings import Settings, env_name, read_settings


def refuse_or_return() -> None:
    """Run the preflight for this process's environment; leaves with its exit code if it fails.

    A HUP reads the configuration again in the same process: the port is ours by then.
    """
    mark = str(os.getpid())
    if os.environ.get("GPUPOOL_CHECKED") == mark:
        return
    done = subprocess.run(
        [sys.executable, "-m", "gpupool.preflight"], check=False, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(EXIT_REFUSED)
    if (chosen := done.stdout.strip()).isdigit():
        os.environ[env_name("per_proc_gpus")] = chosen
    os.environ["GPUPOOL_CHECKED"] = mark


@dataclass(frozen=True, slots=True)
class Outcome:
    """A start that is not refused."""

    warnings: tuple[str, ...] = ()
    chosen_gpus: int | None = None  # for --per_proc_gpus auto


def check(settings: Settings, *, is_running: bool = False) -> Outcome:
    """Raise ConfigError for the first thing that cannot be. A running pool has its port and its
    slices, and its engine's type was found."""
    if not settings.model_name:
        raise ConfigError(
            "no model given; use --model_name (HF_MODEL_NAME) with a local folder, a .gguf file "
            "or a Hugging Face id"
        )
    ray_preflight.check(settings)
    _check_path(settings)
    _check_key_limits(settings)
    if settings.ray_address is not None:
        return Outcome()  # the model, the engines and the GPUs are there, not here
    from gpupool import memory, model_source

    infer_type = settings.infer_type
    chosen = None
    warnings: list[str | None] = []
    if settings.per_proc_gpus == AUTO_GPUS:
        found, _ = model_source.look_up(settings, infer_type)
        chosen = memory.choose_gpus(found)
        settings = settings.model_copy(update={"per_proc_gpus": chosen})
    if not is_running:
        dispatcher = GPUDispatcher.for_settings(settings)
        _check_quorum(settings, len(dispatcher.slices))
        _check_port(settings)
        warnings.append(_warn_of_cores(settings, dispatcher))
        infer_type = infer_type or default_infer_type(dispatcher)
    found, is_whole = model_source.look_up(settings, infer_type)
    # Before the engine's own check, which takes many seconds.
    found = found.model_copy(update={"infer_type": infer_type})
    warnings.append(memory.judge(found, settings.per_proc_gpus))
    engine = import_engine(infer_type)
    if is_whole:
        engine.check(found, settings.per_proc_gpus)
    return Outcome(tuple(filter(None, warnings)), chosen)


def with_engine(settings: Settings, dispatcher: GPUDispatcher) -> Settings:
    """The settings with an engine's type, if they have none."""
    if settings.infer_type:
        return settings
    return settings.model_copy(update={"infer_type": default_infer_type(dispatcher)})


def default_infer_type(dispatcher: GPUDispatcher) -> str:
    """vLLM where GPUs are, else llama.cpp."""
    return "vllm" if dispatcher.slices[0].gpus else "llama_cpp"


def _check_path(settings: Settings) -> None:
    """The likeliest mistake is found before an engine is imported, which takes many seconds."""
    name = settings.model_name
    if settings.infer_type not in ("", *ENGINE_NAMES) or settings.infer_type == HOSTED:
        return  # an engine from outside says itself what a model is, and so does a host
    if name.startswith(("/", "./", "../", "~")) and not Path(name).expanduser().exists():
        raise ConfigError(
            f"--model_name (HF_MODEL_NAME) {name!r}: no such file or folder; check the path, or "
            "give a Hugging Face id"
        )


def _check_quorum(settings: Settings, num_workers: int) -> None:
    if settings.ready_quorum > num_workers:
        raise ConfigError(
            f"--ready_quorum (GPUPOOL_READY_QUORUM) is {settings.ready_quorum}, but there will be "
            f"{num_workers} worker(s), so the service would never be ready; use at most that"
        )


def _warn_of_cores(settings: Settings, dispatcher: GPUDispatcher) -> str | None:
    """Workers without GPUs compute on cores, of which each should have one at least, unless the
    model is computed elsewhere."""
    num_workers, num_cores = len(dispatcher.slices), len(os.sched_getaffinity(0))
    if settings.infer_type == HOSTED or dispatcher.gpus or num_workers <= num_cores:
        return None
    return (
        f"--workers (GPUPOOL_WORKERS) is {settings.workers}, but only {num_cores} CPU core(s) are "
        "here to compute on, so that workers share one; use as many as there are cores, or fewer"
    )


def _check_key_limits(settings: Settings) -> None:
    if settings.api_key or settings.api_key_file is not None:
        return
    for field in ("key_concurrency", "key_tokens_per_minute"):
        if value := getattr(settings, field):
            raise ConfigError(
                f"--{field} ({env_name(field)}) is {value}, but the pool has no API keys; give "
                "some with --api_key or --api_key_file, or leave the limit out"
            )


def _check_port(settings: Settings) -> None:
    if os.environ.get("LISTEN_FDS"):
        return  # systemd has bound it and passes the socket
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise ConfigError(_explain_bind(settings, error)) from None


def port_refusal(settings: Settings) -> str | None:
    """Why a pool with these settings could not listen now, or None."""
    try:
        _check_port(settings)
    except ConfigError as error:
        return str(error)
    return None


def _explain_bind(settings: Settings, error: OSError) -> str:
    where = f"--port (PORT) is {settings.port} on --host {settings.host!r}"
    if error.errno == errno.EADDRINUSE:
        return f"{where}: taken{_holder(settings.port)}; stop that, or use another port"
    if error.errno == errno.EACCES:
        return f"{where}: this user may not bind it; use a port from 1024 up"
    return f"{where}: {error.strerror or error}; use an address of this machine"


def _holder(port: int) -> str:
    """Who listens on a port, as far as this user may see."""
    import psutil

    try:
        for conn in psutil.net_connections("tcp"):
            is_ours = conn.status == psutil.CONN_LISTEN and conn.laddr and conn.laddr.port == port
            if is_ours and conn.pid:
                pool = pool_process.describe(conn.pid)
                return pool or f" by {psutil.Process(conn.pid).name()} (pid {conn.pid})"
    except psutil.Error:
        pass
    return ""


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what libraries print while they are asked; an unexpected error shows it after all."""
    with tempfile.TemporaryFile() as kept:
        sys.stdout.flush()
        before = {fd: os.dup(fd) for fd in (1, 2)}
        for fd in before:
            os.dup2(kept.fileno(), fd)
        is_shown = False
        try:
            yield
        except ConfigError:
            raise
        except BaseException:
            is_shown = True
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, saved in before.items():
                os.dup2(saved, fd)
                os.close(saved)
            if is_shown:
                kept.seek(0)
                os.write(2, kept.read())


def main() -> int:
    """Check this process's environment."""
    try:
        with _silence():
            settings = read_settings()
            outcome = check(settings, is_running=sys.argv[1:] == ["--running"])
    except ConfigError as error:
        print(f"{ERROR}{error}", file=sys.stderr)
        return EXIT_REFUSED
    for warning in outcome.warnings:
        is_json = settings.log_format == "json"
        line = json_lines.render(warning, level="warning", logger="gpupool.preflight")
        print(line if is_json else f"gpupool: warning: {warning}", file=sys.stderr)
    if outcome.chosen_gpus is not None:
        print(outcome.chosen_gpus)
    return 0


if __name__ == "__main__":
    sys.exit(main())
