"""A running canary is watched on a real store: from its start, through its steps, whoever ends it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deploy_gates import clock, runner
from deploy_gates.canary import watching
from deploy_gates.canary.watching import REPORTING_S, USER_S, Look, watch
from deploy_gates.core.canary import Action, Plan
from deploy_gates.core.canonical import spelled
from deploy_gates.core.errors import Refused, StoreUnavailable
from deploy_gates.core.promotion import Record
from deploy_gates.core.tally import BIN_MS, Arm, Histogram, Tally, Unit
from deploy_gates.store import Store, open_store
from deploy_gates.testing import POLICY, a_document

CONFIG, ENVIRONMENT = "ticket-triage", "development"
LOOKS_MAX = 400
"""Whoever watches for so long watches for ever."""


@dataclass
class Released:
    """A store with a canary that began just now, a clock that tests move on, and what clients tell."""

    store: Store
    baseline: int
    canary: int
    began_ms: int
    at: datetime
    sent: int = 0
    meanwhile: dict[int, Callable[[], object]] = field(default_factory=dict)
    """What happens after so many polls."""
    polls: int = 0

    def now(self) -> datetime:
        return self.at

    def wait(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        self.polls += 1
        assert self.polls < LOOKS_MAX * 5, "nothing is decided"
        if self.polls in self.meanwhile:
            self.meanwhile.pop(self.polls)()

    def watch(self, plan: Plan | None = None, **fields: Any) -> Iterator[Look]:
        return watch(
            self.store,
            plan or Plan(),
            CONFIG,
            ENVIRONMENT,
            now=self.now,
            wait=self.wait,
            **fields,
        )

    def bin(self, after_s: float) -> int:
        """The bin that begins so long after the first whole one of the canary."""
        return (self.began_ms // BIN_MS + 1) * BIN_MS + round(after_s * 1000)

    def send(self, *tallies: Tally) -> None:
        self.store.add_tallies("client-1", self.sent, tallies)
        self.sent += len(tallies)

    def serve(self, after_s: float, until_s: float, **fields: Any) -> None:
        """Traffic of both arms, from one time to another after the first bin of the canary."""
        for second in range(round(after_s), round(until_s), BIN_MS // 1000):
            canary = self.canary if second >= 0 else self.baseline
            made = [self.tally(second, Arm.BASELINE, 380, revision=canary, **fields)]
            if second >= 0:
                made.append(self.tally(second, Arm.CANDIDATE, 120, revision=canary, **fields))
            self.send(*made)

    def tally(
        self,
        after_s: float,
        arm: Arm,
        n: int,
        *,
        revision: int,
        times: float = 1.0,
        **fields: Any,
    ) -> Tally:
        rng = random.Random(f"{after_s} {arm}")
        slower = times if arm is Arm.CANDIDATE else 1.0
        errors = n // 100
        lengths = [rng.lognormvariate(0, 0.8) for _ in range(n - errors)]
        made: dict[str, Any] = {
            "config": CONFIG,
            "environment": ENVIRONMENT,
            "revision": revision,
            "arm": arm,
            "start_ms": self.bin(after_s),
            "started": n,
            "finished": n,
            "errors": errors,
            "latency_s": Histogram.of([each * slower for each in lengths]),
            "cost_usd": Histogram.of([each * 0.002 for each in lengths]),
        }
        return Tally(**(made | fields))


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    made = open_store(store_url, durable=False)
    made.upgrade()
    yield made
    made.close()


def released(store: Store, version: int, weight_bp: int | None = None) -> int:
    digest = runner.keep(store, CONFIG, spelled(a_document(version)))
    store.put_evidence(
        Record(
            id=os.urandom(32).hex(),
            config=CONFIG,
            digest=digest,
            policy=POLICY,
            verdict="pass",
            finished_at=clock.now(),
            admitted_until={ENVIRONMENT: clock.now() + timedelta(days=1)},
            envelope=b"{}",
        )
    )
    moved = runner.promote(
        store,
        config=CONFIG,
        environment=ENVIRONMENT,
        digest=digest,
        policy=POLICY,
        actor="ada",
        reason="calmer tone",
        weight_bp=weight_bp,
    )
    return moved.deployment.revision


@pytest.fixture
def canary(store: Store) -> Released:
    baseline = released(store, 1)
    revision = released(store, 2, 2_400)
    began_ms = store.history(CONFIG, ENVIRONMENT)[-1].at_ms
    at = datetime.fromtimestamp(began_ms / 1000, UTC)
    return Released(store=store, baseline=baseline, canary=revision, began_ms=began_ms, at=at)


def test_a_candidate_that_is_no_worse_is_promoted_from_the_first_bin_of_its_canary_on(
    canary: Released,
) -> None:
    canary.serve(-60, 300)
    canary.at += timedelta(seconds=320)

    looks = list(canary.watch())

    last = looks[-1].decision
    assert last is not None
    assert last.action is Action.PROMOTE
    assert looks[-1].has_ended
    assert last.started_ms == canary.bin(0)
    assert last.arms.baseline + last.arms.candidate == round(last.elapsed_s) // 5 * 500


def test_a_slower_candidate_is_rolled_back_and_a_second_watcher_sees_the_same(canary: Released) -> None:
    canary.serve(-60, 300, times=1.6)
    canary.at += timedelta(seconds=320)

    looks = [each.decision for each in canary.watch()]
    again = [each.decision for each in canary.watch()]

    assert looks[-1] is not None
    assert (looks[-1].action, looks[-1].cause[0]) == (Action.ROLLBACK, "latency")
    assert looks == again


def test_a_bin_is_judged_once_its_calls_are_back_and_not_before_it_was_reported(canary: Released) -> None:
    canary.serve(-60, 20)
    looks = canary.watch()

    ends = []
    for look in looks:
        if look.decision is not None and look.decision.started_ms is not None:
            ends.append((canary.at.timestamp() * 1000 - look.decision.at_ms) / 1000)
        if len(ends) == 3:
            break

    assert all(REPORTING_S <= each < REPORTING_S + 2 for each in ends), ends


def test_calls_that_never_come_back_are_errors_once_they_can_no_longer_come_back(canary: Released) -> None:
    canary.serve(-60, 0)
    hanging = canary.tally(
        0, Arm.CANDIDATE, 120, revision=canary.canary, latency_s=Histogram(), finished=0, errors=0
    )
    canary.send(canary.tally(0, Arm.BASELINE, 380, revision=canary.canary), hanging)

    last = list(canary.watch())[-1].decision

    assert last is not None
    assert last.action is Action.ROLLBACK
    assert last.cause == ("errors.limit",)
    timeout_s = watching.find(canary.store, CONFIG, ENVIRONMENT).timeout_s
    assert canary.at.timestamp() * 1000 >= canary.bin(5) + timeout_s * 1000


def test_users_are_the_unit_where_clients_report_them_and_requests_are_not_counted_as_well(
    canary: Released,
) -> None:
    canary.serve(-60, 300)
    canary.serve(0, 300, unit=Unit.USER)
    canary.at += timedelta(seconds=330)

    last = list(canary.watch())[-1].decision

    assert last is not None
    assert last.plan.unit is Unit.USER
    assert last.arms.candidate == round(last.elapsed_s) // 5 * 120


def test_users_who_were_all_counted_are_not_missed_as_long_as_there_are_requests(canary: Released) -> None:
    canary.serve(-60, 300)
    canary.serve(-60, 30, unit=Unit.USER)
    canary.at += timedelta(seconds=330)

    last = next(
        each.decision
        for each in canary.watch()
        if each.decision is not None and each.decision.elapsed_s >= 250
    )

    assert last.plan.unit is Unit.USER
    assert last.arms.candidate == 6 * 120
    assert last.action is Action.CONTINUE
    assert not any("no request" in each for each in last.missing)


def test_users_whose_time_is_not_over_are_waited_for(canary: Released) -> None:
    canary.serve(-60, 0)
    open_users = canary.tally(0, Arm.CANDIDATE, 40, revision=canary.canary, unit=Unit.USER, finished=20)
    canary.send(canary.tally(0, Arm.BASELINE, 380, revision=canary.canary, unit=Unit.USER), open_users)

    look = next(
        each for each in canary.watch() if each.decision is not None and each.decision.started_ms is not None
    )

    assert look.decision is not None
    assert canary.at.timestamp() * 1000 >= canary.bin(5) + (USER_S + REPORTING_S) * 1000
    assert look.decision.arms.unfinished == 20


@pytest.mark.parametrize(
    ("failing", "of_baseline", "is_over"), [(70, 0, True), (40, 0, False), (70, 200, False)]
)
def test_the_hard_limit_does_not_wait_for_users_whose_time_is_not_over(
    canary: Released, failing: int, of_baseline: int, is_over: bool
) -> None:
    canary.serve(-60, 0)
    for arm, n in ((Arm.BASELINE, 380), (Arm.CANDIDATE, 120)):
        canary.send(
            canary.tally(0, arm, n // 2, revision=canary.canary, unit=Unit.USER, finished=0, errors=0)
        )
    canary.send(
        canary.tally(0, Arm.BASELINE, 380, revision=canary.canary, errors=of_baseline),
        canary.tally(0, Arm.CANDIDATE, 120, revision=canary.canary, errors=failing),
    )

    looks = []
    for look in canary.watch():
        looks.append(look)
        if look.decision is not None and look.decision.started_ms is not None:
            break

    assert looks[-1].decision is not None
    took_s = canary.at.timestamp() - canary.bin(5) / 1000
    assert (looks[-1].decision.cause == ("errors.limit",) and took_s < REPORTING_S + 2) is is_over


def test_a_new_weight_is_a_step_of_the_same_canary_with_its_own_share(canary: Released) -> None:
    canary.serve(-60, 15)
    steps: list[int] = []

    def step() -> None:
        steps.append(released(canary.store, 2, 5_000))
        canary.canary = steps[0]
        canary.serve(15, 40)

    canary.meanwhile = {22: step}
    seen: Mapping[int, float] = {}
    for look in canary.watch():
        assert not look.moved
        if look.decision is not None and look.decision.elapsed_s >= 30:
            seen, last = look.decision.plan.shares, look.decision
            break

    assert seen == {canary.baseline + 1: 0.24, steps[0]: 0.5}
    assert last.started_ms == canary.bin(0)
    assert last.arms.candidate == 120 * 6


def test_what_was_served_before_or_in_another_canary_is_not_counted(canary: Released) -> None:
    canary.serve(-60, 20)
    other = replace(canary.tally(5, Arm.CANDIDATE, 50, revision=canary.canary, errors=50), revision=999)
    canary.send(other)
    canary.at += timedelta(seconds=24)

    decision = None
    for look in canary.watch():
        decision = look.decision
        if decision is not None and decision.elapsed_s >= 20:
            break

    assert decision is not None
    assert decision.arms.candidate == 4 * 120


@pytest.mark.parametrize("end", ["promoted", "rolled back"])
def test_whoever_ends_the_canary_meanwhile_is_named(canary: Released, end: str) -> None:
    canary.serve(-60, 20)

    def move() -> None:
        if end == "promoted":
            released(canary.store, 2)
        else:
            runner.rollback(
                canary.store, config=CONFIG, environment=ENVIRONMENT, actor="lin", reason="refunds"
            )

    canary.meanwhile = {15: move}
    last = list(canary.watch())[-1]

    assert last.has_ended
    assert last.moved.startswith(f"{end} by {'ada' if end == 'promoted' else 'lin'} at r3")
    assert last.decision is not None
    assert last.decision.action is Action.CONTINUE


def test_a_source_that_is_away_leaves_the_decision_as_it_is_and_says_how_old_it_is(canary: Released) -> None:
    canary.serve(-60, 60)
    is_away = False

    def source(since_ms: int, until_ms: int) -> list[Tally]:
        if is_away:
            raise StoreUnavailable("it does not answer")
        return list(canary.store.tallies(CONFIG, ENVIRONMENT, since_ms=since_ms, until_ms=until_ms))

    stale: list[Look] = []
    before = None
    for look in canary.watch(source=source):
        if look.problem:
            stale.append(look)
            assert look.decision == before
            is_away = len(stale) < 5
        elif look.decision is not None and look.decision.started_ms is not None and not stale:
            before, is_away = look.decision, True
        elif stale and not look.problem:
            break

    assert [each.problem for each in stale] == ["it does not answer"] * 5
    assert stale[-1].stale_s > stale[0].stale_s > 0
    assert look.decision is not None
    assert before is not None
    assert look.decision.at_ms == before.at_ms + BIN_MS, "nothing was lost meanwhile"


def test_without_a_request_of_the_candidate_nothing_is_promoted(canary: Released) -> None:
    canary.serve(-60, 0)
    canary.send(*(canary.tally(each, Arm.BASELINE, 380, revision=canary.canary) for each in range(0, 300, 5)))
    canary.at += timedelta(seconds=310)

    seen = set()
    for look in canary.watch():
        assert look.decision is not None
        seen.add(look.decision.action)
        if look.decision.at_ms >= canary.bin(290):
            break

    assert seen == {Action.HOLD}


def test_where_no_canary_runs_nothing_is_watched(store: Store) -> None:
    released(store, 1)

    with pytest.raises(Refused, match="no canary of ticket-triage runs in development"):
        next(watch(store, Plan(), CONFIG, ENVIRONMENT))
