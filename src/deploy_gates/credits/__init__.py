"""Credits: a ledger that every call of a model goes through, in one transaction under 50 ms.

```python
with Credits("postgresql://…") as credits:
    answer = credits.consume("acme", id="req-118", model="gpt-4.1-mini", usage=usage)
    if not answer.accepted:
        print(answer.reason, answer.retry_after_s)
```

Threads call `Credits`, coroutines `AsyncCredits`; both go the same way, in batches.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy_gates.core.cost import Price, Usage
from deploy_gates.core.ledger import (
    ID_MAX_CHARS,
    NO_USAGE,
    SPENDING,
    Answer,
    Balance,
    Entry,
    Kind,
    No,
    Organisation,
    Terms,
    Transaction,
    microcredits,
)
from deploy_gates.credits.batching import Batcher
from deploy_gates.store.ledger import Ledger, open_ledger

__all__ = [
    "Answer",
    "AsyncCredits",
    "Balance",
    "Credits",
    "Entry",
    "Kind",
    "No",
    "Organisation",
    "Terms",
    "Transaction",
    "Usage",
]

WORKERS = {"sqlite": 1, "postgresql": 2}
"""How many batches are under way at once: one file has one writer."""


class Credits:
    """The credits in one store. Amounts are micro-credits: a million is a credit, which is a tenth of a cent.

    `url` is that of a store. `price` says what a model costs; without it, the packaged table does. Every call
    may raise `StoreUnavailable`, and may then be made again with the same id. Refusals are answers.
    """

    def __init__(
        self,
        url: str = "",
        *,
        root: Path | None = None,
        price: Callable[[str], Price | None] | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.ledger = ledger or open_ledger(url, root=root)
        self._price = price
        self._kept: dict[Price, str] = {}
        self._keeping = threading.Lock()
        engine = self.ledger.url.partition(":")[0]
        self._batcher = Batcher(self.ledger.apply, workers=WORKERS.get(engine, WORKERS["postgresql"]))

    def reserve(
        self,
        organisation: str,
        *,
        id: str,
        usage: Usage = NO_USAGE,
        amount: int | None = None,
        model: str = "",
        price: Price | None = None,
        hold_s: float = 0.0,
        actor: str = "",
        note: str = "",
    ) -> Answer:
        """Hold what a call uses at worst: `usage` at its price, or `amount`. Post or void it by this `id`."""
        asked = Transaction(
            organisation=organisation,
            id=id,
            kind=Kind.RESERVE,
            amount=amount or 0,
            usage=usage,
            model=model,
            hold_s=hold_s,
            actor=actor,
            note=note,
        )
        return self.transact(asked, price=price, is_priced=amount is None)

    def post(
        self,
        organisation: str,
        reservation: str,
        *,
        id: str = "",
        usage: Usage = NO_USAGE,
        amount: int | None = None,
        model: str = "",
        price: Price | None = None,
        actor: str = "",
        note: str = "",
    ) -> Answer:
        """Spend what the call used, of what was reserved by that id; the rest is free again."""
        asked = Transaction(
            organisation=organisation,
            id=id or closing_id(reservation, Kind.POST),
            kind=Kind.POST,
            amount=amount or 0,
            usage=usage,
            model=model,
            reservation=reservation,
            actor=actor,
            note=note,
        )
        return self.transact(asked, price=price, is_priced=amount is None)

    def void(
        self, organisation: str, reservation: str, *, id: str = "", actor: str = "", note: str = ""
    ) -> Answer:
        """Give back all of what was reserved by that id."""
        return self.transact(
            Transaction(
                organisation=organisation,
                id=id or closing_id(reservation, Kind.VOID),
                kind=Kind.VOID,
                reservation=reservation,
                actor=actor,
                note=note,
            )
        )

    def consume(
        self,
        organisation: str,
        *,
        id: str,
        usage: Usage = NO_USAGE,
        amount: int | None = None,
        model: str = "",
        price: Price | None = None,
        actor: str = "",
        note: str = "",
    ) -> Answer:
        """Spend what is known to be used: balance, limits, price, deduction and audit in one transaction."""
        asked = Transaction(
            organisation=organisation,
            id=id,
            kind=Kind.CONSUME,
            amount=amount or 0,
            usage=usage,
            model=model,
            actor=actor,
            note=note,
        )
        return self.transact(asked, price=price, is_priced=amount is None)

    def grant(self, organisation: str, amount: int, *, id: str, actor: str = "", note: str = "") -> Answer:
        """Give micro-credits; less than nothing takes back what was not spent."""
        return self.transact(
            Transaction(
                organisation=organisation, id=id, kind=Kind.GRANT, amount=amount, actor=actor, note=note
            )
        )

    def correct(self, organisation: str, amount: int, *, id: str, actor: str = "", note: str = "") -> Answer:
        """Give back what was spent wrongly; less than nothing charges what was forgotten."""
        return self.transact(
            Transaction(
                organisation=organisation, id=id, kind=Kind.CORRECT, amount=amount, actor=actor, note=note
            )
        )

    def transact(self, asked: Transaction, *, price: Price | None = None, is_priced: bool = False) -> Answer:
        """Make a transaction; with `is_priced`, of what its usage costs by `price` or by its model."""
        if is_priced and asked.kind in SPENDING:
            priced = self.priced(asked, price)
            if isinstance(priced, Answer):
                return priced
            asked = priced
        return self._batcher.ask(asked)

    def organisation(self, id: str) -> Organisation | None:
        """An organisation as it stands now."""
        return self.ledger.organisation(id)

    def close(self) -> None:
        """Finish what is under way, and let go of the store."""
        self._batcher.close()
        self.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def priced(self, asked: Transaction, price: Price | None) -> Transaction | Answer:
        """The same at its price, which is kept; the refusal where nobody knows one. May ask the store."""
        price = price or self._price_of(asked.model)
        if price is None:
            return self._unpriced(asked)
        digest = self._kept.get(price)
        if digest is None:
            with self._keeping:
                digest = self._kept[price] = self.ledger.put_price(price)
        return replace(asked, amount=microcredits(price.cost_nanousd(asked.usage)), price=digest)

    def _unpriced(self, asked: Transaction) -> Answer:
        found = self.ledger.organisation(asked.organisation)
        return Answer(
            transaction=asked.id,
            organisation=asked.organisation,
            no=No.UNPRICED if found else No.UNKNOWN,
            balance=found.balance if found else Balance(),
        )

    def is_known(self, asked: Transaction, price: Price | None) -> bool:
        """Whether `priced` would ask nobody."""
        return price is not None and price in self._kept

    def _price_of(self, model: str) -> Price | None:
        if not model:
            return None
        if self._price is None:
            from deploy_gates.credits.pricing import Pricing  # a quarter of a second, where it is needed

            self._price = Pricing()
        return self._price(model)


class AsyncCredits:
    """The same for coroutines of any event loop."""

    def __init__(self, credits: Credits) -> None:
        self.credits = credits

    async def transact(
        self, asked: Transaction, *, price: Price | None = None, is_priced: bool = False
    ) -> Answer:
        """Make a transaction. Who is cancelled meanwhile may find it made: ask again, or void it."""
        shared = self.credits
        if is_priced and asked.kind in SPENDING:
            if shared.is_known(asked, price):
                priced = shared.priced(asked, price)
            else:
                priced = await asyncio.to_thread(shared.priced, asked, price)
            if isinstance(priced, Answer):
                return priced
            asked = priced
        return await shared._batcher.ask_async(asked)

    async def reserve(
        self, organisation: str, *, id: str, usage: Usage, model: str = "", price: Price | None = None
    ) -> Answer:
        """See `Credits.reserve`."""
        asked = Transaction(organisation=organisation, id=id, kind=Kind.RESERVE, usage=usage, model=model)
        return await self.transact(asked, price=price, is_priced=True)

    async def post(
        self,
        organisation: str,
        reservation: str,
        *,
        usage: Usage,
        model: str = "",
        price: Price | None = None,
    ) -> Answer:
        """See `Credits.post`."""
        asked = Transaction(
            organisation=organisation,
            id=closing_id(reservation, Kind.POST),
            kind=Kind.POST,
            reservation=reservation,
            usage=usage,
            model=model,
        )
        return await self.transact(asked, price=price, is_priced=True)

    async def void(self, organisation: str, reservation: str, *, note: str = "") -> Answer:
        """See `Credits.void`."""
        return await self.transact(
            Transaction(
                organisation=organisation,
                id=closing_id(reservation, Kind.VOID),
                kind=Kind.VOID,
                reservation=reservation,
                note=note,
            )
        )

    async def consume(
        self, organisation: str, *, id: str, usage: Usage, model: str = "", price: Price | None = None
    ) -> Answer:
        """See `Credits.consume`."""
        asked = Transaction(organisation=organisation, id=id, kind=Kind.CONSUME, usage=usage, model=model)
        return await self.transact(asked, price=price, is_priced=True)


def closing_id(reservation: str, kind: Kind) -> str:
    """The id of what closes a reservation, unless its caller has another: each closes it once."""
    if isinstance(reservation, str) and len(reservation) > ID_MAX_CHARS - 8:
        reservation = sha256(reservation.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{reservation}:{kind}"
