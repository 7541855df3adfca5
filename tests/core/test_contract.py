"""Whether one schema keeps what another promised: tables of pairs, laws, and two oracles."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jsonsubschema
import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field, TypeAdapter
from typing_extensions import TypedDict

from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.contract import (
    CALLED,
    READ,
    Break,
    BreakKind,
    breaks,
    is_at,
    may_be,
    may_hold,
    narrowed,
    speaks_of,
)
from deploy_gates.core.instances import instances
from deploy_gates.testing import TICKET_SCHEMA

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
NULL: Schema = {"type": "null"}


def closed(**properties: Schema) -> Schema:
    """An object of exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def opened(**properties: Schema) -> Schema:
    """An object of these properties and any others."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def any_of(*branches: Schema) -> Schema:
    return {"anyOf": list(branches)}


def list_of(items: Schema, **bounds: int | bool) -> Schema:
    return {"type": "array", "items": items, **bounds}


def integer(least: int | None = None, most: int | None = None, **more: object) -> Schema:
    bounds = {"minimum": least, "maximum": most}
    return {"type": "integer"} | {key: value for key, value in bounds.items() if value is not None} | more


def text(**bounds: object) -> Schema:
    return {"type": "string", **bounds}


def node(value: Schema) -> Schema:
    """A linked list of `value`."""
    linked = closed(value=value, next=any_of({"$ref": "#/$defs/node"}, NULL))
    return {"$ref": "#/$defs/node", "$defs": {"node": linked}}


REFUND = closed(kind={"const": "refund"}, amount=INTEGER)
BILLING = closed(kind={"const": "billing"}, invoice=TEXT)
NO_LONGER = BreakKind.NARROWED
TECHNICAL = closed(kind={"const": "technical"}, product=TEXT)

COMPATIBLE: list[tuple[str, Schema, Schema]] = [
    ("the same, spelt otherwise", closed(a=TEXT, b=INTEGER), closed(b=INTEGER, a=TEXT)),
    ("fewer values", {"enum": ["a"]}, {"enum": ["b", "a"]}),
    ("one value of many", {"const": "a"}, {"enum": ["b", "a"]}),
    ("listed strings, where any was allowed", {"enum": ["a", "b"]}, TEXT),
    ("integers, where numbers were", INTEGER, NUMBER),
    ("1.0 is 1", {"const": 1.0}, {"const": 1}),
    ("all of it again", TEXT, {}),
    ("never null", TEXT, {"type": ["string", "null"]}),
    ("null in another spelling", any_of(TEXT, NULL), {"type": ["null", "string"]}),
    ("a narrower range", integer(1, 5), integer(0, 10)),
    ("above 0 is at least 1, for integers", integer(exclusiveMinimum=0), integer(1)),
    ("a range in two halves", integer(0, 10), any_of(integer(0, 5), integer(6, 10))),
    (
        "a range and its end",
        {**NUMBER, "minimum": 0},
        any_of({**NUMBER, "exclusiveMinimum": 0}, {"const": 0}),
    ),
    ("few integers, each of them listed", integer(1, 3), {"enum": [3, 2, 1]}),
    ("multiples of a multiple", integer(multipleOf=6), integer(multipleOf=3)),
    ("shorter text", text(minLength=2, maxLength=5), text(minLength=1, maxLength=9)),
    ("no text", text(maxLength=0), {"enum": [""]}),
    ("the same pattern, and shorter", text(pattern="^a", maxLength=3), text(pattern="^a")),
    ("a format, where any text was allowed", text(format="date"), TEXT),
    ("a format that is none", TEXT, text(format="password")),
    ("required, where it was not", closed(a=TEXT), closed(a=TEXT) | {"required": []}),
    ("more, where others were allowed", closed(a=TEXT, b=INTEGER), opened(a=TEXT)),
    (
        "more of the kind that was allowed",
        closed(a=INTEGER, b=INTEGER),
        opened(a=INTEGER) | {"additionalProperties": NUMBER},
    ),
    ("what can never be there", closed(a=TEXT), {**closed(a=TEXT), "properties": {"a": TEXT, "b": INTEGER}}),
    ("a list of less", list_of({"enum": ["a"]}, maxItems=3), list_of(TEXT)),
    ("a list of nothing", list_of(TEXT, maxItems=0), list_of(INTEGER)),
    (
        "a pair, where lists were allowed",
        {"type": "array", "prefixItems": [TEXT, TEXT], "items": False},
        list_of(TEXT),
    ),
    ("one of two alternatives", REFUND, any_of(BILLING, REFUND)),
    ("alternatives that are told apart", any_of(REFUND, BILLING), {"oneOf": [BILLING, REFUND]}),
    (
        "an object that is both alternatives, by its kind",
        closed(kind={"enum": ["a", "b"]}, x=TEXT),
        any_of(closed(kind={"const": "a"}, x=TEXT), closed(kind={"const": "b"}, x=TEXT)),
    ),
    ("a recursive list again", node(INTEGER), {**node(NUMBER), "title": "numbers"}),
    ("both of two demands", INTEGER | {"minimum": 3}, {"allOf": [NUMBER, {"minimum": 1}]}),
    (
        "what nobody understands, the same",
        opened(a={"not": {"const": 1}}),
        opened(
            a={"not": {"const": 1}},
        )
        | {"title": "x"},
    ),
    ("what can be no value at all", {"allOf": [TEXT, INTEGER]}, NULL),
]

BREAKING: list[tuple[str, Schema, Schema, BreakKind, str]] = [
    (
        "a value more",
        closed(a={"enum": ["x", "y"]}),
        closed(a={"enum": ["x"]}),
        BreakKind.VALUE,
        "`$.a` may now be `y`, which consumers do not know",
    ),
    (
        "two values more",
        {"enum": ["x", "y", "z"]},
        {"const": "x"},
        BreakKind.VALUE,
        "`$` may now be `y` or `z`, which consumers do not know",
    ),
    (
        "any text",
        closed(a=TEXT),
        closed(a={"enum": ["x"]}),
        BreakKind.VALUE,
        "`$.a` may now be any string, which consumers do not know",
    ),
    ("true is not 1", {"enum": [True]}, {"enum": [1]}, BreakKind.TYPE, "`$` was integer and is now boolean"),
    (
        "another type",
        closed(amount=TEXT),
        closed(amount=INTEGER),
        BreakKind.TYPE,
        "`$.amount` was integer and is now string",
    ),
    (
        "a type more",
        closed(a=any_of(TEXT, NULL)),
        closed(a=TEXT),
        BreakKind.TYPE,
        "`$.a` was string and is now string or null",
    ),
    (
        "halves, where there were wholes",
        closed(a=NUMBER),
        closed(a=INTEGER),
        BreakKind.TYPE,
        "`$.a` was integer and is now number",
    ),
    (
        "no longer required",
        closed(priority=TEXT) | {"required": []},
        closed(priority=TEXT),
        BreakKind.MISSING,
        "`$.priority` was required and may now be missing",
    ),
    (
        "no longer there",
        closed(a=TEXT),
        closed(a=TEXT, b=TEXT),
        BreakKind.GONE,
        "`$.b` is gone, and consumers may read it",
    ),
    (
        "a property more, where none was allowed",
        closed(a=TEXT, b=TEXT),
        closed(a=TEXT),
        BreakKind.EXTRA,
        "`$.b` may now be there, where nothing else was allowed",
    ),
    (
        "any property more",
        opened(a=TEXT),
        closed(a=TEXT),
        BreakKind.EXTRA,
        "`$.*` may now be there, where nothing else was allowed",
    ),
    (
        "larger numbers",
        closed(a=integer(0, 20)),
        closed(a=integer(0, 10)),
        BreakKind.RANGE,
        "`$.a` may now be an integer from 0 to 20, and was an integer from 0 to 10",
    ),
    (
        "a gap",
        integer(0, 10),
        any_of(integer(0, 4), integer(6, 10)),
        BreakKind.RANGE,
        "`$` may now be an integer from 0 to 10, and was an integer from 0 to 4 or an integer from 6 to 10",
    ),
    (
        "an open end",
        NUMBER | {"minimum": 0},
        NUMBER | {"exclusiveMinimum": 0},
        BreakKind.RANGE,
        "`$` may now be a number of at least 0, and was a number above 0",
    ),
    (
        "odd numbers",
        INTEGER,
        integer(multipleOf=2),
        BreakKind.RANGE,
        "`$` may now be an integer, and was an integer that is a multiple of 2",
    ),
    (
        "longer text",
        closed(a=TEXT),
        closed(a=text(maxLength=120)),
        BreakKind.RANGE,
        "`$.a` may now be any string, and was a string of at most 120 characters",
    ),
    (
        "no pattern",
        closed(a=TEXT),
        closed(a=text(pattern="^INV-")),
        BreakKind.FORMAT,
        "`$.a` may now be any string, and was a string that matches `^INV-`",
    ),
    (
        "no format",
        closed(a=TEXT),
        closed(a=text(format="date")),
        BreakKind.FORMAT,
        "`$.a` may now be any string, and was a string of the format date",
    ),
    (
        "more items",
        list_of(TEXT),
        list_of(TEXT, maxItems=5),
        BreakKind.RANGE,
        "`$` may now be a list, and was a list of at most 5 items",
    ),
    (
        "equal items",
        list_of(TEXT),
        list_of(TEXT, uniqueItems=True),
        BreakKind.RANGE,
        "`$` may now be a list with equal items, and was a list of items that all differ",
    ),
    (
        "items of another type",
        closed(items=list_of(closed(price=TEXT))),
        closed(items=list_of(closed(price=NUMBER))),
        BreakKind.TYPE,
        "`$.items[].price` was number and is now string",
    ),
    (
        "the second of a pair",
        {"type": "array", "prefixItems": [TEXT, TEXT]},
        {"type": "array", "prefixItems": [TEXT, INTEGER]},
        BreakKind.TYPE,
        "`$[1]` was integer and is now string",
    ),
    (
        "properties of any name",
        {"type": "object", "additionalProperties": INTEGER},
        {"type": "object", "additionalProperties": TEXT},
        BreakKind.TYPE,
        "`$.*` was string and is now integer",
    ),
    (
        "an alternative more",
        any_of(REFUND, BILLING, TECHNICAL),
        any_of(REFUND, BILLING),
        BreakKind.VALUE,
        "`$.kind` may now be `technical`, which consumers do not know",
    ),
    (
        "a name that is not a word",
        closed(**{"a.b": TEXT}),
        closed(**{"a.b": INTEGER}),
        BreakKind.TYPE,
        "`$['a.b']` was integer and is now string",
    ),
    (
        "both of two demands",
        {"type": "number"},
        {"allOf": [NUMBER, {"minimum": 1}]},
        BreakKind.RANGE,
        "`$` may now be a number, and was a number of at least 1",
    ),
]

UNKNOWN: list[tuple[str, Schema, Schema]] = [
    ("another pattern", text(pattern="^a"), text(pattern="^ab?")),
    ("another format", text(format="date-time"), text(format="date")),
    ("a pattern for a length", text(pattern="^a{2}$"), text(maxLength=2)),
    ("a format for a value", {"enum": ["2026-11-23"]}, text(format="date")),
    ("not", TEXT, {"type": "string", "not": {"const": "a"}}),
    ("if", opened(a=TEXT), {**opened(a=TEXT), "if": {"required": ["b"]}, "then": {"required": ["c"]}}),
    ("names by pattern", opened(a=TEXT), {**opened(a=TEXT), "patternProperties": {"^x-": INTEGER}}),
    (
        "names by pattern, in what is closed",
        {**closed(a=TEXT), "patternProperties": {"^b": TEXT}},
        closed(a=TEXT),
    ),
    ("a reference to elsewhere", closed(a={"$ref": "https://example.com/a.json"}), closed(a=TEXT)),
    ("a reference to nothing", closed(a=TEXT), closed(a={"$ref": "#/$defs/gone"})),
    (
        "the same words for different things",
        {"not": {"$ref": "#/$defs/a"}, "$defs": {"a": TEXT}},
        {"not": {"$ref": "#/$defs/a"}, "$defs": {"a": NULL}},
    ),
    ("a reference to itself", {"$ref": "#"}, TEXT),
    ("alternatives that overlap", any_of(TEXT, INTEGER), {"oneOf": [TEXT, {"type": ["string", "integer"]}]}),
    (
        "objects that only both take",
        closed(a=any_of(TEXT, INTEGER)),
        any_of(closed(a=TEXT), closed(a=INTEGER)),
    ),
]


@pytest.mark.parametrize(
    ("new", "old"), [case[1:] for case in COMPATIBLE], ids=[case[0] for case in COMPATIBLE]
)
def test_an_answer_that_keeps_what_was_promised_breaks_nothing(new: JsonObject, old: JsonObject) -> None:
    found = breaks(new, old)

    assert [each.message for each in found] == []


@pytest.mark.parametrize(
    ("new", "old", "kind", "message"), [case[1:] for case in BREAKING], ids=[case[0] for case in BREAKING]
)
def test_a_break_says_where_and_how(new: JsonObject, old: JsonObject, kind: BreakKind, message: str) -> None:
    found = breaks(new, old)

    assert [(each.kind, each.message) for each in found] == [(kind, message)]


@pytest.mark.parametrize(("new", "old"), [case[1:] for case in UNKNOWN], ids=[case[0] for case in UNKNOWN])
def test_what_cannot_be_decided_is_unknown_and_not_compatible(new: JsonObject, old: JsonObject) -> None:
    found = breaks(new, old)

    assert {each.kind for each in found} == {BreakKind.UNKNOWN}
    assert "cannot be compared" in found[0].message


# --- What is no longer given --------------------------------------------------------------------

NARROWED: list[tuple[str, Schema, Schema, list[tuple[str, BreakKind, str]]]] = [
    ("a value", closed(a={"enum": ["x"]}), closed(a={"enum": ["x", "y"]}), [("$.a", NO_LONGER, "`y`")]),
    ("null", closed(a=TEXT), closed(a=any_of(TEXT, NULL)), [("$.a", NO_LONGER, "`null`")]),
    ("false", {"const": True}, {"type": "boolean"}, [("$", NO_LONGER, "`false`")]),
    ("a type", closed(a=TEXT), closed(a=any_of(TEXT, INTEGER)), [("$.a", NO_LONGER, "integer")]),
    (
        "a property that was optional",
        closed(a=TEXT),
        closed(a=TEXT, b=TEXT) | {"required": ["a"]},
        [("$.b", BreakKind.GONE, "")],
    ),
    (
        "an alternative",
        REFUND,
        any_of(REFUND, BILLING),
        [("$.kind", NO_LONGER, "`billing`"), ("$.invoice", BreakKind.GONE, "")],
    ),
    (
        "a value in a list",
        list_of(closed(a={"const": "x"})),
        list_of(closed(a={"enum": ["x", "y"]})),
        [("$[].a", NO_LONGER, "`y`")],
    ),
    (
        "a value of any property",
        {"type": "object", "additionalProperties": {"const": 1}},
        {"type": "object", "additionalProperties": {"enum": [1, 2]}},
        [("$.*", NO_LONGER, "`2`")],
    ),
    (
        "a value that nobody can be sure of",
        {"enum": ["x"], "not": {"const": "x"}},
        {"enum": ["x"]},
        [("$", BreakKind.UNKNOWN, "whether it may still be `x` is not known")],
    ),
    (
        "a value in a recursive list",
        node({"enum": ["x"]}),
        node({"enum": ["x", "y"]}),
        [("$.value", NO_LONGER, "`y`")],
    ),
    ("nothing: wider", closed(a=TEXT, b=TEXT), closed(a={"enum": ["x"]}), []),
    ("nothing: shorter", text(maxLength=3), TEXT, []),
    ("nothing was promised", closed(a=TEXT), {}, []),
    ("nothing: now integers", INTEGER, NUMBER, []),
    ("nothing: listed, where any was allowed", {"enum": ["x"]}, TEXT, []),
]


@pytest.mark.parametrize(
    ("new", "old", "expected"), [case[1:] for case in NARROWED], ids=[case[0] for case in NARROWED]
)
def test_what_is_no_longer_given_is_named(
    new: JsonObject, old: JsonObject, expected: list[tuple[str, BreakKind, str]]
) -> None:
    found = narrowed(new, old)

    assert [(each.path, each.kind, each.given) for each in found] == expected


# --- Laws ---------------------------------------------------------------------------------------


def test_a_schema_keeps_its_own_promise_in_a_copy_that_says_more() -> None:
    schemas = [schema for case in [*COMPATIBLE, *BREAKING, *UNKNOWN] for schema in case[1:3]]
    understood = [each for each in schemas if "oneOf" not in each and '"#/$defs/a"' not in json.dumps(each)]
    here = [each for each in understood if "://" not in json.dumps(each) and "gone" not in json.dumps(each)]

    # `title` keeps the two from being equal, so that they are really compared
    copies = [({**each, "title": "copy"}, each) for each in here if each != {"$ref": "#"}]

    assert [pair for pair in copies if breaks(*pair) or narrowed(*pair)] == []


def test_recursion_ends_and_names_the_first_and_the_second_level() -> None:
    found = breaks(node(TEXT), node(INTEGER))

    assert [each.path for each in found] == ["$.value", "$.next.value"]


def test_a_part_that_only_seemed_to_fit_is_compared_again_elsewhere() -> None:
    # `tree` fits its old self only while its `leaf` does, and `leaf` stands beside it as well
    def document(leaf: Schema) -> Schema:
        tree = closed(left=any_of({"$ref": "#/$defs/tree"}, NULL), leaf=leaf)
        return closed(either=any_of({"$ref": "#/$defs/tree"}, TEXT), again={"$ref": "#/$defs/tree"}) | {
            "$defs": {"tree": tree}
        }

    found = breaks(document(TEXT), document(INTEGER))

    assert {each.path for each in found} >= {"$.either.leaf", "$.again.leaf"}


def test_twenty_definitions_that_each_refer_twice_to_the_next_are_compared_at_once() -> None:
    def doubling(last: Schema) -> Schema:
        levels = {
            f"level{at}": closed(a={"$ref": f"#/$defs/level{at + 1}"}, b={"$ref": f"#/$defs/level{at + 1}"})
            for at in range(20)
        }
        return {"$ref": "#/$defs/level0", "$defs": levels | {"level20": last}}

    kept = breaks(doubling({"enum": [1]}), doubling({"enum": [1, 2]}))
    broken = breaks(doubling({"enum": [1, 2]}), doubling({"enum": [1]}))

    assert kept == ()
    assert len(broken) == 1_001
    assert (broken[-1].kind, broken[-1].path) == (BreakKind.UNKNOWN, "$")


def test_where_not_all_differences_are_listed_it_is_said() -> None:
    many = closed(**{f"p{at}": {"enum": ["x", "y"]} for at in range(1_500)})
    few = closed(**{f"p{at}": {"enum": ["x"]} for at in range(1_500)})

    for found in (breaks(many, few), narrowed(few, many)):
        assert len(found) == 1_001
        assert (found[-1].kind, found[-1].path) == (BreakKind.UNKNOWN, "$")


def switches(**settings: object) -> Schema:
    """Ten switches, some of them set."""
    return closed(
        **{f"s{at}": {"enum": [0, 1]} for at in range(10)}
        | {name: {"const": each} for name, each in settings.items()}
    )


def test_alternatives_that_leave_one_object_out_are_told_apart() -> None:
    any_off = any_of(*(switches(**{f"s{at}": 0}) for at in range(10)))
    all_on = switches(**{f"s{at}": 1 for at in range(10)})

    assert breaks(switches(), {"anyOf": [*any_off["anyOf"], all_on]}) == ()
    assert said(breaks(switches(), any_off)) == "breaking"


def test_a_maze_of_alternatives_is_left_before_it_takes_long() -> None:
    rows = [[number >> at & 1 for at in range(10)] for number in range(1 << 10)]
    even = any_of(
        *(switches(**{f"s{at}": each for at, each in enumerate(row)}) for row in rows if not sum(row) % 2)
    )

    started = time.perf_counter()
    found = breaks(switches(), even)

    assert found
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize("levels", [60, 600])
def test_what_is_nested_too_deeply_to_compare_is_unknown(levels: int) -> None:
    new, old = INTEGER, NUMBER
    for _ in range(levels):
        new, old = list_of(new), list_of(old)

    assert {each.kind for each in breaks(new, old)} == {BreakKind.UNKNOWN}
    assert {each.kind for each in narrowed(new, old)} <= {BreakKind.UNKNOWN}


def test_what_pydantic_says_of_a_consumer_is_understood() -> None:
    class Line(BaseModel):
        product: str
        amount: int = Field(ge=1, le=99)

    class Order(BaseModel):
        id: str = Field(max_length=12)
        lines: list[Line]
        note: str | None = None
        tags: dict[str, float] = {}
        pair: tuple[int, str] = (0, "")

    class Ticket(TypedDict):
        category: str

    line = closed(product=TEXT, amount=integer(1, 5))
    order = closed(id=text(maxLength=12), lines=list_of(line), note=any_of(TEXT, NULL))
    schema = TypeAdapter(Order).json_schema()

    assert breaks(order, schema) == ()
    assert breaks(TICKET_SCHEMA, TypeAdapter(Ticket).json_schema()) == ()
    assert [each.told(READ, "shop:Order") for each in breaks(closed(id=TEXT, lines=TEXT), schema)] == [
        "`$.id` may be any string, and shop:Order takes a string of at most 12 characters",
        "`$.lines` is string, and shop:Order takes array",
    ]


def test_every_kind_of_break_has_its_words_for_answers_readers_and_callers() -> None:
    kinds = set(BreakKind)

    missing = [kinds - set(words) for words in (READ, CALLED)]

    assert missing == [{BreakKind.NARROWED}] * 2  # only answers are ever asked for what they no longer give


def test_paths_lie_in_one_another() -> None:
    pairs = {
        ("$.items[].price", "$.items"): True,
        ("$.items", "$.items"): True,
        ("$.items_sold", "$.items"): False,
    }

    assert {pair: is_at(*pair) for pair in pairs} == pairs


def test_a_schema_speaks_of_what_it_declares_and_may_hold_more() -> None:
    schema = closed(
        items=list_of(opened(price=NUMBER), maxItems=3), either=any_of(closed(a=TEXT), NULL), **{"a.b": TEXT}
    )

    found = {
        path: (speaks_of(schema, path), may_hold(schema, path))
        for path in (
            "$",
            "$.items[].price",
            "$.items[2].price",
            "$.items[3]",
            "$.items[0].name",
            "$.either.a",
            "$['a.b']",
            "$.other",
            "items[0].price",
        )
    }

    assert found == {
        "$": (True, True),
        "$.items[].price": (True, True),
        "$.items[2].price": (False, True),
        "$.items[3]": (False, False),
        "$.items[0].name": (False, True),
        "$.either.a": (True, True),
        "$['a.b']": (True, True),
        "$.other": (False, False),
        "items[0].price": (False, False),
    }


def test_a_value_may_be_where_the_schema_allows_it_or_nobody_knows() -> None:
    schema = closed(kind={"enum": ["a", "b"]}, on=text(format="date"), items=list_of(INTEGER))

    assert may_be(schema, "$.kind", "a")
    assert not may_be(schema, "$.kind", "c")
    assert may_be(schema, "$.on", "2026-11-23")
    assert may_be(schema, "$.items[4]", 7)
    assert not may_be(schema, "$.items[4]", "7")


# --- Oracles ------------------------------------------------------------------------------------


@dataclass
class Random:
    """Makes small schemas, and others that are nearly the same."""

    seed: random.Random
    kinds: tuple[str, ...]

    def schema(self, depth: int = 2) -> Schema:
        nested = ("object", "object", "object", "array", "array", "anyOf", "types", *self.kinds)
        flat = ("string", "enum", "enum", "integer", "number", "boolean", "null")
        kind = self.seed.choice(flat + (nested if depth else ()))
        return getattr(self, f"_{kind}")(depth - 1)

    def near(self, schema: Schema) -> Schema:
        """A copy in which one or two things are replaced, dropped, or moved by one."""
        copied: Schema = json.loads(json.dumps(schema))
        for _ in range(self.seed.randint(1, 2)):
            places = list(_places(copied))
            if not places:
                return self.schema()
            holder, key = self.seed.choice(places)
            if key in ("required", "enum"):
                holder[key].remove(self.seed.choice(holder[key]))
            elif isinstance(holder[key], int):
                holder[key] = max(0, holder[key] + self.seed.choice((-1, 1)))
            else:
                holder[key] = self.schema(1)
        return copied

    def _maybe(self, chance: float, **keywords: object) -> Schema:
        return keywords if self.seed.random() < chance else {}

    def _string(self, depth: int) -> Schema:
        bounds = self._maybe(0.3, minLength=self.seed.randint(0, 2)) | self._maybe(
            0.3, maxLength=self.seed.randint(2, 6)
        )
        return {"type": "string"} | bounds

    def _enum(self, depth: int) -> Schema:
        return {"enum": self.seed.sample(["a", "b", "c", 1, 2, None], self.seed.randint(1, 4))}

    def _integer(self, depth: int) -> Schema:
        bounds = self._maybe(0.4, minimum=self.seed.randint(-3, 3)) | self._maybe(
            0.4, maximum=self.seed.randint(3, 9)
        )
        return {"type": "integer"} | (bounds or self._maybe(0.3, multipleOf=self.seed.choice((2, 3))))

    def _number(self, depth: int) -> Schema:
        return self._integer(depth) | {"type": "number"}

    def _boolean(self, depth: int) -> Schema:
        return {"type": "boolean"}

    def _null(self, depth: int) -> Schema:
        return {"type": "null"}

    def _types(self, depth: int) -> Schema:
        return {"type": self.seed.sample(["string", "integer", "null", "boolean", "number"], 2)}

    def _object(self, depth: int) -> Schema:
        names = self.seed.sample(["a", "b", "c"], self.seed.randint(1, 3))
        required = [name for name in names if self.seed.random() < 0.7]
        return (
            {"type": "object", "properties": {name: self.schema(depth) for name in names}}
            | ({"required": required} if required else {})
            | self._maybe(0.6, additionalProperties=False)
        )

    def _array(self, depth: int) -> Schema:
        bounds = self._maybe(0.3, minItems=self.seed.randint(0, 2)) | self._maybe(
            0.3, maxItems=self.seed.randint(2, 4)
        )
        return {"type": "array", "items": self.schema(depth)} | bounds | self._maybe(0.1, uniqueItems=True)

    def _tuple(self, depth: int) -> Schema:
        first = [self.schema(depth) for _ in range(self.seed.randint(1, 2))]
        return {"type": "array", "prefixItems": first, "items": self.seed.choice([False, self.schema(0)])}

    def _branches(self, keyword: str, depth: int) -> Schema:
        return {keyword: [self.schema(depth) for _ in range(self.seed.randint(1, 3))]}

    def _anyOf(self, depth: int) -> Schema:
        return self._branches("anyOf", depth)

    def _oneOf(self, depth: int) -> Schema:
        return self._branches("oneOf", depth)

    def _allOf(self, depth: int) -> Schema:
        return self._branches("allOf", depth)

    def _not(self, depth: int) -> Schema:
        return {"type": "string", "not": {"const": "a"}}

    def _pattern(self, depth: int) -> Schema:
        return {"type": "string", "pattern": self.seed.choice(["^a", "b$", "^[a-z]+$"])}


def _places(schema: Any) -> Any:
    """Every part of a schema that could be another: what holds it, and under which key."""
    for key, value in schema.items() if isinstance(schema, dict) else enumerate(schema):
        if key in ("required", "enum"):
            if len(value) > 1:
                yield schema, key
        elif key == "properties":
            yield from ((value, name) for name in value)
        elif isinstance(value, dict) or (
            isinstance(value, int) and not isinstance(value, bool) and key != "multipleOf" and key != "const"
        ):
            yield schema, key
        if isinstance(value, dict | list):
            yield from (place for place in _places(value) if key not in ("required", "enum", "type", "not"))


def said(found: tuple[Break, ...]) -> str:
    kinds = {each.kind for each in found}
    return "compatible" if not kinds else "unknown" if kinds == {BreakKind.UNKNOWN} else "breaking"


def counterexamples(new: Schema, old: Schema) -> list[Any]:
    """Values that `new` allows and `old` does not, among those that show what `new` allows."""
    has, had = Draft202012Validator(new), Draft202012Validator(old)
    return [each for each in instances(new, 60) if has.is_valid(each) and not had.is_valid(each)]


def test_no_pair_with_a_counterexample_is_ever_called_compatible() -> None:
    made = Random(random.Random(20261123), ("allOf", "oneOf", "not", "pattern", "tuple", "tuple"))
    verdicts: Counter[str] = Counter()

    for _ in range(1_500):
        new = made.schema()
        old = made.near(new)
        verdict = said(breaks(new, old))
        verdicts[verdict] += 1
        if verdict == "compatible":
            assert counterexamples(new, old) == [], (new, old)

    assert verdicts["compatible"] > 250
    assert verdicts["unknown"] < 200


def test_nearly_every_break_can_be_shown_by_a_value() -> None:
    made = Random(random.Random(7), ("allOf", "tuple"))
    shown: Counter[bool] = Counter()

    for _ in range(500):
        new = made.schema()
        old = made.near(new)
        if said(breaks(new, old)) == "breaking":
            shown[bool(counterexamples(new, old))] += 1

    assert shown[True] > 250
    assert shown[False] < 0.02 * shown[True]  # the few values that `instances` does not think of


def test_another_library_agrees_wherever_it_has_an_answer() -> None:
    made = Random(random.Random(118), ())
    agreed: Counter[tuple[str, bool]] = Counter()

    for _ in range(400):
        new = made.schema()
        old = made.near(new)
        verdict = said(breaks(new, old))
        try:
            is_subset = jsonsubschema.isSubschema(new, old)
        except ValueError:  # its intervals cannot be joined
            continue
        if is_subset is None:
            continue
        agreed[verdict, is_subset] += 1
        assert (verdict == "compatible") <= is_subset <= (verdict != "breaking"), (new, old)

    assert agreed["compatible", True] > 60
    assert agreed["breaking", False] > 200
    assert agreed["unknown", True] + agreed["unknown", False] < 20
