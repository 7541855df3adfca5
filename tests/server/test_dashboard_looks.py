"""The dashboard for everybody: on a phone, in the dark, by keyboard, read aloud, and without JavaScript."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from browser import PHONE, WIDE, window
from playwright.sync_api import Browser, expect
from scenes import CONFIG, dead_letter, in_canary, users
from serving import Server, a_token, serving

import engines
from deploy_gates.core.canonical import short
from deploy_gates.core.ledger import Allowance, Kind, Terms, Transaction
from deploy_gates.core.promotion import Scope
from deploy_gates.core.release import Promotion
from deploy_gates.store import Store, open_store
from deploy_gates.store.ledger import ledger_of

PAGES = (
    "/",
    "/promotions/1",
    f"/configs/{CONFIG}",
    "/log?verify=1",
    "/deliveries",
    "/eliminated",
    "/credits",
    "/credits/acme?verify=1",
    "/sign-in",
    "/promotions/77",
)


@dataclass
class Board:
    """A store with a canary and a dead letter, its server, and a token for everything."""

    store: Store
    server: Server
    promotion: Promotion
    token: str


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    store = open_store(engines.fresh_sqlite(tmp_path_factory.mktemp("board")))
    store.upgrade()
    try:
        promotion = in_canary(store)
        dead_letter(store)
        users(store, promotion)
        spenders(store)
        token = a_token(store, *Scope)
        with serving(store.url, token, "--no-carry") as server:
            yield Board(store=store, server=server, promotion=promotion, token=token)
    finally:
        store.close()


def spenders(store: Store) -> None:
    """An organisation that has spent more than it had."""
    ledger = ledger_of(store)
    limits = (Allowance(rate="tokens_per_day", most=5_000_000),)
    ledger.add("acme", "Acme", Terms(multiplier_ppm=1_250_000, allowances=limits), "ada")
    for kind, amount, reservation in (
        (Kind.GRANT, 1_000_000, ""),
        (Kind.RESERVE, 800_000, ""),
        (Kind.POST, 800_080, "t-reserve"),
    ):
        asked = Transaction(
            organisation="acme", id=f"t-{kind}", kind=kind, amount=amount, reservation=reservation
        )
        assert ledger.apply([asked])[0].accepted


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_every_page_can_be_read_by_everybody(
    board: Board, browser: Browser, size: dict[str, int], is_dark: bool
) -> None:
    with window(browser, board.server.url, size=size, is_dark=is_dark) as seen:
        seen.sign_in(board.token)
        for path in PAGES:
            seen.go(path)
            if path == "/promotions/1":
                seen.page.locator("#canary svg").first.wait_for()
                seen.page.locator("#history summary").press("Enter")

            assert seen.violations() == [], path
            assert seen.overflow_px() == 0, path
            assert seen.page.locator("main h1").count() == 1, path
        seen.problems.clear()  # the promotion that is not there: 404
        is_light = (
            seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        )
        assert is_light is not is_dark


def test_landmarks_headings_and_names_are_there(board: Board, browser: Browser) -> None:
    with window(browser, board.server.url) as seen:
        seen.sign_in(board.token, f"/promotions/{board.promotion.id}")
        page = seen.page

        for landmark in ("banner", "navigation", "main", "contentinfo"):
            assert page.get_by_role(landmark).count() == 1, landmark
        headings = page.get_by_role("heading", level=2).all_inner_texts()
        assert headings == ["Steps", "Canary", "Gates", "What changed", "Journal"]
        assert page.locator("table:not(:has(caption))").count() == 0
        assert page.locator("[aria-live], [role=status]").count() >= 2
        assert page.locator("html[lang=en]").count() == 1


def test_the_keyboard_is_enough_to_roll_back(board: Board, browser: Browser) -> None:
    with window(browser, board.server.url) as seen:
        keyboard = seen.page.keyboard
        seen.go(f"/sign-in?next=/promotions/{board.promotion.id}")
        expect(seen.page.get_by_label("Token")).to_be_focused()
        keyboard.type(board.token)
        keyboard.press("Enter")
        seen.page.wait_for_url(f"{board.server.url}/promotions/{board.promotion.id}")

        keyboard.press("Tab")
        assert seen.page.evaluate("document.activeElement.textContent") == "Skip to the content"
        box = seen.page.locator(".skip").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        keyboard.press("Enter")
        keyboard.press("Tab")
        for _ in range(12):
            if seen.page.evaluate("document.activeElement.textContent").startswith("End the canary"):
                break
            assert seen.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
            keyboard.press("Tab")

        assert seen.page.evaluate("document.activeElement.textContent").startswith("End the canary")


def test_everything_but_live_updates_works_without_javascript(board: Board, browser: Browser) -> None:
    with window(browser, board.server.url, scripts=False) as seen:
        seen.sign_in(board.token)
        texts = {path: seen.go(path).locator("main").inner_text() for path in PAGES[:-1]}

    digest = short(board.promotion.release.digest)
    assert digest in texts["/"]
    assert "Evidence of harm" in texts["/promotions/1"]
    assert "End the canary" in texts["/promotions/1"]
    assert digest in texts[f"/configs/{CONFIG}"]
    assert "VERIFIED" in texts["/log?verify=1"]
    assert "Send again" in texts["/deliveries"]
    assert "119" in texts["/eliminated"]
    assert "Acme" in texts["/credits"]
    assert "uncovered 0.0001" in texts["/credits/acme?verify=1"]


def test_a_browser_that_is_missing_is_said(tmp_path: Path) -> None:
    nothing = {
        "PATH": "",
        "BROWSER_FOR_TESTS": "",
        "PLAYWRIGHT_BROWSERS_PATH": "/nowhere",
        "TMPDIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", "import browser; browser.program()"],
        cwd=Path(__file__).parent,
        env=os.environ | nothing | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "`apt install chromium`" in done.stderr.splitlines()[-1]
