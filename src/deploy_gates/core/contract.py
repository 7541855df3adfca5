"""Whether answers of one JSON Schema still keep what another one promised, and where they do not.

`breaks(new, old)` is empty only if surely every value that `new` allows is allowed by `old`. It says where
and how a value may differ, and of kind `unknown` where that cannot be decided: not knowing is never a pass.
`narrowed(new, old)` is the other way round: what `old` let people expect and `new` never gives.

Objects and lists are compared part by part. Of several alternatives one has to take all, where the schema
does not itself tell them apart by the values of a property; so recursion ends by assuming of a pair of parts
that is being compared that it fits, which is right if no difference is found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeAlias, TypeVar

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.shapes import (
    ANYTHING,
    SHAPES_MAX,
    Arrays,
    Numbers,
    Objects,
    Opaque,
    Schema,
    Shape,
    Strings,
    Values,
    any_of,
    are_covered,
    are_disjoint,
    are_parts_disjoint,
    families,
    key,
    of_family,
)
from deploy_gates.core.wording import in_words, types_in_words, values_in_words

BREAKS_MAX = 1_000
"""More than these of one pair of parts are not listed, and that is said."""
STEPS_MAX = 20_000
"""So many pairs of parts are compared."""
DEPTH_MAX = 40
SPLIT_MAX = 64
"""An object is told apart by a property of at most so many values."""
SAMPLES_MAX = 5
LENGTH_MAX = 100_000
"""No sample string is made longer than this."""

_Pair: TypeAlias = tuple[int, int]
_Lengths: TypeAlias = tuple[int, int | None]


class BreakKind(StrEnum):
    """How a value may differ."""

    TYPE = "type"
    VALUE = "value"
    RANGE = "range"
    FORMAT = "format"
    MISSING = "missing"
    GONE = "gone"
    EXTRA = "extra"
    NARROWED = "narrowed"
    UNKNOWN = "unknown"


CHANGED: dict[BreakKind, str] = {
    BreakKind.TYPE: "was {taken} and is now {given}",
    BreakKind.VALUE: "may now be {given}, which consumers do not know",
    BreakKind.RANGE: "may now be {given}, and was {taken}",
    BreakKind.FORMAT: "may now be {given}, and was {taken}",
    BreakKind.MISSING: "was required and may now be missing",
    BreakKind.GONE: "is gone, and consumers may read it",
    BreakKind.EXTRA: "may now be there, where nothing else was allowed",
    BreakKind.NARROWED: "may no longer be {given}, which consumers may wait for",
    BreakKind.UNKNOWN: "cannot be compared with what it was: {given}",
}
"""Of the answers of a changed config."""

READ: dict[BreakKind, str] = {
    BreakKind.TYPE: "is {given}, and {reader} takes {taken}",
    BreakKind.VALUE: "may be {given}, which {reader} does not know",
    BreakKind.RANGE: "may be {given}, and {reader} takes {taken}",
    BreakKind.FORMAT: "may be {given}, and {reader} takes {taken}",
    BreakKind.MISSING: "may be missing, and {reader} requires it",
    BreakKind.GONE: "is never there, and {reader} requires it",
    BreakKind.EXTRA: "may be there, and {reader} refuses what it does not know",
    BreakKind.UNKNOWN: "cannot be compared with {reader}: {given}",
}
"""Of answers, by somebody who reads them."""

CALLED: dict[BreakKind, str] = {
    BreakKind.TYPE: "was {given} and must now be {taken}, which callers may not send",
    BreakKind.VALUE: "may have been {given}, which is no longer taken",
    BreakKind.RANGE: "may have been {given}, and must now be {taken}",
    BreakKind.FORMAT: "may have been {given}, and must now be {taken}",
    BreakKind.MISSING: "was optional and is now required, and callers may not send it",
    BreakKind.GONE: "is new and required, and callers do not send it",
    BreakKind.EXTRA: "is no longer taken, and callers may send it",
    BreakKind.UNKNOWN: "cannot be compared with what callers send: {given}",
}
"""Of inputs: `new` is what callers send, `old` what is taken of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Break:
    """One way in which an answer may not be what was promised."""

    path: str
    """Where in the answer: `$.items[].price`."""
    kind: BreakKind
    given: str = ""
    """What there may be."""
    taken: str = ""
    """What had to be there."""

    @property
    def message(self) -> str:
        return self.told(CHANGED)

    def told(self, words: Mapping[BreakKind, str], reader: str = "") -> str:
        """The same as a sentence, in other words: `READ` or `CALLED`."""
        said = words[self.kind].format(given=self.given, taken=self.taken, reader=reader)
        return f"`{self.path}` {said}"


_TOO_MUCH = Break(path="", kind=BreakKind.UNKNOWN, given="there is too much of it")


def breaks(new: JsonObject, old: JsonObject) -> tuple[Break, ...]:
    """Everything by which a value that `new` allows may be one that `old` does not."""
    try:
        found = _Comparison(Schema(new), Schema(old)).compare(new, old, 0) if key(new) != key(old) else ()
    except RecursionError:
        found = (_TOO_MUCH,)
    return tuple(replace(each, path="$" + each.path) for each in found)


def narrowed(new: JsonObject, old: JsonObject) -> tuple[Break, ...]:
    """The values, types, and properties that `old` allowed and `new` never gives."""
    try:
        return tuple(_limited(_Narrowing(Schema(new), Schema(old)).compare(new, old, "$"), "$"))
    except RecursionError:
        return (replace(_TOO_MUCH, path="$"),)


def is_at(path: str, above: str) -> bool:
    """Whether `path` is `above` or lies in it."""
    return path == above or path.startswith((above + ".", above + "["))


def speaks_of(schema: JsonObject, path: str) -> bool:
    """Whether the schema declares what is at `path`: who reads by it may read that."""
    document = Schema(schema)
    return bool(_parts_at(document, path, _declared))


def may_hold(schema: JsonObject, path: str) -> bool:
    """Whether there may be anything at `path`."""
    document = Schema(schema)
    return not all(map(document.is_empty, _parts_at(document, path, _allowed)))


def may_be(schema: JsonObject, path: str, value: Json) -> bool:
    """Whether there may be this value at `path`."""
    document = Schema(schema)
    return any(document.allows(part, value) is not False for part in _parts_at(document, path, _allowed))


# --- Places -------------------------------------------------------------------------------------

_STEP = re.compile(r"\.(\*|[^.\[\]]+)|\['([^']*)'\]|\[(\d*)\]")


def _dot(name: str) -> str:
    return f"['{name}']" if not name or set(name) & set(".[]'*") else f".{name}"


_Step: TypeAlias = str | int | None
"""A name, a place in a list, or any place in one."""


def _steps(path: str) -> Iterator[_Step]:
    """`$.items[].price` → `items`, `None`, `price`."""
    for plain, quoted, place in _STEP.findall(path):
        if plain or quoted:
            yield plain or quoted
        else:
            yield int(place) if place else None


def _parts_at(document: Schema, path: str, step_into: Callable[[Shape, _Step], Json]) -> list[Json]:
    parts: list[Json] = [document.document]
    for step in _steps(path):
        shapes = [shape for part in parts for shape in document.shapes(part)][:SHAPES_MAX]
        parts = [part for shape in shapes if (part := step_into(shape, step)) is not False]
    return parts


def _declared(shape: Shape, step: _Step) -> Json:
    if isinstance(shape, Objects) and isinstance(step, str):
        return shape.others if step == "*" and shape.others is not True else shape.properties.get(step, False)
    return shape.rest if isinstance(shape, Arrays) and step is None else False


def _allowed(shape: Shape, step: _Step) -> Json:
    if isinstance(shape, Objects) and isinstance(step, str):
        return shape.property(step)
    if isinstance(shape, Arrays) and not isinstance(step, str):
        return shape.item(step or 0) if _exceeds(shape.most, step or 0) else False
    return False


# --- What may differ ----------------------------------------------------------------------------


class _Comparison:
    """Of two documents, part by part. Paths in what it finds start at the part."""

    def __init__(self, new: Schema, old: Schema) -> None:
        self.new = new
        self.old = old
        self.known: dict[_Pair, tuple[Json, Json, tuple[Break, ...]]] = {}
        """What was found of each pair of parts; the parts are kept alive, for their id() stands for them."""
        self.comparing: set[_Pair] = set()
        self.assumed: set[_Pair] = set()
        self.steps = 0

    def compare(self, new: Json, old: Json, depth: int) -> tuple[Break, ...]:
        """How a value of the part `new` may be none of the part `old`."""
        if old is True or self.new.is_empty(new) or _is_same(new, old):
            return ()
        pair = (id(new), id(old))
        if pair in self.known:
            return self.known[pair][2]
        if pair in self.comparing:
            self.assumed.add(pair)
            return ()
        self.steps += 1
        if self.steps > STEPS_MAX or depth > DEPTH_MAX:
            return (_TOO_MUCH,)
        before = len(self.known)
        self.comparing.add(pair)
        found = tuple(_limited(dict.fromkeys(self._differences(new, old, depth)), ""))
        self.comparing.remove(pair)
        if found and pair in self.assumed:
            self._forget(before)
        self.assumed.discard(pair)
        self.known[pair] = new, old, found
        return found

    def _forget(self, before: int) -> None:
        """Drop what was found to fit only because a pair was assumed to fit that does not."""
        for pair in list(self.known)[before:]:
            if not self.known[pair][2]:
                del self.known[pair]

    def _differences(self, new: Json, old: Json, depth: int) -> Iterator[Break]:
        news = _joined(shape for shape in self.new.shapes(new) if self.new.is_inhabited(shape))
        olds = _joined(shape for shape in self.old.shapes(old) if self.old.is_inhabited(shape))
        if not olds:
            yield Break(path="", kind=BreakKind.EXTRA)
            return
        known = {family for shape in olds for family in families(shape)}
        strange = [shape for shape in news if not families(shape) <= known]
        if strange:
            retyped = Break(
                path="", kind=BreakKind.TYPE, given=types_in_words(news), taken=types_in_words(olds)
            )
            is_sure = not all(shape.opaque for shape in strange)
            yield retyped if is_sure else _unknown(_keywords(strange))
        for shape in news:
            if shape not in strange:
                yield from self._shape(shape, olds, depth)

    def _shape(self, new: Shape, olds: Sequence[Shape], depth: int) -> Iterator[Break]:
        """How values of one shape may have none of the others."""
        match new:
            case Values():
                found = self._values(new, olds)
            case Numbers():
                found = self._numbers(new, list(of_family(olds, "number")))
            case Strings():
                found = self._strings(new, list(of_family(olds, "string")))
            case Arrays():
                tried = [(old, self._array(new, old, depth)) for old in olds if isinstance(old, Arrays)]
                found = self._nearest(new, olds, tried)
            case Objects():
                found = self._objects(new, olds, depth)
        return iter([_unknown(_keywords([new]))] if found and new.opaque else found)

    # --- Scalars --------------------------------------------------------------------------------

    def _values(self, new: Values, olds: Sequence[Shape]) -> list[Break]:
        answers = [(any_of(self._takes(old, new, each) for old in olds), each) for each in new.values]
        strange = [value for answer, value in answers if answer is False]
        unknown = [value for answer, value in answers if answer is None]
        found = []
        if strange:
            found.append(_here(BreakKind.VALUE, values_in_words(strange), olds))
        if unknown:
            found.append(_unknown(f"whether {values_in_words(unknown)} is allowed is not known"))
        return found

    def _takes(self, old: Shape, new: Shape, value: Json) -> bool | None:
        return self.old.has(_trusting(old, new), value)

    def _numbers(self, new: Numbers, olds: Sequence[Shape]) -> list[Break]:
        answer = are_covered(new, [_trusting(old, new) for old in olds])
        if answer is True:
            return []
        if answer is None:
            return [
                _unknown(
                    _keywords(olds) or f"whether {in_words([new])} is always {in_words(olds)} is not known"
                )
            ]
        ranges = [each for each in olds if isinstance(each, Numbers)]
        if not new.is_integer and ranges and all(each.is_integer for each in ranges):
            return [Break(path="", kind=BreakKind.TYPE, given="number", taken="integer")]
        return [_here(BreakKind.RANGE if ranges else BreakKind.VALUE, in_words([new]), olds)]

    def _strings(self, new: Strings, olds: Sequence[Shape]) -> list[Break]:
        lengths = [(new.least, new.most)]
        others: list[Shape] = []
        for old in (_trusting(each, new) for each in olds):
            if isinstance(old, Strings) and _is_plainer(old, new):
                lengths = [rest for each in lengths for rest in _without(each, old.least, old.most)]
            else:
                others.append(old)
        if not lengths or (lengths == [(0, 0)] and any_of(self.old.has(each, "") for each in others)):
            return []
        if new.patterns or new.formats:
            return [_unknown(f"whether {in_words([new])} is always {in_words(olds)} is not known")]
        if not any(self._is_outside(text, others) for text in _samples(lengths)):
            return [_unknown(f"whether every string is {in_words(others)} is not known")]
        is_narrower = any(isinstance(each, Strings) for each in others)
        is_bounded = any(isinstance(each, Strings) for each in olds)
        kind = BreakKind.FORMAT if is_narrower else BreakKind.RANGE if is_bounded else BreakKind.VALUE
        return [_here(kind, in_words([new]), olds)]

    def _is_outside(self, text: str, olds: Sequence[Shape]) -> bool:
        """Whether a string that means nothing is surely none of these: for one thing, it has no format."""
        return all(
            self.old.has(old, text) is False or (isinstance(old, Strings) and old.formats) for old in olds
        )

    # --- Lists and objects ----------------------------------------------------------------------

    def _nearest(
        self, new: Shape, olds: Sequence[Shape], tried: Sequence[tuple[Shape, list[Break]]]
    ) -> list[Break]:
        """Of what was found for each alternative, what it comes to."""
        if not tried:
            return [_here(BreakKind.VALUE, in_words([new]), olds)]
        if not all(found for _, found in tried):
            return []
        rivals = [found for old, found in tried if not are_disjoint(self.new, new, self.old, old)]
        if len(rivals) > 1:
            return [_unknown(f"none of {len(rivals)} alternatives takes all of it, and together they may")]
        return min(rivals or [found for _, found in tried], key=len)

    def _array(self, new: Arrays, old: Arrays, depth: int) -> list[Break]:
        found = _opaque_of(old, new)
        most = self._longest(new)
        if new.least < old.least or _exceeds(most, old.most):
            found.append(_here(BreakKind.RANGE, in_words([replace(new, most=most)]), [old]))
        if old.is_unique and not new.is_unique and _exceeds(most, 1):
            same = _here(BreakKind.RANGE, "a list with equal items", [old])
            found.append(_unknown("whether its items all differ is not known") if new.first else same)
        length = max(len(new.first), len(old.first))
        for at in range(length if most is None else min(length, most)):
            found += _within(f"[{at}]", self.compare(new.item(at), old.item(at), depth + 1))
        if _exceeds(most, length):
            found += _within("[]", self.compare(new.rest, old.rest, depth + 1))
        return found

    def _longest(self, new: Arrays) -> int | None:
        """How many items there can be: none follow one that cannot be."""
        for at, part in enumerate((*new.first, new.rest)):
            if _exceeds(new.most, at) and self.new.is_empty(part):
                return at
        return new.most

    def _objects(self, new: Objects, olds: Sequence[Shape], depth: int) -> list[Break]:
        rivals = _of(Objects, olds)
        self.steps += len(rivals)
        tried = [(old, self._object(new, old, depth)) for old in rivals]
        if len(tried) > 1 and all(found for _, found in tried):
            near = [old for old in rivals if not are_disjoint(self.new, new, self.old, old)]
            if len(near) > 1 and (pieces := self._split(new, near)):
                return [each for piece in pieces for each in self._objects(piece, near, depth)]
            if not near and (strange := self._strange_to_all(new, rivals, depth)):
                return strange
        return self._nearest(new, olds, tried)

    def _strange_to_all(self, new: Objects, olds: Sequence[Objects], depth: int) -> list[Break]:
        """The property that none of the alternatives takes, if one alone says it: `kind`, as a rule."""
        for name in new.properties:
            parts = [old.property(name) for old in olds]
            if name in new.required and all(
                are_parts_disjoint(self.new, new.properties[name], self.old, part) for part in parts
            ):
                found = self.compare(new.properties[name], {"anyOf": parts}, depth + 1)
                return _within(_dot(name), found)
        return []

    def _object(self, new: Objects, old: Objects, depth: int) -> list[Break]:
        found = _opaque_of(old, new)
        gone = [name for name in sorted(old.required - new.required) if self._is_gone(name, new)]
        for name in sorted(old.required - new.required):
            kind = BreakKind.GONE if name in gone else BreakKind.MISSING
            found.append(Break(path=_dot(name), kind=kind))
        for name in dict.fromkeys([*old.properties, *new.properties, *sorted(new.required)]):
            if name not in gone:
                inner = self.compare(new.property(name), old.property(name), depth + 1)
                found += _within(_dot(name), inner)
        found += _within(".*", self.compare(new.others, old.others, depth + 1))
        fewest, most = max(new.least, len(new.required)), self._largest(new)
        if fewest < old.least or _exceeds(most, old.most):
            bounded = replace(new, least=fewest, most=most)
            found.append(_here(BreakKind.RANGE, in_words([bounded]), [old]))
        return found

    def _is_gone(self, name: str, new: Objects) -> bool:
        return name not in new.properties or self.new.is_empty(new.properties[name])

    def _largest(self, new: Objects) -> int | None:
        if not self.new.is_empty(new.others):
            return new.most
        return min(len(new.properties), len(new.properties) if new.most is None else new.most)

    def _split(self, new: Objects, rivals: Sequence[Shape]) -> list[Objects]:
        """The same objects, one piece for each value of a property by which the alternatives differ."""
        for name, part in new.properties.items() if self.steps <= STEPS_MAX else ():
            shapes = self.new.shapes(part)
            values = [each for shape in shapes if isinstance(shape, Values) for each in shape.values]
            is_optional = name not in new.required
            if not 1 < len(values) + is_optional <= SPLIT_MAX:
                continue
            if any(shape.opaque or not isinstance(shape, Values) for shape in shapes):
                continue
            if self._is_told_apart_by(name, values, rivals):
                pieces: list[tuple[Json, frozenset[str]]] = [
                    ({"const": value}, new.required | {name}) for value in values
                ]
                if is_optional:
                    pieces.append((False, new.required))
                return [
                    replace(new, properties={**new.properties, name: only}, required=required)
                    for only, required in pieces
                ]
        return []

    def _is_told_apart_by(self, name: str, values: Sequence[Json], rivals: Sequence[Shape]) -> bool:
        return any(
            isinstance(old, Objects)
            and (
                name in old.required
                or any(self.old.allows(old.property(name), value) is not True for value in values)
            )
            for old in rivals
        )


class _Narrowing:
    """Of two documents, part by part: what only the old one allows."""

    def __init__(self, new: Schema, old: Schema) -> None:
        self.new = new
        self.old = old
        self.seen: dict[_Pair, tuple[Json, Json]] = {}
        self.unions: dict[tuple[int, ...], Json] = {}

    def compare(self, new: Json, old: Json, path: str) -> Iterator[Break]:
        """What the part `old` allows and the part `new` does not; each pair once."""
        if old is True or (id(new), id(old)) in self.seen or _is_same(new, old):
            return
        if len(self.seen) > STEPS_MAX:
            yield replace(_TOO_MUCH, path=path)
            return
        self.seen[id(new), id(old)] = new, old
        news, olds = self.new.shapes(new), self.old.shapes(old)
        if len({family for shape in olds for family in families(shape)}) < len(ANYTHING):
            yield from self._values(new, olds, path)
            yield from self._types(news, olds, path)
        yield from self._properties(_of(Objects, news), _of(Objects, olds), path)
        yield from self._items(_of(Arrays, news), _of(Arrays, olds), path)

    def _values(self, new: Json, olds: Sequence[Shape], path: str) -> Iterator[Break]:
        values = [value for shape in _of(Values, olds) for value in shape.values]
        answers = [(self.new.allows(new, value), value) for value in values]
        if lost := [value for answer, value in answers if answer is False]:
            yield Break(path=path, kind=BreakKind.NARROWED, given=values_in_words(lost))
        if unknown := [value for answer, value in answers if answer is None]:
            yield replace(
                _unknown(f"whether it may still be {values_in_words(unknown)} is not known"), path=path
            )

    def _types(self, news: Sequence[Shape], olds: Sequence[Shape], path: str) -> Iterator[Break]:
        known = {family for shape in news for family in families(shape)}
        lost = [each for each in olds if not isinstance(each, Values) and not families(each) <= known]
        if lost:
            yield Break(path=path, kind=BreakKind.NARROWED, given=types_in_words(lost))

    def _properties(self, news: Sequence[Objects], olds: Sequence[Objects], path: str) -> Iterator[Break]:
        if not news:
            return
        for name in dict.fromkeys(name for each in olds for name in each.properties):
            before = [each.properties[name] for each in olds if name in each.properties]
            now = [each.properties[name] for each in news if name in each.properties]
            if all(map(self.old.is_empty, before)):
                continue
            if all(map(self.new.is_empty, now)):
                yield Break(path=path + _dot(name), kind=BreakKind.GONE)
            else:
                yield from self.compare(self._either(now), self._either(before), path + _dot(name))
        before = [each.others for each in olds if isinstance(each.others, dict)]
        now = [each.others for each in news if not self.new.is_empty(each.others)]
        if before and now:
            yield from self.compare(self._either(now), self._either(before), f"{path}.*")

    def _items(self, news: Sequence[Arrays], olds: Sequence[Arrays], path: str) -> Iterator[Break]:
        if not news or not olds:
            return
        rest = [each.rest for each in news]
        yield from self.compare(self._either(rest), self._either([each.rest for each in olds]), f"{path}[]")
        for at in range(max(len(each.first) for each in olds)):
            now = [each.item(at) for each in news]
            before = [each.item(at) for each in olds]
            yield from self.compare(self._either(now), self._either(before), f"{path}[{at}]")

    def _either(self, parts: Sequence[Json]) -> Json:
        """One part that allows what any of these does; the same one for the same parts."""
        several = {id(each): each for each in parts}
        if any(each is True for each in parts):
            return True
        return (
            parts[0]
            if len(several) == 1
            else self.unions.setdefault(tuple(several), {"anyOf": list(several.values())})
        )


# --- Small comparisons --------------------------------------------------------------------------


def _is_same(one: Json, other: Json) -> bool:
    """Whether both say the same, whichever document they stand in."""
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and "$ref" not in one
            and all(_is_same(value, other[name]) for name, value in one.items())
        )
    if isinstance(one, list):
        return (
            isinstance(other, list)
            and len(one) == len(other)
            and all(_is_same(left, right) for left, right in zip(one, other, strict=True))
        )
    return key(one) == key(other)


def _trusting(old: Shape, new: Shape) -> Shape:
    """`old` without the keywords that are not understood and that `new` has as well."""
    shared = {each for each in old.opaque & new.opaque if each.says}
    return replace(old, opaque=old.opaque - shared) if shared else old


def _opaque_of(old: Shape, new: Shape) -> list[Break]:
    trusted = _trusting(old, new)
    return [_unknown(_keywords([trusted]))] if trusted.opaque else []


def _joined(shapes: Iterable[Shape]) -> list[Shape]:
    """The same shapes, with all values that are listed in one."""
    made: list[Shape] = []
    listed: dict[frozenset[Opaque], tuple[Json, ...]] = {}
    for shape in shapes:
        if isinstance(shape, Values):
            listed[shape.opaque] = listed.get(shape.opaque, ()) + shape.values
        else:
            made.append(shape)
    return made + [Values(values=values, opaque=opaque) for opaque, values in listed.items()]


def _is_plainer(old: Strings, new: Strings) -> bool:
    """Whether lengths alone decide if a string of `new` is one of `old`."""
    return not old.opaque and old.patterns <= new.patterns and old.formats <= new.formats


def _without(lengths: _Lengths, least: int, most: int | None) -> Iterator[_Lengths]:
    """What is left of a range of lengths when another is taken away."""
    low, high = lengths
    if low < least:
        yield low, least - 1 if high is None else min(high, least - 1)
    if most is not None and (high is None or high > most):
        yield max(low, most + 1), high


def _samples(lengths: Sequence[_Lengths]) -> Iterator[str]:
    """Some strings of these lengths that mean nothing."""
    for low, high in lengths[:SAMPLES_MAX]:
        for length in range(low, low + SAMPLES_MAX if high is None else min(high + 1, low + SAMPLES_MAX)):
            yield from (sign * length for sign in "x0 -é" if length <= LENGTH_MAX)


def _exceeds(most: int | None, limit: int | None) -> bool:
    return limit is not None and (most is None or most > limit)


_Kind = TypeVar("_Kind", Values, Arrays, Objects)


def _of(kind: type[_Kind], shapes: Iterable[Shape]) -> list[_Kind]:
    return [each for each in shapes if isinstance(each, kind)]


# --- Findings --------------------------------------------------------------------------------------


def _here(kind: BreakKind, given: str, olds: Sequence[Shape]) -> Break:
    return Break(path="", kind=kind, given=given, taken=in_words(olds))


def _unknown(why: str) -> Break:
    return Break(path="", kind=BreakKind.UNKNOWN, given=why)


def _limited(found: Iterable[Break], path: str) -> Iterator[Break]:
    """The first of many, and that there are more: one that is left out may be the one that matters."""
    for count, each in enumerate(found):
        if count == BREAKS_MAX:
            yield replace(_unknown(f"there are more than {BREAKS_MAX:,} differences"), path=path)
            return
        yield each


def _within(step: str, found: Iterable[Break]) -> list[Break]:
    return [replace(each, path=step + each.path) for each in found]


def _keywords(shapes: Sequence[Shape]) -> str:
    found = sorted({f"`{each.name}`" for shape in shapes for each in shape.opaque})
    return f"{', '.join(found)} {'are' if len(found) > 1 else 'is'} not understood" if found else ""
