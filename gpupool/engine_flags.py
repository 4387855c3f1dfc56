"""Which flags are an engine's own, so that one in the wrong place is told where it belongs (pure;
the command line). Imports no engine library."""

from __future__ import annotations

from gpupool.engines.llama_cpp_arguments import ALIASES, FLAGS
from gpupool.planner.arguments import READ, UNCLEAR

SIZES = ("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp")
OTHERS = (
    "--block-size", "--chat-template", "--enable-auto-tool-choice", "--enable-chunked-prefill",
    "--enable-prefix-caching", "--generation-config", "--guided-decoding-backend",
    "--kv-transfer-config", "--limit-mm-per-prompt", "--max-logprobs", "--max-loras",
    "--max-lora-rank", "--reasoning-parser", "--seed", "--swap-space", "--task", "--tokenizer",
    "--tokenizer-mode", "--tool-call-parser",
)  # fmt: skip
"""Of vLLM, beside those that the planner knows."""
KNOWN = frozenset((*SIZES, *OTHERS, *READ, *UNCLEAR, *FLAGS, *ALIASES))


def where_it_belongs(word: str) -> str:
    """What to do with an engine's flag, for the end of a refusal; "" where it is none."""
    name = word.partition("=")[0].replace("_", "-")
    if name not in KNOWN:
        return ""
    more = "; the GPUs of a worker are --per_proc_gpus" if name in SIZES else ""
    return f", which is an engine's; engine arguments go after --, as `-- {name} ...`{more}"
