"""Whole stories before a real browser: what buttons do for clients, and what is said when things go away."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from browser import Window, window
from playwright.sync_api import Browser, expect
from scenes import CONFIG, done, in_canary, kept, served
from serving import Server, a_token, serving
from test_dashboard_access import got, sent, signed_in

import engines
from deploy_gates.client import ConfigClient
from deploy_gates.core.canonical import short
from deploy_gates.core.promotion import Scope
from deploy_gates.core.release import Act, Promotion, Release, Status, Terms
from deploy_gates.store import Store, open_store
from deploy_gates.testing import POLICY

sys.path.append(str(Path(__file__).parents[1] / "ship"))

from users import Users

CLIENTS = 5
MOVED_S = 5.0
"""Far more than the second that is promised: other tests run beside this one."""
TINY = {"width": 320, "height": 568}
PAGES = (
    "/",
    "/promotions/1",
    f"/configs/{CONFIG}",
    "/log?verify=1",
    "/deliveries",
    "/eliminated",
    "/credits",
    "/sign-in",
)
SQUEEZED = """() => [...document.querySelectorAll('main *')].filter(each => {
    const own = [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim().length > 12);
    const box = each.getBoundingClientRect();
    const style = getComputedStyle(each);
    return own && each.checkVisibility() && style.clipPath === 'none' && !each.closest('svg')
        && !each.closest('details:not([open])') && box.width > 0 && box.height > 8 * box.width;
}).map(each => each.outerHTML.slice(0, 200))"""
"""Elements whose text stands in a column of single letters."""


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Store]:
    made = open_store(engines.fresh_sqlite(tmp_path))
    made.upgrade()
    yield made
    made.close()


@pytest.fixture
def each_store(store_url: str) -> Iterator[Store]:
    made = open_store(store_url)
    made.upgrade()
    yield made
    made.close()


@contextlib.contextmanager
def watched(
    store: Store, browser: Browser, *arguments: str, scripts: bool = True
) -> Iterator[tuple[Server, Window]]:
    """Somebody looks at a server over this store, and has a token for everything."""
    token = a_token(store, *Scope, name="lin")
    with (
        serving(store.url, token, *arguments) as server,
        window(browser, server.url, scripts=scripts) as seen,
    ):
        yield server, seen


def left(store: Store) -> Promotion:
    """Version 1 is served everywhere; version 2 has passed its gates, and its runner has left it."""
    for environment in ("development", "staging", "production"):
        served(store, kept(store, 1), environment)
    release = Release(config=CONFIG, digest=kept(store, 2), actor="ada", reason="shorter answers")
    terms = Terms(smoke=False, weight_bp=5_000, low_traffic=True, lasts_s=600.0, canary={"unit": "request"})
    found = store.propose(release, until="production", policy=POLICY, terms=terms)
    found = store.take(found.id, "ship@laptop:1:1", timedelta(minutes=1))
    found = done(store, found, Act.ADMIT, "", "five gates pass, signed by ci")
    store.let_go(found)
    return found


def serves(store: Store) -> tuple[str, str]:
    here = store.deployments("production", CONFIG)[0]
    return here.baseline, here.candidate


# --- What the buttons do ------------------------------------------------------------------------


def test_a_click_on_roll_back_reaches_every_client(
    each_store: Store, browser: Browser, tmp_path: Path
) -> None:
    promotion = in_canary(each_store)
    with contextlib.ExitStack() as clients, watched(each_store, browser, "--no-carry") as (server, seen):
        following = [
            clients.enter_context(ConfigClient(each_store.url, environment="production", wait_s=20.0))
            for _ in range(CLIENTS)
        ]
        assert all(each.arms(CONFIG)[1] is not None for each in following)
        seen.sign_in(server.token, f"/promotions/{promotion.id}")

        seen.page.get_by_role("button", name="End the canary").click()
        seen.waits_for("[role=status]", "again (r3)")

        assert all(each.wait_for(CONFIG, 3, MOVED_S) for each in following)
        assert {each.arms(CONFIG)[0].digest for each in following} == {promotion.baseline}
        assert {each.arms(CONFIG)[1] for each in following} == {None}
        seen.go("/")
        seen.waits_for("[data-environment=production]", f"{CLIENTS} of {CLIENTS} clients")


def test_a_canary_moves_before_ones_eyes_until_it_is_rolled_back(sqlite: Store, browser: Browser) -> None:
    promotion = left(sqlite)
    with (
        Users(sqlite.url, CONFIG) as users,
        watched(sqlite, browser) as (server, seen),
    ):
        users.start()
        seen.sign_in(server.token, f"/promotions/{promotion.id}")
        loads = seen.loads
        seen.waits_for("#steps", "5")
        seen.page.locator("#canary svg").first.wait_for()
        first = seen.page.locator("#canary").inner_html()

        users.fail(promotion.release.digest)

        seen.waits_for("#state", "ROLLED BACK")
        assert seen.page.locator("#canary").inner_html() != first
        assert "harmful" in seen.text("#canary table")
        assert seen.loads == loads
        assert serves(sqlite) == (promotion.baseline, "")
        assert seen.page.title().startswith("rolled back")


def test_without_javascript_the_buttons_do_the_same(sqlite: Store, browser: Browser) -> None:
    promotion = in_canary(sqlite)
    with watched(sqlite, browser, "--no-carry", scripts=False) as (server, seen):
        seen.sign_in(server.token, f"/promotions/{promotion.id}")
        seen.page.get_by_label("Reason").fill("customers complain")

        seen.page.get_by_role("button", name="End the canary").click()

        seen.waits_for("[role=status]", f"serves {short(promotion.baseline)} again (r3)")
        assert serves(sqlite) == (promotion.baseline, "")
        seen.page.get_by_role("button", name="Sign out").click()
        seen.waits_for("h1", "Sign in")


def test_the_keyboard_alone_rolls_back(sqlite: Store, browser: Browser) -> None:
    promotion = in_canary(sqlite)
    with watched(sqlite, browser, "--no-carry") as (server, seen):
        seen.go(f"/sign-in?next=/promotions/{promotion.id}")
        expect(seen.page.get_by_label("Token")).to_be_focused()
        seen.page.keyboard.type(server.token)
        seen.page.keyboard.press("Enter")
        seen.page.locator("#rollback").wait_for()

        for _ in range(20):
            seen.page.keyboard.press("Tab")
            if seen.page.evaluate("document.activeElement.id") == "reason":
                break
        seen.page.keyboard.type("customers complain")
        seen.page.keyboard.press("Enter")

        seen.waits_for("[role=status]", "again (r3)")
        assert sqlite.history(CONFIG, "production", after=2)[0].reason == "customers complain"


# --- What it says when things go away -----------------------------------------------------------


def test_a_page_whose_visitor_may_not_read_any_more_says_so(sqlite: Store, browser: Browser) -> None:
    in_canary(sqlite)
    with watched(sqlite, browser, "--no-carry") as (server, seen):
        seen.sign_in(server.token)
        seen.waits_for("#environments", CONFIG)
        (token,) = sqlite.tokens()
        a_token(sqlite, Scope.READ, name="another")

        sqlite.revoke_token(token.id)

        seen.waits_for("#live-state", "what is shown may be old")


def test_a_server_that_does_not_carry_does_not_say_that_it_goes_on(sqlite: Store, browser: Browser) -> None:
    promotion = left(sqlite)
    with watched(sqlite, browser, "--no-carry") as (server, seen):
        seen.sign_in(server.token, f"/promotions/{promotion.id}")
        said = seen.text("#state")

    assert "deploy-gates ship" in said
    assert "this server" not in said


def test_a_token_that_may_not_read_is_told_so_where_it_signs_in(sqlite: Store, browser: Browser) -> None:
    token = a_token(sqlite, Scope.REPORT)
    with watched(sqlite, browser, "--no-carry") as (server, seen):
        seen.go("/sign-in")
        seen.page.get_by_label("Token").fill(token)
        seen.page.get_by_role("button", name="Sign in").click()

        seen.waits_for("main", "may not read")
        assert "set-cookie" not in sent(server, "/sign-in", token=token, next="/").headers
        seen.problems.clear()  # the page of a form that did not work is a 403


def test_who_is_signed_in_stays_so_on_a_page_that_says_what_went_wrong(
    sqlite: Store, browser: Browser
) -> None:
    in_canary(sqlite)
    with watched(sqlite, browser, "--no-carry") as (server, _):
        cookie, csrf = signed_in(server, server.token)

        lost = sent(server, "/promotions/77/rollback", cookie, csrf=csrf).body.decode()

    assert "there is no promotion 77" in lost
    assert "Sign out" in lost


# --- What it bears ------------------------------------------------------------------------------


def test_odd_addresses_and_odd_forms_are_answered_and_change_nothing(each_store: Store) -> None:
    in_canary(each_store)
    token = a_token(each_store, *Scope)
    odd = ("²", "9" * 5_000, "9" * 30, "-1", "two", "\0")
    with serving(each_store.url, token, "--no-carry") as server:
        cookie, csrf = signed_in(server, token)
        statuses = {
            f"{path[:40]} ({len(path)})": got(server, path, cookie).status
            for path in (
                "/log?config=%00",
                "/log?environment=%00&verify=1",
                f"/log?config={CONFIG}&environment=production&before={'9' * 15}",
                f"/configs/{CONFIG}?before={'9' * 15}",
                "/configs/%00",
                f"/promotions/{'9' * 5_000}",
                f"/promotions/{'9' * 30}",
                "/deliveries?state=%00",
                "/?said=%00",
                "/sign-in?next=%00",
            )
        }
        statuses |= {
            f"revision {each[:10]!r} ({len(each)})": sent(
                server, "/promotions/1/rollback", cookie, csrf=csrf, revision=each
            ).status
            for each in odd
        }
        statuses["a letter"] = sent(server, "/deliveries/again", cookie, csrf=csrf, id="\0").status
        statuses["a token"] = sent(server, "/sign-in", token="dg_\0_\0", next="/").status
        statuses["a reason"] = sent(
            server, "/promotions/1/rollback", cookie, csrf=csrf, reason="customers\0complain"
        ).status

    assert {said: status for said, status in statuses.items() if status >= 500} == {}
    assert serves(each_store)[1], "none of them was a rollback"


def test_the_log_is_of_the_latest_moves_wherever_they_were(each_store: Store) -> None:
    digests = [kept(each_store, version) for version in (1, 2)]
    other = [kept(each_store, version, "summaries") for version in (3, 4)]
    for number in range(60):
        served(each_store, digests[number % 2], "development")
        if number >= 20:
            served(each_store, digests[number % 2], "staging")
            served(each_store, other[number % 2], "development", "summaries")
    served(each_store, kept(each_store, 5, "alone"), "development", "alone")
    with serving(each_store.url, "", "--no-carry") as server:
        page = got(server, "/log").body.decode()

    rows = re.findall(r'href="/configs/([^"]+)".*?"environment">(\w+)<.*?"revision">r(\d+)<', page)
    expected = {(CONFIG, "development"): 60, (CONFIG, "staging"): 40, ("summaries", "development"): 40}
    assert len(rows) == 100
    assert rows[0] == ("alone", "development", "1")
    for (config, environment), newest in expected.items():
        revisions = [int(each[2]) for each in rows if each[:2] == (config, environment)]
        assert revisions == list(range(newest, newest - len(revisions), -1))
        assert 32 <= len(revisions) <= 34


@pytest.mark.parametrize("colours", ["light", "dark", "forced"])
def test_the_smallest_phone_squeezes_nothing(sqlite: Store, browser: Browser, colours: str) -> None:
    promotion = in_canary(sqlite)
    sqlite.write(
        promotion, Act.ANALYSIS, "production", Status.HELD, {"said": "the clock of the store jumped"}
    )
    token = a_token(sqlite, *Scope)
    with (
        serving(sqlite.url, token, "--no-carry") as server,
        window(browser, server.url, size=TINY, is_dark=colours == "dark") as seen,
    ):
        seen.page.emulate_media(forced_colors="active" if colours == "forced" else "none")
        seen.sign_in(token)
        for path in PAGES:
            seen.go(path)

            assert seen.overflow_px() == 0, path
            assert seen.page.evaluate(SQUEEZED) == [], path
