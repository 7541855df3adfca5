"""Instances of a JSON Schema: few of them, that between them show all it allows.

Made for two questions: does a check accept whatever the schema accepts, and does a consumer read it?
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice, zip_longest
from typing import NamedTuple

from deploy_gates.core.canonical import Json, JsonObject

VALUES_MAX = 5_000
"""An instance with more values than this is not made: twenty nested references can ask for a million."""
LENGTH_MAX = 2_000
"""No string is made longer than this, whatever `maxLength` allows."""
ITEMS_MAX = 20
"""No list is made longer than this, unless `minItems` asks for more."""
DEPTH_MAX = 100
RECURSIONS = (3, 6, 12, 24)
"""How often recursive references may be entered: the first number that yields an instance is taken."""


def instances(schema: JsonObject, limit: int = 64) -> list[Json]:
    """At most `limit` different instances of `schema`: a small one, a large one, then its variations.

    Between them they hold each enum value, both booleans, both ends of every bound, each `anyOf` branch, and
    `null` where it is allowed, unless `limit` cuts them off. All properties vary at once: the number grows
    with the widest choice and not with the product of all. `not`, `if`, `dependentRequired`, and patterns
    with look-around are not understood, so validate what comes back before concluding from it.
    """
    for recursions in RECURSIONS:
        found = _Making(document=schema, limit=limit).variants(schema, recursions)
        if found:
            return [json.loads(json.dumps(each.value)) for each in found]  # they share parts: copy
    return []


class _Variant(NamedTuple):
    value: Json
    size: int = 1
    """How many values it holds, itself included."""


@dataclass
class _Making:
    """One schema document, and what was made of its parts already."""

    document: JsonObject
    limit: int
    made: dict[tuple[int, int], list[_Variant]] = field(default_factory=dict)
    merged: list[JsonObject] = field(default_factory=list)
    """Kept alive, for `made` knows schemas by their `id()`."""
    depth: int = 0

    def variants(self, schema: Json, recursions: int) -> list[_Variant]:
        """Small first, large second; none where the schema allows none, or none within the bounds."""
        if not isinstance(schema, dict):
            return [_Variant("text"), _Variant(1), _Variant(None)] if schema is True else []
        key = (id(schema), recursions)
        if key not in self.made:
            if self.depth >= DEPTH_MAX:
                return []
            self.depth += 1
            sized = (each for each in self._expanded(schema, recursions) if each.size <= VALUES_MAX)
            self.made[key] = list(islice(_distinct(sized), self.limit))
            self.depth -= 1
        return self.made[key]

    def _expanded(self, schema: JsonObject, recursions: int) -> Iterable[_Variant]:
        """Take away one keyword that refers elsewhere, until only a type and its bounds are left."""
        if isinstance(ref := schema.get("$ref"), str):
            target = _resolve(self.document, ref)
            if _refers(target, ref, self.document):
                recursions -= 1
            if recursions < 0:
                return []
            return self._merged(_without(schema, "$ref", "$defs"), [target], recursions)
        if isinstance(parts := schema.get("allOf"), list):
            return self._merged(_without(schema, "allOf"), parts, recursions)
        for keyword in ("anyOf", "oneOf"):
            if isinstance(branches := schema.get(keyword), list):
                rest = _without(schema, keyword)
                return _in_turn([self._merged(rest, [branch], recursions) for branch in branches])
        if "const" in schema:
            return [_counted(schema["const"])]
        if isinstance(values := schema.get("enum"), list):
            return map(_counted, values)
        return _in_turn([list(self._typed(name, schema, recursions)) for name in _types(schema)])

    def _merged(self, rest: JsonObject, parts: Sequence[Json], recursions: int) -> list[_Variant]:
        """The variants of a schema that must satisfy all of these."""
        if any(each is False or each is None for each in parts):
            return []
        schemas = [each for each in (rest, *parts) if isinstance(each, dict) and each]
        if len(schemas) == 1:
            return self.variants(schemas[0], recursions)
        merged = _merge(schemas)
        self.merged.append(merged)
        return self.variants(merged, recursions)

    def _typed(self, name: str, schema: JsonObject, recursions: int) -> Iterable[_Variant]:
        match name:
            case "object":
                return self._objects(schema, recursions)
            case "array":
                return self._arrays(schema, recursions)
            case "string":
                return map(_Variant, _strings(schema))
            case "integer" | "number":
                return map(_Variant, _numbers(schema, is_integer=name == "integer"))
            case "boolean":
                return [_Variant(False), _Variant(True)]
            case "null":
                return [_Variant(None)]
        return []

    def _objects(self, schema: JsonObject, recursions: int) -> Iterator[_Variant]:
        declared, required = schema.get("properties"), schema.get("required")
        properties = declared if isinstance(declared, dict) else {}
        needed = [str(each) for each in required] if isinstance(required, list) else []
        others = schema.get("additionalProperties", True)
        choices = {
            name: self.variants(properties.get(name, others), recursions)
            for name in dict.fromkeys([*properties, *needed])
        }
        if not all(choices[name] for name in needed):
            return
        yield _object({name: choices[name][0] for name in needed})
        if not choices and others is not False:
            yield from (_object({"key": each}) for each in self.variants(others, recursions))
        present = {name: found for name, found in choices.items() if found}
        yield _object({name: found[min(1, len(found) - 1)] for name, found in present.items()})
        for row in range(max(map(len, present.values()), default=0)):
            # Shifted from property to property: two booleans are not always equal.
            yield _object(
                {name: found[(row + at) % len(found)] for at, (name, found) in enumerate(present.items())}
            )

    def _arrays(self, schema: JsonObject, recursions: int) -> Iterator[_Variant]:
        least, most = _count(schema, "minItems", 0), _count(schema, "maxItems", ITEMS_MAX)
        first = schema.get("prefixItems")
        heads = [self.variants(each, recursions) for each in first] if isinstance(first, list) else []
        tail = self.variants(schema.get("items", True), recursions)
        step = 1 if schema.get("uniqueItems") is True else 0
        usual = max(least, min(most, max(1, len(heads))))
        for length in dict.fromkeys([least, max(least, min(most, ITEMS_MAX)), usual]):
            choices = [heads[at] if at < len(heads) else tail for at in range(length)]
            if length > most or not all(choices):
                continue
            for row in range(max(map(len, choices), default=1)):
                items = [found[(row + at * step) % len(found)] for at, found in enumerate(choices)]
                if not step or len(list(_distinct(items))) == length:
                    yield _array(items)


# --- Putting together ---------------------------------------------------------------------------


def _object(parts: dict[str, _Variant]) -> _Variant:
    return _Variant(
        {name: each.value for name, each in parts.items()}, 1 + sum(each.size for each in parts.values())
    )


def _array(items: Sequence[_Variant]) -> _Variant:
    return _Variant([each.value for each in items], 1 + sum(each.size for each in items))


def _counted(value: Json) -> _Variant:
    """A value somebody wrote out: as large as its text, roughly."""
    return _Variant(value, 1 + len(json.dumps(value)) // 4)


def _distinct(variants: Iterable[_Variant]) -> Iterator[_Variant]:
    seen = set()
    for each in variants:
        spelling = json.dumps(each.value, sort_keys=True) if each.size <= VALUES_MAX else ""
        if spelling not in seen:
            seen.add(spelling)
            yield each


def _in_turn(alternatives: Sequence[Sequence[_Variant]]) -> list[_Variant]:
    """One of each, then the next of each: a limit then cuts none of them off as a whole."""
    return [each for row in zip_longest(*alternatives) for each in row if each is not None]


# --- Reading a schema ---------------------------------------------------------------------------


def _without(schema: JsonObject, *keywords: str) -> JsonObject:
    return {key: value for key, value in schema.items() if key not in keywords}


def _resolve(document: JsonObject, ref: str) -> Json:
    """What `#/$defs/item` points at; `None` where there is nothing, or where it lies elsewhere."""
    if ref == "#":
        return document
    at: Json = document
    for part in ref.removeprefix("#/").split("/") if ref.startswith("#/") else [""]:
        part = part.replace("~1", "/").replace("~0", "~")
        at = at.get(part) if isinstance(at, dict) else None
    return at


def _refers(schema: Json, ref: str, document: JsonObject) -> bool:
    """Whether `schema` leads back to `ref`, directly or through others."""
    seen: set[str] = set()
    waiting = [schema]
    while waiting:
        at = waiting.pop()
        if isinstance(at, dict):
            target = at.get("$ref")
            if target == ref:
                return True
            if isinstance(target, str) and target not in seen:
                seen.add(target)
                waiting.append(_resolve(document, target))
            waiting += at.values()
        elif isinstance(at, list):
            waiting += at
    return False


def _merge(schemas: Sequence[JsonObject]) -> JsonObject:
    """One schema for all of them: what several of them bound is bound by the last."""
    merged: JsonObject = {}
    for schema in schemas:
        for key, value in schema.items():
            there = merged.get(key)
            if key == "properties" and isinstance(there, dict) and isinstance(value, dict):
                shared: JsonObject = {
                    name: {"allOf": [there[name], value[name]]} for name in there if name in value
                }
                merged[key] = there | value | shared
            elif key in ("required", "allOf") and isinstance(there, list) and isinstance(value, list):
                merged[key] = there + value
            elif key == "enum" and isinstance(there, list) and isinstance(value, list):
                merged[key] = [each for each in there if each in value]
            elif key in ("anyOf", "oneOf", "$ref") and key in merged:
                both: list[Json] = [{key: value}]
                inner = merged.get("allOf")
                merged["allOf"] = [*inner, *both] if isinstance(inner, list) else both
            else:
                merged[key] = value
    return merged


def _types(schema: JsonObject) -> list[str]:
    declared = schema.get("type")
    if isinstance(declared, str):
        return [declared]
    if isinstance(declared, list):
        return [str(each) for each in declared]
    if "properties" in schema or "required" in schema:
        return ["object"]
    if "items" in schema or "prefixItems" in schema:
        return ["array"]
    return ["string", "integer", "null", "boolean"]


def _count(schema: JsonObject, key: str, default: int) -> int:
    value = schema.get(key)
    return int(value) if isinstance(value, int | float) else default


# --- Scalars ------------------------------------------------------------------------------------

FORMATS = {
    "date-time": ("2026-11-23T09:14:02Z", "1999-12-31T23:59:59+02:00"),
    "date": ("2026-11-23", "1999-12-31"),
    "time": ("09:14:02Z", "23:59:59Z"),
    "duration": ("P1D", "PT90S"),
    "email": ("ada@example.com", "lin@example.org"),
    "hostname": ("example.com", "a.example.org"),
    "uri": ("https://example.com/", "https://example.org/a?b=c"),
    "ipv4": ("192.0.2.1", "198.51.100.7"),
    "ipv6": ("2001:db8::1", "::1"),
    "uuid": ("123e4567-e89b-42d3-a456-426614174000", "00000000-0000-4000-8000-000000000000"),
}


def _strings(schema: JsonObject) -> Iterator[str]:
    least, most = _count(schema, "minLength", 0), _count(schema, "maxLength", LENGTH_MAX)
    made: Iterable[str]
    if isinstance(pattern := schema.get("pattern"), str):
        made = [text for extra in (0, 1, 7, least) for text in _matching(pattern, extra)]
    elif isinstance(name := schema.get("format"), str) and name in FORMATS:
        made = FORMATS[name]
    else:
        made = ("x" * least, "y" * min(most, LENGTH_MAX), "a word", "Grüße, 世界")
    yield from (text for text in made if least <= len(text) <= most)


USUAL_NUMBERS = (Fraction(0), Fraction(1), Fraction(-1), Fraction(1_000_000), Fraction(1, 2))


def _numbers(schema: JsonObject, *, is_integer: bool) -> Iterator[Json]:
    step = _fraction(schema.get("multipleOf"))
    if is_integer:
        step = Fraction((step or Fraction(1)).numerator)
    beside = step or Fraction(1, 1000)
    above, below = _fraction(schema.get("exclusiveMinimum")), _fraction(schema.get("exclusiveMaximum"))
    lows = [_fraction(schema.get("minimum")), None if above is None else above + beside]
    highs = [_fraction(schema.get("maximum")), None if below is None else below - beside]
    least = max((each for each in lows if each is not None), default=None)
    most = min((each for each in highs if each is not None), default=None)
    middle = None if least is None or most is None else (least + most) / 2
    for point in (least, most, middle, *USUAL_NUMBERS):
        if point is None:
            continue
        near = (point,) if step is None else (math.ceil(point / step) * step, math.floor(point / step) * step)
        for value in near:
            if (least is None or value >= least) and (most is None or value <= most):
                yield int(value) if value.denominator == 1 else float(value)
                break


def _fraction(value: Json) -> Fraction | None:
    """Exactly the number that was written: `0.1` is a tenth."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Fraction(str(value)) if is_number else None


# --- Patterns -----------------------------------------------------------------------------------

_CLASSES = {"d": "0", "w": "a", "s": " ", "D": "a", "W": " ", "S": "a"}
_OTHERS = "aA0 -_.~"


class _Unknown(ValueError):
    """A pattern that uses more than literals, classes, groups, choices, and counts."""


def _matching(pattern: str, extra: int) -> Iterator[str]:
    """A text that matches `pattern`, each open count repeated `extra` times more; none if too clever."""
    try:
        made, end = _choice(pattern, 0, extra)
    except (_Unknown, IndexError):
        return
    if end == len(pattern):
        yield made


def _choice(pattern: str, at: int, extra: int) -> tuple[str, int]:
    """The first alternative; the others are only read past."""
    made, at = _sequence(pattern, at, extra)
    while at < len(pattern) and pattern[at] == "|":
        _, at = _sequence(pattern, at + 1, extra)
    return made, at


def _sequence(pattern: str, at: int, extra: int) -> tuple[str, int]:
    made = ""
    while at < len(pattern) and pattern[at] not in "|)":
        atom, at = _atom(pattern, at, extra)
        count = re.match(r"\{(\d+)(,?)(\d*)\}|[*+?]", pattern[at:])
        least, most = 1, 1
        if count is not None:
            at += count.end()
            if at < len(pattern) and pattern[at] in "?+":
                at += 1
            if count[1]:
                least = int(count[1])
                most = int(count[3]) if count[3] else least + (LENGTH_MAX if count[2] else 0)
            else:
                least, most = {"*": (0, LENGTH_MAX), "+": (1, LENGTH_MAX), "?": (0, 1)}[count[0]]
        made += atom * min(least + extra, most)
        if len(made) > LENGTH_MAX:
            raise _Unknown
    return made, at


def _atom(pattern: str, at: int, extra: int) -> tuple[str, int]:
    sign = pattern[at]
    if sign in "^$":
        return "", at + 1
    if sign == ".":
        return "a", at + 1
    if sign == "\\":
        return _escaped(pattern[at + 1]), at + 2
    if sign == "[":
        return _of_class(pattern, at + 1)
    if sign == "(":
        opening = re.match(r"\((\?:|\?P?<\w+>)?(?!\?)", pattern[at:])
        if opening is None:
            raise _Unknown
        made, at = _choice(pattern, at + opening.end(), extra)
        return made, at + len(pattern[at])  # an IndexError where the group is never closed
    if sign in "*+?{":
        raise _Unknown
    return sign, at + 1


def _escaped(sign: str) -> str:
    if sign in _CLASSES:
        return _CLASSES[sign]
    if sign.isalnum():
        raise _Unknown  # \b, \p{..}, a back-reference
    return sign


def _of_class(pattern: str, at: int) -> tuple[str, int]:
    end = at + 1
    while pattern[end] != "]" or pattern[end - 1] == "\\":
        end += 1
    body = pattern[at:end]
    if not body.startswith("^"):
        return (_escaped(body[1]) if body[0] == "\\" else body[0]), end + 1
    try:
        outside = next(each for each in _OTHERS if re.match(f"[{body}]", each))
    except (re.error, StopIteration):
        raise _Unknown from None
    return outside, end + 1
