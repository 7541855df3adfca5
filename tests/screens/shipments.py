"""Promotions made by hand: every line of a journal is given, so that a screen can be compared with a text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import canaries

from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.promotion import Deployment, Instance, Kind, Standing
from deploy_gates.core.release import Act, Entry, Promotion, Release, State, Status

START = datetime(2026, 11, 23, 9, 14, 2, tzinfo=UTC)
OLD, NEW = "3f9c2e1" + "0" * 57, "8a41d07" + "0" * 57
RELEASE = Release(
    config="ticket-triage", digest=NEW, actor="ada", reason="calmer tone", commit="0d4be12" + "0" * 33
)

Row = tuple[float, Act, str, Status, JsonObject]

EVIDENCE: list[Row] = [
    (0, Act.ADMIT, "", Status.BEGUN, {}),
    (0.02, Act.ADMIT, "", Status.DONE, {"said": "five gates pass, signed by ci, 4 min old"}),
]


def environment(name: str, at_s: float, before: int) -> list[Row]:
    """One that is moved, and whose smoke cases are met."""
    said = f"r{before} → r{before + 1}"
    return [
        (at_s, Act.PROMOTE, name, Status.BEGUN, {"said": "calmer tone"}),
        (at_s + 0.1, Act.PROMOTE, name, Status.DONE, {"said": said, "from": before, "to": before + 1}),
        (at_s + 0.1, Act.SMOKE, name, Status.BEGUN, {}),
        (at_s + 2.4, Act.SMOKE, name, Status.DONE, {"said": "5 of 5 smoke cases"}),
    ]


CANARY: list[Row] = [
    (5, Act.CANARY, "production", Status.BEGUN, {"said": "calmer tone"}),
    (5.1, Act.CANARY, "production", Status.DONE, {"said": "r42 sends 5 % to 8a41d07", "from": 41, "to": 42}),
    (5.1, Act.ANALYSIS, "production", Status.BEGUN, {}),
]
UNDER_WAY = [*EVIDENCE, *environment("development", 0.02, 18), *environment("staging", 2.5, 17), *CANARY]


def promotion(rows: list[Row], **fields: object) -> Promotion:
    """A promotion with these lines in its journal, each so many seconds after its start."""
    journal = tuple(
        Entry(
            promotion=118,
            number=number,
            act=act,
            environment=place,
            status=status,
            at_ms=round((START + timedelta(seconds=at_s)).timestamp() * 1000),
            owner="ada@desk:1:00",
            data=data,
        )
        for number, (at_s, act, place, status, data) in enumerate(rows, start=1)
    )
    given = {
        "id": 118,
        "release": RELEASE,
        "until": "production",
        "baseline": OLD,
        "proposed_at": START,
        "journal": journal,
    }
    return Promotion(**{**given, **fields})  # type: ignore[arg-type]  # by field


def standing(
    baseline: str, revision: int, took: timedelta, clients: int = 12, candidate: str = ""
) -> Standing:
    """Production at a revision, with clients that have it; a candidate has 5 % of it."""
    changed_at = START + timedelta(minutes=5)
    made = Deployment(
        config="ticket-triage",
        environment="production",
        revision=revision,
        kind=Kind.PROMOTE,
        baseline=baseline,
        candidate=candidate,
        weight_bp=500 if candidate else 0,
        changed_at=changed_at,
    )
    instances = tuple(
        Instance(
            id=str(each),
            name=f"triage-{each}",
            environment="production",
            config="ticket-triage",
            revision=revision,
            serving_since=changed_at + took,
            reloaded=True,
            refused=0,
            reason="",
            seen_at=changed_at + took,
        )
        for each in range(clients)
    )
    return Standing(deployment=made, instances=instances)


def shipped() -> Promotion:
    """One that every metric has proved to be no worse."""
    figures: JsonObject = {
        "arms": {"baseline": 26_600, "candidate": 1_412},
        "metrics": [{"metric": each, "dry_run": False} for each in ("errors", "accepted", "latency", "cost")],
    }
    rows: list[Row] = [
        *UNDER_WAY,
        (
            306,
            Act.ANALYSIS,
            "production",
            Status.DONE,
            {"said": "proved", "action": "promote", "decision": figures},
        ),
        (306, Act.PROMOTE, "production", Status.BEGUN, {}),
        (307, Act.PROMOTE, "production", Status.DONE, {"said": "r42 → r43", "from": 42, "to": 43}),
    ]
    concluded = START + timedelta(seconds=307)
    return promotion(
        rows, state=State.SHIPPED, conclusion="production serves 8a41d07", concluded_at=concluded
    )


def rolled_back() -> Promotion:
    """One that users rejected."""
    why = "accepted fell 8.2 pt, at best 2.9 pt (95 % sure, at any time); the margin is 2.0 pt"
    decision: JsonObject = {"arms": {"baseline": 11_400, "candidate": 600}}
    rows: list[Row] = [
        *UNDER_WAY,
        (
            185,
            Act.ANALYSIS,
            "production",
            Status.FAILED,
            {"said": why, "action": "rollback", "decision": decision},
        ),
        (185, Act.ROLLBACK, "production", Status.BEGUN, {"said": why}),
        (185.1, Act.ROLLBACK, "production", Status.DONE, {"said": why, "from": 42, "to": 43}),
    ]
    concluded = START + timedelta(seconds=185.1)
    return promotion(rows, state=State.ROLLED_BACK, conclusion=why, concluded_at=concluded)


def held(said: str = "production wants 1 person other than ada to approve, and has 0") -> Promotion:
    """One that waits for somebody's word."""
    rows: list[Row] = [
        *UNDER_WAY[:-3],
        (
            5,
            Act.APPROVAL,
            "production",
            Status.HELD,
            {"said": said, "hint": "deploy-gates approve ticket-triage"},
        ),
    ]
    return promotion(rows)


def looks() -> object:
    """A canary that is still undecided."""
    return canaries.going()
