"""Whole pools of models from ModelScope, whose package is a stand-in here: there is no network."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests import demo_model
from tests.modelscope import Hub
from tests.pool import Pool
from tests.server.test_start import refusal

pytestmark = [pytest.mark.server, pytest.mark.model]

FLAGS = ("--model_source", "modelscope", "--model_name")


def test_two_workers_load_a_model_from_modelscope(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    hub.add("demo/smol", **{"smol__gguf": demo_model.gguf_path()})
    flags = (*FLAGS, "demo/smol", "--infer_type", "llama_cpp", "--workers", "2")
    with Pool(tmp_path, *flags, "--", "--ctx-size", "512", env=hub.env()) as pool:
        pool.wait_ready(workers=2)
        assert "Paris" in pool.infer("The capital of France is", max_tokens=8, temperature=0)[0]
        assert pool.get("/v1/models")[1]["data"][0]["id"] == "demo/smol"
    assert {model for model, *_ in hub.calls()} == {"demo/smol"}


def test_an_unknown_model_is_refused_at_the_start(tmp_path: Path) -> None:
    flags = (*FLAGS, "demo/none", "--infer_type", "llama_cpp")
    assert "'demo/none': no such model at ModelScope" in refusal(*flags, env=Hub(tmp_path).env())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("engine", "args"),
    [("transformers", ()), ("vllm", ("--enforce-eager", "--max-model-len", "512"))],
)
def test_a_folder_from_modelscope_asks_no_hub(
    engine: str, args: tuple[str, ...], tmp_path: Path
) -> None:
    hub = Hub(tmp_path)
    model = demo_model.model_folder()
    hub.add("demo/smol", **{path.name.replace(".", "__"): path for path in model.iterdir()})
    with socket.create_server(("127.0.0.1", 0)) as hugging_face:
        hugging_face.setblocking(False)
        endpoint = f"http://127.0.0.1:{hugging_face.getsockname()[1]}"
        env = hub.env() | {"HF_ENDPOINT": endpoint, "VLLM_CPU_KVCACHE_SPACE": "1"}
        flags = (*FLAGS, "demo/smol", "--infer_type", engine, "--", *args)
        with Pool(tmp_path, *flags, env=env) as pool:
            pool.wait_ready(deadline_s=500)
            answer = pool.infer("The capital of France is", max_tokens=8, temperature=0)[0]
            assert "Paris" in answer
        with pytest.raises(BlockingIOError):
            hugging_face.accept()
