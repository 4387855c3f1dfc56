"""The application of a pool of vLLM engines (worker process).

Each worker boots one engine on its slice: vLLM's EngineCore and workers start as child
processes, with tensor parallelism over the slice's GPUs. Importing this module loads nothing.
"""

from __future__ import annotations

from gpupool.app import create_app
from gpupool.engines.base import Engine, Report
from gpupool.engines.vllm import VllmEngine
from gpupool.partition import Slice
from gpupool.settings import Settings


def boot(gpu_slice: Slice, settings: Settings, report: Report) -> Engine:
    """Construct, load and warm up. The lease has bound the process to the slice before."""
    engine = VllmEngine(settings, gpu_slice)
    engine.load(report)
    return engine


app = create_app(boot)
