"""JSON values, their one canonical spelling (RFC 8785), and the digest of it."""

from __future__ import annotations

import hashlib
import json
from typing import TypeAlias

import rfc8785

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
JsonObject: TypeAlias = "dict[str, Json]"

SAFE_INTEGER = 2**53 - 1
"""RFC 8785 spells numbers as IEEE 754 doubles: larger integers have no exact spelling."""


def canonical(value: Json) -> bytes:
    """The canonical JSON of `value` by RFC 8785. `ValueError` for NaN and for integers above 2**53."""
    try:
        return _dumped(_plain(value, with_order=False))
    except _Unusual:
        return rfc8785.dumps(value)


def spelled(value: Json) -> bytes:
    """The canonical JSON a digest is taken of: the bytes in which a config is kept.

    Canonical JSON sorts keys, but models write an object's fields in the order in which the schema names
    them: whether the reason comes before the category or after it makes another answer. So where the
    `properties` of a schema are not in the order of the alphabet, their order is spelled out beside them.
    """
    try:
        return _dumped(_plain(value, with_order=True))
    except _Unusual:
        return rfc8785.dumps(_ordered(value))


def restored(spelling: bytes) -> Json:
    """The value that was spelled so, its fields in their order again. `ValueError` for what is no JSON."""
    value: Json = json.loads(spelling, object_hook=_in_order)
    return value


def digest(value: Json) -> str:
    """SHA-256 of the spelling of `value`, as 64 hexadecimal digits."""
    return digest_of(spelled(value))


def digest_of(spelling: bytes) -> str:
    """The digest of what is spelled so."""
    return hashlib.sha256(spelling).hexdigest()


def short(full: str) -> str:
    """A digest as people read it: its first seven characters."""
    return full[:7]


class _Unusual(Exception):
    """A value that Python's own encoder may spell otherwise than RFC 8785 does."""


def _dumped(value: Json) -> bytes:
    try:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode()
    except ValueError:
        raise _Unusual from None


def _plain(value: Json, *, with_order: bool) -> Json:
    """`value` as Python's encoder, thirty times faster than a general one, spells it canonically."""
    if isinstance(value, str) or value is None or value is True or value is False:
        return value
    if isinstance(value, dict):
        made = {}
        for key, each in value.items():
            if not key.isascii():
                raise _Unusual
            made[key] = _plain(each, with_order=with_order)
        if with_order:
            _spell_order(value, made)
        return made
    if isinstance(value, list):
        return [_plain(each, with_order=with_order) for each in value]
    if isinstance(value, int):
        if abs(value) > SAFE_INTEGER:
            raise _Unusual
        return value
    if value.is_integer() and abs(value) <= SAFE_INTEGER:
        return int(value)
    if not 1e-4 <= abs(value) < 1e16:  # outside, the two put the exponent differently
        raise _Unusual
    return value


def _ordered(value: Json) -> Json:
    if isinstance(value, list):
        return [_ordered(each) for each in value]
    if not isinstance(value, dict):
        return value
    made = {key: _ordered(each) for key, each in value.items()}
    _spell_order(value, made)
    return made


def _spell_order(schema: JsonObject, made: JsonObject) -> None:
    properties = schema.get("properties")
    if isinstance(properties, dict) and list(properties) != sorted(properties):
        made["propertyOrdering"] = list(properties)


def _in_order(read: JsonObject) -> JsonObject:
    properties, order = read.get("properties"), read.get("propertyOrdering")
    if not isinstance(properties, dict) or not isinstance(order, list):
        return read
    names = [str(each) for each in order]
    if names == sorted(names) or sorted(names) != sorted(properties):
        return read  # written by the team, not spelled out here
    made = {key: each for key, each in read.items() if key != "propertyOrdering"}
    return made | {"properties": {name: properties[name] for name in names}}
