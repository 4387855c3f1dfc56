"""--model_source modelscope: which files are fetched, and what the engines are given."""

from __future__ import annotations

import json
import re
import sys
import threading
from pathlib import Path

import pytest

from gpupool import model_source
from gpupool.errors import ConfigError, GpupoolError
from gpupool.extras import install_line
from gpupool.model_source import fetch, folder_of, look_up
from gpupool.settings import Settings, read_settings
from tests.modelscope import STUB, Hub

INDEX = json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}})


@pytest.fixture(name="hub")
def _hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path)
    for name, value in hub.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(STUB))
    monkeypatch.delitem(sys.modules, "modelscope", raising=False)
    hub.add("org/m", config__json="{}", model__safetensors="w", other__gguf="g", x__pth="p")
    return hub


def settings(name: str, engine: str = "transformers", **more: object) -> Settings:
    return Settings(model_name=name, model_source="modelscope", infer_type=engine, **more)


def fetched(name: str, engine: str = "transformers", **more: object) -> Settings:
    return fetch(settings(name, engine, **more), lambda phase, fraction: None)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELSCOPE_STUB_HUB")


def test_an_engine_is_given_a_folder_and_serves_the_id(hub: Hub) -> None:
    found = fetched("org/m")
    assert {path.name for path in Path(found.model_name).iterdir()} == {
        "config.json",
        "model.safetensors",
    }
    assert found.served_model_name == ("org/m",)
    assert fetched("org/m", served_model_name="mine").served_model_name == ("mine",)


def test_llama_cpp_is_given_the_one_gguf_file(hub: Hub) -> None:
    assert fetched("org/m", "llama_cpp").model_name.endswith("/org/m/other.gguf")


def test_several_gguf_files_have_to_be_named(hub: Hub) -> None:
    hub.add("org/g", q4__gguf="4", q8__gguf="8")
    with pytest.raises(ConfigError, match=r"has q4.gguf, q8.gguf; .* as org/g/FILE.gguf"):
        fetched("org/g", "llama_cpp")


def test_a_named_file_is_fetched_alone(hub: Hub) -> None:
    hub.add("org/g", q4__gguf="4", q8__gguf="8")
    path = Path(fetched("org/g/q8.gguf", "llama_cpp").model_name)
    assert path.read_text() == "8"
    assert not path.with_name("q4.gguf").exists()
    with pytest.raises(ConfigError, match="has no file 'q5.gguf'"):
        fetched("org/g/q5.gguf", "llama_cpp")


def test_a_split_file_is_fetched_whole(hub: Hub) -> None:
    hub.add("org/s", **{f"q-0000{i}-of-00002__gguf": "x" for i in (1, 2)})
    path = Path(fetched("org/s", "llama_cpp").model_name)
    assert path.name == "q-00001-of-00002.gguf"
    path = Path(fetched("org/s/q-00001-of-00002.gguf", "llama_cpp").model_name)
    assert path.with_name("q-00002-of-00002.gguf").exists()


@pytest.mark.parametrize("name", ["/models/m", "./m", "~/m"])
def test_a_path_is_nobodys_id(name: str, hub: Hub) -> None:
    assert fetched(name).model_name == name


def test_ids_are_hugging_faces_unless_it_is_said(hub: Hub) -> None:
    plain = Settings(model_name="org/m", infer_type="transformers")
    assert look_up(plain, "transformers") == (plain, True)
    assert not (hub.cache / "calls").exists()


def test_an_unknown_model_is_refused_before_and_during_the_load(hub: Hub) -> None:
    for act in (lambda: fetched("org/none"), lambda: look_up(settings("org/none"), "vllm")):
        with pytest.raises(ConfigError, match="'org/none': no such model at ModelScope"):
            act()


def test_before_the_load_only_small_files_are_fetched(hub: Hub) -> None:
    found, is_whole = look_up(settings("org/m"), "transformers")
    assert not is_whole
    assert [path.name for path in Path(found.model_name).iterdir()] == ["config.json"]
    fetched("org/m")
    assert look_up(settings("org/m"), "transformers")[1]


def test_a_download_that_was_cut_off_is_not_whole(hub: Hub) -> None:
    hub.add("org/i", **{"model__safetensors__index__json": INDEX, "m-1__safetensors": "a"})
    fetched("org/i")
    assert not look_up(settings("org/i"), "vllm")[1]
    hub.add("org/i", **{"m-2__safetensors": "b"})
    fetched("org/i")
    assert look_up(settings("org/i"), "vllm")[1]


def test_what_is_here_whole_needs_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fetched("org/m").model_name
    offline(monkeypatch)
    assert look_up(settings("org/m"), "transformers")[1]
    assert fetched("org/m").model_name == before


def test_a_hub_that_cannot_be_reached_may_come_back(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch)
    with pytest.raises(GpupoolError, match="no route") as caught:
        fetched("org/m")
    assert not isinstance(caught.value, ConfigError)  # so it is tried again
    with pytest.raises(ConfigError, match="no route"):
        look_up(settings("org/m"), "vllm")


def test_without_the_package_it_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    for act in (lambda: fetched("org/m"), lambda: look_up(settings("org/m"), "vllm")):
        with pytest.raises(ConfigError, match=re.escape(install_line("modelscope"))):
            act()


def test_one_worker_downloads_at_a_time(hub: Hub) -> None:
    phases: list[str] = []
    load = threading.Thread(
        target=fetch, args=(settings("org/m"), lambda phase, fraction: phases.append(phase))
    )
    with model_source._alone("org/m/another.gguf"):
        load.start()
        load.join(0.3)
        assert phases == ["looking for the model at ModelScope"]
        assert not (hub.cache / "calls").exists()
    load.join(30)
    assert phases[-1] == "downloading from ModelScope"
    assert len(hub.calls()) == 1


def test_the_plan_reads_the_folder(hub: Hub) -> None:
    assert folder_of("org/m", "modelscope").endswith("/models/org/m")
    assert folder_of("org/m", "huggingface") == "org/m"
    with pytest.raises(ConfigError, match="--model_source is 'modelscop'"):
        folder_of("org/m", "modelscop")


def test_an_unknown_source_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUPOOL_MODEL_SOURCE", "hf")
    with pytest.raises(ConfigError, match="neither huggingface nor modelscope"):
        read_settings()
