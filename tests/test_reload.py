"""What a reload's check of new settings leaves behind."""

from __future__ import annotations

import os
import sys

import pytest

from gpupool.reload import Recheck
from gpupool.settings import Settings


def test_a_check_that_cannot_be_started_leaves_no_file_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A master lives for months, and tries at every SIGHUP."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        Recheck(Settings(model_name="M"))
    assert os.listdir("/proc/self/fd") == before
