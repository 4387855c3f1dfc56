"""The headers of safetensors files: names, types and sizes of the weights, without the weights.

Format: 8 bytes with the length of a JSON object, then that (huggingface/safetensors, README).
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gpupool.errors import ConfigError
from gpupool.planner.dtypes import LOADED_AS_DTYPE, dtype_bytes
from gpupool.planner.fit import Stored
from gpupool.planner.model import Model

INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
DAMAGED = (
    *(struct.error, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError),
)
"""What reading a file raises that is cut off, or is another file."""

VALUES = (".weight", ".bias")
LAYER = re.compile(r"^(?:model\.)?(?:language_model\.)?(?:model\.)?layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One stored tensor."""

    name: str
    dtype: str  # safetensors' own name, such as BF16
    num_values: int
    num_bytes: int


def read_folder(folder: Path) -> tuple[Tensor, ...]:
    """All tensors of a model's folder; none where it has no safetensors, or not all of them."""
    index = folder / INDEX
    if index.is_file():
        listed = read_json(index).get("weight_map")
        files = listed.values() if isinstance(listed, dict) else ()
        names = sorted({name for name in files if isinstance(name, str)})
    else:
        names = sorted(file.name for file in folder.glob("*.safetensors"))
        whole = [name for name in names if name == "model.safetensors"]
        names = whole or names
    paths = [folder / name for name in names]
    if not all(path.is_file() for path in paths):
        return ()
    return tuple(tensor for path in paths for tensor in read_header(path))


def read_header(path: Path) -> Iterator[Tensor]:
    """The tensors of one file; ConfigError when it is cut off or no safetensors file."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            size = path.stat().st_size
            if length > min(size, MAX_HEADER_BYTES):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        yield from parse_header(header)
        _check_size(size, 8 + length, header)
    except DAMAGED as error:
        raise ConfigError(
            f"{str(path)!r} is not a whole safetensors file ({error}); download it again"
        ) from None


def parse_header(header: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors that a header lists."""
    for name, info in header.items():
        if name != "__metadata__":
            (start, end), shape, dtype = info["data_offsets"], info["shape"], info["dtype"]
            numbers = (start, end - start, *shape)
            if not isinstance(dtype, str) or not all(
                isinstance(number, int) and number >= 0 for number in numbers
            ):
                raise ValueError(f"tensor {name[:80]!r} is described by {str(info)[:80]}")
            yield Tensor(name, dtype, prod(shape), end - start)


def _check_size(found: int, start: int, header: dict[str, Any]) -> None:
    ends = [info["data_offsets"][1] for name, info in header.items() if name != "__metadata__"]
    expected = start + max(ends, default=0)
    if found < expected:
        raise ValueError(f"{found} of {expected} bytes")


def in_memory(tensors: Iterable[Tensor], model: Model) -> Stored:
    """What these weights take when they are loaded.

    Floats become the model's dtype; packed and 8-bit values stay, and so do their scales. Left
    out is what an engine leaves out: a head that is the embedding, and layers past the last,
    which only predict ahead.
    """
    num_bytes = 0
    for tensor in tensors:
        layer = LAYER.match(tensor.name)
        is_ahead = layer is not None and int(layer[1]) >= model.num_layers
        if is_ahead or (model.is_tied and tensor.name.endswith("lm_head.weight")):
            continue
        is_scale = model.quantization is not None and not tensor.name.endswith(VALUES)
        as_dtype = tensor.dtype in LOADED_AS_DTYPE and not is_scale
        num_bytes += tensor.num_values * dtype_bytes(model.dtype) if as_dtype else tensor.num_bytes
    return Stored(num_bytes)


def bytes_by_dtype(tensors: Iterable[Tensor]) -> dict[str, int]:
    """Bytes in the files, by safetensors' names, the most first."""
    counter: Counter[str] = Counter()
    for tensor in tensors:
        counter[tensor.dtype] += tensor.num_bytes
    return dict(counter.most_common())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or a ConfigError."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{str(path)!r} is not a JSON object; download it again")
    return found
