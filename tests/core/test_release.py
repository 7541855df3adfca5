"""What comes next with a release on its way."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.config import ENVIRONMENTS
from deploy_gates.core.freezing import Window, freezes
from deploy_gates.core.promotion import Deployment, Kind
from deploy_gates.core.release import (
    Act,
    Approval,
    Conclude,
    Entry,
    Facts,
    Freeze,
    Hold,
    Next,
    Promotion,
    Release,
    State,
    Status,
    Step,
    Terms,
    next_step,
)

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
OLD, NEW, OTHER = "a" * 64, "b" * 64, "c" * 64
RELEASE = Release(config="triage", digest=NEW, actor="ada", reason="calmer tone")


def promotion(
    *journal: tuple[Act, str, Status] | tuple[Act, str, Status, JsonObject], **fields: object
) -> Promotion:
    entries = tuple(
        Entry(
            promotion=1,
            number=at,
            act=row[0],
            environment=row[1],
            status=row[2],
            at_ms=at,
            owner="me",
            data={"said": f"{row[0]} said", **(row[3] if len(row) > 3 else {})},
        )
        for at, row in enumerate(journal, start=1)
    )
    given = {"id": 1, "release": RELEASE, "until": "production", "proposed_at": NOW, "journal": entries}
    return Promotion(**{**given, **fields})  # type: ignore[arg-type]  # by field


def served(environment: str, baseline: str = OLD, **fields: object) -> Deployment:
    given = {"config": "triage", "environment": environment, "revision": 7, "baseline": baseline}
    return Deployment(**{**given, "kind": Kind.PROMOTE, "actor": "bob", **fields})  # type: ignore[arg-type]


def facts(*deployments: Deployment, now: datetime = NOW, approvals: tuple[Approval, ...] = ()) -> Facts:
    return Facts(now=now, deployments={each.environment: each for each in deployments}, approvals=approvals)


EVIDENCE = (Act.ADMIT, "", Status.DONE)
HERE = [(act, where, Status.DONE) for where in ENVIRONMENTS[:2] for act in (Act.PROMOTE, Act.SMOKE)]
CANARY = (Act.CANARY, "production", Status.DONE)
AHEAD = [served("development", NEW), served("staging", NEW)]
WITH_CANARY = served("production", candidate=NEW, weight_bp=500, salt="s", kind=Kind.CANARY)


def test_evidence_comes_first() -> None:
    assert next_step(promotion(), facts()) == Step(act=Act.ADMIT)


def test_evidence_that_says_no_blocks() -> None:
    found = next_step(promotion((Act.ADMIT, "", Status.FAILED)), facts())

    assert found == Conclude(state=State.BLOCKED, reason="evidence said")


def test_environments_come_in_their_order_each_with_its_smoke_cases() -> None:
    world = World(smoke=lambda where: True, decides="promote")

    ended = world.run()

    assert ended.state is State.SHIPPED
    assert world.done == [
        "evidence",
        "promote development",
        "smoke development",
        "promote staging",
        "smoke staging",
        "canary production",
        "analysis production",
        "promote production",
    ]


def test_a_smoke_case_that_is_missed_rolls_back_and_goes_no_further() -> None:
    world = World(smoke=lambda where: where != "staging")

    ended = world.run()

    assert ended.state is State.ROLLED_BACK
    assert world.deployments["staging"].baseline == OLD
    assert world.deployments["production"].baseline == OLD
    assert world.done[-2:] == ["smoke staging", "rollback staging"]


def test_a_canary_that_is_worse_is_rolled_back() -> None:
    world = World(decides="rollback")

    ended = world.run()

    assert ended.state is State.ROLLED_BACK
    assert world.deployments["production"].baseline == OLD
    assert not world.deployments["production"].candidate


def test_the_first_release_goes_to_everybody_and_is_smoked_in_production() -> None:
    world = World(deployments={})

    ended = world.run()

    assert ended.state is State.SHIPPED
    assert world.done[-2:] == ["promote production", "smoke production"]


def test_until_staging_leaves_production_alone() -> None:
    world = World(until="staging")

    ended = world.run()

    assert ended.state is State.SHIPPED
    assert world.deployments["production"].baseline == OLD


def test_a_canary_of_something_else_is_waited_for() -> None:
    there = served("production", candidate=OTHER, weight_bp=500, salt="s")

    found = next_step(promotion(EVIDENCE, *HERE), facts(*AHEAD, there))

    assert isinstance(found, Hold)
    assert "a canary of ccccccc runs in production" in found.reason


def test_nothing_goes_into_a_frozen_environment_and_a_rollback_does() -> None:
    frozen = Freeze(
        environment="production", since=NOW - timedelta(1), until=NOW + timedelta(1), reason="fair"
    )
    terms = Terms(freezes=(frozen,))
    harmful = (Act.ANALYSIS, "production", Status.FAILED, {"action": "rollback"})

    waits = next_step(promotion(EVIDENCE, *HERE, terms=terms), facts(*AHEAD, served("production")))
    back = next_step(promotion(EVIDENCE, *HERE, CANARY, harmful, terms=terms), facts(*AHEAD, WITH_CANARY))  # type: ignore[arg-type]
    after = next_step(
        promotion(EVIDENCE, *HERE, terms=terms), facts(*AHEAD, served("production"), now=NOW + timedelta(2))
    )

    assert isinstance(waits, Hold)
    assert waits.reason == "production is frozen until 2026-11-24 12:00 UTC: fair"
    assert isinstance(back, Step)
    assert back.act is Act.ROLLBACK
    assert isinstance(after, Step)
    assert after.act is Act.CANARY


@pytest.mark.parametrize(("approver", "is_enough"), [("ada", False), ("bob", True)])
def test_an_approval_is_somebody_elses(approver: str, is_enough: bool) -> None:
    given = Approval(config="triage", digest=NEW, environment="production", approver=approver, at=NOW)
    asked = promotion(EVIDENCE, *HERE, terms=Terms(approvals={"production": 1}))

    found = next_step(asked, facts(*AHEAD, served("production"), approvals=(given,)))

    assert isinstance(found, Step if is_enough else Hold)


def test_the_same_person_approves_once() -> None:
    twice = tuple(
        Approval(
            config="triage", digest=NEW, environment="production", approver="bob", at=NOW + timedelta(each)
        )
        for each in range(2)
    )
    asked = promotion(EVIDENCE, *HERE, terms=Terms(approvals={"production": 2}))

    assert isinstance(next_step(asked, facts(*AHEAD, served("production"), approvals=twice)), Hold)


def test_a_rollback_by_hand_ends_it() -> None:
    there = served("production", kind=Kind.ROLLBACK, reason="too slow")

    found = next_step(promotion(EVIDENCE, *HERE, CANARY), facts(*AHEAD, there))

    assert isinstance(found, Conclude)
    assert found.state is State.ROLLED_BACK
    assert "bob has moved production" in found.reason


def test_a_promotion_by_hand_ends_it_as_shipped() -> None:
    found = next_step(promotion(EVIDENCE, *HERE, CANARY), facts(*AHEAD, served("production", NEW)))

    assert isinstance(found, Conclude)
    assert found.state is State.SHIPPED


def test_a_canary_past_its_deadline_is_rolled_back() -> None:
    late = replace(WITH_CANARY, expires_at=NOW - timedelta(seconds=1))

    found = next_step(promotion(EVIDENCE, *HERE, CANARY), facts(*AHEAD, late))

    assert isinstance(found, Step)
    assert found.act is Act.ROLLBACK
    assert "deadline" in found.reason


def test_a_canary_whose_promotion_the_store_refuses_is_rolled_back() -> None:
    proved = (Act.ANALYSIS, "production", Status.DONE, {"action": "promote"})
    refused = (Act.PROMOTE, "production", Status.FAILED)

    found = next_step(promotion(EVIDENCE, *HERE, CANARY, proved, refused), facts(*AHEAD, WITH_CANARY))  # type: ignore[arg-type]

    assert isinstance(found, Step)
    assert found.act is Act.ROLLBACK


def test_moves_name_the_revision_they_were_decided_at() -> None:
    found = next_step(promotion(EVIDENCE, *HERE), facts(*AHEAD, served("production", revision=41)))

    assert isinstance(found, Step)
    assert found.expected == 41


def test_terms_come_back_equal_from_json() -> None:
    terms = Terms(
        weight_bp=1000,
        canary={"mark_s": 60},
        lasts_s=180.0,
        approvals={"production": 2},
        freezes=(Freeze(environment="production", since=NOW, until=NOW + timedelta(1), reason="fair"),),
        smoke=False,
    )

    assert Terms.from_json(terms.to_json()) == terms


def test_terms_of_another_version_are_refused() -> None:
    with pytest.raises(ValueError, match="no terms"):
        Terms.from_json({"weight_bp": 500})


def test_a_weekly_freeze_keeps_to_the_clock_of_its_zone() -> None:
    weekend = Window(
        environment="production", weekday="fri", hour=16, hours=64, timezone="Europe/Berlin", reason="weekend"
    )

    found = freezes([weekend], datetime(2026, 10, 24, 12, tzinfo=UTC))

    assert found[0].since == datetime(2026, 10, 23, 14, tzinfo=UTC)  # summer time
    assert found[1].since == datetime(2026, 10, 30, 15, tzinfo=UTC)  # winter time
    assert all(each.until - each.since == timedelta(hours=64) for each in found)


# --- Killed anywhere ----------------------------------------------------------------------------


@dataclass
class World:
    """Environments and a journal, and a runner that may be killed around every effect."""

    deployments: dict[str, Deployment] = field(
        default_factory=lambda: {each: served(each) for each in ENVIRONMENTS}
    )
    until: str = "production"
    smoke: object = None
    decides: str = "promote"
    dies: random.Random | None = None
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.promotion = promotion(until=self.until)
        self.keys: dict[str, Deployment] = {}

    def run(self) -> Conclude:
        """Runners one after the other until it has ended."""
        for _ in range(400):
            following = next_step(self.promotion, facts(*self.deployments.values()))
            if isinstance(following, Conclude):
                return following
            assert isinstance(following, Step), following
            self._do(following)
        raise AssertionError(f"it does not end: {self.done}")

    def _do(self, step: Step) -> None:
        self._write(step, Status.BEGUN)
        if self._is_killed():
            return
        status, data = self._effect(step)
        if self._is_killed():
            return
        self._write(step, status, data)

    def _effect(self, step: Step) -> tuple[Status, JsonObject]:
        name = f"{step.act} {step.environment}".rstrip()
        if step.act is Act.SMOKE:
            self.done.append(name)
            is_met = self.smoke(step.environment) if callable(self.smoke) else True
            return (Status.DONE if is_met else Status.FAILED), {}
        if step.act is Act.ANALYSIS:
            self.done.append(name)
            status = Status.DONE if self.decides == "promote" else Status.FAILED
            return status, {"action": self.decides}
        if step.act is not Act.ADMIT and self.promotion.key(step) + step.environment not in self.keys:
            self._move(step)
            self.done.append(name)
        elif step.act is Act.ADMIT:
            self.done.append(name)
        return Status.DONE, {}

    def _move(self, step: Step) -> None:
        here = self.deployments.get(step.environment) or served(step.environment, "", revision=0)
        assert step.expected == here.revision, "decided on what is so"
        after = replace(here, revision=here.revision + 1, actor="ada")
        if step.act is Act.CANARY:
            after = replace(after, candidate=NEW, weight_bp=500, salt="s", kind=Kind.CANARY)
        elif step.act is Act.PROMOTE:
            after = replace(after, baseline=NEW, candidate="", weight_bp=0, kind=Kind.PROMOTE)
        else:
            after = replace(after, baseline=OLD, candidate="", weight_bp=0, kind=Kind.ROLLBACK)
        self.deployments[step.environment] = self.keys[self.promotion.key(step) + step.environment] = after

    def _is_killed(self) -> bool:
        return self.dies is not None and self.dies.random() < 0.3

    def _write(self, step: Step, status: Status, data: Mapping[str, object] | None = None) -> None:
        entry = Entry(
            promotion=1,
            number=len(self.promotion.journal) + 1,
            act=step.act,
            environment=step.environment,
            status=status,
            at_ms=0,
            owner="me",
            data={"said": step.reason, **(data or {})},  # type: ignore[dict-item]
        )
        self.promotion = replace(self.promotion, journal=(*self.promotion.journal, entry))


@pytest.mark.parametrize("decides", ["promote", "rollback"])
@pytest.mark.parametrize("fails", ["", "development", "staging"])
def test_runners_that_are_killed_anywhere_end_where_one_would_have(decides: str, fails: str) -> None:
    calm = World(smoke=lambda where: where != fails, decides=decides)
    expected = calm.run()

    for seed in range(200):
        world = World(smoke=lambda where: where != fails, decides=decides, dies=random.Random(seed))

        ended = world.run()

        assert ended.state is expected.state, world.done
        assert {each.environment: (each.baseline, each.candidate) for each in world.deployments.values()} == {
            each.environment: (each.baseline, each.candidate) for each in calm.deployments.values()
        }
        moves = [each for each in world.done if each.split()[0] in ("promote", "canary", "rollback")]
        assert len(moves) == len(set(moves)), "no move is made twice"


def test_whoever_moves_environments_meanwhile_production_gets_it_only_past_its_canary() -> None:
    for seed in range(300):
        chance = random.Random(seed)
        world = World(decides=chance.choice(["promote", "rollback"]), dies=chance)
        ended: Next | None = None
        for _ in range(200):
            if chance.random() < 0.1:  # somebody else's hand
                where = chance.choice(ENVIRONMENTS)
                here = world.deployments[where]
                world.deployments[where] = replace(
                    here,
                    revision=here.revision + 1,
                    baseline=OLD,
                    candidate="",
                    weight_bp=0,
                    kind=Kind.ROLLBACK,
                    actor="bob",
                )
            following = next_step(world.promotion, facts(*world.deployments.values()))
            if not isinstance(following, Step):
                ended = following
                break
            world._do(following)

        assert isinstance(ended, Conclude), world.done
        there = world.deployments["production"]
        assert not there.candidate, "nobody leaves a canary behind"
        if there.baseline == NEW:
            assert "analysis production" in world.done
            assert world.decides == "promote"
