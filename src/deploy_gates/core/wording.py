"""What a schema allows, in the words of people: `an integer from 0 to 10`, `a list of 2 to 5 items`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction

from deploy_gates.core.canonical import Json
from deploy_gates.core.shapes import Arrays, Numbers, Objects, Shape, Strings, Values, type_names

NAMED_MAX = 5
"""Of a longer list so many are named, and the rest is counted."""
SPELT_MAX = 60
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def in_words(shapes: Sequence[Shape]) -> str:
    """What may be there: `any string or null`."""
    return _or(list(dict.fromkeys(map(_shape, shapes))))


def types_in_words(shapes: Sequence[Shape]) -> str:
    """Its types by JSON Schema's names: `string or null`."""
    found = {name for shape in shapes for name in type_names(shape)}
    if "number" in found:
        found.discard("integer")
    return _or(sorted(found, key=TYPES.index))


def values_in_words(values: Sequence[Json]) -> str:
    """Values one by one, the first of many."""
    shown = [f"`{_spelt(value)}`" for value in values[:NAMED_MAX]]
    return _or(shown if len(values) <= NAMED_MAX else [*shown, f"{len(values) - NAMED_MAX} more"])


def _or(words: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), *words[-1:]))) or "nothing"


def _spelt(value: Json) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SPELT_MAX else text[: SPELT_MAX - 1] + "…"


def _shape(shape: Shape) -> str:
    match shape:
        case Values():
            return values_in_words(shape.values)
        case Numbers():
            step = "" if shape.step in (None, 1) else f" that is a multiple of {_number(shape.step)}"
            return f"{'an integer' if shape.is_integer else 'a number'}{_range(shape)}{step}"
        case Strings():
            bounds = _count(shape.least, shape.most, "character", "characters")
            narrow = [f" that matches `{_spelt(each)}`" for each in sorted(shape.patterns)]
            narrow += [f" of the format {each}" for each in sorted(shape.formats)]
            return f"a string{bounds}{''.join(narrow)}" if bounds or narrow else "any string"
        case Arrays():
            same = " that all differ" if shape.is_unique else ""
            bounds = _count(shape.least, shape.most, "item", "items") or (" of items" if same else "")
            return f"a list{bounds}{same}"
        case Objects():
            return f"an object{_count(shape.least, shape.most, 'property', 'properties')}"


def _range(shape: Numbers) -> str:
    least, most = _number(shape.least), _number(shape.most)
    if least and most and not shape.is_above_least and not shape.is_below_most:
        return f" from {least} to {most}"
    low = f" {'above' if shape.is_above_least else 'of at least'} {least}" if least else ""
    high = f" {'below' if shape.is_below_most else 'of at most'} {most}" if most else ""
    return low + (" and" if low and high else "") + high


def _number(value: Fraction | None) -> str:
    if value is None:
        return ""
    return str(value.numerator) if value.denominator == 1 else f"{float(value):g}"


def _count(least: int, most: int | None, one: str, many: str) -> str:
    if most is None:
        return f" of at least {least} {one if least == 1 else many}" if least else ""
    if least in (0, most):
        return f" of {'' if least == most else 'at most '}{most} {one if most == 1 else many}"
    return f" of {least} to {most} {many}"
