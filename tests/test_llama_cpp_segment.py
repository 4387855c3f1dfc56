"""What llama.cpp is asked for, and the tables behind it; no llama.cpp."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gpupool.engines.base import SamplingParams
from gpupool.engines.llama_cpp_segment import NO_SEED, Segment, fold_seed, plan_segment
from gpupool.engines.llama_cpp_slots import Slot, SlotTable, num_common
from gpupool.engines.llama_cpp_vocabulary import Vocabulary
from gpupool.gguf_file import GgufModel


def plan(prompt: Sequence[int], generated: Sequence[int], **params: Any) -> Segment:
    return plan_segment(prompt, generated, SamplingParams(**params), seed=1)


def bias_of(segment: Segment) -> dict[int, float]:
    return dict(segment.body.get("logit_bias", []))


def test_plain_sampling_has_no_other_sampler() -> None:
    assert plan([1], [], temperature=0.7).body["samplers"] == ["temperature"]


def test_greedy_is_the_likeliest_alone() -> None:
    body = plan([1], [], temperature=0.0, top_p=0.5, min_p=0.5).body
    assert (body["samplers"], body["top_k"]) == (["top_k"], 1)


def test_asked_samplers_come_in_order() -> None:
    body = plan([1], [], min_p=0.1, top_k=5, top_p=0.5, repetition_penalty=1.1).body
    assert body["samplers"] == ["penalties", "temperature", "min_p", "top_k", "top_p"]


def test_penalties_look_back_over_everything() -> None:
    body = plan([1] * 500, [], repetition_penalty=1.1, max_tokens=100).body
    assert body["repeat_last_n"] >= 600


def test_bias_undoes_the_frequency_of_the_prompt() -> None:
    assert bias_of(plan([7, 7, 8], [], frequency_penalty=0.5)) == {7: 1.0, 8: 0.5}


def test_bias_undoes_the_presence_of_what_was_not_generated() -> None:
    segment = plan([7, 7, 8], [8], presence_penalty=0.5)
    assert bias_of(segment) == {7: 0.5, 8: 0.0}
    assert segment.ends_with(2, 7)
    assert not segment.ends_with(2, 8)


def test_bias_of_the_request_is_added() -> None:
    assert bias_of(plan([7], [], frequency_penalty=0.5, logit_bias={7: 2.0})) == {7: 2.5}


def test_ends_are_banned_below_the_minimum_only() -> None:
    below = plan([1], [], min_tokens=2, stop_token_ids=(9,))
    assert (below.body["ignore_eos"], bias_of(below)) == (True, {9: False})
    assert below.ends_with(2, 5)
    above = plan([1], [5, 6], min_tokens=2, stop_token_ids=(9,))
    assert (above.body["ignore_eos"], bias_of(above)) == (False, {})


def test_a_segment_goes_on_where_the_last_one_ended() -> None:
    body = plan([1, 2], [3], max_tokens=10).body
    assert (body["prompt"], body["n_predict"]) == ([1, 2, 3], 9)


def test_seeds_fit_llama_cpp_and_depend_on_all_bits() -> None:
    seeds = [fold_seed(5 + (high << 32), 0) for high in range(-4, 4)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < NO_SEED for seed in seeds)
    assert fold_seed(5, 0) != fold_seed(5, 1)


@pytest.mark.parametrize(
    ("first", "second", "common"),
    [((), (1,), 0), ((1, 2, 3), (1, 2, 3), 3), ((1, 2, 3), (1, 2, 4, 5), 2), ((1,), (2,), 0)],
)
def test_common_beginnings_are_counted(
    first: tuple[int, ...], second: tuple[int, ...], common: int
) -> None:
    assert num_common(first, second) == common


def test_prompt_goes_to_the_slot_that_knows_its_beginning() -> None:
    async def run() -> tuple[Slot, Slot, Slot]:
        table = SlotTable(2)
        async with table.hold([1, 2]) as first, table.hold([8, 9]) as second:
            pass
        # The one used last, which anything else would be the last to get.
        async with table.hold([1, 2, 3]) as third:
            return first, second, third

    first, second, third = asyncio.run(run())
    assert first is not second
    assert third is first


def test_a_few_common_bytes_do_not_cost_a_long_conversation_its_slot() -> None:
    async def run() -> tuple[Slot, Slot]:
        table = SlotTable(2)
        async with table.hold(b"[user: a long conversation]") as first:
            pass
        async with table.hold(b"[user: Hi]") as second:
            return first, second

    first, second = asyncio.run(run())
    assert first is not second


def test_keys_of_tokens_and_of_bytes_have_nothing_in_common() -> None:
    assert num_common(b"ab", (97, 98)) == 0
    assert num_common(b"abc", b"abd") == 2


def test_slots_are_given_first_come_first_served() -> None:
    order: list[int] = []

    async def take(table: SlotTable, place: int) -> None:
        async with table.hold([place]):
            order.append(place)

    async def run() -> None:
        table = SlotTable(1)
        async with table.hold([0]):
            waiting = [asyncio.create_task(take(table, place)) for place in range(4)]
            await asyncio.sleep(0)
            waiting[1].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert not table._turn.locked()

    asyncio.run(run())
    assert order == [0, 2, 3]


def byte_level(*pieces: bytes) -> Vocabulary:
    """GPT-2's way to write bytes: those of Latin letters as they are, others from 256 on."""
    from gpupool.engines.llama_cpp_vocabulary import byte_of_character

    written = {byte[0]: char for char, byte in byte_of_character().items()}
    tokens = ["".join(written[byte] for byte in piece).encode() for piece in pieces]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [*tokens, b"<end>"],
        "tokenizer.ggml.token_type": [*[1] * len(tokens), 3],
    }
    return Vocabulary(GgufModel((Path("none"),), metadata))


PARROT = "\N{PARROT}".encode()


def test_pieces_are_the_bytes_of_tokens() -> None:
    vocabulary = byte_level(b" a", PARROT[:2], bytes(range(256)))
    assert [vocabulary.piece(token) for token in range(3)] == [b" a", PARROT[:2], bytes(range(256))]
    assert (vocabulary.text(3), vocabulary.control) == ("<end>", {3})


def test_sentencepiece_bytes_and_spaces_are_read() -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["▁word".encode(), b"<0xF0>"],
        "tokenizer.ggml.token_type": [1, 6],
    }
    vocabulary = Vocabulary(GgufModel((Path("none"),), metadata))
    assert [vocabulary.piece(0), vocabulary.piece(1)] == [b" word", b"\xf0"]


def test_tokens_of_a_character_are_found_again() -> None:
    vocabulary = byte_level(PARROT[:1], PARROT[1:2], PARROT[:2], PARROT[2:3], PARROT[3:])
    assert vocabulary.split(PARROT, last=4, num_before=2) == [2, 3]
    assert vocabulary.split(PARROT, last=4, num_before=3) == [0, 1, 3]
    assert vocabulary.split(PARROT, last=4, num_before=1) == []


@pytest.mark.parametrize(
    ("piece", "is_within"),
    [
        (b"a", False),
        (PARROT[:1], True),
        (b" " + PARROT[:3], True),
        (PARROT, False),
        (PARROT[3:], False),
    ],
)
def test_unfinished_characters_are_known(piece: bytes, is_within: bool) -> None:
    assert byte_level(piece).ends_within_character(0) is is_within
