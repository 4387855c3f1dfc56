from __future__ import annotations

import random
from itertools import combinations
from time import perf_counter

import pytest

from gpupool.gpus import Gpu, Link
from gpupool.partition import best_set, cut, cut_cpus

FAR = Link(num_nvlinks=0, same_model=True, same_numa=False, pcie_level=5)


def gpus(count: int, faulty: tuple[int, ...] = ()) -> tuple[Gpu, ...]:
    return tuple(
        Gpu(i, f"G{i}", "H200", 1, 1, cpus=(i, i + 100), fault="lost" if i in faulty else None)
        for i in range(count)
    )


def links(count: int, **near: Link) -> dict[frozenset[str], Link]:
    """All far apart, but for near={"a_b": link}."""
    all_links = {frozenset((f"G{a}", f"G{b}")): FAR for a, b in combinations(range(count), 2)}
    for pair, link in near.items():
        all_links[frozenset(f"G{i}" for i in pair.strip("p").split("_"))] = link
    return all_links


def nvlink(count: int) -> Link:
    return Link(num_nvlinks=count, same_model=True, same_numa=True, pcie_level=4)


def shape(count: int, per_slice: int, **near: Link) -> list[list[int]]:
    partition = cut(gpus(count), links(count, **near), per_slice)
    return [[gpu.index for gpu in one.gpus] for one in partition.slices]


def test_seven_gpus_at_two_each_are_three_slices_and_a_spare() -> None:
    partition = cut(gpus(7), links(7), 2)
    assert [one.slot for one in partition.slices] == [0, 1, 2]
    assert [gpu.index for gpu in partition.spares] == [6]


def test_gpus_joined_by_nvlink_share_a_slice() -> None:
    assert shape(4, 2, p0_3=nvlink(18), p1_2=nvlink(18)) == [[0, 3], [1, 2]]


def test_the_whole_set_counts_not_its_best_pair() -> None:
    """Taking 1-2 first, the best pair, would leave 0 and 3 without a link."""
    near = {"p0_1": nvlink(6), "p1_2": nvlink(8), "p2_3": nvlink(6)}
    assert shape(4, 2, **near) == [[0, 1], [2, 3]]


def test_nvlink_outweighs_numa_and_numa_outweighs_pcie() -> None:
    numa = Link(num_nvlinks=0, same_model=True, same_numa=True, pcie_level=4)
    board = Link(num_nvlinks=0, same_model=True, same_numa=False, pcie_level=0)
    assert shape(4, 2, p0_1=numa, p2_3=numa, p0_2=nvlink(1), p1_3=board) == [[0, 2], [1, 3]]
    assert shape(4, 2, p0_1=numa, p2_3=board, p0_2=board, p1_3=board) == [[0, 1], [2, 3]]


def test_gpus_of_one_model_share_a_slice() -> None:
    mixed = Link(num_nvlinks=0, same_model=False, same_numa=True, pcie_level=1)
    near = {"p0_1": mixed, "p0_3": mixed, "p1_2": mixed, "p2_3": mixed}
    assert shape(4, 2, **near) == [[0, 2], [1, 3]]


def test_the_spare_is_the_gpu_that_fits_worst() -> None:
    partition = cut(gpus(3), links(3, p1_2=nvlink(18)), 2)
    assert [gpu.index for gpu in partition.spares] == [0]


def test_faulty_gpus_are_in_no_slice_and_no_spare() -> None:
    partition = cut(gpus(5, faulty=(1,)), links(5), 2)
    assert [[g.index for g in one.gpus] for one in partition.slices] == [[0, 2], [3, 4]]
    assert [gpu.index for gpu in partition.faulty] == [1]
    assert partition.spares == ()


def test_the_order_given_is_the_order_kept() -> None:
    given = tuple(reversed(gpus(4)))
    partition = cut(given, links(4), 1)
    assert [one.gpus[0].index for one in partition.slices] == [3, 2, 1, 0]


def test_a_slice_has_the_cores_near_its_gpus() -> None:
    assert cut(gpus(2), links(2), 2).slices[0].cpus == (0, 1, 100, 101)


@pytest.mark.parametrize("seed", range(20))
def test_no_other_cut_is_better(seed: int) -> None:
    rng = random.Random(seed)
    count, size = rng.choice([(6, 2), (7, 2), (6, 3), (8, 3), (7, 3)])
    table = {
        frozenset((f"G{a}", f"G{b}")): Link(
            rng.choice((0, 0, 1, 4)), True, rng.random() < 0.5, rng.randrange(6)
        )
        for a, b in combinations(range(count), 2)
    }

    def value(sets: list[tuple[int, ...]]) -> int:
        pairs = (pair for one in sets for pair in combinations(one, 2))
        return sum(table[frozenset((f"G{a}", f"G{b}"))].score for a, b in pairs)

    def every_cut(left: tuple[int, ...], num_left: int) -> list[list[tuple[int, ...]]]:
        if not num_left:
            return [[]]
        return [
            [one, *rest]
            for one in combinations(left, size)
            for rest in every_cut(
                tuple(i for i in left if i not in one and i > one[0]), num_left - 1
            )
        ]

    ours = cut(gpus(count), table, size)
    chosen = [tuple(gpu.index for gpu in one.gpus) for one in ours.slices]
    best = max(value(sets) for sets in every_cut(tuple(range(count)), count // size))
    assert value(chosen) == best


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 7, 8])
def test_sixteen_gpus_are_cut_exactly_within_seconds(size: int) -> None:
    started = perf_counter()
    assert len(cut(gpus(16), links(16), size).slices) == 16 // size
    assert perf_counter() - started < 8


def test_more_than_sixteen_gpus_are_cut_with_their_nvlinks_kept() -> None:
    near = {f"p{i}_{i + 12}": nvlink(4) for i in range(12)}
    assert shape(24, 2, **near) == [[i, i + 12] for i in range(12)]


def test_fewer_gpus_than_a_slice_needs_are_all_spares() -> None:
    partition = cut(gpus(3), links(3), 4)
    assert (partition.slices, len(partition.spares)) == ((), 3)


def test_best_set_is_the_nearest_or_none() -> None:
    table = links(5, p1_4=nvlink(2))
    assert [gpu.index for gpu in best_set(gpus(5), table, 2) or ()] == [1, 4]
    assert best_set(gpus(1), table, 2) is None


@pytest.mark.parametrize(
    ("cores", "count", "shares"),
    [
        (range(8), 2, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (range(7), 3, [(0, 1), (2, 3), (4, 5, 6)]),
        ([3, 5], 1, [(3, 5)]),
        ([3, 5], 3, [(3,), (5,), (3,)]),
    ],
)
def test_cores_are_shared_out(
    cores: range | list[int], count: int, shares: list[tuple[int, ...]]
) -> None:
    assert [one.cpus for one in cut_cpus(cores, count)] == shares
