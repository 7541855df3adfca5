"""What a JSON Schema allows, as a union of shapes: each has one JSON type and plain bounds.

`$ref`, `allOf`, `anyOf`, lists of types, `enum` and `const` are dissolved here, so that two schemas can be
compared shape by shape. A keyword that is not understood is kept in `opaque`: it narrows the shape, and how
is not known. Answers are therefore yes, no, or `None`: not known.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice, pairwise
from typing import NamedTuple, TypeAlias, TypeVar

from deploy_gates.core.canonical import Json, JsonObject

SHAPES_MAX = 1_000
"""A schema with more alternatives than this is not understood."""
DEPTH_MAX = 64
NUMBERS_MAX = 1_000
"""So many numbers of one range are tried one by one."""
MATCHED_MAX = 200
"""Longer texts are not matched against patterns: some need exponential time."""

_OPAQUE = ("not", "if", "$dynamicRef", "$recursiveRef")
_OPAQUE_OBJECT = (
    "patternProperties",
    "propertyNames",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "unevaluatedProperties",
)
_OPAQUE_ARRAY = ("contains", "unevaluatedItems", "additionalItems")
_FREE_FORMATS = ("password", "binary", "path")
"""Words for what a string is used for: any string has these formats."""
_BESIDE = {"if": ("then", "else"), "contains": ("minContains", "maxContains")}
"""What else says how much such a keyword allows."""


class Opaque(NamedTuple):
    """A keyword that narrows a shape in a way that is not understood."""

    name: str
    says: str = ""
    """Equal for two that mean the same; empty where nobody can tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Values:
    """These values and no others. `null` and booleans are always such."""

    values: tuple[Json, ...]
    opaque: frozenset[Opaque] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """Numbers between two ends; integers where `step` is 1."""

    least: Fraction | None = None
    most: Fraction | None = None
    is_above_least: bool = False
    is_below_most: bool = False
    step: Fraction | None = None
    opaque: frozenset[Opaque] = frozenset()

    @property
    def is_integer(self) -> bool:
        return self.step is not None and self.step.denominator == 1

    def has(self, number: Fraction) -> bool:
        if self.step is not None and (number / self.step).denominator != 1:
            return False
        if self.least is not None and (number < self.least or (number == self.least and self.is_above_least)):
            return False
        return self.most is None or number < self.most or (number == self.most and not self.is_below_most)


@dataclass(frozen=True, kw_only=True, slots=True)
class Strings:
    """Strings of a length, by patterns and formats."""

    least: int = 0
    most: int | None = None
    patterns: frozenset[str] = frozenset()
    formats: frozenset[str] = frozenset()
    opaque: frozenset[Opaque] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrays:
    """Lists: the first items by their place, the rest alike."""

    least: int = 0
    most: int | None = None
    first: tuple[Json, ...] = ()
    rest: Json = True
    is_unique: bool = False
    opaque: frozenset[Opaque] = frozenset()

    def item(self, at: int) -> Json:
        return self.first[at] if at < len(self.first) else self.rest


@dataclass(frozen=True, kw_only=True, slots=True)
class Objects:
    """Objects: properties by name, all others alike."""

    properties: Mapping[str, Json]
    required: frozenset[str] = frozenset()
    others: Json = True
    least: int = 0
    most: int | None = None
    opaque: frozenset[Opaque] = frozenset()

    def property(self, name: str) -> Json:
        return self.properties.get(name, self.others)


Shape: TypeAlias = Values | Numbers | Strings | Arrays | Objects

ANYTHING: tuple[Shape, ...] = (
    Values(values=(None,)),
    Values(values=(True, False)),
    Numbers(),
    Strings(),
    Arrays(),
    Objects(properties={}),
)
_OF_TYPE: dict[str, Shape] = {
    "null": ANYTHING[0],
    "boolean": ANYTHING[1],
    "number": ANYTHING[2],
    "integer": Numbers(step=Fraction(1)),
    "string": ANYTHING[3],
    "array": ANYTHING[4],
    "object": ANYTHING[5],
}


class Schema:
    """A JSON Schema document, dissolved part by part as it is asked for."""

    def __init__(self, document: JsonObject) -> None:
        self.document = document
        self._shapes: dict[int, tuple[Json, tuple[Shape, ...]]] = {}
        self._dissolving: set[int] = set()
        self._cuts = 0
        self._empty: dict[int, tuple[Json, bool]] = {}
        self._deciding: set[int] = set()

    def shapes(self, part: Json) -> tuple[Shape, ...]:
        """What a part of the document allows; none where it allows nothing."""
        if not isinstance(part, dict):
            return () if part is False else ANYTHING
        if (known := self._shapes.get(id(part))) is not None:
            return known[1]
        if id(part) in self._dissolving or len(self._dissolving) > DEPTH_MAX:
            self._cuts += 1
            return _unknown("$ref")
        cuts = self._cuts
        self._dissolving.add(id(part))
        made = tuple(self._dissolved(part))
        self._dissolving.remove(id(part))
        if cuts == self._cuts or not self._dissolving:  # what was cut off by a part above is asked again
            self._shapes[id(part)] = part, made  # the part is kept alive: its id() stands for it
        return made

    def is_empty(self, part: Json) -> bool:
        """Whether no value at all is allowed. An endless recursion counts as allowed."""
        if not isinstance(part, dict):
            return part is False
        if (known := self._empty.get(id(part))) is not None:
            return known[1]
        if id(part) in self._deciding or len(self._deciding) > DEPTH_MAX:
            return False
        self._deciding.add(id(part))
        is_empty = not any(self.is_inhabited(shape) for shape in self.shapes(part))
        self._deciding.remove(id(part))
        self._empty[id(part)] = part, is_empty
        return is_empty

    def is_inhabited(self, shape: Shape) -> bool:
        """Whether some value has this shape, as far as what is in it tells."""
        match shape:
            case Arrays():
                return not any(self.is_empty(shape.item(at)) for at in range(min(shape.least, DEPTH_MAX)))
            case Objects():
                return not any(self.is_empty(shape.property(name)) for name in shape.required)
        return True

    def allows(self, part: Json, value: Json) -> bool | None:
        """Whether `value` is valid; `None` where nobody knows."""
        return any_of(self.has(shape, value) for shape in self.shapes(part))

    def has(self, shape: Shape, value: Json) -> bool | None:
        """Whether `value` has that shape; `None` where nobody knows."""
        found = self._has(shape, value)
        return None if found and shape.opaque else found

    def _has(self, shape: Shape, value: Json) -> bool | None:
        match shape:
            case Values():
                return key(value) in map(key, shape.values)
            case Numbers():
                number = fraction(value)
                return number is not None and shape.has(number)
            case Strings():
                return isinstance(value, str) and _fits(shape, value)
            case Arrays():
                if not isinstance(value, list) or not _counts(shape, len(value)):
                    return False
                if shape.is_unique and len(set(map(key, value))) < len(value):
                    return False
                return all_of(self.allows(shape.item(at), each) for at, each in enumerate(value))
            case Objects():
                if not isinstance(value, dict) or not _counts(shape, len(value)):
                    return False
                if not shape.required <= value.keys():
                    return False
                return all_of(self.allows(shape.property(name), each) for name, each in value.items())

    # --- Dissolving -----------------------------------------------------------------------------

    def _dissolved(self, part: JsonObject) -> Iterable[Shape]:
        made: Iterable[Shape] = self._typed(part)
        for keyword in ("const", "enum"):
            if keyword in part:
                listed = part[keyword]
                values = listed if keyword == "enum" and isinstance(listed, list) else [listed]
                made = self._both(made, [Values(values=tuple(values))])
        if isinstance(ref := part.get("$ref"), str):
            target = self._target(ref)
            made = self._both(made, self.shapes(target) if target is not None else _unknown("$ref"))
        if isinstance(parts := part.get("allOf"), list):
            for each in parts:
                made = self._both(made, self.shapes(each))
        if isinstance(branches := part.get("anyOf"), list):
            made = self._both(made, [shape for each in branches for shape in self.shapes(each)])
        if isinstance(branches := part.get("oneOf"), list):
            made = self._both(made, self._one_of(branches))
        made = list(made)
        return made if len(made) <= SHAPES_MAX else _unknown("anyOf")

    def _one_of(self, branches: Sequence[Json]) -> list[Shape]:
        """As `anyOf`, where no other branch can be meant; where one can, nobody knows which are left."""
        made = [(at, shape) for at, each in enumerate(branches) for shape in self.shapes(each)]
        if len(made) > SHAPES_MAX:
            return list(_unknown("oneOf"))
        opaque = self._opaque({"oneOf": list(branches)}, ["oneOf"])
        return [
            shape
            if all(at == where or are_disjoint(self, shape, self, other) for where, other in made)
            else replace(shape, opaque=shape.opaque | opaque)
            for at, shape in made
        ]

    def _both(self, ones: Iterable[Shape], others: Iterable[Shape]) -> list[Shape]:
        ones, others = list(ones), list(others)
        if len(ones) * len(others) > SHAPES_MAX * len(ANYTHING):
            return list(_unknown("anyOf"))
        met = (self._meet(one, other) for one in ones for other in others)
        return [each for each in met if each is not None]

    def _meet(self, one: Shape, other: Shape) -> Shape | None:
        """What has both shapes, as one shape."""
        opaque = one.opaque | other.opaque
        if isinstance(other, Values) and not isinstance(one, Values):
            one, other = other, one
        match one, other:
            case Values(), _:
                found = [(value, self._has(other, value)) for value in one.values]
                if any(known is None for _, known in found):
                    opaque |= {Opaque("enum")}
                values = tuple(value for value, known in found if known is not False)
                return Values(values=values, opaque=opaque) if values else None
            case Numbers(), Numbers():
                return _meet_numbers(one, other, opaque)
            case Strings(), Strings():
                return _sized(
                    Strings(
                        least=max(one.least, other.least),
                        most=_smaller(one.most, other.most),
                        patterns=one.patterns | other.patterns,
                        formats=one.formats | other.formats,
                        opaque=opaque,
                    )
                )
            case Arrays(), Arrays():
                length = max(len(one.first), len(other.first))
                return _sized(
                    Arrays(
                        least=max(one.least, other.least),
                        most=_smaller(one.most, other.most),
                        first=tuple(_all_of(one.item(at), other.item(at)) for at in range(length)),
                        rest=_all_of(one.rest, other.rest),
                        is_unique=one.is_unique or other.is_unique,
                        opaque=opaque,
                    )
                )
            case Objects(), Objects():
                names = dict.fromkeys([*one.properties, *other.properties])
                return _sized(
                    Objects(
                        properties={
                            name: _all_of(one.property(name), other.property(name)) for name in names
                        },
                        required=one.required | other.required,
                        others=_all_of(one.others, other.others),
                        least=max(one.least, other.least),
                        most=_smaller(one.most, other.most),
                        opaque=opaque,
                    )
                )
        return None

    def _target(self, ref: str) -> Json:
        """What `#/$defs/item` points at; `None` where there is nothing, or where it lies elsewhere."""
        at: Json = self.document
        if ref == "#":
            return at
        if not ref.startswith("#/"):
            return None
        for step in ref[2:].split("/"):
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(at, dict):
                at = at.get(step)
            elif isinstance(at, list) and step.isdecimal() and int(step) < len(at):
                at = at[int(step)]
            else:
                return None
        return at

    # --- One type -------------------------------------------------------------------------------

    def _typed(self, part: JsonObject) -> Iterator[Shape]:
        """What the keywords of one type allow, for each type the part may have."""
        declared = part.get("type", list(_OF_TYPE) if "type" not in part else None)
        names = {str(each) for each in (declared if isinstance(declared, list) else [declared])}
        opaque = self._opaque(part, _OPAQUE)
        for name in _OF_TYPE:
            if name not in names or (name == "integer" and "number" in names):
                continue
            match shape := _OF_TYPE[name]:
                case Values():
                    yield replace(shape, opaque=opaque)
                case Numbers():
                    read = _meet_numbers(shape, _numbers(part), opaque)
                    if read is not None:
                        yield read
                case Strings():
                    yield from _kept(_strings(part, opaque))
                case Arrays():
                    yield from _kept(_arrays(part, opaque | self._opaque(part, _OPAQUE_ARRAY)))
                case Objects():
                    yield from _kept(_objects(part, opaque | self._opaque(part, _OPAQUE_OBJECT)))

    def _opaque(self, part: JsonObject, keywords: Iterable[str]) -> frozenset[Opaque]:
        """The keywords that are not understood. The same words mean the same, unless they refer elsewhere."""
        found = set()
        for keyword in keywords:
            if keyword in part:
                words = {each: part[each] for each in (keyword, *_BESIDE.get(keyword, ())) if each in part}
                says = json.dumps(words, sort_keys=True)
                found.add(Opaque(keyword, "" if "$ref" in says else says))
        return frozenset(found)


def _unknown(name: str) -> tuple[Shape, ...]:
    return tuple(replace(shape, opaque=frozenset({Opaque(name)})) for shape in ANYTHING)


def _numbers(part: JsonObject) -> Numbers:
    least, above = fraction(part.get("minimum")), fraction(part.get("exclusiveMinimum"))
    most, below = fraction(part.get("maximum")), fraction(part.get("exclusiveMaximum"))
    step = fraction(part.get("multipleOf"))
    is_above = above is not None and (least is None or above >= least)
    is_below = below is not None and (most is None or below <= most)
    return Numbers(
        least=above if is_above else least,
        most=below if is_below else most,
        is_above_least=is_above,
        is_below_most=is_below,
        step=step if step else None,
    )


def _meet_numbers(one: Numbers, other: Numbers, opaque: frozenset[Opaque]) -> Numbers | None:
    low = max((one, other), key=lambda each: _low(each))
    high = min((one, other), key=lambda each: _high(each))
    made = Numbers(
        least=low.least,
        is_above_least=low.is_above_least,
        most=high.most,
        is_below_most=high.is_below_most,
        step=_common(one.step, other.step),
        opaque=opaque,
    )
    if made.step is not None:
        made = _on_steps(made, made.step)
    if made.least is None or made.most is None or made.least < made.most:
        return made
    return made if made.least == made.most and made.has(made.least) else None


def _low(shape: Numbers) -> tuple[bool, Fraction, bool]:
    return shape.least is not None, shape.least or Fraction(0), shape.is_above_least


def _high(shape: Numbers) -> tuple[bool, Fraction, bool]:
    return shape.most is None, shape.most or Fraction(0), not shape.is_below_most


def _common(one: Fraction | None, other: Fraction | None) -> Fraction | None:
    """The smallest number that both divide."""
    if one is None or other is None:
        return one or other
    return Fraction(math.lcm(one.numerator, other.numerator), math.gcd(one.denominator, other.denominator))


def _on_steps(shape: Numbers, step: Fraction) -> Numbers:
    """The same numbers, with both ends among them."""
    least, most = shape.least, shape.most
    if least is not None:
        least = (math.floor(least / step) + 1 if shape.is_above_least else math.ceil(least / step)) * step
    if most is not None:
        most = (math.ceil(most / step) - 1 if shape.is_below_most else math.floor(most / step)) * step
    return replace(shape, least=least, most=most, is_above_least=False, is_below_most=False)


def _strings(part: JsonObject, opaque: frozenset[Opaque]) -> Strings:
    pattern, named = part.get("pattern"), part.get("format")
    is_bound = isinstance(named, str) and named not in _FREE_FORMATS
    return Strings(
        least=_count(part.get("minLength")) or 0,
        most=_count(part.get("maxLength")),
        patterns=frozenset([pattern] if isinstance(pattern, str) else []),
        formats=frozenset([str(named)] if is_bound else []),
        opaque=opaque,
    )


def _arrays(part: JsonObject, opaque: frozenset[Opaque]) -> Arrays:
    first, rest = part.get("prefixItems"), part.get("items", True)
    if isinstance(rest, list):  # until 2019 this was `prefixItems`
        rest, opaque = True, opaque | {Opaque("items")}
    return Arrays(
        least=_count(part.get("minItems")) or 0,
        most=_count(part.get("maxItems")),
        first=tuple(first) if isinstance(first, list) else (),
        rest=rest,
        is_unique=part.get("uniqueItems") is True,
        opaque=opaque,
    )


def _objects(part: JsonObject, opaque: frozenset[Opaque]) -> Objects:
    properties, required = part.get("properties"), part.get("required")
    return Objects(
        properties=dict(properties) if isinstance(properties, dict) else {},
        required=frozenset(map(str, required)) if isinstance(required, list) else frozenset(),
        # What matches a pattern is not among the others; so nothing is known of them.
        others=True if "patternProperties" in part else part.get("additionalProperties", True),
        least=_count(part.get("minProperties")) or 0,
        most=_count(part.get("maxProperties")),
        opaque=opaque,
    )


def _kept(shape: _Sized) -> Iterator[_Sized]:
    if (sized := _sized(shape)) is not None:
        yield sized


_Sized = TypeVar("_Sized", Strings, Arrays, Objects)


def _sized(shape: _Sized) -> _Sized | None:
    return None if shape.most is not None and shape.least > shape.most else shape


def _all_of(one: Json, other: Json) -> Json:
    if one is True or other is False:
        return other
    if other is True or one is False or key(one) == key(other):
        return one
    return {"allOf": [one, other]}


def _smaller(one: int | None, other: int | None) -> int | None:
    return min((each for each in (one, other) if each is not None), default=None)


def _count(value: Json) -> int | None:
    return math.ceil(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _counts(shape: Arrays | Objects, count: int) -> bool:
    return shape.least <= count and (shape.most is None or count <= shape.most)


def _fits(shape: Strings, text: str) -> bool | None:
    if len(text) < shape.least or (shape.most is not None and len(text) > shape.most):
        return False
    return all_of([*(_matches(each, text) for each in shape.patterns), *(None for _ in shape.formats)])


def _matches(pattern: str, text: str) -> bool | None:
    if len(text) > MATCHED_MAX:
        return None
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return None


# --- Words on three answers, and on values ------------------------------------------------------


def all_of(answers: Iterable[bool | None]) -> bool | None:
    """Yes if all say yes, no if one says no."""
    found = set(answers)
    return False if False in found else None if None in found else True


def any_of(answers: Iterable[bool | None]) -> bool | None:
    """Yes if one says yes, no if all say no."""
    found = set(answers)
    return True if True in found else None if None in found else False


def key(value: Json) -> Hashable:
    """Equal for values that JSON Schema takes for equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, list):
        return ("list", *map(key, value))
    if isinstance(value, dict):
        return ("object", frozenset((name, key(each)) for name, each in value.items()))
    return type(value) is bool, value


def fraction(value: Json) -> Fraction | None:
    """Exactly the number that was written: `0.1` is a tenth."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return Fraction(str(value)) if math.isfinite(value) else None


# --- Nothing in common --------------------------------------------------------------------------


def are_disjoint(ones: Schema, one: Shape, others: Schema, other: Shape, depth: int = 8) -> bool:
    """Whether surely no value has both shapes; each may be of another document."""
    if isinstance(one, Values):
        return all(others.has(other, value) is False for value in one.values)
    if isinstance(other, Values):
        return all(ones.has(one, value) is False for value in other.values)
    match one, other:
        case Numbers(), Numbers():
            return _meet_numbers(one, other, frozenset()) is None
        case Strings(), Strings():
            return _are_apart(one, other)
        case Arrays(), Arrays():
            both = range(min(max(one.least, other.least), DEPTH_MAX))
            return _are_apart(one, other) or any(
                are_parts_disjoint(ones, one.item(at), others, other.item(at), depth) for at in both
            )
        case Objects(), Objects():
            both_names = sorted(one.required | other.required)
            return _are_apart(one, other) or any(
                are_parts_disjoint(ones, one.property(name), others, other.property(name), depth)
                for name in both_names
            )
    return True


def are_parts_disjoint(ones: Schema, one: Json, others: Schema, other: Json, depth: int = 8) -> bool:
    """Whether surely no value is allowed by both parts."""
    if not depth:
        return False
    return all(
        are_disjoint(ones, left, others, right, depth - 1)
        for left in ones.shapes(one)
        for right in others.shapes(other)
    )


def _are_apart(one: _Sized, other: _Sized) -> bool:
    most = _smaller(one.most, other.most)
    return most is not None and max(one.least, other.least) > most


# --- Types -----------------------------------------------------------------------------------


def families(shape: Shape) -> set[str]:
    """Its JSON types, integers being numbers."""
    return {"number" if each == "integer" else each for each in type_names(shape)}


def of_family(shapes: Sequence[Shape], name: str) -> Iterator[Shape]:
    """What the shapes have of one JSON type."""
    for shape in shapes:
        if isinstance(shape, Values):
            values = tuple(each for each in shape.values if name in families(Values(values=(each,))))
            if values:
                yield replace(shape, values=values)
        elif name in families(shape):
            yield shape


def type_names(shape: Shape) -> set[str]:
    """The JSON types of a shape."""
    match shape:
        case Values():
            return {_type_name(value) for value in shape.values}
        case Numbers():
            return {"integer" if shape.is_integer else "number"}
        case Strings():
            return {"string"}
        case Arrays():
            return {"array"}
        case Objects():
            return {"object"}


def _type_name(value: Json) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    return {int: "integer", str: "string", list: "array", dict: "object"}[type(value)]


# --- All of it covered --------------------------------------------------------------------------


def are_covered(numbers: Numbers, others: Sequence[Shape]) -> bool | None:
    """Whether each of the numbers is among the others. Between all their ends, nothing changes."""
    ends = sorted({end for shape in (numbers, *others) for end in _ends(shape)})
    answers = [_is_among(end, others) for end in ends if numbers.has(end)]
    for low, high in pairwise([None, *ends, None]):
        answers.append(_is_gap_covered(numbers, others, low, high))
    return all_of(answers)


def _is_gap_covered(
    numbers: Numbers, others: Sequence[Shape], low: Fraction | None, high: Fraction | None
) -> bool | None:
    """Of the numbers between two neighbouring ends, both excluded."""
    if low is not None and high is not None:
        inside = (low + high) / 2
    else:
        inside = low + 1 if low is not None else high - 1 if high is not None else Fraction(0)
    if not replace(numbers, step=None).has(inside):
        return True
    around = [each for each in others if isinstance(each, Numbers) and replace(each, step=None).has(inside)]
    answers = [None if each.opaque else True for each in around if _divides(each.step, numbers.step)]
    if numbers.step is None or True in answers:
        return any_of(answers)
    tried = list(islice(_multiples(numbers.step, low, high), NUMBERS_MAX + 1))
    answer = all_of(_is_among(number, others) for number in tried)
    return None if answer and len(tried) > NUMBERS_MAX else answer


def _is_among(number: Fraction, shapes: Iterable[Shape]) -> bool | None:
    return any_of(
        None if shape.opaque else True
        for shape in shapes
        if (shape.has(number) if isinstance(shape, Numbers) else number in _ends(shape))
    )


def _ends(shape: Shape) -> list[Fraction]:
    """Where a shape of numbers begins and ends, or the numbers that it lists."""
    match shape:
        case Numbers():
            ends = [shape.least, shape.most]
        case Values():
            ends = [fraction(value) for value in shape.values]
        case _:
            ends = []
    return [each for each in ends if each is not None]


def _divides(step: Fraction | None, other: Fraction | None) -> bool:
    return step is None or (other is not None and (other / step).denominator == 1)


def _multiples(step: Fraction, low: Fraction | None, high: Fraction | None) -> Iterator[Fraction]:
    """All multiples between two ends, both excluded, away from the end that there is."""
    if low is None and high is not None:
        at, by = math.ceil(high / step) - 1, -1
    else:
        at, by = 0 if low is None else math.floor(low / step) + 1, 1
    while (high is None or at * step < high) and (low is None or at * step > low):
        yield at * step
        at += by
