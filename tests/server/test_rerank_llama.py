"""Reranking on llama.cpp through a whole pool, by a model of random weights."""

from __future__ import annotations

import json
import random
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.documented import commands_of
from tests.pool import ROOT, Pool
from tests.scrape import scrape, total
from tests.server.engines import LLAMA_CPP_EXACT
from tests.tiny_ranker import CONTEXT_TOKENS, WORDS, write_ranker

pytestmark = [pytest.mark.server, pytest.mark.model]

RERANK = "/v1/rerank"
QUERY = "what is the capital of france?"
SLOTS = 4


def some_documents() -> list[str]:
    """From one word to half of the context, in no order."""
    made = random.Random(1)
    lengths = [1, 100, 3, 40, 10, 120, 2, 60, 20, 5]
    return [" ".join(made.choices(WORDS, k=length)) for length in lengths]


DOCUMENTS = some_documents()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    folder = tmp_path_factory.mktemp("ranker")
    model = write_ranker(folder / "ranker.gguf")
    own = ("--model_name", str(model), "--infer_type", "llama_cpp", "--")
    with Pool(folder, *own, "--reranking", "--parallel", str(SLOTS), *LLAMA_CPP_EXACT) as started:
        yield started.wait_ready()


def rerank(pool: Pool, documents: list[str], path: str = RERANK, **fields: Any) -> Any:
    body = {"query": QUERY, "documents": documents, **fields}
    status, answer = pool.post(path, body)
    assert status == 200, answer
    return answer


def scores(answer: Any) -> list[float]:
    """In the order of the documents."""
    found = {result["index"]: result["relevance_score"] for result in answer["results"]}
    return [found[index] for index in range(len(found))]


def test_the_best_document_comes_first(pool: Pool) -> None:
    results = rerank(pool, DOCUMENTS)["results"]
    told = [result["relevance_score"] for result in results]
    assert told == sorted(told, reverse=True)
    assert len(set(told)) == len(DOCUMENTS)
    assert {result["index"] for result in results} == set(range(len(DOCUMENTS)))
    assert all(result["document"]["text"] == DOCUMENTS[result["index"]] for result in results)


def test_a_document_has_the_same_score_alone_and_among_others(pool: Pool) -> None:
    alone = [scores(rerank(pool, [document]))[0] for document in DOCUMENTS]
    assert scores(rerank(pool, DOCUMENTS)) == pytest.approx(alone, abs=2e-3)
    assert max(alone) - min(alone) > 0.1


def test_equal_documents_have_equal_scores(pool: Pool) -> None:
    """Up to rounding: they may be computed in different slots of one batch."""
    one, other = scores(rerank(pool, [DOCUMENTS[3]] * 2))
    assert one == pytest.approx(other, abs=2e-3)


def test_a_score_is_of_query_and_document(pool: Pool) -> None:
    other = rerank(pool, DOCUMENTS[:1], query="a dog sat on the mat")
    assert abs(scores(other)[0] - scores(rerank(pool, DOCUMENTS[:1]))[0]) > 0.01


@pytest.mark.parametrize("path", ["/rerank", "/v2/rerank"])
def test_every_name_of_the_route_answers(pool: Pool, path: str) -> None:
    assert rerank(pool, DOCUMENTS[:2], path)["results"]


def test_only_the_best_are_told_if_asked(pool: Pool) -> None:
    whole = rerank(pool, DOCUMENTS)["results"]
    found = rerank(pool, DOCUMENTS, top_n=3)["results"]
    assert [result["index"] for result in found] == [result["index"] for result in whole[:3]]


def test_every_pair_of_query_and_document_is_counted(pool: Pool) -> None:
    def count(text: str) -> int:
        body = {"prompt": text, "add_special_tokens": False}
        return int(pool.post("/tokenize", body)[1]["count"])

    name = "gpupool_prompt_tokens_total"
    before = total(scrape(pool), name)
    usage = rerank(pool, DOCUMENTS)["usage"]
    pairs = sum(count(QUERY) + count(document) + 4 for document in DOCUMENTS)
    assert usage == {"prompt_tokens": pairs, "total_tokens": pairs}
    assert total(scrape(pool), name) - before == pairs


def test_a_document_beyond_the_context_is_refused(pool: Pool) -> None:
    documents = [DOCUMENTS[0], "cat " * CONTEXT_TOKENS]
    status, answer = pool.post(RERANK, {"query": QUERY, "documents": documents})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded"), answer


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/infer", {"instances": "x"}, "generates no text"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, RERANK),
        ("/v1/completions", {"prompt": "x"}, RERANK),
        ("/v1/embeddings", {"input": "x"}, "--embedding"),
    ],
    ids=["infer", "chat", "completion", "embedding"],
)
def test_what_a_ranking_pool_is_not_for_is_refused(
    pool: Pool, path: str, body: dict[str, Any], said: str
) -> None:
    status, answer = pool.post(path, body)
    assert (status, answer["error"]["code"]) == (400, "unsupported"), answer
    assert said in answer["error"]["message"]


def test_an_encoder_embeds(tmp_path: Path) -> None:
    """It cannot generate, so a warm-up that generates would keep it from ever being ready."""
    model = write_ranker(tmp_path / "encoder.gguf", has_head=False)
    own = ("--model_name", str(model), "--infer_type", "llama_cpp", "--")
    with Pool(tmp_path, *own, "--embedding", "--pooling", "mean") as encoder:
        encoder.wait_ready()
        texts = ["the cat sat", "the dog"]
        status, answer = encoder.post("/v1/embeddings", {"input": texts})
        assert status == 200, answer
        assert [len(item["embedding"]) for item in answer["data"]] == [32, 32]
        assert encoder.post("/infer", {"instances": "x"})[0] == 400


def test_the_example_of_the_document_runs(pool: Pool) -> None:
    [command] = [
        one for one in commands_of(ROOT / "docs" / "llama-cpp.md") if one.startswith("curl")
    ]
    here = shlex.split(command.replace("5002", str(pool.port)))
    done = subprocess.run(here, capture_output=True, text=True, timeout=60, check=True)
    assert len(json.loads(done.stdout)["results"]) == 1
