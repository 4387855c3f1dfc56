"""The package as pip installs it: a pool needs nothing that is only in a checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpupool.page import FILES
from tests.commands import Commands, scripted
from tests.pool import ROOT
from tests.prove import copy_tree


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(180)
def test_an_installed_package_runs_a_pool_without_the_script(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    copy_tree(source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", "--target", site, source], check=True)
    assert not list(site.rglob("start_gunicorn.sh"))
    assert (site / "gpupool" / "planner" / "machines.json").exists()
    assert (site / "gpupool" / "pools" / "pool.schema.json").exists()
    assert {path.name for path in (site / "gpupool" / "page").glob("*.*")} >= FILES.keys()
    with Commands(tmp_path) as gpupool:
        # The tests' engine lies in the checkout; gpupool itself is found before it.
        gpupool.env["PYTHONPATH"] = f"{site}:{ROOT}"
        gpupool.write(scripted())
        told = gpupool("run", "-f", gpupool.file, "--dry-run").stdout
        assert f"-m gunicorn --config {site / 'gunicorn_conf.py'}" in told
        gpupool.run()
        assert gpupool("query", "pool", "x|installed").stdout == "installed\n"
