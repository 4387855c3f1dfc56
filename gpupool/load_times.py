"""How long the last load of a model took on this machine (worker process, boot thread).

One small file per model, engine, number of GPUs and kind of GPU, in the user's cache folder. All
of it is best effort: without the file, or without a place for it, a load has no estimate.
"""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import asdict, dataclass

from gpupool import kept
from gpupool.partition import Slice
from gpupool.settings import Settings

log = logging.getLogger(__name__)

DEFAULT_RETRY_AFTER_S = 5
MAX_RETRY_AFTER_S = 60


@dataclass(frozen=True, slots=True)
class Load:
    """What loads of the same length have in common."""

    model: str
    engine: str
    num_gpus: int
    device: str  # the GPU's name, or "cpu"


def load_of(settings: Settings, gpu_slice: Slice) -> Load:
    """The load of this model on this slice."""
    model = settings.model_name
    if os.path.exists(model):
        model = os.path.realpath(model)
    device = gpu_slice.gpus[0].name if gpu_slice.gpus else "cpu"
    return Load(model, settings.infer_type, len(gpu_slice.gpus), device)


def read(load: Load) -> float | None:
    """Seconds that the last such load took, or None."""
    try:
        found = json.loads(kept.path_of("load", asdict(load)).read_bytes())
        seconds = float(found["seconds"]) if found["load"] == asdict(load) else math.nan
    except (OSError, RuntimeError, ValueError, TypeError, KeyError):
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def write(load: Load, seconds: float) -> None:
    """Remember a load that has just succeeded."""
    try:
        path = kept.path_of("load", asdict(load))
        kept.replace(path, json.dumps({"load": asdict(load), "seconds": round(seconds, 3)}))
    except (OSError, RuntimeError) as error:
        log.debug("the time of the load is not kept: %s", error)


def retry_after_s(for_s: float, estimate_s: float | None) -> int:
    """When to ask again whether a load that began `for_s` ago is over: whole seconds."""
    if estimate_s is None:
        return DEFAULT_RETRY_AFTER_S
    return min(max(math.ceil(estimate_s - for_s), 1), MAX_RETRY_AFTER_S)
