"""A Hugging Face id: from the local cache without a network, else only the headers from the hub.

Whatever talks to the hub is imported inside functions: huggingface_hub comes with the engines that
use it, and httpx would be a third of what the checks before each start import.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpupool.errors import ConfigError
from gpupool.hub import is_reachable
from gpupool.planner.tensors import Tensor, read_json

CONFIG = "config.json"


def cached_folder(model_id: str) -> Path | None:
    """The cache's folder of the model, as an engine would find it offline; None without one."""
    try:
        from huggingface_hub import errors, try_to_load_from_cache
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(model_id, CONFIG)
    except errors.HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def fetch_config(model_id: str) -> dict[str, Any]:
    """config.json from the hub, into the cache; a ConfigError in one line says what is wrong."""
    import httpx

    asked = f"--model_name {model_id!r}"
    try:
        from huggingface_hub import constants, errors, hf_hub_download
    except ImportError:
        raise ConfigError(
            f"{asked} is no folder here, and without the package huggingface_hub no model can be "
            "looked up; give a local folder, or pip install huggingface_hub"
        ) from None
    try:
        is_local = not is_reachable(constants.ENDPOINT)
        return read_json(Path(hf_hub_download(model_id, CONFIG, local_files_only=is_local)))
    except errors.GatedRepoError:
        reason = f"is gated: accept its terms at {constants.ENDPOINT}, then set HF_TOKEN"
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        reason = (
            f"is neither a local folder nor a model at {constants.ENDPOINT}; check the spelling, "
            "or set HF_TOKEN if it is private"
        )
    except errors.LocalEntryNotFoundError:
        reason = (
            f"is not in the local cache ({constants.HF_HUB_CACHE}), and {constants.ENDPOINT} "
            "cannot be reached; give a local folder, or run this where there is a network"
        )
    except errors.EntryNotFoundError:
        reason = f"has no {CONFIG}; the planner reads transformers models and GGUF files"
    except (OSError, ValueError, ImportError, httpx.HTTPError, httpx.InvalidURL) as error:
        reason = f"cannot be looked up: {' '.join(str(error).split())[:300]}"
    raise ConfigError(f"{asked} {reason}")


def fetch_tensors(model_id: str) -> tuple[Tensor, ...]:
    """The headers of its safetensors files from the hub; none where it has none, or offline."""
    import httpx
    from huggingface_hub import constants, errors, get_safetensors_metadata

    if constants.HF_HUB_OFFLINE or not is_reachable(constants.ENDPOINT):
        return ()
    try:
        found = get_safetensors_metadata(model_id)
    except (
        errors.NotASafetensorsRepoError,
        errors.SafetensorsParsingError,
        OSError,
        LookupError,
        TypeError,
        ValueError,
        httpx.HTTPError,
    ):
        return ()
    return tuple(
        Tensor(name, info.dtype, info.parameter_count, info.data_offsets[1] - info.data_offsets[0])
        for file in found.files_metadata.values()
        for name, info in file.tensors.items()
    )
