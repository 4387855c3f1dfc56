from __future__ import annotations

import pytest

from gpupool.engines.transformers_args import OURS, TransformersArgs, parse_engine_args
from gpupool.errors import ConfigError


def test_nothing_given_is_the_defaults() -> None:
    assert parse_engine_args([]) == TransformersArgs()


def test_values_are_read() -> None:
    args = parse_engine_args(
        ["--dtype", "bfloat16", "--max-model-len=2048", "--num-blocks", "64", "--revision", "v1"]
    )
    assert args == TransformersArgs(
        dtype="bfloat16", max_model_len=2048, num_blocks=64, revision="v1"
    )


@pytest.mark.parametrize("name", sorted(OURS))
def test_flag_of_the_pool_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}.*may not follow --; use --"):
        parse_engine_args([f"{name}=1"])


def test_flag_of_the_pool_with_underscores_is_refused() -> None:
    with pytest.raises(ConfigError, match="may not follow --"):
        parse_engine_args(["--api_key", "secret"])


def test_unknown_argument_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean '--max-model-len'"):
        parse_engine_args(["--max-model-length", "1"])


def test_abbreviation_is_no_argument() -> None:
    with pytest.raises(ConfigError, match="'--rev' is not one"):
        parse_engine_args(["--rev", "main"])


@pytest.mark.parametrize(
    "words",
    [
        ["--dtype", "int4"],
        ["--max-model-len", "0"],
        ["--max-model-len", "many"],
        ["--num-blocks", "-1"],
        ["--num-blocks", "²"],
        ["--cache-memory-fraction", "1.5"],
        ["--cache-memory-fraction", "nan"],
        ["--revision", ""],
        ["--revision"],
        ["stray"],
    ],
    ids=" ".join,
)
def test_value_that_cannot_be_is_one_line(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="arguments after --") as error:
        parse_engine_args(words)
    assert "\n" not in str(error.value)
