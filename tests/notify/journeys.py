"""Promotions at every point of their way, as values."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from deploy_gates import clock
from deploy_gates.core.delivery import Delivery
from deploy_gates.core.release import Act, Entry, Promotion, Release, State, Status, Terms

COMMIT = "9fceb02d0ae598e95dc970b74767f19372d61af8"
FIGURES: Any = {
    "action": "promote",
    "at_s": 300.0,
    "metrics": [
        {"metric": "errors", "aspect": "rate", "baseline": 0.0097, "candidate": 0.0101, "word": "safe"},
        {"metric": "latency", "aspect": "shape", "baseline": 0.793, "candidate": 0.984, "word": "harmful"},
        {"metric": "latency", "aspect": "tail", "baseline": 2.1, "candidate": 2.2, "word": "undecided"},
    ],
}
ADMIT = (Act.ADMIT, "", {"said": "five gates pass, 4 min old", "evidence": "e" * 64})
STAGING = (
    (Act.PROMOTE, "staging", {"said": "r6 → r7", "from": 6, "to": 7}),
    (Act.SMOKE, "staging", {"said": "3 of 3 smoke cases", "cases": 3, "met": 3}),
)
CANARY = (Act.CANARY, "production", {"said": "r42 sends 5 % to 8a41d07", "to": 42, "weight_bp": 500})
DECIDED = (
    Act.ANALYSIS,
    "production",
    {"said": "every metric is proved to be no worse", "action": "promote", "decision": FIGURES},
)
PROMOTED = (Act.PROMOTE, "production", {"said": "r42 → r43", "to": 43})
ROLLBACK = (Act.ROLLBACK, "production", {"said": "latency is worse", "to": 43})
GOOD = (ADMIT, *STAGING, CANARY, DECIDED, PROMOTED)


def promotion(*steps: Any, state: State = State.RUNNING, conclusion: str = "", **fields: Any) -> Promotion:
    """A promotion whose steps were begun and done; a fourth part of a step is another status."""
    began = fields.pop("began", clock.now().replace(microsecond=0) - timedelta(minutes=10))
    journal: list[Entry] = []
    for at, (act, environment, data, *status) in enumerate(steps):
        said = status[0] if status else Status.DONE
        for each in (Status.BEGUN, said) if said is not Status.HELD else (said,):
            journal.append(
                Entry(
                    promotion=118,
                    number=len(journal) + 1,
                    act=act,
                    environment=environment,
                    status=each,
                    at_ms=int((began + timedelta(seconds=10 * at)).timestamp() * 1000),
                    owner="runner-1",
                    data={} if each is Status.BEGUN else data,
                )
            )
    release = Release(
        config="ticket-triage",
        digest="8a41d07" + "0" * 57,
        actor="ada",
        reason=fields.pop("reason", "refunds go to billing"),
        commit=fields.pop("commit", COMMIT),
    )
    made = Promotion(
        id=118,
        release=release,
        until="production",
        baseline="3f9c2e1" + "0" * 57,
        policy="1" * 64,
        terms=Terms(),
        state=state,
        conclusion=conclusion,
        proposed_at=began,
        concluded_at=began + timedelta(minutes=5) if state.is_final else None,
        journal=tuple(journal),
    )
    return replace(made, **fields)


def shipped(**fields: Any) -> Promotion:
    return promotion(*GOOD, state=State.SHIPPED, conclusion="production serves 8a41d07", **fields)


def rolled_back(**fields: Any) -> Promotion:
    worse = (
        Act.ANALYSIS,
        "production",
        {"said": "latency rose 28 %", "action": "rollback", "decision": FIGURES | {"action": "rollback"}},
        Status.FAILED,
    )
    steps = (ADMIT, *STAGING, CANARY, worse, ROLLBACK)
    return promotion(*steps, state=State.ROLLED_BACK, conclusion="latency rose 28 %", **fields)


def a_delivery(event: Any, channel: str = "team", **fields: Any) -> Delivery:
    at = datetime(2026, 11, 23, tzinfo=UTC)
    made = Delivery(
        id=f"{event['id']}_{channel}",
        thread="promotion/118",
        channel=channel,
        body=event,
        created_at=datetime.fromisoformat(event["time"]),
        next_at=at,
    )
    return replace(made, **fields)
