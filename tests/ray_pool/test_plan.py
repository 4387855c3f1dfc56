"""What is refused before Ray is started, and how many replicas a cluster has room for."""

from __future__ import annotations

import importlib.util
import socket
from typing import Any

import pytest

from gpupool.errors import ConfigError
from gpupool.preflight import check
from gpupool.ray_pool import preflight
from gpupool.ray_pool.capacity import Plan, Wanted, plan
from gpupool.setting_types import AUTO_REPLICAS
from gpupool.settings import Settings

ON_RAY: dict[str, Any] = {"model_name": "M", "launcher": "ray"}


def refusal(**given: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check(Settings(**{"model_name": "M"} | given))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [("ray_address", "auto"), ("num_replicas", 2), ("max_replicas", 2)]
)
def test_what_means_something_on_ray_only_is_refused_without_it(field: str, value: Any) -> None:
    text = refusal(**{field: value})
    assert f"--{field} (GPUPOOL_{field.upper()}) is {value!r}" in text
    assert "--launcher ray" in text


@pytest.mark.parametrize(
    ("field", "value"),
    {
        "workers": 2,
        "ready_quorum": 2,
        "key_concurrency": 1,
        "key_tokens_per_minute": 1,
        "heartbeat_timeout_s": 30,
        "load_timeout_s": 60,
        "log_format": "json",
        "per_proc_gpus": "auto",
        "infer_type": "saas",
    }.items(),
)
def test_what_has_no_meaning_on_ray_is_refused_there(field: str, value: Any) -> None:
    text = refusal(**ON_RAY, **{field: value, "api_key": ("k",)})
    assert f"--{field}" in text


def test_gpus_of_a_cluster_are_not_chosen_here() -> None:
    text = refusal(**ON_RAY, ray_address="auto", cuda_visible_devices="0")
    assert "--cuda_visible_devices" in text


@pytest.mark.parametrize("address", ["head", "head:", "head:x", "ray://head:1", ""])
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        Settings(ray_address=address)


def test_without_ray_the_line_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed here; run .* -m pip install '.*\[ray\]'"):
        preflight.check(Settings(**ON_RAY))


def test_a_head_that_nobody_answers_at_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_refuse_without_ray", lambda: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"'{address}': Connection refused; is a cluster's"):
            preflight.check(Settings(**ON_RAY, ray_address=address))


def test_replicas_take_all_gpus_that_make_a_slice() -> None:
    nodes = [{"GPU": 8.0, "CPU": 4.0}, {"GPU": 3.0, "CPU": 4.0}, {"CPU": 64.0}]
    assert plan(nodes, 2, Wanted()) == Plan(num_replicas=5, num_gpus=2, num_cpus=0, per_node=4)


def test_without_gpus_a_replica_takes_a_core() -> None:
    assert plan([{"CPU": 4.0}], 1, Wanted()) == Plan(1, 0, 1, 1)
    assert plan([{"CPU": 2.0}, {"CPU": 2.0}], 1, Wanted(3)) == Plan(3, 0, 1, 2)


@pytest.mark.parametrize(
    ("nodes", "per_replica", "asked", "expected"),
    [
        ([{"GPU": 3.0}], 2, 2, "--num_replicas (GPUPOOL_NUM_REPLICAS) is 2, but the GPUs at 2"),
        ([{"GPU": 2.0}, {"GPU": 2.0}], 4, None, "--per_proc_gpus (PER_PROC_GPUS) is 4, but no"),
        ([{"CPU": 8.0}], 2, None, "--per_proc_gpus (PER_PROC_GPUS) is 2, but Ray knows of no GPU"),
        ([{"CPU": 2.0}], 1, 3, "--num_replicas (GPUPOOL_NUM_REPLICAS) is 3, but the CPU cores"),
    ],
)
def test_replicas_that_would_wait_for_ever_are_refused(
    nodes: list[dict[str, float]], per_replica: int, asked: int | None, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(nodes, per_replica, Wanted(asked))
    assert expected in str(caught.value)


def test_both_resources_are_always_said() -> None:
    """A replica that asks for a GPU alone waits for a CPU that a node with few cores never has."""
    assert plan([{"GPU": 4.0, "CPU": 1.0}], 1, Wanted()).actor_options == {
        "num_gpus": 1,
        "num_cpus": 0,
    }


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(AUTO_REPLICAS), Plan(5, 2, 0, 4, least=1)),
        (Wanted(AUTO_REPLICAS, least=2, most=3), Plan(3, 2, 0, 3, least=2)),
        (Wanted(AUTO_REPLICAS, most=9), Plan(9, 2, 0, 4, least=1)),
        (Wanted(AUTO_REPLICAS, least=4), Plan(5, 2, 0, 4, least=4)),
    ],
)
def test_a_number_that_follows_the_load_has_bounds(wanted: Wanted, expected: Plan) -> None:
    assert plan([{"GPU": 8.0}, {"GPU": 3.0}], 2, wanted) == expected


def test_without_gpus_the_most_are_the_cores() -> None:
    assert plan([{"CPU": 2.0}, {"CPU": 4.0}], 1, Wanted(AUTO_REPLICAS)) == Plan(6, 0, 1, 4, 1)


def test_more_at_least_than_there_is_room_for_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--min_replicas \(GPUPOOL_MIN_REPLICAS\) is 6, but"):
        plan([{"GPU": 4.0}], 1, Wanted(AUTO_REPLICAS, least=6))


@pytest.mark.parametrize("field", ["min_replicas", "max_replicas", "downscale_delay_s"])
def test_bounds_of_a_fixed_number_are_refused(field: str) -> None:
    text = refusal(**ON_RAY, num_replicas=2, **{field: 3})
    assert f"--{field} (GPUPOOL_{field.upper()}) is 3" in text
    assert "--num_replicas auto" in text


def test_bounds_the_wrong_way_round_are_refused() -> None:
    text = refusal(**ON_RAY, num_replicas="auto", min_replicas=3, max_replicas=2)
    assert "--min_replicas (GPUPOOL_MIN_REPLICAS) is 3, which is more than --max_replicas 2" in text


def test_a_number_that_follows_the_load_is_told_by_its_word() -> None:
    assert "--num_replicas (GPUPOOL_NUM_REPLICAS) is 'auto'" in refusal(num_replicas="auto")
