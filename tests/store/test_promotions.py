"""Promotions, their journal, approvals, and deliveries: what both engines promise."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString

import pytest

from deploy_gates import clock, runner
from deploy_gates.client import ConfigClient
from deploy_gates.core import promotion as promotions
from deploy_gates.core.delivery import Delivery, Fate
from deploy_gates.core.errors import ConfigUnavailable, Refusal, Refused, StoreError
from deploy_gates.core.promotion import Kind, Move
from deploy_gates.core.release import Act, Approval, Freeze, Promotion, Release, State, Status, Terms
from deploy_gates.store import Store, open_store, postgres, sqlite
from deploy_gates.store.postgres import PostgresStore
from deploy_gates.store.rows import migrations
from deploy_gates.store.sqlite import SqliteStore
from deploy_gates.testing import NOW, POLICY, a_release

CONFIG = "ticket-triage"
PROMOTING = Path(__file__).with_name("promoting.py")
GONE = timedelta(milliseconds=-1)
"""A lease given for so long has expired already."""
TERMS = Terms(
    weight_bp=1_000,
    canary={"latency": {"margin_pct": 22.5}},
    lasts_s=600.0,
    approvals={"production": 2},
    freezes=(
        Freeze(
            environment="production", since=NOW, until=NOW + timedelta(days=1), reason="fair of \N{SNOWMAN}"
        ),
    ),
)


def proposed(
    store: Store, number: int = 1, *, until: str = "production", is_anew: bool = False, **fields: Any
) -> Promotion:
    digest = a_release(store, number)
    release = Release(config=CONFIG, digest=digest, actor="ada", reason="calmer tone", commit="c0ffee")
    release = replace(release, **fields)
    return store.propose(release, until=until, policy=POLICY, terms=TERMS, is_anew=is_anew)


def found(store: Store, made: Promotion) -> Promotion:
    promotion = store.promotion(made.id)
    assert promotion is not None
    return promotion


def refusal(call: Callable[[], object]) -> tuple[Refusal, str]:
    with pytest.raises(Refused) as refused:
        call()
    return refused.value.refusal, refused.value.message


def served(store: Store, digest: str, **fields: Any) -> None:
    """Bring a digest into development: to everybody, or to a share."""
    asked = {"config": CONFIG, "environment": "development", "policy": POLICY, "actor": "ada", "reason": ""}
    runner.promote(store, digest=digest, **(asked | fields))


def raw(store: Store, statement: LiteralString) -> None:
    """SQL that goes around the store, as a bug in it would."""
    assert isinstance(store, SqliteStore | PostgresStore)
    store._run(statement, {})


def processes(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(PROMOTING), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    made: dict[str, Any] = json.loads(done.stdout)
    return made


# --- Proposing ----------------------------------------------------------------------------------


def test_a_promotion_is_kept_as_it_was_proposed(store: Store) -> None:
    before = a_release(store, 7)
    served(store, before)
    begun = clock.now() - timedelta(seconds=5)

    made = proposed(store, until="development")

    assert made == found(store, made) == store.promotions()[0]
    assert made.release == Release(
        config=CONFIG, digest=a_release(store), actor="ada", reason="calmer tone", commit="c0ffee"
    )
    assert (made.until, made.baseline, made.policy, made.terms) == ("development", before, POLICY, TERMS)
    assert (made.state, made.conclusion, made.concluded_at, made.journal) == (State.RUNNING, "", None, ())
    assert (made.owner, made.fence, made.lease_until) == ("", 0, None)
    assert begun < made.proposed_at < clock.now() + timedelta(seconds=5)


def test_a_digest_that_is_on_its_way_is_proposed_once(store: Store) -> None:
    running = proposed(store, 1)
    taken = store.take(running.id, "runner-1")
    queued = proposed(store, 2)

    again = [proposed(store, 1, actor="lin"), proposed(store, 2, reason="now")]

    assert again == [taken, queued]
    assert again[0].release.actor == "ada"
    assert len(store.promotions()) == 2


def test_one_that_stands_still_is_proposed_anew_where_that_is_asked_for(store: Store) -> None:
    running = store.take(proposed(store).id, "runner-1")

    carried = proposed(store, is_anew=True)
    store.let_go(running)
    anew = proposed(store, is_anew=True)

    assert carried.id == running.id
    assert anew.id != running.id
    assert (anew.state, anew.release) == (State.RUNNING, running.release)
    assert found(store, running).state is State.SUPERSEDED


def test_one_whose_candidate_users_have_is_not_proposed_anew(store: Store) -> None:
    served(store, a_release(store, 7))
    left = proposed(store, 1)
    served(store, left.release.digest, weight_bp=500)

    assert proposed(store, 1, is_anew=True) == left


def test_one_runs_and_the_newest_of_the_others_comes_next(store: Store) -> None:
    first = store.take(proposed(store, 1).id, "runner-1")
    second, third = proposed(store, 2), proposed(store, 3)

    states = {each.id: each.state for each in store.promotions()}
    superseded = found(store, second)
    store.conclude(first, State.SHIPPED, "production serves it")

    assert states == {first.id: State.RUNNING, second.id: State.SUPERSEDED, third.id: State.QUEUED}
    assert superseded.conclusion.startswith(f"superseded by promotion {third.id}: ")
    assert superseded.concluded_at is not None
    assert found(store, third).state is State.RUNNING


def test_configs_do_not_wait_for_each_other(store: Store) -> None:
    other = store.put_config("other", b'{"model":"other"}')

    proposed(store)
    made = store.propose(
        Release(config="other", digest=other, actor="ada"), until="staging", policy=POLICY, terms=Terms()
    )

    assert made.state is State.RUNNING
    assert [each.release.config for each in store.promotions()] == ["other", CONFIG]
    assert [each.id for each in store.promotions("other")] == [made.id]


def test_one_that_nobody_carries_makes_way_unless_users_have_its_candidate(store: Store) -> None:
    served(store, a_release(store, 7))
    left = store.take(proposed(store, 1).id, "runner-1", GONE)
    newer = proposed(store, 2)
    store.take(newer.id, "runner-2", GONE)
    served(store, newer.release.digest, weight_bp=500)

    newest = proposed(store, 3)

    assert found(store, left).state is State.SUPERSEDED
    assert f"promotion {newer.id}" in found(store, left).conclusion
    assert found(store, newer).state is State.RUNNING
    assert newest.state is State.QUEUED


def test_a_release_nobody_keeps_is_refused(store: Store) -> None:
    kept = a_release(store)

    unknown = refusal(lambda: proposed(store, digest="f" * 64))
    other = refusal(lambda: proposed(store, config="other", digest=kept))

    assert unknown[0] is other[0] is Refusal.UNKNOWN
    assert store.promotions() == ()


def test_what_is_looked_for_is_found(store: Store) -> None:
    ids = []
    for number in range(5):
        made = store.take(proposed(store, number).id, "runner-1")
        ids.append(store.conclude(made, State.BLOCKED, "no").id)
    ids.append(proposed(store, 9).id)

    assert [each.id for each in store.promotions()] == ids[::-1]
    assert [each.id for each in store.promotions(CONFIG, before=ids[3], limit=2)] == ids[2:0:-1]
    assert [each.id for each in store.promotions(is_open=True)] == ids[-1:]
    assert [each.id for each in store.promotions(CONFIG, is_open=True)] == ids[-1:]
    assert store.promotions("other") == ()
    assert store.promotion(999) is None


# --- Leases -------------------------------------------------------------------------------------


def test_of_runners_that_race_exactly_one_gets_each_promotion(store: Store, store_url: str) -> None:
    made = processes("race", store_url, "4", "15")

    assert [len(each) for each in made["winners"]] == [1] * 15
    assert made["reasons"] == ["lease"]


def test_a_lease_is_held_renewed_and_given_back(store: Store) -> None:
    made = proposed(store)
    taken = store.take(made.id, "runner-1")
    while_held = refusal(lambda: store.take(made.id, "runner-2"))

    store.keep_on(taken, timedelta(minutes=5))
    kept = found(store, taken)
    again = store.take(made.id, "runner-1")
    store.let_go(taken)  # another fence by now: nothing happens
    still = found(store, taken)
    store.let_go(again)
    other = store.take(made.id, "runner-2")

    assert (taken.owner, taken.fence, again.fence, other.fence) == ("runner-1", 1, 2, 3)
    assert while_held[0] is Refusal.LEASE
    assert "runner-1 carries promotion" in while_held[1]
    assert kept.lease_until is not None
    assert kept.lease_until - clock.now() > timedelta(minutes=4)
    assert still.lease_until is not None


def test_whoever_was_taken_over_is_refused_by_the_fence(store: Store) -> None:
    late = store.take(proposed(store).id, "runner-1", GONE)
    gone = refusal(lambda: store.keep_on(late))

    taken = store.take(late.id, "runner-2")
    refused = [
        refusal(lambda: store.write(late, Act.ADMIT, "", Status.DONE, {})),
        refusal(lambda: store.conclude(late, State.SHIPPED, "done")),
        refusal(lambda: store.keep_on(late)),
    ]

    assert gone[0] is Refusal.LEASE
    assert [each[0] for each in refused] == [Refusal.FENCE] * 3
    assert all("runner-2 has taken promotion" in each[1] for each in refused)
    assert found(store, late) == taken


def test_nobody_writes_who_has_not_taken_it(store: Store) -> None:
    made = proposed(store)

    assert refusal(lambda: store.write(made, Act.ADMIT, "", Status.DONE, {}))[0] is Refusal.LEASE
    assert refusal(lambda: store.conclude(made, State.ABORTED, "no"))[0] is Refusal.LEASE
    assert found(store, made) == made


def test_what_has_ended_or_is_queued_is_not_taken(store: Store) -> None:
    first = store.take(proposed(store, 1).id, "runner-1")
    queued = proposed(store, 2)
    waits = refusal(lambda: store.take(queued.id, "runner-2"))
    ended = store.conclude(first, State.BLOCKED, "the evidence says no")

    over = refusal(lambda: store.take(first.id, "runner-2"))
    late = refusal(lambda: store.write(ended, Act.ADMIT, "", Status.DONE, {}))

    assert (waits[0], over[0], late[0]) == (Refusal.STATE,) * 3
    assert "is queued" in waits[1]
    assert "has ended: blocked, the evidence says no" in over[1]
    assert store.take(queued.id, "runner-2").state is State.RUNNING
    assert refusal(lambda: store.take(999, "runner-2"))[0] is Refusal.UNKNOWN


# --- The journal --------------------------------------------------------------------------------


def test_the_journal_tells_everything_in_order(store: Store) -> None:
    taken = store.take(proposed(store).id, "runner-1")
    data: dict[str, Any] = {
        "said": "latency is 28 % \N{SNOWMAN}",
        "share": 0.25,
        "more": [1, None, {"a": True}],
    }

    written = store.write(taken, Act.ADMIT, "", Status.BEGUN, {})
    written = store.write(written, Act.ADMIT, "", Status.DONE, data)
    other = store.take(taken.id, "runner-1")
    written = store.write(other, Act.PROMOTE, "development", Status.HELD, {"said": "frozen"})

    assert written == found(store, taken)
    assert [(each.number, each.act, each.environment, each.status) for each in written.journal] == [
        (1, Act.ADMIT, "", Status.BEGUN),
        (2, Act.ADMIT, "", Status.DONE),
        (3, Act.PROMOTE, "development", Status.HELD),
    ]
    assert (written.journal[1].data, written.journal[1].owner) == (data, "runner-1")
    assert sorted(each.at_ms for each in written.journal) == [each.at_ms for each in written.journal]
    assert written.held == "frozen"


def test_a_call_whose_answer_was_lost_may_be_made_again(store: Store) -> None:
    taken = store.take(proposed(store).id, "runner-1")
    said = {"said": "done"}

    once = store.write(taken, Act.ADMIT, "", Status.DONE, said)
    again = store.write(taken, Act.ADMIT, "", Status.DONE, said)
    twice = store.write(again, Act.ADMIT, "", Status.DONE, said)
    ended = store.conclude(twice, State.SHIPPED, "production serves it")

    assert again == once
    assert len(twice.journal) == 2
    assert store.conclude(twice, State.SHIPPED, "production serves it") == ended
    assert refusal(lambda: store.conclude(twice, State.BLOCKED, "no"))[0] is Refusal.STATE
    assert found(store, taken) == ended


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE journal SET data = '{}' WHERE number = 1",
        "DELETE FROM journal WHERE number = 2",
        "INSERT INTO journal VALUES (1, 4, 'smoke', '', 'done', 0, 'x', 1, '{}')",
        "INSERT INTO journal VALUES (1, 2, 'smoke', '', 'done', 0, 'x', 1, '{}')",
        "INSERT INTO journal VALUES (2, 1, 'smoke', '', 'done', 0, 'x', 1, '{}')",
        "UPDATE promotion SET state = 'running', concluded_at_ms = 0 WHERE id = 2",
        "UPDATE promotion SET conclusion = 'all is well' WHERE id = 2",
        "UPDATE promotion SET digest = 'x' WHERE id = 1",
        "UPDATE promotion SET terms = '{}' WHERE id = 1",
        "UPDATE promotion SET state = 'shipped' WHERE id = 1",
        "DELETE FROM promotion WHERE id = 2",
        "UPDATE approval SET approver = 'lin'",
    ],
)
def test_no_statement_rewrites_what_has_happened(store: Store, statement: LiteralString) -> None:
    taken = store.take(proposed(store, 1).id, "runner-1")
    for status in (Status.BEGUN, Status.DONE):
        taken = store.write(taken, Act.ADMIT, "", status, {"said": "yes"})
    proposed(store, 2)
    proposed(store, 3)
    approve(store, taken, "grace")
    before = (store.promotions(), store.approvals(CONFIG))

    with pytest.raises(StoreError):
        raw(store, statement)

    assert (store.promotions(), store.approvals(CONFIG)) == before
    assert [each.state for each in before[0]] == [State.QUEUED, State.SUPERSEDED, State.RUNNING]


def test_a_runner_killed_at_any_moment_leaves_promotions_before_or_after(
    store: Store, store_url: str
) -> None:
    made = processes("kill", store_url, "80", "1")

    assert made["problems"] == []
    assert made["promotions"] > 20
    assert all(made["killed_in"].values()), made


def test_what_happens_to_a_promotion_wakes_who_watches(store: Store, store_url: str) -> None:
    other = open_store(store_url)
    with other.watch() as watcher:
        made = proposed(store)
        woken = [watcher.wait(10)]
        taken = store.take(made.id, "runner-1")
        while watcher.wait(0.3):
            pass
        written = store.write(taken, Act.ADMIT, "", Status.DONE, {})
        woken.append(watcher.wait(10))
        while watcher.wait(0.3):
            pass
        store.conclude(written, State.SHIPPED, "done")
        woken.append(watcher.wait(10))
    other.close()

    assert woken == [True] * 3


# --- Approvals ----------------------------------------------------------------------------------


def approve(store: Store, made: Promotion, approver: str, **fields: Any) -> None:
    store.approve(
        Approval(
            config=CONFIG,
            digest=made.release.digest,
            environment="production",
            approver=approver,
            at=NOW,
            **fields,
        )
    )


def test_the_first_approval_of_a_person_counts(store: Store) -> None:
    one, two = proposed(store, 1), proposed(store, 2)

    approve(store, one, "grace", reason="seen")
    approve(store, one, "grace", reason="seen again")
    approve(store, one, "lin")
    approve(store, two, "grace")

    given = store.approvals(CONFIG, one.release.digest)
    assert [(each.approver, each.reason) for each in given] == [("grace", "seen"), ("lin", "")]
    assert all(abs(each.at - clock.now()) < timedelta(seconds=20) for each in given), "the store's clock"
    assert len(store.approvals(CONFIG)) == 3
    assert store.approvals("other") == ()


# --- What others are told -----------------------------------------------------------------------


def a_delivery(id: str, *, thread: str = "promotion/1", channel: str = "hook", **fields: Any) -> Delivery:
    made = clock.now() - timedelta(minutes=1)
    body = {"id": id, "text": "\N{SNOWMAN}"}
    return Delivery(
        id=id, thread=thread, channel=channel, body=body, **({"created_at": made, "next_at": made} | fields)
    )


def test_every_change_of_a_promotion_is_told_once(store: Store) -> None:
    def states() -> list[tuple[int, int]]:
        """Each untold promotion with the lines of its journal; they are told with that."""
        untold = store.untold()
        for each in untold:
            store.announced(each)
        return [(each.id, len(each.journal)) for each in untold]

    first = proposed(store, 1)
    seen = [states(), states()]
    taken = store.take(first.id, "runner-1")
    seen.append(states())
    taken = store.write(taken, Act.ADMIT, "", Status.DONE, {})
    second, third = proposed(store, 2), proposed(store, 3)
    seen.append(states())
    store.conclude(taken, State.SHIPPED, "done")
    seen += [states(), states()]

    one, two, three = first.id, second.id, third.id
    assert seen == [[(one, 0)], [], [], [(one, 1), (two, 0), (three, 0)], [(one, 1), (three, 0)], []]


def test_what_is_written_while_others_are_told_is_told_next(store: Store) -> None:
    taken = store.take(proposed(store).id, "runner-1")
    taken = store.write(taken, Act.ADMIT, "", Status.DONE, {})
    (read,) = store.untold()

    written = store.write(taken, Act.PROMOTE, "development", Status.DONE, {})
    store.announced(read, [a_delivery("one")])
    after_line = store.untold()
    store.announced(written)
    store.announced(read, [a_delivery("one"), a_delivery("two")])  # an older state tells nothing new
    after_old = store.untold()
    ended = store.conclude(written, State.SHIPPED, "done")
    store.announced(written)

    assert after_line == (written,)
    assert after_old == ()
    assert store.untold() == (ended,)
    assert [each.id for each in store.deliveries()] == ["two", "one"]


def test_a_move_and_its_deliveries_leave_the_outbox_together(store: Store) -> None:
    served(store, a_release(store, 1))
    (event,) = store.outbox()

    with pytest.raises(StoreError):
        store.told(event, [a_delivery("one"), a_delivery("")])
    kept = (store.outbox(), store.deliveries())
    store.told(event, [a_delivery("one")])

    assert kept == ((event,), ())
    assert store.outbox() == ()
    assert [each.id for each in store.deliveries()] == ["one"]


def keep(store: Store, *deliveries: Delivery) -> None:
    store.announced(proposed(store), deliveries)


def test_a_delivery_is_kept_as_it_is(store: Store) -> None:
    made = a_delivery("one", external_id="GATES-7")

    keep(store, made)
    (kept,) = store.deliveries()

    stamp = {"created_at": NOW, "next_at": NOW}
    assert replace(kept, **stamp) == replace(made, **stamp)  # type: ignore[arg-type]  # two fields of one type
    assert made.created_at - kept.created_at < timedelta(milliseconds=1)


def test_two_senders_get_each_delivery_once_and_each_thread_in_order(store: Store, store_url: str) -> None:
    keep(
        store, *(a_delivery(f"{thread}/{at}", thread=str(thread)) for at in range(12) for thread in range(6))
    )

    made = processes("claim", store_url)

    sent = [each for one in made["sent"] for each in one]
    assert sorted(sent) == sorted(f"{thread}/{at}" for at in range(12) for thread in range(6))
    for one in made["sent"]:
        for thread in range(6):
            own = [int(each.split("/")[1]) for each in one if each.startswith(f"{thread}/")]
            assert own == sorted(own)
    assert Counter(each.state for each in store.deliveries(limit=100)) == {Fate.DELIVERED: 72}


def test_a_thread_waits_for_its_first_over_the_same_channel_and_others_do_not(store: Store) -> None:
    keep(
        store,
        a_delivery("first"),
        a_delivery("second"),
        a_delivery("elsewhere", channel="chat"),
        a_delivery("other", thread="promotion/2"),
    )

    claimed = store.due()
    meanwhile = store.due()
    store.settle(
        replace(claimed[0], attempts=1, next_at=clock.now() + timedelta(hours=1), error="it is away")
    )
    while_it_waits = store.due()
    store.settle(replace(claimed[0], state=Fate.DEAD, attempts=9, error="it is away"))
    after_it_died = store.due()

    assert [each.id for each in claimed] == ["first", "elsewhere", "other"]
    assert (meanwhile, while_it_waits) == ((), ())
    assert [each.id for each in after_it_died] == ["second"]
    assert [(each.id, each.attempts, each.error) for each in store.deliveries(state="dead")] == [
        ("first", 9, "it is away")
    ]


def test_what_a_dead_sender_had_claimed_is_due_again_and_what_arrived_never_is(store: Store) -> None:
    keep(store, a_delivery("one"))

    lost = store.due(claim=timedelta(milliseconds=-1))
    again = store.due(claim=timedelta(milliseconds=-1))
    store.settle(replace(again[0], state=Fate.DELIVERED, attempts=1))
    store.settle(replace(lost[0], attempts=1, error="the slow one says it did not arrive"))

    assert [each.id for each in lost + again] == ["one", "one"]
    assert store.due() == ()
    assert [each.state for each in store.deliveries()] == [Fate.DELIVERED]


def test_a_delivery_that_was_put_off_before_the_clock_was_set_back_does_not_wait_for_a_day(
    store: Store,
) -> None:
    keep(store, a_delivery("soon"), a_delivery("tomorrow", thread="promotion/2"))

    for each, wait in zip(store.due(), (timedelta(hours=1), timedelta(days=1)), strict=True):
        store.settle(replace(each, attempts=1, next_at=clock.now() + wait))

    assert [each.id for each in store.due()] == ["tomorrow"]
    assert store.due() == ()


def test_deliveries_are_found_by_what_they_belong_to(store: Store) -> None:
    keep(store, a_delivery("one"), a_delivery("two", channel="chat"), a_delivery("three", thread="move/1"))

    assert [each.id for each in store.deliveries(limit=2)] == ["three", "two"]
    assert [each.id for each in store.deliveries(thread="promotion/1")] == ["two", "one"]
    assert [each.id for each in store.deliveries(channel="chat")] == ["two"]
    assert [each.id for each in store.deliveries(state="due", thread="move/1")] == ["three"]
    assert store.deliveries(state="dead") == ()


# --- Canaries that expire -----------------------------------------------------------------------


def test_a_canary_expires_by_the_clock_of_the_store_and_its_history_says_so(store: Store) -> None:
    first, second = a_release(store, 1), a_release(store, 2)
    served(store, first)
    served(store, second, weight_bp=500, lasts_s=600.0)
    begun = standing(store)
    served(store, second, weight_bp=900)
    grown = standing(store)
    served(store, second, weight_bp=950, lasts_s=60.0)
    shorter = standing(store)
    served(store, second)
    promoted = standing(store)
    served(store, first, weight_bp=500)
    endless = standing(store)
    runner.rollback(store, config=CONFIG, environment="development", actor="lin", reason="")

    events = store.history(CONFIG, "development")
    assert begun.expires_at is not None
    assert begun.changed_at is not None
    assert abs(begun.expires_at - begun.changed_at - timedelta(seconds=600)) < timedelta(seconds=1)
    assert grown.expires_at == begun.expires_at
    assert shorter.expires_at is not None
    assert shorter.expires_at < begun.expires_at
    assert (promoted.expires_at, endless.expires_at, standing(store).expires_at) == (None, None, None)
    assert [bool(each.expires_at_ms) for each in events] == [False, True, True, True, False, False, False]
    assert [each.hash for each in events] == [each.computed() for each in events]
    assert list(promotions.verified(events, 7)) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE deployment SET expires_at_ms = expires_at_ms + 1",
        "UPDATE deployment SET expires_at_ms = 0",
        "UPDATE history SET expires_at_ms = 0",
    ],
)
def test_no_statement_gives_a_canary_more_time(store: Store, statement: LiteralString) -> None:
    served(store, a_release(store, 1))
    served(store, a_release(store, 2), weight_bp=500, lasts_s=600.0)
    before = (standing(store), store.history(CONFIG, "development"))

    with pytest.raises(StoreError):
        raw(store, statement)

    assert (standing(store), store.history(CONFIG, "development")) == before


@pytest.mark.parametrize("value", ["0", "expires_at_ms + 86400000"])
@pytest.mark.parametrize(
    ("table", "said"), [("history", "was edited"), ("deployment", "serves something else than r2")]
)
def test_a_deadline_that_somebody_with_the_keys_edited_is_found(
    store: Store, table: str, said: str, value: str
) -> None:
    served(store, a_release(store, 1))
    served(store, a_release(store, 2), weight_bp=500, lasts_s=600.0)
    before = list(runner.problems(store, standing(store)))
    if isinstance(store, SqliteStore):
        for each in ("history_stays", "deployment_expires_by_revisions"):
            raw(store, f"DROP TRIGGER {each}")  # type: ignore[arg-type]
    else:
        raw(store, f"ALTER TABLE {table} DISABLE TRIGGER USER")  # type: ignore[arg-type]

    raw(store, f"UPDATE {table} SET expires_at_ms = {value} WHERE revision = 2")  # type: ignore[arg-type]

    assert before == []
    assert said in next(iter(runner.problems(store, standing(store))))


def test_a_canary_asked_for_again_is_answered_with_its_deadline(store: Store) -> None:
    served(store, a_release(store, 1))
    asked = {"weight_bp": 500, "lasts_s": 600.0, "key": "promotion-1/canary"}
    served(store, a_release(store, 2), **asked)
    begun = standing(store)

    lease = store.acquire(CONFIG, "development", "ada")
    again = store.move(
        Move(
            config=CONFIG,
            environment="development",
            kind=Kind.CANARY,
            digest=begun.candidate,
            weight_bp=500,
            salt="another",
            lasts_s=600.0,
            expected=1,
            fence=lease.fence,
            policy=POLICY,
            actor="ada",
            reason="",
            key="promotion-1/canary",
        )
    )

    assert again.replayed
    assert (again.deployment.revision, again.deployment.expires_at) == (2, begun.expires_at)


def standing(store: Store) -> promotions.Deployment:
    (row,) = store.deployments("development", CONFIG)
    return row


# --- From the first version of the tables -------------------------------------------------------


def test_a_store_of_the_first_version_is_upgraded_with_its_history(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = a_first_version(store_url, monkeypatch)
    assert isinstance(store, SqliteStore | PostgresStore)
    with pytest.raises(StoreError, match=f"of version 1, and this program wants {len(migrations('sqlite'))}"):
        store.check()
    stop, problems, reads = threading.Event(), [], []

    def read() -> None:
        other = open_store(store_url)
        assert isinstance(other, SqliteStore | PostgresStore)
        while not stop.is_set():
            try:
                rows = other._all("SELECT baseline, candidate, revision FROM deployment", {})
                reads.append(
                    [tuple(row) if isinstance(row, sqlite3.Row) else tuple(row.values()) for row in rows]
                )
            except StoreError as error:
                problems.append(error.message)
        other.close()

    reader = threading.Thread(target=read)
    reader.start()
    while len(reads) < 20:
        stop.wait(0.001)
    upgraded = store.upgrade()
    at = len(reads)
    while len(reads) < at + 20:
        stop.wait(0.001)
    stop.set()
    reader.join()
    (row,) = store.deployments("development", CONFIG)

    assert (upgraded.before, upgraded.after) == (1, len(migrations("sqlite")))
    assert store.upgrade().before == upgraded.after
    store.check()
    assert problems == []
    assert all(each == reads[0] for each in reads)
    assert row.revision == 3
    assert row.expires_at is None
    assert list(runner.problems(store, row)) == []

    served(store, row.candidate, weight_bp=900, lasts_s=60.0)
    made = proposed(store, 3)

    (row,) = store.deployments("development", CONFIG)
    assert row.expires_at is not None
    assert list(runner.problems(store, row)) == []
    assert store.promotions() == (made,)
    store.close()


def test_a_service_that_is_newer_than_its_store_says_so_and_goes_on_after_the_upgrade(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = a_first_version(store_url, monkeypatch)
    with ConfigClient(store_url, environment="development", last_good=None, wait_s=0.0) as client:
        deadline = time.monotonic() + 30
        while "of version 1" not in client.stale_reason and time.monotonic() < deadline:
            time.sleep(0.005)
        with pytest.raises(ConfigUnavailable, match="of version 1, and this program wants"):
            client.get(CONFIG)
        upgraded = subprocess.run(
            [sys.executable, "-m", "deploy_gates", "store", "upgrade", "--store", store_url], check=False
        )
        follows = client.wait_for(CONFIG, 3, 30)
    store.close()

    assert upgraded.returncode == 0
    assert follows


def a_first_version(store_url: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store as the first version left it, with two promotions and a canary in its history."""
    store = open_store(store_url)
    engine = sqlite if isinstance(store, SqliteStore) else postgres
    first = engine._migrations()[:1]
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_migrations", lambda: first)
        store.upgrade()
        store.check()
        digests = [a_release(store, number) for number in (1, 2)]
        assert isinstance(store, SqliteStore | PostgresStore)
        for at, (kind, digest) in enumerate(
            [("promote", digests[0]), ("promote", digests[1]), ("canary", digests[0])]
        ):
            evidence = next(each.id for each in store.evidence(CONFIG, digest))
            if at == 0:
                store._run(
                    "INSERT INTO deployment (config, environment, fence, lease_until_ms) "
                    "VALUES ('ticket-triage', 'development', 1, 9999999999999)",
                    {},
                )
            baseline, candidate = (digests[1], digest) if kind == "canary" else (digest, "")
            # The statements of then are not here any more; what they left behind is.
            store._run(_moved(kind, baseline, candidate, evidence, at), {})
    return store


def _moved(kind: str, baseline: str, candidate: str, evidence: str, at: int) -> LiteralString:
    weight, salt = (500, "one") if candidate else (0, "")
    ms = int(datetime.timestamp(NOW) * 1000) + at
    return (  # type: ignore[return-value]  # made of what stands in this file
        f"UPDATE deployment SET revision = revision + 1, kind = '{kind}', baseline = '{baseline}', "
        f"candidate = '{candidate}', weight_bp = {weight}, salt = '{salt}', policy = '{POLICY}', "
        f"evidence = '{evidence}', actor = 'ada', reason = 'calmer tone', "
        f"idempotency_key = 'key-{at}', changed_at_ms = {ms}"
    )
