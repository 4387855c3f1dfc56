"""The application of a pool of a hosted model (worker process).

Importing this module loads nothing; boot runs once, on the worker's boot thread.
"""

from __future__ import annotations

from gpupool.app import create_app
from gpupool.engines.base import Engine, Report
from gpupool.engines.saas import SaasEngine
from gpupool.partition import Slice
from gpupool.settings import Settings


def boot(gpu_slice: Slice, settings: Settings, report: Report) -> Engine:
    """Find the key and ask the host whether it is there; return the engine ready to answer."""
    engine = SaasEngine(settings, gpu_slice)
    engine.load(report)
    return engine


app = create_app(boot)
