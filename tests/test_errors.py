"""What clients are told."""

from __future__ import annotations

from gpupool.errors import EngineDead, Unavailable, render_error


def test_a_dead_engines_clients_are_told_to_come_back() -> None:
    status, headers, body = render_error(EngineDead("the engine is gone"))
    assert status == 503
    assert headers == {"Retry-After": "1"}
    assert body["error"]["message"] == "the engine is gone"


def test_a_time_given_goes_before_the_usual_one() -> None:
    assert render_error(EngineDead("gone", retry_after_s=7))[1] == {"Retry-After": "7"}
    assert render_error(Unavailable("not ready"))[1] == {}
