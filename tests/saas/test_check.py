"""What is asked of a host before a pool starts."""

from __future__ import annotations

import logging

import pytest

from gpupool.engines.saas import SaasEngine
from gpupool.engines.saas_args import parse_engine_args
from gpupool.engines.saas_check import HostUnreachable, check_address
from gpupool.errors import ConfigError
from gpupool.settings import Settings
from tests.pool import free_port
from tests.saas.host import KEY, MODEL, Host

ARGS = parse_engine_args([])


def test_a_host_that_takes_the_key_and_has_the_model_is_well() -> None:
    with Host() as host:
        assert check_address(host.url, ARGS, MODEL, KEY) is None


@pytest.mark.parametrize(("key", "says"), [("sk-wrong-0123456789", "refuses"), (None, "wants")])
def test_a_wrong_key_is_refused_and_not_shown(key: str | None, says: str) -> None:
    with Host() as host, pytest.raises(ConfigError, match=f"{says} .*key.*401") as refused:
        check_address(host.url, ARGS, MODEL, key)
    assert "sk-wrong" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_that_is_not_listed_is_a_doubt() -> None:
    with Host() as host:
        told = check_address(host.url, ARGS, MODEL[:-1], KEY)
    assert told is not None
    assert f"did you mean {MODEL!r}" in told


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_host_without_a_list_is_well(status: int) -> None:
    with Host() as host:
        host.models_status = status
        assert check_address(host.url, ARGS, MODEL, KEY) is None


def test_a_host_that_fails_may_come_back() -> None:
    with Host() as host:
        host.models_status = 503
        with pytest.raises(HostUnreachable, match="503"):
            check_address(host.url, ARGS, MODEL, KEY)


def test_who_answers_nothing_is_no_refusal(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    url = f"http://127.0.0.1:{free_port()}/v1"
    settings = Settings(model_name="m", engine_args=("--saas.base_url", url))
    SaasEngine.check(settings, 1)
    assert f"no answer from {url}" in caplog.text


@pytest.mark.parametrize("key", [KEY, "sk-wrong-0123456789", None])
def test_an_address_without_its_v1_is_refused_with_the_right_one(key: str | None) -> None:
    """Whose every request would be a 404, though the pool says that it is ready."""
    with Host() as host:
        short = host.url.removesuffix("/v1")
        with pytest.raises(ConfigError, match=f"did you mean {host.url}\\?") as refused:
            check_address(short, ARGS, MODEL, key)
    assert "\n" not in str(refused.value)


def test_an_address_that_has_neither_list_is_well() -> None:
    with Host() as host:
        assert check_address(f"{host.url}/other", ARGS, MODEL, KEY) is None
        assert [asked.path for asked in host.asked] == ["/v1/other/models", "/v1/other/v1/models"]
