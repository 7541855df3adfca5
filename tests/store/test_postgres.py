"""What only PostgreSQL can get wrong: lost sessions, waiting for locks, notifications, poolers, names."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TypeVar

import psycopg
import pytest

import engines
from deploy_gates import runner
from deploy_gates.core.errors import Refusal, Refused, StoreError, StoreUnavailable
from deploy_gates.core.promotion import Acknowledgement, Kind, Lease, Move
from deploy_gates.store import connections, listening, postgres
from deploy_gates.store.connections import Connections
from deploy_gates.store.listening import PostgresWatcher
from deploy_gates.store.postgres import PostgresStore
from deploy_gates.testing import POLICY, a_release

CONFIG, ENVIRONMENT = "ticket-triage", "development"
PATIENCE_S = 20.0
_T = TypeVar("_T")


@pytest.fixture
def url(postgres: str) -> str:
    return engines.fresh_postgres(postgres)


@pytest.fixture
def store(url: str) -> Iterator[PostgresStore]:
    made = PostgresStore(url)
    made.upgrade()
    yield made
    made.close()


@pytest.fixture
def other(url: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Somebody else's session in the same namespace."""
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def a_move(lease: Lease, digest: str, key: str = "k") -> Move:
    return Move(
        config=CONFIG,
        environment=ENVIRONMENT,
        kind=Kind.PROMOTE,
        digest=digest,
        expected=lease.revision,
        fence=lease.fence,
        policy=POLICY,
        actor="ada",
        reason="",
        key=key,
    )


def promoted(store: PostgresStore, digest: str) -> int:
    return runner.promote(
        store, config=CONFIG, environment=ENVIRONMENT, digest=digest, policy=POLICY, actor="ada", reason=""
    ).deployment.revision


def refused(call: Callable[[], object]) -> Refusal:
    with pytest.raises(Refused) as found:
        call()
    return found.value.refusal


@contextmanager
def meanwhile(call: Callable[[], _T]) -> Iterator[list[_T | Exception]]:
    """Run the call in a thread while the block runs; what came of it is in the list afterwards."""
    came: list[_T | Exception] = []

    def run() -> None:
        try:
            came.append(call())
        except StoreError as error:
            came.append(error)
        except Refused as error:
            came.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield came
    finally:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def waiting(session: psycopg.Connection[tuple[object, ...]]) -> bool:
    """Whether somebody waits for a row that this session holds."""
    row = session.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
    ).fetchone()
    assert row is not None
    return bool(row[0])


def end_all_sessions(store: PostgresStore, other: psycopg.Connection[tuple[object, ...]]) -> int:
    """Have the server end every session of the store, as a restart would; how many they were."""
    pids = [each.info.backend_pid for each in store._connections._idle]
    for pid in pids:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    return len(pids)


def use_many_connections(store: PostgresStore, number: int = 6) -> None:
    gate = threading.Barrier(number)

    def hold() -> None:
        store._connections.run(lambda connection: gate.wait(PATIENCE_S))

    threads = [threading.Thread(target=hold) for _ in range(number)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


# --- Waiting for the row ------------------------------------------------------------------------


def test_a_late_runner_that_waits_for_the_row_is_refused_by_the_fence_that_came_meanwhile(
    store: PostgresStore, other: psycopg.Connection[tuple[object, ...]]
) -> None:
    move = a_move(store.acquire(CONFIG, ENVIRONMENT, "late"), a_release(store))

    with other.transaction():
        other.execute("UPDATE deployment SET owner = 'new', fence = fence + 1")
        with ExitStack() as stack:
            came = stack.enter_context(meanwhile(lambda: store.move(move)))
            until(lambda: waiting(other))
            other.execute("COMMIT")

    assert isinstance(came[0], Refused)
    assert came[0].refusal is Refusal.FENCE
    assert store.history(CONFIG, ENVIRONMENT) == ()


def test_a_lease_that_expires_while_its_runner_waits_for_the_row_is_refused(
    store: PostgresStore, other: psycopg.Connection[tuple[object, ...]]
) -> None:
    digest = a_release(store)
    lease = store.acquire(CONFIG, ENVIRONMENT, "ada", timedelta(seconds=1.5))

    other.execute("BEGIN")
    other.execute("SELECT 1 FROM deployment FOR UPDATE")
    with meanwhile(lambda: store.move(a_move(lease, digest))) as came:
        until(lambda: waiting(other))
        until(lambda: other.execute("SELECT lease_until_ms < now_ms() FROM deployment").fetchone() == (True,))
        other.execute("COMMIT")

    assert isinstance(came[0], Refused)
    assert came[0].refusal is Refusal.LEASE
    assert store.history(CONFIG, ENVIRONMENT) == ()


def test_a_promotion_waits_for_the_revocation_of_its_evidence_and_is_then_refused(
    store: PostgresStore, other: psycopg.Connection[tuple[object, ...]]
) -> None:
    move = a_move(store.acquire(CONFIG, ENVIRONMENT, "ada"), a_release(store))

    other.execute("BEGIN")
    other.execute("UPDATE evidence SET revoked_by = repeat('f', 64)")
    with meanwhile(lambda: store.move(move)) as came:
        until(lambda: waiting(other))
        other.execute("COMMIT")

    assert isinstance(came[0], Refused)
    assert came[0].refusal is Refusal.EVIDENCE


def test_whoever_holds_the_row_for_too_long_is_told_of_and_nothing_is_changed(
    store: PostgresStore,
    other: psycopg.Connection[tuple[object, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lease = store.acquire(CONFIG, ENVIRONMENT, "ada")
    move = a_move(lease, a_release(store))
    store._connections.run(lambda session: session.execute("SET statement_timeout = '200ms'"))

    with other.transaction():
        other.execute("SELECT 1 FROM deployment FOR UPDATE")
        with pytest.raises(StoreUnavailable, match="was busy"):
            store.move(move)

    assert store.move(move).deployment.revision == 1


# --- Lost sessions ------------------------------------------------------------------------------


def test_sessions_that_the_server_ended_are_not_noticed_by_whoever_calls(
    store: PostgresStore, other: psycopg.Connection[tuple[object, ...]]
) -> None:
    digests = [a_release(store, 1), a_release(store, 2)]
    use_many_connections(store)

    ended = end_all_sessions(store, other)
    first = promoted(store, digests[0])
    use_many_connections(store)
    end_all_sessions(store, other)
    lease = store.acquire(CONFIG, ENVIRONMENT, "ada")
    end_all_sessions(store, other)
    second = store.move(a_move(lease, digests[1]))

    assert ended == 6
    assert (first, second.deployment.revision, second.replayed) == (1, 2, False)


def test_a_server_that_was_killed_is_away_then_back_with_all_that_was_acknowledged() -> None:
    with engines.own_server() as server:
        store = PostgresStore(engines.fresh_postgres(server.url))
        store.upgrade()
        digests = [a_release(store, 1), a_release(store, 2)]
        promoted(store, digests[0])
        with store.watch() as watcher:
            server.kill()
            with pytest.raises(StoreUnavailable):
                watcher.wait(PATIENCE_S)
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            store.deployments()

        server.start()
        (found,) = store.deployments()

        assert found.baseline == digests[0]
        assert promoted(store, digests[1]) == 2
        assert list(runner.problems(store, store.deployments()[0])) == []
        store.close()


def test_a_session_that_a_pooler_swapped_goes_on_without_prepared_statements(store: PostgresStore) -> None:
    digest = a_release(store)
    for _ in range(4):
        store.deployments()

    store._connections.run(lambda session: session.execute("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$"))

    assert store.deployments() == ()
    assert promoted(store, digest) == 1


def test_a_reader_goes_on_through_a_migration(
    url: str, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted(store, a_release(store, 1))
    now = len(postgres._migrations())
    known = [
        *postgres._migrations(),
        "ALTER TABLE deployment ADD COLUMN later TEXT NOT NULL DEFAULT ''; SELECT pg_sleep(0.3);",
    ]
    reader = PostgresStore(url)
    seen: set[int] = set()
    failed: list[StoreError] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                assert len(reader.serving(ENVIRONMENT).deployments) == 1
                seen.add(reader._read(postgres._version))
            except StoreError as error:
                failed.append(error)

    monkeypatch.setattr(postgres, "_migrations", lambda: known)
    thread = threading.Thread(target=read)
    thread.start()
    try:
        until(lambda: now in seen)
        upgraded = store.upgrade()
        until(lambda: now + 1 in seen)
    finally:
        done.set()
        thread.join()
        reader.close()

    assert (upgraded.before, upgraded.after) == (now, now + 1)
    assert failed == []
    assert seen == {now, now + 1}


def test_a_child_has_sessions_of_its_own_and_leaves_the_parents_alone(url: str) -> None:
    script = textwrap.dedent(
        """
        import os, sys, threading
        from deploy_gates.store.postgres import PostgresStore
        from deploy_gates.testing import a_release
        store = PostgresStore(sys.argv[1])
        store.upgrade()
        a_release(store, 1)
        before = [each.info.backend_pid for each in store._connections._idle]
        with store.watch() as watcher:
            if os.fork() == 0:
                a_release(store, 2)
                assert [each.info.backend_pid for each in store._connections._idle] != before
                watcher.close()
                store.close()
                os._exit(0)
            assert os.wait()[1] == 0
            threading.Timer(0.05, watcher.wake).start()
            assert not watcher.wait(20)
            a_release(store, 3)
        assert [each.info.backend_pid for each in store._connections._idle] == before
        print(len(store.evidence("ticket-triage")))
        store.close()
        """
    )

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, url], capture_output=True, text=True, check=False
    )

    assert (done.stdout, done.stderr) == ("3\n", "")


def test_more_threads_than_connections_all_get_their_turn(store: PostgresStore) -> None:
    promoted(store, a_release(store))
    found: list[int] = []

    def read() -> None:
        found.extend(len(store.deployments()) for _ in range(20))

    threads = [threading.Thread(target=read) for _ in range(4 * connections.CONNECTIONS_MAX)]

    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert found == [1] * 20 * len(threads)
    assert len(store._connections._idle) <= connections.CONNECTIONS_MAX


# --- Watching -----------------------------------------------------------------------------------


def test_a_watcher_hears_of_its_own_namespace_only(store: PostgresStore, postgres: str) -> None:
    elsewhere = PostgresStore(engines.fresh_postgres(postgres))
    elsewhere.upgrade()
    here, there = a_release(store), a_release(elsewhere)

    with store.watch() as watcher:
        assert watcher.hears
        promoted(elsewhere, there)
        with elsewhere.watch():  # which sends itself a notification
            pass
        nothing = watcher.wait(0.3)
        promoted(store, here)
        began = time.monotonic()
        something = watcher.wait(PATIENCE_S)

    assert (nothing, something) == (False, True)
    assert time.monotonic() - began < listening.LOOK_EVERY_S
    elsewhere.close()


def test_a_watcher_hears_what_is_said_while_it_looks_for_itself(
    store: PostgresStore, url: str, other: psycopg.Connection[tuple[object, ...]]
) -> None:
    with store.watch() as watcher, psycopg.connect(url) as busy:
        busy.execute("LOCK TABLE deployment")  # whoever looks waits for the answer
        watcher._look_at = 0.0
        with meanwhile(lambda: watcher.wait(1.0)) as came:
            until(lambda: waiting(busy))
            other.execute("SELECT pg_notify('deploy_gates', current_schema())")
            busy.rollback()

    assert came == [True]


def test_a_watcher_finds_what_was_never_said(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "LOOK_EVERY_S", 0.2)
    digest = a_release(store)

    with store.watch() as watcher:
        watcher._connection.execute("UNLISTEN *")
        promoted(store, digest)
        found = watcher.wait(PATIENCE_S)
        again = watcher.wait(0.5)

    assert (found, again) == (True, False)


class Swallowing(Connections):
    """A pooler that lets no notification through."""

    def run(self, call: Callable[[connections.Connection], _T]) -> _T:
        return None  # type: ignore[return-value]  # the watcher asks for no answer


def test_a_watcher_that_notifications_do_not_reach_knows_it_and_looks_for_itself(
    store: PostgresStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "PROBE_MAX_S", 0.1)
    digest = a_release(store)
    pooler = Swallowing(url, durable=True)
    watcher = PostgresWatcher(pooler)

    watcher._connection.execute("UNLISTEN *")
    promoted(store, digest)
    began = time.monotonic()
    found = watcher.wait(PATIENCE_S)
    took = time.monotonic() - began
    watcher.close()

    assert not watcher.hears
    assert found
    assert took < listening.LOOK_EVERY_S


def test_a_watcher_works_beyond_a_thousand_open_files(store: PostgresStore) -> None:
    import resource

    digest = a_release(store)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096) if hard > 0 else 4096, hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_100)]
    try:
        with store.watch() as watcher:
            promoted(store, digest)
            assert watcher.wait(PATIENCE_S)
    finally:
        for each in opened:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- The tables ---------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["config", "evidence", "deployment", "history"])
def test_what_is_kept_cannot_be_emptied(
    store: PostgresStore, other: psycopg.Connection[tuple[object, ...]], table: str
) -> None:
    promoted(store, a_release(store))

    with pytest.raises(psycopg.errors.RaiseException):
        other.execute(f"TRUNCATE {table} CASCADE")


def test_temporary_tables_do_not_stand_in_for_evidence(
    store: PostgresStore, other: psycopg.Connection[tuple[object, ...]]
) -> None:
    promoted(store, a_release(store, 1))
    unproved = store.put_config(CONFIG, b"{}")
    other.execute("CREATE TEMPORARY TABLE evidence AS SELECT * FROM evidence")
    other.execute("CREATE TEMPORARY TABLE admission AS SELECT * FROM admission")
    other.execute("UPDATE pg_temp.evidence SET digest = %s", (unproved,))

    with pytest.raises(psycopg.errors.RaiseException, match="no passing evidence"):
        other.execute(
            "UPDATE deployment SET revision = revision + 1, kind = 'promote', baseline = %s", (unproved,)
        )


def test_a_session_with_another_search_path_moves_the_same_tables(
    store: PostgresStore, postgres: str
) -> None:
    promoted(store, a_release(store, 1))
    digest = a_release(store, 2)
    evidence = store.evidence(CONFIG, digest)[0].id
    store.acquire(CONFIG, ENVIRONMENT, "ada")
    schema = store._read(lambda session: session.execute("SELECT current_schema() AS s").fetchone())
    assert schema is not None

    with psycopg.connect(postgres, autocommit=True) as session:
        session.execute(
            f"UPDATE {schema['s']}.deployment SET revision = revision + 1, kind = 'promote', "
            "baseline = %s, evidence = %s, idempotency_key = 'by hand'",
            (digest, evidence),
        )

    assert list(runner.problems(store, store.deployments()[0])) == []
    assert len(store.history(CONFIG, ENVIRONMENT)) == 2


def test_a_database_that_cannot_keep_every_text_is_refused(postgres: str) -> None:
    with psycopg.connect(postgres, autocommit=True) as session:
        session.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    store = PostgresStore(postgres.rpartition("/")[0] + "/latin")

    with pytest.raises(StoreError, match="keeps text as LATIN1"):
        store.upgrade()

    store.close()


def test_a_namespace_that_does_not_exist_is_told_of(postgres: str) -> None:
    store = PostgresStore(f"{postgres}?options=-csearch_path%3Dnowhere")

    with pytest.raises(StoreError, match=r"the namespace that .* names does not exist"):
        store.upgrade()

    store.close()


@pytest.mark.parametrize("name", ["nul\x00byte", "half a \ud800 pair"])
def test_text_that_postgres_cannot_keep_is_an_error_in_a_sentence(store: PostgresStore, name: str) -> None:
    with pytest.raises(StoreError, match="cannot keep that"):
        store.acknowledge("i", name, ENVIRONMENT, [Acknowledgement(config="c", revision=1, age_ms=0)])

    assert store.instances() == ()


def test_a_copy_that_can_only_be_read_says_so(store: PostgresStore) -> None:
    store._connections.run(lambda session: session.execute("SET default_transaction_read_only = on"))

    with pytest.raises(StoreUnavailable, match="can only be read"):
        store.leave("nobody")


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://gates:s3cret@127.0.0.1:1/gates",
        "postgresql://gates@127.0.0.1:1/gates?connect_timeout=2&password=s3cret",
    ],
)
def test_no_password_is_shown_wherever_it_stands(address: str) -> None:
    store = PostgresStore(address)

    with pytest.raises(StoreUnavailable, match="cannot be reached") as failed:
        store.deployments()

    assert "s3cret" not in str(failed.value) + store.url
    store.close()


def test_an_address_that_is_none_is_an_error_in_a_sentence() -> None:
    store = PostgresStore("postgresql://x/y?no_such_thing=1")

    with pytest.raises(StoreError, match="cannot be used"):
        store.deployments()

    store.close()
