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
    return hashlib.sha256(canonical(value)).hexdigest()


def short(full: str) -> str:
    """A digest as people read it: its first seven characters."""
    return full[:7]
