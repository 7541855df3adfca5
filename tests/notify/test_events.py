"""What has happened becomes CloudEvents, the same ones whoever makes them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import journeys
import pytest

from deploy_gates.core.promotion import Event
from deploy_gates.core.release import Act, State, Status
from deploy_gates.notify import events, words
from deploy_gates.notify.channel import Channel

SOURCE = "https://github.com/acme/triage"


def told(promotion: Any) -> tuple[Any, ...]:
    return events.of_promotion(promotion, source=SOURCE, dashboard_url="https://gates.acme.dev/")


def test_a_release_that_shipped_is_told_of_step_by_step() -> None:
    kinds = [events.kind_of(each) for each in told(journeys.shipped())]

    assert kinds == [
        "promotion.proposed",
        "promotion.moved",
        "promotion.verified",
        "promotion.moved",
        "promotion.decided",
        "promotion.moved",
        "promotion.shipped",
    ]


@pytest.mark.parametrize("promotion", [journeys.shipped(), journeys.rolled_back()])
def test_every_event_is_a_cloud_event(promotion: Any) -> None:
    made = told(promotion)

    for each in made:
        assert each["specversion"] == "1.0"
        assert all(each[name] for name in ("id", "source", "type"))  # what CloudEvents requires
        assert each["datacontenttype"] == "application/json"
        assert events.time_of(each).utcoffset() == timedelta(0)
        assert "." not in each["id"]  # Standard Webhooks puts full stops between what it signs
        json.dumps(each, allow_nan=False)
    assert len({each["id"] for each in made}) == len(made)


def test_what_was_told_before_is_told_alike_when_more_has_happened() -> None:
    ended = journeys.shipped()

    for count in range(len(ended.journal) + 1):
        under_way = replace(
            ended, state=State.RUNNING, conclusion="", concluded_at=None, journal=ended.journal[:count]
        )
        so_far = told(under_way)
        assert so_far == told(ended)[: len(so_far)]


def test_the_times_of_events_never_go_back() -> None:
    made = told(journeys.rolled_back())

    times = [events.time_of(each) for each in made]

    assert times == sorted(times)
    assert len(set(times)) == len(times)


def test_an_event_says_who_what_why_and_by_which_evidence() -> None:
    *_, decided, moved, shipped = told(journeys.shipped())

    assert moved["subject"] == "ticket-triage/118"
    assert {
        "config": "ticket-triage",
        "actor": "ada",
        "reason": "refunds go to billing",
        "commit": journeys.COMMIT,
        "environment": "production",
        "revision": 43,
        "evidence": "e" * 64,
        "url": "https://gates.acme.dev/promotions/118",
    }.items() <= moved["data"].items()
    assert decided["data"]["figures"] == shipped["data"]["figures"] == journeys.FIGURES


def test_what_is_held_for_the_same_reason_is_told_once() -> None:
    held = (Act.ADMIT, "", {"said": "the evidence is missing", "hint": "pytest --deploy-gates"}, Status.HELD)
    other = (Act.APPROVAL, "production", {"said": "production wants 1 person"}, Status.HELD)

    made = told(journeys.promotion(held, held, other, held))

    said = [each["data"]["said"] for each in made[1:]]
    assert said == ["the evidence is missing", "production wants 1 person", "the evidence is missing"]


def test_figures_that_are_too_large_are_left_out() -> None:
    large = {"said": "safe", "action": "promote", "decision": {"metrics": ["x" * events.FIGURES_MAX_BYTES]}}

    *_, decided = told(journeys.promotion((Act.ANALYSIS, "production", large)))

    assert decided["data"]["figures"] is None
    assert decided["data"]["said"] == "safe"


def test_figures_without_an_end_are_nothing_that_other_languages_cannot_read() -> None:
    decision = {"log10_e": math.inf, "metrics": [{"metric": "errors", "low": math.nan, "high": 1.5}]}

    *_, decided = told(journeys.promotion((Act.ANALYSIS, "production", {"decision": decision})))

    assert decided["data"]["figures"] == {
        "log10_e": None,
        "metrics": [{"metric": "errors", "low": None, "high": 1.5}],
    }


def test_a_move_by_hand_is_named_by_its_place_in_the_history() -> None:
    move = Event(
        config="ticket-triage",
        environment="production",
        revision=44,
        kind="rollback",
        baseline="3f9c2e1" + "0" * 57,
        candidate="",
        weight_bp=0,
        salt="",
        policy="",
        evidence="",
        fence=0,
        actor="grace",
        reason="refunds go astray",
        key="k",
        at_ms=1_700_000_000_000,
        previous="",
        hash="a" * 64,
    )

    made = events.of_move(move, source=SOURCE)

    assert made["id"] == "moved-" + "a" * 32
    assert made["type"] == "io.deploy-gates.deployment.moved"
    assert words.title(made) == "ticket-triage 3f9c2e1 moved by hand in production: rollback, r44"


@pytest.mark.parametrize(
    ("fields", "heard"),
    [
        ({}, ["proposed", "moved", "verified", "moved", "decided", "moved", "shipped"]),
        ({"environments": ("production",)}, ["proposed", "moved", "decided", "moved", "shipped"]),
        ({"configs": ("invoice-*",)}, []),
        ({"configs": ("invoice-*", "ticket-*"), "events": ("promotion.shipped",)}, ["shipped"]),
    ],
)
def test_a_channel_hears_what_it_wants(fields: Any, heard: list[str]) -> None:
    every = tuple(f"promotion.{each}" for each in ("proposed", "moved", "verified", "decided", "shipped"))
    channel = Channel(**({"name": "team", "kind": "webhook", "events": every} | fields))

    made = [each for each in told(journeys.shipped()) if channel.wants(each)]

    assert [events.kind_of(each).removeprefix("promotion.") for each in made] == heard


def test_a_message_reads_as_people_speak() -> None:
    made = told(journeys.rolled_back())

    assert words.title(made[0]) == "ticket-triage 8a41d07 is on its way to production"
    assert words.title(made[3]) == "ticket-triage 8a41d07 is the canary in production, for 5 %"
    assert words.title(made[-1]) == "ticket-triage 8a41d07 rolled back in production"
    assert words.text(made[-1]).splitlines() == [
        "latency rose 28 %",
        "errors: baseline 0.0097, candidate 0.0101, safe",
        "latency: baseline 0.793, candidate 0.984, harmful",
        "change: refunds go to billing, by ada",
        "commit: 9fceb02",
        "evidence: eeeeeee",
        "https://gates.acme.dev/promotions/118",
    ]


def test_what_a_commit_says_mentions_nobody_and_ends_no_table() -> None:
    hostile = "@acme/all <!-- --> | ![x](https://evil.example) `"

    made = told(journeys.shipped(reason=hostile))
    comment = words.comment(made)

    assert "@acme" not in comment
    assert "https://evil" not in comment
    assert comment.startswith("<!-- deploy-gates-")
    assert comment.count("<!--") == 1
