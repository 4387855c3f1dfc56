"""The applications that workers run: importing one loads nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "tokenizers", "vllm", "xllamacpp", "pynvml", "litellm")


@pytest.mark.parametrize(
    "name", ["vllm_url_m", "transformers_url_m", "llama_cpp_url_m", "plugin_url_m", "saas_url_m"]
)
def test_importing_the_application_loads_no_library(name: str) -> None:
    code = f"import sys, {name}; print([found for found in {HEAVY} if found in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
