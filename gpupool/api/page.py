"""GET / for browsers, and the files of the page (worker process)."""

from __future__ import annotations

from flask import Blueprint, Response, request

from gpupool import page

blueprint = Blueprint("page", __name__)

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Text that a model wrote can become markup nowhere, whatever a script tries.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Asked for again each time and seldom sent: a page never meets the scripts of another version.
    "Cache-Control": "no-cache",
}
JSON, HTML = "application/json", "text/html"


def show() -> Response | None:
    """The page, if a browser is at `/`. Everybody else gets JSON there, who takes anything (*/*)
    too, and needs the key for it."""
    if request.endpoint != "pool.index":
        return None
    if request.accept_mimetypes.best_match((JSON, HTML), JSON) != HTML:
        return None
    answer = _answer(page.INDEX)
    answer.vary.add("Accept")
    return answer


def file() -> Response:
    """One file of the page. Each has a route, so what else is asked for is an unknown path."""
    return _answer(str(request.url_rule).removeprefix(page.PREFIX))


for path in sorted(page.PATHS):
    blueprint.add_url_rule(path, "file", file)


def _answer(name: str) -> Response:
    found = page.FILES[name]
    answer = Response(found.content, content_type=found.content_type, headers=HEADERS)
    answer.set_etag(found.tag)
    answer.make_conditional(request)  # in place
    return answer
