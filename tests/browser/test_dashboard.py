"""The dashboard in a real Chromium; screenshots stay in .artefacts/browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from tests.conftest import SharedServers
from tests.pair import ROOT, Pair
from tests.serving import Serving, write_config

SHOTS = ROOT / ".artefacts" / "browser"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def serving(shared_servers: SharedServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Serve three tables: one that is well, one whose rows the target refuses, one with a hostile name."""
    pair = Pair(shared_servers.get("source", 18), shared_servers.get("target", 18), tmp_path_factory.mktemp("browser"))
    quoted = '"' + HOSTILE.replace('"', '""') + '"'
    pair.source.execute(
        "create table orders (id int primary key, note text);"
        "insert into orders select n, 'a' from generate_series(1, 50) n;"
        "create table stock (id int primary key, left_over int); insert into stock values (1, -1);"
        f"create table {quoted} (id int primary key); insert into {quoted} values (1)".encode()
    )
    pair.as_writer.execute("create table stock (id int primary key, left_over int check (left_over > 0))")
    pair.grant()
    write_config(pair)
    pair.run("sync", check=6)
    with Serving(pair).wait_ready() as serving:
        yield serving
    pair.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    found = shutil.which("chromium")
    assert found is not None, "the dashboard is tested in Chromium: apt-get install chromium"
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield browser
        browser.close()


class Visitor:
    """A browser window, and what its page complained of: scripts and styles that the policy refused are there."""

    def __init__(self, context: BrowserContext) -> None:
        self.page: Page = context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def shoot(self, name: str) -> None:
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


@pytest.fixture
def visitor(chromium: Browser, serving: Serving) -> Iterator[Visitor]:
    context = chromium.new_context(base_url=serving.url, color_scheme="light")
    context.set_default_timeout(20_000)
    yield Visitor(context)
    context.close()


def test_a_run_started_with_its_button_appears_in_history_and_the_numbers_move(
    visitor: Visitor, serving: Serving
) -> None:
    page = visitor.page
    page.goto("/")
    visitor.shoot("overview-light")
    before = page.locator("#rows-last-day").inner_text()
    serving.pair.source.execute("insert into orders select n, 'b' from generate_series(51, 90) n")
    page.get_by_role("button", name="Run now").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Token").fill(serving.token)
    visitor.shoot("confirmation")
    dialog.get_by_role("button", name="Go on").click()
    link = page.locator("#notice").get_by_role("link", name="Look at it")
    expect(link).to_be_visible()
    expect(page.locator("#rows-last-day")).not_to_have_text(before, timeout=30_000)
    link.click()
    expect(page.locator("#run")).to_contain_text("partial", timeout=30_000)
    expect(page.locator("#run")).to_contain_text("relax it")
    visitor.shoot("run-failed")
    page.get_by_role("link", name="History").click()
    expect(page.locator("tbody tr").first).to_contain_text("api")
    visitor.shoot("history")
    page.get_by_label("Status").select_option("success")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("tbody")).to_contain_text("There is no such run")
    assert visitor.complaints == []


def test_a_wrong_token_starts_nothing_and_is_asked_for_again(visitor: Visitor, serving: Serving) -> None:
    page = visitor.page
    rows = len(serving.pair.control_rows())
    page.goto("/")
    page.get_by_role("button", name="Resync").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Resync").click()
    page.get_by_role("dialog").get_by_label("Token").fill("wrong")
    page.get_by_role("dialog").get_by_role("button", name="Go on").click()
    expect(page.locator("#notice")).to_contain_text("token is missing or wrong")
    page.get_by_role("button", name="Verify").click()
    expect(page.get_by_role("dialog").get_by_label("Token")).to_be_visible()
    assert len(serving.pair.control_rows()) == rows


def test_a_table_with_a_hostile_name_is_text_and_its_page_says_why_it_is_read_so(visitor: Visitor) -> None:
    page = visitor.page
    page.goto("/")
    page.get_by_role("link", name=re.compile("onerror")).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(HOSTILE.replace('"', '""'))
    expect(page.get_by_text("xmin: ")).to_be_visible()
    expect(page.locator("svg.chart").first).to_be_visible()
    assert page.locator("main img").count() == 0
    visitor.shoot("table-hostile")
    assert visitor.complaints == []


def test_everything_is_reached_by_keyboard(visitor: Visitor) -> None:
    page = visitor.page
    page.goto("/")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim() || document.activeElement.name"))
        if reached[-1] == "Run now":
            break
    assert reached[0] == "Skip to the content"
    assert reached[-1] == "Run now", reached
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert visitor.complaints == []


def test_on_a_phone_in_the_dark_no_page_is_wider_than_the_screen(chromium: Browser, serving: Serving) -> None:
    context = chromium.new_context(
        base_url=serving.url, color_scheme="dark", viewport={"width": 375, "height": 740}, has_touch=True
    )
    visitor = Visitor(context)
    for name, path in (
        ("overview", "/"),
        ("history", "/runs"),
        ("charts", "/charts"),
        ("table", "/table?name=public.stock"),
    ):
        visitor.page.goto(path)
        visitor.page.wait_for_load_state("networkidle") if name == "table" else None
        visitor.shoot(f"phone-dark-{name}")
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 375, name
        background = visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", background))) < 64, background
    assert visitor.complaints == []
    context.close()


def test_beyond_loopback_the_page_asks_for_the_token_and_then_every_link_carries_it(
    chromium: Browser, serving: Serving
) -> None:
    pair = serving.pair
    write_config(pair, serve={"port": 0, "host": "0.0.0.0"})  # noqa: S104  # that is what is tested
    with Serving(pair) as beyond:
        context = chromium.new_context(base_url=beyond.url.replace("0.0.0.0", "127.0.0.1"))  # noqa: S104
        visitor = Visitor(context)
        page = visitor.page
        page.goto("/")
        page.get_by_label("Token").first.fill("x" * 40)
        page.get_by_role("button", name="Show the dashboard").click()
        expect(page.get_by_text("This is not the token")).to_be_visible()
        visitor.shoot("token")
        page.get_by_label("Token").first.fill(beyond.token)
        page.get_by_role("button", name="Show the dashboard").click()
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        page.get_by_role("link", name="History").click()
        expect(page.get_by_role("heading", name="History")).to_be_visible()
        page.go_back()
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        page.reload()
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        assert [text for text in visitor.complaints if "401" not in text] == []
        context.close()
