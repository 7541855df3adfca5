"""The subset of JSON Schema that strict structured outputs take: each rule, its place, and what to write."""

from __future__ import annotations

from typing import Any

import pytest
from openai.lib._pydantic import to_strict_json_schema
from pydantic import BaseModel

from deploy_gates.core import strict
from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.errors import Problem
from deploy_gates.testing import TICKET_SCHEMA

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}


def closed(**properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def said(schema: JsonObject, **options: bool) -> list[str]:
    return [str(each) for each in strict.problems(schema, **options)]


TAKEN: dict[str, Schema] = {
    "the ticket": TICKET_SCHEMA,
    "every keyword there is": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Order",
        "description": "What was bought.",
        **closed(
            number={"type": "string", "pattern": "^O-[0-9]+$", "maxLength": 12, "minLength": 3},
            on={"type": "string", "format": "date"},
            amount={"type": ["number", "null"], "minimum": 0, "exclusiveMaximum": 1e6, "multipleOf": 0.01},
            kind={"type": "string", "enum": ["gift", "own"]},
            version={"const": 2},
            lines={"type": "array", "items": {"$ref": "#/$defs/line"}, "minItems": 1, "maxItems": 50},
            either={"anyOf": [TEXT, {"type": "null"}]},
        ),
        "$defs": {"line": closed(product=TEXT)},
    },
    "a tree": closed(root={"$ref": "#/$defs/node"})
    | {"$defs": {"node": closed(left={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})}},
    "a reference to all of it": closed(next={"anyOf": [{"$ref": "#"}, {"type": "null"}]}),
    "nothing": closed(),
}

REFUSED: list[tuple[str, Schema, str, str, str]] = [
    (
        "alternatives at the top",
        {"anyOf": [closed(a=TEXT), closed(b=TEXT)]},
        "anyOf",
        "stands at the top, which must be one object",
        "put it into a property, and answer an object with that property",
    ),
    (
        "a reference at the top",
        {"$ref": "#/$defs/a", "$defs": {"a": closed(a=TEXT)}},
        "$ref",
        "stands at the top, which must be one object",
        "write the object here in place of the reference",
    ),
    (
        "a list at the top",
        {"type": "array", "items": TEXT},
        "type",
        "must be `object` at the top",
        "put it into a property, and answer an object with that property",
    ),
    (
        "an optional property",
        closed(a=TEXT, b=TEXT) | {"required": ["a"]},
        "required",
        "lacks `b`: every property is required",
        'write `"type": ["string", "null"]` for what may be missing',
    ),
    (
        "a required property that is none",
        closed(category=TEXT) | {"required": ["category", "categry"]},
        "required",
        "names `categry`, which is no property",
        "did you mean `category`?",
    ),
    (
        "an open object",
        closed(a={"type": "object", "properties": {"b": TEXT}, "required": ["b"]}),
        "properties.a",
        "lacks `additionalProperties: false`",
        "",
    ),
    (
        "a dictionary",
        closed(a={"type": "object", "additionalProperties": TEXT}),
        "properties.a.additionalProperties",
        "must be false",
        "write a list of objects with a name and a value",
    ),
    (
        "oneOf, in a list, in a definition",
        closed(a={"$ref": "#/$defs/b"})
        | {"$defs": {"b": {"type": "array", "items": {"type": "string", "oneOf": [TEXT]}}}},
        "$defs.b.items.oneOf",
        "is not supported",
        "write `anyOf`",
    ),
    (
        "allOf, in a branch",
        closed(a={"anyOf": [TEXT, {"type": "string", "allOf": [TEXT]}]}),
        "properties.a.anyOf[1].allOf",
        "is not supported",
        "write the parts as one schema",
    ),
    (
        "a misspelt keyword",
        closed(a={"type": "string", "maxLenght": 3}),
        "properties.a.maxLenght",
        "is not supported",
        "did you mean `maxLength`?",
    ),
    (
        "a default",
        closed(a=TEXT | {"default": "x"}),
        "properties.a.default",
        "is not supported",
        "remove it: every property is required anyway",
    ),
    (
        "examples",
        closed(a=TEXT | {"examples": ["x"]}),
        "properties.a.examples",
        "is not supported",
        "put them in the `description`",
    ),
    ("anything", closed(a={}), "properties.a", "has no `type`", "say what it may be"),
    (
        "anything, as true",
        closed(a=True),
        "properties.a",
        "is true, which allows anything or nothing",
        "write a schema with a `type`",
    ),
    (
        "a list of anything",
        closed(a={"type": "array"}),
        "properties.a",
        "lacks `items`",
        "say what the list holds",
    ),
    (
        "an unknown format",
        closed(a=TEXT | {"format": "uri"}),
        "properties.a.format",
        "is `uri`, which is not supported",
        "known are date-time, time, date, duration, email, hostname, ipv4, ipv6, uuid",
    ),
    (
        "a pattern that looks ahead",
        closed(a=TEXT | {"pattern": "^(?!x)"}),
        "properties.a.pattern",
        "looks ahead or behind, which is not supported",
        "write it without `(?=`, `(?!`, `(?<=`, `(?<!`",
    ),
    (
        "a reference to nothing",
        closed(a={"$ref": "#/$defs/lime"}) | {"$defs": {"line": TEXT}},
        "properties.a.$ref",
        "names #/$defs/lime, which is not in this schema",
        "did you mean `#/$defs/line`?",
    ),
    (
        "a reference to elsewhere",
        closed(a={"$ref": "other.json"}),
        "properties.a.$ref",
        "names other.json, which is not in this schema",
        "write `#/$defs/…`",
    ),
    (
        "a reference with a description",
        closed(a={"$ref": "#/$defs/b", "description": "x"}) | {"$defs": {"b": TEXT}},
        "properties.a.$ref",
        "stands beside `description`, and must stand alone",
        "move it into the definition",
    ),
]


@pytest.mark.parametrize("schema", TAKEN.values(), ids=TAKEN)
def test_a_schema_of_the_subset_has_no_problem(schema: JsonObject) -> None:
    assert said(schema) == []


@pytest.mark.parametrize(
    ("schema", "key", "message", "hint"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_a_problem_says_where_and_what_to_write_instead(
    schema: JsonObject, key: str, message: str, hint: str
) -> None:
    assert strict.problems(schema) == (Problem(key=key, message=message, hint=hint),)


def nested(levels: int) -> Schema:
    schema = closed(leaf=TEXT)
    for _ in range(levels - 1):
        schema = closed(inner=schema)
    return schema


def enum(count: int, characters: int) -> Schema:
    return {"type": "string", "enum": [f"{at:0{characters}}" for at in range(count)]}


LIMITS: dict[str, tuple[Schema, Schema, str]] = {
    "levels": (nested(10), nested(11), "has 11 levels of nested objects, and at most 10 are taken"),
    "properties": (
        closed(**{f"p{at}": TEXT for at in range(5_000)}),
        closed(**{f"p{at}": TEXT for at in range(5_001)}),
        "has 5,001 properties, and at most 5,000 are taken",
    ),
    "enum values": (
        closed(a=enum(500, 4), b=enum(500, 4)),
        closed(a=enum(500, 4), b=enum(501, 4)),
        "has 1,001 enum values, and at most 1,000 are taken",
    ),
    "one long enum": (
        closed(a=enum(250, 61)),
        closed(a=enum(251, 60)),
        "`properties.a.enum` has 251 values of 15,060 characters, and more than 250 may have 15,000 "
        "together; shorten the values",
    ),
    "characters": (
        closed(a={"const": "x" * 119_999}),
        closed(a={"const": "x" * 120_000}),
        "has 120,001 characters of names and values, and at most 120,000 are taken",
    ),
}


@pytest.mark.parametrize(("within", "beyond", "problem"), LIMITS.values(), ids=LIMITS)
def test_each_limit_is_taken_to_its_end_and_no_further(within: Schema, beyond: Schema, problem: str) -> None:
    assert said(within) == []
    assert said(beyond) == [problem]


def test_levels_are_counted_through_references_and_not_around_in_circles() -> None:
    levels = {f"l{at}": closed(inner={"$ref": f"#/$defs/l{at + 1}"}) for at in range(2, 12)}
    chain = closed(inner={"$ref": "#/$defs/l2"}) | {
        "$defs": levels | {"l12": closed(back={"$ref": "#/$defs/l12"})}
    }

    assert said(chain) == ["has 12 levels of nested objects, and at most 10 are taken"]


def test_fine_tuned_models_take_less() -> None:
    assert said(TICKET_SCHEMA, is_fine_tuned=True) == [
        "`properties.reason.maxLength` is not supported by fine-tuned models; "
        "remove it, and check the answer where it is read"
    ]


def test_what_the_official_client_makes_of_a_model_is_taken_where_it_can_be() -> None:
    class Line(BaseModel):
        product: str
        amount: int | None

    class Order(BaseModel):
        """What was bought."""

        lines: list[Line]
        first: Line

    class Loose(BaseModel):
        prices: dict[str, float]
        pair: tuple[int, int]

    assert said(to_strict_json_schema(Order)) == []
    assert {each.key for each in strict.problems(to_strict_json_schema(Loose))} == {
        "properties.prices.additionalProperties",
        "properties.pair.prefixItems",
    }


def test_names_have_letters_digits_dashes_and_no_more_than_64_of_them() -> None:
    good = ["ticket", "Ticket_2-b", "x" * 64]
    bad = ["", "a b", "ä", "x" * 65, "a\n", "a.b"]

    assert [name for name in good + bad if strict.NAME.match(name)] == good
