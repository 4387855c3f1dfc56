"""The experiments: who is compared with whom, and the goals (driver). Loads nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.ancestor import start_ancestor
from benchmarks.contender import Contender, Running
from benchmarks.offline import start_engine
from benchmarks.pool_load import start_pool
from benchmarks.vllm_bench import start_bench_serve, start_own_client
from benchmarks.vllm_serve import start_vllm_serve


@dataclass(frozen=True, slots=True)
class Comparison:
    """`name` should reach `goal` times the tokens/s of `base`; None: shown without a goal."""

    name: str
    base: str
    goal: float | None


@dataclass(frozen=True, slots=True)
class Experiment:
    """Contenders that run side by side, and what is read from them."""

    name: str
    title: str
    text: str
    contenders: Callable[[Sequence[int]], list[Contender[Running]]]  # given the allowed cores
    comparisons: tuple[Comparison, ...]


def _one_worker(cores: Sequence[int]) -> list[Contender[Running]]:
    one = (cores[0],)
    return [
        Contender("bare_engine", "`LLM.generate`, all prompts in one call", one, 32, start_engine),
        Contender("pool_1", "pool, 1 worker", one, 32, start_pool(1)),
    ]


def _two_workers(cores: Sequence[int]) -> list[Contender[Running]]:
    one, both = (cores[0],), (cores[0], cores[1])
    return [
        Contender("pool_2", "pool, 2 workers on a core each", both, 64, start_pool(2)),
        Contender("pool_1_one_core", "pool, 1 worker on one core", one, 32, start_pool(1)),
        Contender("pool_1_both_cores", "pool, 1 worker on both cores", both, 64, start_pool(1)),
    ]


def _data_parallel(cores: Sequence[int]) -> list[Contender[Running]]:
    both = (cores[0], cores[1])
    what = "`vllm serve --data-parallel-size 2`"
    plain, bound = start_vllm_serve(2, is_bound=False), start_vllm_serve(2, is_bound=True)
    return [
        Contender("pool_2", "pool, 2 workers", both, 64, start_pool(2)),
        Contender("vllm_serve_dp_2", f"{what}, as it comes", both, 64, plain),
        Contender("vllm_serve_dp_2_bound", f"{what}, a core each by hand", both, 64, bound),
    ]


def _ancestor(cores: Sequence[int]) -> list[Contender[Running]]:
    one = (cores[0],)
    return [
        Contender("pool_1", "pool, 1 worker", one, 32, start_pool(1)),
        Contender("ancestor", "sync worker, a generate per request", one, 32, start_ancestor),
    ]


def _load_generator(cores: Sequence[int]) -> list[Contender[Running]]:
    one = (cores[0],)
    return [
        Contender("bench_serve", "`vllm bench serve`, streams", one, 32, start_bench_serve),
        Contender("own_client", "our load client, whole answers", one, 32, start_own_client),
    ]


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            name="one_worker",
            title="One worker against the bare engine",
            text=(
                "What the pool around an engine costs. Both have the same core and one OpenMP "
                "thread; the load client is on another core."
            ),
            contenders=_one_worker,
            comparisons=(Comparison("pool_1", "bare_engine", 0.95),),
        ),
        Experiment(
            name="two_workers",
            title="Two workers against one",
            text=(
                "What a second replica brings. On both cores together 64 requests are sent, to "
                "the worker on one core 32. Where a contender has both cores, the load client "
                "shares them."
            ),
            contenders=_two_workers,
            comparisons=(
                Comparison("pool_2", "pool_1_one_core", 1.8),
                Comparison("pool_2", "pool_1_both_cores", None),
            ),
        ),
        Experiment(
            name="data_parallel",
            title="Two workers against vLLM's own data parallelism",
            text=(
                "The same two cores and 64 requests. As it comes, vLLM 0.32 keeps a core for its "
                "scheduler and binds the OpenMP threads of both its engines to the same other "
                "one. Told by hand in `VLLM_CPU_OMP_THREADS_BIND` (`0|1`), they get a core each, "
                "which the pool does by itself."
            ),
            contenders=_data_parallel,
            comparisons=(
                Comparison("pool_2", "vllm_serve_dp_2", 2.0),
                Comparison("pool_2", "vllm_serve_dp_2_bound", None),
            ),
        ),
        Experiment(
            name="ancestor",
            title="Against the design before the pool",
            text=(
                "What batching across requests brings: 32 clients with one prompt each, on the "
                "same core."
            ),
            contenders=_ancestor,
            comparisons=(Comparison("pool_1", "ancestor", 8.0),),
        ),
        Experiment(
            name="load_generator",
            title="Our load client against vLLM's load generator",
            text=(
                "Whether the other sections' client tells the truth: two pools of one worker on "
                "the same core, one asked by it, one by `vllm bench serve`, at `/v1/completions`. "
                "The time of the latter's start does not count, its CPU does."
            ),
            contenders=_load_generator,
            comparisons=(Comparison("bench_serve", "own_client", 0.9),),
        ),
    )
}
