"""`gpupool plan`: whether a model fits, and how to cut the GPUs (a process of its own)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

import typer

from gpupool.calibration import measured_overheads
from gpupool.commands.spelling import flag
from gpupool.errors import ConfigError
from gpupool.planner import machine as machines
from gpupool.planner.advice import Plan, make_plan
from gpupool.planner.checkpoint import Checkpoint, read_checkpoint
from gpupool.planner.dtypes import check_quantization, kv_value_bytes
from gpupool.planner.fit import MAX_TOKENS, TYPICAL_LENGTH, UTILIZATION, Ask
from gpupool.planner.option import Machine
from gpupool.planner.render import render
from gpupool.planner.report import as_aqua, as_json

EXIT_NO_ROOM = 1


def plan(
    model_name: Annotated[
        str, flag("model_name", "a local folder, a .gguf file or a Hugging Face id")
    ],
    gpu: Annotated[
        str | None, flag("gpu", "GPUs to plan for instead of this machine's: '8x A100-80GB'")
    ] = None,
    shape: Annotated[str | None, flag("shape", "an Oracle Cloud shape: BM.GPU.H100.8")] = None,
    per_proc_gpus: Annotated[
        int | None, flag("per_proc_gpus", "only this number of GPUs per worker", min=1)
    ] = None,
    max_model_len: Annotated[
        int | None,
        flag("max_model_len", "context; default: the model's own", min=1, max=MAX_TOKENS),
    ] = None,
    length: Annotated[
        int,
        flag(
            "length", "tokens of a usual request, for how many run at once", min=1, max=MAX_TOKENS
        ),
    ] = TYPICAL_LENGTH,
    dtype: Annotated[
        str, flag("dtype", "type of the weights: auto, bfloat16, float16, float32")
    ] = "auto",
    kv_cache_dtype: Annotated[str, flag("kv_cache_dtype", "auto or fp8")] = "auto",
    gpu_memory_utilization: Annotated[
        float, flag("gpu_memory_utilization", "share of a GPU's memory", min=0.01, max=1)
    ] = UTILIZATION,
    max_num_seqs: Annotated[
        int | None,
        flag("max_num_seqs", "sequences in a step; default: vLLM's own", min=1, max=MAX_TOKENS),
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None,
        flag("max_num_batched_tokens", "tokens in a step; default: vLLM's", min=1, max=MAX_TOKENS),
    ] = None,
    quantization: Annotated[
        str | None, flag("quantization", "what vLLM makes of 16-bit weights: fp8, mxfp8, ...")
    ] = None,
    enforce_eager: Annotated[bool, flag("enforce_eager", "no CUDA graphs")] = False,
    cuda_visible_devices: Annotated[
        str | None, flag("cuda_visible_devices", "GPUs of this machine to plan for")
    ] = None,
    as_json_: Annotated[bool, flag("json", "print JSON")] = False,
    aqua: Annotated[
        bool, flag("aqua", "print JSON as OCI AQUA does; without --gpu and --shape: all shapes")
    ] = False,
) -> None:
    """Does a model fit, and how to cut the GPUs; loads nothing. Exit 1: nothing fits."""
    ask = Ask(
        max_model_len=max_model_len,
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        gpu_memory_utilization=gpu_memory_utilization,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        typical_length=length,
        is_eager=enforce_eager,
        quantization=quantization,
    )
    check_quantization(quantization)
    found = read_checkpoint(model_name, dtype)
    kv_value_bytes(kv_cache_dtype, found.subject.model.dtype)
    plans = [
        (
            name,
            make_plan(
                found.subject,
                machine,
                ask,
                per_proc_gpus=per_proc_gpus,
                measured=measured_overheads(found.subject.name, machine, ask),
            ),
        )
        for name, machine in _machines(gpu, shape, cuda_visible_devices, is_any=aqua)
    ]
    typer.echo(_shown(plans, found, is_json=as_json_, is_aqua=aqua), nl=False)
    if not any(made.throughput for _, made in plans):
        raise typer.Exit(EXIT_NO_ROOM)


def _machines(
    gpu: str | None, shape: str | None, visible: str | None, *, is_any: bool
) -> Iterator[tuple[str, Machine]]:
    """The machines to plan for, by name."""
    if gpu and shape:
        raise ConfigError(f"--gpu {gpu!r} and --shape {shape!r}: give one of them")
    if gpu:
        yield gpu, machines.of_cards(gpu)
    elif shape:
        yield shape, machines.of_shape(shape)
    elif is_any:
        yield from ((name, machines.of_shape(name)) for name in machines.shapes())
    else:
        asked = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
        here = machines.here(asked)
        if here is None:
            raise ConfigError(
                "this machine has no GPU to plan for; describe one by --gpu '8x A100-80GB' or "
                "--shape BM.GPU.H100.8"
            )
        yield here.name, replace(here, visible=visible)


def _shown(
    plans: list[tuple[str, Plan]], found: Checkpoint, *, is_json: bool, is_aqua: bool
) -> str:
    if is_aqua:
        return json.dumps(as_aqua(plans), indent=2) + "\n"
    [(_, made)] = plans
    if is_json:
        return json.dumps(as_json(made, found.source, found.bytes_by_type), indent=2) + "\n"
    return render(made, found.source, found.bytes_by_type)
