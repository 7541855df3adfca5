"""What `status` and `log` show, as text files to compare with."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from deploy_gates.core.promotion import Deployment, Event, Instance, Kind, Standing
from deploy_gates.report import record
from deploy_gates.report.record import Terminal
from deploy_gates.report.text import width
from deploy_gates.testing import NOW

HERE = Path(__file__).parent
A, B = "3f9c2e1" + "a" * 57, "8a41d07" + "b" * 57


def a_deployment(environment: str, revision: int, **fields: object) -> Deployment:
    made: dict[str, object] = {
        "config": "ticket-triage",
        "kind": Kind.PROMOTE,
        "baseline": A,
        "actor": "ada",
        "reason": "calmer tone",
        "changed_at": NOW - timedelta(minutes=9),
        "evidence": "c0ffee1" + "c" * 57,
    }
    return Deployment(environment=environment, revision=revision, **(made | fields))  # type: ignore[arg-type]


def an_instance(number: int, deployment: Deployment, **fields: object) -> Instance:
    assert deployment.changed_at is not None
    made: dict[str, object] = {
        "revision": deployment.revision,
        "serving_since": deployment.changed_at + timedelta(milliseconds=12 + number),
        "reloaded": True,
        "refused": 0,
        "reason": "",
        "seen_at": NOW,
    }
    return Instance(
        id=str(number),
        name=f"web-{number}:{4000 + number}",
        environment=deployment.environment,
        config=deployment.config,
        **(made | fields),  # type: ignore[arg-type]
    )


DEVELOPMENT = a_deployment("development", 20)
STAGING = a_deployment(
    "staging",
    19,
    reason="a reason that is rather long, and says far more than anybody wanted to know about it",
)
PRODUCTION = a_deployment(
    "production", 44, kind=Kind.CANARY, candidate=B, weight_bp=525, salt="s", actor="ship", changed_at=NOW
)
BACK = a_deployment(
    "production",
    7,
    config="a-config-with-quite-a-long-name",
    kind=Kind.ROLLBACK,
    reason="refused: \x1b[31maccepted\x1b[0m −8.2 pt",
    changed_at=NOW - timedelta(days=3),
)
STANDINGS = (
    Standing(deployment=BACK, instances=(an_instance(1, BACK, reloaded=False),)),
    Standing(deployment=DEVELOPMENT, instances=()),
    Standing(deployment=STAGING, instances=tuple(an_instance(each, STAGING) for each in range(14))),
    Standing(
        deployment=PRODUCTION,
        instances=(
            an_instance(1, PRODUCTION),
            an_instance(2, PRODUCTION, revision=43, refused=44, reason="8a41d07 is not what its digest says"),
        ),
    ),
)
EVENTS = tuple(
    Event(
        config=each.config,
        environment=each.environment,
        revision=each.revision,
        kind=each.kind.value if each.kind else "",
        baseline=each.baseline,
        candidate=each.candidate,
        weight_bp=each.weight_bp,
        salt=each.salt,
        policy="p",
        evidence=each.evidence,
        fence=1,
        actor=each.actor,
        reason=each.reason,
        key="k",
        at_ms=int((each.changed_at or NOW).timestamp() * 1000),
        previous="",
        hash="",
    )
    for each in (BACK, PRODUCTION, STAGING, replace(DEVELOPMENT, reason=""))
)


@pytest.mark.parametrize("name", ["status", "log"])
def test_the_screen_is_the_text_in_its_file(name: str) -> None:
    terminal = Terminal()
    lines = (
        record.status(STANDINGS, terminal, now=NOW)
        if name == "status"
        else record.history(EVENTS, terminal) + record.verification([BACK, PRODUCTION], [], terminal)
    )

    assert "\n".join(lines) + "\n" == (HERE / f"{name}.txt").read_text("utf-8")


@pytest.mark.parametrize("columns", [80, 96])
@pytest.mark.parametrize("unicode", [True, False])
def test_every_screen_fits_and_shows_no_control_characters(columns: int, unicode: bool) -> None:
    terminal = Terminal(width=columns, unicode=unicode)

    lines = [
        *record.status(STANDINGS, terminal, now=NOW),
        *record.history(EVENTS, terminal),
        *record.verification([BACK], ["r3 of x in production was edited"], terminal),
        *[line for each in STANDINGS for line in record.moved(each, True, terminal)],
    ]

    assert [line for line in lines if width(line) > columns] == []
    assert all(line.isprintable() for line in lines)
    assert unicode or all(line.isascii() for line in lines)


def test_color_only_repeats_the_words() -> None:
    plain = record.status(STANDINGS, Terminal(), now=NOW)

    colored = record.status(STANDINGS, Terminal(color=True), now=NOW)

    assert [re.sub(r"\x1b\[\d+m", "", line) for line in colored] == plain
    assert colored != plain
