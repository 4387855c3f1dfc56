"""What the transformers engine refuses before anything is forked, and in which words."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from gpupool.engines.transformers import TransformersEngine
from gpupool.errors import ConfigError
from gpupool.settings import Settings
from tests.demo_model import gguf_path, model_folder
from tests.refusing_hub import refusing_hub

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The demo model's folder, with a link for the weights, to be spoiled."""
    target = tmp_path / "model"
    target.mkdir()
    for file in model_folder().iterdir():
        if file.suffix == ".safetensors":
            (target / file.name).symlink_to(file)
        else:
            shutil.copy(file, target)
    return target


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refusal(model: object, *engine_args: str, **settings: Any) -> str:
    """The one line that refuses these settings."""
    with pytest.raises(ConfigError) as error:
        TransformersEngine.check(
            Settings(model_name=str(model), engine_args=engine_args, **settings), 1
        )
    message = str(error.value)
    assert "\n" not in message
    return message


def test_good_folder_passes(folder: Path) -> None:
    TransformersEngine.check(Settings(model_name=str(folder)), 1)


def test_check_reads_no_weights(folder: Path) -> None:
    (weights,) = folder.glob("*.safetensors")
    weights.unlink()
    weights.write_bytes(b"not weights")
    TransformersEngine.check(Settings(model_name=str(folder)), 1)


def test_no_model_is_refused() -> None:
    assert "is not set" in refusal("")


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "missing")


def test_gguf_file_is_for_llama_cpp() -> None:
    assert "--infer_type llama_cpp" in refusal(gguf_path())


def test_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"")
    assert "is a file" in refusal(file)


def test_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder)


def test_folder_without_weights_is_refused(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()
    assert "no weights" in refusal(folder)


def test_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "transformers cannot read it" in refusal(folder)


def test_unknown_architecture_is_refused(folder: Path) -> None:
    change_config(folder, model_type="starship")
    assert "starship" in refusal(folder)


def test_model_that_generates_no_text_is_refused(folder: Path) -> None:
    change_config(folder, model_type="vit")
    assert "generates no text" in refusal(folder)


def test_model_with_its_own_code_needs_trust(folder: Path) -> None:
    code = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    change_config(folder, model_type="own", auto_map=code)
    assert "--trust_remote_code" in refusal(folder)


def test_model_id_that_is_not_cached_is_refused_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "not in the local cache" in refusal("nobody/no-such-model")


@pytest.mark.parametrize(
    ("error_code", "reason"),
    [
        ("GatedRepo", "the model is gated; accept its terms on its page and set HF_TOKEN"),
        ("RepoNotFound", "no such model; check the id, or set HF_TOKEN if it is private"),
        ("RevisionNotFound", "the model has no such --revision"),
        ("EntryNotFound", "transformers cannot read it: "),
    ],
)
def test_what_the_hub_refuses_is_one_line(error_code: str, reason: str, tmp_path: Path) -> None:
    with refusing_hub(error_code, tmp_path):
        assert f"--model_name 'org/model': {reason}" in refusal("org/model", "--revision", "v9")


def test_a_hub_that_does_not_answer_is_not_asked_for_files(tmp_path: Path) -> None:
    """Its client would try six times for each."""
    with refusing_hub("RepoNotFound", tmp_path, is_away=True):
        assert "the hub cannot be reached" in refusal("org/model")


def test_context_beyond_the_model_is_refused(folder: Path) -> None:
    assert "was made for 8192 tokens" in refusal(folder, "--max-model-len", "8193")


def test_flag_of_the_pool_after_the_dashes_is_refused(folder: Path) -> None:
    assert "may not follow --" in refusal(folder, "--port", "80")


def test_missing_library_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "[transformers]'" in refusal("any/model")


def test_library_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.setattr(transformers, "__version__", "5.16.1")
    assert "5.19 or newer, found 5.16.1" in refusal("any/model")
