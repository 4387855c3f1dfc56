"""The judgement on an engine, look by look."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from gpupool.procfs import Process, ticks_per_second
from gpupool.watchdog import Look, Watchdog

STALL_S = 300.0
ENGINE = Process(
    pid=1234, name="engine", state="S", pgid=1000, num_threads=1, start_ticks=5,
    cpu_ticks=1_000_000, last_signal=0,
)  # fmt: skip
IDLE_SHARE = 0.014  # of a core: the most that an idle process was measured to take


@dataclass
class Course:
    """Looks at an engine, half a second apart, until it is condemned or a time has passed."""

    processes: Callable[[float], tuple[Process, ...]] = lambda now: (ENGINE,)
    progress: Callable[[float], float] = lambda now: 0.0
    num_inflight: Callable[[float], int] = lambda now: 3
    gpus_compute: bool = False
    times: Callable[[], Iterator[float]] | None = None

    def run(self, until_s: float) -> tuple[float, str] | None:
        """When and why it was condemned."""
        watchdog = Watchdog(STALL_S)
        for now in self.times() if self.times else half_seconds(until_s):
            look = Look(
                at=now,
                num_inflight=self.num_inflight(now),
                last_progress=self.progress(now),
                processes=self.processes(now),
                gpus_compute=self.gpus_compute,
            )
            reason = watchdog.judge(look)
            if reason is not None:
                return now, reason
        return None


def half_seconds(until_s: float) -> Iterator[float]:
    return (step / 2 for step in range(int(until_s * 2)))


def burning(share: float) -> Callable[[float], tuple[Process, ...]]:
    """An engine process that takes a share of a core."""
    ticks = ticks_per_second()
    return lambda now: (replace(ENGINE, cpu_ticks=1_000_000 + int(now * share * ticks)),)


def in_state(state: str, last_signal: int = 0) -> Callable[[float], tuple[Process, ...]]:
    return lambda now: (replace(ENGINE, state=state, last_signal=last_signal),)


def test_silence_for_10_s_is_the_end() -> None:
    assert Course().run(60) == (
        10.0,
        "the engine has neither computed nor progressed for 10 s with 3 sequences in flight",
    )


def test_an_idle_engines_cpu_time_is_silence() -> None:
    found = Course(processes=burning(IDLE_SHARE)).run(60)
    assert found is not None
    assert found[0] == 10.0


def test_a_long_prefill_lives() -> None:
    assert Course(processes=burning(1.0)).run(STALL_S) is None


def test_idle_processes_do_not_add_up_to_one_that_computes() -> None:
    def processes(now: float) -> tuple[Process, ...]:
        [one] = burning(IDLE_SHARE)(now)
        return tuple(replace(one, pid=pid) for pid in range(100))

    found = Course(processes=processes).run(60)
    assert found is not None
    assert found[0] == 10.0


def test_an_engine_with_a_tenth_of_a_core_lives() -> None:
    assert Course(processes=burning(0.1)).run(STALL_S) is None


def test_a_token_every_5_s_lives() -> None:
    assert Course(progress=lambda now: now // 5 * 5).run(10 * STALL_S) is None


def test_gpus_that_compute_are_a_sign_of_life() -> None:
    assert Course(gpus_compute=True).run(STALL_S) is None


def test_without_a_step_the_stall_timeout_is_the_end() -> None:
    assert Course(processes=burning(1.0)).run(2 * STALL_S) == (
        STALL_S,
        "the engine has made no progress for 300 s (--stall_timeout_s) with 3 sequences in flight",
    )


def test_a_stopped_process_is_named() -> None:
    found = Course(processes=in_state("T", signal.SIGSTOP)).run(60)
    assert found == (
        1.0,
        "engine process 1234 (engine) is stopped (SIGSTOP) with 3 sequences in flight",
    )


def test_a_process_stopped_for_a_moment_lives() -> None:
    def processes(now: float) -> tuple[Process, ...]:
        return in_state("T" if now % 5 == 0 else "R")(now)

    course = Course(processes=processes, progress=lambda now: now)
    assert course.run(60) is None


def test_a_killed_process_that_nobody_reaps_is_named() -> None:
    found = Course(processes=in_state("Z", signal.SIGKILL), progress=lambda now: now).run(60)
    assert found == (
        1.0,
        "engine process 1234 (engine) was killed (SIGKILL) with 3 sequences in flight",
    )


@pytest.mark.parametrize("last_signal", [0, signal.SIGTERM], ids=["exited", "asked to end"])
def test_a_helper_that_ended_in_order_is_no_trouble(last_signal: int) -> None:
    course = Course(processes=in_state("Z", last_signal), progress=lambda now: now)
    assert course.run(60) is None


def test_an_engine_under_a_debugger_is_not_judged() -> None:
    assert Course(processes=in_state("t", signal.SIGTRAP)).run(10 * STALL_S) is None


def test_an_engine_without_work_is_not_judged() -> None:
    course = Course(num_inflight=lambda now: 0, processes=in_state("T", signal.SIGSTOP))
    assert course.run(10 * STALL_S) is None


def test_time_without_work_does_not_count() -> None:
    """Work for 6 of every 7 seconds, and never a sign between: the work was new each time."""
    assert Course(num_inflight=lambda now: int(now % 7 < 6)).run(STALL_S) is None


def test_time_in_which_the_worker_did_not_run_does_not_count() -> None:
    """An hour between two looks counts as at most two seconds."""
    found = Course(times=lambda: iter([0.0, 0.5, 3600.0, 3600.5, 3601.0])).run(0)
    assert found is None


def test_a_number_used_again_is_another_process() -> None:
    """Its CPU time is not what it took since the last look."""

    def processes(now: float) -> tuple[Process, ...]:
        return (replace(ENGINE, start_ticks=int(now * 10), cpu_ticks=int(now * 1000)),)

    found = Course(processes=processes).run(60)
    assert found is not None
    assert found[0] == 10.0
