"""Which settings have no meaning on Ray, or none without it (pure; preflight process)."""

from __future__ import annotations

from gpupool.errors import ConfigError
from gpupool.setting_types import AUTO_GPUS, HOSTED
from gpupool.settings import Settings, env_name

OF_RAY = ("ray_address", "num_replicas")
NOT_ON_RAY = {
    "workers": "use --num_replicas",
    "ready_quorum": "Serve answers from the first ready replica on",
    "key_concurrency": "limits of keys are counted in one machine's memory",
    "key_tokens_per_minute": "limits of keys are counted in one machine's memory",
    "heartbeat_timeout_s": "Serve checks its replicas itself",
    "load_timeout_s": "Serve waits for a load as long as it takes",
    "log_format": "the lines of Ray's processes are among ours, as text",
}
"""By field: what is there instead, or why there is nothing."""


def refuse_meaningless(settings: Settings) -> None:
    """ConfigError for the first setting that would change nothing, or cannot be had."""
    if settings.launcher != "ray":
        for field in OF_RAY:
            if (value := getattr(settings, field)) is not None:
                raise ConfigError(
                    f"{_given(field, value)}, which means something on Ray only; add --launcher "
                    "ray, or leave it out"
                )
        return
    for field, why in NOT_ON_RAY.items():
        value = getattr(settings, field)
        if value != Settings.model_fields[field].default:
            raise ConfigError(f"{_given(field, value)}, but not with --launcher ray: {why}")
    if settings.per_proc_gpus == AUTO_GPUS:
        raise ConfigError(
            f"{_given('per_proc_gpus', 'auto')}, which is found out for one machine only; give a "
            "number, as `gpupool plan` finds it"
        )
    if settings.infer_type == HOSTED:
        raise ConfigError(
            f"{_given('infer_type', HOSTED)}, a hosted model, which needs no cluster; leave "
            "--launcher out"
        )
    if settings.ray_address is not None and settings.cuda_visible_devices is not None:
        raise ConfigError(
            f"{_given('cuda_visible_devices', settings.cuda_visible_devices)}, but the GPUs of a "
            "cluster are given to Ray when its nodes start; leave it out"
        )


def _given(field: str, value: object) -> str:
    return f"--{field} ({env_name(field)}) is {value!r}"
