"""vLLM's own server on a `PacedClient`: what `vllm serve` runs in front of its engine (a process of
its own).

Imports vLLM only inside functions.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from benchmarks.paced_client import PacedClient
from gpupool.engines.vllm_arguments import parse_arguments
from gpupool.engines.vllm_client import read_config


def main(model: str, served_name: str, port: str, *engine_flags: str) -> None:
    """As vLLM's `run_server`, but with another client."""
    import uvloop

    args: Any = parse_arguments(
        engine_flags,
        model_name=model,
        served_names=[served_name],
        trust_remote_code=False,
        num_gpus=0,
    )
    args.host, args.port = "127.0.0.1", int(port)
    uvloop.run(_serve(args))


async def _serve(args: Namespace) -> None:
    from vllm.entrypoints.launchers.api_server.entry import build_and_serve
    from vllm.entrypoints.launchers.launcher import setup_server

    client = PacedClient(read_config(args))
    address, sock = setup_server(args, reuse_port=False)
    try:
        ending = await build_and_serve(client, address, sock, args)
        await ending
    finally:
        sock.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
