"""Grammars, vectors and conversations of the transformers engine, with the real model."""

from __future__ import annotations

import contextlib
import json
import re
import time
from typing import Any

import psutil
import pytest
import torch  # noqa: TID253 (no test here runs without it)
import xgrammar

from gpupool.engines.base import Completion, Embedded, Failed, Grammar, Scored
from gpupool.engines.grammar_compiler import GrammarCompiler
from gpupool.engines.guides import GuideMaker
from gpupool.engines.outlet import Outlet
from gpupool.errors import BadRequest, Cancelled, EngineDead
from tests.engines_real.transformers_engine import Client, completion_of

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

PROMPT = "Answer in JSON. The capital of France is"
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "size": {"enum": ["big", "small"]}},
    "required": ["city", "size"],
}
SCHEMA = Grammar("json_schema", json.dumps(CITY))


@pytest.fixture
def client(transformers_client: Client) -> Client:
    return transformers_client


def guided(client: Client, grammar: Grammar, **params: Any) -> Completion:
    return client.complete(PROMPT, **{"max_tokens": 80, "grammar": grammar, **params})


@pytest.mark.parametrize("temperature", [0, 2.0])
def test_text_is_an_object_of_the_schema(client: Client, temperature: float) -> None:
    found = guided(client, SCHEMA, temperature=temperature, seed=1)
    value = json.loads(found.text)
    assert set(value) == {"city", "size"}
    assert value["size"] in ("big", "small")
    assert found.finish_reason == "stop"


def test_text_is_any_object(client: Client) -> None:
    found = guided(client, Grammar("json_object"), temperature=0, max_tokens=200)
    assert found.text.lstrip().startswith("{")
    if found.finish_reason == "stop":
        assert json.loads(found.text)


def test_text_matches_the_regular_expression(client: Client) -> None:
    found = guided(client, Grammar("regex", "[a-c]{3}-[0-9]{2}"), temperature=1.5, seed=3)
    assert re.fullmatch("[a-c]{3}-[0-9]{2}", found.text)


def test_text_is_one_of_the_grammars(client: Client) -> None:
    grammar = Grammar("ebnf", 'root ::= "Paris" | "Zürich\\n"')
    assert guided(client, grammar, temperature=0).text in ("Paris", "Zürich\n")


def test_end_token_waits_for_the_grammars_end(client: Client) -> None:
    end = client.engine._text.end_tokens[0]
    found = guided(client, Grammar("regex", "[0-9]{7}"), temperature=0, logit_bias={end: 100.0})
    assert re.fullmatch("[0-9]{7}", found.text)


def test_guided_among_others_changes_none(client: Client) -> None:
    alone = client.complete(PROMPT, temperature=0, max_tokens=24)
    plain = client.start(PROMPT, temperature=0, max_tokens=24)
    bound = [client.start(PROMPT, grammar=SCHEMA, seed=i, max_tokens=80) for i in range(4)]
    assert completion_of(plain) == alone
    assert all(json.loads(completion_of(answer).text) for answer in bound)


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("regex", "("),
        Grammar("ebnf", "root ::= nowhere"),
        Grammar("json_schema", '{"type": "nothing"}'),
        Grammar("json_schema", "no JSON"),
        Grammar("json_schema", '{"$ref": "#"}'),
        Grammar("ebnf", "root ::= root"),
    ],
    ids=["regex", "grammar", "schema", "no JSON", "endless schema", "endless grammar"],
)
def test_grammar_that_cannot_be_compiled_is_the_callers_fault(
    client: Client, grammar: Grammar
) -> None:
    end = client.start(PROMPT, grammar=grammar, max_tokens=4).last()
    assert isinstance(end, Failed)
    assert isinstance(end.error, BadRequest)
    assert completion_of(client.start(PROMPT, max_tokens=2))


def test_grammar_that_takes_for_ever_is_the_callers_fault_and_no_others(client: Client) -> None:
    """This one of 12 kilobytes takes hours, and nothing stops xgrammar but the end of its
    process."""
    info = xgrammar.TokenizerInfo.from_huggingface(client.engine._tokenizer)
    compiler = GrammarCompiler(info)
    with contextlib.closing(compiler):
        compiler.compile(Grammar("json_object"))
        compiler._timeout_s = 1.0
        began = time.monotonic()
        with pytest.raises(BadRequest, match="it takes more than 1 s") as caught:
            compiler.compile(Grammar("ebnf", "root ::= " + '"a"?' * 3000))
        assert time.monotonic() - began < 20
        assert caught.value.code == "invalid_grammar"
        compiler._timeout_s = 60.0
        first = compiler.compile(Grammar("regex", "[0-9]{3}"))
        assert compiler.compile(Grammar("regex", "[0-9]{3}")) is first
    assert not [child for child in psutil.Process().children() if child.status() == "zombie"]


def test_grammars_that_wait_can_be_cancelled_and_end_with_the_engine(client: Client) -> None:
    engine = client.engine
    maker = GuideMaker(engine._tokenizer, engine.model.vocab_size, engine._text.end_tokens)
    ends: dict[str, Any] = {}
    begun: list[str] = []

    def add(name: str) -> None:
        outlet = Outlet(name, lambda event: ends.update({name: event}))
        maker.add(outlet, SCHEMA, lambda guide: begun.append(name))

    for name in ("one", "two", "three"):
        add(name)
    maker.cancel("three")
    maker.stop("the end")
    add("four")
    assert isinstance(ends["four"].error, EngineDead)
    for name, event in ends.items():
        assert isinstance(event.error, Cancelled if name == "three" else EngineDead)
    assert "four" not in begun


# Vectors.


def vector(client: Client, text: str) -> tuple[float, ...]:
    tokens = client.tokens(text)
    end = client.ask(lambda name, sink: client.engine.embed(name, tokens, sink)).last()
    assert isinstance(end, Embedded), end
    return end.vector


def test_vector_is_the_mean_of_the_last_hidden_states(client: Client) -> None:
    tokens = torch.tensor([client.tokens(PROMPT)])
    with torch.no_grad():
        output = client.engine._passes.twin(tokens, output_hidden_states=True)
    mean = output.hidden_states[-1][0].mean(0)
    expected = (mean / mean.norm()).tolist()
    assert vector(client, PROMPT) == pytest.approx(expected, abs=1e-4)


def test_vectors_computed_together_are_what_they_are_alone(client: Client) -> None:
    texts = [PROMPT, "Snow falls", "One two three four five six", "Yes"]
    alone = [vector(client, text) for text in texts]
    tokens = [client.tokens(text) for text in texts]
    answers = [
        client.ask(lambda name, sink, one=one: client.engine.embed(name, one, sink))
        for one in tokens
    ]
    for answer, expected in zip(answers, alone, strict=True):
        end = answer.last()
        assert isinstance(end, Embedded)
        assert end.vector == pytest.approx(expected, abs=1e-4)


def test_scores_and_vectors_that_wait_together_are_told_apart(client: Client) -> None:
    engine, tokens = client.engine, client.tokens(PROMPT)
    scores, vectors = [], []
    for _ in range(3):
        scores.append(client.ask(lambda name, sink: engine.score(name, tokens, sink)))
        vectors.append(client.ask(lambda name, sink: engine.embed(name, tokens, sink)))
    assert {type(answer.last()) for answer in scores} == {Scored}
    assert {type(answer.last()) for answer in vectors} == {Embedded}


# Texts.


def test_bytes_of_tokens_make_the_text(client: Client) -> None:
    text = "Grüße, 日本語 👩‍👩‍👧‍👦\n\t1234 <|im_start|>"
    tokens = client.tokens(text)
    assert b"".join(map(client.engine.token_bytes, tokens)).decode() == text
    assert client.engine.decode(tokens) == text


def test_conversation_is_rendered_by_the_models_template(client: Client) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    tokens = client.engine.render(messages, None, {"add_generation_prompt": True})
    assert client.engine.decode(tokens).endswith(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokens.count(client.tokens("<|im_start|>")[0]) == 3


def test_what_the_template_cannot_do_is_the_callers_fault(client: Client) -> None:
    with pytest.raises(BadRequest, match="chat template"):
        client.engine.render([{"role": "user", "content": 5}], None, {})
    with pytest.raises(BadRequest, match="not a variable"):
        client.engine.render([], None, {"chat_template": "{{ 1 }}"})


def test_model_without_a_template_has_no_chats(client: Client, monkeypatch: Any) -> None:
    monkeypatch.setattr(client.engine._tokenizer, "chat_template", None)
    with pytest.raises(BadRequest, match="no chat template"):
        client.engine.render([{"role": "user", "content": "Hi"}], None, {})
