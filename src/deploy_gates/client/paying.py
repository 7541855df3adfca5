"""Calls that are paid: what one costs at worst is reserved before it, and what it used is posted after it.

Unlike everything else of a client, a paid call asks the store and may be refused: money that nobody has
reserved is not spent. What cannot be posted at once is tried again in the background; it was reserved.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import random
import secrets
import threading
from collections.abc import Callable
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from deploy_gates.client.outcomes import Call
from deploy_gates.client.usage import id_of, usage_of
from deploy_gates.core.cost import Usage
from deploy_gates.core.errors import CreditsRefused, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from deploy_gates.client.outcomes import Outcomes
    from deploy_gates.client.served import Served
    from deploy_gates.core.cost import Price
    from deploy_gates.core.ledger import Answer, Transaction

OWED_MAX = 10_000
"""Calls that wait to be posted or voided while the ledger is away."""
RETRY_FIRST_S, RETRY_MAX_S = 0.25, 8.0
HOLD_S = 600.0
"""How long a reservation holds, or twice the time-out of the call where that is longer."""

log = logging.getLogger("deploy_gates")


class Away(StrEnum):
    """What becomes of a call whose credits cannot be reserved, because the ledger is away."""

    REFUSE = "refuse"
    """It is not made: `StoreUnavailable`."""
    ALLOW = "allow"
    """It is made, and nobody pays for it; the log says so."""


class Purse(Protocol):
    """Where transactions are made: a store, or a server. Both may raise `StoreError`."""

    def transact(self, asked: Transaction, *, price: Price | None = None, is_priced: bool = False) -> Answer:
        """The answer."""

    async def transact_async(
        self, asked: Transaction, *, price: Price | None = None, is_priced: bool = False
    ) -> Answer:
        """The answer, in an event loop."""

    def close(self) -> None:
        """Let go of it."""


class Paying:
    """Who pays for the calls of one client, and how: nothing is opened before the first of them."""

    _thread: threading.Thread | None

    def __init__(self, open_: Callable[[], Purse], *, organisation: str, is_on: bool, away: Away) -> None:
        self.organisation = organisation
        self.is_on = is_on
        self.away = away
        self._open = open_
        self._lock = threading.Lock()
        self._purse: Purse | None = None
        self._begin()

    @property
    def purse(self) -> Purse:
        """Opened when it is first needed."""
        with self._lock:
            if self._purse is None:
                self._purse = self._open()
            return self._purse

    def call(
        self,
        outcomes: Outcomes,
        served: Served,
        key: str | None,
        *,
        organisation: str,
        worst: Usage | None,
        id: str,
    ) -> Call:
        """A call that is paid, or one that is not where credits are off."""
        payer = organisation or self.organisation
        if not payer and self.is_on:
            raise CreditsRefused(
                f"nobody pays for this call of {served.name}: credits are on, and no organisation is named",
                hint="config.call(organisation=…), or ConfigClient(…, organisation=…)",
            )
        measured = outcomes.begin(served, key)
        return PaidCall(measured, self, served, payer, worst, id) if payer else measured

    def owe(self, asked: Transaction, price: Price | None, *, is_priced: bool) -> None:
        """Try again later, in the background."""
        with self._changed:
            if len(self._owed) >= OWED_MAX:
                log.error("%s of %s is given up: too much waits", asked.kind, asked.reservation)
                return
            self._owed.append((asked, price, is_priced))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._pay, name="deploy-gates credits owed", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def close(self, timeout_s: float) -> None:
        """Try what is owed once more, for as long as that, and let go of the ledger."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._owed or self._thread is None, timeout_s)
            if self._owed:
                log.error("%d calls were not posted: their reservations expire", len(self._owed))
        with self._lock:
            if self._purse is not None:
                self._purse.close()

    def after_fork(self) -> None:
        """In the child: what is owed is the parent's."""
        self._lock = threading.Lock()
        self._purse = None
        self._begin()

    def _begin(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._owed: collections.deque[tuple[Transaction, Price | None, bool]] = collections.deque()
        self._thread = None
        self._is_closing = False

    def _pay(self) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._owed) or self._is_closing)
                if not self._owed:
                    self._thread = None
                    self._changed.notify_all()
                    return
                asked, price, is_priced = self._owed[0]
            try:
                answer = self.purse.transact(asked, price=price, is_priced=is_priced)
                if not answer.accepted:
                    log.error("%s of %s was refused: %s", asked.kind, asked.reservation, answer.reason)
            except StoreUnavailable as error:
                log.debug("the ledger is still away: %s", error)
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closing, pause_s * random.uniform(0.5, 1.0))
                    if self._is_closing:
                        self._thread = None
                        self._changed.notify_all()
                        return
                pause_s = min(RETRY_MAX_S, pause_s * 2)
                continue
            except Exception:  # the thread has to live on
                log.exception("%s of %s failed", asked.kind, asked.reservation)
            pause_s = RETRY_FIRST_S
            with self._changed:
                self._owed.popleft()
                self._changed.notify_all()


class PaidCall(Call):
    """One call of a model that an organisation pays for, from `with` to its end, also `async with`.

    Entering it reserves what it costs at worst, or raises `CreditsRefused`, and `StoreUnavailable` where the
    ledger is away. Its end posts what `record` was told, also where something is raised after that; without
    any usage it voids what failed or was cancelled, and posts all of what was reserved for what did not.
    """

    __slots__ = ("_asked", "_given_id", "_payer", "_paying", "_used", "_worst")

    def __init__(
        self,
        measured: Call,
        paying: Paying,
        served: Served,
        payer: str,
        worst: Usage | None,
        id: str,
    ) -> None:
        super().__init__(measured._queue, served, measured._key)
        self._paying = paying
        self._payer = payer
        self._worst = worst
        self._given_id = id
        self._asked: Transaction | None = None
        self._used: list[tuple[str, Usage]] = []

    def __enter__(self) -> Self:
        asked, is_priced = self._reservation()
        try:
            answer = self._paying.purse.transact(asked, price=self._served.price, is_priced=is_priced)
        except StoreUnavailable as error:
            self._without_ledger(error)
        except BaseException:  # interrupted while it waited: it may be reserved
            self._paying.owe(self._closing(asked, None), None, is_priced=False)
            raise
        else:
            self._reserved(asked, answer)
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        closing = self._closed(kind)
        if closing is None:
            return
        asked, price = closing
        try:
            self._told(asked, self._paying.purse.transact(asked, price=price, is_priced=price is not None))
        except StoreError as away:
            self._later(asked, price, away)

    async def __aenter__(self) -> Self:
        asked, is_priced = self._reservation()
        try:
            purse = self._paying.purse
            answer = await purse.transact_async(asked, price=self._served.price, is_priced=is_priced)
        except StoreUnavailable as error:
            self._without_ledger(error)
        except BaseException:  # cancelled while it waited: it may be reserved
            self._paying.owe(self._closing(asked, None), None, is_priced=False)
            raise
        else:
            self._reserved(asked, answer)
        return super().__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        closing = self._closed(kind)
        if closing is None:
            return
        asked, price = closing
        try:
            purse = self._paying.purse
            self._told(asked, await purse.transact_async(asked, price=price, is_priced=price is not None))
        except StoreError as away:
            self._later(asked, price, away)
        except BaseException:  # cancelled once more: the background does it, and twice is once
            self._paying.owe(asked, price, is_priced=price is not None)
            raise

    def _record(self, answer: object) -> None:
        super()._record(answer)
        usage = usage_of(answer)
        if usage is None:
            return
        answer_id = id_of(answer)
        if answer_id and self._used and self._used[-1][0] == answer_id:
            self._used.pop()  # chunks of one answer, of which the last one knows
        self._used.append((answer_id, usage))

    # --- What is asked for ------------------------------------------------------------------------

    def _reservation(self) -> tuple[Transaction, bool]:
        from deploy_gates.core.ledger import Kind, Transaction, microcredits

        served, limits = self._served, self._served.config.limits
        if served.price is None:
            raise CreditsRefused(
                f"nobody knows what a call of {served.name} costs, so it cannot be paid for",
                hint="declare the price of its model in [tool.deploy_gates.models], and promote it again",
            )
        worst, amount = self._worst, None
        most = served.config.max_output_tokens
        if worst is None and limits.cost_per_request_nanousd is not None:
            amount = microcredits(limits.cost_per_request_nanousd)
            worst = Usage(input_tokens=0, output_tokens=most or 0)
        elif worst is None and limits.context_window is not None:
            worst = Usage(input_tokens=limits.context_window, output_tokens=most or limits.context_window)
        if worst is None:
            raise CreditsRefused(
                f"nobody knows what a call of {served.name} costs at worst, so nothing can be reserved",
                hint="`limits.cost_per_request` in the config, or call(worst=…)",
            )
        asked = Transaction(
            organisation=self._payer,
            id=self._given_id or f"call-{secrets.token_hex(12)}",
            kind=Kind.RESERVE,
            amount=amount or 0,
            usage=worst,
            model=served.config.model,
            hold_s=max(HOLD_S, 2 * served.endpoint.timeout_s),
            actor="client",
            note=f"{served.name} r{served.revision} {served.arm.value} {served.digest[:7]}"[:1_000],
        )
        return asked, amount is None

    def _reserved(self, asked: Transaction, answer: Answer) -> None:
        if not answer.accepted:
            raise CreditsRefused(
                f"the call of {self._served.name} was not made: {answer.reason}",
                hint="deploy-gates credits balance " + self._payer,
                reason=answer.no.value if answer.no else "",
                retry_after_s=answer.retry_after_s,
            )
        self._asked = asked

    def _without_ledger(self, error: StoreUnavailable) -> None:
        if self._paying.away is Away.REFUSE:
            raise StoreUnavailable(
                f"the call of {self._served.name} was not made: its credits cannot be reserved "
                f"({error.message})",
                hint="`credits_away='allow'` makes such calls, and nobody pays for them",
            ) from error
        log.warning("a call of %s is made that nobody pays for: %s", self._served.name, error.message)

    def _closed(self, kind: type[BaseException] | None) -> tuple[Transaction, Price | None] | None:
        """What closes the reservation, and the price it is charged by; `None` where there is none."""
        asked, self._asked = self._asked, None
        if asked is None:
            return None
        used, self._used = self._used, []
        if not used and (kind is not None or self._has_failed):
            return self._closing(asked, None), None
        return self._closing(asked, [usage for _, usage in used]), self._served.price if len(
            used
        ) == 1 else None

    def _closing(self, asked: Transaction, used: list[Usage] | None) -> Transaction:
        """Void, or post what was used: one answer at its price, several at the sum of theirs."""
        from deploy_gates.core.ledger import Kind, Transaction, microcredits

        if used is None:
            return Transaction(
                organisation=asked.organisation,
                id=f"{asked.id}:void",
                kind=Kind.VOID,
                reservation=asked.id,
                actor="client",
                note=asked.note,
            )
        price, usage, amount, note = self._served.price, Usage(input_tokens=0, output_tokens=0), 0, asked.note
        assert price is not None, "what was reserved has a price"
        for each in used:
            usage += each
            amount += microcredits(price.cost_nanousd(each))
        if not used:
            usage, note = asked.usage, f"{asked.note}, usage unknown: charged at worst"[:1_000]
            amount = asked.amount or microcredits(price.cost_nanousd(asked.usage))
        return Transaction(
            organisation=asked.organisation,
            id=f"{asked.id}:post",
            kind=Kind.POST,
            reservation=asked.id,
            amount=amount,
            usage=usage,
            model=asked.model,
            actor="client",
            note=note,
        )

    def _told(self, asked: Transaction, answer: Answer) -> None:
        if not answer.accepted:
            log.error("%s of %s was refused: %s", asked.kind, asked.reservation, answer.reason)
        elif answer.entry is not None and answer.entry.overrun:
            log.warning(
                "%s cost more than was reserved for it, by %d", asked.reservation, answer.entry.overrun
            )

    def _later(self, asked: Transaction, price: Price | None, error: StoreError) -> None:
        log.warning("%s of %s is tried again later: %s", asked.kind, asked.reservation, error.message)
        self._paying.owe(asked, price, is_priced=price is not None)


def paying_of(url: str, *, token: str, organisation: str, is_on: bool, away: str) -> Paying:
    """Who pays for the calls of a client of the store or server at `url`. `StoreError` for odd settings."""
    try:
        chosen = Away(away)
    except ValueError as error:
        raise StoreError(f"credits_away is {away!r}: there is {', '.join(Away)}") from error

    def open_() -> Purse:
        if url.startswith(("http://", "https://")):
            from deploy_gates.client.remote import HttpPurse

            return HttpPurse(url, token)
        return StorePurse(url)

    return Paying(open_, organisation=organisation, is_on=is_on or bool(organisation), away=chosen)


class StorePurse:
    """Transactions in a store, in batches with those of all other calls of this process."""

    def __init__(self, url: str) -> None:
        from deploy_gates.credits import AsyncCredits, Credits

        self._credits = Credits(url)
        self._asking = AsyncCredits(self._credits)

    def transact(self, asked: Transaction, *, price: Price | None = None, is_priced: bool = False) -> Answer:
        return self._credits.transact(asked, price=price, is_priced=is_priced)

    async def transact_async(
        self, asked: Transaction, *, price: Price | None = None, is_priced: bool = False
    ) -> Answer:
        return await self._asking.transact(asked, price=price, is_priced=is_priced)

    def close(self) -> None:
        with contextlib.suppress(StoreError):
            self._credits.close()
