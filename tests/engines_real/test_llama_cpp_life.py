"""llama.cpp cancelled, killed, misled and ended."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpupool.engines.base import Chunk, Failed
from gpupool.engines.llama_cpp import LlamaCppEngine
from gpupool.engines.llama_cpp_arguments import FLAGS
from gpupool.engines.llama_cpp_server import apply_params
from gpupool.errors import Cancelled, EngineDead
from gpupool.gpus import Gpu
from gpupool.partition import Slice
from gpupool.settings import Settings
from tests.demo_model import gguf_path
from tests.engines_real.test_llama_cpp import loaded_engine
from tests.engines_real.transformers_engine import Answer, Client, completion_of, wait_until

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

SLOTS = 2
LONG: dict[str, Any] = {"max_tokens": 3000, "ignore_eos": True, "seed": 1}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    args = ("--ctx-size", str(SLOTS * 4096), "--parallel", str(SLOTS))
    with loaded_engine(gguf_path(), *args) as engine:
        yield Client(engine)  # type: ignore[arg-type]


@pytest.fixture
def doomed() -> Iterator[Client]:
    """One that its test ends."""
    with loaded_engine(gguf_path(), "--ctx-size", "4096", "--parallel", "1") as engine:
        yield Client(engine)  # type: ignore[arg-type]


def child_of(client: Client) -> Any:
    return client.engine._child  # type: ignore[attr-defined]


def error_of(answer: Answer) -> Exception:
    end = answer.last()
    assert isinstance(end, Failed), end
    return end.error


def start_long(client: Client) -> tuple[str, Answer]:
    """A generation that would run for very long, running."""
    answer = client.start("Once upon a time", **LONG)
    assert isinstance(answer.next(), Chunk)
    return client.last_id, answer


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_cancelled_generations_free_their_slots(client: Client) -> None:
    running = [start_long(client) for _ in range(SLOTS)]
    waiting = client.start("Water is", max_tokens=2, seed=1)
    for request_id, _ in running:
        client.engine.cancel(request_id)
    assert all(isinstance(error_of(answer), Cancelled) for _, answer in running)
    # llama.cpp itself gives the slot to the waiting one only when the others have stopped.
    completion_of(waiting)
    assert sum(len(answer.chunks) for _, answer in running) < LONG["max_tokens"]


def test_cancelled_waiting_request_ends_while_the_others_run(client: Client) -> None:
    running = [start_long(client) for _ in range(SLOTS)]
    waiting = client.start("Water is", max_tokens=2)
    client.engine.cancel(client.last_id)
    assert isinstance(error_of(waiting), Cancelled)
    assert waiting.chunks == []
    assert not any(isinstance(answer.events[-1], Failed) for _, answer in running)
    for request_id, answer in running:
        client.engine.cancel(request_id)
        answer.last()


def test_prompt_that_is_still_read_can_be_cancelled(client: Client) -> None:
    began = time.monotonic()
    prompt = client.tokens("word " * 3800)
    answers = []
    for place in range(SLOTS):
        answers.append(client.start([place, *prompt], max_tokens=2))
        request_id = client.last_id
        client.wait_for_progress(began)
        client.engine.cancel(request_id)
    assert all(isinstance(error_of(answer), Cancelled) for answer in answers)
    assert all(answer.chunks == [] for answer in answers)


def test_cancelled_score_ends(client: Client) -> None:
    tokens = client.tokens("word " * 2000)
    answer = client.ask(lambda name, sink: client.engine.score(name, tokens, sink))
    client.wait_for_progress(time.monotonic())
    client.engine.cancel(client.last_id)
    assert isinstance(error_of(answer), Cancelled)


def test_unknown_request_is_not_cancelled(client: Client) -> None:
    client.engine.cancel("nobody")
    completion_of(client.start("Water is", max_tokens=1))


def test_many_threads_tokenize(client: Client) -> None:
    texts = [f"text number {place}" for place in range(16)]
    alone = [client.tokens(text) for text in texts]
    found: dict[int, list[int]] = {}

    def work(place: int) -> None:
        found[place] = client.tokens(texts[place])

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[place] for place in range(len(texts))] == alone


@pytest.mark.parametrize("path", ["/completion", "/tokenize", "/v1/chat/completions"])
def test_the_socket_refuses_who_has_no_secret(client: Client, path: str) -> None:
    transport = httpx.HTTPTransport(uds=child_of(client).socket_path)
    with httpx.Client(transport=transport, base_url="http://llama.cpp") as stranger:
        assert stranger.post(path, json={"prompt": "x"}).status_code == 401


def test_only_this_user_reaches_the_socket(client: Client) -> None:
    folder = Path(child_of(client).socket_path).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_secret_is_in_no_command_line_and_no_environment(client: Client) -> None:
    child = child_of(client)
    for name in ("cmdline", "environ"):
        assert child.secret not in Path(f"/proc/{child.pid}/{name}").read_text()


def test_no_tcp_port_is_open(client: Client) -> None:
    fds = Path(f"/proc/{child_of(client).pid}/fd").iterdir()
    held = {os.readlink(fd) for fd in fds}
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    assert any(name.startswith("socket:") for name in held)
    assert not held & {f"socket:[{fields[9]}]" for fields in lines}


def test_stopping_the_whole_group_lets_requests_finish(client: Client) -> None:
    answer = client.start("Water is", max_tokens=20, ignore_eos=True)
    answer.next()
    for name in (signal.SIGTERM, signal.SIGINT):
        os.kill(child_of(client).pid, name)
    assert len(completion_of(answer).token_ids) == 20


def test_killed_process_fails_every_request_and_says_why(doomed: Client) -> None:
    _, running = start_long(doomed)
    waiting = doomed.start("Water is", max_tokens=2)
    os.kill(child_of(doomed).pid, signal.SIGKILL)
    assert isinstance(error_of(running), EngineDead)
    assert isinstance(error_of(waiting), EngineDead)
    # Tokens made by hand, as nobody tokenizes any more.
    assert isinstance(error_of(doomed.start([1, 2, 3], max_tokens=2)), EngineDead)
    reason = doomed.engine.dead_reason
    assert reason is not None
    assert "SIGKILL" in reason


def test_tokenize_of_a_dead_engine_says_that_it_is_dead(doomed: Client) -> None:
    os.kill(child_of(doomed).pid, signal.SIGKILL)
    with pytest.raises(EngineDead, match="SIGKILL"):
        doomed.engine.tokenize("x")


def test_what_runs_is_in_flight_until_it_ends(client: Client) -> None:
    wait_until(lambda: client.engine.num_inflight() == 0)
    request_id, answer = start_long(client)
    assert client.engine.num_inflight() == 1
    client.engine.cancel(request_id)
    answer.last()
    wait_until(lambda: client.engine.num_inflight() == 0)


def test_text_that_a_stopped_process_should_tokenize_is_in_flight(doomed: Client) -> None:
    """Or nobody would find out that it is stopped before the first prompt is tokens."""
    child = child_of(doomed)
    os.kill(child.pid, signal.SIGSTOP)
    tokenizing = threading.Thread(target=lambda: pytest.raises(EngineDead, doomed.tokens, "x"))
    tokenizing.start()
    wait_until(lambda: doomed.engine.num_inflight() == 1)
    doomed.engine.die()
    tokenizing.join(10)
    assert doomed.engine.num_inflight() == 0


def test_die_ends_requests_process_and_socket(doomed: Client) -> None:
    _, running = start_long(doomed)
    child = child_of(doomed)
    began = time.monotonic()
    doomed.engine.die()
    assert time.monotonic() - began < 10
    assert isinstance(error_of(running), EngineDead)
    assert not is_running(child.pid)
    assert not Path(child.socket_path).parent.exists()
    doomed.engine.die()


def test_process_ends_with_its_worker() -> None:
    """Killed, so that nothing of it runs any more; also while the model loads."""
    for wait_for in ("starting llama.cpp", "warming up"):
        pid_of_child, worker = fork_worker(wait_for)
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        wait_until(lambda pid=pid_of_child: not is_running(pid))


def fork_worker(phase: str) -> tuple[int, int]:
    """A process that has loaded an engine up to a phase; the pids of its child and of itself."""
    readable, writable = os.pipe()
    worker = os.fork()
    if worker == 0:
        try:
            load_until(phase, writable)
        finally:
            os._exit(1)
    os.close(writable)
    with os.fdopen(readable) as told:
        return int(told.readline()), worker


def load_until(phase: str, writable: int) -> None:
    engine = LlamaCppEngine(Settings(model_name=str(gguf_path())), Slice(0, (), (0,)))

    def tell() -> None:
        wait_until(lambda: engine._child is not None and engine._child.pid is not None)
        os.write(writable, f"{child_of(Client(engine)).pid}\n".encode())  # type: ignore[arg-type]

    def report(now: str, fraction: float | None) -> None:
        if now == phase:
            threading.Thread(target=tell).start()

    engine.load(report)
    signal.pause()


def test_die_while_loading_ends_the_load() -> None:
    engine = LlamaCppEngine(Settings(model_name=str(gguf_path())), Slice(0, (), (0,)))

    def report(phase: str, fraction: float | None) -> None:
        if phase == "loading weights":
            threading.Thread(target=engine.die).start()

    with pytest.raises(EngineDead, match="told to end"):
        engine.load(report)
    engine.die()


def test_loading_reports_how_far_it_is(tmp_path: Path) -> None:
    reports: list[tuple[str, float | None]] = []
    engine = LlamaCppEngine(Settings(model_name=str(gguf_path())), Slice(0, (), (0,)))
    try:
        engine.load(lambda phase, fraction: reports.append((phase, fraction)))
    finally:
        engine.die()
    fractions = [fraction for phase, fraction in reports if phase == "loading weights"]
    assert all(fraction is None or 0 <= fraction <= 1 for fraction in fractions)
    assert reports[-1][0] == "warming up"


def test_file_that_is_cut_off_is_named_in_one_line(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with gguf_path().open("rb") as whole:
        cut.write_bytes(whole.read(60_000_000))
    with (
        pytest.raises(EngineDead, match="is not within the file bounds") as raised,
        loaded_engine(cut),
    ):
        pass
    assert "cut.gguf" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_slice_with_gpus_is_not_run_on_the_cpu() -> None:
    gpu = Gpu(index=0, uuid="GPU-none", name="none", total_bytes=8 << 30, free_bytes=8 << 30)
    engine = LlamaCppEngine(Settings(model_name=str(gguf_path())), Slice(0, (gpu,), (0,)))
    with pytest.raises(EngineDead, match="CUDA wheel"):
        engine.load(lambda phase, fraction: None)


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_is_one_that_xllamacpp_knows(name: str) -> None:
    """The table names attributes and members of a library that it does not import."""
    from xllamacpp import CommonParams

    params = CommonParams()
    for value in values_of(name):
        apply_params(params, {FLAGS[name].attribute: value})


def values_of(name: str) -> list[Any]:
    """Every word that a flag takes, or one value."""
    flag = FLAGS[name]
    if flag.read is None:
        return [flag.value]
    if flag.attribute == "lora_adapters":
        return [[("adapter.gguf", 1.0)]]
    if flag.attribute in ("chat_template", "tensor_buft_overrides"):
        return [""]
    try:
        flag.read("no such word")
    except ValueError as error:
        if str(error).startswith("one of "):
            return [flag.read(word) for word in str(error).removeprefix("one of ").split(", ")]
    return [flag.read("3" if name == "--log-verbosity" else "16")]


def test_a_context_alone_is_one_requests_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        caplog.at_level("INFO", logger="gpupool.engines.llama_cpp"),
        loaded_engine(gguf_path(), "--ctx-size", "4096") as engine,
    ):
        assert (engine.model.slots, engine.model.context_tokens) == (1, 4096)
    assert "llama.cpp has 1 slot(s) of 4096 tokens each" in caplog.messages
