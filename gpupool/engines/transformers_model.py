"""Is the model a model, and its way into memory (preflight process and worker process)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpupool.engines import paged_attention
from gpupool.engines.base import Report
from gpupool.engines.transformers_args import TransformersArgs
from gpupool.errors import ConfigError
from gpupool.extras import install_line
from gpupool.hub import is_reachable
from gpupool.partition import Slice
from gpupool.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

OLDEST = (5, 19)  # continuous batching had another interface before
INSTALL = install_line("transformers")
WEIGHTS = ("*.safetensors", "*.bin")
FALLBACK_CONTEXT_TOKENS = 4096


def check_library() -> None:
    """ConfigError unless torch and a transformers that we know are importable."""
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"--infer_type transformers: {error.name or error} cannot be imported; {INSTALL}"
        ) from None
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if version < OLDEST:
        raise ConfigError(
            f"--infer_type transformers needs transformers {OLDEST[0]}.{OLDEST[1]} or newer, "
            f"found {transformers.__version__}; {INSTALL}"
        )


def check_model(settings: Settings, args: TransformersArgs) -> None:
    """ConfigError unless this is a causal language model with a tokenizer. Reads no weights."""
    name = settings.model_name
    if not name:
        raise ConfigError("--model_name (HF_MODEL_NAME) is not set; give a folder or a model id")
    _check_path(name)
    config = _explained(name, lambda: read_config(settings, args))
    if not _is_causal(config):
        raise ConfigError(
            f"--model_name {name!r} is a {config.model_type!r} model, which generates no text; "
            "give a causal language model"
        )
    limit = native_context(config)
    if args.max_model_len is not None and limit is not None and args.max_model_len > limit:
        raise ConfigError(
            f"--max-model-len is {args.max_model_len}, but {name!r} was made for {limit} tokens; "
            f"use {limit} or less"
        )
    _explained(name, lambda: read_tokenizer(settings, args))


def _check_path(name: str) -> None:
    path = Path(name).expanduser()
    if name.endswith(".gguf"):
        raise ConfigError(
            f"--model_name {name!r} is a GGUF file; serve it with --infer_type llama_cpp"
        )
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"--model_name {name!r}: the folder has no config.json, so it is no transformers "
                "model; give the folder that save_pretrained wrote"
            )
        if not any(next(path.glob(pattern), None) for pattern in WEIGHTS):
            raise ConfigError(
                f"--model_name {name!r}: the folder has no weights ({' or '.join(WEIGHTS)}); "
                "copy them there"
            )
    elif path.exists():
        raise ConfigError(f"--model_name {name!r} is a file; give the model's folder")
    elif name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ConfigError(f"--model_name {name!r}: no such folder; give a folder or a model id")


def _is_causal(config: PreTrainedConfig) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    own_code = getattr(config, "auto_map", None) or {}
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in own_code


def _explained(name: str, read: Any) -> Any:
    """What `read` returns; the library's many-line errors become one line with a remedy."""
    try:
        return read()
    except Exception as error:
        raise ConfigError(f"--model_name {name!r}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    from huggingface_hub import errors as hub

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(found, hub.GatedRepoError) for found in chain):
        return "the model is gated; accept its terms on its page and set HF_TOKEN"
    if any(isinstance(found, hub.RevisionNotFoundError) for found in chain):
        return "the model has no such --revision; give a branch, tag or commit of it"
    if any(isinstance(found, hub.RepositoryNotFoundError) for found in chain):
        return "no such model; check the id, or set HF_TOKEN if it is private"
    if any(isinstance(found, hub.LocalEntryNotFoundError) for found in chain):
        return (
            "it is not in the local cache and the hub cannot be reached; "
            "download it first, or give a local folder"
        )
    if "trust_remote_code" in str(error):
        return "the model brings its own Python code; add --trust_remote_code if you trust it"
    return f"transformers cannot read it: {' '.join(str(error).split())[:300]}"


def read_config(settings: Settings, args: TransformersArgs) -> PreTrainedConfig:
    """The model's configuration."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(
        _expanded(settings.model_name),
        revision=args.revision,
        trust_remote_code=settings.trust_remote_code,
        local_files_only=_is_cut_off(settings.model_name),
    )


def _is_cut_off(name: str) -> bool:
    """A model of the hub that only the cache can have."""
    from huggingface_hub import constants

    if Path(name).expanduser().is_dir():
        return False
    return constants.HF_HUB_OFFLINE or not is_reachable(constants.ENDPOINT)


def read_tokenizer(settings: Settings, args: TransformersArgs) -> PreTrainedTokenizerBase:
    """The model's tokenizer."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        _expanded(settings.model_name),
        revision=args.revision,
        trust_remote_code=settings.trust_remote_code,
        local_files_only=_is_cut_off(settings.model_name),
    )
    return tokenizer


def read_model(
    settings: Settings, args: TransformersArgs, gpu_slice: Slice, report: Report
) -> tuple[PreTrainedModel, list[int]]:
    """The model with its weights, on the slice's GPUs or on the CPU, and its end tokens."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging as library_logging

    attention = "sdpa" if args.attn_implementation == "auto" else args.attn_implementation
    progress = _progress_class(report)
    # Loading shows a bar of its own; here it tells how far the load is.
    previous = library_logging.set_tqdm_hook(lambda _, words, named: progress(*words, **named))
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            _expanded(settings.model_name),
            revision=args.revision,
            trust_remote_code=settings.trust_remote_code,
            dtype=_dtype(args, is_gpu=bool(gpu_slice.gpus)),
            attn_implementation=attention,
            device_map=_device_map(gpu_slice),
            tqdm_class=progress,
        )
    finally:
        library_logging.set_tqdm_hook(previous)
    assert bool(gpu_slice.gpus) == (model.device.type == "cuda"), model.device
    ends = model.generation_config.eos_token_id
    # Beam search fills its gaps from the model's own defaults (Qwen's penalize repetition, say);
    # every parameter is the request's here.
    model.generation_config = GenerationConfig()
    model.requires_grad_(False)
    if not gpu_slice.gpus:
        paged_attention.install()
        if gpu_slice.cpus:
            torch.set_num_threads(len(gpu_slice.cpus))
    found = ends if isinstance(ends, list) else [ends]
    return model.eval(), [token for token in found if token is not None]


def share_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A second model on the same weights, for another thread.

    A forward pass of transformers writes to its model's configuration and restores it after
    (is_causal, in merge_with_config_defaults): a plain pass beside a step of the batch would
    sometimes attend to later tokens, and give wrong log-probabilities without any error.
    """
    tensors = [*model.parameters(), *model.buffers()]
    twin: PreTrainedModel = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    return twin


def _expanded(name: str) -> str:
    path = Path(name).expanduser()
    return str(path) if path.is_dir() else name


def _dtype(args: TransformersArgs, is_gpu: bool) -> str:
    """What the weights are stored in, but 32 bits on a CPU: most have no 16-bit arithmetic."""
    if args.dtype != "auto":
        return args.dtype
    return "auto" if is_gpu else "float32"


def _device_map(gpu_slice: Slice) -> Any:
    """CUDA_VISIBLE_DEVICES is the slice, so the slice's first GPU is number 0."""
    if not gpu_slice.gpus:
        return None
    return {"": 0} if len(gpu_slice.gpus) == 1 else "auto"


def _progress_class(report: Report) -> Any:
    """A progress bar that draws nothing and reports its fraction instead."""
    import io

    from tqdm import tqdm  # type: ignore[import-untyped,import-not-found,unused-ignore]

    class Progress(tqdm):  # type: ignore[misc]
        """What transformers and the hub's client count up."""

        monitor_interval = 0  # no thread that redraws idle bars

        def __init__(self, *words: Any, **named: Any) -> None:
            self.phase = "downloading" if named.get("unit") == "B" else "loading weights"
            # The hub's client names its bars, which the plain class does not know.
            named.pop("name", None)
            super().__init__(*words, **(named | {"file": io.StringIO(), "disable": False}))
            self._tell()

        def update(self, n: float | None = 1) -> bool | None:
            """Called by whoever works."""
            result: bool | None = super().update(n)
            self._tell()
            return result

        def _tell(self) -> None:
            report(self.phase, min(self.n / self.total, 1.0) if self.total else None)

    return Progress


def native_context(config: PreTrainedConfig) -> int | None:
    """The tokens the model was made for, if its configuration says so."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def context_tokens(config: PreTrainedConfig, args: TransformersArgs) -> int:
    """The longest sequence, prompt and completion together."""
    return args.max_model_len or native_context(config) or FALLBACK_CONTEXT_TOKENS
