"""GPUs -> slices, pure policy: no NVML, no locks, no processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import comb

from gpupool.gpus import Gpu, Links

MAX_EXACT_GPUS = 16
"""Up to here every way to cut is weighed; the sums of gpus.Link.score are sized for it too."""

MAX_SETS = 2_000
"""best_set weighs every set up to this many, so that it takes milliseconds at most."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The fixed set of GPUs (or, without GPUs, of CPU cores) given to one worker.

    Not a MIG slice: a MIG device counts as one GPU here.
    """

    slot: int  # which worker of the pool, 0-based
    gpus: tuple[Gpu, ...]
    cpus: tuple[int, ...]  # cores to pin to; near the GPUs, or the share of a CPU slice


@dataclass(frozen=True, slots=True)
class Partition:
    """All given GPUs: in a slice, left over, or not to be used."""

    slices: tuple[Slice, ...]
    spares: tuple[Gpu, ...]
    faulty: tuple[Gpu, ...]


def cut(gpus: Iterable[Gpu], links: Links, per_slice: int) -> Partition:
    """As many slices of `per_slice` GPUs as there can be, each of GPUs as near as possible.

    What counts is the sum over all slices: the best single pair may have to be split for two
    good ones. GPUs with a fault are left out. Slices are ordered by their first GPU.
    """
    given = tuple(gpus)
    healthy = [gpu for gpu in given if gpu.fault is None]
    search = _cut_exactly if len(healthy) <= MAX_EXACT_GPUS else _cut_greedily
    sets = [(gpu,) for gpu in healthy] if per_slice == 1 else search(healthy, links, per_slice)
    used = {gpu.uuid for chosen in sets for gpu in chosen}
    return Partition(
        slices=tuple(Slice(i, chosen, near_cpus(chosen)) for i, chosen in enumerate(sets)),
        spares=tuple(gpu for gpu in healthy if gpu.uuid not in used),
        faulty=tuple(gpu for gpu in given if gpu.fault is not None),
    )


def cut_cpus(cpus: Iterable[int], count: int) -> tuple[Slice, ...]:
    """`count` slices without GPUs that share the cores out; with fewer cores than slices,
    slices share a core."""
    cores = sorted(cpus)
    if count >= len(cores):
        return tuple(Slice(i, (), (cores[i % len(cores)],)) for i in range(count))
    bounds = [len(cores) * i // count for i in range(count + 1)]
    return tuple(
        Slice(i, (), tuple(cores[start:end]))
        for i, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False))
    )


def best_set(gpus: Sequence[Gpu], links: Links, size: int) -> tuple[Gpu, ...] | None:
    """The nearest `size` GPUs among these, or None where there are fewer."""
    if len(gpus) < size:
        return None
    if comb(len(gpus), size) > MAX_SETS:
        return _grow(list(gpus), links, size)
    return max(combinations(gpus, size), key=lambda chosen: _score(chosen, links))


def near_cpus(gpus: Iterable[Gpu]) -> tuple[int, ...]:
    """The cores near any of the GPUs."""
    return tuple(sorted({core for gpu in gpus for core in gpu.cpus}))


def _score(chosen: Iterable[Gpu], links: Links) -> int:
    return sum(_pair_score(a, b, links) for a, b in combinations(chosen, 2))


def _pair_score(a: Gpu, b: Gpu, links: Links) -> int:
    link = links.get(frozenset((a.uuid, b.uuid)))
    return link.score if link else 0


def _cut_exactly(gpus: list[Gpu], links: Links, size: int) -> list[tuple[Gpu, ...]]:
    """The best cut of at most 16 GPUs, by dynamic programming over what is left.

    The first GPU left is either in some set with later ones or, while there are GPUs too many,
    a spare; so every cut is met once.
    """
    positions = range(len(gpus))
    pair = [[_pair_score(a, b, links) for b in gpus] for a in gpus]
    Cut = tuple[int, tuple[tuple[int, ...], ...]]

    def score(chosen: tuple[int, ...]) -> int:
        return sum(pair[a][b] for a, b in combinations(chosen, 2))

    @cache
    def best(left: tuple[int, ...]) -> Cut:
        if len(left) < size:
            return 0, ()
        first, rest = left[0], left[1:]
        found: Cut | None = None
        for others in combinations(rest, size - 1):
            value, sets = best(tuple(i for i in rest if i not in others))
            value += score((first, *others))
            if found is None or value > found[0]:
                found = value, ((first, *others), *sets)
        if len(left) % size:
            as_spare = best(rest)
            if found is None or as_spare[0] > found[0]:
                found = as_spare
        assert found is not None
        return found

    return [tuple(gpus[i] for i in chosen) for chosen in best(tuple(positions))[1]]


def _cut_greedily(gpus: list[Gpu], links: Links, size: int) -> list[tuple[Gpu, ...]]:
    left, sets = list(gpus), []
    while len(left) >= size:
        chosen = _grow(left, links, size)
        sets.append(chosen)
        left = [gpu for gpu in left if gpu not in chosen]
    return sets


def _grow(gpus: list[Gpu], links: Links, size: int) -> tuple[Gpu, ...]:
    """From the first GPU on, always the one nearest to those already chosen."""
    chosen = [gpus[0]]
    while len(chosen) < size:
        rest = [gpu for gpu in gpus if gpu not in chosen]
        chosen.append(max(rest, key=lambda g: sum(_pair_score(g, c, links) for c in chosen)))
    return tuple(gpu for gpu in gpus if gpu in chosen)
