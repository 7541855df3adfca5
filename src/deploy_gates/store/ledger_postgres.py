"""The ledger in PostgreSQL: any number of transactions in one round trip, decided where the rows are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, LiteralString

from psycopg.rows import tuple_row

from deploy_gates.core.cost import Price
from deploy_gates.core.ledger import (
    Allowance,
    Answer,
    Audit,
    Balance,
    Entry,
    No,
    Organisation,
    Reservation,
    Terms,
    Transaction,
    checked_name,
    on_terms,
)
from deploy_gates.store.connections import Connection
from deploy_gates.store.ledger_rows import (
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
    sorted_terms,
)
from deploy_gates.store.postgres import PostgresStore


class PostgresLedger:
    """The ledger in one database, over the connections of its store."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self.url = store.url

    # --- Organisations --------------------------------------------------------------------------

    def add(self, id: str, name: str, terms: Terms, actor: str) -> Organisation:
        checked_name(id)

        def put(connection: Connection) -> Organisation:
            added = connection.execute(
                "INSERT INTO organisation (id, name, lowest, multiplier_ppm) "
                "VALUES (%s, %s, %s, %s) ON CONFLICT (id) DO NOTHING",
                (id, name, terms.lowest, terms.multiplier_ppm),
            )
            if added.rowcount == 0:
                found = _organisation(connection, id)
                assert found is not None, "who cannot be added is there"
                return as_added(found, name, terms)
            made = Organisation(id=id, name=name, terms=terms)
            return _on_terms(connection, made, sorted_terms(terms), actor=actor, note="added")

        return self._store.write_all(put)

    def change(
        self, id: str, change: Callable[[Terms], Terms], *, actor: str, note: str = ""
    ) -> Organisation:
        def put(connection: Connection) -> Organisation:
            connection.execute("SELECT 1 FROM organisation WHERE id = %s FOR UPDATE", (id,))
            _free(connection, [id])
            found = _organisation(connection, id)
            terms = checked_terms(id, found, change)
            assert found is not None, "who is unknown was refused"
            if is_same(found.terms, terms):
                return found
            return _on_terms(connection, found, terms, actor=actor, note=note)

        return self._store.write_all(put)

    def organisation(self, id: str) -> Organisation | None:
        def read(connection: Connection) -> Organisation | None:
            _free_all(connection, [id])
            return _organisation(connection, id)

        return self._store.read_all(read)

    def organisations(self, after: str = "", limit: int = PAGE) -> tuple[Organisation, ...]:
        def read(connection: Connection) -> tuple[Organisation, ...]:
            values = (after, limit)
            _free_all(connection, [row["id"] for row in connection.execute(_LISTED, values)])
            rows = connection.execute(_LISTED, values).fetchall()
            kept = _allowances(connection, [row["id"] for row in rows])
            return tuple(organisation_of(row, kept.get(row["id"], ())) for row in rows)

        return self._store.read_all(read)

    # --- Transactions ---------------------------------------------------------------------------

    def apply(self, asked: Sequence[Transaction]) -> list[Answer]:
        contents = [each.content for each in asked]
        values = (
            sorted({each.organisation for each in asked}),
            [each.reservation for each in asked if each.reservation],
            _spelled(asked, contents),
        )

        def run(connection: Connection) -> list[tuple[Any, ...]]:
            with connection.cursor(row_factory=tuple_row) as cursor:
                return cursor.execute(_APPLY, values).fetchall()

        rows = self._store.read_all(run)
        answers: list[Answer | None] = [None] * len(asked)
        for row in rows:
            if row[0]:  # the others have expired by the way
                place = row[0] - 1
                answers[place] = _answer(asked[place], contents[place], row)
        return [each for each in answers if each is not None]

    def sweep(self) -> int:
        def free(connection: Connection) -> int:
            late = connection.execute(
                "SELECT DISTINCT organisation FROM reservation WHERE expires_at_ms <= now_ms() LIMIT %s",
                (PAGE,),
            ).fetchall()
            return _free(connection, [row["organisation"] for row in late]) if late else 0

        freed = 0
        while made := self._store.write_all(free):
            freed += made
        return freed

    # --- Prices ---------------------------------------------------------------------------------

    def put_price(self, price: Price) -> str:
        digest, body = price_spelled(price)
        self._store.read_all(
            lambda connection: connection.execute(
                "INSERT INTO tariff VALUES (%s, %s) ON CONFLICT (digest) DO NOTHING", (digest, body)
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
        statement = _NEWEST if newest else _OLDEST
        return self._store.read_all(
            lambda connection: _entries(connection, statement, (organisation, after, before, limit))
        )

    def reservations(self, organisation: str, limit: int = PAGE) -> tuple[Reservation, ...]:
        return self._store.read_all(lambda connection: _reservations(connection, organisation, limit))

    def audit(self, organisation: str) -> Audited | None:
        def read(connection: Connection) -> Audited | None:
            found = _organisation(connection, organisation)
            if found is None:
                return None
            rows = connection.execute("SELECT * FROM tariff").fetchall()
            held = {each.id: each for each in _reservations(connection, organisation, None)}
            audit = Audit(
                organisation=found,
                prices={row["digest"]: price_of(row["body"]) for row in rows},
                open=held,
            )

            def every() -> Iterator[Entry]:
                after = 0
                while page := _entries(connection, _OLDEST, (organisation, after, 2**62, 10 * PAGE)):
                    yield from page
                    after = page[-1].seq

            return Audited(organisation=found, faults=tuple(audit.faults(every())))

        return self._store.read_at_once(read)

    def close(self) -> None:
        self._store.close()


# --- Statements ---------------------------------------------------------------------------------

_APPLY = "SELECT * FROM credits_apply(%s::text[], %s::text[], %s::json)"

_LISTED = 'SELECT * FROM organisation WHERE id COLLATE "C" > %s ORDER BY id COLLATE "C" LIMIT %s'
_OLDEST = "SELECT * FROM entry WHERE organisation = %s AND seq > %s AND seq < %s ORDER BY seq LIMIT %s"
_NEWEST = "SELECT * FROM entry WHERE organisation = %s AND seq > %s AND seq < %s ORDER BY seq DESC LIMIT %s"


def _spelled(asked: Sequence[Transaction], contents: Sequence[str]) -> str:
    """What is asked for, for the function: one text is sent faster than a dozen arrays."""
    return json.dumps(
        [
            {
                "organisation": each.organisation,
                "id": each.id,
                "kind": each.kind.value,
                "reservation": each.reservation,
                "model": each.model,
                "price": each.price,
                "content": content,
                "actor": each.actor,
                "note": each.note,
                "base": each.amount,
                "input": each.usage.input_tokens,
                "cached": each.usage.cached_input_tokens,
                "output": each.usage.output_tokens,
                "reasoning": each.usage.reasoning_tokens,
                "hold_ms": each.hold_ms,
            }
            for each, content in zip(asked, contents, strict=True)
        ]
    )


def _answer(asked: Transaction, content: str, row: Sequence[Any]) -> Answer:
    """The answer in a row of `credits_apply`, to what was asked for."""
    (_, refused, needed, wait_us, limited_model, replayed) = row[:6]
    balance = Balance(available=row[18], reserved=row[19], spent=row[20], issued=row[21], uncovered=row[22])
    if refused:
        return Answer(
            transaction=asked.id,
            organisation=asked.organisation,
            no=No(refused),
            balance=balance,
            needed=needed,
            retry_after_s=None if wait_us is None else wait_us / 1e6,
            limited_model=limited_model,
        )
    entry = Entry(
        organisation=asked.organisation,
        seq=row[6],
        id=asked.id,
        kind=asked.kind,
        reservation=asked.reservation,
        model=row[7],
        usage=asked.usage,
        price=row[8],
        base=row[9],
        multiplier_ppm=row[10],
        amount=row[11],
        held=row[12],
        lacking=row[13],
        expires_at_ms=row[14],
        content=content,
        actor=row[15],
        note=row[16],
        at_ms=row[17],
        balance=balance,
        previous=row[23],
        hash=row[24],
    )
    return Answer(
        transaction=asked.id,
        organisation=asked.organisation,
        entry=entry,
        balance=balance,
        replayed=replayed,
    )


def _free(connection: Connection, organisations: list[str]) -> int:
    """Free what has expired of these; how many reservations those were."""
    freed = connection.execute("SELECT credits_expire(%s) AS n", (organisations,)).fetchone()
    assert freed is not None, "a count is a row"
    return int(freed["n"])


def _free_all(connection: Connection, organisations: list[str]) -> None:
    """Free what has expired of these, however much it is; nobody is locked where nothing has."""
    while late := connection.execute(
        "SELECT DISTINCT organisation FROM reservation "
        "WHERE organisation = ANY (%s) AND expires_at_ms <= now_ms()",
        (organisations,),
    ).fetchall():
        _free(connection, [row["organisation"] for row in late])


def _on_terms(
    connection: Connection, found: Organisation, terms: Terms, *, actor: str, note: str
) -> Organisation:
    now = connection.execute("SELECT now_ms() AS now_ms").fetchone()
    assert now is not None, "there is always a time"
    decided = on_terms(found, terms, actor=actor, note=note, now_ms=now["now_ms"])
    made, entry = decided.organisation, decided.answer.entry
    assert entry is not None, "terms are written down"
    connection.execute(
        "UPDATE organisation SET lowest = %s, multiplier_ppm = %s WHERE id = %s",
        (terms.lowest, terms.multiplier_ppm, found.id),
    )
    connection.execute("DELETE FROM allowance WHERE organisation = %s", (found.id,))
    for each in made.terms.allowances:
        connection.execute(
            "INSERT INTO allowance VALUES (%s, %s, %s, %s, %s)",
            (found.id, each.model, each.rate, each.most, each.full_at_us),
        )
    connection.execute(_INSERT_ENTRY, of_entry(entry))
    return made


_INSERT_ENTRY: LiteralString = "INSERT INTO entry VALUES (" + ", ".join(["%s"] * 28) + ")"


def _organisation(connection: Connection, id: str) -> Organisation | None:
    row = connection.execute("SELECT * FROM organisation WHERE id = %s", (id,)).fetchone()
    return None if row is None else organisation_of(row, _allowances(connection, [id]).get(id, ()))


def _allowances(connection: Connection, organisations: list[str]) -> dict[str, tuple[Allowance, ...]]:
    rows = connection.execute(
        'SELECT * FROM allowance WHERE organisation = ANY (%s) ORDER BY model COLLATE "C", rate COLLATE "C"',
        (organisations,),
    ).fetchall()
    kept: dict[str, tuple[Allowance, ...]] = {}
    for row in rows:
        kept[row["organisation"]] = (*kept.get(row["organisation"], ()), allowance_of(row))
    return kept


def _reservations(connection: Connection, organisation: str, limit: int | None) -> tuple[Reservation, ...]:
    rows = connection.execute(
        "SELECT * FROM reservation WHERE organisation = %s ORDER BY expires_at_ms, id LIMIT %s",
        (organisation, limit),
    ).fetchall()
    return tuple(reservation_of(row) for row in rows)


def _entries(connection: Connection, statement: LiteralString, values: Sequence[object]) -> tuple[Entry, ...]:
    with connection.cursor(row_factory=tuple_row) as cursor:
        return tuple(entry_of(row) for row in cursor.execute(statement, values).fetchall())
