"""Does it fit, on how many GPUs, and what helps: the planner's arithmetic and advice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpupool.planner.advice import Plan, make_plan
from gpupool.planner.arguments import read_arguments
from gpupool.planner.fit import GIB, Ask, Card, Stored, Verdict, fit
from gpupool.planner.kv_cache import Cache
from gpupool.planner.machine import of_cards
from gpupool.planner.option import Option, Subject
from gpupool.planner.remedies import FOUR_BITS
from gpupool.planner.split import refusal, sizes, weight_bytes
from tests.plan_models import model


def plan(name: str, gpus: str, *, per_proc_gpus: int | None = None, **ask: object) -> Plan:
    asked = replace(Ask(), **ask)  # type: ignore[arg-type]
    subject = Subject(name, model(name))
    return make_plan(subject, of_cards(gpus), asked, per_proc_gpus=per_proc_gpus)


def option(found: Plan, num_gpus: int) -> Option:
    [chosen] = [each for each in found.options if each.fit.num_gpus == num_gpus]
    return chosen


def verdict(name: str, gpus: str, num_gpus: int, **ask: object) -> Verdict:
    found = option(plan(name, gpus, per_proc_gpus=num_gpus, **ask), num_gpus)
    return Verdict.FAILS if found.is_shortened else found.fit.verdict


@pytest.mark.parametrize(
    ("name", "num_gpus", "reason"),
    [
        ("Qwen2.5-7B-Instruct", 3, "28 attention heads are not divisible by 3"),
        ("Qwen2.5-7B-Instruct", 8, "28 attention heads are not divisible by 8"),
        ("Qwen2.5-0.5B", 4, "14 attention heads are not divisible by 4"),
        ("phi-4", 4, "10 KV heads can neither be divided by 4 nor copied"),
        ("falcon-7b", 2, "71 attention heads are not divisible by 2"),
        ("Mixtral-8x7B-v0.1", 5, "32 attention heads are not divisible by 5"),
    ],
)
def test_why_gpus_cannot_share_a_model(name: str, num_gpus: int, reason: str) -> None:
    assert (refusal(model(name), num_gpus) or "").startswith(reason)


@pytest.mark.parametrize(
    ("name", "possible"),
    [
        ("Qwen2.5-7B-Instruct", [1, 2, 4]),
        ("Meta-Llama-3-70B", [1, 2, 4, 8, 16]),  # 16: each KV head twice
        ("DeepSeek-V3", [1, 2, 4, 8, 16]),
        ("gpt2-xl", [1]),  # 5 divides its 25 heads, not its vocabulary
    ],
)
def test_sizes_that_are_possible(name: str, possible: list[int]) -> None:
    assert list(sizes(model(name), 16)) == possible


def test_a_group_of_quantised_weights_is_not_cut() -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    found = refusal(model("Qwen3-30B-A3B", quantization_config=fp8), 4)
    assert found is not None
    assert found.endswith("192, which is not a multiple of the fp8 group of 128")
    assert refusal(model("Qwen3-30B-A3B"), 4) is None


def test_kv_heads_are_copied_where_there_are_fewer_than_gpus() -> None:
    whole = Cache(model("Meta-Llama-3-70B"), value_bytes=2).token_bytes
    shares = [Cache(model("Meta-Llama-3-70B"), 2, n).token_bytes / whole for n in (2, 8, 16)]
    assert shares == [1 / 2, 1 / 8, 1 / 8]


def test_a_latent_is_whole_on_every_gpu() -> None:
    assert (
        Cache(model("DeepSeek-V3"), 2, 8).token_bytes == Cache(model("DeepSeek-V3"), 2).token_bytes
    )


def test_layers_are_shared_out_whole_where_the_engine_does_so() -> None:
    layered = replace(model("SmolLM2-135M"), is_layered=True)
    # 30 layers on 4 GPUs: one has 8 of them. Its 9 heads do not matter.
    assert refusal(layered, 4) is None
    assert weight_bytes(layered, 4) == pytest.approx(weight_bytes(layered) * 8 / 30, abs=100)
    assert Cache(layered, 2, 4).token_bytes == pytest.approx(23040 * 8 / 30)
    assert "30 layers cannot be on 31 GPUs" in (refusal(layered, 31) or "")


def test_weights_on_every_gpu_make_more_than_a_share() -> None:
    whole = weight_bytes(model("DeepSeek-V3"))
    assert whole / 8 * 1.01 < weight_bytes(model("DeepSeek-V3"), 8) < whole / 8 * 1.05


def test_an_fp8_cache_has_room_for_twice_the_tokens() -> None:
    half, whole = (
        Cache(model("phi-4"), value_bytes).num_tokens(GIB, 1024) for value_bytes in (1, 2)
    )
    assert half == pytest.approx(2 * whole, rel=0.01)


def test_a_sliding_window_bounds_what_a_request_takes() -> None:
    mistral = Cache(model("Mistral-7B-v0.1"), 2, in_flight_tokens=2048)
    # 4095 tokens of the window, 2048 in flight, and a block more.
    assert mistral.blocks_per_request(32768) == 385
    assert mistral.blocks_per_request(2048) == 129


def test_layers_that_slide_and_layers_that_do_not_share_blocks() -> None:
    # gpt-oss: 12 layers with a window of 128, 12 that see everything.
    oss = Cache(model("gpt-oss-20b"), 2, in_flight_tokens=2048)
    assert oss.block_bytes == 12 * 16 * 2048
    assert oss.blocks_per_request(131072) == 8192 + 137
    # gemma-3: 52 sliding, 10 full; groups of 10 layers, the last of 6 filled with nothing.
    gemma = Cache(model("gemma-3-27b-it"), 2, in_flight_tokens=2048)
    assert gemma.block_bytes == 10 * 16 * 2 * 16 * 128 * 2
    assert gemma.blocks_per_request(4096) == 256 + 6 * (192 + 1)


@pytest.mark.parametrize("name", ["Meta-Llama-3-8B", "Mistral-7B-v0.1", "gpt-oss-20b"])
@pytest.mark.parametrize("num_bytes", [0, 100 << 20, GIB, 3 * GIB])
def test_the_longest_context_is_the_longest(name: str, num_bytes: int) -> None:
    found = Cache(model(name), 2)
    longest = found.longest(num_bytes, 1 << 20)
    assert longest == 0 or found.num_requests(num_bytes, longest) >= 1
    assert longest == 1 << 20 or found.num_requests(num_bytes, longest + 16) < 1


def test_memory_is_per_gpu_and_not_summed() -> None:
    # 8 GPUs have room for Llama-3-70B together; alone each of 8 replicas has not.
    found = option(plan("Meta-Llama-3-70B", "8x A100-80GB"), 1)
    assert found.fit.verdict is Verdict.FAILS
    assert found.fit.weights_bytes > found.fit.budget_bytes


def test_what_is_not_given_is_chosen_as_vllm_does() -> None:
    h100 = option(plan("Meta-Llama-3-8B", "H100"), 1).fit.overhead_bytes
    asked = option(
        plan("Meta-Llama-3-8B", "H100", max_num_seqs=1024, max_num_batched_tokens=8192), 1
    )
    assert h100 == asked.fit.overhead_bytes
    a100 = option(plan("Meta-Llama-3-8B", "A100-80GB"), 1).fit.overhead_bytes
    assert a100 < h100  # vLLM's 256 sequences there


def test_files_are_surer_than_the_configuration() -> None:
    card, llama = Card("any", 80 * GIB, 80 * GIB), model("Meta-Llama-3-8B")
    assert fit(llama, card, 1, Ask(), stored=Stored(7 * GIB)).weights_bytes == 7 * GIB


def test_a_measured_overhead_stands_in_for_the_estimate() -> None:
    subject, machine = Subject("m", model("Meta-Llama-3-8B")), of_cards("2x L4")
    found = make_plan(subject, machine, Ask(), measured={1: GIB})
    assert option(found, 1).fit.overhead_bytes == GIB
    assert option(found, 2).fit.overhead_bytes != GIB


def test_what_was_measured_is_less_in_doubt() -> None:
    llama, ask = model("Meta-Llama-3-8B"), Ask(gpu_memory_utilization=1)
    counted = weight_bytes(llama) + int(Cache(llama, 2).bytes_per_request(8192))
    card = Card("any", counted + int(2.3 * GIB), counted + int(2.3 * GIB))
    assert fit(llama, card, 1, ask).verdict is Verdict.TIGHT
    assert fit(llama, card, 1, ask, measured_overhead=2 * GIB).verdict is Verdict.FITS


def test_failure_is_certain_only_where_no_overhead_is_needed_for_it() -> None:
    llama = model("Meta-Llama-3-8B")
    counted = weight_bytes(llama) + int(Cache(llama, 2).bytes_per_request(8192))
    for extra, expected in ((-1, Verdict.FAILS), (GIB, Verdict.TIGHT), (9 * GIB, Verdict.FITS)):
        card = Card("any", counted + extra, counted + extra)
        assert fit(llama, card, 1, Ask(gpu_memory_utilization=1)).verdict is expected


def test_throughput_is_most_replicas() -> None:
    found = plan("Meta-Llama-3-8B", "8x H100")
    assert found.throughput is not None
    assert (found.throughput.fit.num_gpus, found.throughput.num_replicas) == (1, 8)


def test_a_replica_without_room_for_a_batch_is_not_for_throughput() -> None:
    # On 1 GPU 12 GiB are left for tokens of 200 KiB: three requests of 16384. 2 GPUs hold a batch.
    found = plan("phi-4", "4x L40S", typical_length=16384)
    assert option(found, 1).fit.verdict is Verdict.FITS
    assert option(found, 1).fit.num_requests(16384) < 8
    assert found.throughput is not None
    assert found.throughput.fit.num_gpus == 2


def test_context_is_the_longest_with_most_replicas() -> None:
    found = plan("Llama-3.1-405B", "16x H100")
    assert found.context is not None
    assert found.context.fit.num_gpus == 16
    small = plan("Llama-3.2-1B", "8x H100")
    assert small.context is not None
    assert small.context.num_replicas == 8


def test_gpus_left_over_are_said() -> None:
    found = option(plan("Meta-Llama-3-8B", "7x L4", per_proc_gpus=2), 2)
    assert (found.num_replicas, found.num_spare) == (3, 1)


def test_a_context_that_does_not_fit_is_shortened_unless_asked_for() -> None:
    found = option(plan("Mistral-Nemo-Base-2407", "L40S"), 1)
    assert found.is_shortened
    assert found.fit.verdict is Verdict.FITS
    assert MODEL_LENGTH > found.fit.max_model_len >= 2048
    asked = option(plan("Mistral-Nemo-Base-2407", "L40S", max_model_len=MODEL_LENGTH), 1)
    assert asked.fit.max_model_len == MODEL_LENGTH
    assert asked.fit.verdict is not Verdict.FITS


MODEL_LENGTH = 128000


def test_remedies_come_with_numbers_and_work() -> None:
    found = plan("Qwen2.5-32B-Instruct", "2x A10")
    assert found.throughput is None
    texts = {remedy.what for remedy in found.remedies}
    assert "8 GPUs per worker (here: 2)" in texts
    assert any(text.startswith("a 4-bit copy") for text in texts)
    assert all(remedy.fit.weights_bytes < remedy.fit.budget_bytes for remedy in found.remedies)


@pytest.mark.parametrize(
    ("name", "gpus", "ask"),
    [
        ("Qwen2.5-32B-Instruct", "2x A10", {}),
        ("Mistral-Nemo-Base-2407", "L40S", {"max_model_len": 128000}),
        ("gemma-3-27b-it", "2x L4", {}),
        ("Mixtral-8x7B-v0.1", "A100-80GB", {}),
        ("Llama-3.1-405B", "8x H100", {}),
        ("Meta-Llama-3-8B", "2x T4", {"dtype": "float32"}),
    ],
)
def test_a_plan_with_the_remedy_shows_its_numbers(
    name: str, gpus: str, ask: dict[str, Any]
) -> None:
    subject = Subject(name, replace(model(name), dtype=ask.get("dtype", "bfloat16")))
    machine, asked = of_cards(gpus), Ask(**ask)
    found = make_plan(subject, machine, asked)
    assert found.remedies
    for remedy in found.remedies:
        given = read_arguments(remedy.arguments.removeprefix("-- ").split()).ask
        changed = {
            field: getattr(given, field)
            for field in ("max_model_len", "kv_cache_dtype", "quantization", "dtype")
            if getattr(given, field) != getattr(Ask(), field)
        }
        again, num_gpus = subject, remedy.fit.num_gpus
        if changed.get("dtype"):
            again = Subject(name, replace(model(name), dtype="bfloat16"))
        if "4-bit" in remedy.what:
            again = subject.changed(replace(subject.model, quantization=FOUR_BITS))
        cards = replace(machine, cards=machine.cards[:1] * max(num_gpus, len(machine.cards)))
        with_it = make_plan(again, cards, replace(asked, **changed), per_proc_gpus=num_gpus)
        best = option(with_it, num_gpus)
        assert best.fit.verdict is Verdict.FITS, remedy.what
        assert not best.is_shortened
        assert best.fit.weights_bytes == remedy.fit.weights_bytes
        assert best.fit.num_tokens == remedy.fit.num_tokens


def test_a_context_beyond_the_models_own_is_in_doubt() -> None:
    assert plan("Meta-Llama-3-8B", "A100", max_model_len=8192).doubts == ()
    [doubt] = plan("Meta-Llama-3-8B", "A100", max_model_len=8193).doubts
    assert "vLLM refuses a longer one" in doubt


def test_what_is_impossible_names_what_is_not() -> None:
    found = plan("Qwen2.5-7B-Instruct", "8x A10", per_proc_gpus=3)
    assert found.why_impossible.endswith("; possible are 1, 2, 4 GPU(s) per worker")


def test_other_engines_are_not_told_vllms_arguments() -> None:
    subject = Subject("m", model("Qwen2.5-32B-Instruct"), engine="llama_cpp")
    found = make_plan(subject, of_cards("2x A10"), Ask())
    assert [remedy.what for remedy in found.remedies] == ["8 GPUs per worker (here: 2)"]


def test_a_shorter_context_is_a_remedy() -> None:
    found = plan("Mistral-Nemo-Base-2407", "L40S", max_model_len=MODEL_LENGTH)
    [shorter] = [r for r in found.remedies if r.arguments.startswith("-- --max-model-len")]
    assert shorter.fit.verdict is Verdict.FITS


def test_fp8_is_no_remedy_for_what_is_quantised_already() -> None:
    found = plan("DeepSeek-V3", "4x H100")
    assert not [remedy for remedy in found.remedies if "fp8 weights" in remedy.what]


def test_float32_weights_may_be_halved() -> None:
    subject = Subject("m", replace(model("Meta-Llama-3-8B"), dtype="float32"))
    found = make_plan(subject, of_cards("A10"), Ask(max_model_len=2048))
    assert "-- --dtype bfloat16" in {remedy.arguments for remedy in found.remedies}


def test_no_remedy_is_offered_for_what_fits() -> None:
    assert plan("Qwen2.5-7B-Instruct", "A10").remedies == ()


# Rules of thumb: they hold, and where they mislead.


def test_two_gigabytes_per_billion_parameters_is_right_for_16_bits() -> None:
    for name in ("Meta-Llama-3-8B", "Qwen2.5-72B-Instruct", "Mixtral-8x7B-v0.1", "gemma-2-27b"):
        found = model(name)
        assert weight_bytes(found) == pytest.approx(2 * found.num_parameters, rel=0.001)


def test_two_gigabytes_per_billion_parameters_misleads_for_quantised_models() -> None:
    assert weight_bytes(model("DeepSeek-V3")) < 1.05 * model("DeepSeek-V3").num_parameters
    assert weight_bytes(model("gpt-oss-120b")) < 0.6 * model("gpt-oss-120b").num_parameters
    # 4 bits are not a quarter: the vocabulary stays as it was.
    awq = model("Qwen2.5-7B-Instruct-AWQ")
    assert weight_bytes(awq) > 1.4 * awq.num_parameters / 2


def test_two_gigabytes_per_billion_misleads_about_a_share() -> None:
    # 13.4 GiB of Llama-2-7B fit a 16 GB card, but not with one request of 4096 tokens.
    found = plan("Llama-2-7b-hf", "V100-16GB", max_model_len=4096)
    assert option(found, 1).fit.weights_bytes < option(found, 1).fit.budget_bytes
    assert option(found, 1).fit.missing_bytes > 0
    assert option(found, 1).fit.verdict is not Verdict.FITS


def test_70b_needs_two_80_gb_cards() -> None:
    assert verdict("Meta-Llama-3-70B", "2x A100-80GB", 1) is Verdict.FAILS
    assert verdict("Meta-Llama-3-70B", "2x A100-80GB", 2) is Verdict.FITS


def test_70b_needs_more_than_two_80_gb_cards_for_a_long_context() -> None:
    ask = {"max_model_len": 131072}
    assert verdict("Meta-Llama-3-70B", "2x A100-80GB", 2, **ask) is Verdict.FAILS
    assert verdict("Meta-Llama-3-70B", "4x A100-80GB", 4, **ask) is Verdict.FITS


def test_70b_needs_one_80_gb_card_in_4_bits() -> None:
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128}
    subject = Subject("m", model("Meta-Llama-3-70B", quantization_config=awq))
    found = make_plan(subject, of_cards("A100-80GB"), Ask())
    assert option(found, 1).fit.verdict is Verdict.FITS


def test_a_mixture_needs_memory_for_all_experts() -> None:
    # 12.9 of its 46.7 billion parameters are active for a token.
    assert verdict("Mixtral-8x7B-v0.1", "A100-80GB", 1, max_model_len=2048) is Verdict.FAILS
