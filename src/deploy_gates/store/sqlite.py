"""The store in one SQLite file: the default, for one machine.

A connection of its own for every process, and one writer at a time among them. Who finds the file busy tries
again after a random moment: SQLite's own waiting lets one process starve while others write.

SQLite below 3.51.3 can corrupt a file when two connections checkpoint back to back while a third one writes.
So nobody checkpoints on the side here (`wal_autocheckpoint=0`), but who holds the lock file beside the store.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeAlias, TypeVar

from deploy_gates import clock
from deploy_gates.core import refusals
from deploy_gates.core.canonical import JsonObject, digest_of
from deploy_gates.core.cost import Price
from deploy_gates.core.delivery import Delivery
from deploy_gates.core.errors import StoreError, StoreUnavailable
from deploy_gates.core.promotion import (
    Acknowledgement,
    Deployment,
    Event,
    Instance,
    Kind,
    Lease,
    Move,
    Moved,
    Record,
    Serving,
    Token,
    netstrings,
)
from deploy_gates.core.refusals import Facts
from deploy_gates.core.release import Act, Approval, Promotion, Release, State, Status, Terms
from deploy_gates.core.tally import Tally
from deploy_gates.store import (
    CLAIM_TTL,
    INSTANCE_TTL,
    LEASE_MAX,
    LEASE_TTL,
    ROWS_MAX,
    TALLIES_KEPT,
    WAIT_MAX,
    Upgraded,
)
from deploy_gates.store.rows import (
    approval_of,
    check_current,
    check_not_newer,
    delivery_of,
    deployment_of,
    event_of,
    instance_of,
    keys_of,
    lease_of,
    maybe_deployment_of,
    migrations,
    ms_of,
    of_acknowledgement,
    of_delivery,
    of_move,
    of_record,
    of_release,
    of_tallies,
    of_token,
    promotions_of,
    record_of,
    span_ms,
    time_of,
    token_of,
    version_of,
)

FIXED_IN = (3, 51, 3)
"""The first SQLite without the WAL-reset bug."""
BUSY_MAX_S = 10.0
"""How long a write tries to get its turn."""
IMPATIENT_S = 0.08
"""From when on a write tries five times as often."""
WAL_MAX_BYTES = 4 << 20
"""A longer write-ahead log is checkpointed by whoever gets the lock."""
POLL_S = 0.008
"""How often a watcher asks whether the file has changed: 3 µs each time."""

_Row: TypeAlias = sqlite3.Row
_Values: TypeAlias = "Mapping[str, object]"


class SqliteStore:
    """One file. `now` is the clock that leases and history go by."""

    def __init__(
        self,
        path: Path,
        *,
        durable: bool = True,
        now: Callable[[], datetime] = clock.now,
        poll_s: float = POLL_S,
    ) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"
        self._durable = durable
        self._now = now
        self._poll_s = poll_s
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._writes = 0
        self._process = os.getpid()

    # --- The schema -----------------------------------------------------------------------------

    def upgrade(self) -> Upgraded:
        with self._lock, self._translated():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = _patiently(lambda: self._open(create=True))
            _patiently(lambda: connection.execute("PRAGMA journal_mode = WAL").fetchall())
            return self._write(self._migrate)

    def _migrate(self, connection: sqlite3.Connection) -> Upgraded:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS migration "
            "(version INTEGER PRIMARY KEY, applied_at_ms INTEGER NOT NULL)"
        )
        before = _version(connection)
        known = _migrations()
        check_not_newer(before, len(known), self.url)
        for version in range(before + 1, len(known) + 1):
            for statement in _statements(known[version - 1]):
                connection.execute(statement)
            connection.execute("INSERT INTO migration VALUES (?, now_ms())", (version,))
        return Upgraded(before=before, after=len(known))

    def check(self) -> None:
        check_current(self._read(_version), len(_migrations()), self.url)

    def warnings(self) -> tuple[str, ...]:
        if sqlite3.sqlite_version_info >= FIXED_IN:
            return ()
        fixed = ".".join(map(str, FIXED_IN))
        return (
            f"SQLite {sqlite3.sqlite_version} has a rare bug that can corrupt a store with several writers, "
            f"fixed in {fixed}; checkpoints are serialised here to stay clear of it, and PostgreSQL has none",
        )

    # --- What is promoted -----------------------------------------------------------------------

    def put_config(self, name: str, spelling: bytes, price: Price | None = None) -> str:
        digest = digest_of(spelling)

        def put(connection: sqlite3.Connection) -> str:
            connection.execute(
                "INSERT INTO config (digest, name, spelling) VALUES (?, ?, ?) "
                "ON CONFLICT (digest) DO NOTHING",
                (digest, name, spelling),
            )
            if price is not None:
                connection.execute(
                    "INSERT INTO price (digest, body) VALUES (?, ?) "
                    "ON CONFLICT (digest) DO UPDATE SET body = excluded.body WHERE body <> excluded.body",
                    (digest, json.dumps(price.to_json())),
                )
            return digest

        return self._write(put)

    def config(self, digest: str) -> tuple[str, bytes] | None:
        rows = self._all("SELECT name, spelling FROM config WHERE digest = :digest", {"digest": digest})
        return (rows[0]["name"], rows[0]["spelling"]) if rows else None

    def put_evidence(self, record: Record) -> bool:
        def put(connection: sqlite3.Connection) -> bool:
            kept = connection.execute("SELECT name FROM config WHERE digest = ?", (record.digest,)).fetchone()
            if kept is None or kept["name"] != record.config:
                raise refusals.evidence_of_nothing(record)
            added = connection.execute(
                "INSERT INTO evidence "
                "(id, config, digest, policy, verdict, finished_at_ms, signed_by, envelope) "
                "VALUES (:id, :config, :digest, :policy, :verdict, :finished_at_ms, :signed_by, :envelope) "
                "ON CONFLICT (id) DO NOTHING",
                of_record(record),
            )
            if added.rowcount == 0:
                return False
            connection.executemany(
                "INSERT INTO admission (evidence, environment, valid_until_ms) VALUES (?, ?, ?)",
                [(record.id, name, ms_of(until)) for name, until in record.admitted_until.items()],
            )
            return True

        return self._write(put)

    def evidence(self, config: str, digest: str = "", *, limit: int = 100) -> tuple[Record, ...]:
        def read(connection: sqlite3.Connection) -> tuple[Record, ...]:
            rows = connection.execute(
                "SELECT * FROM evidence WHERE config = ? AND ? IN ('', digest) "
                "ORDER BY finished_at_ms DESC, id LIMIT ?",
                (config, digest, limit),
            ).fetchall()
            return tuple(record_of(row, _admissions(connection, row["id"])) for row in rows)

        return self._read(read)

    # --- Leases ---------------------------------------------------------------------------------

    def acquire(self, config: str, environment: str, owner: str, ttl: timedelta = LEASE_TTL) -> Lease:
        values = {
            "config": config,
            "environment": environment,
            "owner": owner,
            "ttl_ms": span_ms(ttl),
            "max_ms": span_ms(LEASE_MAX),
        }

        def take(connection: sqlite3.Connection) -> Lease:
            known = connection.execute("SELECT 1 FROM environment WHERE name = ?", (environment,)).fetchone()
            if known is None:
                raise refusals.no_environment(environment)
            row = _first(connection.execute(_ACQUIRE, values))
            if row is not None:
                return lease_of(row)
            holder = _one(connection, config, environment)
            assert holder is not None, "a lease that could not be taken is held in a row"
            raise refusals.held(deployment_of(holder), self._now())

        return self._write(take)

    def renew(self, lease: Lease, ttl: timedelta = LEASE_TTL) -> Lease:
        def hold(connection: sqlite3.Connection) -> Lease:
            row = _first(connection.execute(_RENEW, keys_of(lease) | {"ttl_ms": span_ms(ttl)}))
            if row is None:
                raise refusals.lost(
                    lease, maybe_deployment_of(_one(connection, lease.config, lease.environment))
                )
            return lease_of(row)

        return self._write(hold)

    def release(self, lease: Lease) -> None:
        self._run(_RELEASE, keys_of(lease))

    # --- Moves ----------------------------------------------------------------------------------

    def move(self, move: Move) -> Moved:
        values = of_move(move)
        statement = _ROLLBACK if move.kind is Kind.ROLLBACK else _FORWARD
        with self._lock:
            row = self._alone(lambda connection: _first(connection.execute(statement, values)))
            if row is not None:
                return Moved(deployment=deployment_of(row))
            return self._read(lambda connection: self._refused(connection, move))

    def _refused(self, connection: sqlite3.Connection, move: Move) -> Moved:
        """The answer to a move that changed nothing: it had been made before, or why it was not made."""
        place = {"config": move.config, "environment": move.environment}
        found = _one(connection, move.config, move.environment)
        same_key = connection.execute(
            "SELECT * FROM history WHERE config = :config AND environment = :environment "
            "AND idempotency_key = :key",
            place | {"key": move.key},
        ).fetchone()
        made = event_of(same_key) if same_key else None
        if made is not None and found is not None and refusals.is_replay(move, made):
            return Moved(deployment=refusals.as_it_was(made, deployment_of(found)), replayed=True)
        after = connection.execute(
            "SELECT after FROM environment WHERE name = :environment", place
        ).fetchone()
        records = connection.execute(
            "SELECT * FROM evidence WHERE config = ? AND digest = ? ORDER BY finished_at_ms",
            (move.config, move.digest),
        ).fetchall()
        baselines = connection.execute(
            "SELECT DISTINCT baseline FROM history WHERE config = :config AND environment = :environment",
            place,
        ).fetchall()
        known = connection.execute(
            "SELECT 1 FROM config WHERE digest = ? AND name = ?", (move.digest, move.config)
        ).fetchone()
        facts = Facts(
            deployment=maybe_deployment_of(found),
            known=known is not None,
            same_key=made,
            records=[record_of(each, _admissions(connection, each["id"])) for each in records],
            after=after["after"] if after else "",
            before=maybe_deployment_of(_one(connection, move.config, after["after"] if after else "")),
            baselines={each["baseline"] for each in baselines},
            now=self._now(),
        )
        raise refusals.why(move, facts)

    def deployments(self, environment: str = "", config: str = "") -> tuple[Deployment, ...]:
        rows = self._all(_DEPLOYMENTS, {"environment": environment, "config": config})
        return tuple(deployment_of(row) for row in rows)

    def history(
        self, config: str, environment: str, *, after: int = 0, limit: int = ROWS_MAX
    ) -> tuple[Event, ...]:
        rows = self._all(
            "SELECT * FROM history WHERE config = :config AND environment = :environment "
            "AND revision > :after ORDER BY revision LIMIT :limit",
            {"config": config, "environment": environment, "after": after, "limit": limit},
        )
        return tuple(event_of(row) for row in rows)

    def latest(self, config: str = "", environment: str = "", *, limit: int = 100) -> tuple[Event, ...]:
        rows = self._all(
            "SELECT * FROM history WHERE :config IN ('', config) AND :environment IN ('', environment) "
            "ORDER BY at_ms DESC, config DESC, environment DESC, revision DESC LIMIT :limit",
            {"config": config, "environment": environment, "limit": limit},
        )
        return tuple(event_of(row) for row in rows)

    # --- The reading side -----------------------------------------------------------------------

    def serving(self, environment: str, known: Collection[str] = ()) -> Serving:
        def read(connection: sqlite3.Connection) -> Serving:
            connection.execute("BEGIN")  # one snapshot for both reads
            try:
                rows = connection.execute(_SERVED, {"environment": environment}).fetchall()
                deployments = tuple(deployment_of(row) for row in rows)
                wanted = {each for row in deployments for each in (row.baseline, row.candidate) if each}
                found = [
                    connection.execute(_CONFIG_AND_PRICE, (digest,)).fetchone()
                    for digest in sorted(wanted - set(known))
                ]
            finally:
                connection.execute("COMMIT")
            kept = [row for row in found if row is not None]
            return Serving(
                environment=environment,
                deployments=deployments,
                configs={row["digest"]: row["spelling"] for row in kept},
                prices={
                    row["digest"]: Price.from_json(json.loads(row["body"])) for row in kept if row["body"]
                },
            )

        return self._read(read)

    @contextlib.contextmanager
    def watch(self) -> Iterator[SqliteWatcher]:
        with self._translated():
            watcher = SqliteWatcher(self, self._connect(create=False), self._poll_s)
        try:
            yield watcher
        finally:
            watcher.close()

    def acknowledge(
        self, instance: str, name: str, environment: str, served: Sequence[Acknowledgement]
    ) -> None:
        def put(connection: sqlite3.Connection) -> None:
            kept = [each.config for each in served]
            connection.execute(
                "DELETE FROM instance WHERE seen_at_ms < now_ms() - :gone_ms "
                "OR (id = :id AND config NOT IN (SELECT value FROM json_each(:kept)))",
                {"gone_ms": 10 * span_ms(INSTANCE_TTL), "id": instance, "kept": json.dumps(kept)},
            )
            connection.executemany(
                _ACKNOWLEDGE,
                [of_acknowledgement(instance, name, environment, each) for each in served],
            )

        self._write(put)

    def leave(self, instance: str) -> None:
        self._run("DELETE FROM instance WHERE id = :id", {"id": instance})

    def instances(self, environment: str = "", config: str = "") -> tuple[Instance, ...]:
        rows = self._all(
            "SELECT * FROM instance WHERE :environment IN ('', environment) AND :config IN ('', config) "
            "AND abs(seen_at_ms - (SELECT now_ms())) <= :ttl_ms "  # asked once, and not for every row
            "ORDER BY config, environment, name, id LIMIT :limit",
            {
                "environment": environment,
                "config": config,
                "ttl_ms": span_ms(INSTANCE_TTL),
                "limit": ROWS_MAX,
            },
        )
        return tuple(instance_of(row) for row in rows)

    # --- Tallies --------------------------------------------------------------------------------

    def add_tallies(self, instance: str, first: int, tallies: Sequence[Tally]) -> None:
        rows = of_tallies(instance, first, tallies)

        def add(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT INTO tally (instance, number, config, environment, start_ms, body) "
                "VALUES (:instance, :number, :config, :environment, :start_ms, :body) "
                "ON CONFLICT (instance, number) DO NOTHING",
                rows,
            )
            if random.random() < 0.001:  # somebody has to, and rarely is enough
                connection.execute(
                    "DELETE FROM tally WHERE start_ms < now_ms() - ?", (span_ms(TALLIES_KEPT),)
                )

        self._write(add)

    def tallies(
        self, config: str, environment: str, *, since_ms: int = 0, until_ms: int = 2**62
    ) -> Iterator[Tally]:
        at: tuple[int, str, int] = (since_ms, "", -1)
        while True:
            rows = self._all(
                "SELECT start_ms, instance, number, body FROM tally "
                "WHERE config = :config AND environment = :environment AND start_ms < :until "
                "AND (start_ms, instance, number) > (:start_ms, :instance, :number) "
                "ORDER BY start_ms, instance, number LIMIT :limit",
                {
                    "config": config,
                    "environment": environment,
                    "until": until_ms,
                    "start_ms": at[0],
                    "instance": at[1],
                    "number": at[2],
                    "limit": ROWS_MAX,
                },
            )
            for row in rows:
                yield Tally.from_json(json.loads(row["body"]))
            if len(rows) < ROWS_MAX:
                return
            at = (rows[-1]["start_ms"], rows[-1]["instance"], rows[-1]["number"])

    # --- Tokens ---------------------------------------------------------------------------------

    def put_token(self, token: Token) -> None:
        self._run(
            "INSERT INTO token (id, name, secret_hash, scopes, created_at_ms, created_by) "
            "VALUES (:id, :name, :secret_hash, :scopes, :created_at_ms, :created_by) "
            "ON CONFLICT (id) DO NOTHING",
            of_token(token),
        )

    def tokens(self) -> tuple[Token, ...]:
        rows = self._all("SELECT * FROM token ORDER BY created_at_ms, id LIMIT :limit", {"limit": ROWS_MAX})
        return tuple(token_of(row) for row in rows)

    def token(self, id: str) -> Token | None:
        rows = self._all("SELECT * FROM token WHERE id = :id", {"id": id})
        return token_of(rows[0]) if rows else None

    def revoke_token(self, id: str) -> bool:
        revoked = self._run(
            "UPDATE token SET revoked_at_ms = now_ms() WHERE id = :id AND revoked_at_ms = 0", {"id": id}
        )
        return revoked == 1

    # --- Promotions -----------------------------------------------------------------------------

    def propose(
        self, release: Release, *, until: str, policy: str, terms: Terms, is_anew: bool = False
    ) -> Promotion:
        def put(connection: sqlite3.Connection) -> Promotion:
            values = of_release(release) | {
                "is_anew": is_anew,
                "until": until,
                "policy": policy,
                "terms": json.dumps(terms.to_json()),
            }
            kept = connection.execute(
                "SELECT 1 FROM config WHERE digest = :digest AND name = :config", values
            ).fetchone()
            if kept is None:
                raise refusals.release_of_nothing(release)
            under_way = connection.execute(_UNDER_WAY, values).fetchone()
            if under_way is None:
                number = connection.execute(_NEXT_PROMOTION).fetchone()["id"]
                connection.execute(
                    _SUPERSEDE, values | {"conclusion": refusals.superseded_by(number, release)}
                )
                under_way = _first(connection.execute(_PROPOSE, values | {"id": number}))
                assert under_way is not None, "a row that was put in comes back"
            return _promotion(connection, under_way)

        return self._write(put)

    def promotion(self, id: int) -> Promotion | None:
        def read(connection: sqlite3.Connection) -> Promotion | None:
            row = connection.execute("SELECT * FROM promotion WHERE id = ?", (id,)).fetchone()
            return None if row is None else _promotion(connection, row)

        return self._read(_in_one_snapshot(read))

    def promotions(
        self, config: str = "", *, is_open: bool = False, before: int = 0, limit: int = 100
    ) -> tuple[Promotion, ...]:
        values = {"config": config, "before": before or 2**62, "limit": limit}
        chosen = "config = :config AND " if config else ""
        chosen += "state IN ('queued', 'running') AND " if is_open else ""

        def read(connection: sqlite3.Connection) -> tuple[Promotion, ...]:
            rows = connection.execute(
                f"SELECT * FROM promotion WHERE {chosen}id < :before ORDER BY id DESC LIMIT :limit", values
            ).fetchall()
            return _promotions(connection, rows)

        return self._read(_in_one_snapshot(read))

    def take(self, id: int, owner: str, ttl: timedelta = LEASE_TTL) -> Promotion:
        values = {"id": id, "owner": owner, "ttl_ms": span_ms(ttl), "max_ms": span_ms(LEASE_MAX)}

        def take(connection: sqlite3.Connection) -> Promotion:
            row = _first(connection.execute(_TAKE, values))
            if row is None:
                raise refusals.not_taken(id, _promotion_or_none(connection, id), self._now())
            return _promotion(connection, row)

        return self._write(take)

    def keep_on(self, promotion: Promotion, ttl: timedelta = LEASE_TTL) -> None:
        held = self._run(
            "UPDATE promotion SET lease_until_ms = now_ms() + :ttl_ms "
            "WHERE id = :id AND fence = :fence AND lease_until_ms > now_ms()",
            {"id": promotion.id, "fence": promotion.fence, "ttl_ms": span_ms(ttl)},
        )
        if not held:
            raise refusals.promotion_lost(promotion, self.promotion(promotion.id))

    def let_go(self, promotion: Promotion) -> None:
        self._run(
            "UPDATE promotion SET lease_until_ms = 0 WHERE id = :id AND fence = :fence",
            {"id": promotion.id, "fence": promotion.fence},
        )

    def write(
        self, promotion: Promotion, act: Act, environment: str, status: Status, data: JsonObject
    ) -> Promotion:
        values = {
            "id": promotion.id,
            "fence": promotion.fence,
            "act": act.value,
            "environment": environment,
            "status": status.value,
            "data": json.dumps(data),
            "known": len(promotion.journal),
        }

        def add(connection: sqlite3.Connection) -> Promotion:
            if connection.execute(_WRITE, values).rowcount == 0:
                return _as_it_stands(connection, promotion, State.RUNNING)
            row = _first(connection.execute(_WRITTEN, values))
            assert row is not None, "the promotion of a line that was written is there"
            return _promotion(connection, row)

        return self._write(add)

    def conclude(self, promotion: Promotion, state: State, conclusion: str) -> Promotion:
        values = {
            "id": promotion.id,
            "fence": promotion.fence,
            "config": promotion.release.config,
            "state": state.value,
            "conclusion": conclusion,
        }

        def end(connection: sqlite3.Connection) -> Promotion:
            row = _first(connection.execute(_CONCLUDE, values))
            if row is None:
                return _as_it_stands(connection, promotion, state, conclusion)
            connection.execute(_NEXT_RUNS, values)
            return _promotion(connection, row)

        return self._write(end)

    def approve(self, approval: Approval) -> None:
        self._run(
            "INSERT INTO approval (config, digest, environment, approver, reason, at_ms) "
            "VALUES (:config, :digest, :environment, :approver, :reason, now_ms()) "
            "ON CONFLICT (config, digest, environment, approver) DO NOTHING",
            {
                "config": approval.config,
                "digest": approval.digest,
                "environment": approval.environment,
                "approver": approval.approver,
                "reason": approval.reason,
            },
        )

    def approvals(self, config: str, digest: str = "") -> tuple[Approval, ...]:
        rows = self._all(
            "SELECT * FROM approval WHERE config = :config AND :digest IN ('', digest) "
            "ORDER BY at_ms, approver LIMIT :limit",
            {"config": config, "digest": digest, "limit": ROWS_MAX},
        )
        return tuple(approval_of(row) for row in rows)

    # --- Notifications --------------------------------------------------------------------------

    def outbox(self, limit: int = ROWS_MAX) -> tuple[Event, ...]:
        rows = self._all(
            "SELECT history.* FROM outbox JOIN history USING (config, environment, revision) "
            "ORDER BY at_ms, config, environment, revision LIMIT :limit",
            {"limit": limit},
        )
        return tuple(event_of(row) for row in rows)

    def told(self, event: Event, deliveries: Sequence[Delivery] = ()) -> None:
        def tell(connection: sqlite3.Connection) -> None:
            connection.executemany(_KEEP_DELIVERY, [of_delivery(each) for each in deliveries])
            connection.execute(
                "DELETE FROM outbox "
                "WHERE config = :config AND environment = :environment AND revision = :revision",
                {"config": event.config, "environment": event.environment, "revision": event.revision},
            )

        self._write(tell)

    def untold(self, limit: int = ROWS_MAX) -> tuple[Promotion, ...]:
        def read(connection: sqlite3.Connection) -> tuple[Promotion, ...]:
            rows = connection.execute(
                "SELECT * FROM promotion WHERE version > told_version ORDER BY id LIMIT ?", (limit,)
            ).fetchall()
            return _promotions(connection, rows)

        return self._read(_in_one_snapshot(read))

    def announced(self, promotion: Promotion, deliveries: Sequence[Delivery] = ()) -> None:
        def tell(connection: sqlite3.Connection) -> None:
            connection.executemany(_KEEP_DELIVERY, [of_delivery(each) for each in deliveries])
            connection.execute(
                "UPDATE promotion SET told_version = :version WHERE id = :id AND told_version < :version",
                {"id": promotion.id, "version": version_of(promotion)},
            )

        self._write(tell)

    def due(self, *, limit: int = 100, claim: timedelta = CLAIM_TTL) -> tuple[Delivery, ...]:
        waiting = self._all(
            "SELECT 1 FROM delivery WHERE state = 'due' "
            "AND (next_at_ms <= now_ms() OR next_at_ms > now_ms() + :max_ms) LIMIT 1",
            {"max_ms": span_ms(WAIT_MAX)},
        )
        if not waiting:  # the usual case writes nothing
            return ()
        values = {"limit": limit, "claim_ms": span_ms(claim), "max_ms": span_ms(WAIT_MAX)}
        rows = self._write(lambda connection: connection.execute(_DUE, values).fetchall())
        return tuple(delivery_of(row) for row in sorted(rows, key=lambda row: int(row["number"])))

    def settle(self, delivery: Delivery) -> None:
        self._run(
            "UPDATE delivery SET state = :state, attempts = :attempts, next_at_ms = :next_at_ms, "
            "external_id = :external_id, error = :error WHERE id = :id AND state <> 'delivered'",
            of_delivery(delivery),
        )

    def deliveries(
        self, *, thread: str = "", channel: str = "", state: str = "", limit: int = 100
    ) -> tuple[Delivery, ...]:
        rows = self._all(
            "SELECT * FROM delivery WHERE :thread IN ('', thread) AND :channel IN ('', channel) "
            "AND :state IN ('', state) ORDER BY number DESC LIMIT :limit",
            {"thread": thread, "channel": channel, "state": state, "limit": limit},
        )
        return tuple(delivery_of(row) for row in rows)

    # --- Connections ----------------------------------------------------------------------------

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def write_all(self, write: Callable[[sqlite3.Connection], _T]) -> _T:
        """Make some statements of the ledger, in one transaction."""
        return self._write(write)

    def read_all(self, read: Callable[[sqlite3.Connection], _T]) -> _T:
        """Make some reads of the ledger."""
        return self._read(read)

    def _all(self, statement: str, values: _Values) -> list[_Row]:
        return self._read(lambda connection: connection.execute(statement, values).fetchall())

    def _run(self, statement: str, values: _Values) -> int:
        """Make one change; how many rows it changed."""
        return self._alone(lambda connection: connection.execute(statement, values).rowcount)

    def _read(self, read: Callable[[sqlite3.Connection], _T]) -> _T:
        with self._lock, self._translated():
            return _patiently(lambda: read(self._open()))

    def _alone(self, write: Callable[[sqlite3.Connection], _T]) -> _T:
        """Make one statement: a transaction by itself."""
        with self._lock, self._translated():
            made = _patiently(lambda: write(self._open()))
            self._checkpoint_sometimes()
            return made

    def _write(self, write: Callable[[sqlite3.Connection], _T]) -> _T:
        """Make some statements, in one transaction."""

        def transact() -> _T:
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                made = write(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return made

        return self._alone(lambda _: transact())

    def _open(self, *, create: bool = False) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._connect(create=create)
            _open_stores.add(self)
        return self._connection

    def _connect(self, *, create: bool) -> sqlite3.Connection:
        if not create and not self.path.exists():
            raise StoreUnavailable(f"there is no store at {self.path}", hint="deploy-gates store upgrade")
        connection = sqlite3.connect(
            self.path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            connection.row_factory = sqlite3.Row
            connection.create_function("now_ms", 0, lambda: ms_of(self._now()))
            connection.create_function("sha256", 1, _sha256, deterministic=True)
            connection.create_function("netstrings", -1, netstrings, deterministic=True)
            for setting in (
                "foreign_keys = ON",
                "recursive_triggers = ON",  # what is kept is not replaced either
                f"synchronous = {'FULL' if self._durable else 'NORMAL'}",
                "wal_autocheckpoint = 0",
            ):
                connection.execute(f"PRAGMA {setting}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _checkpoint_sometimes(self) -> None:
        self._writes += 1
        if self._writes % 64:
            return
        log = self.path.with_name(f"{self.path.name}-wal")
        with contextlib.suppress(OSError, sqlite3.OperationalError):  # another time, then
            if log.stat().st_size > WAL_MAX_BYTES:
                with self.path.with_name(f"{self.path.name}-checkpoint").open("w") as only_one:
                    fcntl.flock(only_one, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._open().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise _translated(error, self.path) from error

    def _after_fork(self) -> None:
        """In a child: what the parent opened is the parent's, and closing it here would drop its locks."""
        if self._process == os.getpid():
            return  # made after the fork, by a thread that another one's hook has started already
        self._process = os.getpid()
        _abandoned.append(self._connection)
        self._lock = threading.RLock()
        self._connection = None


class SqliteWatcher:
    """Asks the file whether it has changed, every few milliseconds.

    A watcher of the file system would wake too early: the log is written before what it says can be read.
    """

    def __init__(self, store: SqliteStore, connection: sqlite3.Connection, poll_s: float) -> None:
        self._store = store
        self._connection = connection
        self._poll_s = poll_s
        self._woken = threading.Event()
        self._process = os.getpid()
        self._seen = self._version()

    def wait(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while True:
            version = self._version()
            if version != self._seen:
                self._seen = version
                return True
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            if self._woken.wait(min(self._poll_s, left_s)):
                self._woken.clear()
                return False

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        if self._process == os.getpid():
            self._connection.close()
        else:
            _abandoned.append(self._connection)

    def _version(self) -> int:
        try:
            if not self._store.path.exists():  # an open file outlives its name
                raise StoreUnavailable(f"the store at {self._store.path} is gone")
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error as error:
            raise _translated(error, self._store.path) from error


_open_stores: weakref.WeakSet[SqliteStore] = weakref.WeakSet()
_abandoned: list[sqlite3.Connection | None] = []


def _forget_connections() -> None:
    for store in list(_open_stores):
        store._after_fork()


os.register_at_fork(after_in_child=_forget_connections)


# --- Statements ---------------------------------------------------------------------------------

_ACQUIRE = """
INSERT INTO deployment AS d (config, environment, owner, fence, lease_until_ms)
VALUES (:config, :environment, :owner, 1, now_ms() + :ttl_ms)
ON CONFLICT (config, environment) DO UPDATE
SET owner = :owner, fence = d.fence + 1, lease_until_ms = now_ms() + :ttl_ms
WHERE d.lease_until_ms <= now_ms()
    OR d.lease_until_ms > now_ms() + :max_ms -- given before the clock was set back
    OR d.owner = :owner
RETURNING *
"""

_RENEW = """
UPDATE deployment SET lease_until_ms = now_ms() + :ttl_ms
WHERE config = :config AND environment = :environment AND fence = :fence AND lease_until_ms > now_ms()
RETURNING *
"""

_RELEASE = """
UPDATE deployment SET lease_until_ms = 0
WHERE config = :config AND environment = :environment AND fence = :fence
"""

_FORWARD = """
UPDATE deployment AS d
SET revision = d.revision + 1,
    kind = :kind,
    baseline = CASE :kind WHEN 'canary' THEN d.baseline ELSE :digest END,
    candidate = CASE :kind WHEN 'canary' THEN :digest ELSE '' END,
    weight_bp = CASE :kind WHEN 'canary' THEN :weight_bp ELSE 0 END,
    salt = CASE WHEN :kind <> 'canary' THEN '' WHEN d.candidate = :digest THEN d.salt ELSE :salt END,
    policy = :policy,
    expires_at_ms = CASE
        WHEN :kind <> 'canary' THEN 0
        WHEN :lasts_ms > 0 THEN now_ms() + :lasts_ms
        WHEN d.candidate = :digest THEN d.expires_at_ms
        ELSE 0 END,
    evidence = opening.id,
    actor = :actor,
    reason = :reason,
    idempotency_key = :key,
    changed_at_ms = max(now_ms(), d.changed_at_ms)
FROM (
    SELECT e.id
    FROM evidence AS e JOIN admission AS a ON a.evidence = e.id
    WHERE e.config = :config AND e.digest = :digest AND e.policy = :policy
        AND e.verdict = 'pass' AND e.revoked_by = ''
        AND a.environment = :environment AND a.valid_until_ms > now_ms()
    ORDER BY e.finished_at_ms DESC, e.id
    LIMIT 1
) AS opening
WHERE d.config = :config AND d.environment = :environment
    AND d.revision = :expected AND d.fence = :fence AND d.lease_until_ms > now_ms()
    AND (:adopt_policy OR d.policy IN ('', :policy))
    AND d.candidate IN ('', :digest) AND d.baseline <> :digest
    AND (:kind <> 'canary' OR (d.baseline <> '' AND :weight_bp BETWEEN 1 AND 9999))
    AND (d.candidate = :digest
        OR EXISTS (SELECT 1 FROM environment WHERE name = :environment AND after = '')
        OR EXISTS (SELECT 1 FROM environment AS here
                   JOIN deployment AS before ON before.environment = here.after AND before.config = :config
                   WHERE here.name = :environment AND before.baseline = :digest))
    AND NOT EXISTS (SELECT 1 FROM history AS h WHERE h.config = :config AND h.environment = :environment
                    AND h.idempotency_key = :key)
RETURNING *
"""

_ROLLBACK = """
UPDATE deployment AS d
SET revision = d.revision + 1,
    kind = 'rollback',
    baseline = :digest,
    candidate = '',
    weight_bp = 0,
    salt = '',
    expires_at_ms = 0,
    evidence = (SELECT h.evidence FROM history AS h
                WHERE h.config = :config AND h.environment = :environment AND h.baseline = :digest
                    AND h.kind = 'promote'
                ORDER BY h.revision DESC LIMIT 1),
    actor = :actor,
    reason = :reason,
    idempotency_key = :key,
    changed_at_ms = max(now_ms(), d.changed_at_ms),
    owner = '',
    fence = d.fence + 1,
    lease_until_ms = 0
WHERE d.config = :config AND d.environment = :environment AND d.revision = :expected
    AND (d.candidate <> '' OR d.baseline <> :digest)
    AND EXISTS (SELECT 1 FROM history AS h WHERE h.config = :config AND h.environment = :environment
                AND h.baseline = :digest)
    AND NOT EXISTS (SELECT 1 FROM history AS h WHERE h.config = :config AND h.environment = :environment
                    AND h.idempotency_key = :key)
RETURNING *
"""

_DEPLOYMENTS = """
WITH RECURSIVE travel (name, stop) AS (
    SELECT name, 1 FROM environment WHERE after = ''
    UNION ALL
    SELECT environment.name, stop + 1 FROM environment JOIN travel ON environment.after = travel.name
)
SELECT deployment.* FROM deployment JOIN travel ON travel.name = environment
WHERE :environment IN ('', environment) AND :config IN ('', config)
ORDER BY config, stop, environment
"""

_SERVED = "SELECT * FROM deployment WHERE environment = :environment AND revision > 0 ORDER BY config"

_CONFIG_AND_PRICE = """
SELECT config.digest, spelling, coalesce(price.body, '') AS body
FROM config LEFT JOIN price USING (digest)
WHERE config.digest = ?
"""

_ACKNOWLEDGE = """
INSERT INTO instance
    (id, name, environment, config, revision, serving_since_ms, reloaded, refused, reason, seen_at_ms)
VALUES
    (:id, :name, :environment, :config, :revision, now_ms() - :age_ms, :reloaded, :refused, :reason, now_ms())
ON CONFLICT (id, config) DO UPDATE
SET serving_since_ms
        = CASE revision WHEN excluded.revision THEN serving_since_ms ELSE excluded.serving_since_ms END,
    name = excluded.name,
    environment = excluded.environment,
    revision = excluded.revision,
    reloaded = excluded.reloaded,
    refused = excluded.refused,
    reason = excluded.reason,
    seen_at_ms = excluded.seen_at_ms
"""


_NEXT_PROMOTION = "SELECT coalesce(max(seq), 0) + 1 AS id FROM sqlite_sequence WHERE name = 'promotion'"

# What is queued, and what runs with nobody behind it and nothing of it in front of users.
_STANDS_STILL = """
(state = 'queued'
    OR (state = 'running' AND lease_until_ms <= now_ms()
        AND NOT EXISTS (SELECT 1 FROM deployment AS d
                        WHERE d.config = promotion.config AND d.candidate = promotion.digest)))
"""

_UNDER_WAY = f"""
SELECT * FROM promotion
WHERE config = :config AND digest = :digest AND state IN ('queued', 'running')
    AND NOT (:is_anew AND {_STANDS_STILL})
"""

_SUPERSEDE = f"""
UPDATE promotion
SET state = 'superseded',
    conclusion = :conclusion,
    concluded_at_ms = max(now_ms(), proposed_at_ms),
    version = 2 * (SELECT count(*) FROM journal WHERE promotion = promotion.id) + 2
WHERE config = :config AND {_STANDS_STILL}
"""

_PROPOSE = """
INSERT INTO promotion
    (id, config, digest, actor, reason, commit_id, until, baseline, policy, terms, state, proposed_at_ms,
     version)
SELECT :id, :config, :digest, :actor, :reason, :commit_id, :until,
    coalesce((SELECT baseline FROM deployment WHERE config = :config AND environment = :until), ''),
    :policy, :terms,
    CASE WHEN runs THEN 'queued' ELSE 'running' END,
    now_ms(),
    CASE WHEN runs THEN 0 ELSE 1 END
FROM (SELECT EXISTS (SELECT 1 FROM promotion WHERE config = :config AND state = 'running') AS runs)
RETURNING *
"""

_TAKE = """
UPDATE promotion AS p
SET owner = :owner,
    fence = p.fence + 1,
    lease_until_ms = now_ms() + :ttl_ms,
    state = 'running',
    version = max(p.version, 1)
WHERE p.id = :id
    AND (p.lease_until_ms <= now_ms()
        OR p.lease_until_ms > now_ms() + :max_ms -- given before the clock was set back
        OR p.owner = :owner)
    AND (p.state = 'running'
        OR (p.state = 'queued'
            AND NOT EXISTS (SELECT 1 FROM promotion AS q WHERE q.config = p.config AND q.state = 'running')))
RETURNING *
"""

_WRITE = """
INSERT INTO journal (promotion, number, act, environment, status, at_ms, owner, fence, data)
SELECT p.id, coalesce(last.number, 0) + 1, :act, :environment, :status,
    max(now_ms(), coalesce(last.at_ms, 0)), p.owner, p.fence, :data
FROM promotion AS p
LEFT JOIN journal AS last
    ON last.promotion = p.id AND last.number = (SELECT max(number) FROM journal WHERE promotion = p.id)
WHERE p.id = :id AND p.fence = :fence AND p.fence > 0 AND p.state = 'running'
    AND NOT ( -- written before, by a call whose answer was lost
        coalesce(last.number, 0) > :known AND last.fence = p.fence AND last.act = :act
        AND last.environment = :environment AND last.status = :status AND last.data = :data)
"""

_WRITTEN = """
UPDATE promotion SET version = 2 * (SELECT max(number) FROM journal WHERE promotion = :id) + 1
WHERE id = :id
RETURNING *
"""

_CONCLUDE = """
UPDATE promotion
SET state = :state,
    conclusion = :conclusion,
    concluded_at_ms = max(now_ms(), proposed_at_ms),
    lease_until_ms = 0,
    version = 2 * (SELECT count(*) FROM journal WHERE promotion = :id) + 2
WHERE id = :id AND fence = :fence AND fence > 0 AND state = 'running'
RETURNING *
"""

_NEXT_RUNS = """
UPDATE promotion SET state = 'running', version = 1
WHERE config = :config AND state = 'queued'
"""

_KEEP_DELIVERY = """
INSERT INTO delivery
    (id, thread, channel, body, state, attempts, created_at_ms, next_at_ms, external_id, error)
VALUES
    (:id, :thread, :channel, :body, :state, :attempts, :created_at_ms, :next_at_ms, :external_id, :error)
ON CONFLICT (id) DO NOTHING
"""

_DUE = """
UPDATE delivery SET next_at_ms = now_ms() + :claim_ms
WHERE number IN (
    SELECT d.number FROM delivery AS d
    WHERE d.state = 'due'
        AND (d.next_at_ms <= now_ms() OR d.next_at_ms > now_ms() + :max_ms)
        -- the second: put off before the clock was set back
        AND NOT EXISTS (SELECT 1 FROM delivery AS earlier
                        WHERE earlier.thread = d.thread AND earlier.channel = d.channel
                            AND earlier.state = 'due' AND earlier.number < d.number)
    ORDER BY d.next_at_ms, d.number LIMIT :limit)
RETURNING *
"""


# --- Rows and values ----------------------------------------------------------------------------

_T = TypeVar("_T")


def _patiently(attempt: Callable[[], _T]) -> _T:
    """Try until the file is not busy; `sqlite3.OperationalError` after `BUSY_MAX_S`.

    Who has waited for long tries more often than who has just come, so that nobody starves.
    """
    begin = time.monotonic()
    pause_s = 0.0005
    while True:
        try:
            return attempt()
        except sqlite3.OperationalError as error:
            waited_s = time.monotonic() - begin
            if not _is_busy(error) or waited_s > BUSY_MAX_S:
                raise
        time.sleep(random.uniform(pause_s / 5, pause_s))
        pause_s = min(pause_s * 1.2, 0.005) if waited_s < IMPATIENT_S else 0.001


def _promotion(connection: sqlite3.Connection, row: _Row) -> Promotion:
    return _promotions(connection, [row])[0]


def _promotion_or_none(connection: sqlite3.Connection, id: int) -> Promotion | None:
    row = connection.execute("SELECT * FROM promotion WHERE id = ?", (id,)).fetchone()
    return None if row is None else _promotion(connection, row)


def _as_it_stands(
    connection: sqlite3.Connection, promotion: Promotion, state: State, conclusion: str = ""
) -> Promotion:
    """The answer to a write that changed nothing: it had been made before, or `Refused`."""
    found = _promotion_or_none(connection, promotion.id)
    is_so = found is not None and (found.state, found.conclusion) == (state, conclusion)
    if found is None or not is_so or not 0 < found.fence == promotion.fence:
        raise refusals.promotion_lost(promotion, found)
    return found


def _promotions(connection: sqlite3.Connection, rows: Sequence[_Row]) -> tuple[Promotion, ...]:
    """The promotions in these rows, each with its journal."""
    lines = connection.execute(
        "SELECT * FROM journal WHERE promotion IN (SELECT value FROM json_each(?)) "
        "ORDER BY promotion, number",
        (json.dumps([row["id"] for row in rows]),),
    ).fetchall()
    return promotions_of(rows, lines)


def _in_one_snapshot(read: Callable[[sqlite3.Connection], _T]) -> Callable[[sqlite3.Connection], _T]:
    """Both reads of `read` see the same moment."""

    def both(connection: sqlite3.Connection) -> _T:
        connection.execute("BEGIN")
        try:
            return read(connection)
        finally:
            connection.execute("COMMIT")

    return both


def _is_busy(error: sqlite3.Error) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _translated(error: sqlite3.Error | OSError, path: Path) -> StoreError:
    if isinstance(error, OSError):
        return StoreUnavailable(f"the store at {path} cannot be used: {error.strerror or error}")
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreUnavailable(
            f"the store at {path} was busy for {BUSY_MAX_S:.0f} s, and nothing was changed", hint="try again"
        )
    if code == sqlite3.SQLITE_FULL:
        return StoreUnavailable(f"the disk with the store at {path} is full, and nothing was changed")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StoreError(
            f"{path} is damaged or no SQLite file: {error}",
            hint="restore it from a copy; clients go on serving",
        )
    if code == sqlite3.SQLITE_CONSTRAINT:
        return StoreError(f"the store at {path} does not allow that: {error}")
    if "no such table" in str(error):
        return StoreError(f"the store at {path} has no tables yet", hint="deploy-gates store upgrade")
    return StoreUnavailable(f"the store at {path} cannot be used: {error}")


def _migrations() -> list[str]:
    return migrations("sqlite")


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _version(connection: sqlite3.Connection) -> int:
    exists = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'migration'").fetchone()
    if exists is None:
        return 0
    return int(connection.execute("SELECT coalesce(max(version), 0) FROM migration").fetchone()[0])


def _sha256(value: bytes | str) -> str:
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).hexdigest()


def _first(cursor: sqlite3.Cursor) -> _Row | None:
    rows: list[_Row] = cursor.fetchall()  # to the end: a statement that is not finished is not committed
    return rows[0] if rows else None


def _one(connection: sqlite3.Connection, config: str, environment: str) -> _Row | None:
    row: _Row | None = connection.execute(
        "SELECT * FROM deployment WHERE config = ? AND environment = ?", (config, environment)
    ).fetchone()
    return row


def _admissions(connection: sqlite3.Connection, id: str) -> dict[str, datetime]:
    rows = connection.execute("SELECT environment, valid_until_ms FROM admission WHERE evidence = ?", (id,))
    return {row["environment"]: time_of(row["valid_until_ms"]) for row in rows.fetchall()}
