"""Pools on stubbed GPUs: leases between pools, GPUs in use, and vLLM across two of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests import demo_model
from tests.machine import fake_machine, uuid_of
from tests.pool import SCRIPTED, Pool, wait_until

pytestmark = pytest.mark.server


def test_two_pools_never_share_a_gpu(tmp_path: Path) -> None:
    with fake_machine(tmp_path, gpus=4) as machine:
        flags = (*SCRIPTED, "--cuda_visible_devices")
        with Pool(tmp_path, *flags, "0,1,2", env=machine.env()) as first:
            first.wait_ready(workers=3)
            with Pool(tmp_path, *flags, "2,3", env=machine.env()) as second:
                second.wait_ready(workers=1)
                wait_until(lambda: second.workers()[0]["state"] == "waiting", 10, "waiting")
                assert f"pid {first.workers()[2]['pid']}" in second.workers()[0]["phase"]
                assert second.workers()[1]["gpus"] == [uuid_of(3)]
                first.stop()
                second.wait_ready(workers=2, deadline_s=20)
                assert second.workers()[0]["gpus"] == [uuid_of(2)]


def test_a_gpu_that_somebody_uses_is_waited_for(tmp_path: Path) -> None:
    with fake_machine(tmp_path, gpus=2) as machine:
        machine.set_gpu(1, used=50 << 30)
        machine.set_process(1, os.getpid(), 50 << 30)
        machine.write()
        with Pool(tmp_path, *SCRIPTED, env=machine.env()) as pool:
            pool.wait_ready(workers=1)
            wait_until(lambda: pool.workers()[1]["state"] == "waiting", 10, "a waiting worker")
            assert str(os.getpid()) in pool.workers()[1]["phase"]
            machine.set_gpu(1, used=0)
            machine.set_process(1, os.getpid(), 0)
            machine.write()
            pool.wait_ready(workers=2, deadline_s=20)


def test_a_spare_gpu_is_reported_and_left_alone(tmp_path: Path) -> None:
    with (
        fake_machine(tmp_path, gpus=7) as machine,
        Pool(tmp_path, *SCRIPTED, "--per_proc_gpus", "2", env=machine.env()) as pool,
    ):
        pool.wait_ready(workers=3)
        assert len(pool.workers()) == 3
        assert "spare: GPU" in pool.log()


def test_a_worker_whose_lock_file_was_removed_makes_room(tmp_path: Path) -> None:
    with (
        fake_machine(tmp_path, gpus=1) as machine,
        Pool(tmp_path, *SCRIPTED, env=machine.env()) as pool,
    ):
        pool.wait_ready()
        first = pool.workers()[0]["pid"]
        lock_dir = Path(machine.env()["GPUPOOL_LOCK_DIR"])
        for lock in lock_dir.glob(f"*{uuid_of(0)}*.lock"):
            lock.unlink()
        wait_until(lambda: "a lock file of its GPUs was removed" in pool.log(), 10, "the alarm")
        wait_until(lambda: pool.workers()[0]["pid"] not in (None, first), 20, "a new worker")
        pool.wait_ready(deadline_s=20)


@pytest.fixture(scope="module", name="even_model")
def _even_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The demo model's nine heads cannot be shared by two: a small random one with four."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    source, target = demo_model.model_folder(), tmp_path_factory.mktemp("even")
    config = LlamaConfig.from_pretrained(source)
    sizes = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256, "num_hidden_layers": 2}
    for name, value in (sizes | {"num_attention_heads": 4, "num_key_value_heads": 2}).items():
        setattr(config, name, value)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(target)
    for file in source.glob("*token*"):
        shutil.copy(file, target)
    yield target
    shutil.rmtree(target)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(400)
def test_vllm_runs_across_the_two_gpus_of_each_slice(tmp_path: Path, even_model: Path) -> None:
    """The CPU build computes on cores, so that the GPUs may be a stub; everything before that,
    the slices, leases and vLLM's own tensor parallelism, is what runs on GPUs."""
    on_cpu = {
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_OMP_THREADS_BIND": "0|1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    flags = ("--model_name", str(even_model), "--per_proc_gpus", "2", "--infer_type", "vllm")
    engine = ("--", "--dtype", "float32", "--enforce-eager", "--max-model-len", "256")
    with (
        fake_machine(tmp_path, gpus=4, links=[(0, 1), (2, 3)]) as machine,
        Pool(tmp_path, *flags, *engine, env=machine.env() | on_cpu) as pool,
    ):
        pool.wait_ready(workers=2, deadline_s=360)
        gpus = [worker["gpus"] for worker in pool.workers()]
        assert gpus == [[uuid_of(0), uuid_of(1)], [uuid_of(2), uuid_of(3)]]
        assert pool.log().count("tensor_parallel_size=2") >= 2
        for worker in pool.workers():
            [core] = [p for p in psutil.Process(worker["pid"]).children() if "Core" in p.name()]
            assert core.environ()["CUDA_VISIBLE_DEVICES"] == ",".join(worker["gpus"])
        assert len(pool.infer(["a", "b", "c", "d"], max_tokens=4)) == 4
