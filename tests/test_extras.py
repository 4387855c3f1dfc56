"""The line that installs what an engine needs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from gpupool.engines.llama_cpp import LlamaCppEngine
from gpupool.errors import ConfigError
from gpupool.extras import install_line
from gpupool.model_source import look_up
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


def test_an_environment_without_modelscope_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(ConfigError) as refused:
        look_up(Settings(model_name="org/m", model_source="modelscope"), "vllm")
    assert f"is not installed; {install_line('modelscope')}, or give" in str(refused.value)


@pytest.mark.parametrize("file", ["dispatcher.py", "URLs/vllm_url.py", "URLs/transformers_url.py"])
def test_a_file_that_another_python_runs_is_refused_in_one_line(file: str) -> None:
    """-S: a Python without the environment's packages."""
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-s", str(ROOT / file), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert re.match(r"\w+: .*python.* has no package '\w+'; use the Python of the", line)
    assert line.endswith(f"or {install_line()}")
