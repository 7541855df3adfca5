"""The rows of the ledger, which are the same in both engines, and what terms an organisation can have."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from deploy_gates.core.canonical import spelled
from deploy_gates.core.cost import Price, Usage
from deploy_gates.core.errors import Refusal, Refused
from deploy_gates.core.ledger import (
    Allowance,
    Balance,
    Entry,
    Kind,
    Organisation,
    Reservation,
    Terms,
)

PAGE = 1_000
"""How many entries are read at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Audited:
    """What reading a whole ledger came to."""

    organisation: Organisation
    faults: tuple[str, ...]


# --- Terms ---------------------------------------------------------------------------------------


def as_added(found: Organisation, name: str, terms: Terms) -> Organisation:
    """The organisation that is there already. `Refused` where it is another one."""
    if found.name != name or not is_same(found.terms, terms):
        raise Refused(
            Refusal.STATE,
            f"there is an organisation {found.id} already, on other terms, and nothing was changed",
            hint=f"deploy-gates credits limits {found.id}",
        )
    return found


def is_same(terms: Terms, others: Terms) -> bool:
    """Whether both say the same, however much of their limits is used."""
    one, other = (
        replace(each, allowances=tuple(replace(limit, full_at_us=0) for limit in each.allowances))
        for each in (sorted_terms(terms), sorted_terms(others))
    )
    return one == other


def sorted_terms(terms: Terms) -> Terms:
    """The same terms, with limits in the order in which they are kept."""
    return replace(
        terms, allowances=tuple(sorted(terms.allowances, key=lambda each: (each.model, each.rate)))
    )


def checked_terms(id: str, found: Organisation | None, change: Callable[[Terms], Terms]) -> Terms:
    """What `change` makes of the terms of an organisation. `Refused` where that cannot be."""
    if found is None:
        raise Refused(
            Refusal.UNKNOWN,
            f"there is no organisation {id}, and nothing was changed",
            hint="deploy-gates credits org list",
        )
    terms = sorted_terms(change(found.terms))
    if found.balance.available < terms.lowest:
        raise Refused(
            Refusal.STATE,
            f"the balance of {id} is below that limit already, and nothing was changed",
            hint=f"deploy-gates credits grant {id} …",
        )
    return terms


# --- Rows ---------------------------------------------------------------------------------------

ENTRY_COLUMNS = (
    "organisation",
    "seq",
    "id",
    "kind",
    "reservation",
    "model",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "price",
    "base",
    "multiplier_ppm",
    "amount",
    "held",
    "lacking",
    "expires_at_ms",
    "content",
    "actor",
    "note",
    "at_ms",
    "available",
    "reserved",
    "spent",
    "issued",
    "uncovered",
    "previous",
    "hash",
)
"""In the order of the table."""


def of_entry(entry: Entry) -> tuple[object, ...]:
    """The columns of an entry, in that order."""
    usage, balance = entry.usage, entry.balance
    return (
        entry.organisation,
        entry.seq,
        entry.id,
        entry.kind.value,
        entry.reservation,
        entry.model,
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
        entry.price,
        entry.base,
        entry.multiplier_ppm,
        entry.amount,
        entry.held,
        entry.lacking,
        entry.expires_at_ms,
        entry.content,
        entry.actor,
        entry.note,
        entry.at_ms,
        balance.available,
        balance.reserved,
        balance.spent,
        balance.issued,
        balance.uncovered,
        entry.previous,
        entry.hash,
    )


def entry_of(row: Sequence[Any]) -> Entry:
    """The entry of such a row."""
    return Entry(
        organisation=row[0],
        seq=row[1],
        id=row[2],
        kind=_KINDS[row[3]],
        reservation=row[4],
        model=row[5],
        usage=Usage(
            input_tokens=row[6], cached_input_tokens=row[7], output_tokens=row[8], reasoning_tokens=row[9]
        ),
        price=row[10],
        base=row[11],
        multiplier_ppm=row[12],
        amount=row[13],
        held=row[14],
        lacking=row[15],
        expires_at_ms=row[16],
        content=row[17],
        actor=row[18],
        note=row[19],
        at_ms=row[20],
        balance=Balance(
            available=row[21], reserved=row[22], spent=row[23], issued=row[24], uncovered=row[25]
        ),
        previous=row[26],
        hash=row[27],
    )


def organisation_of(row: Mapping[str, Any], allowances: tuple[Allowance, ...]) -> Organisation:
    """The organisation of a row, with its limits."""
    return Organisation(
        id=row["id"],
        name=row["name"],
        terms=Terms(lowest=row["lowest"], multiplier_ppm=row["multiplier_ppm"], allowances=allowances),
        balance=Balance(
            available=row["available"],
            reserved=row["reserved"],
            spent=row["spent"],
            issued=row["issued"],
            uncovered=row["uncovered"],
        ),
        seq=row["seq"],
        head=row["head"],
        changed_at_ms=row["changed_at_ms"],
    )


def allowance_of(row: Mapping[str, Any]) -> Allowance:
    """The limit of a row."""
    return Allowance(model=row["model"], rate=row["rate"], most=row["most"], full_at_us=row["full_at_us"])


def reservation_of(row: Mapping[str, Any]) -> Reservation:
    """The reservation of a row."""
    return Reservation(
        id=row["id"],
        model=row["model"],
        amount=row["amount"],
        tokens=row["tokens"],
        expires_at_ms=row["expires_at_ms"],
    )


def price_spelled(price: Price) -> tuple[str, str]:
    """The digest of a price, and how it is written down."""
    body = spelled(price.to_json())
    return sha256(body).hexdigest(), body.decode()


def price_of(body: str) -> Price:
    """The price written so."""
    return Price.from_json(json.loads(body))


_KINDS = {kind.value: kind for kind in Kind}
