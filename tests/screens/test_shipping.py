"""The screens of a release on its way, compared as text."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import canaries
import pytest
import shipments

from deploy_gates.core.canary import Decision
from deploy_gates.core.promotion import Standing
from deploy_gates.core.release import Act, Promotion, State, Status
from deploy_gates.report import shipping
from deploy_gates.report.record import Terminal
from deploy_gates.report.text import width

NOW = shipments.START + timedelta(seconds=255)
SHIPPED = shipments.standing(shipments.NEW, 43, timedelta(milliseconds=400))
BACK = shipments.standing(shipments.OLD, 43, timedelta(milliseconds=800))


@pytest.fixture(autouse=True)
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def block(
    promotion: Promotion,
    decision: Decision | None = None,
    standing: Standing | None = None,
    terminal: Terminal | None = None,
    **fields: object,
) -> str:
    shown = shipping.block(
        promotion,
        terminal or Terminal(),
        now=NOW,
        decision=decision,
        standing=standing,
        **fields,  # type: ignore[arg-type]
    )
    return "\n".join(shown)


def lines(promotion: Promotion) -> list[str]:
    told = [shipping.line(promotion, each, Terminal()) for each in promotion.journal]
    return [each for each in told if each]


def test_each_environment_is_a_row_with_what_was_done_and_how_long_it_took() -> None:
    said = block(shipments.promotion(shipments.UNDER_WAY), canaries.going(), note="ctrl-c leaves it running")

    assert said.startswith(
        """
ticket-triage  3f9c2e1 → 8a41d07                     promotion 118 by ada: calmer tone (0d4be12)

  ✓ evidence     five gates pass, signed by ci, 4 min old                                  0.0 s
  ✓ development  r18 → r19, 5 of 5 smoke cases                                             2.4 s
  ✓ staging      r17 → r18, 5 of 5 smoke cases                                             2.4 s
  ● production   r42 sends 5 % to 8a41d07                                             4 min 10 s

                  baseline  candidate    change      margin          0     better ▸
"""
    )
    assert said.endswith("    ctrl-c leaves it running\n")


def test_what_was_shipped_says_who_has_it() -> None:
    said = block(shipments.shipped(), canaries.promoted(), SHIPPED)

    assert "  ✓ production   r42 5 % → r43 100 %, 4 metrics safe after 28,012 requests " in said
    assert "  SHIPPED  production serves 8a41d07 (r43); 12 of 12 clients have it after 400 ms\n" in said


def test_what_was_rolled_back_says_why_and_what_is_served_again() -> None:
    said = block(shipments.rolled_back(), canaries.rolled_back(), BACK)

    assert "  ✗ production   r42 5 % → r43 rolled back " in said
    assert "    accepted fell 8.2 pt, at best" in said
    assert (
        """
  ROLLED BACK  production serves 3f9c2e1 again (r43); 12 of 12 clients have it after 800 ms
               8a41d07 answered 600 of 12,000 requests

  hint: the golden cases accept what production rejects; add such a case before the next try
"""
        in said
    )


def test_what_waits_says_for_what() -> None:
    said = block(shipments.held(), has_stopped=True)

    assert "  ‖ production   waits for an approval " in said
    assert "  HELD  8a41d07 waits: production wants 1 person other than ada to approve, and has 0" in said
    assert "  hint: deploy-gates approve ticket-triage" in said


def test_what_was_left_says_who_has_the_candidate() -> None:
    begun = shipments.standing(shipments.OLD, 42, timedelta(milliseconds=20), candidate=shipments.NEW)

    said = block(shipments.promotion(shipments.UNDER_WAY), None, begun, has_stopped=True)

    assert (
        "  LEFT  production serves 5 % 8a41d07 and otherwise 3f9c2e1 (r42); 12 of 12 clients have it" in said
    )


def test_what_another_runner_carries_says_which() -> None:
    carried = shipments.promotion(
        shipments.UNDER_WAY, owner="lin@desk:71:0f", lease_until=NOW + timedelta(seconds=9)
    )

    assert "  UNDER WAY  lin@desk:71 carries 8a41d07" in block(carried, has_stopped=True)


def test_what_was_served_before_is_no_step() -> None:
    here = [each for each in shipments.UNDER_WAY if each[2] != "development"]

    assert "  ✓ development  serves 8a41d07 already" in block(shipments.promotion(here))


def test_what_was_not_reached_is_no_row() -> None:
    said = block(shipments.promotion(shipments.EVIDENCE[:1]))

    assert "  ● evidence     being verified" in said
    assert "development" not in said


def test_a_line_an_event_tells_the_same() -> None:
    told = lines(shipments.rolled_back())
    last = shipping.last_line(
        shipments.rolled_back(), Terminal(), now=NOW, decision=canaries.rolled_back(), standing=BACK
    )

    assert told[:4] == [
        "09:14:02  evidence     8a41d07  five gates pass, signed by ci, 4 min old",
        "09:14:04  development  r18 → r19  5 of 5 smoke cases",
        "09:14:06  staging      r17 → r18  5 of 5 smoke cases",
        "09:14:07  production   r42 sends 5 % to 8a41d07",
    ]
    assert told[4].startswith("09:17:07  production   r42 → r43  rolled back: accepted fell 8.2 pt")
    assert lines(shipments.shipped())[-1] == (
        "09:19:09  production   r42 → r43  100 % to 8a41d07: 4 metrics safe after 28,012 requests"
    )
    assert last.startswith("09:17:07  rolled back  production serves 3f9c2e1 again (r43); 12 of 12 clients")


@pytest.mark.parametrize("columns", [80, 96, 120])
@pytest.mark.parametrize("is_unicode", [True, False])
def test_no_line_is_wider_than_the_terminal(columns: int, is_unicode: bool) -> None:
    terminal = Terminal(width=columns, unicode=is_unicode)
    long = replace(shipments.RELEASE, reason="a very long reason " * 10, actor="somebody-with-a-long-name")
    failing = shipments.promotion(
        [*shipments.EVIDENCE, (1, Act.SMOKE, "development", Status.FAILED, {"said": "missed " * 40})],
        release=long,
        state=State.ROLLED_BACK,
        conclusion="missed " * 40,
    )

    for promotion in (shipments.shipped(), shipments.rolled_back(), shipments.held(), failing):
        said = block(promotion, canaries.rolled_back(), BACK, terminal)
        assert max(width(each) for each in said.splitlines()) <= columns
        assert is_unicode or said.isascii()


def test_colour_only_repeats_the_words() -> None:
    plain = block(shipments.rolled_back(), canaries.rolled_back(), BACK)
    inked = block(shipments.rolled_back(), canaries.rolled_back(), BACK, Terminal(color=True))

    assert re.sub(r"\x1b\[[0-9;]*m", "", inked) == plain


def test_what_somebody_wrote_cannot_take_over_the_terminal() -> None:
    evil = replace(shipments.RELEASE, reason="\x1b[2J\x07boo", actor="e\x1b]0;x\x07ve")

    assert "\x1b" not in block(shipments.promotion(shipments.UNDER_WAY, release=evil))


def test_status_tells_what_is_on_its_way_and_why_it_waits() -> None:
    said = shipping.under_way(
        [shipments.held(), shipments.promotion(shipments.UNDER_WAY)], Terminal(), now=NOW
    )

    assert said == [
        "  promotion 118  ticket-triage 8a41d07  held  production approval, 4 min 15 s",
        "    production wants 1 person other than ada to approve, and has 0",
        "  promotion 118  ticket-triage 8a41d07  running  production analysis, 4 min 15 s",
        "",
    ]
