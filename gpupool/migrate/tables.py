"""Every table by its title, for the documentation and the test that walks them (pure)."""

from __future__ import annotations

from gpupool.migrate import (
    byzerllm_keys,
    flagscale_command,
    flagscale_keys,
    llama_cpp_args,
    oci,
    vllm_args,
)
from gpupool.migrate.keys import Key

TABLES: dict[str, tuple[Key, ...]] = {
    "flagscale_top": flagscale_keys.TOP,
    "flagscale_experiment": flagscale_keys.EXPERIMENT,
    "flagscale_deploy": flagscale_keys.DEPLOY,
    "flagscale_serve": flagscale_keys.ENTRY,
    "flagscale_commands": flagscale_command.COMMANDS,
    "vllm_args": vllm_args.KEYS,
    "llama_cpp_args": llama_cpp_args.KEYS,
    "byzerllm_deploy": byzerllm_keys.DEPLOY,
    "byzerllm_params": byzerllm_keys.PARAMS,
    "byzerllm_llama_cpp": llama_cpp_args.OF_PYTHON,
    "byzerllm_serve": byzerllm_keys.SERVE,
    "byzerllm_variables": byzerllm_keys.VARIABLES,
    "byzerllm_others": byzerllm_keys.OTHERS,
    "oci_environment": oci.ENVIRONMENT,
    "oci_create": oci.CREATE,
    "oci_others": oci.OTHERS,
    "oci_config": oci.CONFIG,
}
