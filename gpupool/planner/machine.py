"""The machine to plan for: this one as NVML sees it, or one described by cards or by a shape.

machines.json has what CUDA has of each card's memory, which is less than `nvidia-smi` shows and
than its name says, and Oracle Cloud's GPU shapes.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

from gpupool.errors import ConfigError
from gpupool.gpus import Gpu, read_inventory, select_visible
from gpupool.nearest import nearest, nearest_hint
from gpupool.planner.fit import GIB, MIB, Card
from gpupool.planner.option import Machine

ASKED = re.compile(r"^(?:(\d{1,3})\s*[xX*]\s*)?(\S.*)$")
SIZED = re.compile(r"^(.*?)[-\s]*(\d+(?:\.\d+)?)\s*Gi?B$", re.IGNORECASE)
SIZE = re.compile(r"[-\s]*\d+(\.\d+)?\s*[GT]I?B$", re.IGNORECASE)
MAX_CARDS = 64
MAX_CARD_GB = 10_000
DRIVERS_SHARE = 0.02  # of the memory, at most; of the cards that were seen it keeps 0.4 to 3.9 %


def here(cuda_visible_devices: str | None) -> Machine | None:
    """The GPUs of this machine, as free as they are now; None where there are none."""
    # Who hides all GPUs may do so because the driver is broken: then it is not even asked.
    is_hidden = cuda_visible_devices is not None and cuda_visible_devices.strip() in ("", "-1")
    inventory = None if is_hidden else read_inventory()
    if inventory is None:
        return None
    gpus = [gpu for gpu in select_visible(inventory, cuda_visible_devices) if gpu.fault is None]
    return of_gpus(gpus) if gpus else None


def of_gpus(gpus: list[Gpu]) -> Machine:
    """GPUs that NVML has found."""
    cards = tuple(Card(gpu.name, gpu.total_bytes, gpu.free_bytes) for gpu in gpus)
    names = dict.fromkeys(card.name for card in cards)
    most = 1 if any(gpu.parent_uuid for gpu in gpus) else None
    return Machine(f"{len(cards)}x {' and '.join(names)}", cards, most)


def of_cards(asked: str) -> Machine:
    """A description such as "8x A100-80GB", "2 x H100" or "4x Some-Card-32GB"."""
    match = ASKED.match(asked.strip())
    count = int(match[1] or 1) if match else 0
    if match is None or not 1 <= count <= MAX_CARDS:
        raise ConfigError(
            f"--gpu {asked!r}: write how many and which, as '8x A100-80GB' (1 to {MAX_CARDS})"
        )
    return _machine(count, match[2], asked)


def of_shape(asked: str) -> Machine:
    """One of Oracle Cloud's shapes, such as BM.GPU.H100.8."""
    shapes: dict[str, list[Any]] = _data()["shapes"]
    by_name = {name.upper(): found for name, found in shapes.items()}
    if asked.upper() not in by_name:
        raise ConfigError(
            f"--shape {asked!r} is not known{nearest_hint(asked, shapes)}; known are "
            f"{', '.join(shapes)}; describe another by --gpu '8x A100-80GB'"
        )
    card, count = by_name[asked.upper()]
    machine = _machine(count, card, asked)
    return Machine(f"{asked.upper()} ({machine.name})", machine.cards)


def shapes() -> tuple[str, ...]:
    """The names of all shapes."""
    return tuple(_data()["shapes"])


def _machine(count: int, name: str, asked: str) -> Machine:
    known: dict[str, dict[str, Any]] = _data()["cards"]
    wanted = _plain(name)
    for card, found in known.items():
        if wanted in map(_plain, (card, *found["aliases"])):
            num_bytes = _usable_bytes(found)
            return Machine(f"{count}x {card}", (Card(card, num_bytes, num_bytes),) * count)
    sized = SIZED.match(name)
    if sized is None or not sized[1]:
        raise ConfigError(
            f"--gpu {asked!r}: {name!r} is not known{_near(name, known)}; known are "
            f"{', '.join(known)}; or add the memory to the name, as 'NAME-48GB'"
        )
    if not 0 < float(sized[2]) <= MAX_CARD_GB:
        raise ConfigError(f"--gpu {asked!r}: no card has {sized[2][:20]} GB")
    # Of a card's name a GB is 1000^3 on some and 1024^3 on others; the smaller one is safe.
    num_bytes = int(float(sized[2]) * 1000**3)
    return Machine(f"{count}x {name}", (Card(name, num_bytes, num_bytes),) * count)


def _near(name: str, known: dict[str, dict[str, Any]]) -> str:
    """A card of nearly this name, whatever its memory: that would make any other near."""
    by_name = {SIZE.sub("", card.upper()): card for card in known}
    found = nearest(SIZE.sub("", name.upper()), by_name)
    return f" (did you mean {by_name[found]!r}?)" if found else ""


def _usable_bytes(card: dict[str, Any]) -> int:
    """What CUDA has of a card, as seen, or as nvidia-smi shows it less what the driver keeps."""
    seen = card.get("cuda_gib")
    return int(seen * GIB) if seen else int(card["mib"] * MIB * (1 - DRIVERS_SHARE))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("nvidia", "").replace("geforce", ""))


@cache
def _data() -> dict[str, Any]:
    text = files("gpupool.planner").joinpath("machines.json").read_text()
    loaded: dict[str, Any] = json.loads(text)
    return loaded
