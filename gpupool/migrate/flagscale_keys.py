"""The keys of FlagScale's `serve` configuration, section by section (pure; the import command)."""

from __future__ import annotations

from typing import Any

from gpupool.migrate.keys import (
    Draft,
    Key,
    Refused,
    also_refuses,
    needless,
    refuses,
    sets,
    sizes,
    text,
    truth,
    whole,
)

ONE_MACHINE = "a pool is one machine's; start one on each, and name them all in nginx"
NO_SSH = "nothing is started on other machines; the pool is started where the command is"
NO_AUTOSCALING = (
    "workers keep their GPUs and requests wait in one queue; give num_replicas, a number or auto "
    "for every GPU"
)
OWN_CODE = "code of your own is an engine here: --infer_type package.module:Class"
NO_DISAGGREGATION = "every worker does prefill and decode; leave it out, and add workers"
TUNER = "only action=auto_tune reads it; `gpupool plan` says what fits without trying"
PROFILE = "`python -m benchmarks` measures; the pool needs none of it"
ONLY_PLAIN = "routes are /infer and /v1, by these names; a prefix is the proxy's"
ONLY_SERVE = "only `serve` is taken over; a pool trains and tunes nothing"
ONLY_NVIDIA = "a pool runs on NVIDIA GPUs, or on the CPU"
NO_V0 = "vLLM's engine before V1 is gone; leave it out"
TUNED = "`gpupool plan` says what fits, and --per_proc_gpus auto takes it; use action=run"
ACTIONS = {
    "run": "it is `gpupool run` here",
    "stop": "it is `gpupool stop` here",
    "test": "it is `gpupool query` here",
}
ENGINES = {"vllm": "vllm", "llama_cpp": "llama_cpp", "transformers": "transformers"}
SGLANG = "the engines are vllm, transformers and llama_cpp; vllm serves SGLang's models too"


def take_modelscope(draft: Draft, value: Any) -> None:
    """VLLM_USE_MODELSCOPE."""
    if truth(value):
        draft.set("model_source", "modelscope")


def _take_name(draft: Draft, value: Any) -> None:
    draft.name = str(value)


def _take_action(draft: Draft, value: Any) -> None:
    if value not in ACTIONS:
        raise Refused(TUNED)
    draft.notes.append(f"action {value}: {ACTIONS[value]}")


def _take_id(draft: Draft, value: Any) -> None:
    draft.name = draft.name or str(value)


def _take_engine(draft: Draft, value: Any) -> None:
    if value not in ENGINES:
        raise Refused(SGLANG)
    draft.set("infer_type", ENGINES[value])


def _take_replicas(draft: Draft, value: Any) -> None:
    if value == "auto":
        draft.is_everywhere = True
        draft.notes.append("num_replicas auto: one worker per slice")
    else:
        draft.set("workers", whole(value))


def _take_variable(draft: Draft, pair: tuple[str, Any]) -> None:
    """A variable that is no setting: the engines inherit the environment of the start."""
    name, value = pair
    quoted = str(value).replace("'", "'\\''")
    draft.commands.append(f"export {name}='{quoted}'")


def _take_before(draft: Draft, value: Any) -> None:
    if value:
        draft.commands.insert(0, str(value))


def _take_after(draft: Draft, value: Any) -> None:
    if value:
        draft.notes.append(f"after `gpupool stop`: {value}")


EXPERIMENT = (
    Key("exp_name", "qwen", _take_name, says="the pool's name"),
    needless("exp_dir", "outputs/qwen", "`gpupool logs` shows the log, wherever it is"),
    needless("task.type", "serve", "that is what a pool does", ["serve"], ONLY_SERVE),
    also_refuses("task.type", "train", ONLY_SERVE),
    Key("task.backend", "vllm", _take_engine, {"infer_type": "vllm"}),
    refuses("task.entrypoint", "my/serve.py", OWN_CODE),
    needless("runner.type", "ssh", NO_SSH, ["ssh"], NO_SSH),
    also_refuses("runner.type", "cloud", NO_SSH),
    refuses("runner.hostfile", "hosts.txt", ONE_MACHINE),
    needless("runner.docker", "serve-image", "run gpupool inside that container, if you want one"),
    needless("runner.ssh_port", 22, NO_SSH),
    refuses("runner.nnodes", 2, ONE_MACHINE, [1]),
    needless("runner.nproc_per_node", 8, "the GPUs are counted; CUDA_VISIBLE_DEVICES chooses some"),
    needless("runner.master_addr", "localhost", NO_SSH),
    needless("runner.master_port", 29500, "workers get ports of their own by themselves"),
    needless(
        "runner.device_type", "gpu", "the machine's own", ["gpu", "cuda", "nvidia"], ONLY_NVIDIA
    ),
    also_refuses("runner.device_type", "npu", ONLY_NVIDIA),
    needless("runner.no_shared_fs", False, NO_SSH),
    needless("runner.enable_monitoring", True, "/metrics and /pool are always there"),
    sets("runner.cli_args.model_path", "/models/m", "model_name"),
    sets("runner.cli_args.port", 9000, "port", whole),
    sets("envs.CUDA_VISIBLE_DEVICES", "0,1", "cuda_visible_devices", text),
    needless("envs.VLLM_USE_V1", 1, "vLLM has no other engine", [1, "1"], NO_V0),
    also_refuses("envs.VLLM_USE_V1", 0, NO_V0),
    Key("envs.VLLM_USE_MODELSCOPE", "True", take_modelscope, {"model_source": "modelscope"}),
    refuses(
        "envs.USE_FLAGGEMS", True, "FlagGems' kernels are in FlagScale's own vLLM; leave it out",
        [False, "false", 0, "0"],
    ),
    refuses("envs.nodes_envs", {"10.0.0.1": {"A": 1}}, ONE_MACHINE),
    Key(
        "envs.*",
        ("CUDA_DEVICE_MAX_CONNECTIONS", 1),
        _take_variable,
        says="exported before the start; the engines inherit it",
    ),
    Key("cmds.before_start", "source ./env.sh", _take_before, says="a line before the start"),
    Key("cmds.after_stop", "rm -r /tmp/x", _take_after, says="a line after the stop"),
    needless("auto_tuner.engines", ["vllm"], TUNER),
    needless("auto_tuner.space", {"tensor_model_parallel_size": [1, 2]}, TUNER),
    needless("auto_tuner.cards", 8, TUNER),
    needless("auto_tuner.control", {"interval": 10, "run_best": False}, TUNER),
    needless("auto_tuner.performance", {"metric": "total_token_throughput"}, TUNER),
)  # fmt: skip
"""Below `experiment`; `deploy` and `runner.deploy` are DEPLOY."""

DEPLOY = (
    sets("port", 8000, "port", whole),
    needless("use_fs_serve", True, "replicas are the pool's workers, with or without it"),
    needless("name", "/", ONLY_PLAIN, ["/", ""], ONLY_PLAIN),
    also_refuses("name", "/generate", ONLY_PLAIN),
    refuses("request", {"args": ["prompt"], "types": ["str"]}, f"{ONLY_PLAIN}; {OWN_CODE}"),
    refuses("enable_composition", True, f"each model is a pool of its own; {OWN_CODE}", [False]),
    refuses("working_dir", "/srv/code", f"{OWN_CODE}, which PYTHONPATH finds"),
    needless("command_line_mode", True, "arguments of vllm serve are taken as they are"),
    sizes("models.*.num_gpus", 2, "gpus", {"per_proc_gpus": 2}),
    refuses("prefill_decode_disaggregation", True, NO_DISAGGREGATION, [False]),
    *(
        refuses(name, example, NO_DISAGGREGATION)
        for name, example in (
            ("prefill_num", 2), ("prefill_address", "10.0.0.1"), ("decode_num", 2),
            ("decode_address", "10.0.0.2"), ("prefill_decode_strategy", "slo"),
            ("decode_gpu_memory_utilization", 0.7), ("prefill_decode_log_dir", "logs"),
            ("pd_proxy_port", 7001),
        )
    ),
)  # fmt: skip
"""`deploy`, wherever it stands: below experiment.runner, experiment, or in the serve file."""

ENTRY = (
    Key("serve_id", "chat", _take_id, says="the pool's name, where there are several"),
    Key("engine", "vllm", _take_engine, {"infer_type": "vllm"}),
    also_refuses("engine", "sglang", SGLANG),
    Key("resources.num_replicas", 4, _take_replicas, {"workers": 4}),
    Key("resources.num_replicas", "auto", _take_replicas, says="one worker per slice"),
    sizes("resources.num_gpus", 2, "gpus", {"per_proc_gpus": 2}),
    *(
        refuses(f"resources.{name}", example, NO_AUTOSCALING)
        for name, example in (
            ("min_replicas", 1), ("max_replicas", 4), ("downscale_delay_s", 600),
            ("upscale_delay_s", 30), ("target_ongoing_requests", 2),
        )
    ),
    *(
        needless(f"profile.{name}", example, PROFILE)
        for name, example in (
            ("prefix_len", 0), ("input_len", 1024), ("output_len", 1024), ("num_prompts", 200),
            ("range_ratio", 0.5),
        )
    ),
    refuses("module", "my/models.py", OWN_CODE),
    refuses("name", "Model1", OWN_CODE),
    refuses("depends", ["A"], f"each model is a pool of its own; {OWN_CODE}"),
)  # fmt: skip
"""One of the `serve` list; engine_args and engine_args_specific go by the engine's own table."""

TOP = (
    *(Key("action", action, _take_action, says=said) for action, said in ACTIONS.items()),
    also_refuses("action", "auto_tune", TUNED),
    needless("hydra", {"run": {"dir": "x"}}, "nothing of Hydra is needed"),
    refuses("node_args", {"10.0.0.1": {"engine_args": {}}}, ONE_MACHINE),
)  # fmt: skip
"""Beside `experiment` and `serve`."""

TABLES = {
    "": TOP,
    "experiment.": EXPERIMENT,
    "deploy.": DEPLOY,
    "serve[].": ENTRY,
}
"""By what stands before the key."""
