"""What both engines promise: one suite, held on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from deploy_gates import clock, runner
from deploy_gates.core import promotion
from deploy_gates.core.canonical import digest_of, spelled
from deploy_gates.core.cost import Price
from deploy_gates.core.errors import Refusal, Refused, StoreError
from deploy_gates.core.promotion import Acknowledgement, Deployment, Kind, Lease, Move, Moved, Scope, Token
from deploy_gates.core.tally import BIN_MS, Arm, Histogram, Tally
from deploy_gates.store import Store, open_store
from deploy_gates.store.postgres import PostgresStore
from deploy_gates.store.rows import migrations
from deploy_gates.store.sqlite import SqliteStore
from deploy_gates.testing import NOW, POLICY, a_document, a_record, a_release

CONFIG = "ticket-triage"
ENVIRONMENT = "development"


def a_move(lease: Lease, digest: str, **fields: object) -> Move:
    """Promote `digest` where the lease stands."""
    made: dict[str, object] = {
        "config": lease.config,
        "environment": lease.environment,
        "kind": Kind.PROMOTE,
        "digest": digest,
        "expected": lease.revision,
        "fence": lease.fence,
        "policy": POLICY,
        "actor": "ada",
        "reason": "calmer tone",
        "key": f"key-{time.monotonic_ns()}",
    }
    return Move(**(made | fields))  # type: ignore[arg-type]  # a builder for tests takes any field


def the_lease(store: Store, environment: str = ENVIRONMENT, owner: str = "ada") -> Lease:
    return store.acquire(CONFIG, environment, owner)


def moved(store: Store, digest: str, environment: str = ENVIRONMENT, **fields: object) -> Deployment:
    return store.move(a_move(the_lease(store, environment), digest, **fields)).deployment


def refusal(call: Callable[[], object]) -> tuple[Refusal, str]:
    with pytest.raises(Refused) as refused:
        call()
    return refused.value.refusal, refused.value.message


def standing(store: Store, environment: str = ENVIRONMENT) -> Deployment:
    (found,) = store.deployments(environment, CONFIG)
    return found


def raw(store: Store, statement: str) -> None:
    """SQL that goes around the runner, as a bug in it would."""
    if isinstance(store, SqliteStore):
        store._run(statement, {})
    else:
        assert isinstance(store, PostgresStore)
        store._run(statement, {})  # type: ignore[arg-type]  # a test writes its own


# --- Moving -------------------------------------------------------------------------------------


def test_a_promotion_moves_the_environment_and_says_who_and_why(store: Store) -> None:
    digest = a_release(store)

    made = moved(store, digest)
    (event,) = store.history(CONFIG, ENVIRONMENT)

    assert (made.revision, made.baseline, made.candidate, made.kind) == (1, digest, "", Kind.PROMOTE)
    assert (event.actor, event.reason, event.baseline, event.policy) == ("ada", "calmer tone", digest, POLICY)
    assert event.evidence == store.evidence(CONFIG)[0].id == made.evidence
    assert event.hash == event.computed()
    assert standing(store).changed_at == event.at


def test_a_canary_begins_grows_and_ends(store: Store) -> None:
    first, second = a_release(store, 1), a_release(store, 2)
    moved(store, first)

    begun = moved(store, second, kind=Kind.CANARY, weight_bp=500, salt="one")
    grown = moved(store, second, kind=Kind.CANARY, weight_bp=2_500, salt="two")
    ended = moved(store, second)

    assert (begun.baseline, begun.candidate, begun.weight_bp, begun.salt) == (first, second, 500, "one")
    assert (grown.weight_bp, grown.salt) == (2_500, "one")
    assert (ended.baseline, ended.candidate, ended.weight_bp, ended.salt) == (second, "", 0, "")
    assert [each.kind for each in store.history(CONFIG, ENVIRONMENT)] == [
        "promote",
        "canary",
        "canary",
        "promote",
    ]


def test_a_move_that_is_asked_for_again_is_answered_as_it_was(store: Store) -> None:
    first, second = a_release(store, 1), a_release(store, 2)
    lease = the_lease(store)
    move = a_move(lease, first, key="merge-118")
    made = store.move(move)
    store.move(a_move(lease, second, expected=1))

    again = [store.move(each) for each in (move, replace(move, expected=2), replace(move, fence=77))]

    assert [each.replayed for each in again] == [True, True, True]
    assert {each.deployment.revision for each in again} == {made.deployment.revision}
    assert {each.deployment.baseline for each in again} == {first}
    assert standing(store).revision == 2


def refusals_of_a_promotion() -> Iterator[tuple[str, Refusal, dict[str, object]]]:
    yield "ada moved it first", Refusal.REVISION, {"expected": 0}
    yield "has taken", Refusal.FENCE, {"fence": 0}
    yield "serves {first} already", Refusal.STATE, {"digest": "first"}
    yield "keeps no config", Refusal.UNKNOWN, {"digest": "f" * 64}
    yield (
        "judges by policy 1111111, and these settings are policy 2222222",
        Refusal.POLICY,
        {"policy": "2" * 64},
    )
    yield "sealed under another policy", Refusal.EVIDENCE, {"policy": "2" * 64, "adopt_policy": True}
    yield "there is no evidence", Refusal.EVIDENCE, {"digest": "unproved"}
    yield "the latest says fail", Refusal.EVIDENCE, {"digest": "failed"}
    yield "the latest says inconclusive", Refusal.EVIDENCE, {"digest": "inconclusive"}
    yield "was revoked: a later run failed", Refusal.EVIDENCE, {"digest": "revoked"}
    yield "does not open development", Refusal.EVIDENCE, {"digest": "elsewhere"}
    yield "which has passed", Refusal.EVIDENCE, {"digest": "outdated"}
    yield "belongs to another move", Refusal.KEY_REUSED, {"key": "first"}
    yield (
        "more than 0 % and less than 100 %",
        Refusal.STATE,
        {"kind": Kind.CANARY, "salt": "s", "weight_bp": 10_000},
    )
    yield (
        "more than 0 % and less than 100 %",
        Refusal.STATE,
        {"kind": Kind.CANARY, "salt": "s", "weight_bp": 0},
    )


@pytest.mark.parametrize(("said", "why", "fields"), list(refusals_of_a_promotion()))
def test_every_refusal_says_why_and_changes_nothing(
    store: Store, said: str, why: Refusal, fields: dict[str, object]
) -> None:
    later = clock.now()
    digests = {
        "first": a_release(store, 1),
        "second": a_release(store, 2),
        "unproved": store.put_config(CONFIG, spelled(a_document(3))),
        "failed": a_release(store, 4, verdict="fail"),
        "inconclusive": a_release(store, 5, verdict="inconclusive"),
        "revoked": a_release(store, 6),
        "elsewhere": a_release(store, 7, admitted_until={"staging": later + timedelta(days=1)}),
        "outdated": a_release(store, 8, admitted_until={ENVIRONMENT: later - timedelta(seconds=1)}),
    }
    store.put_evidence(a_record(digests["revoked"], verdict="fail", finished_at=NOW + timedelta(hours=1)))
    lease = the_lease(store)
    store.move(a_move(lease, digests["first"], key="first"))
    before = (standing(store), store.history(CONFIG, ENVIRONMENT), store.outbox())

    digest = digests.get(str(fields.get("digest", "second")), str(fields.get("digest")))
    others = {name: value for name, value in fields.items() if name != "digest"}
    asked = a_move(lease, digest, **({"expected": 1} | others))
    found = refusal(lambda: store.move(asked))

    assert found[0] is why
    assert said.format(first=digests["first"][:7]) in found[1]
    assert (standing(store), store.history(CONFIG, ENVIRONMENT), store.outbox()) == before


def test_environments_are_entered_in_their_order(store: Store) -> None:
    digest = a_release(store)

    early = refusal(lambda: moved(store, digest, "staging"))
    moved(store, digest, "development")
    skipping = refusal(lambda: moved(store, digest, "production"))
    for name in ("staging", "production"):
        moved(store, digest, name)

    assert early[0] is skipping[0] is Refusal.ORDER
    assert "staging takes what development serves, and development serves nothing" in early[1]
    assert [each.environment for each in store.deployments()] == ["development", "staging", "production"]


def test_a_canary_that_began_may_end_though_staging_has_moved_on(store: Store) -> None:
    first, second, third = (a_release(store, number) for number in (1, 2, 3))
    for name in ("development", "staging", "production"):
        moved(store, first, name)
    for name in ("development", "staging"):
        moved(store, second, name)
    moved(store, second, "production", kind=Kind.CANARY, weight_bp=500, salt="s")
    for name in ("development", "staging"):
        moved(store, third, name)

    overtaking = refusal(lambda: moved(store, third, "production"))
    ended = moved(store, second, "production")

    assert overtaking[0] is Refusal.STATE
    assert "cannot overtake it" in overtaking[1]
    assert ended.baseline == second


def test_an_unknown_environment_has_no_lease(store: Store) -> None:
    assert refusal(lambda: store.acquire(CONFIG, "moon", "ada"))[0] is Refusal.UNKNOWN


# --- Rolling back -------------------------------------------------------------------------------


def a_rollback(store: Store, digest: str, **fields: object) -> Moved:
    found = standing(store)
    lease = Lease(
        config=CONFIG,
        environment=ENVIRONMENT,
        owner="",
        fence=found.fence,
        until=NOW,
        revision=found.revision,
    )
    return store.move(a_move(lease, digest, kind=Kind.ROLLBACK, policy="", **fields))


def test_a_rollback_is_the_next_revision_and_takes_the_environment_over(store: Store) -> None:
    first, second = a_release(store, 1), a_release(store, 2)
    moved(store, first)
    moved(store, second)
    held = the_lease(store)

    made = a_rollback(store, first)
    late = refusal(lambda: store.move(a_move(held, second, expected=3)))

    assert (made.deployment.revision, made.deployment.baseline) == (3, first)
    assert made.deployment.evidence == store.history(CONFIG, ENVIRONMENT)[0].evidence
    assert made.deployment.policy == POLICY
    assert late[0] is Refusal.FENCE


def test_a_rollback_goes_only_to_what_was_served_here(store: Store) -> None:
    first, second, elsewhere = (a_release(store, number) for number in (1, 2, 3))
    moved(store, first)
    moved(store, second, kind=Kind.CANARY, weight_bp=500, salt="s")

    assert refusal(lambda: a_rollback(store, elsewhere))[0] is Refusal.UNKNOWN
    assert refusal(lambda: a_rollback(store, second))[0] is Refusal.UNKNOWN
    assert a_rollback(store, first).deployment.candidate == ""
    assert refusal(lambda: a_rollback(store, first))[0] is Refusal.STATE


def test_a_rollback_needs_no_evidence_in_force(store: Store) -> None:
    first, second = a_release(store, 1), a_release(store, 2)
    moved(store, first)
    moved(store, second)
    store.put_evidence(a_record(first, verdict="fail", finished_at=NOW + timedelta(hours=1)))

    assert a_rollback(store, first).deployment.baseline == first


# --- The tables refuse by themselves ------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE deployment SET baseline = '{second}'", "changes by the next revision"),
        ("UPDATE deployment SET weight_bp = 1, candidate = '{second}', salt = 's'", "the next revision"),
        ("UPDATE deployment SET revision = revision + 2", "changes by the next revision"),
        ("UPDATE deployment SET fence = fence - 1, revision = revision + 1", "changes by the next revision"),
        (
            "UPDATE deployment SET revision = revision + 1, kind = 'promote', baseline = '{unproved}'",
            "no passing evidence",
        ),
        (
            "UPDATE deployment SET revision = revision + 1, kind = 'promote', baseline = '{second}'",
            "no passing evidence",
        ),
        (
            "UPDATE deployment SET revision = revision + 1, kind = 'rollback', baseline = '{second}'",
            "brings back what was served before",
        ),
        (
            "UPDATE deployment SET revision = revision + 1, kind = 'canary', candidate = '{unproved}', "
            "weight_bp = 500, salt = 's'",
            "no passing evidence",
        ),
        ("UPDATE history SET actor = 'mallory'", "history only grows"),
        ("DELETE FROM history", "history only grows"),
        ("DELETE FROM deployment", "never deleted"),
        ("UPDATE config SET name = 'theirs'", "does not change"),
        ("DELETE FROM config", ""),
        ("UPDATE evidence SET verdict = 'pass' WHERE verdict = 'fail'", "does not change"),
        ("UPDATE evidence SET revoked_by = '' WHERE revoked_by <> ''", "does not change"),
        ("DELETE FROM evidence", ""),
        ("UPDATE admission SET valid_until_ms = valid_until_ms + 1", "does not change"),
        ("DELETE FROM admission", "does not change"),
        (
            "INSERT INTO admission SELECT id, 'production', 9999999999999 FROM evidence "
            "WHERE digest = '{narrow}'",
            "said when it is handed in",
        ),
        ("UPDATE environment SET after = ''", "order of environments does not change"),
        (
            "INSERT INTO history SELECT config, environment, revision + 1, kind, baseline, candidate, "
            "weight_bp, salt, policy, evidence, fence, actor, reason, 'other', at_ms, previous, hash, 0 "
            "FROM history",
            "moves that were made",
        ),
        ("INSERT INTO deployment (config, environment, revision) VALUES ('x', 'staging', 1)", ""),
    ],
)
def test_a_bug_in_a_runner_cannot_get_around_the_tables(store: Store, statement: str, said: str) -> None:
    digests = {
        "first": a_release(store, 1),
        "second": a_release(store, 2),
        "unproved": store.put_config(CONFIG, spelled(a_document(3))),
        "revoked": a_release(store, 4),
        "narrow": a_release(store, 5, admitted_until={"staging": clock.now() + timedelta(days=1)}),
    }
    store.put_evidence(a_record(digests["revoked"], verdict="fail", finished_at=NOW + timedelta(hours=1)))
    moved(store, digests["first"])
    before = (standing(store), store.history(CONFIG, ENVIRONMENT), store.evidence(CONFIG))

    with pytest.raises(StoreError, match=f"does not allow that: .*{said}"):
        raw(store, statement.format(**digests))

    assert (standing(store), store.history(CONFIG, ENVIRONMENT), store.evidence(CONFIG)) == before


@pytest.mark.parametrize("kind", ["promote", "canary"])
def test_the_tables_hold_the_order_of_environments_too(store: Store, kind: str) -> None:
    first, second = a_release(store, 1), a_release(store, 2)
    for name in ("development", "staging"):
        moved(store, first, name)
    the_lease(store, "staging")
    record = store.evidence(CONFIG, second)[0].id
    brought = {
        "promote": f"baseline = '{second}'",
        "canary": f"candidate = '{second}', weight_bp = 1, salt = 's'",
    }[kind]

    with pytest.raises(StoreError, match="the environment before this one does not serve this digest"):
        raw(
            store,
            f"UPDATE deployment SET revision = revision + 1, kind = '{kind}', {brought}, "
            f"evidence = '{record}', idempotency_key = 'around' WHERE environment = 'staging'",
        )

    assert standing(store, "staging").revision == 1


def test_a_config_is_kept_under_the_digest_of_its_spelling_and_once(store: Store) -> None:
    spelling = spelled(a_document())

    digests = {store.put_config(CONFIG, spelling) for _ in range(2)}
    with pytest.raises(StoreError, match="does not allow that"):
        raw(store, f"INSERT INTO config (digest, name, spelling) VALUES ('{'a' * 64}', 'x', 'y')")

    assert digests == {digest_of(spelling)}
    assert store.config(digest_of(spelling)) == (CONFIG, spelling)
    assert store.config("a" * 64) is None


# --- Evidence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["passing first", "failing first"])
def test_a_later_failing_run_revokes_whichever_arrives_first(store: Store, order: str) -> None:
    digest = store.put_config(CONFIG, spelled(a_document()))
    passing = a_record(digest)
    failing = a_record(digest, verdict="fail", finished_at=NOW + timedelta(minutes=5))
    again = a_record(digest, finished_at=NOW + timedelta(minutes=9))

    for each in (passing, failing) if order == "passing first" else (failing, passing):
        assert store.put_evidence(each)
    assert not store.put_evidence(passing)
    after = {each.id: each.revoked_by for each in store.evidence(CONFIG, digest)}
    store.put_evidence(again)

    assert after == {passing.id: failing.id, failing.id: ""}
    assert store.evidence(CONFIG, digest)[0] == again
    assert moved(store, digest).evidence == again.id


def test_an_inconclusive_run_revokes_nothing(store: Store) -> None:
    digest = a_release(store)

    store.put_evidence(a_record(digest, verdict="inconclusive", finished_at=NOW + timedelta(minutes=5)))

    assert moved(store, digest).baseline == digest


def test_evidence_comes_back_equal(store: Store) -> None:
    digest = store.put_config(CONFIG, spelled(a_document()))
    record = a_record(digest, envelope=b'{"payload": "\xc3\xa4"}', signed_by="ci")

    store.put_evidence(record)

    assert store.evidence(CONFIG) == (record,)
    assert store.evidence("other") == ()


def test_evidence_for_a_config_of_another_name_opens_nothing(store: Store) -> None:
    digest = store.put_config("other", spelled(a_document()))

    assert refusal(lambda: store.put_evidence(a_record(digest)))[0] is Refusal.UNKNOWN


# --- Leases -------------------------------------------------------------------------------------


def test_one_runner_at_a_time(store: Store) -> None:
    held = the_lease(store, owner="ada@one")

    other = refusal(lambda: the_lease(store, owner="lin@two"))
    elsewhere = store.acquire(CONFIG, "staging", "lin@two")
    store.release(held)
    after = the_lease(store, owner="lin@two")

    assert other[0] is Refusal.LEASE
    assert "ada@one is moving ticket-triage in development" in other[1]
    assert (held.fence, elsewhere.fence, after.fence) == (1, 1, 2)


def test_the_lease_of_a_runner_that_died_expires_and_a_late_one_is_refused_by_its_fence(store: Store) -> None:
    digest = a_release(store)
    dead = store.acquire(CONFIG, ENVIRONMENT, "dead", timedelta(milliseconds=50))

    _wait_until_expired(dead)
    expired = refusal(lambda: store.move(a_move(dead, digest)))
    alive = the_lease(store, owner="alive")

    assert expired[0] is Refusal.LEASE
    assert refusal(lambda: store.move(a_move(dead, digest)))[0] is Refusal.FENCE
    assert refusal(lambda: store.renew(dead))[0] is Refusal.FENCE
    store.release(dead)
    assert store.move(a_move(alive, digest)).deployment.revision == 1


def refusal_of(call: Callable[[], object]) -> Refusal | None:
    try:
        call()
    except Refused as refused:
        return refused.refusal
    return None


def _wait_until_expired(lease: Lease) -> None:
    while clock.now() <= lease.until + timedelta(milliseconds=20):
        time.sleep(0.005)


def test_a_lease_that_is_renewed_holds(store: Store) -> None:
    lease = store.acquire(CONFIG, ENVIRONMENT, "ada", timedelta(seconds=30))

    renewed = store.renew(lease, timedelta(minutes=1))

    assert renewed.until > lease.until
    assert renewed.fence == lease.fence
    store.release(lease)
    assert refusal(lambda: store.renew(lease))[0] is Refusal.LEASE


# --- History ------------------------------------------------------------------------------------


def test_the_latest_moves_of_all_deployments_come_first(store: Store) -> None:
    digests = [a_release(store, 1), a_release(store, 2)]
    for at in range(5):
        moved(store, digests[at % 2])

    every, few = store.latest(), store.latest("ticket-triage", "development", limit=2)

    assert [each.revision for each in every] == [5, 4, 3, 2, 1]
    assert few == every[:2]
    assert store.latest("another") == store.latest(environment="production") == ()


def test_the_history_of_many_moves_verifies_and_comes_in_pages(store: Store) -> None:
    digests = [a_release(store, 1), a_release(store, 2)]
    for at in range(25):
        moved(store, digests[at % 2], reason=f"zwölf\n{at} 🎈", actor="a|b\x1f")

    pages = [store.history(CONFIG, ENVIRONMENT, after=after, limit=10) for after in (0, 10, 20)]

    assert [len(each) for each in pages] == [10, 10, 5]
    assert list(promotion.verified([*pages[0], *pages[1], *pages[2]], 25)) == []
    assert list(runner.problems(store, standing(store))) == []


TAMPERED = {
    "UPDATE history SET actor = 'mallory' WHERE revision = 2": ["r2 of {place} was edited"],
    "UPDATE history SET hash = '{other}' WHERE revision = 2": [
        "r2 of {place} was edited",
        "r3 of {place} does not",
    ],
    "DELETE FROM history WHERE revision = 2": ["r2 does not stand before r3 of {place}"],
    "DELETE FROM history WHERE revision = 4": ["the history ends at r3, but the environment is at r4"],
    "UPDATE history SET revision = 0 WHERE revision = 2; "
    "UPDATE history SET revision = 2 WHERE revision = 3; "
    "UPDATE history SET revision = 3 WHERE revision = 0": [
        "r2 of {place} does not follow the event before it",
        "r2 of {place} was edited",
        "r3 of {place} does not follow the event before it",
        "r3 of {place} was edited",
        "r4 of {place} does not follow the event before it",
    ],
    "UPDATE deployment SET baseline = '{other}'": [
        "{place} serves something else than r4 of its history says"
    ],
    "UPDATE deployment SET revision = 9": ["the history ends at r4, but the environment is at r9"],
}


@pytest.mark.parametrize("statement", TAMPERED)
def test_a_history_that_somebody_with_the_keys_tampered_with_names_the_rows(
    store: Store, statement: str
) -> None:
    digests = [a_release(store, 1), a_release(store, 2)]
    for at in range(4):
        moved(store, digests[at % 2])
    without_triggers(store)
    raw(store, "DELETE FROM outbox")
    for each in statement.split("; "):
        raw(store, each.format(other="f" * 64))

    found = list(runner.problems(store, standing(store)))

    expected = [each.format(place="ticket-triage in development") for each in TAMPERED[statement]]
    undated = [line for line in found if "is dated before" not in line]  # moves may share a millisecond
    assert [one in line for one, line in zip(expected, undated, strict=True)] == [True] * len(expected), found


def without_triggers(store: Store) -> None:
    """What keeps history as it is, taken away by somebody who may."""
    if isinstance(store, SqliteStore):
        names = store._all("SELECT name FROM sqlite_schema WHERE type = 'trigger'", {})
        for row in names:
            raw(store, f"DROP TRIGGER {row['name']}")
    else:
        for table in ("history", "deployment"):
            raw(store, f"ALTER TABLE {table} DISABLE TRIGGER USER")


def test_every_move_is_in_the_outbox_until_somebody_was_told(store: Store) -> None:
    digests = [a_release(store, 1), a_release(store, 2)]
    for digest in digests:
        moved(store, digest)

    events = store.outbox()
    store.told(events[0])
    store.told(events[0])

    assert [each.revision for each in events] == [1, 2]
    assert store.outbox() == events[1:]
    assert store.outbox(limit=0) == ()


# --- Who reads ----------------------------------------------------------------------------------


def test_serving_brings_what_the_reader_does_not_know_yet(store: Store) -> None:
    first, second = a_release(store, 1), a_release(store, 2)
    price = Price(input_usd=Decimal("0.10"), output_usd=Decimal("0.20"), source="declared")
    store.put_config(CONFIG, spelled(a_document(2)), price)
    moved(store, first)
    moved(store, second, kind=Kind.CANARY, weight_bp=500, salt="s")

    whole = store.serving(ENVIRONMENT)
    rest = store.serving(ENVIRONMENT, known=[first])

    assert [each.candidate for each in whole.deployments] == [second]
    assert set(whole.configs) == {first, second}
    assert whole.prices == rest.prices == {second: price}
    assert rest.configs == {second: spelled(a_document(2))}
    assert store.serving("production").deployments == ()


def test_a_watcher_tells_of_a_move_and_can_be_woken(store: Store) -> None:
    digest = a_release(store)
    lease = the_lease(store)

    with store.watch() as watcher:
        while watcher.wait(0.05):
            pass
        store.move(a_move(lease, digest))
        told = watcher.wait(20)
        threading.Timer(0.05, watcher.wake).start()
        woken = watcher.wait(60)

    assert told
    assert not woken


def test_instances_say_what_they_serve_and_are_forgotten_when_they_leave(store: Store) -> None:
    digest = a_release(store)
    moved(store, digest)
    one = Acknowledgement(config=CONFIG, revision=1, age_ms=40, reloaded=True)

    store.acknowledge("a", "web:1", ENVIRONMENT, [one])
    store.acknowledge("b", "web:2", ENVIRONMENT, [replace(one, revision=0, refused=1, reason="damaged")])
    first = store.instances(ENVIRONMENT, CONFIG)
    store.acknowledge("a", "web:1", ENVIRONMENT, [replace(one, age_ms=0)])
    again = store.instances(ENVIRONMENT, CONFIG)
    store.acknowledge("b", "web:2", ENVIRONMENT, [])
    store.leave("a")

    assert [(each.name, each.revision, each.refused, each.reason) for each in first] == [
        ("web:1", 1, 0, ""),
        ("web:2", 0, 1, "damaged"),
    ]
    assert again[0].serving_since == first[0].serving_since
    assert clock.now() - first[0].serving_since < timedelta(seconds=20)
    assert store.instances() == ()


# --- Tallies and tokens -------------------------------------------------------------------------


def a_tally(bin_: int, **fields: object) -> Tally:
    made: dict[str, object] = {
        "config": CONFIG,
        "environment": ENVIRONMENT,
        "revision": 1,
        "arm": Arm.BASELINE,
        "start_ms": bin_ * BIN_MS + (1_800_000_000_000 // BIN_MS) * BIN_MS,
        "started": 3,
        "latency_s": Histogram.of([0.8, 1.2]),
        "metrics": {"accepted": Histogram.of([1, 0])},
    }
    return Tally(**(made | fields))  # type: ignore[arg-type]  # a builder for tests takes any field


def test_tallies_that_are_sent_twice_are_kept_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy_gates.store.sqlite.ROWS_MAX", 2)
    monkeypatch.setattr("deploy_gates.store.postgres.ROWS_MAX", 2)
    sent = [a_tally(each) for each in range(5)]

    store.add_tallies("web:1", 0, sent[:3])
    store.add_tallies("web:1", 0, sent[:3])
    store.add_tallies("web:1", 3, sent[3:])
    store.add_tallies("web:2", 0, sent[:1])
    store.add_tallies("web:2", 1, [a_tally(0, config="other")])

    assert list(store.tallies(CONFIG, ENVIRONMENT)) == [sent[0], *sent]
    assert (
        list(store.tallies(CONFIG, ENVIRONMENT, since_ms=sent[1].start_ms, until_ms=sent[3].start_ms))
        == sent[1:3]
    )


def test_a_token_is_kept_by_its_hash_and_can_be_revoked(store: Store) -> None:
    token = Token(
        id="5f3a9c21",
        name="triage",
        secret_hash="a" * 64,
        scopes=frozenset({Scope.READ, Scope.REPORT}),
        created_at=NOW,
        created_by="ada",
    )

    store.put_token(token)
    revoked = [store.revoke_token(token.id) for _ in range(2)]
    found = store.token(token.id)

    assert revoked == [True, False]
    assert found is not None
    assert replace(found, revoked_at=None) == token
    assert found.revoked_at is not None
    assert store.tokens() == (found,)
    assert store.token("none") is None


# --- The schema ---------------------------------------------------------------------------------


def test_an_upgrade_may_run_twice_and_twice_at_once(store_url: str) -> None:
    stores = [open_store(store_url) for _ in range(4)]
    made: list[tuple[int, int]] = []

    with _threads([lambda each=each: made.append(_upgraded(each)) for each in stores]):  # type: ignore[misc]
        pass
    again = stores[0].upgrade()
    stores[0].check()
    for each in stores:
        each.close()

    now = len(migrations("sqlite"))
    assert sorted(made) == [(0, now), (now, now), (now, now), (now, now)]
    assert (again.before, again.after) == (now, now)


def _upgraded(store: Store) -> tuple[int, int]:
    upgraded = store.upgrade()
    return upgraded.before, upgraded.after


def test_a_newer_schema_is_refused_and_left_alone(store: Store) -> None:
    raw(store, "INSERT INTO migration VALUES (99, 0)")

    for call in (store.check, store.upgrade):
        with pytest.raises(StoreError, match="of version 99"):
            call()


def test_a_store_without_tables_says_what_to_do(store_url: str) -> None:
    store = open_store(store_url)
    if store_url.startswith("sqlite"):
        open(store_url.removeprefix("sqlite:///"), "wb").close()

    with pytest.raises(StoreError, match="version 0") as old:
        store.check()
    with pytest.raises(StoreError, match="no tables yet"):
        store.deployments()

    assert old.value.hint == "deploy-gates store upgrade"
    store.close()


def test_no_password_is_shown() -> None:
    store = open_store("postgresql://gates:s3cret@127.0.0.1:1/gates")

    with pytest.raises(StoreError) as failed:
        store.deployments()

    assert "s3cret" not in str(failed.value) + store.url
    store.close()


# --- Races --------------------------------------------------------------------------------------


@contextmanager
def _threads(calls: list[Callable[[], object]]) -> Iterator[None]:
    """Run the calls at once; what one of them raises fails the test."""
    failed: list[Exception] = []
    gate = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        gate.wait()
        try:
            call()
        except (AssertionError, StoreError) as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(each,)) for each in calls]
    for each in threads:
        each.start()
    yield
    for each in threads:
        each.join()
    assert failed == []


def test_of_twelve_racers_one_wins_each_round(store: Store) -> None:
    digests = [a_release(store, 1), a_release(store, 2)]
    lease = the_lease(store)
    won: list[int] = []

    for round_ in range(10):
        move = a_move(lease, digests[round_ % 2], expected=round_)

        def race(racer: int, move: Move = move) -> None:
            asked = replace(move, key=f"{move.key}-{racer}")
            if refusal_of(lambda: won.append(store.move(asked).deployment.revision)) not in (
                None,
                Refusal.REVISION,
            ):
                raise AssertionError("lost for another reason")

        with _threads([lambda racer=racer: race(racer) for racer in range(12)]):  # type: ignore[misc]
            pass

    assert sorted(won) == list(range(1, 11))
    assert list(runner.problems(store, standing(store))) == []


def test_a_rollback_of_staging_that_races_a_promotion_to_production_wins_or_comes_after_it(
    store: Store,
) -> None:
    first, second = a_release(store, 1), a_release(store, 2)
    for name in ("development", "staging", "production"):
        moved(store, first, name)
    outcomes = set()
    for round_ in range(8):
        for name in ("development", "staging"):
            if standing(store, name).baseline != second:
                moved(store, second, name)
        lease = the_lease(store, "production")
        move = a_move(lease, second, key=f"race-{round_}")
        with _threads(
            [
                lambda move=move: outcomes.add(refusal_of(lambda: store.move(move))),  # type: ignore[misc]
                lambda: runner.rollback(store, config=CONFIG, environment="staging", actor="lin", reason=""),
            ]
        ):
            pass
        if standing(store, "production").baseline == second:
            runner.rollback(store, config=CONFIG, environment="production", actor="lin", reason="")

    assert outcomes <= {None, Refusal.ORDER}
    for name in ("staging", "production"):
        assert list(runner.problems(store, standing(store, name))) == []


def test_a_revocation_that_races_a_promotion_wins_or_comes_after_it(store: Store) -> None:
    outcomes = set()
    for number in range(1, 16):
        digest = a_release(store, number)
        lease = the_lease(store)
        failing = a_record(digest, verdict="fail", finished_at=NOW + timedelta(hours=1))
        move = a_move(lease, digest)
        with _threads(
            [
                lambda move=move: outcomes.add(refusal_of(lambda: store.move(move))),  # type: ignore[misc]
                lambda failing=failing: store.put_evidence(failing),  # type: ignore[misc]
            ]
        ):
            pass

        (event,) = store.history(CONFIG, ENVIRONMENT, after=lease.revision) or (None,)
        assert event is None or event.baseline == digest

    assert outcomes <= {None, Refusal.EVIDENCE}
