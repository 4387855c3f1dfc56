"""The preflight of the vLLM engine: one line for whatever cannot be served."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from gpupool.engines.vllm import VllmEngine
from gpupool.engines.vllm_arguments import parse_arguments
from gpupool.engines.vllm_model import check_model, require_vllm
from gpupool.errors import ConfigError
from gpupool.settings import Settings
from tests.demo_model import gguf_path, model_folder
from tests.refusing_hub import refusing_hub

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]


def check(model_name: Any, *engine_args: str) -> None:
    VllmEngine.check(Settings(model_name=str(model_name), engine_args=engine_args), 1)


def refusal(model_name: Any, *engine_args: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(model_name, *engine_args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_the_demo_model_passes() -> None:
    check(model_folder(), "--enforce-eager", "--max-model-len", "2048")


def test_a_missing_folder_is_named() -> None:
    assert "'/no/such/folder': no such folder" in refusal("/no/such/folder")


def test_a_folder_without_config_json_is_no_model(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(tmp_path)


def test_a_gguf_file_is_for_llama_cpp() -> None:
    assert "use --infer_type llama_cpp" in refusal(gguf_path())


def test_any_other_file_is_no_model(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.touch()
    assert "vLLM takes a folder" in refusal(weights)


@pytest.mark.usefixtures("_offline")
def test_a_hub_id_that_is_not_cached_offline_says_how_to_get_it() -> None:
    assert "hf download no-such-org/no-such-model" in refusal("no-such-org/no-such-model")


@pytest.mark.parametrize(
    ("error_code", "reason"),
    [
        ("GatedRepo", "is gated: accept its terms on its page at {hub}, then set HF_TOKEN"),
        ("RepoNotFound", "is neither a local folder nor a model at {hub}; check the spelling"),
        ("RevisionNotFound", "has no --revision 'v9'"),
        ("EntryNotFound", "has no config.json; vLLM cannot serve it"),
    ],
)
def test_what_the_hub_refuses_is_one_line(error_code: str, reason: str, tmp_path: Path) -> None:
    with refusing_hub(error_code, tmp_path) as hub:
        message = refusal("org/model", "--revision", "v9")
    assert message.startswith("--model_name 'org/model' ")
    assert reason.format(hub=hub) in message


def test_a_hub_that_does_not_answer_is_not_asked_for_files(tmp_path: Path) -> None:
    """Its client would try six times for each."""
    with refusing_hub("RepoNotFound", tmp_path, is_away=True) as hub:
        assert f"{hub} cannot be reached" in refusal("org/model")


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["NoSuchForCausalLM"], "model_type": "no_such"})
    )
    assert "vLLM says" in refusal(tmp_path)


def test_a_context_longer_than_the_models_is_refused() -> None:
    assert "max_model_len" in refusal(model_folder(), "--max-model-len", "9000000")


def test_heads_that_the_gpus_cannot_share_are_refused() -> None:
    args = parse_arguments((), model_name=str(model_folder()), trust_remote_code=False, num_gpus=2)
    with pytest.raises(ConfigError, match=r"attention heads \(9\) must be divisible") as caught:
        check_model(args)
    assert "\n" not in str(caught.value)


def test_broken_json_is_refused(tmp_path: Path) -> None:
    shutil.copytree(model_folder(), tmp_path / "model", ignore=shutil.ignore_patterns("*.safe*"))
    (tmp_path / "model" / "config.json").write_text("{")
    assert "vLLM says" in refusal(tmp_path / "model")


def test_a_build_for_other_hardware_is_refused() -> None:
    from vllm.platforms import current_platform

    is_cpu = current_platform.is_cpu()
    require_vllm(on_gpu=not is_cpu)
    with pytest.raises(ConfigError, match="--infer_type vllm: .* vLLM installed here is"):
        require_vllm(on_gpu=is_cpu)


def test_an_environment_without_vllm_says_how_to_install_it() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vllm.platforms", None)
        with pytest.raises(ConfigError, match=re.escape("[vllm]'")):
            require_vllm(on_gpu=True)


def test_refused_arguments_are_refused_before_the_model_is_looked_at() -> None:
    assert "use --port" in refusal("/no/such/folder", "--port", "1")
