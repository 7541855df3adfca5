"""A compiled schema says of every value what the validator says."""

from __future__ import annotations

import itertools
import json
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.compiled import compiled
from deploy_gates.core.instances import instances

TREE: JsonObject = {
    "$defs": {"tree": {"type": "object", "properties": {"children": {"items": {"$ref": "#/$defs/tree"}}}}},
    "$ref": "#/$defs/tree",
}
SCHEMAS: list[Json] = [
    True,
    False,
    {},
    {"type": "integer", "minimum": 0, "exclusiveMaximum": 3},
    {"type": ["string", "null"], "minLength": 1, "maxLength": 3},
    {"enum": [1, "a", None, [True], {"a": 1}]},
    {"const": False},
    {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 2},
    {"properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False},
    {"additionalProperties": {"type": "integer"}},
    {"type": "string", "pattern": "^[a-c]+$"},
    {"anyOf": [{"type": "string"}, {"minimum": 2}]},
    {"oneOf": [{"type": "number"}, {"minimum": 2}]},
    {"not": {"type": "string"}},
    {"allOf": [{"maxLength": 2}, {"type": ["string", "object"]}]},
    {"if": {"properties": {"a": {"const": 1}}}, "then": {"required": ["b"]}, "else": {"type": "object"}},
    TREE,
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 4)
    | st.sampled_from([0.0, 1.0, 1.5])
    | st.text("abcd", max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "children"]), inner)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
@given(value=VALUES)
def test_compiled_and_general_agree(schema: Json, value: Json) -> None:
    is_valid = compiled(schema)

    assert is_valid is not None
    assert is_valid(value) == Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize(
    "schema",
    [
        {"format": "date"},
        {"multipleOf": 2},
        {"patternProperties": {"^a": True}},
        {"$ref": "https://example.com/schema"},
        {"properties": {"a": {"$id": "urn:other", "$ref": "#/$defs/b"}}},
        {"pattern": "("},
        {"prefixItems": [True]},
        {"type": "text"},
    ],
    ids=json.dumps,
)
def test_what_is_not_known_is_left_to_the_validator(schema: Json) -> None:
    assert compiled(schema) is None


def test_the_schema_of_cases_is_compiled_and_agrees() -> None:
    text = resources.files("deploy_gates").joinpath("data", "case.schema.json").read_text("utf-8")
    schema = json.loads(text)
    is_valid, validator = compiled(schema), Draft202012Validator(schema)
    assert is_valid is not None
    base: JsonObject = {"id": "a", "inputs": {}}
    checks: list[Json] = [
        {"kind": kind, **extra}
        for kind, extra in itertools.product(
            schema["$defs"]["check"]["properties"]["kind"]["enum"],
            [{}, {"path": "a"}, {"path": "a", "min": 1}, {"value": "x"}, {"name": "f"}, {"function": "a:b"}],
        )
    ]
    tried = [base | {"checks": [check]} for check in checks] + [*instances(schema)] + [base | {"odd": 1}, []]

    said = [(is_valid(each), validator.is_valid(each)) for each in tried]

    assert all(one == other for one, other in said)
    assert {one for one, _ in said} == {True, False}
