"""Credits over HTTP: transactions, organisations, statements. Each refusal has a status."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy_gates import clock
from deploy_gates.core import receipts
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.cost import Price
from deploy_gates.core.ledger import (
    AMOUNT_MAX,
    HOLD_MAX,
    ID_MAX_CHARS,
    LIMITED,
    MULTIPLIER_MAX_PPM,
    NO_USAGE,
    NOTE_MAX_CHARS,
    PPM,
    SPENDING,
    Answer,
    Kind,
    No,
    Terms,
    Transaction,
    checked_name,
    moment_ms,
)
from deploy_gates.core.promotion import Scope
from deploy_gates.credits import AsyncCredits
from deploy_gates.server.asking import allowed, answer, document, in_thread, member, only, refuse, text, whole
from deploy_gates.server.names import name, number

if TYPE_CHECKING:
    from deploy_gates.server import Service

ENTRIES_MAX = 1_000
_USD = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
SIGNED_MAX = 2**53
STATUS: dict[No, int] = {
    No.BALANCE: 402,
    **dict.fromkeys(LIMITED, 429),
    No.UNKNOWN: 404,
    No.NO_RESERVATION: 404,
    No.ID_TAKEN: 409,
    No.CLOSED: 409,
    No.AMOUNT: 422,
    No.UNPRICED: 422,
}
ASKED = {each.value: each for each in (*SPENDING, Kind.VOID, Kind.GRANT, Kind.CORRECT)}
"""The kinds of transactions that somebody may ask for."""
MEMBERS = (
    "organisation",
    "id",
    "kind",
    "amount",
    "usage",
    "price",
    "model",
    "reservation",
    "hold_s",
    "note",
)
TERMS = ("lowest", "multiplier_ppm", "limits")


def routes(service: Service) -> list[Route]:
    """The endpoints, for one service."""
    ledger = _Credits(service)
    organisation = "/v1/credits/organisations/{organisation}"
    return [
        Route("/v1/credits/transactions", ledger.transact, methods=["POST"]),
        Route("/v1/credits/organisations", ledger.organisations, methods=["GET"]),
        Route("/v1/credits/organisations", ledger.add, methods=["POST"]),
        Route(organisation, ledger.organisation, methods=["GET"]),
        Route(f"{organisation}/terms", ledger.change, methods=["PUT"]),
        Route(f"{organisation}/statement", ledger.statement, methods=["GET"]),
        Route(f"{organisation}/verify", ledger.verify, methods=["GET"]),
    ]


class _Credits:
    def __init__(self, service: Service) -> None:
        self._ledger = service.credits.ledger
        self._asking = AsyncCredits(service.credits)

    async def transact(self, request: Request) -> Response:
        raw = only(await _within(request, Scope.SPEND, Scope.GRANT), MEMBERS)
        kind = ASKED.get(text(raw, "kind", most=20))
        if kind is None:
            raise refuse(f"`kind` is one of {', '.join(sorted(ASKED))}")
        token = await allowed(request, Scope.SPEND if kind in SPENDING | {Kind.VOID} else Scope.GRANT)
        asked, price, is_priced = _asked(raw, kind, token.name if token else "")
        return _answered(await self._asking.transact(asked, price=price, is_priced=is_priced))

    async def organisations(self, request: Request) -> Response:
        await allowed(request, Scope.READ)
        after = request.query_params.get("after", "")
        limit = number(request, "limit", 100, ENTRIES_MAX)
        found = await in_thread(
            self._ledger.organisations, name(after, "`after`", 400) if after else "", limit
        )
        now_ms = moment_ms(clock.now())
        return answer({"organisations": [receipts.organisation_json(each, now_ms) for each in found]})

    async def add(self, request: Request) -> Response:
        token = await allowed(request, Scope.GRANT)
        raw = only(await document(request), (*TERMS, "organisation", "name"))
        made = await in_thread(
            self._ledger.add,
            _named(raw),
            text(raw, "name", default="", most=ID_MAX_CHARS),
            _terms(raw, Terms()),
            token.name if token else "",
        )
        return answer(receipts.organisation_json(made, moment_ms(clock.now())))

    async def organisation(self, request: Request) -> Response:
        await allowed(request, Scope.READ)
        found = await in_thread(self._ledger.organisation, _organisation(request))
        if found is None:
            raise refuse("there is no such organisation", 404, hint="deploy-gates credits org list")
        return answer(receipts.organisation_json(found, moment_ms(clock.now())))

    async def change(self, request: Request) -> Response:
        token = await allowed(request, Scope.GRANT)
        raw = only(await document(request), (*TERMS, "note"))
        _terms(raw, Terms())  # what is wrong in itself is said before the store is asked
        changed = await in_thread(
            self._ledger.change,
            _organisation(request),
            lambda before: _terms(raw, before),
            actor=token.name if token else "",
            note=text(raw, "note", default="", most=NOTE_MAX_CHARS),
        )
        return answer(receipts.organisation_json(changed, moment_ms(clock.now())))

    async def statement(self, request: Request) -> Response:
        await allowed(request, Scope.READ)
        after = number(request, "after", 0, SIGNED_MAX)
        limit = number(request, "limit", 100, ENTRIES_MAX)
        found = await in_thread(self._ledger.entries, _organisation(request), after=after, limit=limit)
        return answer({"entries": [receipts.entry_json(each) for each in found]})

    async def verify(self, request: Request) -> Response:
        await allowed(request, Scope.READ)
        audited = await in_thread(self._ledger.audit, _organisation(request))
        if audited is None:
            raise refuse("there is no such organisation", 404, hint="deploy-gates credits org list")
        found = audited.organisation
        return answer(
            {
                "organisation": found.id,
                "entries": found.seq,
                "head": found.head,
                "faults": list(audited.faults[:ENTRIES_MAX]),
            }
        )


async def _within(request: Request, *scopes: Scope) -> JsonObject:
    """The body of somebody who may do one of these; strangers are turned away before they are read."""
    for each in scopes:
        try:
            await allowed(request, each)
        except HTTPException as error:
            if error.status_code != 403:
                raise
        else:
            return await document(request)
    told = " nor ".join(f"`{each}`" for each in scopes)
    raise refuse(
        f"this token is for neither {told}", 403, hint=f"deploy-gates token create NAME --scope {scopes[0]}"
    )


def _asked(raw: JsonObject, kind: Kind, actor: str) -> tuple[Transaction, Price | None, bool]:
    """What is asked for, the price that it names, and whether it has to be priced."""
    amount = raw.get("amount")
    usage = raw.get("usage")
    hold_s = raw.get("hold_s", 0)
    if not isinstance(hold_s, int | float) or isinstance(hold_s, bool):
        raise refuse("`hold_s` is no number")
    is_priced = kind in SPENDING and amount is None
    if is_priced and usage is None:
        raise refuse("either `usage` or `amount` says what is used")
    try:
        price = None if raw.get("price") is None else _price(raw["price"])
        transaction = Transaction(
            organisation=_named(raw),
            id=text(raw, "id", most=ID_MAX_CHARS),
            kind=kind,
            amount=0 if amount is None else _signed(raw, "amount", AMOUNT_MAX),
            usage=NO_USAGE if usage is None else receipts.usage_of(usage),
            model=text(raw, "model", default="", most=ID_MAX_CHARS),
            reservation=text(raw, "reservation", default="", most=ID_MAX_CHARS),
            hold_s=min(float(hold_s), HOLD_MAX.total_seconds() + 1),
            actor=actor,
            note=text(raw, "note", default="", most=NOTE_MAX_CHARS),
        )
        if price is not None and price.cost_nanousd(transaction.usage) > AMOUNT_MAX:
            raise ValueError("at that price it costs more than one transaction may")
    except (ValueError, OverflowError) as wrong:
        raise refuse(str(wrong)[:300]) from wrong
    return transaction, price, is_priced


def _price(value: Json) -> Price:
    """The price that somebody names, as strictly as it is described. `ValueError` for anything else."""
    if isinstance(value, dict):
        named = [value.get(key) for key in ("input_usd", "output_usd", "cached_input_usd") if key in value]
        tiers = value.get("tiers", [])
        is_price = all(isinstance(each, str) and _USD.fullmatch(each) for each in named)
        if is_price and isinstance(value.get("source", ""), str) and isinstance(tiers, list):
            for each in tiers:
                _price(each.get("price") if isinstance(each, dict) else None)
            return Price.from_json(value)
    raise ValueError("`price` is no price: dollars per million tokens, as text")


def _answered(made: Answer) -> Response:
    """An answer; one that was refused says so as other errors do, and when to come back."""
    body = receipts.answer_json(made)
    if made.no is None:
        return answer(body)
    wait_s = made.retry_after_s
    headers = {} if wait_s is None else {"Retry-After": str(max(1, math.ceil(wait_s)))}
    return answer({"error": made.reason, "hint": "", **body}, STATUS[made.no], headers)


def _terms(raw: JsonObject, before: Terms) -> Terms:
    """The terms with what the body says; the rest stays."""
    try:
        limits = before.allowances if raw.get("limits") is None else receipts.limits_of(raw["limits"])
        return Terms(
            lowest=before.lowest if raw.get("lowest") is None else _signed(raw, "lowest", AMOUNT_MAX),
            multiplier_ppm=before.multiplier_ppm
            if raw.get("multiplier_ppm") is None
            else whole(raw, "multiplier_ppm", default=PPM, most=MULTIPLIER_MAX_PPM),
            allowances=limits,
        )
    except ValueError as wrong:
        raise refuse(str(wrong)[:300]) from wrong


def _signed(raw: JsonObject, key: str, most: int) -> int:
    value = member(raw, key, int)
    if abs(value) > most:
        raise refuse(f"`{key}` is not from -{most:,} to {most:,}")
    return value


def _named(raw: JsonObject) -> str:
    """The organisation that a body names."""
    try:
        return checked_name(text(raw, "organisation"))
    except ValueError as wrong:
        raise refuse(f"`organisation`: {wrong}") from wrong


def _organisation(request: Request) -> str:
    return name(request.path_params["organisation"], "the organisation")
