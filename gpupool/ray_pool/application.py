"""The Serve application: one deployment, whose replicas each hold one engine (made in the launcher,
run in the replica processes)."""

from __future__ import annotations

import math
import os
from typing import Any

from gpupool.exchange import Message, Receive, Send
from gpupool.ray_pool.answer import Answerer
from gpupool.ray_pool.asking import Asker
from gpupool.ray_pool.capacity import Plan
from gpupool.ray_pool.flask_call import Reply
from gpupool.ray_pool.holding import Seat
from gpupool.ray_pool.host import ReplicaHost
from gpupool.ray_pool.names import DEPLOYMENT, FULL_STATUS
from gpupool.ray_pool.piece import Piece, PieceResult, run_piece
from gpupool.ray_pool.serve_inside import (
    Slot,
    accept_while,
    bind_to_loopback,
    end_after_batches,
    let_past_slots,
)
from gpupool.settings import Settings

HEALTH_PERIOD_S = 1.0
HEALTH_TIMEOUT_S = 30.0
WHILE_LOADING = 1
"""Requests that a replica may have at once until it is known how many its engine has slots for."""
RETRY_AFTER_S = 1
BUSY_SHARE = 0.75
"""Of its slots, that a replica has on average before there is to be another one."""
METRICS_INTERVAL_S = 1.0
LOOK_BACK_S = 5.0
UPSCALE_DELAY_S = 5.0
DOWNSCALE_DELAY_S = 600.0
"""A model takes minutes to load, so that ending a replica is worth a second thought."""


class ServedReplica:
    """What Serve makes of each of its actors. One a process, by Ray's design."""

    def __init__(self, settings: Settings, per_node: int, num_replicas: int) -> None:
        import ray
        from ray import serve

        bind_to_loopback(ray.util.get_node_ip_address())
        let_past_slots(("slots", "control"))
        end_after_batches()
        rank = serve.get_replica_context().rank
        gpu_ids = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        seat = Seat(rank.rank, rank.local_rank, per_node)
        self._host = _host_of_process["it"] = ReplicaHost(settings, gpu_ids, seat, Asker())
        self._host.load()
        accept_while(self._host.is_able)
        self._host.spread.at_once = 1 if num_replicas == 1 else num_replicas * self.slots()

    def slots(self) -> int:
        """Sequences that the engine runs at once."""
        engine = self._host.replica.ready_engine()
        return min(engine.model.slots, self._host.num_threads)

    async def run_piece(self, piece: Piece) -> PieceResult:
        """An item of a batch that some replica coordinates."""
        return await run_piece(self._host.replica, self._host.totals, piece)

    async def control(self, scope: Message) -> Reply:
        """This replica's own answer to a control route."""
        return await Answerer(self._host).control(scope)

    def check_health(self) -> None:
        """Called by Serve; raises once the replica is to be replaced."""
        if self._host.trouble is not None:
            raise RuntimeError(self._host.trouble)

    def __del__(self) -> None:
        """Called by Serve when the replica has answered what it had."""
        if "_host" in vars(self):
            self._host.close()


_host_of_process: dict[str, ReplicaHost] = {}


async def _answer(scope: Message, receive: Receive, send: Send) -> None:
    await Answerer(_host_of_process["it"])(scope, receive, send, Slot())


def _build() -> Any:
    """Called in the replica. Serve pickles what it is given, and this comes by its name."""
    return _answer


def _how_many(settings: Settings, plan: Plan, slots: int | None) -> dict[str, Any]:
    """Serve counts the requests that run and that wait in its queue. While nobody knows how many a
    replica can run, there is nothing to follow."""
    from ray.serve.config import AutoscalingConfig

    if plan.least is None or slots is None:
        return {"num_replicas": plan.num_replicas if plan.least is None else plan.least}
    delay_s = settings.downscale_delay_s
    scaling = AutoscalingConfig(
        min_replicas=plan.least,
        max_replicas=plan.num_replicas,
        target_ongoing_requests=max(1.0, slots * BUSY_SHARE),
        metrics_interval_s=METRICS_INTERVAL_S,
        look_back_period_s=LOOK_BACK_S,
        upscale_delay_s=UPSCALE_DELAY_S,
        downscale_delay_s=DOWNSCALE_DELAY_S if delay_s is None else delay_s,
    )
    return {"autoscaling_config": scaling}


def make_application(settings: Settings, plan: Plan, slots: int | None) -> Any:
    """What Serve is to run; once more with the `slots` of an engine, it changes that alone and no
    replica is started anew."""
    from ray import serve
    from ray.serve.config import BackpressureConfig

    at_once = WHILE_LOADING if slots is None else slots
    deployment = serve.deployment(serve.ingress(_build)(ServedReplica)).options(
        name=DEPLOYMENT,
        **_how_many(settings, plan, slots),
        ray_actor_options=plan.actor_options,
        max_ongoing_requests=at_once,
        # Serve counts as waiting also what is on its way to a free slot.
        max_queued_requests=settings.max_waiting + plan.num_replicas * at_once,
        backpressure_config=BackpressureConfig(
            status_code=FULL_STATUS, retry_after_s=RETRY_AFTER_S
        ),
        graceful_shutdown_timeout_s=math.ceil(settings.graceful_timeout_s),
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
    )
    # Serve gives each deployment of an object a version of its own, and replaces all replicas for
    # a new one. Tested against the pinned Ray: tests/ray_pool/test_serving.py.
    version = f"{os.getpid()}"
    deployment = deployment.options(version=version, _internal=True)
    return deployment.bind(settings, plan.per_node, plan.num_replicas)
