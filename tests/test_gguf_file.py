"""GGUF files found and read, and the folder of a private socket; no engine."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from gpupool.errors import ConfigError
from gpupool.gguf_file import find_gguf, read_gguf
from tests.demo_model import gguf_path


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def write(
    path: Path,
    start: bytes = b"GGUF",
    architecture: bytes = b"llama",
    tensors: tuple[str, ...] = (),
) -> Path:
    pairs = [
        text(b"general.architecture") + struct.pack("<I", 8) + text(architecture),
        text(b"llama.block_count") + struct.pack("<II", 4, 7),
        text(b"some.numbers") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3),
        text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(b"b"),
        text(b"tokenizer.ggml.token_type") + struct.pack("<IIQ2i", 9, 5, 2, 1, 3),
    ]
    about = [
        text(name.encode()) + struct.pack("<I2QIQ", 2, 8, 4, 0, 32 * place)
        for place, name in enumerate(tensors)
    ]
    head = struct.pack("<IQQ", 3, len(tensors), len(pairs))
    path.write_bytes(start + head + b"".join((*pairs, *about)))
    return path


def refusal(name: object) -> str:
    with pytest.raises(ConfigError) as raised:
        read_gguf(find_gguf(str(name)))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_metadata_is_read(tmp_path: Path) -> None:
    model = read_gguf(find_gguf(str(write(tmp_path / "a.gguf"))))
    assert model.value("block_count", 0) == 7
    assert model.metadata["tokenizer.ggml.tokens"] == [b"a", b"b"]
    assert model.metadata["tokenizer.ggml.token_type"] == [1, 3]


def test_real_file_is_read() -> None:
    model = read_gguf(find_gguf(str(gguf_path())))
    assert model.value("context_length", 0) == 8192
    assert len(model.metadata["tokenizer.ggml.tokens"]) == 49152


def test_parts_of_a_model_are_known_by_their_tensors(tmp_path: Path) -> None:
    file = write(tmp_path / "a.gguf", tensors=("token_embd.weight", "cls.output.weight"))
    model = read_gguf(find_gguf(str(file)))
    names = {tensor.name for tensor in model.tensors}
    assert names == {"token_embd.weight", "cls.output.weight"}
    assert model.has_tensors("cls")
    assert not model.has_tensors("token")


def test_folder_with_one_model_is_that_model(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf")
    write(tmp_path / "mmproj-a.gguf")
    assert find_gguf(str(tmp_path)) == (tmp_path / "a.gguf",)


def test_folder_with_several_models_asks_which(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf")
    write(tmp_path / "b.gguf")
    assert "2 models (a.gguf, b.gguf)" in refusal(tmp_path)


def test_parts_of_a_model_come_in_order(tmp_path: Path) -> None:
    parts = tuple(write(tmp_path / f"m-0000{i}-of-00002.gguf") for i in (1, 2))
    assert find_gguf(str(tmp_path)) == parts
    assert find_gguf(str(parts[1])) == parts


def test_missing_part_is_named(tmp_path: Path) -> None:
    part = write(tmp_path / "m-00001-of-00002.gguf")
    assert "m-00002-of-00002.gguf is not beside it" in refusal(part)


def test_safetensors_are_for_other_engines(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert "--infer_type transformers or vllm" in refusal(tmp_path)


def test_name_of_nothing_here_says_how_to_get_it() -> None:
    assert "hf download" in refusal("org/repo")


def test_other_file_is_no_model(tmp_path: Path) -> None:
    assert "is not a GGUF file" in refusal(write(tmp_path / "a.gguf", start=b"PK\3\4"))


@pytest.mark.parametrize("length", [4, 20, 60, 150])
def test_file_cut_off_in_its_metadata_is_refused(tmp_path: Path, length: int) -> None:
    whole = write(tmp_path / "a.gguf").read_bytes()
    (tmp_path / "a.gguf").write_bytes(whole[:length])
    assert "not a whole GGUF file" in refusal(tmp_path)
