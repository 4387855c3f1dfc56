"""vLLM's own parser and configuration, in the pool's terms. Importing vLLM takes seconds."""

from __future__ import annotations

import re
import shlex
from argparse import Namespace
from typing import Any

import pytest

from gpupool.engines import vllm_arguments
from gpupool.engines.vllm import VllmEngine
from gpupool.engines.vllm_arguments import LIMITED, OURS, parse_arguments, share_memory
from gpupool.engines.vllm_client import read_config
from gpupool.engines.vllm_environment import require_keys_are_ours, set_environment
from gpupool.errors import ConfigError
from gpupool.migrate.vllm_args import KEYS as FOREIGN_KEYS
from gpupool.settings import Settings
from tests.demo_model import model_folder
from tests.pool import ROOT

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]


@pytest.fixture(autouse=True, scope="module")
def _environment() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        # Whatever the module under test sets is undone with the patch.
        patch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        patch.setenv("VLLM_NO_USAGE_STATS", "1")
        yield


def parse(given: str = "", num_gpus: int = 1, **changes: Any) -> Namespace:
    wanted = {"model_name": "some/model", "trust_remote_code": False, **changes}
    return parse_arguments(shlex.split(given), num_gpus=num_gpus, **wanted)


def sizes(args: Namespace) -> tuple[int, int, int]:
    return args.tensor_parallel_size, args.pipeline_parallel_size, args.data_parallel_size


@pytest.mark.parametrize(
    ("given", "num_gpus", "expected"),
    [
        ("", 0, (1, 1, 1)),
        ("", 1, (1, 1, 1)),
        ("", 2, (2, 1, 1)),
        ("", 8, (8, 1, 1)),
        ("-tp 2", 2, (2, 1, 1)),
        ("--pipeline-parallel-size 2", 2, (1, 2, 1)),
        ("--pipeline_parallel_size=2", 2, (1, 2, 1)),
        ("--data-parallel-size 2", 2, (1, 1, 2)),
        ("-tp 2 -pp 2", 4, (2, 2, 1)),
        ("-tp 2 -dp 4", 8, (2, 1, 4)),
    ],
)
def test_an_engine_spreads_over_its_slice(
    given: str, num_gpus: int, expected: tuple[int, int, int]
) -> None:
    assert sizes(parse(given, num_gpus)) == expected


@pytest.mark.parametrize(
    ("given", "num_gpus", "product"),
    [("-tp 1", 2, 1), ("-tp 4", 2, 4), ("-pp 2", 4, 2), ("-dp 3 -tp 2", 4, 6), ("-tp 2", 0, 2)],
)
def test_sizes_that_do_not_fill_the_slice_are_refused(
    given: str, num_gpus: int, product: int
) -> None:
    with pytest.raises(ConfigError, match=rf"makes {product} GPUs.*gives each worker") as caught:
        parse(given, num_gpus)
    assert "--per_proc_gpus" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("--port 8000", "use --port"),
        ("--port=9", "use --port"),
        ("--host 0.0.0.0", "use --host"),
        ("--api-key secret", "use --api_key"),
        ("--api_key secret", "use --api_key"),
        ("--model other/model", "use --model_name"),
        ("other/model", "use --model_name"),
        ("--trust-remote-code", "use --trust_remote_code"),
        ("--no-trust-remote-code", "use --trust_remote_code"),
        ("--uds /tmp/socket", "the pool is the server"),
        ("--ssl-keyfile key.pem", "the pool is the server"),
        ("--root-path /llm", "the pool is the server"),
        ("--allowed-origins '[\"*\"]'", "the pool is the server"),
        ("--uvicorn-log-level debug", "use --log_level"),
        ("--nnodes 2", "within its slice"),
        ("--headless", "within its slice"),
        ("--data-parallel-backend ray", "within its slice"),
        ("--distributed-executor-backend ray", "within its slice"),
        ("--runner draft", "generated or embedded"),
        ("--logprobs-mode processed_logprobs", "before temperature"),
    ],
)
def test_what_the_pool_decides_is_refused_with_what_to_do(given: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        parse(given)


@pytest.mark.parametrize("name", [*OURS, *LIMITED])
def test_every_refused_argument_is_one_of_vllms(name: str) -> None:
    parser, _ = vllm_arguments._parser()
    assert name in {action.dest for action in parser._actions}


def test_the_users_arguments_reach_vllm() -> None:
    args = parse("--max-model-len 2k --enforce-eager --dtype float32 --max-logprobs 7")
    found = (args.max_model_len, args.enforce_eager, args.dtype, args.max_logprobs)
    assert found == (2000, True, "float32", 7)


@pytest.mark.parametrize(
    "row", [row for row in FOREIGN_KEYS if "engine_args" in row.gives], ids=lambda row: row.name
)
def test_what_is_taken_over_from_others_is_an_argument_of_vllms(row: Any) -> None:
    template = str(ROOT / "tests" / "chat_with_tools.jinja")
    words = [word.replace("/models/chat.jinja", template) for word in row.gives["engine_args"]]
    parse(shlex.join(words), row.gives.get("per_proc_gpus", 1))


@pytest.mark.parametrize(
    "row",
    [row for row in FOREIGN_KEYS if "engine_args" not in row.gives and not row.gives],
    ids=lambda row: row.name,
)
def test_what_is_not_taken_over_is_not_an_argument_that_would_work(row: Any) -> None:
    """What vLLM still has is refused or needless for a reason of the pool's own."""
    flag = f"--{row.name.replace('_', '-')}"
    options = vllm_arguments._parser()[0]._option_string_actions
    assert flag not in options or row.name in {*OURS, *LIMITED, "disable_log_stats"}, flag
    assert set(re.findall(r"--[a-z-]+", row.refuses)) <= set(options)


def test_what_is_not_given_has_vllms_default() -> None:
    args = parse()
    found = (args.port, args.api_key, args.logprobs_mode, args.gpu_memory_utilization)
    assert found == (8000, None, "raw_logprobs", 0.92)


def test_the_widest_beam_search_finds_its_candidates() -> None:
    assert parse().max_logprobs == 256


def test_remote_code_runs_only_by_our_flag() -> None:
    assert [parse(trust_remote_code=flag).trust_remote_code for flag in (False, True)] == [
        False,
        True,
    ]


def test_an_unknown_argument_is_one_line_with_the_nearest_name(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ConfigError, match="did you mean '--max-model-len'") as caught:
        parse("--max-modle-len 100")
    assert "\n" not in str(caught.value)
    assert "usage" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "given",
    [
        "--max-model-len many",
        "--max-model-len",
        "--dtype float99",
        "--chat-template /no/such.jinja",
    ],
)
def test_a_value_that_vllm_refuses_is_one_line(given: str) -> None:
    with pytest.raises(ConfigError, match="vLLM refuses the arguments after --") as caught:
        parse(given)
    assert "\n" not in str(caught.value)


def test_help_after_the_dashes_does_not_end_the_process() -> None:
    with pytest.raises(ConfigError, match="vllm serve --help"):
        parse("--help")


def test_a_slice_of_two_gpus_is_one_engine_of_two_ranks() -> None:
    even = """--hf-overrides '{"num_attention_heads": 8, "num_key_value_heads": 2}'"""
    config = read_config(parse(even, 2, model_name=str(model_folder())))
    parallel = config.parallel_config
    assert (parallel.tensor_parallel_size, parallel.world_size) == (2, 2)


def test_an_engine_on_the_cpu_takes_its_share_of_the_memory() -> None:
    import psutil

    whole, half = parse(), parse()
    share_memory(whole, psutil.cpu_count())
    share_memory(half, psutil.cpu_count() / 2)  # type: ignore[arg-type]
    assert half.kv_cache_memory_bytes <= whole.kv_cache_memory_bytes <= 16 << 30
    assert half.kv_cache_memory_bytes >= 1 << 30


@pytest.mark.parametrize("given", ["--kv-cache-memory-bytes 512M", "--gpu-memory-utilization 0.3"])
def test_the_users_memory_stays(given: str) -> None:
    args, untouched = parse(given), parse(given)
    share_memory(args, 2)
    assert args == untouched


def test_the_users_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("VLLM_HOST_IP", "10.0.0.7")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    set_environment((0, 1))
    names = ("VLLM_HOST_IP", "OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND")
    assert [os.environ[name] for name in names] == ["10.0.0.7", "3", "nobind"]


def test_vllm_never_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    set_environment((0,))
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_a_key_that_only_vllm_knows_of_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    with pytest.raises(ConfigError, match="--api_key") as caught:
        VllmEngine.check(Settings(model_name="M"), 1)
    assert "secret" not in str(caught.value)


def test_vllm_does_not_ask_for_the_key_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("VLLM_API_KEY", "secret")
    require_keys_are_ours(has_keys=True)
    set_environment(())
    assert "VLLM_API_KEY" not in os.environ


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0"),  # a picture's address must not lead elsewhere
        ("VLLM_HOST_IP", "127.0.0.1"),  # what vLLM's processes tell each other
        ("VLLM_NO_USAGE_STATS", "1"),
    ],
)
def test_vllm_stays_on_this_machine(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv(name, raising=False)
    set_environment(())
    assert os.environ[name] == value
