"""Which classes are taken for engines."""

from __future__ import annotations

import pytest

from gpupool.engines.catalog import BUILT_IN, REQUIRED, import_engine
from gpupool.errors import ConfigError
from tests.engines.scripted import ScriptedEngine


class Old:
    """An engine that knows nothing of what was asked of engines later."""

    capabilities = default_params = check = load = tokenize = generate = score = None
    beam_search = cancel = last_progress = dead_reason = die = None


@pytest.mark.parametrize("name", BUILT_IN)
def test_our_engines_have_all_that_an_engine_needs(name: str) -> None:
    assert import_engine(name).__name__.endswith("Engine")


def test_an_engine_of_somebodys_own_is_found() -> None:
    assert import_engine("tests.engines.scripted:ScriptedEngine") is ScriptedEngine


def test_a_class_that_lacks_something_is_refused_by_its_name() -> None:
    assert "num_inflight" in REQUIRED
    with pytest.raises(ConfigError, match="the class lacks computes_in_children, num_inflight; "):
        import_engine("tests.test_catalog:Old")
