"""The application of a pool of llama.cpp workers (worker process).

Importing this module loads nothing; boot runs once, on the worker's boot thread.
"""

from __future__ import annotations

from gpupool.app import create_app
from gpupool.engines.base import Engine, Report
from gpupool.engines.llama_cpp import LlamaCppEngine
from gpupool.partition import Slice
from gpupool.settings import Settings


def boot(gpu_slice: Slice, settings: Settings, report: Report) -> Engine:
    """Start llama.cpp on the slice, load the model, warm it up; return it ready to answer."""
    engine = LlamaCppEngine(settings, gpu_slice)
    engine.load(report)
    return engine


app = create_app(boot)
