"""What may follow -- for a hosted model."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpupool.engines.saas_args import EXTRA, SECRETS, SaasArgs, parse_engine_args
from gpupool.engines.saas_key import Secrets, read_key
from gpupool.errors import ConfigError

SECRET = "sk-very-secret-0123456789"
URL = "https://api.example/v1"


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as refused:
        parse_engine_args(words)
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_the_arguments_are_read_with_a_space_or_an_equals_sign() -> None:
    args = parse_engine_args(
        ["--saas.base_url", f"{URL}/", "--saas.timeout-s=3", "--saas.max_parallel", "5"]
    )
    assert args == SaasArgs(base_url=URL, timeout_s=3, max_parallel=5)


def test_what_all_requests_get_may_be_json() -> None:
    args = parse_engine_args(
        ["--saas.reasoning_effort", "low", "--saas.extra_body", '{"top_a": 0.5}']
    )
    assert args.extra == {"reasoning_effort": "low", "extra_body": {"top_a": 0.5}}


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_secret_on_the_command_line_is_refused_and_not_shown(name: str) -> None:
    message = refusal(f"--saas.{name}", SECRET)
    assert "ps" in message
    assert "--saas.api_key_file" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "words",
    [
        ("--saas.extra_headers", f'{{"Authorization": "Bearer {SECRET}"}}'),
        ("--saas.extra_headers", f'{{"X-API-Key": "{SECRET}"}}'),
        ("--saas.base_url", f"https://me:{SECRET}@api.example/v1"),
        ("--saas.base_url", f"https://api.example/v1?key={SECRET}"),
        ("--saas.base_url", f"me:{SECRET}@api.example"),
    ],
    ids=["authorization", "x-api-key", "user", "query", "no-scheme"],
)
def test_a_secret_in_another_argument_is_refused_and_not_shown(words: tuple[str, ...]) -> None:
    assert SECRET not in refusal(*words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--max-model-len", "5"), "they are --saas.NAME VALUE"),
        (("--saas.bas_url", URL), "did you mean 'base_url'"),
        (("--saas.base_url",), "has no value"),
        (("--saas.base_url", "--saas.model"), "has no value"),
        (("--saas.base_url", "ftp://x"), "give a URL"),
        (("--saas.base_url", "https://x:99999"), "give a URL"),
        (("--saas.timeout_s", "0"), "give seconds"),
        (("--saas.timeout_s", "nan"), "give seconds"),
        (("--saas.max_retries", "-1"), "from 0 to 20"),
        (("--saas.max_parallel", "0"), "from 1 to 4096"),
        (("--saas.infer_as", "texts"), "use chat or completion"),
        (("--saas.model", "a", "--saas.model", "b"), "given twice"),
        (("--saas.temperature", "1"), "each request says that itself"),
        (("--saas.extra_body", "[1]"), "must be a JSON object"),
        (("--saas.base_url", URL, "--saas.api_version", "1"), "is for a vendor"),
    ],
)
def test_what_cannot_be_is_refused(words: tuple[str, ...], says: str) -> None:
    assert says in refusal(*words)


@pytest.mark.parametrize(
    ("words", "model", "url", "there"),
    [
        (("--saas.base_url", URL), "org/m", URL, "org/m"),
        (("--saas.base_url", URL, "--saas.model", "x"), "m", URL, "x"),
        (("--saas.base_url", URL), "openai/m", URL, "openai/m"),
        ((), "openai/gpt", "https://api.openai.com/v1", "gpt"),
        (("--saas.api_type", "openai"), "gpt", "https://api.openai.com/v1", "gpt"),
        (("--saas.api_type", "anthropic"), "claude", None, "claude"),
        (("--saas.api_type", "azure", "--saas.base_url", URL), "dep", None, "dep"),
        ((), "anthropic/claude", None, "anthropic/claude"),
    ],
)
def test_where_the_model_is(words: tuple[str, ...], model: str, url: str, there: str) -> None:
    args = parse_engine_args(words)
    assert (args.direct_url(model), args.name_there(model)) == (url, there)


def test_the_key_comes_from_the_file_else_from_the_variable(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"# whose\n{SECRET}\n")
    by_file = parse_engine_args(["--saas.base_url", URL, "--saas.api_key_file", str(path)])
    assert read_key(by_file, "other", {}) == SECRET
    plain = parse_engine_args(["--saas.base_url", URL])
    assert read_key(plain, SECRET, {}) == SECRET
    assert read_key(plain, "", {}) is None


def test_openais_own_key_goes_to_openai_alone() -> None:
    environ = {"OPENAI_API_KEY": SECRET}
    assert read_key(parse_engine_args([]), "", environ) == SECRET
    assert read_key(parse_engine_args(["--saas.base_url", URL]), "", environ) is None


@pytest.mark.parametrize("content", ["", "# none\n", f"{SECRET}\n{SECRET}\n", "two words", "ä"])
def test_a_file_without_one_key_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    args = parse_engine_args(["--saas.api_key_file", str(path)])
    with pytest.raises(ConfigError, match=str(path)) as refused:
        read_key(args, "", {})
    assert "two words" not in str(refused.value)
    assert SECRET not in str(refused.value)


def test_a_file_that_is_not_there_is_refused() -> None:
    args = parse_engine_args(["--saas.api_key_file", "/nowhere/key"])
    with pytest.raises(ConfigError, match="No such file"):
        read_key(args, "", {})


def test_a_good_part_of_a_secret_is_as_secret() -> None:
    secrets = Secrets({SECRET, "x"})
    assert secrets.hide(f"key {SECRET[3:-3]}!") == "(not shown, as it has the pool's own key in it)"
    assert secrets.hide(f"sk-very*** {SECRET[:8]}") == f"sk-very*** {SECRET[:8]}"
    assert secrets.hide("x") == "x"


def test_no_name_is_of_two_kinds() -> None:
    assert not EXTRA & SECRETS
