"""The page at / in a real browser, over real pools."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Page, Route, expect

from gpupool.page import FILES, PATHS, PREFIX
from tests import demo_model
from tests.browser import browser, tab
from tests.front import Front
from tests.machine import fake_machine, uuid_of
from tests.pool import SCRIPTED, VENV_BIN, Pool, free_port, wait_until

pytestmark = pytest.mark.server

TALKER = ("--model_name", "M", "--infer_type", "tests.engines.talker:Talker")
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
LAST_TEXT = ".turn:last-of-type .text"
LAST_FIGURES = ".turn:last-of-type .figures"


@pytest.fixture(scope="module", name="chromium")
def _chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module", name="pool")
def _pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Two workers; a token takes 10 ms, and a load long enough to be seen."""
    flags = (*TALKER, "--workers", "2", "--threads", "1")
    arguments = (*flags, "--", "--token-s", "0.01", "--load-s", "1.5")
    with Pool(tmp_path_factory.mktemp("page"), *arguments) as pool:
        yield pool.wait_ready(workers=2)


@pytest.fixture(name="page")
def _page(chromium: Browser, pool: Pool) -> Iterator[Page]:
    """The page when it knows the model."""
    with tab(chromium, pool.url) as page:
        yield know(page)


def know(page: Page) -> Page:
    expect(page.locator("#model option")).not_to_have_count(0)
    return page


def send(page: Page, text: str, **parameters: Any) -> None:
    for name, value in parameters.items():
        page.locator(f"#{name}").evaluate("(field, value) => (field.value = value)", str(value))
    page.locator("#prompt").fill(text)
    page.locator("#prompt").press("Enter")


def running(pool: Pool) -> int:
    return sum(worker["inflight"] for worker in pool.workers())


def card(page: Page, slot: int) -> Any:
    return page.locator(f".worker[data-slot='{slot}']")


# Try it.


def test_a_chat_goes_on_from_turn_to_turn(page: Page) -> None:
    send(page, "x|first answer", system="be brief")
    expect(page.locator(LAST_TEXT)).to_have_text("first answer")
    expect(page.locator(LAST_FIGURES)).to_contain_text("12 tokens")
    expect(page.locator(LAST_FIGURES)).to_contain_text("tokens/s")
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, "and then", max_tokens=3, temperature=0.5, top_p=0.9, seed=7, stop="a\nb")
    body = asked.value.post_data_json
    assert [(m["role"], m["content"]) for m in body["messages"]] == [
        ("system", "be brief"),
        ("user", "x|first answer"),
        ("assistant", "first answer"),
        ("user", "and then"),
    ]
    wanted = {"model": "M", "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "seed": 7}
    assert {name: body[name] for name in wanted} == wanted
    assert body["stop"] == ["a", "b"]
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator(LAST_FIGURES)).to_contain_text("tokens")


def test_an_answer_streams_and_a_completion_is_one_question_alone(page: Page) -> None:
    page.get_by_text("Completion", exact=True).click()
    send(page, "abc", max_tokens=60)
    text = page.locator(LAST_TEXT)
    seen = [int(wait_until(lambda: len(text.inner_text()), 5, "the first token"))]
    while page.locator("#halt").is_visible():
        seen.append(len(text.inner_text()))
    assert len(set(seen)) > 5, seen
    assert seen == sorted(seen)
    expect(text).to_have_text("abc" * 20)
    expect(page.locator(LAST_FIGURES)).to_contain_text("cut off at max tokens")


def test_a_long_answer_in_many_pieces_does_not_hold_the_page_up(page: Page) -> None:
    """Of 300 kB: laid out for each of the pieces, it would take minutes."""
    number = 10_000
    pieces = (f"line {i} {'x' * 20}\n" for i in range(number))
    events = [json.dumps({"choices": [{"delta": {"content": piece}}]}) for piece in pieces]
    body = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])
    kind = {"Content-Type": "text/event-stream"}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, headers=kind))
    send(page, "all of it")
    expect(page.locator(LAST_FIGURES)).to_contain_text("about 10,000 tokens")
    assert page.locator(LAST_TEXT).inner_text().count("\n") >= number - 1


def test_stop_ends_the_work_in_the_engine(page: Page, pool: Pool) -> None:
    send(page, "abc", max_tokens=800)
    wait_until(lambda: running(pool) == 1, 5, "a running generation")
    expect(page.locator(LAST_TEXT)).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    wait_until(lambda: running(pool) == 0, 2, "the end of the work")
    expect(page.locator(LAST_FIGURES)).to_contain_text("Stopped")
    expect(page.locator("#prompt")).to_be_focused()
    send(page, "x|still here", max_tokens=20)
    expect(page.locator(LAST_TEXT)).to_have_text(re.compile("still here"))


def test_what_the_server_refuses_is_shown_and_the_text_kept(chromium: Browser, pool: Pool) -> None:
    with tab(chromium, pool.url, expects="the server responded with a status of 400") as page:
        send(know(page), "my long question", max_tokens=99999)
        trouble = page.locator(".turn:last-of-type .trouble")
        expect(trouble).to_contain_text("400")
        expect(trouble).to_contain_text("max_tokens")
        expect(page.locator("#prompt")).to_have_value("my long question")
        send(page, "x|ok", max_tokens="many")
        expect(trouble).to_contain_text('max_tokens is "many", which is no number')


def test_markup_from_a_model_or_a_person_stays_text(page: Page) -> None:
    send(page, f"x|{HOSTILE}", system=HOSTILE)
    expect(page.locator(LAST_TEXT)).to_have_text(re.compile(re.escape(HOSTILE)))
    assert page.locator(".log img, .log script").count() == 0


def test_the_browser_refuses_what_a_script_of_the_page_might_try(
    chromium: Browser, pool: Pool
) -> None:
    with tab(chromium, pool.url, expects=r"(?i)trusted|policy") as page:
        with pytest.raises(Error, match="TrustedHTML"):
            page.evaluate("document.querySelector('#log').innerHTML = '<b>x</b>'")
        with pytest.raises(Error, match="Failed to fetch"):
            page.evaluate("fetch('http://127.0.0.1:1/')")


def test_enter_sends_and_shift_enter_does_not(page: Page) -> None:
    prompt = page.locator("#prompt")
    prompt.fill("one")
    prompt.press("Shift+Enter")
    prompt.press_sequentially("two")
    expect(prompt).to_have_value("one\ntwo")
    expect(page.locator(".turn")).to_have_count(0)
    prompt.press("Enter")
    expect(page.locator(".turn.asked .text")).to_have_text("one\ntwo")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".turn")).to_have_count(0)


# Live.


def test_a_killed_worker_and_its_return_are_shown_live(chromium: Browser, pool: Pool) -> None:
    with tab(chromium, pool.url, expects="net::ERR_") as page:
        _kill_and_see(know(page), pool)


def _kill_and_see(page: Page, pool: Pool) -> None:
    send(page, "abc", max_tokens=800)
    wait_until(lambda: running(pool) == 1, 5, "a running generation")
    [worker] = [worker for worker in pool.workers() if worker["inflight"]]
    shown = card(page, worker["slot"])
    expect(shown.locator(".inflight")).to_have_text("1 of 1")
    expect(shown.locator(".speed")).to_have_text(re.compile(r"^[1-9]"))  # long before it is whole
    os.kill(worker["pid"], signal.SIGKILL)
    expect(page.locator(".turn:last-of-type .trouble")).to_contain_text("broke off")
    expect(shown.locator(".state")).not_to_have_text("ready")
    expect(page.locator("#pool-state")).to_have_text("1 of 2 workers ready")
    expect(shown.locator(".facts")).to_contain_text("1 restart")
    expect(shown.locator(".state")).to_have_text("ready")
    expect(shown.locator(".facts")).not_to_contain_text(f"pid {worker['pid']}")
    expect(page.locator("#pool-state")).to_have_text("2 of 2 workers ready")


def test_loading_absence_and_return_of_the_pool_are_shown(
    chromium: Browser, tmp_path: Path
) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    permit = tmp_path / "permit"
    loads = ("--model_name", "M", "--infer_type", "tests.engines.loads_on_permit:LoadsOnPermit")
    pool = Pool(tmp_path, *loads, "--", str(permit), env=env)
    with pool:
        wait_until(lambda: "pid" in str(_try(pool)), 20, "a worker that answers")
        with tab(chromium, pool.url, expects="net::ERR_") as page:
            expect(card(page, 0).locator(".phase")).to_contain_text("counting sheep, 50 %")
            expect(card(page, 0).locator("progress")).to_be_visible()
            permit.touch()
            expect(card(page, 0).locator(".state")).to_have_text("ready")
            expect(card(page, 0).locator("progress")).to_be_hidden()
            expect(page.locator("input[value=chat]")).to_be_disabled()  # the engine has no chats
            pool.stop()
            expect(page.locator("#banner")).to_contain_text("No answer since")
            permit.unlink()
            with pool:
                expect(card(page, 0).locator(".phase")).to_contain_text(
                    " of about ", timeout=30_000
                )
                expect(page.locator("#banner")).to_be_hidden()


def test_behind_a_proxy_that_hides_the_pool_one_can_chat_and_is_told_what_is_not(
    chromium: Browser, pool: Pool, tmp_path: Path
) -> None:
    with (
        Front(tmp_path, "several-pools.conf", pool.port, free_port()) as front,
        tab(
            chromium, front.client.url, expects="the server responded with a status of 404"
        ) as page,
    ):
        with page.expect_request("**/v1/chat/completions") as asked:
            send(page, "x|asked before the model was known")
        assert asked.value.post_data_json.get("model", "M") == "M"
        expect(page.locator(LAST_FIGURES)).to_contain_text("tokens")
        expect(page.locator("#untold")).to_contain_text("The pool's state is not told here")
        expect(page.locator("#banner")).to_be_hidden()
        expect(page.locator("#pool-state")).to_have_text("answers")
        expect(page.locator("#served-model")).to_have_text("M")
        expect(page.locator("#workers, .totals").first).to_be_hidden()
        send(know(page), "x|through nginx")
        expect(page.locator(LAST_TEXT)).to_have_text(re.compile("through nginx"))
        expect(page.locator("#snippets")).to_contain_text('"model":"M"')


def test_what_stands_in_the_place_of_the_pool_is_not_taken_for_it(
    chromium: Browser, pool: Pool
) -> None:
    """Such as a proxy's login page, or nothing of ours; and no model has no name."""
    with tab(chromium, pool.url, expects="the server responded with") as page:
        page.route("**/pool", lambda route: route.fulfill(body="<html>log in</html>"))
        page.route("**/v1/models", lambda route: route.fulfill(json={"data": []}))
        page.reload()
        expect(page.locator("#untold")).to_be_visible()
        with page.expect_request("**/v1/chat/completions") as asked:
            send(page, "x|hello")
        assert "model" not in asked.value.post_data_json
        expect(page.locator(LAST_TEXT)).to_have_text("hello")


def test_the_first_question_has_a_likely_answer_and_says_how_it_is_asked(page: Page) -> None:
    expect(page.locator("#temperature")).to_have_value("0.2")
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, "x|y")
    assert asked.value.post_data_json["temperature"] == 0.2
    expect(page.locator(LAST_FIGURES)).to_contain_text("tokens")
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, "x|y", temperature="")
    assert "temperature" not in asked.value.post_data_json
    for snippet in page.locator(".snippet pre").all_inner_texts():
        assert "Name three fruits." in snippet
        assert re.search(r"temperature\W+0\.2", snippet)


def _try(pool: Pool) -> Any:
    try:
        return pool.get("/pool")
    except OSError:
        return None


def test_a_hidden_page_asks_nothing(chromium: Browser, pool: Pool) -> None:
    with tab(chromium, pool.url) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        wait_until(lambda: page.wait_for_timeout(100) or asked, 5, "a look at the pool")
        hide = """(value) => {
            Object.defineProperty(document, "hidden", { value, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
        page.evaluate(hide, True)
        page.wait_for_timeout(300)  # a look that was under way may come to its end
        asked.clear()
        page.wait_for_timeout(1300)
        assert asked == []
        page.evaluate(hide, False)
        page.wait_for_timeout(300)
        assert asked[:1] == [f"{pool.url}/pool"]


def test_each_token_counts_once_and_as_soon_as_it_is_seen(page: Page) -> None:
    feed = """async (polls) => {
        const { Speed } = await import("/page/speed.js");
        const speed = new Speed();
        return polls.map((poll) => speed.feed(...poll));
    }"""
    # Time in ms, tokens of whole answers, tokens seen, in flight.
    streamed = [[0, 0, 0, 1], [1000, 0, 50, 1], [2000, 0, 90, 1], [3000, 100, 100, 0]]
    assert page.evaluate(feed, streamed) == [None, 50, 40, 10]
    unseen = [[0, 0, 0, 1], [2000, 0, 0, 1], [4000, 80, 0, 1], [5000, 80, 10, 1]]
    assert page.evaluate(feed, unseen) == [None, 0, 40, 10]
    left = [[0, 0, 0, 1], [1000, 0, 30, 0], [2000, 20, 30, 0]]
    assert page.evaluate(feed, left) == [None, 30, 20]
    anew = [[0, 500, 900, 0], [1000, 0, 0, 0], [2000, 10, 10, 0]]
    assert page.evaluate(feed, anew) == [None, None, 10]


def test_gpus_are_shown_with_what_they_do(chromium: Browser, tmp_path: Path) -> None:
    with fake_machine(tmp_path, gpus=2) as machine:
        machine.set_gpu(0, utilization=85, temperature=61, milliwatts=512500)
        flags = (*SCRIPTED, "--per_proc_gpus", "2")
        with Pool(tmp_path, *flags, env=machine.env()) as pool:
            pool.wait_ready()
            with tab(chromium, pool.url) as page:
                lines = card(page, 0).locator(".gpus li")
                expect(lines).to_have_count(2)
                expect(lines.first).to_contain_text("0 MiB of 141 GiB · 85 % busy · 61 °C · 513 W")
                expect(lines.last).to_have_text(
                    re.compile(f"^{uuid_of(1)[:12]}… · 0 MiB of 141 GiB")
                )
                expect(card(page, 0).locator(".memory")).to_have_text("0 MiB of 282 GiB")


def test_gpus_without_a_worker_are_shown_with_the_reason(chromium: Browser, tmp_path: Path) -> None:
    with fake_machine(tmp_path, gpus=4) as machine:
        machine.set_gpu(3, ecc=3, name="<b>GPU</b>", used=5 << 30, utilization=40)
        flags = (*SCRIPTED, "--per_proc_gpus", "1", "--workers", "2")
        with Pool(tmp_path, *flags, env=machine.env()) as pool:
            pool.wait_ready(workers=2)
            wait_until(lambda: "by driver events" in pool.log(), 10, "the watch")
            with tab(chromium, pool.url) as page:
                idle = page.locator("#idle-gpus li")
                expect(idle).to_have_count(2)
                expect(idle.nth(0)).to_contain_text(f"spare GPU 2 {uuid_of(2)[:12]}…")
                expect(idle.nth(0)).to_have_text(re.compile("· 0 MiB of 141 GiB$"))
                expect(idle.nth(1)).to_contain_text("faulty GPU 3")
                expect(idle.nth(1)).to_contain_text(
                    "<b>GPU</b> · 5.0 GiB of 141 GiB · 40 % busy · ECC"
                )
                machine.xid(0, 79)
                expect(idle.nth(0)).to_contain_text("quarantined GPU 0")
                expect(idle.nth(0)).to_contain_text("Xid 79 (fell off the bus)")
                expect(card(page, 0).locator(".gpus li")).to_contain_text(uuid_of(2)[:12])
                expect(idle).to_have_count(2)
            told = pool.get("/pool")[1]["gpus"]
            assert all(gpu["use"]["total_bytes"] == 141 << 30 for gpu in told[1:])
            states = ["quarantined", "leased", "leased", "faulty"]
            assert [gpu["state"] for gpu in told] == states
            assert [gpu["worker"] for gpu in told] == [None, 1, 0, None]
            assert [gpu["uuid"] for gpu in told] == [uuid_of(index) for index in range(4)]


# Keys.


def test_the_key_is_asked_for_kept_by_the_tab_and_shown_nowhere(
    chromium: Browser, tmp_path: Path
) -> None:
    secret = "s3cret-of-the-pool"
    with Pool(tmp_path, *TALKER, "--api_key", secret) as pool:
        pool.wait_ready(Authorization=f"Bearer {secret}")
        with tab(chromium, pool.url, expects="the server responded with a status of 401") as page:
            field = page.get_by_label("API key", exact=True)
            page.get_by_role("button", name="Not now").click()
            expect(page.locator("#banner")).to_contain_text("only to those with an API key")
            page.get_by_role("button", name="Enter the API key").click()
            field.fill("wrong")
            field.press("Enter")
            expect(page.locator("#key-message")).to_contain_text("401")
            field.fill(secret)
            field.press("Enter")
            expect(page.locator("#key-dialog")).to_be_hidden()
            send(know(page), "x|let in")
            expect(page.locator(LAST_TEXT)).to_have_text("let in")
            expect(page.locator("#banner")).to_be_hidden()
            expect(page.locator("#snippets")).to_contain_text("Authorization: Bearer YOUR_KEY")
            assert secret not in page.content()
            assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
            assert field.input_value() == ""
            page.reload()
            expect(page.locator("#pool-state")).to_have_text("1 of 1 worker ready")
            page.get_by_role("button", name="Forget the key").click()
            expect(page.locator("#key-dialog")).to_be_visible()
            assert page.evaluate("sessionStorage.length") == 0
        assert secret not in pool.log()


# From your program.


def test_the_snippets_run_as_they_are_copied(chromium: Browser, pool: Pool) -> None:
    rights = ["clipboard-read", "clipboard-write"]
    with tab(chromium, pool.url, permissions=rights) as page:
        expect(page.locator("#snippets")).to_contain_text('"model":"M"')
        for title in page.locator(".snippet pre").evaluate_all("all => all.map(e => e.ariaLabel)"):
            page.get_by_role("button", name=f"Copy: {title}").click()
            text = wait_until(lambda: page.evaluate("navigator.clipboard.readText()"), 5, title)
            program = [str(VENV_BIN / "python"), "-c"] if "Python" in title else ["bash", "-c"]
            done = subprocess.run(
                [*program, text], check=False, capture_output=True, text=True, timeout=30
            )
            assert done.returncode == 0, (title, done.stderr)
            assert "Name three" in done.stdout or "/infer" not in title, (title, done.stdout)
            assert len(done.stdout) > 60, (title, done.stdout)


# How it comes.


def test_the_page_is_answered_at_once_whatever_the_load(pool: Pool) -> None:
    clients = [pool.send_infer("abc", max_tokens=300) for _ in range(8)]
    wait_until(lambda: all(w["running"] for w in pool.workers()), 5, "busy workers")
    began = time.monotonic()
    for path in [*sorted(PATHS)] * 3:
        with urllib.request.urlopen(pool.url + path, timeout=20) as answer:
            assert answer.read() == FILES[path.removeprefix(PREFIX)].content
    assert time.monotonic() - began < 1.5
    assert all(worker["running"] for worker in pool.workers())
    for client in clients:
        client.close()


# How it looks.

CONTRASTS = """() => {
    const parse = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b]
        .map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const color = parse(getComputedStyle(at).backgroundColor);
            if (color.length === 3 || color[3] === 1) return color;
        }
    };
    const isText = (node) => node.nodeType === 3 && node.data.trim();
    return [...document.querySelectorAll("body *")]
        .filter((e) => [...e.childNodes].some(isText) && e.checkVisibility() && e.clientHeight > 2)
        .map((e) => {
            const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
            return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.slice(0, 40)];
        });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_the_light_and_in_the_dark(
    chromium: Browser, pool: Pool, scheme: str
) -> None:
    with tab(chromium, pool.url, color_scheme=scheme) as page:
        send(know(page), "x|an answer")
        expect(page.locator(LAST_FIGURES)).to_be_visible()
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 20
        assert [(ratio, text) for ratio, text in contrasts if ratio < 4.5] == []
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        is_dark = sum(map(int, re.findall(r"\d+", paper)[:3])) < 3 * 128
        assert is_dark == (scheme == "dark")


def test_a_phone_need_not_scroll_sideways(chromium: Browser, pool: Pool) -> None:
    """Whatever the words: phases and errors have long ones."""

    def lengthen(route: Route) -> None:
        told = pool.get("/pool")[1]
        told["workers"][0] |= {"state": "loading", "phase": "p" * 90, "last_error": "e" * 90}
        route.fulfill(json=told)

    viewport = {"width": 320, "height": 640}
    with tab(chromium, pool.url, viewport=viewport, has_touch=True) as page:
        page.route("**/pool", lengthen)
        expect(card(page, 0).locator(".phase")).to_contain_text("ppp")
        send(know(page), "w" * 90 + "|" + "long" * 40, max_tokens=200)
        expect(page.locator(LAST_FIGURES)).to_be_visible()
        page.locator("summary").click()
        width = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
        assert page.evaluate(width) <= 320
        cut = "[...document.querySelectorAll('main *')].filter((e) => e.scrollWidth > 322).length"
        assert page.evaluate(cut) == 0


@pytest.mark.model
def test_a_real_model_answers(chromium: Browser, tmp_path: Path) -> None:
    flags = ("--model_name", str(demo_model.gguf_path()), "--infer_type", "llama_cpp")
    with Pool(tmp_path, *flags, "--served_model_name", "smol") as pool:
        pool.wait_ready()
        with tab(chromium, pool.url) as page:
            send(know(page), "What is the capital of France?", temperature=0, max_tokens=12)
            expect(page.locator(LAST_FIGURES)).to_contain_text("tokens/s")
            page.get_by_text("Completion", exact=True).click()
            send(page, "The capital of France is", max_tokens=5)
            expect(page.locator(LAST_FIGURES)).to_contain_text("5 tokens")
            expect(page.locator(LAST_TEXT)).to_contain_text("Paris")
