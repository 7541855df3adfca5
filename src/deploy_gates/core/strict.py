"""The subset of JSON Schema that strict structured outputs take: what of a schema is outside it.

Numbers and keywords are data, `data/structured_output.json`, for they have grown before and will again.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import islice

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.errors import Problem

PROBLEMS_MAX = 50
NESTING_MAX = 100
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}\Z")
"""What a schema or a tool may be called."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What strict structured outputs take, of `data/structured_output.json`."""

    limits: dict[str, int]
    keywords: frozenset[str]
    fine_tuned_lack: frozenset[str]
    formats: tuple[str, ...]
    instead: dict[str, str]


@functools.cache
def rules() -> Rules:
    """The numbers and keywords of the structured-output subset, from `data/structured_output.json`."""
    text = resources.files("deploy_gates").joinpath("data/structured_output.json").read_text("utf-8")
    loaded = json.loads(text)
    return Rules(
        limits=loaded["limits"],
        keywords=frozenset(loaded["keywords"]),
        fine_tuned_lack=frozenset(loaded["fine_tuned_lack"]),
        formats=tuple(loaded["formats"]),
        instead=loaded["instead"],
    )


def problems(schema: JsonObject, *, is_fine_tuned: bool = False) -> tuple[Problem, ...]:
    """Everything for which a strict request with this schema is refused; keys are places in the schema."""
    reading = _Reading(schema, is_fine_tuned)
    return tuple(islice(reading.problems(), PROBLEMS_MAX))


class _Reading:
    """One schema, read from the top to its last part."""

    def __init__(self, schema: JsonObject, is_fine_tuned: bool) -> None:
        self.schema = schema
        self.rules = rules()
        self.is_fine_tuned = is_fine_tuned
        self.properties = 0
        self.enum_values = 0
        self.name_characters = 0
        self.levels: dict[int, int] = {}

    def problems(self) -> Iterator[Problem]:
        yield from self._root()
        yield from self._part(self.schema, "", 0)
        yield from self._totals()

    def _root(self) -> Iterator[Problem]:
        for keyword in ("anyOf", "$ref"):
            if keyword in self.schema:
                hint = "put it into a property, and answer an object with that property"
                if keyword == "$ref":
                    hint = "write the object here in place of the reference"
                yield Problem(message="stands at the top, which must be one object", key=keyword, hint=hint)
                return
        if self.schema.get("type") != "object":
            yield Problem(
                message="must be `object` at the top",
                key="type",
                hint="put it into a property, and answer an object with that property",
            )

    # --- Part by part ---------------------------------------------------------------------------

    def _part(self, part: Json, at: str, nesting: int) -> Iterator[Problem]:
        """Problems of one schema and of those in it."""
        if not isinstance(part, dict):
            yield Problem(
                message=f"is {json.dumps(part)}, which allows anything or nothing",
                key=at,
                hint="write a schema with a `type`",
            )
            return
        if nesting > NESTING_MAX:
            yield Problem(message=f"is nested more than {NESTING_MAX} deep", key=at)
            return
        yield from self._keywords(part, at)
        if "$ref" in part:
            yield from self._reference(part, at)
        elif not part.keys() & {"type", "anyOf", "enum", "const"} and at:
            yield Problem(message="has no `type`", key=at, hint="say what it may be")
        yield from self._object(part, at)
        yield from self._scalar(part, at)
        for name, inner in _inner(part):
            yield from self._part(inner, _below(at, name), nesting + 1)

    def _keywords(self, part: JsonObject, at: str) -> Iterator[Problem]:
        for keyword in part:
            if keyword not in self.rules.keywords:
                hint = self.rules.instead.get(keyword) or _nearest(keyword, self.rules.keywords)
                yield Problem(message="is not supported", key=_below(at, keyword), hint=hint or "remove it")
            elif self.is_fine_tuned and keyword in self.rules.fine_tuned_lack:
                yield Problem(
                    message="is not supported by fine-tuned models",
                    key=_below(at, keyword),
                    hint="remove it, and check the answer where it is read",
                )

    def _reference(self, part: JsonObject, at: str) -> Iterator[Problem]:
        key, ref = _below(at, "$ref"), str(part["$ref"])
        if not isinstance(self._target(ref), dict):
            hint = "write `#/$defs/…`" if not ref.startswith("#") else _nearest(ref, self._definitions())
            yield Problem(message=f"names {ref}, which is not in this schema", key=key, hint=hint)
        beside = sorted(part.keys() - {"$ref", "$defs", "definitions", "$schema"})
        if beside:
            yield Problem(
                message=f"stands beside {_listed(beside)}, and must stand alone",
                key=key,
                hint=f"move {'it' if len(beside) == 1 else 'them'} into the definition",
            )

    def _object(self, part: JsonObject, at: str) -> Iterator[Problem]:
        declared = part.get("properties")
        properties = declared if isinstance(declared, dict) else {}
        self.properties += len(properties)
        self.name_characters += sum(map(len, properties))
        if "object" not in _types(part) and "properties" not in part:
            return
        if part.get("additionalProperties") is not False:
            given = "additionalProperties" in part
            message = "must be false" if given else "lacks `additionalProperties: false`"
            hint = "write a list of objects with a name and a value" if given and not properties else ""
            yield Problem(message=message, key=_below(at, "additionalProperties") if given else at, hint=hint)
        listed = part.get("required")
        required = [str(each) for each in listed] if isinstance(listed, list) else []
        if missing := [name for name in properties if name not in required]:
            yield Problem(
                message=f"lacks {_listed(missing)}: every property is required",
                key=_below(at, "required"),
                hint='write `"type": ["string", "null"]` for what may be missing',
            )
        if extra := [name for name in required if name not in properties]:
            hint = _nearest(extra[0], properties)
            yield Problem(
                message=f"names {_listed(extra)}, which is no property", key=_below(at, "required"), hint=hint
            )

    def _scalar(self, part: JsonObject, at: str) -> Iterator[Problem]:
        if "array" in _types(part) and "items" not in part and "prefixItems" not in part:
            yield Problem(message="lacks `items`", key=at, hint="say what the list holds")
        named = part.get("format")
        if isinstance(named, str) and named not in self.rules.formats:
            hint = _nearest(named, self.rules.formats) or f"known are {', '.join(self.rules.formats)}"
            yield Problem(
                message=f"is `{named}`, which is not supported", key=_below(at, "format"), hint=hint
            )
        pattern = part.get("pattern")
        if isinstance(pattern, str) and re.search(r"\(\?<?[=!]", pattern):
            yield Problem(
                message="looks ahead or behind, which is not supported",
                key=_below(at, "pattern"),
                hint="write it without `(?=`, `(?!`, `(?<=`, `(?<!`",
            )
        if "const" in part:
            self.name_characters += _length(part["const"])
        values = part.get("enum")
        if isinstance(values, list):
            yield from self._enum(values, _below(at, "enum"))

    def _enum(self, values: list[Json], at: str) -> Iterator[Problem]:
        characters = sum(map(_length, values))
        self.enum_values += len(values)
        self.name_characters += characters
        many, most = self.rules.limits["long_enum_values"], self.rules.limits["long_enum_characters"]
        if len(values) > many and characters > most:
            allowed = f"more than {many} may have {most:,} together"
            message = f"has {len(values):,} values of {characters:,} characters, and {allowed}"
            yield Problem(message=message, key=at, hint="shorten the values")

    # --- The whole ------------------------------------------------------------------------------

    def _totals(self) -> Iterator[Problem]:
        limits = self.rules.limits
        definitions = self.schema.get("$defs"), self.schema.get("definitions")
        self.name_characters += sum(
            len(name) for each in definitions if isinstance(each, dict) for name in each
        )
        counted = {
            "properties": (self.properties, "properties"),
            "depth": (self._depth(self.schema, 0), "levels of nested objects"),
            "enum_values": (self.enum_values, "enum values"),
            "name_characters": (self.name_characters, "characters of names and values"),
        }
        for limit, (count, noun) in counted.items():
            if count > limits[limit]:
                yield Problem(message=f"has {count:,} {noun}, and at most {limits[limit]:,} are taken")

    def _depth(self, part: Json, nesting: int) -> int:
        """How many objects lie in one another; what refers back to where it lies adds nothing."""
        if not isinstance(part, dict) or nesting > NESTING_MAX:
            return 0
        if id(part) in self.levels:
            return self.levels[id(part)]
        self.levels[id(part)] = 0
        inner = [each for name, each in _inner(part) if not name.startswith(("$defs", "definitions"))]
        if "$ref" in part:
            inner.append(self._target(str(part["$ref"])))
        own = 1 if "object" in _types(part) or "properties" in part else 0
        self.levels[id(part)] = own + max((self._depth(each, nesting + 1) for each in inner), default=0)
        return self.levels[id(part)]

    def _target(self, ref: str) -> Json:
        at: Json = self.schema
        for step in ref.removeprefix("#").split("/")[1:] if ref.startswith("#") else ["?"]:
            at = at.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(at, dict) else None
        return at

    def _definitions(self) -> list[str]:
        found = self.schema.get("$defs")
        return [f"#/$defs/{name}" for name in found] if isinstance(found, dict) else []


# --- Small questions ----------------------------------------------------------------------------


def _inner(part: JsonObject) -> Iterator[tuple[str, Json]]:
    """The schemas in a schema, each with its place."""
    for keyword in ("properties", "$defs", "definitions"):
        named = part.get(keyword)
        if isinstance(named, dict):
            yield from ((f"{keyword}.{name}", each) for name, each in named.items())
    if "items" in part:
        yield "items", part["items"]
    branches = part.get("anyOf")
    if isinstance(branches, list):
        yield from ((f"anyOf[{at}]", each) for at, each in enumerate(branches))


def _types(part: JsonObject) -> list[str]:
    declared = part.get("type")
    return [str(each) for each in declared] if isinstance(declared, list) else [str(declared)]


def _length(value: Json) -> int:
    return len(value) if isinstance(value, str) else len(json.dumps(value))


def _below(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else ""
