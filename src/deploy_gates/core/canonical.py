"""JSON values, their one canonical spelling (RFC 8785), and the digest of it."""

from __future__ import annotations

import hashlib
from typing import TypeAlias

import rfc8785

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
JsonObject: TypeAlias = "dict[str, Json]"

SAFE_INTEGER = 2**53 - 1
"""RFC 8785 spells numbers as IEEE 754 doubles: larger integers have no exact spelling."""


def canonical(value: Json) -> bytes:
    """The canonical JSON of `value` by RFC 8785. `ValueError` for NaN and for integers above 2**53."""
    return rfc8785.dumps(value)


def digest(value: Json) -> str:
    """SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(_ordered(value))).hexdigest()


def _ordered(value: Json) -> Json:
    """`value` with the order of a schema's properties spelled out, where it is not that of the alphabet.

    Canonical JSON sorts keys, but models write an object's fields in the order in which the schema names
    them: whether the reason comes before the category or after it makes another answer.
    """
    if isinstance(value, list):
        return [_ordered(each) for each in value]
    if not isinstance(value, dict):
        return value
    made = {key: _ordered(each) for key, each in value.items()}
    properties = value.get("properties")
    if isinstance(properties, dict) and list(properties) != sorted(properties):
        made["propertyOrdering"] = list(properties)
    return made


def short(full: str) -> str:
    """A digest as people read it: its first seven characters."""
    return full[:7]
