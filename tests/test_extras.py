"""The line that installs what an engine needs."""

from __future__ import annotations

import shlex
import sys

import pytest

from gpupool.extras import install_line
from tests.pool import ROOT


@pytest.mark.parametrize("extra", ["vllm", "transformers", "llama-cpp"])
def test_the_line_is_for_the_python_that_misses_it(extra: str) -> None:
    line = install_line(extra)
    assert shlex.split(line) == ["run", sys.executable, "-m", "pip", "install", f"{ROOT}[{extra}]"]
