"""The vLLM engine with a real model on the CPU, in fp32. One engine for most tests."""

from __future__ import annotations

import gc
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import psutil
import pytest

from gpupool.engines.base import (
    Chunk,
    Completion,
    Event,
    Failed,
    Finished,
    SamplingParams,
    Scored,
    Sink,
)
from gpupool.engines.vllm import VllmEngine
from gpupool.engines.vllm_sampling import TOKENS_AT_ONCE
from gpupool.errors import BadRequest, Cancelled, EngineDead, EngineError
from gpupool.partition import Slice
from gpupool.planner.checkpoint import read_checkpoint
from gpupool.planner.kv_cache import Cache
from gpupool.settings import Settings
from tests.demo_model import model_folder
from tests.engines_real.best_tokens import check_best_tokens

pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(600),
    # torch and vLLM warn of what they deprecate themselves.
    pytest.mark.filterwarnings("default"),
]

CONTEXT = 512
ARGS = (
    "--enforce-eager", "--dtype", "float32", "--max-model-len", str(CONTEXT),
    "--max-num-seqs", "16", "--kv-cache-memory-bytes", "256M",
)  # fmt: skip
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Once upon a time, in a village by the sea, there lived",
    "1 2 3 4 5 6 7 8",
    "Überraschung! 雪が降る 🌨",
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
)


def new_engine() -> VllmEngine:
    settings = Settings(model_name=str(model_folder()), engine_args=ARGS)
    return VllmEngine(settings, Slice(0, (), tuple(sorted(os.sched_getaffinity(0)))))


def ignore_report(phase: str, fraction: float | None) -> None:
    pass


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    # vLLM leaves its sockets' context to the collector, which warns; here that is no error yet.
    gc.collect()


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmEngine]:
    engine = new_engine()
    engine.load(ignore_report)
    yield engine
    engine.die()


@dataclass
class Answer:
    """A sink that keeps what it is given."""

    events: list[Event] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.begun.set()
        if not isinstance(event, Chunk):
            self.over.set()

    def last(self, timeout_s: float = 120) -> Event:
        assert self.over.wait(timeout_s), f"no end after {self.events}"
        return self.events[-1]

    @property
    def chunks(self) -> list[Chunk]:
        return [event for event in self.events if isinstance(event, Chunk)]

    def completion(self) -> Completion:
        event = self.last()
        assert isinstance(event, Finished), event
        return event.completions[0]

    def error(self) -> Exception:
        event = self.last()
        assert isinstance(event, Failed), event
        return event.error


ids = iter(range(1_000_000))


def ask(start: Callable[[str, Answer], None], answer: Answer | None = None) -> Answer:
    answer = answer or Answer()
    start(f"test-{next(ids)}", answer)
    return answer


def generate(engine: VllmEngine, prompt: str | Sequence[int], **params: Any) -> Answer:
    tokens = engine.tokenize(prompt) if isinstance(prompt, str) else prompt
    return ask(lambda i, sink: engine.generate(i, tokens, SamplingParams(**params), sink))


def score(engine: VllmEngine, tokens: Sequence[int]) -> tuple[float, ...]:
    event = ask(lambda i, sink: engine.score(i, tokens, sink)).last()
    assert isinstance(event, Scored), event
    return event.logprobs


def beams(engine: VllmEngine, prompt: str, **params: Any) -> tuple[Completion, ...]:
    tokens, wanted = engine.tokenize(prompt), SamplingParams(**params)
    event = ask(lambda i, sink: engine.beam_search(i, tokens, wanted, sink)).last()
    assert isinstance(event, Finished), event
    return event.completions


def await_true(condition: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def on_loop(engine: VllmEngine, call: Any) -> Any:
    import asyncio

    return asyncio.run_coroutine_threadsafe(call, engine.loop).result(20)


def is_empty(engine: VllmEngine) -> bool:
    """Neither vLLM's front nor its scheduler holds a request: the prefix cache can be reset only
    when no request holds a block of it."""
    num_requests = engine.client.get_num_unfinished_requests()
    return num_requests == 0 and bool(on_loop(engine, engine.client.reset_prefix_cache()))


def num_steps() -> float:
    from prometheus_client import REGISTRY

    return sum(
        sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "vllm:iteration_tokens_total_count"
    )


@cache
def reference() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32).eval()


def reference_score(tokens: Sequence[int]) -> list[float]:
    import torch

    with torch.inference_mode():
        logits = reference()(torch.tensor([list(tokens)])).logits[0, :-1]
    chosen = torch.log_softmax(logits, -1).gather(-1, torch.tensor(tokens[1:])[:, None])
    return [float(value) for value in chosen[:, 0]]


# Generating.


def test_requests_at_the_same_time_share_their_steps(engine: VllmEngine) -> None:
    before = num_steps()
    answers = [
        generate(engine, prompt, max_tokens=32, temperature=0, ignore_eos=True)
        for prompt in PROMPTS
    ]
    for answer in answers:
        answer.completion()
    assert num_steps() - before < 2 * 32


def test_chunks_add_up_to_the_completion(engine: VllmEngine) -> None:
    answer = generate(engine, PROMPTS[4], max_tokens=24, temperature=0, logprobs=1, ignore_eos=True)
    completion = answer.completion()
    assert "".join(chunk.text for chunk in answer.chunks) == completion.text
    assert sum((chunk.token_ids for chunk in answer.chunks), ()) == completion.token_ids
    assert sum((chunk.logprobs for chunk in answer.chunks), ()) == completion.logprobs


def test_tokens_after_the_first_come_several_at_a_time(engine: VllmEngine) -> None:
    answer = generate(engine, PROMPTS[4], max_tokens=24, temperature=0, ignore_eos=True)
    answer.completion()
    assert [len(chunk.token_ids) for chunk in answer.chunks] == [1, TOKENS_AT_ONCE, 7]


@pytest.mark.parametrize("seed", [7, -1, -(1 << 63), (1 << 63) - 1])
def test_a_seed_gives_the_same_text_twice(engine: VllmEngine, seed: int) -> None:
    texts = {generate(engine, PROMPTS[2], max_tokens=16, seed=seed).completion().text
             for _ in range(2)}  # fmt: skip
    assert len(texts) == 1


def test_a_seed_gives_the_same_text_among_others(engine: VllmEngine) -> None:
    alone = generate(engine, PROMPTS[0], max_tokens=24, seed=11).completion().text
    others = [generate(engine, prompt, max_tokens=30) for prompt in PROMPTS]
    among = generate(engine, PROMPTS[0], max_tokens=24, seed=11).completion().text
    for other in others:
        other.completion()
    assert among == alone


def test_without_a_seed_texts_differ(engine: VllmEngine) -> None:
    answers = [generate(engine, PROMPTS[2], max_tokens=16) for _ in range(4)]
    assert len({answer.completion().text for answer in answers}) > 1


def test_a_stop_string_ends_the_text_before_itself(engine: VllmEngine) -> None:
    plain = generate(engine, PROMPTS[0], max_tokens=24, temperature=0).completion().text
    stop = plain.split()[2]
    answer = generate(engine, PROMPTS[0], max_tokens=24, temperature=0, stop=(stop,))
    completion = answer.completion()
    assert (completion.text, completion.finish_reason) == (plain[: plain.index(stop)], "stop")
    assert "".join(chunk.text for chunk in answer.chunks) == completion.text


def test_max_tokens_ends_with_length(engine: VllmEngine) -> None:
    done = generate(engine, PROMPTS[0], max_tokens=5, temperature=0, ignore_eos=True).completion()
    assert (len(done.token_ids), done.finish_reason) == (5, "length")


def test_logit_bias_forces_a_token(engine: VllmEngine) -> None:
    token = engine.tokenize(" snow")[0]
    done = generate(engine, PROMPTS[0], max_tokens=3, temperature=0, logit_bias={token: 100.0})
    assert set(done.completion().token_ids) == {token}


def test_logprobs_are_those_before_temperature(engine: VllmEngine) -> None:
    tokens = engine.tokenize(PROMPTS[2])
    done = generate(engine, tokens, max_tokens=12, temperature=1.9, seed=3, logprobs=3)
    completion = done.completion()
    assert completion.logprobs is not None
    direct = reference_score([*tokens, *completion.token_ids])[len(tokens) - 1 :]
    assert [entry.logprob for entry in completion.logprobs] == pytest.approx(direct, abs=1e-2)


def test_the_best_alternatives_come_best_first(engine: VllmEngine) -> None:
    done = generate(engine, PROMPTS[2], max_tokens=12, temperature=1.9, seed=3, logprobs=3)
    for entry in done.completion().logprobs or ():
        values = [other.logprob for other in entry.top]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert entry.logprob <= values[0]


# Scoring.


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_score_is_a_direct_forward_pass(engine: VllmEngine, prompt: str) -> None:
    tokens = engine.tokenize(prompt)
    assert score(engine, tokens) == pytest.approx(reference_score(tokens), abs=1e-2)


def test_a_score_is_right_when_its_prompt_is_cached(engine: VllmEngine) -> None:
    tokens = (engine.tokenize(PROMPTS[2]) * 30)[:300]  # More than a block of the cache.
    generate(engine, tokens, max_tokens=2).completion()
    direct = pytest.approx(reference_score(tokens), abs=1e-2)
    assert [score(engine, tokens) == direct for _ in range(2)] == [True, True]


def test_a_prompt_that_fills_the_context_is_scored(engine: VllmEngine) -> None:
    tokens = (engine.tokenize(PROMPTS[2]) * 60)[:CONTEXT]
    assert score(engine, tokens) == pytest.approx(reference_score(tokens), abs=1e-2)


def test_one_token_has_no_score(engine: VllmEngine) -> None:
    assert score(engine, [1]) == ()


# Beam search.

MORE_BEAMS = [(1.0, True), (0.5, False), (1.0, "never")]


def test_the_best_beam_is_at_least_as_probable_as_the_greedy_text(engine: VllmEngine) -> None:
    greedy = generate(engine, PROMPTS[0], max_tokens=10, temperature=0, logprobs=0).completion()
    best = beams(engine, PROMPTS[0], max_tokens=10, beam_width=4, length_penalty=0.0, logprobs=0)[0]
    total = [sum(entry.logprob for entry in done.logprobs or ()) for done in (greedy, best)]
    assert total[1] >= total[0]


@pytest.mark.parametrize(
    ("length_penalty", "early_stopping"),
    [
        (0.5, True),
        (1.0, False),
        (0.5, "never"),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE_BEAMS),
    ],
)
def test_beams_are_those_of_transformers(
    engine: VllmEngine, length_penalty: float, early_stopping: bool | str
) -> None:
    import torch

    tokens = engine.tokenize(PROMPTS[5])
    wanted = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    ours = beams(engine, PROMPTS[5], max_tokens=16, beam_width=4, num_beams_returned=3, **wanted)
    theirs = reference().generate(
        torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
        num_beams=4, num_return_sequences=3, max_new_tokens=16, do_sample=False, **wanted,
    )  # fmt: skip
    pad = reference().generation_config.pad_token_id
    expected = [[t for t in row[len(tokens) :].tolist() if t != pad] for row in theirs]
    assert [[t for t in done.token_ids if t != pad] for done in ours] == expected


def test_the_widest_beam_search_of_the_api_runs(engine: VllmEngine) -> None:
    found = beams(engine, PROMPTS[0], max_tokens=2, beam_width=128, num_beams_returned=128)
    assert len({done.token_ids for done in found}) == 128


# Cancelling and failing.


@pytest.mark.parametrize("kind", ["generate", "beam_search"])
def test_a_cancelled_request_ends_at_once_and_leaves_nothing(engine: VllmEngine, kind: str) -> None:
    await_true(lambda: is_empty(engine))
    answer = Answer()
    params = SamplingParams(max_tokens=480, ignore_eos=True, temperature=0, beam_width=3)
    getattr(engine, kind)("to-cancel", engine.tokenize(PROMPTS[0]), params, answer)
    await_true(lambda: engine.client.get_num_unfinished_requests())
    began = time.monotonic()
    engine.cancel("to-cancel")
    assert isinstance(answer.error(), Cancelled)
    assert time.monotonic() - began < 0.5
    await_true(lambda: is_empty(engine))


def test_a_request_cancelled_before_it_starts_ends_too(engine: VllmEngine) -> None:
    for _ in range(20):
        answer = Answer()
        engine.generate("early", [1, 2, 3], SamplingParams(max_tokens=100), answer)
        engine.cancel("early")
        assert isinstance(answer.error(), Cancelled)
    await_true(lambda: is_empty(engine))


def test_cancelling_an_unknown_request_does_nothing(engine: VllmEngine) -> None:
    engine.cancel("nobody")
    assert engine.dead_reason is None


@pytest.mark.parametrize(
    ("prompt", "params", "error"),
    [
        ([1, 2], {"temperature": 3.0}, BadRequest),
        ([1, 10_000_000], {}, BadRequest),
        ([], {}, BadRequest),
        ([1, 2], {"seed": 1 << 70}, EngineError),
    ],
    ids=["temperature", "token", "empty", "seed"],
)
def test_what_vllm_refuses_harms_no_other_request(
    engine: VllmEngine, prompt: list[int], params: dict[str, Any], error: type[Exception]
) -> None:
    other = generate(engine, PROMPTS[0], max_tokens=20, temperature=0, ignore_eos=True)
    bad = generate(engine, prompt, **params).error()
    assert type(bad) is error
    assert len(other.completion().token_ids) == 20
    assert engine.dead_reason is None
    await_true(lambda: is_empty(engine))


def test_every_step_is_progress(engine: VllmEngine) -> None:
    before = engine.last_progress()
    answer = generate(engine, PROMPTS[0], max_tokens=40, temperature=0, ignore_eos=True)
    assert answer.begun.wait(20)
    first = engine.last_progress()
    answer.completion()
    assert before < first < engine.last_progress() <= time.monotonic()


def test_what_runs_is_in_flight_until_it_ends(engine: VllmEngine) -> None:
    await_true(lambda: engine.num_inflight() == 0)
    answer = generate(engine, PROMPTS[0], max_tokens=40, temperature=0, ignore_eos=True)
    assert answer.begun.wait(20)
    assert engine.num_inflight() == 1
    answer.completion()
    await_true(lambda: engine.num_inflight() == 0)


def test_tokenizing_is_safe_from_many_threads(engine: VllmEngine) -> None:
    expected = [engine.tokenize(prompt) for prompt in PROMPTS]
    found: queue.Queue[bool] = queue.Queue()

    def tokenize() -> None:
        for _ in range(50):
            found.put([engine.tokenize(prompt) for prompt in PROMPTS] == expected)

    threads = [threading.Thread(target=tokenize) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found.get_nowait() for _ in range(400)] == [True] * 400


# Death. Each of these has an engine of its own; the last test of the file ends the other one.


def vllm_processes() -> list[psutil.Process]:
    """EngineCore and workers that this process started, living ones only."""
    found = []
    for process in psutil.process_iter(["pid"]):
        try:
            is_ours = os.getpgid(process.pid) == os.getpgid(0)
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                name = " ".join(process.cmdline())
                if "VLLM::" in name or "spawn_main" in name:
                    found.append(process)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return found


@pytest.fixture
def mortal() -> Iterator[VllmEngine]:
    engine = new_engine()
    engine.load(ignore_report)
    yield engine
    engine.die()


def start_endless(engine: VllmEngine) -> list[Answer]:
    answers = [
        generate(engine, prompt, max_tokens=400, temperature=0, ignore_eos=True)
        for prompt in PROMPTS
    ]
    assert all(answer.begun.wait(60) for answer in answers)
    return answers


@pytest.mark.slow
def test_a_killed_engine_core_ends_every_request(mortal: VllmEngine) -> None:
    answers = start_endless(mortal)
    os.kill(mortal.client.engine_core.resources.engine_manager.processes[0].pid, signal.SIGKILL)
    assert {type(answer.error()) for answer in answers} == {EngineDead}
    assert "EngineCore was ended by SIGKILL" in (mortal.dead_reason or "")
    assert type(generate(mortal, PROMPTS[0]).error()) is EngineDead
    before = mortal.dead_reason
    mortal.die()
    mortal.die()
    assert mortal.dead_reason == before


@pytest.mark.slow
def test_a_killed_worker_of_an_idle_engine_is_noticed(mortal: VllmEngine) -> None:
    core, worker = sorted(mortal._family.alive(), key=lambda process: process.create_time())
    worker.kill()
    await_true(lambda: mortal.dead_reason)
    await_true(lambda: not mortal._family.alive())
    assert not core.is_running() or core.status() == psutil.STATUS_ZOMBIE


def test_death_while_loading_ends_the_load() -> None:
    before = {process.pid for process in vllm_processes()}
    engine, outcome = new_engine(), Answer()

    def load(sink: Sink) -> None:
        try:
            engine.load(ignore_report)
        except EngineDead as error:
            sink(Failed(error))

    threading.Thread(target=load, args=(outcome,), daemon=True).start()
    await_true(lambda: {p.pid for p in vllm_processes()} - before, timeout_s=120)
    began = time.monotonic()
    engine.die()
    assert time.monotonic() - began < 10
    assert isinstance(outcome.error(), EngineDead)
    assert {process.pid for process in vllm_processes()} == before


def test_best_tokens_of_a_prompt_are_those_of_a_forward_pass(engine: VllmEngine) -> None:
    check_best_tokens(engine)


def test_best_tokens_of_a_full_context_are_all_there(engine: VllmEngine) -> None:
    found = ask(lambda i, sink: engine.score(i, [5] * CONTEXT, sink, 2)).last()
    assert isinstance(found, Scored)
    assert [len(top) for top in found.top] == [2] * (CONTEXT - 1)


def test_the_planner_finds_room_for_as_many_tokens_as_vllm_logs(engine: VllmEngine) -> None:
    config = engine.client.vllm_config.cache_config
    model = read_checkpoint(str(model_folder())).subject.model
    cache = Cache(model, value_bytes=4, block_size=config.block_size)
    planned = cache.num_tokens(engine.args.kv_cache_memory_bytes, CONTEXT)
    assert planned == config.kv_cache_size_tokens  # the number in its log line


def test_death_while_requests_run_leaves_no_process(engine: VllmEngine) -> None:
    others = {process.pid for process in vllm_processes()}
    members = {process.pid for process in engine._family.alive()}
    answers = start_endless(engine)
    began = time.monotonic()
    engine.die()
    assert time.monotonic() - began < 10
    assert {type(answer.error()) for answer in answers} == {EngineDead}
    assert len(members) == 2
    assert {process.pid for process in vllm_processes()} == others - members
