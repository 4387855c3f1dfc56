"""The application of a pool of transformers workers (worker process).

Importing this module loads nothing; boot runs once, on the worker's boot thread.
"""

from __future__ import annotations

from gpupool.api.openai.own.app import find_handlers
from gpupool.app import create_app
from gpupool.engines.base import Engine, Report
from gpupool.engines.transformers import TransformersEngine
from gpupool.partition import Slice
from gpupool.settings import Settings


def boot(gpu_slice: Slice, settings: Settings, report: Report) -> Engine:
    """Take the slice, load the model onto it, warm its batch up; return it ready to answer."""
    engine = TransformersEngine(settings, gpu_slice)
    engine.load(report)
    find_handlers()  # Now, and not while the first request of the OpenAI API waits.
    return engine


app = create_app(boot)
