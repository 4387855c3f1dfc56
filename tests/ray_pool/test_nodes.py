"""A pool over the nodes of a real Ray cluster, each with an address of its own on this machine."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import openai
import psutil
import pytest

from tests.demo_model import gguf_path, model_folder
from tests.documented import commands_of
from tests.pool import AT_OUR_END, ROOT, SCRIPTED, Pool, wait_until
from tests.ray_pool.cluster import START_S, environment, own_network, ray_pool, require_ray

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(400)]

# What is run is what docs/growing.md says, with other addresses and a CPU core a node.
COMMANDS = [line.replace("10.0.0.", "10.9.0.") for line in commands_of(ROOT / "docs/growing.md")]
EXPORTS = [line for line in COMMANDS if line.startswith("export RAY_")]
[OF_HEAD] = [line for line in COMMANDS if line.startswith("ray start --head ")]
[OF_OTHERS] = [line for line in COMMANDS if line.startswith("ray start --address=")]
OF_TESTS = "--num-cpus=1 --num-gpus=0 --object-store-memory=100000000 --block"
ON_THE_CLUSTER = ("--ray_address", "auto")
REAL = {
    "llama_cpp": (gguf_path, ()),
    "vllm": (
        model_folder,
        ("--", "--dtype", "float32", "--enforce-eager", "--max-model-len", "512"),
    ),
}


@dataclass
class Cluster:
    """Its nodes' addresses, and the process that each was started with."""

    folder: Path
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, number: int) -> None:
        """Node 1 is the head. Returns when the cluster has it."""
        address = f"10.9.0.{number}"
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
        line = OF_HEAD if number == 1 else OF_OTHERS.replace("10.9.0.2", address)
        with (self.folder / f"node{number}.log").open("wb") as log:
            self.nodes[address] = subprocess.Popen(
                [*AT_OUR_END, "bash", "-c", f"exec {line} {OF_TESTS}"],
                env=os.environ | self.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        wait_until(lambda: self._has_started(address, number), START_S, address)

    def environment(self) -> dict[str, str]:
        """Of everything that belongs to the cluster."""
        (self.folder / "cluster-token").write_text("0123456789abcdef" * 4)
        script = "; ".join([*EXPORTS, "env -0"])
        told = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, check=True, capture_output=True, text=True
        )
        every = dict(one.partition("=")[::2] for one in told.stdout.split("\0") if one)
        found = {name: value for name, value in every.items() if name.startswith("RAY_")}
        assert len(found) >= 6
        return environment() | found | {"RAY_TMPDIR": str(self.folder)}

    def _has_started(self, address: str, number: int) -> bool:
        told = (self.folder / f"node{number}.log").read_text()
        assert self.nodes[address].poll() is None, told
        return "Ray runtime started" in told

    def kill(self, address: str) -> None:
        """All of a node at once, as when a machine loses its power."""
        node = psutil.Process(self.nodes[address].pid)
        for process in [*node.children(recursive=True), node]:
            process.suspend()
        for process in [*node.children(recursive=True), node]:
            process.kill()
        self.nodes.pop(address).wait()


@contextmanager
def three_nodes() -> Iterator[Cluster]:
    """Ray's files are in a folder of their own: its sockets' paths may not be long."""
    require_ray()
    with own_network(), TemporaryDirectory(prefix="nodes-", dir="/tmp") as folder:
        cluster = Cluster(Path(folder))
        try:
            for number in (1, 2, 3):
                cluster.start(number)
            yield cluster
        finally:
            for address in list(cluster.nodes):
                cluster.kill(address)


@dataclass
class Load:
    """Clients that ask one request after the other, and what became of each."""

    pool: Pool
    num_clients: int = 6
    took: list[tuple[float, float]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._ask) for _ in range(self.num_clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                assert self.pool.infer("ab", max_tokens=20) == ["ab" * 10]
            except Exception as error:
                self.lost.append(repr(error)[:300])
            self.took.append((began, time.monotonic() - began))


def test_a_dead_node_loses_no_request_and_stops_costing_any_within_5_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (*SCRIPTED, *ON_THE_CLUSTER, "--num_replicas", "3")
    engine_args = ("--", "--token-s", "0.02", "--slots", "4")
    with three_nodes() as cluster, ExitStack() as stack:
        pool = ray_pool(tmp_path, *flags, *engine_args, env=cluster.environment())
        stack.enter_context(pool)
        pool.wait_ready(3, deadline_s=START_S)
        hosts = {node_of(worker["pid"], cluster) for worker in pool.workers()}
        assert hosts == {"10.9.0.1", "10.9.0.2", "10.9.0.3"}
        with Load(pool) as load:
            wait_until(lambda: len(load.took) >= 20, 30, "answers")
            usual_s = sorted(took for _, took in load.took)[len(load.took) // 2]
            killed = time.monotonic()
            cluster.kill("10.9.0.3")
            time.sleep(12)
        slow = [began + took - killed for began, took in load.took if took > 3 * usual_s]
        with capsys.disabled():
            print(f"\nusual {usual_s:.2f} s; last slow answer {max(slow, default=0):.1f} s after")
        assert not load.lost
        assert max(slow, default=0) < 5
        wait_until(lambda: len(pool.workers()) == 2, 5, "the two that are left")


def node_of(pid: int, cluster: Cluster) -> str:
    """The address of the node that a replica is on."""
    parents = {parent.pid for parent in psutil.Process(pid).parents()}
    [found] = [address for address, node in cluster.nodes.items() if node.pid in parents]
    return found


@pytest.mark.parametrize(("engine", "num_replicas"), [("llama_cpp", 3), ("vllm", 2)])
@pytest.mark.model
def test_real_replicas_on_several_nodes_speak_both_apis(
    tmp_path: Path, engine: str, num_replicas: int
) -> None:
    model, engine_args = REAL[engine]
    flags = (
        *("--model_name", str(model()), "--infer_type", engine, "--served_model_name", "smol"),
        *(*ON_THE_CLUSTER, "--num_replicas", str(num_replicas)),
    )
    with three_nodes() as cluster, ExitStack() as stack:
        env = cluster.environment() | {"VLLM_CPU_KVCACHE_SPACE": "1"}
        pool = stack.enter_context(ray_pool(tmp_path, *flags, *engine_args, env=env))
        pool.wait_ready(num_replicas, deadline_s=300)
        check_batch(pool, num_replicas)
        with openai.OpenAI(base_url=f"{pool.url}/v1", api_key="none", max_retries=0) as client:
            events = client.chat.completions.create(
                model="smol",
                messages=[{"role": "user", "content": "Name three fruits."}],
                max_tokens=16,
                temperature=0,
                stream=True,
            )
            text = "".join(event.choices[0].delta.content or "" for event in events)
        assert "1." in text


def check_batch(pool: Pool, num_replicas: int) -> None:
    """200 items, on every replica; each is what it is alone."""
    prompts = [f"{name} is the capital of" for name in ("Paris", "Rome", "Madrid", "Tokyo")] * 50
    params = {"max_tokens": 3, "temperature": 0}
    status, answer = pool.post(
        "/infer", {"instances": prompts, "params": params, "detail": True}, 280
    )
    assert status == 200, answer
    assert {item["replica"] for item in answer} == set(range(num_replicas))
    assert [item["error"] for item in answer] == [None] * 200
    alone = [pool.infer(prompt, **params)[0] for prompt in prompts[:4]]
    assert [item["text"] for item in answer] == alone * 50
