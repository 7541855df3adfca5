"""Answers, entries and organisations of the ledger as JSON, and back; amounts are micro-credits."""

from __future__ import annotations

from datetime import UTC, datetime

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.cost import Usage
from deploy_gates.core.ledger import (
    RATES,
    Allowance,
    Answer,
    Balance,
    Entry,
    Kind,
    No,
    Organisation,
    transfers_of,
)


def balance_json(balance: Balance) -> JsonObject:
    """The five accounts."""
    return {
        "available": balance.available,
        "reserved": balance.reserved,
        "spent": balance.spent,
        "issued": balance.issued,
        "uncovered": balance.uncovered,
    }


def entry_json(entry: Entry) -> JsonObject:
    """A transaction as it was made, with its transfers."""
    transfers: list[Json] = [
        {"debit": each.debit.value, "credit": each.credit.value, "amount": each.amount}
        for each in transfers_of(entry)
    ]
    return {
        "seq": entry.seq,
        "id": entry.id,
        "kind": entry.kind.value,
        "at": moment(entry.at_ms),
        "amount": entry.amount,
        "held": entry.held,
        "overrun": entry.overrun,
        "lacking": entry.lacking,
        "base": entry.base,
        "multiplier_ppm": entry.multiplier_ppm,
        "price": entry.price,
        "model": entry.model,
        "usage": usage_json(entry.usage),
        "reservation": entry.reservation,
        "expires_at": moment(entry.expires_at_ms) if entry.expires_at_ms else None,
        "actor": entry.actor,
        "note": entry.note,
        "content": entry.content,
        "transfers": transfers,
        "balance": balance_json(entry.balance),
        "previous": entry.previous,
        "hash": entry.hash,
    }


def answer_json(answer: Answer) -> JsonObject:
    """An answer, whether it is yes or no."""
    return {
        "id": answer.transaction,
        "organisation": answer.organisation,
        "accepted": answer.accepted,
        "refused": answer.no.value if answer.no else None,
        "reason": answer.reason,
        "limited_model": answer.limited_model,
        "needed": answer.needed,
        "retry_after_s": answer.retry_after_s,
        "replayed": answer.replayed,
        "balance": balance_json(answer.balance),
        "entry": entry_json(answer.entry) if answer.entry else None,
    }


def organisation_json(organisation: Organisation, now_ms: int) -> JsonObject:
    """An organisation as it stands, and what is left of its limits."""
    limits: list[Json] = [
        {"model": each.model, "rate": each.rate, "most": each.most, "left": each.left(now_ms * 1000)}
        for each in organisation.terms.allowances
    ]
    return {
        "organisation": organisation.id,
        "name": organisation.name,
        "balance": balance_json(organisation.balance),
        "lowest": organisation.terms.lowest,
        "multiplier_ppm": organisation.terms.multiplier_ppm,
        "limits": limits,
        "entries": organisation.seq,
        "head": organisation.head,
    }


def usage_json(usage: Usage) -> JsonObject:
    """Tokens."""
    return {
        "input_tokens": usage.input_tokens,
        "cached_input_tokens": usage.cached_input_tokens,
        "output_tokens": usage.output_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }


def usage_of(value: Json) -> Usage:
    """Tokens that are written so. `ValueError` for anything else."""
    if not isinstance(value, dict):
        raise ValueError("`usage` is no object")
    known = usage_json(Usage(input_tokens=0, output_tokens=0))
    if unknown := sorted(set(value) - set(known)):
        raise ValueError(f"`usage` has no {', '.join(unknown)[:100]}: it has {', '.join(known)}")
    return Usage(
        input_tokens=_whole(value, "input_tokens"),
        output_tokens=_whole(value, "output_tokens"),
        cached_input_tokens=_whole(value, "cached_input_tokens"),
        reasoning_tokens=_whole(value, "reasoning_tokens"),
    )


def answer_of(value: Json) -> Answer:
    """The answer that is written so. `ValueError` for anything else."""
    try:
        if not isinstance(value, dict):
            raise KeyError("answer")
        refused, entry, retry = value["refused"], value["entry"], value["retry_after_s"]
        return Answer(
            transaction=str(value["id"]),
            organisation=str(value["organisation"]),
            entry=None if entry is None else _entry_of(entry, str(value["organisation"])),
            no=None if refused is None else No(str(refused)),
            balance=_balance_of(value["balance"]),
            needed=_whole(value, "needed"),
            retry_after_s=float(retry) if isinstance(retry, int | float) else None,
            replayed=value["replayed"] is True,
            limited_model=str(value["limited_model"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"this is no answer of a ledger: {error}") from error


def limits_of(value: Json) -> tuple[Allowance, ...]:
    """Limits that are written so. `ValueError` for anything else."""
    if not isinstance(value, list):
        raise ValueError("`limits` is no list")
    limits = []
    for each in value:
        if not isinstance(each, dict) or set(each) - {"model", "rate", "most"}:
            raise ValueError("a limit has a `rate`, a `most`, and perhaps a `model`")
        rate, model = each.get("rate"), each.get("model", "")
        if not isinstance(rate, str) or rate not in RATES:
            raise ValueError(f"`rate` is one of {', '.join(RATES)}")
        if not isinstance(model, str):
            raise ValueError("`model` is no text")
        limits.append(Allowance(model=model, rate=rate, most=_whole(each, "most")))
    if len({(each.model, each.rate) for each in limits}) != len(limits):
        raise ValueError("a limit is there twice")
    return tuple(limits)


def moment(at_ms: int) -> str:
    """When, for people and machines."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")


def _entry_of(value: Json, organisation: str) -> Entry:
    if not isinstance(value, dict):
        raise KeyError("entry")
    at, expires = datetime.fromisoformat(str(value["at"])), value["expires_at"]
    return Entry(
        organisation=organisation,
        seq=_whole(value, "seq"),
        id=str(value["id"]),
        kind=Kind(str(value["kind"])),
        reservation=str(value["reservation"]),
        model=str(value["model"]),
        usage=usage_of(value["usage"]),
        price=str(value["price"]),
        base=_whole(value, "base"),
        multiplier_ppm=_whole(value, "multiplier_ppm"),
        amount=_whole(value, "amount"),
        held=_whole(value, "held"),
        lacking=_whole(value, "lacking"),
        expires_at_ms=round(datetime.fromisoformat(str(expires)).timestamp() * 1000) if expires else 0,
        content=str(value["content"]),
        actor=str(value["actor"]),
        note=str(value["note"]),
        at_ms=round(at.timestamp() * 1000),
        balance=_balance_of(value["balance"]),
        previous=str(value["previous"]),
        hash=str(value["hash"]),
    )


def _balance_of(value: Json) -> Balance:
    if not isinstance(value, dict):
        raise KeyError("balance")
    return Balance(
        available=_whole(value, "available"),
        reserved=_whole(value, "reserved"),
        spent=_whole(value, "spent"),
        issued=_whole(value, "issued"),
        uncovered=_whole(value, "uncovered"),
    )


def _whole(value: JsonObject, name: str) -> int:
    number = value.get(name, 0)
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"`{name}` is no whole number")
    return number
