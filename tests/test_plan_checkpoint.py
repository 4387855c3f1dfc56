"""What the planner reads: folders, caches, GGUF files and the hub; never weights, never a network
that is not there."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gpupool.errors import ConfigError
from gpupool.gguf_file import GgufTensor
from gpupool.planner.checkpoint import Checkpoint, read_checkpoint
from gpupool.planner.gguf import TYPES, bytes_by_type
from gpupool.planner.hub import PROXIES, is_reachable
from gpupool.planner.split import weight_bytes
from tests.demo_model import f32_gguf, gguf_path, model_folder

SMALL = {
    "model_type": "llama",
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 10,
    "torch_dtype": "bfloat16",
}
WIDTHS = {"F32": 4, "BF16": 2, "I32": 4, "F8_E4M3": 1}


def header(tensors: dict[str, tuple[str, int]]) -> tuple[bytes, int]:
    """The beginning of a safetensors file, and how many bytes of weights follow."""
    listed, at = {}, 0
    for name, (dtype, count) in tensors.items():
        end = at + count * WIDTHS[dtype]
        listed[name] = {"dtype": dtype, "shape": [count], "data_offsets": [at, end]}
        at = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **listed}).encode()
    return struct.pack("<Q", len(text)) + text, at


def write(path: Path, tensors: dict[str, tuple[str, int]]) -> None:
    start, length = header(tensors)
    path.write_bytes(start)
    os.truncate(path, len(start) + length)


def folder(path: Path, tensors: dict[str, tuple[str, int]], **config: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(SMALL | config))
    write(path / "model.safetensors", tensors)
    return path


def read_bytes(found: Checkpoint) -> int:
    assert found.subject.stored is not None
    return found.subject.stored.num_bytes


def refusal(name: object) -> str:
    with pytest.raises(ConfigError) as raised:
        read_checkpoint(str(name))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_weights_of_the_demo_model_take_what_its_file_does() -> None:
    found = read_checkpoint(str(model_folder()))
    size = (model_folder() / "model.safetensors").stat().st_size
    assert read_bytes(found) == pytest.approx(size, rel=0.02)
    assert weight_bytes(found.subject.model) == pytest.approx(size, rel=0.02)
    assert found.bytes_by_type == {"BF16": read_bytes(found)}


@pytest.mark.parametrize("path", [gguf_path, f32_gguf], ids=["Q4_1", "F32"])
def test_gguf_weights_take_what_their_file_does(path: Any) -> None:
    found = read_checkpoint(str(path()))
    assert read_bytes(found) == pytest.approx(path().stat().st_size, rel=0.03)
    assert found.subject.model.num_parameters == 134515008
    assert found.subject.model.num_layers == 30


def test_gguf_types_are_those_of_ggml() -> None:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    for kind, (name, *sizes) in TYPES.items():
        theirs = GGMLQuantizationType(kind)
        assert (theirs.name, GGML_QUANT_SIZES[theirs]) == (name, tuple(sizes))


def test_an_unknown_gguf_type_is_named() -> None:
    with pytest.raises(ConfigError, match="type 250"):
        bytes_by_type((GgufTensor("x", 32, 250),))


def test_types_are_counted_as_stored(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", {"a": ("I32", 100), "b": ("BF16", 10), "c": ("F8_E4M3", 7)})
    found = read_checkpoint(str(path))
    assert found.bytes_by_type == {"I32": 400, "BF16": 20, "F8_E4M3": 7}
    assert read_bytes(found) == 427


def test_floats_are_loaded_as_the_models_type(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", {"a": ("F32", 100)}, torch_dtype="float32")
    assert read_bytes(read_checkpoint(str(path))) == 200  # vLLM makes them bfloat16
    assert read_bytes(read_checkpoint(str(path), "float32")) == 400


def test_scales_of_quantised_weights_stay_as_stored(tmp_path: Path) -> None:
    tensors = {"x.weight": ("F32", 10), "x.weight.absmax": ("F32", 100)}
    quantized = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path = folder(tmp_path / "m", tensors, quantization_config=quantized)
    assert read_bytes(read_checkpoint(str(path))) == 20 + 400


def test_a_tied_head_is_not_loaded_again(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": ("BF16", 40), "lm_head.weight": ("BF16", 40)}
    for is_tied, expected in ((True, 80), (False, 160)):
        path = folder(tmp_path / str(is_tied), tensors, tie_word_embeddings=is_tied)
        assert read_bytes(read_checkpoint(str(path))) == expected


def test_layers_that_predict_ahead_are_not_loaded(tmp_path: Path) -> None:
    tensors = {"model.layers.0.x": ("BF16", 5), "model.layers.1.x": ("BF16", 500)}
    assert read_bytes(read_checkpoint(str(folder(tmp_path / "m", tensors)))) == 10


def test_all_parts_of_a_sharded_model_count(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", {"unused": ("BF16", 1000)})
    for part in ("one", "two"):
        write(path / f"{part}.safetensors", {part: ("BF16", 50)})
    weight_map = {part: f"{part}.safetensors" for part in ("one", "two")}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert read_bytes(read_checkpoint(str(path))) == 200
    (path / "two.safetensors").unlink()
    assert read_checkpoint(str(path)).source == "config.json alone"


@pytest.mark.parametrize("length", [0, 5, 8, 40, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, length: int) -> None:
    path = folder(tmp_path / "m", {"a": ("BF16", 100)}) / "model.safetensors"
    os.truncate(path, length if length >= 0 else path.stat().st_size - 1)
    assert "not a whole safetensors file" in refusal(path.parent)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000], ids=lambda c: repr(c[:2])
)
def test_a_configuration_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = folder(tmp_path / "m", {})
    (path / "config.json").write_bytes(content)
    assert "config.json" in refusal(path)


DAMAGED: dict[str, bytes] = {
    "a length of 8 EiB": struct.pack("<Q", 1 << 63),
    "longer than the file": struct.pack("<Q", 90_000_000) + b"{}",
    "no object": struct.pack("<Q", 4) + b"null",
    "bottomless": struct.pack("<Q", 100_000) + b"[" * 100_000,
}
NO_TENSORS: dict[str, object] = {
    "nothing": None,
    "no shape": {"dtype": "BF16", "data_offsets": [0, 2]},
    "a shape of text": {"dtype": "BF16", "shape": ["a"], "data_offsets": [0, 2]},
    "negative": {"dtype": "BF16", "shape": [-1], "data_offsets": [0, 2]},
    "backwards": {"dtype": "BF16", "shape": [1], "data_offsets": [2, 0]},
    "a type of lists": {"dtype": [[]], "shape": [1], "data_offsets": [0, 2]},
}
for kind, described in NO_TENSORS.items():
    text = json.dumps({"a": described}).encode()
    DAMAGED[kind] = struct.pack("<Q", len(text)) + text + bytes(64)


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_header_is_refused(tmp_path: Path, content: bytes) -> None:
    path = folder(tmp_path / "m", {})
    (path / "model.safetensors").write_bytes(content)
    assert "not a whole safetensors file" in refusal(path)


@pytest.mark.parametrize("content", [b'{"weight_map": 3}', b'{"weight_map": {"a": [1], "b": 2}}'])
def test_an_index_without_files_leaves_the_configuration(tmp_path: Path, content: bytes) -> None:
    path = folder(tmp_path / "m", {"a": ("BF16", 10)})
    (path / "model.safetensors.index.json").write_bytes(content)
    assert read_checkpoint(str(path)).source == "config.json alone"


@pytest.mark.parametrize("name", ["a" * 5000, "~nobody-of-this-name/model"])
def test_a_name_that_is_no_path_is_one_line(name: str) -> None:
    assert "is no path" in refusal(name)


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(tmp_path)
    (tmp_path / "file.bin").touch()
    assert "is a file" in refusal(tmp_path / "file.bin")
    assert "no such folder" in refusal(tmp_path / "missing")


@pytest.fixture(name="hub_cache")
def _hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def in_cache(hub_cache: Path) -> Path:
    model = hub_cache / "models--org--m"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("a" * 40)
    return model / "snapshots" / ("a" * 40)


def test_a_model_in_the_cache_needs_no_network(hub_cache: Path) -> None:
    folder(in_cache(hub_cache), {"a": ("BF16", 100)})
    found = read_checkpoint("org/m")
    assert read_bytes(found) == 200
    assert found.subject.name == "org/m"


def test_a_cache_without_weights_still_gives_a_plan(hub_cache: Path) -> None:
    snapshot = folder(in_cache(hub_cache), {})
    (snapshot / "model.safetensors").unlink()
    found = read_checkpoint("org/m")
    assert found.subject.stored is None
    assert weight_bytes(found.subject.model) > 0


def test_offline_an_unknown_model_is_one_line_at_once(hub_cache: Path) -> None:
    start = time.monotonic()
    assert f"not in the local cache ({hub_cache})" in refusal("org/m")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("endpoint", "proxy"),
    [
        ("http://127.0.0.1:1", None),
        ("https://somewhere.invalid", "http://127.0.0.1:1"),
        ("https://somewhere.invalid", "127.0.0.1:99999"),
        ("garbage:99999x", None),
    ],
)
def test_a_hub_that_does_not_answer_is_not_waited_for(
    endpoint: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    if proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
    assert not is_reachable(endpoint)


def test_a_name_that_cannot_be_is_one_line(hub_cache: Path) -> None:
    assert "neither a local folder nor a model" in refusal("not a name!")


class Hub(SimpleHTTPRequestHandler):
    """The hub's file routes: /ORG/MODEL/resolve/REVISION/FILE, with ranges and its headers."""

    asked: list[tuple[str, str]]
    root: Path

    def log_message(self, *_: object) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.root / self.path.rpartition("/")[2]
        wanted = self.headers.get("Range", "")
        self.asked.append((path.name, wanted if with_body else "head"))
        if not path.is_file() or not self.path.startswith("/org/m/resolve/"):
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = path.read_bytes()
        total, status = len(body), 200
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            body, status = body[int(first) : int(last) + 1], 206
        self.send_response(status)
        if wanted:
            end = int(first) + len(body) - 1
            self.send_header("Content-Range", f"bytes {first}-{end}/{total}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{sha256(path.name.encode()).hexdigest()}"')
        self.send_header("X-Repo-Commit", "b" * 40)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture(name="hub")
def _hub(tmp_path: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    root = folder(tmp_path / "served", {"a": ("BF16", 400_000)})
    asked: list[tuple[str, str]] = []
    handler = type("Handler", (Hub,), {"asked": asked, "root": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_from_the_hub_only_headers_are_read(
    tmp_path: Path, hub: tuple[str, list[tuple[str, str]]]
) -> None:
    endpoint, asked = hub
    code = (
        "from gpupool.planner.checkpoint import read_checkpoint\n"
        "found = read_checkpoint('org/m')\n"
        "print(found.subject.stored.num_bytes, found.source)"
    )
    env = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, check=False, capture_output=True, text=True
    )
    assert done.stdout == "800000 the hub's headers\n", done.stderr
    ranges = [wanted for name, wanted in asked if name == "model.safetensors" and wanted != "head"]
    assert ranges
    assert all(wanted.startswith("bytes=0-") for wanted in ranges)
    assert max(int(wanted.rpartition("-")[2]) for wanted in ranges) < 200_000


def test_a_plan_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from gpupool.planner.checkpoint import read_checkpoint\n"
        f"read_checkpoint({str(model_folder())!r})\n"
        "print([name for name in ('torch', 'vllm', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
