"""The line that installs what an engine needs."""

from __future__ import annotations

import shlex
import sys

import pytest

from gpupool.engines.llama_cpp import LlamaCppEngine
from gpupool.errors import ConfigError
from gpupool.extras import install_line
from gpupool.settings import Settings
from tests.pool import ROOT


@pytest.mark.parametrize("extra", ["vllm", "transformers", "llama-cpp", "saas"])
def test_the_line_is_for_the_python_that_misses_it(extra: str) -> None:
    line = install_line(extra)
    assert shlex.split(line) == ["run", sys.executable, "-m", "pip", "install", f"{ROOT}[{extra}]"]


def test_an_environment_without_llama_cpp_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ConfigError, match=r"needs xllamacpp, which is not installed; run .*cpp\]"):
        LlamaCppEngine.check(Settings(model_name="model.gguf"), 1)
