"""The store in PostgreSQL: for many runners and many clients.

A statement by itself is a transaction by itself; what has several runs in one. A call whose connection was
lost is made once more: every call may be repeated. The clock is the database's.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, LiteralString, TypeAlias, TypeVar

from deploy_gates.core import refusals
from deploy_gates.core.canonical import JsonObject, digest_of
from deploy_gates.core.cost import Price
from deploy_gates.core.delivery import Delivery
from deploy_gates.core.errors import StoreError
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
from deploy_gates.store.connections import Connection, Connections, errors
from deploy_gates.store.listening import PostgresWatcher
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

UPGRADE_LOCK = 7_311_846_092
"""Any number of our own: whoever holds this lock migrates."""
UPGRADE_MAX = "5min"
"""How long one statement of a migration may take, and how long it waits for another one."""

_Row: TypeAlias = "dict[str, Any]"
_Values: TypeAlias = "Mapping[str, object]"
_T = TypeVar("_T")


class PostgresStore:
    """One database, or the namespace in it that the URL's `search_path` names."""

    def __init__(self, url: str, *, durable: bool = True) -> None:
        self._connections = Connections(url, durable=durable)
        self.url = self._connections.url

    # --- The schema -----------------------------------------------------------------------------

    def upgrade(self) -> Upgraded:
        return self._write(self._migrate)

    def _migrate(self, connection: Connection) -> Upgraded:
        _check_database(connection, self.url)
        connection.execute(_PREPARE_UPGRADE, {"max": UPGRADE_MAX})
        connection.execute("SELECT pg_advisory_xact_lock(%(lock)s)", {"lock": UPGRADE_LOCK})
        connection.execute(
            "CREATE TABLE IF NOT EXISTS migration (version BIGINT PRIMARY KEY, applied_at_ms BIGINT NOT NULL)"
        )
        before = _version(connection)
        known = _migrations()
        check_not_newer(before, len(known), self.url)
        for version in range(before + 1, len(known) + 1):
            connection.execute(known[version - 1].encode())
            connection.execute("INSERT INTO migration VALUES (%(version)s, now_ms())", {"version": version})
        return Upgraded(before=before, after=len(known))

    def check(self) -> None:
        check_current(self._read(_version), len(_migrations()), self.url)

    def warnings(self) -> tuple[str, ...]:
        return ()

    # --- What is promoted -----------------------------------------------------------------------

    def put_config(self, name: str, spelling: bytes, price: Price | None = None) -> str:
        digest = digest_of(spelling)

        def put(connection: Connection) -> str:
            connection.execute(
                "INSERT INTO config (digest, name, spelling) VALUES (%(digest)s, %(name)s, %(spelling)s) "
                "ON CONFLICT (digest) DO NOTHING",
                {"digest": digest, "name": name, "spelling": spelling},
            )
            if price is not None:
                connection.execute(
                    "INSERT INTO price AS p (digest, body) VALUES (%(digest)s, %(body)s) "
                    "ON CONFLICT (digest) DO UPDATE SET body = excluded.body WHERE p.body <> excluded.body",
                    {"digest": digest, "body": json.dumps(price.to_json())},
                )
            return digest

        return self._write(put)

    def config(self, digest: str) -> tuple[str, bytes] | None:
        rows = self._all("SELECT name, spelling FROM config WHERE digest = %(digest)s", {"digest": digest})
        return (rows[0]["name"], bytes(rows[0]["spelling"])) if rows else None

    def put_evidence(self, record: Record) -> bool:
        def put(connection: Connection) -> bool:
            kept = _first(
                connection, "SELECT name FROM config WHERE digest = %(digest)s", {"digest": record.digest}
            )
            if kept is None or kept["name"] != record.config:
                raise refusals.evidence_of_nothing(record)
            added = connection.execute(
                "INSERT INTO evidence "
                "(id, config, digest, policy, verdict, finished_at_ms, signed_by, envelope) "
                "VALUES (%(id)s, %(config)s, %(digest)s, %(policy)s, %(verdict)s, %(finished_at_ms)s, "
                "%(signed_by)s, %(envelope)s) ON CONFLICT (id) DO NOTHING",
                of_record(record),
            )
            if added.rowcount == 0:
                return False
            for name, until in record.admitted_until.items():
                connection.execute(
                    "INSERT INTO admission (evidence, environment, valid_until_ms) "
                    "VALUES (%(evidence)s, %(environment)s, %(until)s)",
                    {"evidence": record.id, "environment": name, "until": ms_of(until)},
                )
            return True

        return self._write(put)

    def evidence(self, config: str, digest: str = "", *, limit: int = 100) -> tuple[Record, ...]:
        def read(connection: Connection) -> tuple[Record, ...]:
            return _records(connection, config, digest, limit)

        return self._read(read)

    # --- Leases ---------------------------------------------------------------------------------

    def acquire(self, config: str, environment: str, owner: str, ttl: timedelta = LEASE_TTL) -> Lease:
        place = {"config": config, "environment": environment}
        values = place | {"owner": owner, "ttl_ms": span_ms(ttl), "max_ms": span_ms(LEASE_MAX)}

        def take(connection: Connection) -> Lease:
            if _first(connection, "SELECT 1 FROM environment WHERE name = %(environment)s", place) is None:
                raise refusals.no_environment(environment)
            row = _first(connection, _ACQUIRE, values)
            if row is not None:
                return lease_of(row)
            holder = _first(connection, _DEPLOYMENT, place)
            assert holder is not None, "a lease that could not be taken is held in a row"
            raise refusals.held(deployment_of(holder), _now(connection))

        return self._read(take)

    def renew(self, lease: Lease, ttl: timedelta = LEASE_TTL) -> Lease:
        def hold(connection: Connection) -> Lease:
            row = _first(connection, _RENEW, keys_of(lease) | {"ttl_ms": span_ms(ttl)})
            if row is None:
                found = _first(connection, _DEPLOYMENT, keys_of(lease))
                raise refusals.lost(lease, maybe_deployment_of(found))
            return lease_of(row)

        return self._read(hold)

    def release(self, lease: Lease) -> None:
        self._run(_RELEASE, keys_of(lease))

    # --- Moves ----------------------------------------------------------------------------------

    def move(self, move: Move) -> Moved:
        statement = _ROLLBACK if move.kind is Kind.ROLLBACK else _FORWARD

        def make(connection: Connection) -> Moved:
            try:
                row = _first(connection, statement, of_move(move))
            except errors.RaiseException:
                row = None  # the tables refused: revoked just now, perhaps
            if row is not None:
                return Moved(deployment=deployment_of(row))
            return _refused(connection, move)

        return self._read(make)

    def deployments(self, environment: str = "", config: str = "") -> tuple[Deployment, ...]:
        rows = self._all(_DEPLOYMENTS, {"environment": environment, "config": config})
        return tuple(deployment_of(row) for row in rows)

    def history(
        self, config: str, environment: str, *, after: int = 0, limit: int = ROWS_MAX
    ) -> tuple[Event, ...]:
        rows = self._all(
            "SELECT * FROM history WHERE config = %(config)s AND environment = %(environment)s "
            "AND revision > %(after)s ORDER BY revision LIMIT %(limit)s",
            {"config": config, "environment": environment, "after": after, "limit": limit},
        )
        return tuple(event_of(row) for row in rows)

    def latest(self, config: str = "", environment: str = "", *, limit: int = 100) -> tuple[Event, ...]:
        rows = self._all(
            "SELECT * FROM history WHERE %(config)s IN ('', config) "
            "AND %(environment)s IN ('', environment) "
            "ORDER BY at_ms DESC, config DESC, environment DESC, revision DESC LIMIT %(limit)s",
            {"config": config, "environment": environment, "limit": limit},
        )
        return tuple(event_of(row) for row in rows)

    # --- The reading side -----------------------------------------------------------------------

    def serving(self, environment: str, known: Collection[str] = ()) -> Serving:
        # A config is kept before it is served and never changes: two reads are as good as one snapshot.
        rows = self._all(_SERVED, {"environment": environment})
        deployments = tuple(deployment_of(row) for row in rows)
        served = {each for row in deployments for each in (row.baseline, row.candidate) if each}
        wanted = sorted(served - set(known))
        kept = self._all(_CONFIGS_AND_PRICES, {"wanted": wanted}) if wanted else []
        return Serving(
            environment=environment,
            deployments=deployments,
            configs={row["digest"]: bytes(row["spelling"]) for row in kept},
            prices={row["digest"]: Price.from_json(json.loads(row["body"])) for row in kept if row["body"]},
        )

    @contextlib.contextmanager
    def watch(self) -> Iterator[PostgresWatcher]:
        watcher = PostgresWatcher(self._connections)
        try:
            yield watcher
        finally:
            watcher.close()

    def acknowledge(
        self, instance: str, name: str, environment: str, served: Sequence[Acknowledgement]
    ) -> None:
        def put(connection: Connection) -> None:
            connection.execute(
                _FORGET,
                {
                    "gone_ms": 10 * span_ms(INSTANCE_TTL),
                    "id": instance,
                    "kept": [each.config for each in served],
                },
            )
            for each in served:
                connection.execute(_ACKNOWLEDGE, of_acknowledgement(instance, name, environment, each))

        self._write(put)

    def leave(self, instance: str) -> None:
        self._run("DELETE FROM instance WHERE id = %(id)s", {"id": instance})

    def instances(self, environment: str = "", config: str = "") -> tuple[Instance, ...]:
        rows = self._all(
            "SELECT * FROM instance WHERE %(environment)s IN ('', environment) "
            "AND %(config)s IN ('', config) AND abs(seen_at_ms - now_ms()) <= %(ttl_ms)s "
            "ORDER BY config, environment, name, id LIMIT %(limit)s",
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
        def add(connection: Connection) -> None:
            with connection.cursor() as cursor:
                cursor.executemany(_ADD_TALLY, of_tallies(instance, first, tallies))
            if random.random() < 0.001:  # somebody has to, and rarely is enough
                connection.execute(
                    "DELETE FROM tally WHERE start_ms < now_ms() - %(kept_ms)s",
                    {"kept_ms": span_ms(TALLIES_KEPT)},
                )

        self._write(add)

    def tallies(
        self, config: str, environment: str, *, since_ms: int = 0, until_ms: int = 2**62
    ) -> Iterator[Tally]:
        at: tuple[int, str, int] = (since_ms, "", -1)
        while True:
            rows = self._all(
                _TALLIES,
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
            "VALUES (%(id)s, %(name)s, %(secret_hash)s, %(scopes)s, %(created_at_ms)s, %(created_by)s) "
            "ON CONFLICT (id) DO NOTHING",
            of_token(token),
        )

    def tokens(self) -> tuple[Token, ...]:
        rows = self._all(
            "SELECT * FROM token ORDER BY created_at_ms, id LIMIT %(limit)s", {"limit": ROWS_MAX}
        )
        return tuple(token_of(row) for row in rows)

    def token(self, id: str) -> Token | None:
        rows = self._all("SELECT * FROM token WHERE id = %(id)s", {"id": id})
        return token_of(rows[0]) if rows else None

    def revoke_token(self, id: str) -> bool:
        revoked = self._run(
            "UPDATE token SET revoked_at_ms = now_ms() WHERE id = %(id)s AND revoked_at_ms = 0", {"id": id}
        )
        return revoked == 1

    # --- Promotions -----------------------------------------------------------------------------

    def propose(
        self, release: Release, *, until: str, policy: str, terms: Terms, is_anew: bool = False
    ) -> Promotion:
        def put(connection: Connection) -> Promotion:
            values = of_release(release) | {
                "is_anew": is_anew,
                "until": until,
                "policy": policy,
                "terms": json.dumps(terms.to_json()),
            }
            connection.execute(_TAKE_TURNS, values)
            kept = _first(
                connection, "SELECT 1 FROM config WHERE digest = %(digest)s AND name = %(config)s", values
            )
            if kept is None:
                raise refusals.release_of_nothing(release)
            under_way = _first(connection, _UNDER_WAY, values)
            if under_way is None:
                numbered = _first(connection, _NEXT_PROMOTION, {})
                assert numbered is not None, "there is always a next number"
                number = numbered["id"]
                connection.execute(
                    _SUPERSEDE, values | {"conclusion": refusals.superseded_by(number, release)}
                )
                under_way = _first(connection, _PROPOSE, values | {"id": number})
                assert under_way is not None, "a row that was put in comes back"
            return _promotion(connection, under_way)

        return self._write(put)

    def promotion(self, id: int) -> Promotion | None:
        def read(connection: Connection) -> Promotion | None:
            return _promotion_or_none(connection, id)

        return self._read_at_once(read)

    def promotions(
        self, config: str = "", *, is_open: bool = False, before: int = 0, limit: int = 100
    ) -> tuple[Promotion, ...]:
        values = {
            "config": config,
            "is_open": is_open,
            "before": before or 2**62,
            "limit": limit,
        }
        statement = _PROMOTIONS_OF if config else _PROMOTIONS_UNDER_WAY if is_open else _PROMOTIONS

        def read(connection: Connection) -> tuple[Promotion, ...]:
            return _promotions(connection, connection.execute(statement, values).fetchall())

        return self._read_at_once(read)

    def take(self, id: int, owner: str, ttl: timedelta = LEASE_TTL) -> Promotion:
        values = {"id": id, "owner": owner, "ttl_ms": span_ms(ttl), "max_ms": span_ms(LEASE_MAX)}

        def take(connection: Connection) -> Promotion:
            row = _first(connection, _TAKE, values)
            if row is None:
                raise refusals.not_taken(id, _promotion_or_none(connection, id), _now(connection))
            return _promotion(connection, row)

        return self._write(take)

    def keep_on(self, promotion: Promotion, ttl: timedelta = LEASE_TTL) -> None:
        held = self._run(
            "UPDATE promotion SET lease_until_ms = now_ms() + %(ttl_ms)s "
            "WHERE id = %(id)s AND fence = %(fence)s AND lease_until_ms > now_ms()",
            {"id": promotion.id, "fence": promotion.fence, "ttl_ms": span_ms(ttl)},
        )
        if not held:
            raise refusals.promotion_lost(promotion, self.promotion(promotion.id))

    def let_go(self, promotion: Promotion) -> None:
        self._run(
            "UPDATE promotion SET lease_until_ms = 0 WHERE id = %(id)s AND fence = %(fence)s",
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

        def add(connection: Connection) -> Promotion:
            if connection.execute(_WRITE, values).rowcount == 0:
                return _as_it_stands(connection, promotion, State.RUNNING)
            row = _first(connection, _WRITTEN, values)
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

        def end(connection: Connection) -> Promotion:
            connection.execute(_TAKE_TURNS, values)
            row = _first(connection, _CONCLUDE, values)
            if row is None:
                return _as_it_stands(connection, promotion, state, conclusion)
            connection.execute(_NEXT_RUNS, values)
            return _promotion(connection, row)

        return self._write(end)

    def approve(self, approval: Approval) -> None:
        self._run(
            "INSERT INTO approval (config, digest, environment, approver, reason, at_ms) "
            "VALUES (%(config)s, %(digest)s, %(environment)s, %(approver)s, %(reason)s, now_ms()) "
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
            "SELECT * FROM approval WHERE config = %(config)s AND %(digest)s IN ('', digest) "
            "ORDER BY at_ms, approver LIMIT %(limit)s",
            {"config": config, "digest": digest, "limit": ROWS_MAX},
        )
        return tuple(approval_of(row) for row in rows)

    # --- Notifications --------------------------------------------------------------------------

    def outbox(self, limit: int = ROWS_MAX) -> tuple[Event, ...]:
        rows = self._all(
            "SELECT history.* FROM outbox JOIN history USING (config, environment, revision) "
            "ORDER BY at_ms, config, environment, revision LIMIT %(limit)s",
            {"limit": limit},
        )
        return tuple(event_of(row) for row in rows)

    def told(self, event: Event, deliveries: Sequence[Delivery] = ()) -> None:
        def tell(connection: Connection) -> None:
            for each in deliveries:
                connection.execute(_KEEP_DELIVERY, of_delivery(each))
            connection.execute(
                "DELETE FROM outbox "
                "WHERE config = %(config)s AND environment = %(environment)s AND revision = %(revision)s",
                {"config": event.config, "environment": event.environment, "revision": event.revision},
            )

        self._write(tell)

    def untold(self, limit: int = ROWS_MAX) -> tuple[Promotion, ...]:
        def read(connection: Connection) -> tuple[Promotion, ...]:
            rows = connection.execute(
                "SELECT * FROM promotion WHERE version > told_version ORDER BY id LIMIT %(limit)s",
                {"limit": limit},
            ).fetchall()
            return _promotions(connection, rows)

        return self._read_at_once(read)

    def announced(self, promotion: Promotion, deliveries: Sequence[Delivery] = ()) -> None:
        def tell(connection: Connection) -> None:
            for each in deliveries:
                connection.execute(_KEEP_DELIVERY, of_delivery(each))
            connection.execute(
                "UPDATE promotion SET told_version = %(version)s "
                "WHERE id = %(id)s AND told_version < %(version)s",
                {"id": promotion.id, "version": version_of(promotion)},
            )

        self._write(tell)

    def due(self, *, limit: int = 100, claim: timedelta = CLAIM_TTL) -> tuple[Delivery, ...]:
        waiting = self._all(
            "SELECT 1 FROM delivery WHERE state = 'due' "
            "AND (next_at_ms <= now_ms() OR next_at_ms > now_ms() + %(max_ms)s) LIMIT 1",
            {"max_ms": span_ms(WAIT_MAX)},
        )
        if not waiting:  # the usual case writes nothing
            return ()
        values = {"limit": limit, "claim_ms": span_ms(claim), "max_ms": span_ms(WAIT_MAX)}
        rows = self._write(lambda connection: connection.execute(_DUE, values).fetchall())
        return tuple(delivery_of(row) for row in sorted(rows, key=lambda row: int(row["number"])))

    def settle(self, delivery: Delivery) -> None:
        self._run(
            "UPDATE delivery SET state = %(state)s, attempts = %(attempts)s, next_at_ms = %(next_at_ms)s, "
            "external_id = %(external_id)s, error = %(error)s WHERE id = %(id)s AND state <> 'delivered'",
            of_delivery(delivery),
        )

    def deliveries(
        self, *, thread: str = "", channel: str = "", state: str = "", limit: int = 100
    ) -> tuple[Delivery, ...]:
        rows = self._all(
            "SELECT * FROM delivery WHERE %(thread)s IN ('', thread) AND %(channel)s IN ('', channel) "
            "AND %(state)s IN ('', state) ORDER BY number DESC LIMIT %(limit)s",
            {"thread": thread, "channel": channel, "state": state, "limit": limit},
        )
        return tuple(delivery_of(row) for row in rows)

    # --- Connections ----------------------------------------------------------------------------

    def close(self) -> None:
        self._connections.close()

    def write_all(self, write: Callable[[Connection], _T]) -> _T:
        """Make some statements of the ledger, in one transaction."""
        return self._write(write)

    def read_all(self, call: Callable[[Connection], _T]) -> _T:
        """Make statements of the ledger, each a transaction by itself."""
        return self._read(call)

    def read_at_once(self, read: Callable[[Connection], _T]) -> _T:
        """Make some reads of the ledger that see the same moment."""
        return self._read_at_once(read)

    def _all(self, statement: LiteralString, values: _Values) -> list[_Row]:
        return self._read(lambda connection: connection.execute(statement, values).fetchall())

    def _run(self, statement: LiteralString, values: _Values) -> int:
        """Make one change; how many rows it changed."""
        return self._read(lambda connection: connection.execute(statement, values).rowcount)

    def _write(self, write: Callable[[Connection], _T]) -> _T:
        """Make some statements, in one transaction."""

        def transact(connection: Connection) -> _T:
            with connection.transaction():
                return write(connection)

        return self._read(transact)

    def _read_at_once(self, read: Callable[[Connection], _T]) -> _T:
        """Make some reads that see the same moment."""

        def transact(connection: Connection) -> _T:
            with connection.transaction():
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                return read(connection)

        return self._read(transact)

    def _read(self, call: Callable[[Connection], _T]) -> _T:
        """Make statements, each a transaction by itself."""
        return self._connections.run(call)


# --- Statements ---------------------------------------------------------------------------------

_PREPARE_UPGRADE = """
SELECT set_config('statement_timeout', %(max)s, true),
    set_config('idle_in_transaction_session_timeout', '0', true),
    set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true)
"""
"""Functions remember this search path, in which no temporary table can stand in for one of ours."""

_ACQUIRE = """
INSERT INTO deployment AS d (config, environment, owner, fence, lease_until_ms)
VALUES (%(config)s, %(environment)s, %(owner)s, 1, now_ms() + %(ttl_ms)s)
ON CONFLICT (config, environment) DO UPDATE
SET owner = %(owner)s, fence = d.fence + 1, lease_until_ms = now_ms() + %(ttl_ms)s
WHERE d.lease_until_ms <= now_ms()
    OR d.lease_until_ms > now_ms() + %(max_ms)s -- given before the clock was set back
    OR d.owner = %(owner)s
RETURNING *
"""

_RENEW = """
UPDATE deployment SET lease_until_ms = now_ms() + %(ttl_ms)s
WHERE config = %(config)s AND environment = %(environment)s AND fence = %(fence)s
    AND lease_until_ms > now_ms()
RETURNING *
"""

_RELEASE = """
UPDATE deployment SET lease_until_ms = 0
WHERE config = %(config)s AND environment = %(environment)s AND fence = %(fence)s
"""

_FORWARD = """
UPDATE deployment AS d
SET revision = d.revision + 1,
    kind = %(kind)s,
    baseline = CASE %(kind)s WHEN 'canary' THEN d.baseline ELSE %(digest)s END,
    candidate = CASE %(kind)s WHEN 'canary' THEN %(digest)s ELSE '' END,
    weight_bp = CASE %(kind)s WHEN 'canary' THEN %(weight_bp)s ELSE 0 END,
    salt = CASE WHEN %(kind)s <> 'canary' THEN '' WHEN d.candidate = %(digest)s THEN d.salt ELSE %(salt)s END,
    policy = %(policy)s,
    expires_at_ms = CASE
        WHEN %(kind)s <> 'canary' THEN 0
        WHEN %(lasts_ms)s > 0 THEN now_ms() + %(lasts_ms)s
        WHEN d.candidate = %(digest)s THEN d.expires_at_ms
        ELSE 0 END,
    evidence = opening.id,
    actor = %(actor)s,
    reason = %(reason)s,
    idempotency_key = %(key)s,
    changed_at_ms = greatest(now_ms(), d.changed_at_ms)
FROM (
    SELECT e.id
    FROM evidence AS e JOIN admission AS a ON a.evidence = e.id
    WHERE e.config = %(config)s AND e.digest = %(digest)s AND e.policy = %(policy)s
        AND e.verdict = 'pass' AND e.revoked_by = ''
        AND a.environment = %(environment)s AND a.valid_until_ms > now_ms()
    ORDER BY e.finished_at_ms DESC, e.id
    LIMIT 1
) AS opening
WHERE d.config = %(config)s AND d.environment = %(environment)s
    AND d.revision = %(expected)s AND d.fence = %(fence)s AND d.lease_until_ms > now_ms()
    AND (%(adopt_policy)s OR d.policy IN ('', %(policy)s))
    AND d.candidate IN ('', %(digest)s) AND d.baseline <> %(digest)s
    AND (%(kind)s <> 'canary' OR (d.baseline <> '' AND %(weight_bp)s BETWEEN 1 AND 9999))
    AND (d.candidate = %(digest)s
        OR EXISTS (SELECT 1 FROM environment WHERE name = %(environment)s AND after = '')
        OR EXISTS (SELECT 1 FROM environment AS here
                   JOIN deployment AS before ON before.environment = here.after AND before.config = %(config)s
                   WHERE here.name = %(environment)s AND before.baseline = %(digest)s))
    AND NOT EXISTS (SELECT 1 FROM history AS h WHERE h.config = %(config)s
                    AND h.environment = %(environment)s AND h.idempotency_key = %(key)s)
RETURNING d.*
"""

_ROLLBACK = """
UPDATE deployment AS d
SET revision = d.revision + 1,
    kind = 'rollback',
    baseline = %(digest)s,
    candidate = '',
    weight_bp = 0,
    salt = '',
    expires_at_ms = 0,
    evidence = (SELECT h.evidence FROM history AS h
                WHERE h.config = %(config)s AND h.environment = %(environment)s AND h.baseline = %(digest)s
                    AND h.kind = 'promote'
                ORDER BY h.revision DESC LIMIT 1),
    actor = %(actor)s,
    reason = %(reason)s,
    idempotency_key = %(key)s,
    changed_at_ms = greatest(now_ms(), d.changed_at_ms),
    owner = '',
    fence = d.fence + 1,
    lease_until_ms = 0
WHERE d.config = %(config)s AND d.environment = %(environment)s AND d.revision = %(expected)s
    AND (d.candidate <> '' OR d.baseline <> %(digest)s)
    AND EXISTS (SELECT 1 FROM history AS h WHERE h.config = %(config)s AND h.environment = %(environment)s
                AND h.baseline = %(digest)s)
    AND NOT EXISTS (SELECT 1 FROM history AS h WHERE h.config = %(config)s
                    AND h.environment = %(environment)s AND h.idempotency_key = %(key)s)
RETURNING d.*
"""

_DEPLOYMENT = "SELECT * FROM deployment WHERE config = %(config)s AND environment = %(environment)s"

_DEPLOYMENTS = """
WITH RECURSIVE travel (name, stop) AS (
    SELECT name, 1 FROM environment WHERE after = ''
    UNION ALL
    SELECT environment.name, stop + 1 FROM environment JOIN travel ON environment.after = travel.name
)
SELECT deployment.* FROM deployment JOIN travel ON travel.name = environment
WHERE %(environment)s IN ('', environment) AND %(config)s IN ('', config)
ORDER BY config, stop, environment
"""

_SERVED = "SELECT * FROM deployment WHERE environment = %(environment)s AND revision > 0 ORDER BY config"

_CONFIGS_AND_PRICES = """
SELECT config.digest, spelling, coalesce(price.body, '') AS body
FROM config LEFT JOIN price USING (digest)
WHERE config.digest = ANY(%(wanted)s)
"""

_FORGET = """
DELETE FROM instance WHERE (id, config) IN (
    SELECT id, config FROM instance
    WHERE seen_at_ms < now_ms() - %(gone_ms)s OR (id = %(id)s AND NOT config = ANY(%(kept)s))
    FOR UPDATE SKIP LOCKED) -- two who forget the same ones do not wait for each other
"""

_ACKNOWLEDGE = """
INSERT INTO instance AS i
    (id, name, environment, config, revision, serving_since_ms, reloaded, refused, reason, seen_at_ms)
VALUES (%(id)s, %(name)s, %(environment)s, %(config)s, %(revision)s, now_ms() - %(age_ms)s, %(reloaded)s,
        %(refused)s, %(reason)s, now_ms())
ON CONFLICT (id, config) DO UPDATE
SET serving_since_ms
        = CASE i.revision WHEN excluded.revision THEN i.serving_since_ms ELSE excluded.serving_since_ms END,
    name = excluded.name,
    environment = excluded.environment,
    revision = excluded.revision,
    reloaded = excluded.reloaded,
    refused = excluded.refused,
    reason = excluded.reason,
    seen_at_ms = excluded.seen_at_ms
"""

_ADD_TALLY = """
INSERT INTO tally (instance, number, config, environment, start_ms, body)
VALUES (%(instance)s, %(number)s, %(config)s, %(environment)s, %(start_ms)s, %(body)s)
ON CONFLICT (instance, number) DO NOTHING
"""

_TALLIES = """
SELECT start_ms, instance, number, body FROM tally
WHERE config = %(config)s AND environment = %(environment)s AND start_ms < %(until)s
    AND (start_ms, instance, number) > (%(start_ms)s, %(instance)s, %(number)s)
ORDER BY start_ms, instance, number LIMIT %(limit)s
"""


_TAKE_TURNS = """
SELECT pg_advisory_xact_lock(hashtextextended('promotion:' || %(config)s, 0))
"""
"""One at a time proposes or concludes promotions of a config."""

_NEXT_PROMOTION = "SELECT nextval(pg_get_serial_sequence('promotion', 'id')) AS id"

# What is queued, and what runs with nobody behind it and nothing of it in front of users.
_STANDS_STILL = """
(state = 'queued'
    OR (state = 'running' AND lease_until_ms <= now_ms()
        AND NOT EXISTS (SELECT 1 FROM deployment AS d
                        WHERE d.config = promotion.config AND d.candidate = promotion.digest)))
"""

_UNDER_WAY = f"""
SELECT * FROM promotion
WHERE config = %(config)s AND digest = %(digest)s AND state IN ('queued', 'running')
    AND NOT (%(is_anew)s AND {_STANDS_STILL})
"""

_SUPERSEDE = f"""
UPDATE promotion
SET state = 'superseded',
    conclusion = %(conclusion)s,
    concluded_at_ms = greatest(now_ms(), proposed_at_ms),
    version = 2 * (SELECT count(*) FROM journal WHERE promotion = promotion.id) + 2
WHERE config = %(config)s AND {_STANDS_STILL}
"""

_PROPOSE = """
INSERT INTO promotion
    (id, config, digest, actor, reason, commit_id, until, baseline, policy, terms, state, proposed_at_ms,
     version)
OVERRIDING SYSTEM VALUE
SELECT %(id)s, %(config)s, %(digest)s, %(actor)s, %(reason)s, %(commit_id)s, %(until)s,
    coalesce((SELECT baseline FROM deployment WHERE config = %(config)s AND environment = %(until)s), ''),
    %(policy)s, %(terms)s,
    CASE WHEN runs THEN 'queued' ELSE 'running' END,
    now_ms(),
    CASE WHEN runs THEN 0 ELSE 1 END
FROM (SELECT EXISTS (SELECT 1 FROM promotion WHERE config = %(config)s AND state = 'running') AS runs)
RETURNING *
"""

_TAKE = """
UPDATE promotion AS p
SET owner = %(owner)s,
    fence = p.fence + 1,
    lease_until_ms = now_ms() + %(ttl_ms)s,
    state = 'running',
    version = greatest(p.version, 1)
WHERE p.id = %(id)s
    AND (p.lease_until_ms <= now_ms()
        OR p.lease_until_ms > now_ms() + %(max_ms)s -- given before the clock was set back
        OR p.owner = %(owner)s)
    AND (p.state = 'running'
        OR (p.state = 'queued'
            AND NOT EXISTS (SELECT 1 FROM promotion AS q WHERE q.config = p.config AND q.state = 'running')))
RETURNING p.*
"""

_WRITE = """
INSERT INTO journal (promotion, number, act, environment, status, at_ms, owner, fence, data)
SELECT p.id, coalesce(last.number, 0) + 1, %(act)s, %(environment)s, %(status)s,
    greatest(now_ms(), coalesce(last.at_ms, 0)), p.owner, p.fence, %(data)s
FROM promotion AS p
LEFT JOIN journal AS last
    ON last.promotion = p.id AND last.number = (SELECT max(number) FROM journal WHERE promotion = p.id)
WHERE p.id = %(id)s AND p.fence = %(fence)s AND p.fence > 0 AND p.state = 'running'
    AND NOT ( -- written before, by a call whose answer was lost
        coalesce(last.number, 0) > %(known)s AND last.fence = p.fence AND last.act = %(act)s
        AND last.environment = %(environment)s AND last.status = %(status)s AND last.data = %(data)s)
"""

_WRITTEN = """
UPDATE promotion SET version = 2 * (SELECT max(number) FROM journal WHERE promotion = %(id)s) + 1
WHERE id = %(id)s
RETURNING *
"""

_CONCLUDE = """
UPDATE promotion
SET state = %(state)s,
    conclusion = %(conclusion)s,
    concluded_at_ms = greatest(now_ms(), proposed_at_ms),
    lease_until_ms = 0,
    version = 2 * (SELECT count(*) FROM journal WHERE promotion = %(id)s) + 2
WHERE id = %(id)s AND fence = %(fence)s AND fence > 0 AND state = 'running'
RETURNING *
"""

_NEXT_RUNS = """
UPDATE promotion SET state = 'running', version = 1
WHERE config = %(config)s AND state = 'queued'
"""

_KEEP_DELIVERY = """
INSERT INTO delivery
    (id, thread, channel, body, state, attempts, created_at_ms, next_at_ms, external_id, error)
VALUES
    (%(id)s, %(thread)s, %(channel)s, %(body)s, %(state)s, %(attempts)s, %(created_at_ms)s,
     %(next_at_ms)s, %(external_id)s, %(error)s)
ON CONFLICT (id) DO NOTHING
"""

_DUE = """
UPDATE delivery SET next_at_ms = now_ms() + %(claim_ms)s
WHERE number IN (
    SELECT d.number FROM delivery AS d
    WHERE d.state = 'due'
        AND (d.next_at_ms <= now_ms() OR d.next_at_ms > now_ms() + %(max_ms)s)
        -- the second: put off before the clock was set back
        AND NOT EXISTS (SELECT 1 FROM delivery AS earlier
                        WHERE earlier.thread = d.thread AND earlier.channel = d.channel
                            AND earlier.state = 'due' AND earlier.number < d.number)
    ORDER BY d.next_at_ms, d.number LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED)
RETURNING *
"""

_PROMOTIONS = "SELECT * FROM promotion WHERE id < %(before)s ORDER BY id DESC LIMIT %(limit)s"

_PROMOTIONS_UNDER_WAY = """
SELECT * FROM promotion
WHERE state IN ('queued', 'running') AND id < %(before)s
ORDER BY id DESC LIMIT %(limit)s
"""

_PROMOTIONS_OF = """
SELECT * FROM promotion
WHERE config = %(config)s AND (NOT %(is_open)s OR state IN ('queued', 'running')) AND id < %(before)s
ORDER BY id DESC LIMIT %(limit)s
"""


# --- Inside a call -------------------------------------------------------------------------


def _refused(connection: Connection, move: Move) -> Moved:
    """The answer to a move that changed nothing: it had been made before, or why it was not made."""
    place = {"config": move.config, "environment": move.environment}
    found = maybe_deployment_of(_first(connection, _DEPLOYMENT, place))
    same_key = _first(
        connection,
        "SELECT * FROM history WHERE config = %(config)s AND environment = %(environment)s "
        "AND idempotency_key = %(key)s",
        place | {"key": move.key},
    )
    made = event_of(same_key) if same_key else None
    if made is not None and found is not None and refusals.is_replay(move, made):
        return Moved(deployment=refusals.as_it_was(made, found), replayed=True)
    known = _first(
        connection,
        "SELECT 1 FROM config WHERE digest = %(digest)s AND name = %(config)s",
        {"digest": move.digest, "config": move.config},
    )
    before = _first(connection, "SELECT after FROM environment WHERE name = %(environment)s", place)
    after = before["after"] if before else ""
    baselines = connection.execute(
        "SELECT DISTINCT baseline FROM history WHERE config = %(config)s AND environment = %(environment)s",
        place,
    ).fetchall()
    facts = Facts(
        deployment=found,
        known=known is not None,
        same_key=made,
        records=_records(connection, move.config, move.digest, ROWS_MAX),
        after=after,
        before=maybe_deployment_of(_first(connection, _DEPLOYMENT, place | {"environment": after})),
        baselines={each["baseline"] for each in baselines},
        now=_now(connection),
    )
    raise refusals.why(move, facts)


def _records(connection: Connection, config: str, digest: str, limit: int) -> tuple[Record, ...]:
    rows = connection.execute(
        "SELECT * FROM evidence WHERE config = %(config)s AND %(digest)s IN ('', digest) "
        "ORDER BY finished_at_ms DESC, id LIMIT %(limit)s",
        {"config": config, "digest": digest, "limit": limit},
    ).fetchall()
    opened = connection.execute(
        "SELECT evidence, environment, valid_until_ms FROM admission WHERE evidence = ANY(%(ids)s)",
        {"ids": [row["id"] for row in rows]},
    ).fetchall()
    return tuple(
        record_of(
            row | {"envelope": bytes(row["envelope"])},
            {
                each["environment"]: time_of(each["valid_until_ms"])
                for each in opened
                if each["evidence"] == row["id"]
            },
        )
        for row in rows
    )


def _promotion(connection: Connection, row: _Row) -> Promotion:
    return _promotions(connection, [row])[0]


def _promotion_or_none(connection: Connection, id: int) -> Promotion | None:
    row = _first(connection, "SELECT * FROM promotion WHERE id = %(id)s", {"id": id})
    return None if row is None else _promotion(connection, row)


def _as_it_stands(
    connection: Connection, promotion: Promotion, state: State, conclusion: str = ""
) -> Promotion:
    """The answer to a write that changed nothing: it had been made before, or `Refused`."""
    found = _promotion_or_none(connection, promotion.id)
    is_so = found is not None and (found.state, found.conclusion) == (state, conclusion)
    if found is None or not is_so or not 0 < found.fence == promotion.fence:
        raise refusals.promotion_lost(promotion, found)
    return found


def _promotions(connection: Connection, rows: Sequence[_Row]) -> tuple[Promotion, ...]:
    """The promotions in these rows, each with its journal."""
    lines = connection.execute(
        "SELECT * FROM journal WHERE promotion = ANY(%(ids)s) ORDER BY promotion, number",
        {"ids": [row["id"] for row in rows]},
    ).fetchall()
    return promotions_of(rows, lines)


def _first(connection: Connection, statement: LiteralString, values: _Values) -> _Row | None:
    rows = connection.execute(statement, values).fetchall()
    return rows[0] if rows else None


def _now(connection: Connection) -> datetime:
    row = _first(connection, "SELECT now_ms() AS now", {})
    assert row is not None
    return time_of(row["now"])


def _migrations() -> list[str]:
    return migrations("postgres")


def _check_database(connection: Connection, url: str) -> None:
    """`StoreError` for a database without the namespace, or one that cannot keep every text."""
    row = _first(
        connection, "SELECT current_schema() AS here, current_setting('server_encoding') AS encoding", {}
    )
    assert row is not None
    if row["here"] is None:
        raise StoreError(f"the namespace that {url} names does not exist", hint="CREATE SCHEMA makes it")
    if row["encoding"] != "UTF8":
        raise StoreError(
            f"the database at {url} keeps text as {row['encoding']}, and it has to be UTF8",
            hint="CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0",
        )


def _version(connection: Connection) -> int:
    there = _first(connection, "SELECT to_regclass('migration') IS NOT NULL AS there", {})
    if there is None or not there["there"]:
        return 0
    row = _first(connection, "SELECT coalesce(max(version), 0) AS version FROM migration", {})
    assert row is not None
    return int(row["version"])
