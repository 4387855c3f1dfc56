"""The streams experiment: its servers, its load client, and what is told of it."""

from __future__ import annotations

import asyncio
import cProfile
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import profiled, report, stream_load, streams, streams_report
from benchmarks.contender import Start
from benchmarks.paced_client import STEP_S, Stamp, read_stamps, write_stamp
from benchmarks.rounds import counts
from benchmarks.site import Site
from benchmarks.stream_load import Answer, Streamed, Token
from benchmarks.ticks import Ticks


@pytest.mark.server
@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "start", [streams.start_pool, streams.start_uvicorn], ids=["pool", "uvicorn"]
)
def test_every_stream_has_all_tokens_at_the_engines_pace(start: Any, tmp_path: Path) -> None:
    start_one: Start[Site] = start()
    with start_one(tmp_path, (0,)) as site:
        found = stream_load.stream(site, streams.MODEL, [0.0, 0.01, 0.02], 50)
    assert found.find_fault() is None
    made = [[token.stamp.made_at for token in answer.tokens] for answer in found.answers if answer]
    steps = [(at - made[0][0]) / STEP_S for one in made for at in one]
    assert steps == pytest.approx([round(step) for step in steps], abs=0.01)
    assert len({round(step) for step in steps}) < len(steps)  # One step is of several streams.


# The engine's clock.


def test_a_late_loop_gets_each_tick_with_the_time_at_which_it_was_due() -> None:
    async def run() -> list[float]:
        due: list[float] = []
        ticks = Ticks(0.01, due.append)
        ticks.start()
        time.sleep(0.035)
        while not due:
            await asyncio.sleep(0)
        ticks.stop()
        return due

    began = time.monotonic()
    first, second, third, *_ = asyncio.run(run())
    assert began + 0.01 <= first
    assert (second - first, third - second) == pytest.approx((0.01, 0.01), abs=1e-6)


def test_a_clock_that_is_stopped_by_a_tick_is_silent() -> None:
    async def run() -> list[float]:
        due: list[float] = []

        def take(at: float) -> None:
            due.append(at)
            ticks.stop()

        ticks = Ticks(0.005, take)
        ticks.start()
        time.sleep(0.02)
        await asyncio.sleep(0.02)
        return due

    assert len(asyncio.run(run())) == 1


# The load client.

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(*stamps: tuple[float, float]) -> bytes:
    text = "".join(write_stamp(Stamp(*stamp)) for stamp in stamps)
    return b'data: {"choices": [{"text": "%b"}]}\n\n' % text.encode()


def read(*pieces: bytes) -> Answer:
    return stream_load.read_answer(1.0, [10.0 + index for index in range(len(pieces))], pieces)


def test_a_token_is_read_when_the_last_byte_of_its_event_is() -> None:
    whole = chunk(event((2, 3)))
    found = read(HEAD + whole[:20], whole[20:] + chunk(event((2, 4))), chunk(DONE) + b"0\r\n\r\n")
    assert found.tokens == [Token(Stamp(2, 3), 11), Token(Stamp(2, 4), 11)]


def test_an_event_in_two_chunks_is_one() -> None:
    data = event((2, 3))
    found = read(HEAD + chunk(data[:9]), chunk(data[9:]), chunk(DONE), b"0\r\n\r\n")
    assert (found.num_events, found.tokens) == (1, [Token(Stamp(2, 3), 11)])


def test_tokens_that_come_in_one_event_are_all_counted() -> None:
    found = read(HEAD + chunk(event((2, 3), (2, 4))), chunk(DONE) + b"0\r\n\r\n")
    assert (found.num_events, len(found.tokens)) == (1, 2)


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        (b"HTTP/1.1 500 No\r\n\r\n",),
        (HEAD + chunk(event((2, 3))),),
        (HEAD + chunk(event((2, 3))) + b"0\r\n\r\n",),
    ],
    ids=["nothing", "an error", "cut", "no end of its own"],
)
def test_what_is_no_whole_stream_is_refused(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match=r"status 200|no end|not found"):
        read(*pieces)


def test_a_stamp_is_read_as_it_was_written() -> None:
    stamps = [Stamp(1.5, 2.25), Stamp(1.5, 2.75)]
    assert read_stamps("".join(map(write_stamp, stamps))) == stamps


ANSWER = Answer(
    asked_at=1.0,
    num_events=3,
    tokens=[
        Token(Stamp(1.002, 1.020), 1.023),  # 2 ms to the engine and 3 ms back
        Token(Stamp(1.002, 1.040), 1.041),  # 2 ms nearer to the first one than it was made
        Token(Stamp(1.002, 1.060), 1.065),  # 4 ms farther from the second
    ],
)


def test_the_engines_own_time_is_not_in_what_was_added() -> None:
    facts = Streamed(3.0, 3, [ANSWER]).facts()
    assert facts == {
        "ttft_added_ms": {"50": 5.0, "99": 5.0},
        "token_added_ms": {"50": 3.0, "99": 5.0},
        "gap_off_ms": {"50": 2.0, "99": 4.0},
        "events": 3,
    }


@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        ([ANSWER, ANSWER], None),
        ([ANSWER, None], "1 of 2 streams lost, 0 of the wrong length: why"),
        ([ANSWER, Answer(1.0, 0, ())], "0 of 2 streams lost, 1 of the wrong length: why"),
    ],
    ids=["whole", "lost", "short"],
)
def test_a_lost_or_short_stream_is_a_fault(answers: list[Any], fault: str | None) -> None:
    assert Streamed(3.0, 3, answers, "why").find_fault() == fault


def test_streams_begin_at_random_and_alike_for_all_contenders() -> None:
    starts = stream_load.draw_starts(1, 64)
    assert starts == stream_load.draw_starts(1, 64) != stream_load.draw_starts(2, 64)
    assert 0 <= starts[0] < starts[31] < starts[63] <= stream_load.START_S


# The profile.


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("/srv/gpupool/.venv/lib/python3.11/site-packages/vllm/outputs.py", "vLLM's application"),
        ("/srv/vllm/gpupool/exchange.py", "the pool"),
        ("/usr/lib/python3.11/json/encoder.py", profiled.OTHER),
    ],
)
def test_a_file_belongs_to_the_innermost_package(file: str, part: str) -> None:
    assert profiled.part_of(file) == part


def test_what_a_built_in_takes_is_its_callers(tmp_path: Path) -> None:
    code = compile("def wait(sleep):\n sleep(0.05)", "/x/uvicorn/y.py", "exec")
    names: dict[str, Any] = {}
    exec(code, names)  # A file of that name is what the profiler is to see.
    profile = cProfile.Profile()
    profile.runcall(names["wait"], time.sleep)
    profile.dump_stats(tmp_path / "x")
    assert profiled.read_parts(tmp_path / "x")["uvicorn"] >= 0.05


# What is told.


def sample(added_ms: float, cpu_s: float, fault: str | None = None) -> dict[str, Any]:
    cpu = {"client_cpu_s": 0.5, "own_cpu_s": cpu_s, "stolen_cpu_s": 0.0, "foreign_cpu_s": 0.0}
    facts = {
        "ttft_added_ms": {"50": 2 * added_ms, "99": 30},
        "token_added_ms": {"50": added_ms, "99": 20},
        "gap_off_ms": {"50": added_ms / 10, "99": 5},
        "events": 5000,
    }
    return cpu | {"seconds": 2.0, "tokens": 10000, "fault": fault, "facts": facts}


def rounds_of(*pairs: tuple[dict[str, Any], dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "load_average": [0.5, 0, 0],
            "idle_cpu_share": 0,
            "samples": {"pool": own, "uvicorn": other},
        }
        for own, other in pairs
    ]


PARTS = (*profiled.PARTS, profiled.OTHER)
RESULT = {
    "measured": {"date": "D", "cpu": "C", "cores": 2, "memory_gib": 1, "versions": {"x": "1"}},
    "step_s": 0.02,
    "tokens": 100,
    "scenes": [
        {"streams": 256, "rounds": rounds_of((sample(50, 3), sample(5, 1)))},
        {
            "streams": 64,
            "rounds": rounds_of(
                (sample(3, 1.0), sample(1, 0.5)),
                (sample(5, 4.0), sample(5, 1.0)),
                (sample(4, 3.0), sample(3, 2.0)),
                (sample(9000, 9.0, "1 of 64 streams lost"), sample(1, 1.0)),
            ),
        },
    ],
    "profile_us": {
        "pool": {part: 10.0 for part in PARTS},
        "uvicorn": {part: 5.0 for part in PARTS},
    },
}


def section() -> str:
    return streams_report.render_section(RESULT)


def test_a_row_shows_what_was_added_and_the_cost() -> None:
    row = (
        "| 64 | `pool` | 8.0 (6.0 to 10.0) | 30.0 (30.0 to 30.0) | 4.00 (3.00 to 5.00) | "
        "20.0 (20.0 to 20.0) | 0.40 (0.30 to 0.50) | 5.0 (5.0 to 5.0) | 2.00 | "
        "300 (100 to 400) | 150% | 25% |\n"
    )
    assert row in section()


@pytest.mark.parametrize(
    "row",
    [
        "TTFT added, ms | 8.00 (6.00 to 10.00) | at most 10 | met |",
        "gap off, ms | 0.40 (0.30 to 0.50) | at most 0.5 | met |",
        "token added, ms | 4.00 (3.00 to 5.00) | at most 0.5 | missed |",
        "token added, ms more than `uvicorn` | 1.00 (0.00 to 2.00) | at most 0.5 | missed |",
        "CPU per token, `pool` / `uvicorn` | 2.00 (1.50 to 4.00) | at most 2 | met |",
    ],
)
def test_goals_are_of_the_fewest_streams_judged_by_medians_of_rounds(row: str) -> None:
    assert row in section()


def test_an_invalid_round_of_streams_counts_for_nobody_and_is_told() -> None:
    assert "9000" not in section()
    assert "1 of 64 streams lost" in section()


def test_the_profile_is_shown_by_part() -> None:
    assert "| uvicorn | 10 | 5 |\n" in section()
    assert f"| all together | {10 * len(PARTS)} | {5 * len(PARTS)} |\n" in section()


def test_without_a_round_that_counts_only_the_circumstances_are_told() -> None:
    lost = rounds_of((sample(1, 1, "lost"), sample(1, 1)))
    text = streams_report.render_section(RESULT | {"scenes": [{"streams": 64, "rounds": lost}]})
    assert "| 64 |" not in text
    assert "1 invalid" in text


def committed() -> list[dict[str, Any]]:
    """None, or one."""
    return [one for name, one in report.load_results().items() if name == streams.NAME]


def test_committed_numbers_are_of_the_streams_as_they_are_now() -> None:
    for result in committed():
        assert [scene["streams"] for scene in result["scenes"]] == list(streams.STREAMS)
        assert (result["step_s"], result["tokens"]) == (STEP_S, streams.NUM_TOKENS)


def test_committed_streams_have_enough_rounds_that_count() -> None:
    for result in committed():
        for series in streams.series_of(result):
            assert sum(map(counts, series)) >= streams.NUM_ROUNDS
