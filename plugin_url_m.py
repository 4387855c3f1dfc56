"""The application of a pool whose engine is somebody's own (worker process).

`--infer_type package.module:EngineClass`; the class is what gpupool/engines/base.py describes.
Importing this module loads nothing.
"""

from __future__ import annotations

from gpupool.app import create_app
from gpupool.engines.base import Engine, Report
from gpupool.engines.catalog import import_engine
from gpupool.partition import Slice
from gpupool.settings import Settings


def boot(gpu_slice: Slice, settings: Settings, report: Report) -> Engine:
    """Import the class, construct, load and warm up."""
    engine = import_engine(settings.infer_type)(settings, gpu_slice)
    engine.load(report)
    return engine


app = create_app(boot)
