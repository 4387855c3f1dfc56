"""A real browser for tests of the page: the system's Chromium, without a window."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
INSTALL_LINE = "apt-get install --no-install-recommends chromium"
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
# Runs before anything of the page, in every document.
TELL_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`));
"""


def find_browser() -> str:
    """Its path; fails with what to install."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    raise FileNotFoundError(
        f"the tests of the page need one of {', '.join(NAMES)} on PATH and found none; on Debian "
        f"or Ubuntu: {INSTALL_LINE}"
    )


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium, for as long as the tests of a file take."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_browser(), args=ARGUMENTS)
        yield chromium
        chromium.close()


@contextmanager
def tab(chromium: Browser, url: str, *, expects: str = "$.", **options: Any) -> Iterator[Page]:
    """The page in a browser that nobody used before. Fails if it writes an error to its console, or
    breaks its policy; the pattern `expects` finds those messages that belong to the test."""
    told: list[str] = []
    context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
    context.set_default_timeout(15_000)
    page = context.new_page()
    page.add_init_script(TELL_VIOLATIONS)
    page.on("console", lambda line: told.append(f"{line.type}: {line.text}"))
    page.on("pageerror", lambda error: told.append(f"error: {error}"))
    page.goto(url + "/")
    yield page
    errors = [line for line in told if line.startswith(("error", "warning"))]
    assert [line for line in errors if not re.search(expects, line)] == []
    context.close()
