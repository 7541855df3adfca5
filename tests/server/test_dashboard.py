"""The dashboard, as somebody sees it in a real browser: what it says, live, and what its buttons do."""

from __future__ import annotations

import re

import pytest
from browser import Window, window
from playwright.sync_api import Browser, expect
from scenes import CONFIG, dead_letter, done, elsewhere, in_canary, kept, proposed, served, tampered, users
from serving import Server, a_token, serving

from deploy_gates import runner
from deploy_gates.core.canonical import short
from deploy_gates.core.delivery import Fate
from deploy_gates.core.gate import GateName, GateResult, Verdict
from deploy_gates.core.promotion import Acknowledgement, Scope
from deploy_gates.core.release import Act, State, Status
from deploy_gates.store import Store
from deploy_gates.testing import POLICY

SMUGGLED = "<script>document.title='hacked'</script><img src=x onerror=alert(1)>"
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


sqlite = pytest.mark.parametrize("store", ["sqlite"], indirect=True)


# --- What it says -------------------------------------------------------------------------------


def test_an_empty_store_says_what_to_do_next(seen: Window) -> None:
    said = {path: seen.go(path).locator("main").inner_text() for path in PAGES[3:]} | {
        "/": seen.go("/").locator("main").inner_text()
    }

    assert "deploy-gates ship" in said["/"]
    assert "deploy-gates ship" in said["/log?verify=1"]
    assert "[tool.deploy_gates.notify]" in said["/deliveries"]
    assert "deploy-gates token create" in said["/sign-in"]
    assert "119" in said["/eliminated"]
    assert "deploy-gates credits org add" in said["/credits"]


def test_environments_say_what_they_serve_since_when_by_whom_and_who_follows(
    store: Store, seen: Window
) -> None:
    promotion = in_canary(store)
    for number in range(3):
        revision = 2 if number else 1
        store.acknowledge(
            f"i{number}",
            f"triage-{number}",
            "production",
            [Acknowledgement(config=CONFIG, revision=revision, age_ms=38)],
        )

    seen.go("/")

    cell = seen.page.locator("[data-environment=production]").inner_text()
    assert short(promotion.baseline) in cell
    assert f"5 % {short(promotion.release.digest)}" in cell
    assert re.search(r"r2, .* by lin", cell)
    assert "2 of 3 clients" in cell
    assert "running" in seen.text("#under-way")
    assert "production: analysis" in seen.text("#under-way")


@sqlite
def test_a_release_that_is_in_no_environment_yet_says_what_it_does(store: Store, seen: Window) -> None:
    promotion = proposed(store, kept(store, 1))
    store.write(promotion, Act.ADMIT, "", Status.BEGUN, {})

    seen.go("/")

    assert seen.text("#under-way").splitlines()[-1] == "evidence"


def test_a_promotion_shows_its_steps_gates_changes_and_journal(store: Store, seen: Window) -> None:
    golden = GateResult(
        gate=GateName.GOLDEN,
        verdict=Verdict.INCONCLUSIVE,
        measured=("387 of 400",),
        required=("≥ −2.0 pt",),
        reasons=("13 more cases would decide it",),
        checks=400,
    )
    kept(store, 2, CONFIG, golden)
    promotion = in_canary(store)

    seen.go(f"/promotions/{promotion.id}")

    assert "r1 → r2" in seen.text("#steps")
    assert "under way" in seen.text("#steps")
    assert "Sort the ticket. This is wording 1." in seen.text("#changes")
    assert "Sort the ticket. This is wording 2." in seen.text("#changes")
    assert seen.page.locator("#gates tbody tr").count() == 5
    assert seen.page.locator("#journal tbody tr").count() == 9
    seen.page.locator("#history summary").press("Enter")
    seen.waits_for("#history details[open] #journal", "ship@laptop:1:1")
    assert "ship@laptop:1:1" in seen.text("#journal")


@sqlite
def test_gates_tell_their_reasons(store: Store, seen: Window) -> None:
    golden = GateResult(
        gate=GateName.GOLDEN,
        verdict=Verdict.FAIL,
        measured=("372 of 400", "−3.0 pt, at worst −4.8 pt"),
        required=("≥ −2.0 pt",),
        reasons=("15 cases got worse, 3 got better",),
        checks=400,
    )
    digest = kept(store, 2, CONFIG, golden)
    promotion = proposed(store, digest)
    store.conclude(promotion, State.BLOCKED, "golden fails: 15 cases got worse")

    seen.go(f"/promotions/{promotion.id}")

    row = seen.page.locator("#gates tr", has_text="golden").inner_text()
    assert all(each in row for each in ("fail", "372 of 400", "≥ −2.0 pt", "15 cases got worse"))
    assert "BLOCKED" in seen.text("#state")


@sqlite
def test_words_of_others_stay_words(store: Store, seen: Window) -> None:
    config = f"triage {SMUGGLED}".replace("/", "")
    digest = kept(store, 1, config)
    runner.promote(
        store,
        config=config,
        environment="development",
        digest=digest,
        policy=POLICY,
        actor=SMUGGLED,
        reason=SMUGGLED,
    )
    promotion = proposed(store, digest, config, reason=SMUGGLED)
    promotion = done(store, promotion, Act.ADMIT, "", SMUGGLED)
    store.write(promotion, Act.THAW, "staging", Status.HELD, {"said": SMUGGLED, "hint": f"`{SMUGGLED}`"})

    for path in ("/", f"/promotions/{promotion.id}", "/log", f"/log?config={SMUGGLED}", f"/?said={SMUGGLED}"):
        seen.go(path)
        assert seen.page.title() != "hacked"
        assert seen.page.locator("main img, main script").count() == 0
        expect(seen.page.locator("[role=status]").first).to_be_empty()
    assert SMUGGLED in seen.go(f"/promotions/{promotion.id}").locator("#state").inner_text()


@sqlite
def test_history_is_read_page_by_page(store: Store, seen: Window) -> None:
    digests = [kept(store, 1), kept(store, 2)]
    for number in range(53):
        promotion = proposed(store, digests[number % 2])
        store.conclude(promotion, State.SHIPPED, f"the {number + 1}th")
        served(store, digests[number % 2], "development")

    seen.go(f"/configs/{CONFIG}")
    newest = seen.text("#promotions")
    seen.page.get_by_role("link", name="Older").click()
    seen.page.wait_for_url("**before=*")
    oldest = seen.text("#promotions")

    assert "the 53th" in newest
    assert "the 3th" not in newest
    assert "the 3th" in oldest
    assert "the 4th" not in oldest


@sqlite
def test_many_configs_are_shown_page_by_page(store: Store, seen: Window) -> None:
    for number in range(53):
        name = f"config-{number:02}"
        served(store, kept(store, number + 1, name), "development", name)

    seen.go("/")
    first = seen.page.locator("#environments tbody th").all_inner_texts()
    seen.page.get_by_role("link", name="3 more of 53 configs").click()
    seen.page.wait_for_url("**after=*")
    rest = seen.page.locator("#environments tbody th").all_inner_texts()

    assert [*first, *rest] == [f"config-{number:02}" for number in range(53)]
    assert len(rest) == 3


@sqlite
def test_the_log_is_filtered_verified_and_tells_of_tampering(store: Store, seen: Window) -> None:
    in_canary(store)
    served(store, kept(store, 7, "summaries"), "development", "summaries")

    seen.go("/log")
    seen.page.get_by_label("Config").select_option("summaries")
    seen.page.get_by_role("button", name="Verify the chain").click()
    seen.waits_for("#verified", "VERIFIED")
    assert seen.page.locator("#events tbody tr").count() == 1
    tampered(store, "UPDATE history SET actor = 'nobody' WHERE config = 'summaries'")
    seen.go("/log?verify=1")

    assert "TAMPERED" in seen.text("#verified")
    assert "summaries" in seen.text("main ul")


# --- Live ---------------------------------------------------------------------------------------


def test_what_another_process_writes_is_shown_without_a_reload(store: Store, seen: Window) -> None:
    promotion = in_canary(store)
    seen.go(f"/promotions/{promotion.id}")
    seen.page.evaluate("window.kept = 'the same page'")
    seen.page.get_by_role("link", name="Log").focus()

    elsewhere(
        store,
        "taken = store.take(1, 'ship@laptop:1:1')\n"
        "said = {'said': 'all is safe'}\n"
        "written = store.write(taken, Act.ANALYSIS, 'production', Status.DONE, said)\n"
        "store.conclude(written, State.SHIPPED, 'production serves it')",
    )

    seen.waits_for("#state", "production serves it")
    seen.waits_for("#steps", "all is safe")
    assert seen.page.evaluate("window.kept") == "the same page"
    assert seen.page.evaluate("document.activeElement.textContent") == "Log"
    assert seen.loads == 1


@sqlite
def test_what_somebody_is_typing_stays_as_it_is(store: Store, seen: Window) -> None:
    promotion = in_canary(store)
    seen.sign_in(a_token(store, *Scope), f"/promotions/{promotion.id}")
    seen.page.get_by_label("Reason").fill("customers com")

    done(store, promotion, Act.ANALYSIS, "production", "all is safe")
    seen.waits_for("#steps", "all is safe")
    seen.page.keyboard.type("plain")

    expect(seen.page.get_by_label("Reason")).to_have_value("customers complain")


@sqlite
def test_a_canary_is_drawn_as_its_users_tell_of_it(store: Store, seen: Window) -> None:
    promotion = in_canary(store)
    seen.go(f"/promotions/{promotion.id}")
    assert seen.page.locator("#canary svg").count() == 0
    assert "once its first users are counted" in seen.text("#canary")

    users(store, promotion)

    seen.page.locator("#canary svg").first.wait_for()
    assert "errors" in seen.text("#canary")
    assert "latency" in seen.text("#canary")
    assert seen.loads == 1


@sqlite
def test_a_server_that_is_gone_is_said(store: Store, browser: Browser) -> None:
    with serving(store.url, "", "--no-carry") as server, window(browser, server.url) as seen:
        seen.go("/")
        seen.waits_for("#environments", "Nothing was promoted yet")
        server.kill()

        seen.waits_for("#live-state", "the server does not answer")
        seen.problems.clear()  # connections that are refused


# --- Buttons ------------------------------------------------------------------------------------


def test_a_click_on_roll_back_brings_back_what_was_served(store: Store, seen: Window) -> None:
    promotion = in_canary(store)
    path = f"/promotions/{promotion.id}"
    seen.sign_in(a_token(store, *Scope, name="lin"), path)
    seen.page.get_by_label("Reason").fill("customers complain")

    seen.page.get_by_role("button", name="End the canary").click()

    seen.waits_for("[role=status]", f"production serves {short(promotion.baseline)} again (r3)")
    here = store.deployments("production", CONFIG)[0]
    assert (here.baseline, here.candidate) == (promotion.baseline, "")
    assert store.history(CONFIG, "production", after=2)[0].actor == "lin"
    assert store.history(CONFIG, "production", after=2)[0].reason == "customers complain"
    seen.go("/log")
    assert f"back to {short(promotion.baseline)}" in seen.text("#events")


@sqlite
def test_a_page_that_is_outdated_rolls_nothing_back(store: Store, server: Server, browser: Browser) -> None:
    promotion = in_canary(store)
    with window(browser, server.url, scripts=False) as seen:
        seen.sign_in(a_token(store, *Scope), f"/promotions/{promotion.id}")
        button = seen.page.get_by_role("button", name="End the canary")
        button.wait_for()

        revision = served(store, promotion.release.digest, "production", share=1_000)
        button.click()

        seen.page.wait_for_url("**said=*")
        assert store.deployments("production", CONFIG)[0].revision == revision
        assert f"r{revision}" in seen.text("[role=status]")


@sqlite
def test_what_was_left_goes_on_at_a_click(store: Store, browser: Browser) -> None:
    for environment in ("development", "staging", "production"):
        served(store, kept(store, 1), environment)
    promotion = proposed(store, kept(store, 2))
    promotion = done(store, promotion, Act.ADMIT, "", "five gates pass")
    store.let_go(store.write(promotion, Act.THAW, "development", Status.HELD, {"said": "it is frozen"}))

    with serving(store.url, a_token(store, *Scope)) as server, window(browser, server.url) as seen:
        seen.sign_in(server.token, f"/promotions/{promotion.id}")
        assert "it is frozen" in seen.text("#state")
        seen.page.get_by_role("button", name="Go on with this promotion").click()

        seen.waits_for("[role=status]", "goes on")
        seen.waits_for("#steps", "r1 → r2")


@sqlite
def test_a_dead_letter_is_sent_again_at_a_click(store: Store, seen: Window) -> None:
    dead_letter(store)
    seen.go("/deliveries")
    assert seen.page.get_by_role("button", name="Send again").count() == 0
    seen.sign_in(a_token(store, *Scope), "/deliveries")

    assert "connection refused" in seen.text("#deliveries")
    seen.page.get_by_role("button", name="Send again").click()

    seen.waits_for("[role=status]", "it is sent again")
    assert [each.state for each in store.deliveries()] == [Fate.DUE]
