"""Instances of a schema are valid, few, and between them show all it allows."""

from __future__ import annotations

import json
import random

import pytest
from jsonschema import Draft202012Validator

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.instances import VALUES_MAX, instances
from deploy_gates.testing import TICKET_SCHEMA

NODE: JsonObject = {
    "type": "object",
    "properties": {
        "value": {"type": "integer"},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
        "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
    },
    "required": ["value", "next", "children"],
    "additionalProperties": False,
}

SCHEMAS: dict[str, JsonObject] = {
    "ticket": TICKET_SCHEMA,
    "anything": {},
    "recursion": {"$defs": {"node": NODE}, "$ref": "#/$defs/node"},
    "deep": {
        "$defs": {
            f"level{at}": {
                "type": "object",
                "properties": {side: {"$ref": f"#/$defs/level{at + 1}"} for side in ("left", "right")},
                "required": ["left"],
            }
            for at in range(25)
        }
        | {"level25": {"type": "integer"}},
        "$ref": "#/$defs/level0",
    },
    "bounds": {
        "type": "object",
        "properties": {
            "share": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            "even": {"type": "integer", "minimum": 3, "maximum": 9, "multipleOf": 2},
            "price": {"type": "number", "minimum": 0, "multipleOf": 0.01},
            "name": {"type": "string", "minLength": 2, "maxLength": 5},
        },
        "required": ["share", "even", "price", "name"],
    },
    "formats": {
        "type": "array",
        "prefixItems": [
            {"type": "string", "format": name} for name in ("date-time", "uuid", "email", "ipv6")
        ],
        "items": False,
        "minItems": 4,
    },
    "patterns": {
        "type": "array",
        "prefixItems": [
            {"type": "string", "pattern": pattern}
            for pattern in (
                r"^[A-Z]{3}-\d{2,4}$",
                r"^(?:yes|no)?$",
                r"^[^a-z]+\.\w*$",
                r"colou?r",
                r"^\[.\]{2}$",
                r"^(?P<year>\d{4})-[01]\d$",
            )
        ],
        "minItems": 6,
    },
    "distinct": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True, "minItems": 2},
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}, "required": ["a"]},
            {"properties": {"a": {"maximum": 3}, "b": {"const": None}}, "required": ["b"]},
        ]
    },
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_instances_are_valid_different_and_no_more_than_asked_for(name: str) -> None:
    schema = SCHEMAS[name]
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)

    made = instances(schema, limit=20)

    assert 1 <= len(made) <= 20
    assert len({json.dumps(each, sort_keys=True) for each in made}) == len(made)
    assert [each for each in made if not validator.is_valid(each)] == []


def test_every_enum_value_boolean_branch_null_and_end_of_a_bound_appears() -> None:
    schema: JsonObject = {
        "type": "object",
        "properties": {
            "color": {"enum": ["red", "green", "blue", "black", "white"]},
            "urgent": {"type": "boolean"},
            "note": {"anyOf": [{"type": "string", "minLength": 1}, {"type": "null"}]},
            "score": {"type": "integer", "minimum": 2, "maximum": 7},
            "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 3},
        },
        "required": ["color", "urgent", "note", "score", "tags"],
        "additionalProperties": False,
    }

    made = [each for each in instances(schema) if isinstance(each, dict)]

    assert {each["color"] for each in made} == {"red", "green", "blue", "black", "white"}  # type: ignore[misc]
    assert {each["urgent"] for each in made} == {False, True}  # type: ignore[misc]
    assert {2, 7} <= {each["score"] for each in made}  # type: ignore[misc]
    assert {type(each["note"]) for each in made} == {str, type(None)}
    assert {len(each["tags"]) for each in made} >= {0, 3}  # type: ignore[arg-type]


def test_optional_properties_are_there_and_are_not() -> None:
    schema: JsonObject = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a"],
    }

    made = instances(schema)

    assert {tuple(each) for each in made if isinstance(each, dict)} == {("a",), ("a", "b")}


def test_a_limit_cuts_no_alternative_off_as_a_whole() -> None:
    schema: JsonObject = {"anyOf": [{"enum": list(range(100))}, {"type": "null"}, {"type": "boolean"}]}

    made = instances(schema, limit=6)

    assert made == [0, None, False, 1, True, 2]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"$ref": "#/$defs/missing"},
        {"$ref": "https://example.com/other.json"},
        {"$ref": "#"},
        {"type": "array", "items": {"type": "integer"}, "minItems": VALUES_MAX},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "string", "pattern": r"^(?=a)\b"},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"type": "nonsense"},
    ],
    ids=str,
)
def test_where_nothing_can_be_made_nothing_is_made(schema: JsonObject) -> None:
    made = instances(schema)

    assert made == []


def test_instances_share_nothing_that_a_caller_could_change() -> None:
    schema = SCHEMAS["recursion"]

    made = instances(schema)
    made[0]["value"] = "changed"  # type: ignore[index,call-overload]

    assert instances(schema)[0] != made[0]


def test_schemas_made_at_random_never_yield_an_invalid_instance() -> None:
    chance = random.Random(7)

    def schema(depth: int) -> JsonObject:
        kinds = ["string", "integer", "number", "boolean", "null", "enum", "ref"]
        kind = chance.choice(kinds + ["object", "array", "anyOf"] * 2 if depth else kinds)
        if kind == "object":
            names = chance.sample("abcde", k=chance.randint(0, 4))
            return {
                "type": "object",
                "properties": {name: schema(depth - 1) for name in names},
                "required": list(names[: chance.randint(0, len(names))]),
                "additionalProperties": chance.random() < 0.3,
            }
        if kind == "array":
            least = chance.randint(0, 3)
            return {
                "type": "array",
                "items": schema(depth - 1),
                "minItems": least,
                "maxItems": least + chance.randint(0, 3),
                "uniqueItems": chance.random() < 0.3,
            }
        if kind == "anyOf":
            return {"anyOf": [schema(depth - 1) for _ in range(chance.randint(1, 3))]}
        if kind == "ref":
            return {"$ref": chance.choice(["#/$defs/one", "#/$defs/two"])}
        if kind == "enum":
            return {"enum": chance.sample([1, "a", None, True, 2.5, "b"], k=chance.randint(1, 4))}
        bounds: JsonObject = {}
        if kind in ("integer", "number"):
            least = chance.randint(-5, 5)
            bounds = {"minimum": least, "exclusiveMaximum": least + chance.randint(1, 9)}
        elif kind == "string":
            least = chance.randint(0, 4)
            bounds = {"minLength": least, "maxLength": least + chance.randint(0, 4)}
        return {"type": kind} | bounds

    empty = 0
    for _ in range(300):
        definitions: JsonObject = {
            name: {"type": "object", "properties": {"x": schema(2)}, "required": chance.choice([[], ["x"]])}
            for name in ("one", "two")
        }
        document = schema(3) | {"$defs": definitions}
        validator = Draft202012Validator(document)

        made: list[Json] = instances(document, limit=30)

        assert [each for each in made if not validator.is_valid(each)] == [], document
        empty += not made
    assert empty < 60
