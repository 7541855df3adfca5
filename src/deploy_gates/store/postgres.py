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
from deploy_gates.core.canonical import digest_of
from deploy_gates.core.cost import Price
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
from deploy_gates.core.tally import Tally
from deploy_gates.store import (
    INSTANCE_TTL,
    LEASE_MAX,
    LEASE_TTL,
    ROWS_MAX,
    TALLIES_KEPT,
    Upgraded,
)
from deploy_gates.store.connections import Connection, Connections, errors
from deploy_gates.store.listening import PostgresWatcher
from deploy_gates.store.rows import (
    check_current,
    check_not_newer,
    deployment_of,
    event_of,
    instance_of,
    keys_of,
    lease_of,
    maybe_deployment_of,
    migrations,
    ms_of,
    of_acknowledgement,
    of_move,
    of_record,
    of_tallies,
    of_token,
    record_of,
    span_ms,
    time_of,
    token_of,
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
            "AND %(config)s IN ('', config) AND seen_at_ms >= now_ms() - %(ttl_ms)s "
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

    # --- Notifications --------------------------------------------------------------------------

    def outbox(self, limit: int = ROWS_MAX) -> tuple[Event, ...]:
        rows = self._all(
            "SELECT history.* FROM outbox JOIN history USING (config, environment, revision) "
            "ORDER BY at_ms, config, environment, revision LIMIT %(limit)s",
            {"limit": limit},
        )
        return tuple(event_of(row) for row in rows)

    def told(self, event: Event) -> None:
        self._run(
            "DELETE FROM outbox WHERE config = %(config)s AND environment = %(environment)s "
            "AND revision = %(revision)s",
            {"config": event.config, "environment": event.environment, "revision": event.revision},
        )

    # --- Connections ----------------------------------------------------------------------------

    def close(self) -> None:
        self._connections.close()

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


# --- Inside a call ------------------------------------------------------------------------------


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
