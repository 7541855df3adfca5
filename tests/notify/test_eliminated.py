"""The old list adds up, the page shows it as it is, and only what was done counts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import journeys
import pytest

from deploy_gates.core.eliminated import BY_HAND, STEPS, TOTAL, eliminated, ran
from deploy_gates.core.release import Act, State, Status, Terms

PAGE = (Path(__file__).resolve().parents[2] / "docs/119-steps.md").read_text("utf-8")
NAMED = (
    "update config",
    "local tests",
    "pull request",
    "CI",
    "review",
    "merge",
    "environment variables on three services twice",
    "smoke tests twice",
    "monitor 30 minutes",
    "monitor 60 minutes",
    "ticket",
    "approvals",
    "deploy",
    "status page",
    "stakeholders",
    "ticket closed",
)
"""Every step that the old list names."""
ARRIVED = frozenset(
    (kind, event)
    for kind in ("jira", "statuspage", "apprise")
    for event in ("promotion.proposed", "promotion.moved", "promotion.shipped")
)


def test_the_steps_add_up_to_what_the_old_list_counts() -> None:
    assert sum(each.count for each in STEPS) == TOTAL == 119
    assert sum(each.count for each in STEPS if each.is_by_hand) == BY_HAND == 6


def test_every_step_that_the_list_names_is_there_once() -> None:
    named = [each.named for each in STEPS if each.named]

    assert sorted(named) == sorted(NAMED)


@pytest.mark.parametrize(
    "step", [each for each in STEPS if " × " in each.reading], ids=lambda each: each.name
)
def test_a_reading_multiplies_to_its_count(step: Any) -> None:
    first, second = re.findall(r"(\d+)[^×\d]*× (\d+)", step.reading)[0]

    assert int(first) * int(second) == step.count


def test_the_page_shows_the_list_as_it_is() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if line.startswith("| ") and not line.startswith(("| step", "| ---", "| **all**"))
    ]

    shown = [(row[0], row[1], int(row[2]), row[3], row[4]) for row in rows]
    assert shown == [(each.name, each.named or "–", each.count, each.reading, each.by) for each in STEPS]


def test_the_page_counts_as_the_code_does() -> None:
    everything = eliminated(journeys.shipped(), ARRIVED)
    without_channels = eliminated(journeys.shipped())

    assert f"The other {everything} run by themselves" in PAGE
    assert f"without any channel, {without_channels} do" in PAGE
    assert everything == TOTAL - BY_HAND


def test_nothing_is_counted_before_anything_was_done() -> None:
    assert eliminated(journeys.promotion()) == 0


def test_a_promotion_that_is_blocked_counts_only_that_its_tests_ran() -> None:
    no = (Act.ADMIT, "", {"said": "the gates block 8a41d07"}, Status.FAILED)
    blocked = journeys.promotion(no, state=State.BLOCKED)

    counted = [each.name for each in STEPS if ran(each, blocked)]

    assert counted == ["Test on one's own machine", "Say in it what was tested", "See CI through"]


def test_a_rollback_counts_the_watching_and_not_the_deploy() -> None:
    counted = {each.name for each in STEPS if ran(each, journeys.rolled_back())}

    assert "Watch production for 60 minutes" in counted
    assert "Deploy to all of production" not in counted
    assert eliminated(journeys.rolled_back()) == eliminated(journeys.shipped()) - 12


def test_a_first_release_has_no_canary_that_could_have_watched_it() -> None:
    smoke = (Act.SMOKE, "production", {"said": "3 of 3 smoke cases"})
    first = journeys.promotion(
        journeys.ADMIT, *journeys.STAGING, journeys.PROMOTED, smoke, state=State.SHIPPED
    )

    counted = {each.name for each in STEPS if ran(each, first)}

    assert {"Set environment variables in production", "Smoke test production"} <= counted
    assert "Watch production for 60 minutes" not in counted


def test_approvals_that_people_gave_are_not_counted() -> None:
    asked = replace(journeys.shipped(), terms=Terms(approvals={"production": 1}))

    assert eliminated(journeys.shipped()) - eliminated(asked) == 6


@pytest.mark.parametrize(
    ("arrived", "count"),
    [
        ((), 0),
        ((("jira", "promotion.proposed"),), 5),
        ((("jira", "promotion.proposed"), ("jira", "promotion.shipped")), 10),
        ((("statuspage", "promotion.moved"), ("webhook", "promotion.shipped")), 5),
        ((("github", "promotion.shipped"),), 0),
    ],
)
def test_notifications_count_once_they_have_arrived(arrived: Any, count: int) -> None:
    assert eliminated(journeys.promotion(), arrived) == count
