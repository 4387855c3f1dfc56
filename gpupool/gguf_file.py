"""What a GGUF file says of its model, read from its first bytes (preflight, worker, planner).

Format: ggml's docs/gguf.md. Imports no engine library.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite, prod
from pathlib import Path
from typing import Any

from gpupool.errors import ConfigError

MAGIC = b"GGUF"
STRING, ARRAY, BOOL = 8, 9, 7
FORMATS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
KEPT_ARRAYS = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type")
MAX_LAYERS = 4096  # arrays up to this may have a number for each layer
SPLIT_NAME = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of a GGUF file, without its values."""

    name: str
    num_values: int
    kind: int  # ggml's number of the type


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A model's files and metadata; of the long arrays only the vocabulary's are kept."""

    files: tuple[Path, ...]  # the parts of a split model in order
    metadata: dict[str, Any] = field(repr=False)
    tensors: tuple[GgufTensor, ...] = field(repr=False, default=())  # of the first part

    @property
    def path(self) -> Path:
        """The file that llama.cpp is given; it finds the other parts itself."""
        return self.files[0]

    @property
    def num_bytes(self) -> int:
        """Size of all parts."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def architecture(self) -> str:
        """What the names of its numbers begin with."""
        return str(self.metadata.get("general.architecture"))

    def has_tensors(self, part: str) -> bool:
        """Whether the model has a part of this name; of a split model, whether it may have."""
        return len(self.files) > 1 or any(
            tensor.name.startswith(f"{part}.") for tensor in self.tensors
        )

    def value(self, key: str, default: int) -> int:
        """A number of the architecture, such as "block_count"; of one for each layer the
        largest."""
        found = self.metadata.get(f"{self.architecture}.{key}")
        numbers = found if isinstance(found, list) else [found]
        known = [n for n in numbers if isinstance(n, int | float) and isfinite(n)]
        return int(max(known)) if known else default


def find_gguf(model_name: str) -> tuple[Path, ...]:
    """The GGUF file, or all parts of one, that --model_name means; ConfigError if there is none."""
    path = Path(model_name).expanduser()
    asked = f"--model_name (HF_MODEL_NAME) {model_name!r}"
    if path.is_dir():
        path = _only_gguf(path, asked)
    if not path.is_file():
        raise ConfigError(
            f"{asked} is no file or folder here; llama_cpp reads local GGUF files: download one "
            "(hf download ORG/REPO FILE.gguf --local-dir FOLDER) and give its path, or use "
            "--infer_type transformers or vllm"
        )
    with path.open("rb") as file:
        start = file.read(4)
    if start != MAGIC:
        raise ConfigError(
            f"{asked} is not a GGUF file: it begins with {start!r}; give a .gguf file, or use "
            "--infer_type transformers or vllm"
        )
    return _parts(path, asked)


def _only_gguf(folder: Path, asked: str) -> Path:
    found = sorted(folder.glob("*.gguf"))
    models = [
        file
        for file in found
        if not file.name.startswith("mmproj")
        and ((split := SPLIT_NAME.match(file.name)) is None or int(split[2]) == 1)
    ]
    if len(models) == 1:
        return models[0]
    if models:
        names = ", ".join(file.name for file in models[:5])
        raise ConfigError(f"{asked} has {len(models)} models ({names}); give the path of one")
    what = "safetensors weights" if list(folder.glob("*.safetensors")) else "no .gguf file"
    raise ConfigError(
        f"{asked} has {what}; convert it to GGUF, or use --infer_type transformers or vllm"
    )


def _parts(path: Path, asked: str) -> tuple[Path, ...]:
    split = SPLIT_NAME.match(path.name)
    if split is None:
        return (path,)
    total = int(split[3])
    parts = tuple(
        path.with_name(f"{split[1]}-{number:05d}-of-{total:05d}.gguf")
        for number in range(1, total + 1)
    )
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ConfigError(f"{asked} is one part of {total}, and {missing[0]} is not beside it")
    return parts


def read_gguf(files: tuple[Path, ...]) -> GgufModel:
    """Read the metadata; ConfigError when the file is cut off or of an unknown version."""
    path = files[0]
    metadata, tensors = _read_header(path)
    if "general.architecture" not in metadata:
        raise ConfigError(f"{str(path)!r} names no architecture; it is not a model for llama.cpp")
    return GgufModel(files, metadata, tensors)


def all_tensors(model: GgufModel) -> tuple[GgufTensor, ...]:
    """Those of the other parts too; ConfigError when a part is cut off within its header."""
    others = (tensor for file in model.files[1:] for tensor in _read_header(file)[1])
    return (*model.tensors, *others)


def _read_header(path: Path) -> tuple[dict[str, Any], tuple[GgufTensor, ...]]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data)
            return dict(reader.pairs()), tuple(reader.tensors())
    except (struct.error, OSError, LookupError, OverflowError, ValueError) as error:
        raise ConfigError(
            f"{str(path)!r} is not a whole GGUF file ({error}); download it again"
        ) from None


class _Reader:
    """Walks the key-value pairs once, front to back, then the tensors."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 4
        version = self._number(4)
        if version not in (2, 3):
            raise ValueError(f"version {version}")
        self._num_tensors = self._number(10)
        self._num_pairs = self._number(10)

    def pairs(self) -> Iterator[tuple[str, Any]]:
        for _ in range(self._num_pairs):
            key = self._bytes().decode()
            kind = self._number(4)
            if kind == ARRAY:
                values = self._array(key in KEPT_ARRAYS)
                if values is not None:
                    yield key, values
            elif kind == STRING:
                yield key, self._bytes().decode("utf-8", "replace")
            else:
                yield key, self._number(kind)

    def tensors(self) -> Iterator[GgufTensor]:
        """Only after all pairs."""
        for _ in range(self._num_tensors):
            name = self._bytes().decode()
            sizes = [self._number(10) for _ in range(self._number(4))]
            kind = self._number(4)
            self._number(10)  # where its values are
            yield GgufTensor(name, prod(sizes), kind)

    def _number(self, kind: int) -> Any:
        (value,) = struct.unpack_from(f"<{FORMATS[kind]}", self._data, self._at)
        self._at += struct.calcsize(f"<{FORMATS[kind]}")
        return value

    def _bytes(self) -> bytes:
        length = self._number(10)
        start, self._at = self._at, self._at + length
        if self._at > len(self._data):
            raise ValueError("it ends within its metadata")
        return self._data[start : self._at]

    def _array(self, keep: bool) -> list[Any] | None:
        kind, length = self._number(4), self._number(10)
        if kind == ARRAY:
            raise ValueError("an array of arrays")
        if kind == STRING:
            texts = [self._bytes() for _ in range(length)]
            return texts if keep else None
        keep = keep or length <= MAX_LAYERS
        layout = f"<{length}{FORMATS[kind]}"
        start, self._at = self._at, self._at + struct.calcsize(layout)
        return list(struct.unpack_from(layout, self._data, start)) if keep else None
