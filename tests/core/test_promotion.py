"""History can be verified, rollbacks know where to, and what cannot be served is refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from deploy_gates.core.promotion import (
    Deployment,
    Event,
    Instance,
    Kind,
    Standing,
    netstrings,
    problem,
    served_before,
    verified,
)
from deploy_gates.testing import NOW


def a_history(*moves: tuple[Kind, str, str]) -> list[Event]:
    """Events of these kinds, baselines, and candidates, chained as the store does it."""
    events: list[Event] = []
    for revision, (kind, baseline, candidate) in enumerate(moves, start=1):
        event = Event(
            config="ticket-triage",
            environment="production",
            revision=revision,
            kind=kind.value,
            baseline=baseline,
            candidate=candidate,
            weight_bp=500 if candidate else 0,
            salt="salt" if candidate else "",
            policy="p",
            evidence="e",
            fence=revision,
            actor="ada",
            reason="calmer tone",
            key=f"key-{revision}",
            at_ms=1_000 * revision,
            previous=events[-1].hash if events else "",
            hash="",
        )
        events.append(replace(event, hash=event.computed()))
    return events


FIVE = a_history(
    (Kind.PROMOTE, "A", ""),
    (Kind.CANARY, "A", "B"),
    (Kind.PROMOTE, "B", ""),
    (Kind.ROLLBACK, "A", ""),
    (Kind.PROMOTE, "C", ""),
)


def test_an_honest_history_has_nothing_wrong_with_it() -> None:
    assert list(verified(FIVE, 5)) == []
    assert list(verified([], 0)) == []


@pytest.mark.parametrize("field", ["actor", "reason", "baseline", "evidence", "key", "policy"])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_an_edited_event_is_named(field: str, at: int) -> None:
    edited = [replace(each, **{field: "x"}) if row == at else each for row, each in enumerate(FIVE)]

    assert list(verified(edited, 5)) == [
        f"r{at + 1} of ticket-triage in production was edited: its hash is not that of its content"
    ]


def test_an_event_that_was_replaced_with_a_fitting_hash_no_longer_fits_its_neighbour() -> None:
    forged = replace(FIVE[2], actor="mallory")
    forged = replace(forged, hash=forged.computed())

    said = list(verified([*FIVE[:2], forged, *FIVE[3:]], 5))

    assert said == [
        "r4 of ticket-triage in production does not follow the event before it: one of the two was replaced"
    ]


@pytest.mark.parametrize("at", range(5))
def test_a_removed_event_is_named(at: int) -> None:
    rest = FIVE[:at] + FIVE[at + 1 :]

    said = list(verified(rest, 5))

    assert said, "nothing was noticed"
    assert f"r{at + 1} " in said[0] or said[0] == "the history ends at r4, but the environment is at r5"


def test_reordered_events_are_noticed() -> None:
    swapped = [FIVE[0], FIVE[2], FIVE[1], FIVE[3], FIVE[4]]

    assert any("reordered" in said for said in verified(swapped, 5))


def test_no_field_can_pretend_to_be_two() -> None:
    assert netstrings("a", "bc") != netstrings("ab", "c")
    assert netstrings("3:abc,") != netstrings("abc")
    assert netstrings("zwölf", 12) == b"6:zw\xc3\xb6lf,2:12,"


@pytest.mark.parametrize(
    ("moves", "before"),
    [
        ([], ""),
        ([(Kind.PROMOTE, "A")], ""),
        ([(Kind.PROMOTE, "A"), (Kind.PROMOTE, "B")], "A"),
        ([(Kind.PROMOTE, "A"), (Kind.PROMOTE, "B"), (Kind.ROLLBACK, "A")], ""),
        ([(Kind.PROMOTE, "A"), (Kind.PROMOTE, "B"), (Kind.PROMOTE, "C"), (Kind.ROLLBACK, "B")], "A"),
        ([(Kind.PROMOTE, "A"), (Kind.PROMOTE, "B"), (Kind.PROMOTE, "C"), (Kind.ROLLBACK, "A")], ""),
        ([(Kind.PROMOTE, "A"), (Kind.PROMOTE, "B"), (Kind.ROLLBACK, "A"), (Kind.PROMOTE, "C")], "A"),
        ([(Kind.PROMOTE, "A"), (Kind.PROMOTE, "B"), (Kind.PROMOTE, "A")], "B"),
        ([(Kind.PROMOTE, "A"), (Kind.CANARY, "A"), (Kind.ROLLBACK, "A")], ""),
    ],
)
def test_a_rollback_goes_back_to_what_was_served_before(moves: list[tuple[Kind, str]], before: str) -> None:
    events = a_history(*((kind, baseline, "X" if kind is Kind.CANARY else "") for kind, baseline in moves))

    assert served_before(events) == before


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"baseline": "A"}, ""),
        ({"baseline": "A", "candidate": "B", "weight_bp": 1, "salt": "s"}, ""),
        ({"baseline": "A", "candidate": "B", "weight_bp": 10_000, "salt": "s"}, "does not exist"),
        ({"baseline": "A", "candidate": "B"}, "belong together"),
        ({"baseline": "A", "weight_bp": 500}, "belong together"),
        ({"baseline": "A", "candidate": "B", "weight_bp": 500}, "without a salt"),
        ({}, "no baseline"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(fields: dict[str, object], said: str) -> None:
    deployment = Deployment(config="c", environment="production", revision=3, **fields)  # type: ignore[arg-type]

    assert (said in problem(deployment)) if said else problem(deployment) == ""


def test_how_soon_clients_follow_counts_those_that_had_to() -> None:
    moved = Deployment(
        config="c", environment="production", revision=3, baseline="A", kind=Kind.PROMOTE, changed_at=NOW
    )

    def instance(number: int, after_ms: int, *, revision: int = 3, reloaded: bool = True) -> Instance:
        return Instance(
            id=str(number),
            name=f"host:{number}",
            environment="production",
            config="c",
            revision=revision,
            serving_since=NOW + timedelta(milliseconds=after_ms),
            reloaded=reloaded,
            refused=0,
            reason="",
            seen_at=NOW,
        )

    standing = Standing(
        deployment=moved,
        instances=(
            instance(1, 12),
            instance(2, 38),
            instance(3, 90_000, reloaded=False),
            instance(4, -5, revision=2),
        ),
    )

    assert len(standing.following) == 3
    assert standing.took == timedelta(milliseconds=38)


def test_a_deployment_crosses_process_borders_and_comes_back_equal() -> None:
    made = Deployment(
        config="c",
        environment="production",
        revision=3,
        kind=Kind.CANARY,
        baseline="A",
        candidate="B",
        weight_bp=500,
        salt="s",
        policy="p",
        evidence="e",
        actor="ada",
        reason="calmer tone",
        changed_at=NOW,
    )

    assert Deployment.from_json(made.to_json()) == made
