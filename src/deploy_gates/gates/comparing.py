"""JSON values compared, and what differs told in words people read.

A path names one place: `category`, `items[0].price`, `$` for everything. A leading `$.` may be written or
not; keys that hold dots or brackets go in quotes: `$['a.b']`. What is left out of a comparison may also be
named for every item of a list: `items[*].price`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from deploy_gates.core.canonical import Json
from deploy_gates.core.config import Comparison

TOLD_MAX_CHARS = 60

Place: TypeAlias = "tuple[str | int, ...]"
EVERY = -1
"""In a place: every item of a list."""


@functools.lru_cache(maxsize=4096)
def place(path: str) -> Place:
    """The keys and indices that a path leads through. `ValueError` if it cannot be read."""
    is_rooted = path == "$" or path.startswith(("$.", "$["))
    rest = path[1:] if is_rooted else path if path.startswith("[") else f".{path}"
    parts: list[str | int] = []
    at = 0
    while at < len(rest):
        part = _PART.match(rest, at)
        if part is None:
            raise ValueError(f"`{path}` is no path; write it like `items[0].price`")
        key, index, quoted, every = part.groups()
        parts.append(EVERY if every else int(index) if index else key or quoted)
        at = part.end()
    return tuple(parts)


_PART = re.compile(r"\.([^.\[\]]+)|\[(\d{1,9})\]|\['([^']*)'\]|(\[\*\])")


def written(parts: Iterable[str | int]) -> str:
    """The path to a place, as people write it."""
    return functools.reduce(below, parts, "")


def below(at: str, part: str | int) -> str:
    """One step on from `at`."""
    if isinstance(part, int):
        return f"{at}[{part}]"
    if not part or set(part) & set(".[]'"):
        return f"{at}['{part}']"
    return f"{at}.{part}" if at else part


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One place where an answer is not what was expected, in words."""

    at: str = ""
    expected: str = ""
    got: str

    def __str__(self) -> str:
        expected = f"expected {self.expected}, got " if self.expected else ""
        return f"{self.at}{': ' if self.at else ''}{expected}{self.got}"


NOTHING = "nothing"


def differences(expected: Json, got: Json, at: str = "", *, partly: bool = False) -> Iterator[Difference]:
    """Every place that differs: 1 is 1.0, and neither is true. None if they are equal.

    `partly`: objects may hold keys that are not expected.
    """
    if isinstance(expected, dict) and isinstance(got, dict):
        for key, value in expected.items():
            if key in got:
                yield from differences(value, got[key], below(at, key), partly=partly)
            else:
                yield Difference(at=below(at, key), expected=told(value), got=NOTHING)
        for key in [] if partly else got:
            if key not in expected:
                yield Difference(at=below(at, key), expected=NOTHING, got=told(got[key]))
    elif isinstance(expected, list) and isinstance(got, list):
        if len(expected) != len(got):
            yield Difference(at=at, expected=items(len(expected)), got=items(len(got)))
        for index, (one, other) in enumerate(zip(expected, got, strict=False)):
            yield from differences(one, other, below(at, index), partly=partly)
    elif expected != got or isinstance(expected, bool) is not isinstance(got, bool):
        yield Difference(at=at, expected=told(expected), got=told(got))


def compared(expected: Json, got: Json, comparison: Comparison) -> list[Difference]:
    """What differs beyond what the comparison leaves out and forgives. `ValueError` for a wrong path."""
    for path in comparison.exclude_paths:
        parts = place(path)
        expected, got = _without(expected, parts), _without(got, parts)
    found = list(differences(expected, got))
    forgives = (
        comparison.ignore_order or comparison.ignore_string_case or comparison.significant_digits is not None
    )
    return _unforgiven(expected, got, comparison) if found and forgives else found


def told(value: object) -> str:
    """A value as people read it: short, on one line, and no string that looks like something else."""
    if isinstance(value, str) and value in _BOOLEANS.values():
        return value[1:]
    is_word = isinstance(value, str) and re.fullmatch(r"[^\W\d]([^\n]*\S)?", value)
    if isinstance(value, str) and is_word and value not in ("true", "false", "null", NOTHING):
        return clip(value)
    return clip(json.dumps(value, ensure_ascii=False, default=repr))


def one_of(values: Iterable[object]) -> str:
    return f"one of {clip(', '.join(map(told, values)))}"


def items(count: int) -> str:
    return "1 item" if count == 1 else f"{count} items"


def clip(text: str) -> str:
    """`text`, cut to what a reason has room for."""
    text = " ".join(text.split())
    return text if len(text) <= TOLD_MAX_CHARS else text[: TOLD_MAX_CHARS - 1] + "…"


# --- Leaving out --------------------------------------------------------------------------------


def _without(value: Json, parts: Place) -> Json:
    """`value` less what stands at that place."""
    if not parts:
        return None
    first, rest = parts[0], parts[1:]
    if isinstance(value, dict):
        if first not in value or not isinstance(first, str):
            return value
        if rest:
            return value | {first: _without(value[first], rest)}
        return {key: each for key, each in value.items() if key != first}
    if isinstance(value, list):
        struck = [first in (EVERY, index) for index in range(len(value))]
        if rest:
            return [_without(each, rest) if hit else each for each, hit in zip(value, struck, strict=True)]
        return [each for each, hit in zip(value, struck, strict=True) if not hit]
    return value


# --- Forgiving ----------------------------------------------------------------------------------


def _unforgiven(expected: Json, got: Json, comparison: Comparison) -> list[Difference]:
    """What deepdiff still finds with the options of this comparison.

    `max_passes` and `max_diffs` are never given: where they are reached, it reports that all is equal.
    """
    from deepdiff import DeepDiff

    tree = DeepDiff(
        _marked(expected),
        _marked(got),
        ignore_order=comparison.ignore_order,
        report_repetition=comparison.ignore_order,  # else [1, 1, 2] equals [1, 2, 2]
        significant_digits=comparison.significant_digits,
        ignore_string_case=comparison.ignore_string_case,
        ignore_numeric_type_changes=True,  # 1 is 1.0
        threshold_to_diff_deeper=0,  # else two objects with little in common are one difference
        view="tree",
    )
    found = []
    for kind, levels in sorted(tree.items()):
        for level in levels:
            expected_, got_ = told(level.t1), told(level.t2)
            if kind == "repetition_change":
                expected_, got_ = "as many of them", f"another number of {expected_}"
            found.append(
                Difference(
                    at=written(level.path(output_format="list")),
                    expected=NOTHING if kind.endswith("_added") else expected_,
                    got=NOTHING if kind.endswith("_removed") else got_,
                )
            )
    return found


_BOOLEANS = {True: "\0true", False: "\0false"}


def _marked(value: Json) -> Json:
    """Booleans as strings that no answer holds: as a number, true would be equal to 1."""
    if isinstance(value, bool):
        return _BOOLEANS[value]
    if isinstance(value, dict):
        return {key: _marked(each) for key, each in value.items()}
    return [_marked(each) for each in value] if isinstance(value, list) else value
