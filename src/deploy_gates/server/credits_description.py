"""The part of the description that is about credits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.ledger import AMOUNT_MAX, HOLD_MAX, MULTIPLIER_MAX_PPM, RATE_MAX, RATES, TOKENS_MAX

_TEXT: JsonObject = {"type": "string"}
_NAME: JsonObject = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": r"^[^\x00-\x1f/]+$"}
_NEW: JsonObject = {**_NAME, "not": {"enum": [".", ".."]}}
_ID: JsonObject = {"type": "string", "minLength": 1, "maxLength": 200}
_INTEGER: JsonObject = {"type": "integer"}
_TOKENS: JsonObject = {"type": "integer", "minimum": 0, "maximum": TOKENS_MAX}
_ACCOUNTS = ("available", "reserved", "spent", "issued", "uncovered")
_USAGE = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")


def paths(operation: Callable[..., JsonObject], parameter: Callable[..., JsonObject]) -> JsonObject:
    """The endpoints, in the words of the whole description."""
    organisation: Json = parameter("organisation", "path", _NAME)
    limit: Json = parameter("limit", "query", {"type": "integer", "minimum": 0, "maximum": 1_000})
    found = {"$ref": "#/components/schemas/Organisation"}
    at = "/v1/credits/organisations/{organisation}"
    return {
        "/v1/credits/transactions": {"post": _transact(operation)},
        "/v1/credits/organisations": {
            "get": operation(
                "organisations",
                "Organisations and what they have, by name.",
                _object({"organisations": {"type": "array", "items": found}}),
                parameters=[parameter("after", "query", {"type": "string", "maxLength": 200}), limit],
            ),
            "post": operation(
                "addOrganisation",
                "Add an organisation, without credits.",
                found,
                body=_strict({"organisation": _NEW, "name": _text(200), **_terms()}, ["organisation"]),
                others={"409": "It is there already, on other terms."},
            ),
        },
        at: {"get": operation("organisation", "How one stands.", found, parameters=[organisation])},
        f"{at}/terms": {
            "put": operation(
                "changeTerms",
                "Other limits, another multiplier: written down in the ledger.",
                found,
                parameters=[organisation],
                body=_strict({**_terms(), "note": _text(1_000)}, []),
                others={"409": "The balance is below that limit already."},
            )
        },
        f"{at}/statement": {
            "get": operation(
                "statement",
                "Transactions, the oldest first.",
                _object({"entries": {"type": "array", "items": {"$ref": "#/components/schemas/Entry"}}}),
                parameters=[
                    organisation,
                    parameter("after", "query", {"type": "integer", "minimum": 0, "maximum": 2**53}),
                    limit,
                ],
            )
        },
        f"{at}/verify": {
            "get": operation(
                "verify",
                "Read the ledger from its beginning, and find what is wrong with it.",
                _object(
                    {
                        "organisation": _TEXT,
                        "entries": _INTEGER,
                        "head": _TEXT,
                        "faults": {"type": "array", "items": _TEXT},
                    }
                ),
                parameters=[organisation],
            )
        },
    }


def _transact(operation: Callable[..., JsonObject]) -> JsonObject:
    nothing: JsonObject = {"type": "null"}
    body: dict[str, Any] = {
        "organisation": _NEW,
        "id": _ID,
        "kind": {"type": "string", "enum": ["consume", "correct", "grant", "post", "reserve", "void"]},
        "amount": {"type": ["integer", "null"], "minimum": -AMOUNT_MAX, "maximum": AMOUNT_MAX},
        "usage": {"anyOf": [{"$ref": "#/components/schemas/Usage"}, nothing]},
        "price": {"anyOf": [{"$ref": "#/components/schemas/Price"}, nothing]},
        "model": _text(200),
        "reservation": _text(200),
        "hold_s": {"type": "number", "minimum": 0, "maximum": HOLD_MAX.total_seconds()},
        "note": _text(1_000),
    }
    return operation(
        "transact",
        "Balance, rate limits, price, deduction and audit, in one transaction. "
        "With the same id it is made once, and answered as it was.",
        {"$ref": "#/components/schemas/CreditAnswer"},
        body=_strict(body, ["organisation", "id", "kind"]),
        others={
            "402": "There is not enough left.",
            "409": "The id is another transaction's, or the reservation was closed.",
            "422": "Nobody knows the price, or more is given back than was spent.",
            "429": "Too many requests or tokens; Retry-After says when there is room.",
        },
    )


def schemas() -> JsonObject:
    """What is answered."""
    usage = _strict(dict.fromkeys(_USAGE, _TOKENS), [])
    balance = _object(dict.fromkeys(_ACCOUNTS, _INTEGER))
    limit = _object({"model": _TEXT, "rate": _rate(), "most": _INTEGER, "left": _INTEGER})
    transfer = _object({"debit": _TEXT, "credit": _TEXT, "amount": _INTEGER})
    texts = (
        "id",
        "kind",
        "at",
        "price",
        "model",
        "reservation",
        "actor",
        "note",
        "content",
        "previous",
        "hash",
    )
    numbers = ("seq", "amount", "held", "overrun", "lacking", "base", "multiplier_ppm")
    entry = _object(
        {
            **dict.fromkeys((*texts, "content", "previous", "hash"), _TEXT),
            **dict.fromkeys(numbers, _INTEGER),
            "usage": {"$ref": "#/components/schemas/Usage"},
            "expires_at": {"type": ["string", "null"]},
            "transfers": {"type": "array", "items": transfer},
            "balance": balance,
        }
    )
    answered = _object(
        {
            "id": _TEXT,
            "organisation": _TEXT,
            "accepted": {"type": "boolean"},
            "refused": {"type": ["string", "null"]},
            "reason": _TEXT,
            "limited_model": _TEXT,
            "needed": _INTEGER,
            "retry_after_s": {"type": ["number", "null"]},
            "replayed": {"type": "boolean"},
            "balance": balance,
            "entry": {"anyOf": [{"$ref": "#/components/schemas/Entry"}, {"type": "null"}]},
        }
    )
    organisation = _object(
        {
            "organisation": _TEXT,
            "name": _TEXT,
            "balance": balance,
            "lowest": _INTEGER,
            "multiplier_ppm": _INTEGER,
            "limits": {"type": "array", "items": limit},
            "entries": _INTEGER,
            "head": _TEXT,
        }
    )
    return {"Usage": usage, "Entry": entry, "CreditAnswer": answered, "Organisation": organisation}


def _terms() -> dict[str, Json]:
    most: JsonObject = {"type": "integer", "minimum": 1, "maximum": RATE_MAX}
    limit = _strict({"model": _text(200), "rate": _rate(), "most": most}, ["rate", "most"])
    return {
        "lowest": {"type": ["integer", "null"], "minimum": -AMOUNT_MAX, "maximum": 0},
        "multiplier_ppm": {"type": ["integer", "null"], "minimum": 0, "maximum": MULTIPLIER_MAX_PPM},
        "limits": {"anyOf": [{"type": "array", "items": limit}, {"type": "null"}]},
    }


def _rate() -> JsonObject:
    return {"type": "string", "enum": list(RATES)}


def _object(properties: dict[str, Any], required: list[str] | None = None) -> JsonObject:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else list(required),
    }


def _strict(properties: dict[str, Any], required: list[str]) -> JsonObject:
    """What is sent: a member that nobody reads is a mistake."""
    return {**_object(properties, required), "additionalProperties": False}


def _text(most: int) -> JsonObject:
    return {"type": "string", "maxLength": most}
