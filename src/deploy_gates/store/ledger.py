"""The ledger as both engines keep it: organisations, transactions, and what they were charged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from deploy_gates.core.cost import Price
from deploy_gates.core.ledger import Answer, Entry, Organisation, Reservation, Terms, Transaction
from deploy_gates.store import Store, open_store
from deploy_gates.store.ledger_rows import PAGE, Audited

BATCH_MAX = 256
"""How many transactions one round trip carries at most."""


class Ledger(Protocol):
    """Each call is one transaction of the database, and may raise `StoreUnavailable`."""

    url: str
    """Without a password."""

    def add(self, id: str, name: str, terms: Terms, actor: str) -> Organisation:
        """A new organisation, or the one there is if it has this name and these terms; `Refused` if not.

        `ValueError` for an id that no address can carry.
        """

    def change(
        self, id: str, change: Callable[[Terms], Terms], *, actor: str, note: str = ""
    ) -> Organisation:
        """Other terms from here on, written down in its ledger; the same terms are written down once.

        `Refused` where it is unknown or too low.
        """

    def organisation(self, id: str) -> Organisation | None:
        """How it stands; what has expired is freed before."""

    def organisations(self, after: str = "", limit: int = PAGE) -> tuple[Organisation, ...]:
        """Organisations by id, after `after`; what has expired is freed before."""

    def apply(self, asked: Sequence[Transaction]) -> list[Answer]:
        """Make transactions, up to `BATCH_MAX`, in this order: one round trip, and one commit for all.

        No two of them are of the same organisation and of the same id or reservation. One that is refused
        changes nothing, and nothing for the others.
        """

    def sweep(self) -> int:
        """Free what has expired, everywhere; how many reservations those were."""

    def put_price(self, price: Price) -> str:
        """Keep a price, once; its digest."""

    def entries(
        self,
        organisation: str,
        *,
        after: int = 0,
        before: int = 2**62,
        limit: int = PAGE,
        newest: bool = False,
    ) -> tuple[Entry, ...]:
        """Entries between two numbers, in their order, or the newest first."""

    def reservations(self, organisation: str, limit: int = PAGE) -> tuple[Reservation, ...]:
        """What is held now, the first to expire first."""

    def audit(self, organisation: str) -> Audited | None:
        """Read a ledger from its beginning, at one moment, and find what is wrong with it."""

    def close(self) -> None:
        """Let go of the connections."""


def open_ledger(url: str, *, root: Path | None = None) -> Ledger:
    """The ledger in the store at that URL, which is opened for it. `StoreError` for what is no store."""
    return ledger_of(open_store(url, root=root))


def ledger_of(store: Store) -> Ledger:
    """The ledger in a store, over the connections of that store."""
    from deploy_gates.store.sqlite import SqliteStore

    if isinstance(store, SqliteStore):
        from deploy_gates.store.ledger_sqlite import SqliteLedger

        return SqliteLedger(store)
    from deploy_gates.store.ledger_postgres import PostgresLedger
    from deploy_gates.store.postgres import PostgresStore

    assert isinstance(store, PostgresStore), "there are two engines"
    return PostgresLedger(store)
