"""What a model in llama.cpp is there for, by its arguments and its file; no llama.cpp."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpupool.engines.llama_cpp_arguments import parse_engine_args
from gpupool.engines.llama_cpp_defaults import make_params
from gpupool.engines.llama_cpp_uses import Uses, uses_of
from gpupool.errors import ConfigError
from gpupool.gguf_file import GgufModel, GgufTensor
from gpupool.partition import Slice

TEXTS = {"general.architecture": "llama", "llama.context_length": 4096}
ENCODER = {"general.architecture": "bert", "bert.attention.causal": False}


def tensors(*names: str) -> tuple[GgufTensor, ...]:
    return tuple(GgufTensor(name, num_values=1, kind=0) for name in names)


HEAD = tensors("token_embd.weight", "cls.output.weight")
FILE = (Path("model.gguf"),)


def uses(args: str, model: GgufModel) -> Uses:
    return uses_of(parse_engine_args(args.split()), model)


@pytest.mark.parametrize(
    ("args", "metadata", "expected"),
    [
        ("", TEXTS, Uses(generates=True, embeds=False, ranks=False)),
        ("--embedding", TEXTS, Uses(generates=True, embeds=True, ranks=False)),
        ("--embedding", ENCODER, Uses(generates=False, embeds=True, ranks=False)),
        ("--reranking", TEXTS, Uses(generates=False, embeds=False, ranks=True)),
        ("--embedding --pooling rank", ENCODER, Uses(generates=False, embeds=False, ranks=True)),
    ],
)
def test_arguments_and_model_say_what_it_is_for(
    args: str, metadata: dict[str, object], expected: Uses
) -> None:
    assert uses(args, GgufModel(FILE, metadata, HEAD)) == expected


def test_a_model_without_a_head_cannot_rank() -> None:
    model = GgufModel(FILE, TEXTS, tensors("token_embd.weight", "output.weight"))
    with pytest.raises(ConfigError, match="model.gguf.*nothing to rank with"):
        uses("--reranking", model)


def test_the_head_of_a_split_model_may_be_in_any_part() -> None:
    parts = (Path("m-00001-of-00002.gguf"), Path("m-00002-of-00002.gguf"))
    assert uses("--reranking", GgufModel(parts, TEXTS)).ranks


def test_an_encoder_must_be_started_for_what_it_can() -> None:
    with pytest.raises(ConfigError, match="an encoder.*--embedding or --reranking"):
        uses("", GgufModel(FILE, ENCODER, HEAD))


def test_a_reranker_computes_each_text_in_one_step(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    given = parse_engine_args(["--reranking", "--parallel", "2"])
    params = make_params(given, GgufModel((file,), TEXTS, HEAD), Slice(0, (), cpus=(0,)))
    assert params["embedding"]
    assert params["n_ubatch"] >= params["n_ctx"] // params["n_parallel"]
