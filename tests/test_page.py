"""The page at / as it is sent, without a browser."""

from __future__ import annotations

import re
import tomllib

import pytest

from gpupool.api.page import POLICY
from gpupool.page import FILES, FOLDER, INDEX, PATHS, TYPES
from tests.browser import INSTALL_LINE, NAMES, find_browser
from tests.pool import ROOT
from tests.test_app import make_client

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        "application/json",
        "application/json, text/html",
        "text/html;q=0.5, application/json",
        "application/*",
        "text/plain",
        "",
    ],
)
def test_whoever_does_not_prefer_html_gets_json(accept: str) -> None:
    answer = make_client().get("/", headers={"Accept": accept})
    assert answer.mimetype == "application/json"
    assert answer.json["name"] == "gpupool"
    assert "Accept" in answer.headers["Vary"]


@pytest.mark.parametrize("accept", [BROWSER, "text/html", "text/html, application/json;q=0.9"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_browser_gets_the_page(method: str, accept: str) -> None:
    answer = make_client().open("/", method=method, headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.mimetype == "text/html"
    assert answer.headers["Vary"] == "Accept"
    assert int(answer.headers["Content-Length"]) == len(FILES[INDEX].content)


def test_with_a_key_the_page_is_open_and_what_it_asks_for_is_not() -> None:
    client = make_client(api_key=("right",))
    assert client.get("/", headers={"Accept": BROWSER}).status_code == 200
    for path in sorted(PATHS):
        assert client.get(path).status_code == 200
    for path in ("/", "/pool", "/v1/models", "/metrics", "/page", "/page/", "/page/nothing.js"):
        assert client.get(path).status_code == 401
    assert client.post("/", headers={"Accept": BROWSER}).status_code == 401


@pytest.mark.parametrize(
    "path", ["/page/", "/page/index.html", "/page/__init__.py", "/page/../app.py", "/page/%2e%2e/x"]
)
def test_there_is_no_other_file_and_no_listing(path: str) -> None:
    answer = make_client().get(path)
    assert answer.status_code == 404
    assert answer.json["error"]["code"] == "no_route"


@pytest.mark.parametrize("path", ["/", *sorted(PATHS)])
def test_every_file_comes_with_its_policy_and_is_not_sent_twice(path: str) -> None:
    client = make_client()
    answer = client.get(path, headers={"Accept": BROWSER})
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-cache"
    known = {"Accept": BROWSER, "If-None-Match": answer.headers["ETag"]}
    again = client.get(path, headers=known)
    assert (again.status_code, again.data) == (304, b"")
    assert client.get(path, headers=known | {"If-None-Match": '"old"'}).status_code == 200


def test_the_policy_lets_nothing_in_from_elsewhere() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    for name in ("script-src", "style-src", "connect-src", "img-src"):
        assert rules[name] == "'self'"
    for name in ("base-uri", "form-action", "frame-ancestors"):
        assert rules[name] == "'none'"


def test_the_files_name_only_each_other_and_parse_no_markup() -> None:
    for path in FOLDER.glob("*.*"):
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z]+\.[a-z]", text), path.name
        if path.suffix == ".js":
            markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\("
            assert not re.search(markup, text), path.name
            for name in re.findall(r'from "\./([^"]+)"', text):
                assert name in FILES, (path.name, name)
    html = FILES[INDEX].content.decode()
    for name in re.findall(r'(?:src|href)="page/([^"]+)"', html):
        assert name in FILES
    assert not re.search(r"\son[a-z]+=|style=|<style|<script(?! type=\"module\" src)", html)


def test_every_kind_of_file_is_in_the_package() -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert {f"*{suffix}" for suffix in TYPES} == set(package["package-data"]["gpupool.page"])


def test_the_installation_looks_for_the_browsers_of_the_tests() -> None:
    script = (ROOT / "requirements" / "install.sh").read_text()
    assert f"for name in {' '.join(NAMES)}; do" in script
    assert INSTALL_LINE in script


def test_without_a_browser_the_tests_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match=INSTALL_LINE):
        find_browser()


def test_the_page_counts_as_one_route_and_is_not_in_the_list_of_routes() -> None:
    client = make_client()
    for path in sorted(PATHS):
        client.get(path)
    totals = client.application.extensions["gpupool.totals"]
    assert totals.requests() == {("/", 200, ""): len(PATHS)}
    assert not [route for route in client.get("/").json["routes"] if route.startswith("/page")]
