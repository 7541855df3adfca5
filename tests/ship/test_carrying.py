"""Releases are carried to production on a real store, by one runner or several, through all that happens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from road import CONFIG, Road

from deploy_gates import clock, runner
from deploy_gates.core.errors import Refusal, Refused
from deploy_gates.core.release import Act, Approval, Freeze, State, Status
from deploy_gates.ship.caretaking import Caretaker
from deploy_gates.store import Store, open_store
from deploy_gates.testing import a_record


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    made = open_store(store_url, durable=False)
    made.upgrade()
    yield made
    made.close()


@pytest.fixture
def road(store: Store) -> Road:
    """Version 1 is everywhere, and users are there."""
    made = Road(store=store)
    assert made.ship(1).state is State.SHIPPED
    made.at += timedelta(seconds=60)
    made.serve()
    return made


def acts(journal: object) -> list[str]:
    return [
        f"{each.act} {each.environment}".rstrip()
        for each in journal  # type: ignore[attr-defined]
        if each.status is Status.DONE
    ]


# --- The way -------------------------------------------------------------------------------------


def test_a_release_that_is_no_worse_ends_in_all_of_production(road: Road) -> None:
    ended = road.ship(2)

    digest = ended.release.digest
    assert (ended.state, ended.conclusion) == (State.SHIPPED, f"production serves {digest[:7]}")
    assert acts(ended.journal) == [
        "evidence",
        "promote development",
        "promote staging",
        "canary production",
        "analysis production",
        "promote production",
    ]
    assert [road.serves(each) for each in ("development", "staging", "production")] == [(digest, "")] * 3
    assert "every metric is proved" in str(ended.last(Act.ANALYSIS, "production"))


def test_a_release_that_is_slower_is_rolled_back_and_the_log_says_why(road: Road) -> None:
    road.slower = 1.6
    before = road.serves()

    ended = road.ship(2)

    assert ended.state is State.ROLLED_BACK
    assert "latency" in ended.conclusion
    assert road.serves() == before
    last = road.store.history(CONFIG, "production")[-1]
    assert (last.kind, last.actor) == ("rollback", "ship")
    assert last.reason == ended.conclusion


def test_a_canary_begins_with_a_deadline_that_its_clients_know(road: Road) -> None:
    road.ship(2, lasts_s=900.0)

    canary = next(each for each in road.store.history(CONFIG, "production") if each.kind == "canary")
    assert canary.expires_at_ms - canary.at_ms == 900_000
    assert canary.weight_bp == 500


def test_what_is_served_already_is_not_moved_again(road: Road) -> None:
    road.ship(2, until="staging")

    ended = road.ship(2)

    assert ended.state is State.SHIPPED
    assert "promote staging" not in acts(ended.journal)


def test_the_same_release_proposed_twice_is_one_promotion(road: Road) -> None:
    first = road.propose(2)
    second = road.propose(2)

    assert second.id == first.id


# --- What says no --------------------------------------------------------------------------------


def test_without_evidence_nothing_moves(road: Road) -> None:
    proposed = road.propose(2)
    digest = proposed.release.digest
    road.store.put_evidence(a_record(digest, verdict="fail", finished_at=clock.now(), id="f" * 64))

    ended = road.carried(proposed.id)

    assert ended.state is State.BLOCKED
    assert road.serves("development")[0] != digest


def test_evidence_that_does_not_open_production_moves_nothing(road: Road) -> None:
    digest = runner.keep(road.store, CONFIG, b'{"a":1}')
    soon = {"development": clock.now() + timedelta(1), "staging": clock.now() + timedelta(1)}
    road.store.put_evidence(a_record(digest, admitted_until=soon))
    release = road.propose(2).release
    road.carried(road.propose(2).id)
    proposed = road.store.propose(
        type(release)(config=CONFIG, digest=digest, actor="ada"),
        until="production",
        policy="1" * 64,
        terms=road.propose(2).terms,
    )

    held = road.carried(proposed.id)

    assert held.state is State.RUNNING
    assert "not enough for production" in held.held
    assert road.serves("development")[0] != digest


def test_evidence_revoked_during_the_canary_rolls_it_back(road: Road) -> None:
    before = road.serves()
    failing = a_record("", verdict="fail", finished_at=clock.now(), id="e" * 64)

    def revoke() -> None:
        digest = road.serves()[1]
        assert digest, "the canary runs"
        road.store.put_evidence(a_record(digest, verdict="fail", finished_at=clock.now(), id=failing.id))

    road.meanwhile[road.waits + 10] = revoke

    ended = road.ship(2)

    assert ended.state is State.ROLLED_BACK
    assert road.serves() == before


def test_without_traffic_no_canary_begins(road: Road) -> None:
    road.rate_rps = 0
    road.at += timedelta(minutes=30)
    road.serve()

    held = road.ship(2)

    assert held.state is State.RUNNING
    assert "a canary would see nothing" in held.held
    assert road.serves()[1] == ""


def test_with_too_little_traffic_what_would_help_is_said(road: Road) -> None:
    road.rate_rps = 2
    road.at += timedelta(minutes=30)
    road.serve()

    held = road.ship(2)
    road.rate_rps = 3
    road.at += timedelta(minutes=30)
    road.serve()
    again = road.carried(held.id)

    assert "what would help" in held.held
    assert again.journal == held.journal, "what is held for the same is written once, whatever the figures"


# --- Waiting -------------------------------------------------------------------------------------


def test_production_waits_for_somebody_elses_approval(road: Road) -> None:
    held = road.ship(2, approvals={"production": 1})
    digest = held.release.digest
    assert "1 person other than ada" in held.held

    road.store.approve(
        Approval(config=CONFIG, digest=digest, environment="production", approver="bob", at=clock.now())
    )
    ended = road.carried(held.id)

    assert ended.state is State.SHIPPED


def test_a_freeze_is_waited_for(road: Road) -> None:
    frozen = Freeze(
        environment="production",
        since=road.at - timedelta(hours=1),
        until=road.at + timedelta(seconds=30),
        reason="fair",
    )

    held = road.ship(2, freezes=(frozen,))
    road.at += timedelta(seconds=60)
    road.serve()
    ended = road.carried(held.id)

    assert "frozen until" in held.held
    assert ended.state is State.SHIPPED


def test_a_second_release_waits_and_the_one_between_is_superseded(road: Road) -> None:
    first = road.propose(2)
    road.store.take(first.id, "somebody else")
    second, third = road.propose(3), road.propose(4)

    assert [road.store.promotion(each.id).state for each in (first, second, third)] == [  # type: ignore[union-attr]
        State.RUNNING,
        State.SUPERSEDED,
        State.QUEUED,
    ]


def test_whoever_was_queued_is_compared_with_what_was_shipped_meanwhile(road: Road) -> None:
    first = road.propose(2)
    road.store.take(first.id, "ship")
    second = road.propose(3)
    road.store.let_go(road.store.take(first.id, "ship"))

    ended = road.carried(second.id)

    assert second.baseline != first.release.digest
    assert road.store.promotion(first.id).state is State.SHIPPED  # type: ignore[union-attr]
    assert (ended.state, ended.baseline) == (State.SHIPPED, first.release.digest)


def test_whoever_is_queued_finishes_the_canary_that_a_dead_runner_left(road: Road) -> None:
    first = road.propose(2)
    for told in road.carrier("dead").carry(first.id):
        if told.step is not None and told.step.act is Act.ANALYSIS:
            break  # it dies here, and its lease is given back only because tests tidy up
    assert road.serves()[1] == first.release.digest

    ended = road.ship(3)

    assert road.store.promotion(first.id).state is State.SHIPPED  # type: ignore[union-attr]
    assert ended.state is State.SHIPPED
    assert road.serves()[0] == ended.release.digest


def test_what_only_had_to_be_said_is_said_before_the_next_release(road: Road) -> None:
    first = road.propose(2)
    for told in road.carrier("dead").carry(first.id):
        last = told.promotion.journal[-1] if told.promotion.journal else None
        said = (last.act, last.status, last.environment) if last is not None else None
        if said == (Act.PROMOTE, Status.DONE, "production"):
            break  # everybody has it, and nobody has said so
    assert road.store.promotion(first.id).state is State.RUNNING  # type: ignore[union-attr]

    road.carrier().settle(CONFIG)

    found = road.store.promotion(first.id)
    assert found is not None
    assert (found.state, road.serves()[0]) == (State.SHIPPED, first.release.digest)


# --- Others' hands -------------------------------------------------------------------------------


def test_a_rollback_by_hand_during_the_canary_ends_the_promotion(road: Road) -> None:
    before = road.serves()

    def undo() -> None:
        runner.rollback(road.store, config=CONFIG, environment="production", actor="lin", reason="too slow")

    road.meanwhile[road.waits + 8] = undo

    ended = road.ship(2)

    assert ended.state is State.ROLLED_BACK
    assert "lin has moved production" in ended.conclusion
    assert road.serves() == before


def test_two_runners_do_not_carry_one_promotion(road: Road) -> None:
    proposed = road.propose(2)
    road.store.take(proposed.id, "somebody else")

    with pytest.raises(Refused) as refused:
        list(road.carrier().carry(proposed.id))

    assert refused.value.refusal is Refusal.LEASE


def test_a_runner_that_was_taken_over_does_nothing_more(road: Road) -> None:
    proposed = road.propose(2)
    carrier = road.carrier("slow", ttl=timedelta(seconds=1))

    def take_over() -> None:
        current = road.store.promotion(proposed.id)
        assert current is not None
        road.store.let_go(current)
        road.store.take(proposed.id, "somebody else")

    road.meanwhile[road.waits + 3] = take_over
    with pytest.raises(Refused) as refused:
        list(carrier.carry(proposed.id))

    assert refused.value.refusal is Refusal.FENCE
    assert road.serves()[1] == proposed.release.digest, "the other runner decides"


def test_a_runner_told_to_stop_leaves_the_canary_for_whoever_comes_next(road: Road) -> None:
    proposed = road.propose(2)
    carrier = road.carrier()

    for told in carrier.carry(proposed.id):
        if told.look is not None:
            carrier.stop.set()
    left = road.store.promotion(proposed.id)
    ended = road.carried(proposed.id)

    assert left is not None
    assert left.state is State.RUNNING
    assert ended.state is State.SHIPPED


# --- Whoever looks after what is left ------------------------------------------------------------


def test_a_caretaker_finishes_what_its_runner_has_left(road: Road) -> None:
    proposed = road.propose(2)
    for told in road.carrier("dead").carry(proposed.id):
        if told.step is not None and told.step.act is Act.ANALYSIS:
            break
    road.failing = 0.9
    ended = threading.Event()

    def look() -> None:
        road.at += timedelta(seconds=5)
        road.serve()
        found = road.store.promotion(proposed.id)
        if found is not None and found.state.is_final:
            ended.set()

    caretaker = Caretaker(road.store, every_s=0.05, now=road.now, on_move=look)
    caretaker.start()
    try:
        for _ in range(200):
            look()
            if ended.wait(0.1):
                break
    finally:
        caretaker.close()

    found = road.store.promotion(proposed.id)
    assert found is not None
    assert found.state is State.ROLLED_BACK
    assert road.serves()[1] == ""


def test_a_caretaker_leaves_what_needs_the_repository(road: Road) -> None:
    proposed = road.propose(2, smoke=True)
    list(road.carrier("dead").carry(proposed.id))
    caretaker = Caretaker(road.store, now=road.now)

    found = road.store.promotion(proposed.id)

    assert found is not None
    assert "in its repository" in found.held
    assert not caretaker.is_left(found)
