"""The ledger in SQLite: `core/ledger.py` decides within the transaction, and the tables check it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from deploy_gates.core.cost import Price
from deploy_gates.core.ledger import (
    CLOSING,
    Allowance,
    Answer,
    Audit,
    Decided,
    Entry,
    Kind,
    Known,
    No,
    Organisation,
    Reservation,
    Terms,
    Transaction,
    checked_name,
    decide,
    expired,
    on_terms,
)
from deploy_gates.store.ledger_rows import (
    ENTRY_COLUMNS,
    PAGE,
    Audited,
    allowance_of,
    as_added,
    checked_terms,
    entry_of,
    is_same,
    of_entry,
    organisation_of,
    price_of,
    price_spelled,
    reservation_of,
)
from deploy_gates.store.sqlite import SqliteStore

EXPIRED_MAX = 1_000
"""How many reservations are freed on the way of one transaction."""

_T = TypeVar("_T")


class SqliteLedger:
    """The ledger in one file, over the connection of its store."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.url = store.url

    # --- Organisations --------------------------------------------------------------------------

    def add(self, id: str, name: str, terms: Terms, actor: str) -> Organisation:
        checked_name(id)

        def put(connection: sqlite3.Connection) -> Organisation:
            found = _organisation(connection, id)
            if found is not None:
                return as_added(found, name, terms)
            connection.execute(
                "INSERT INTO organisation (id, name, lowest, multiplier_ppm) VALUES (?, ?, ?, ?)",
                (id, name, terms.lowest, terms.multiplier_ppm),
            )
            made = Organisation(id=id, name=name, terms=terms)
            return self._on_terms(connection, made, terms, actor=actor, note="added")

        return self._store.write_all(put)

    def change(
        self, id: str, change: Callable[[Terms], Terms], *, actor: str, note: str = ""
    ) -> Organisation:
        def put(connection: sqlite3.Connection) -> Organisation:
            self._free(connection, id)
            found = _organisation(connection, id)
            terms = checked_terms(id, found, change)
            assert found is not None, "who is unknown was refused"
            if is_same(found.terms, terms):
                return found
            return self._on_terms(connection, found, terms, actor=actor, note=note)

        return self._store.write_all(put)

    def organisation(self, id: str) -> Organisation | None:
        def read(connection: sqlite3.Connection) -> tuple[list[str], Organisation | None]:
            return _late(connection, [id]), _organisation(connection, id)

        return self._freed(read)

    def organisations(self, after: str = "", limit: int = PAGE) -> tuple[Organisation, ...]:
        def read(connection: sqlite3.Connection) -> tuple[list[str], tuple[Organisation, ...]]:
            rows = connection.execute(
                "SELECT * FROM organisation WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
            ).fetchall()
            found = tuple(organisation_of(row, _allowances(connection, row["id"])) for row in rows)
            return _late(connection, [each.id for each in found]), found

        return self._freed(read)

    def _freed(self, read: Callable[[sqlite3.Connection], tuple[list[str], _T]]) -> _T:
        """What is read once nothing of it has expired: `read` also says whose reservations have."""

        def free(connection: sqlite3.Connection) -> None:
            for each in late:
                self._free(connection, each)

        while True:
            late, found = self._store.read_all(read)
            if not late:
                return found
            self._store.write_all(free)

    # --- Transactions ---------------------------------------------------------------------------

    def apply(self, asked: Sequence[Transaction]) -> list[Answer]:
        return self._store.write_all(lambda connection: list(self._answers(connection, asked)))

    def sweep(self) -> int:
        def free(connection: sqlite3.Connection) -> int:
            late = connection.execute(
                "SELECT DISTINCT organisation FROM reservation WHERE expires_at_ms <= now_ms() LIMIT ?",
                (EXPIRED_MAX,),
            ).fetchall()
            return sum(self._free(connection, row["organisation"]) for row in late)

        freed = 0
        while made := self._store.write_all(free):
            freed += made
        return freed

    def _answers(self, connection: sqlite3.Connection, asked: Sequence[Transaction]) -> Iterator[Answer]:
        now_ms = _now_ms(connection)
        standing: dict[str, Organisation | None] = {}
        wanted = {(each.organisation, each.reservation) for each in asked if each.reservation}
        for each in asked:
            if each.organisation not in standing:
                self._free(connection, each.organisation, now_ms, wanted)
                standing[each.organisation] = _organisation(connection, each.organisation)
            organisation = standing[each.organisation]
            if organisation is None:
                yield Answer(transaction=each.id, organisation=each.organisation, no=No.UNKNOWN)
                continue
            known = _known(connection, organisation, each)
            decided = decide(each, known, now_ms)
            if decided.answer.accepted and not decided.answer.replayed:
                _keep(connection, organisation, decided, known.open)
            standing[each.organisation] = decided.organisation
            yield decided.answer

    def _free(
        self,
        connection: sqlite3.Connection,
        organisation: str,
        now_ms: int | None = None,
        wanted: set[tuple[str, str]] | frozenset[tuple[str, str]] = frozenset(),
    ) -> int:
        """Free what has expired, but for what somebody closes just now; how many reservations those were."""
        now_ms = _now_ms(connection) if now_ms is None else now_ms
        late = connection.execute(
            "SELECT * FROM reservation WHERE organisation = ? AND expires_at_ms <= ? "
            "ORDER BY expires_at_ms, id LIMIT ?",
            (organisation, now_ms, EXPIRED_MAX),
        ).fetchall()
        freed = sorted(
            (row for row in late if (organisation, row["id"]) not in wanted), key=lambda row: str(row["id"])
        )
        if not freed:
            return 0
        standing = _organisation(connection, organisation)
        assert standing is not None, "reservations are of organisations"
        for row in freed:
            held = reservation_of(row)
            decided = expired(standing, held, now_ms)
            _keep(connection, standing, decided, held)
            standing = decided.organisation
        return len(freed)

    def _on_terms(
        self, connection: sqlite3.Connection, found: Organisation, terms: Terms, *, actor: str, note: str
    ) -> Organisation:
        decided = on_terms(found, terms, actor=actor, note=note, now_ms=_now_ms(connection))
        connection.execute(
            "UPDATE organisation SET lowest = ?, multiplier_ppm = ? WHERE id = ?",
            (terms.lowest, terms.multiplier_ppm, found.id),
        )
        connection.execute("DELETE FROM allowance WHERE organisation = ?", (found.id,))
        connection.executemany(
            "INSERT INTO allowance VALUES (?, ?, ?, ?, ?)",
            [
                (found.id, each.model, each.rate, each.most, each.full_at_us)
                for each in decided.organisation.terms.allowances
            ],
        )
        _keep(connection, decided.organisation, decided, None)
        return decided.organisation

    # --- Prices ---------------------------------------------------------------------------------

    def put_price(self, price: Price) -> str:
        digest, body = price_spelled(price)
        self._store.write_all(
            lambda connection: connection.execute(
                "INSERT INTO tariff VALUES (?, ?) ON CONFLICT (digest) DO NOTHING", (digest, body)
            )
        )
        return digest

    # --- Looking back ---------------------------------------------------------------------------

    def entries(
        self,
        organisation: str,
        *,
        after: int = 0,
        before: int = 2**62,
        limit: int = PAGE,
        newest: bool = False,
    ) -> tuple[Entry, ...]:
        return self._store.read_all(
            lambda connection: _entries(connection, organisation, after, before, limit, newest=newest)
        )

    def reservations(self, organisation: str, limit: int = PAGE) -> tuple[Reservation, ...]:
        return self._store.read_all(lambda connection: _reservations(connection, organisation, limit))

    def audit(self, organisation: str) -> Audited | None:
        def read(connection: sqlite3.Connection) -> Audited | None:
            connection.execute("BEGIN")  # one moment for all
            try:
                found = _organisation(connection, organisation)
                if found is None:
                    return None
                prices = {
                    row["digest"]: price_of(row["body"]) for row in connection.execute("SELECT * FROM tariff")
                }
                held = {each.id: each for each in _reservations(connection, organisation, -1)}
                audit = Audit(organisation=found, prices=prices, open=held)
                every = connection.execute(
                    f"SELECT {', '.join(ENTRY_COLUMNS)} FROM entry WHERE organisation = ? ORDER BY seq",
                    (organisation,),
                )
                faults = tuple(audit.faults(entry_of(tuple(row)) for row in every))
                return Audited(organisation=found, faults=faults)
            finally:
                connection.execute("COMMIT")

        return self._store.read_all(read)

    def close(self) -> None:
        self._store.close()


# --- Statements ---------------------------------------------------------------------------------

_INSERT_ENTRY = f"INSERT INTO entry VALUES ({', '.join('?' * len(ENTRY_COLUMNS))})"
_SELECT_ENTRY = f"SELECT {', '.join(ENTRY_COLUMNS)} FROM entry"


def _keep(
    connection: sqlite3.Connection, before: Organisation, decided: Decided, held: Reservation | None
) -> None:
    """Keep an entry and what follows from it; all of it or nothing."""
    entry = decided.answer.entry
    assert entry is not None, "what is kept was accepted"
    connection.execute(_INSERT_ENTRY, of_entry(entry))
    if entry.kind is Kind.RESERVE:
        tokens = entry.usage.input_tokens + entry.usage.output_tokens
        connection.execute(
            "INSERT INTO reservation VALUES (?, ?, ?, ?, ?, ?)",
            (entry.organisation, entry.id, entry.model, entry.amount, tokens, entry.expires_at_ms),
        )
    elif held is not None:
        connection.execute(
            "DELETE FROM reservation WHERE organisation = ? AND id = ?", (entry.organisation, held.id)
        )
    was = before.terms.allowances
    for old, new in zip(was, decided.organisation.terms.allowances, strict=True):
        if old.full_at_us != new.full_at_us:
            connection.execute(
                "UPDATE allowance SET full_at_us = ? WHERE organisation = ? AND model = ? AND rate = ?",
                (new.full_at_us, entry.organisation, new.model, new.rate),
            )


def _known(connection: sqlite3.Connection, organisation: Organisation, asked: Transaction) -> Known:
    made = connection.execute(
        f"{_SELECT_ENTRY} WHERE organisation = ? AND id = ?", (organisation.id, asked.id)
    ).fetchone()
    if made is not None or asked.kind not in CLOSING:
        return Known(organisation=organisation, made=entry_of(tuple(made)) if made else None)
    place = (organisation.id, asked.reservation)
    held = connection.execute("SELECT * FROM reservation WHERE organisation = ? AND id = ?", place).fetchone()
    if held is not None:
        return Known(organisation=organisation, open=reservation_of(held))
    reserved = connection.execute(
        f"{_SELECT_ENTRY} WHERE organisation = ? AND id = ? AND kind = 'reserve'", place
    ).fetchone()
    closed = connection.execute(
        "SELECT kind FROM entry WHERE organisation = ? AND reservation = ? AND reservation <> ''", place
    ).fetchall()
    return Known(
        organisation=organisation,
        reserved=entry_of(tuple(reserved)) if reserved else None,
        closed_by=frozenset(Kind(row["kind"]) for row in closed),
    )


def _organisation(connection: sqlite3.Connection, id: str) -> Organisation | None:
    row = connection.execute("SELECT * FROM organisation WHERE id = ?", (id,)).fetchone()
    return None if row is None else organisation_of(row, _allowances(connection, id))


def _allowances(connection: sqlite3.Connection, organisation: str) -> tuple[Allowance, ...]:
    rows = connection.execute(
        "SELECT * FROM allowance WHERE organisation = ? ORDER BY model, rate", (organisation,)
    ).fetchall()
    return tuple(allowance_of(row) for row in rows)


def _reservations(connection: sqlite3.Connection, organisation: str, limit: int) -> tuple[Reservation, ...]:
    rows = connection.execute(
        "SELECT * FROM reservation WHERE organisation = ? ORDER BY expires_at_ms, id LIMIT ?",
        (organisation, limit),
    ).fetchall()
    return tuple(reservation_of(row) for row in rows)


def _entries(
    connection: sqlite3.Connection,
    organisation: str,
    after: int,
    before: int,
    limit: int,
    *,
    newest: bool,
) -> tuple[Entry, ...]:
    rows = connection.execute(
        f"{_SELECT_ENTRY} WHERE organisation = ? AND seq > ? AND seq < ? "
        f"ORDER BY seq {'DESC' if newest else ''} LIMIT ?",
        (organisation, after, before, limit),
    ).fetchall()
    return tuple(entry_of(tuple(row)) for row in rows)


def _late(connection: sqlite3.Connection, organisations: list[str]) -> list[str]:
    """Which of these hold what has expired."""
    late = connection.execute(
        "SELECT DISTINCT organisation FROM reservation "
        "WHERE organisation IN (SELECT value FROM json_each(?)) AND expires_at_ms <= now_ms()",
        (json.dumps(organisations),),
    ).fetchall()
    return [row["organisation"] for row in late]


def _now_ms(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT now_ms()").fetchone()[0])
