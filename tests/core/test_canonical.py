"""One spelling for each value, and one digest for each spelling."""

from __future__ import annotations

import hashlib

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from deploy_gates.core.canonical import Json, canonical, digest, restored, spelled


@pytest.mark.parametrize(
    ("value", "spelling"),
    [
        ({"b": 1, "a": [True, None]}, b'{"a":[true,null],"b":1}'),
        (1.0, b"1"),
        (1e21, b"1e+21"),
        (0.000001, b"0.000001"),
        ('\u20ac\x0f\n\\"', b'"\xe2\x82\xac\\u000f\\n\\\\\\""'),
        # UTF-16 code units decide: the surrogate pair of U+1F600 comes before U+FB33.
        ({"\ufb33": 1, "\U0001f600": 2}, '{"\U0001f600":2,"\ufb33":1}'.encode()),
    ],
)
def test_values_are_spelled_as_rfc_8785_says(value: Json, spelling: bytes) -> None:
    assert canonical(value) == spelling


def test_the_digest_is_that_of_the_canonical_spelling() -> None:
    assert digest({"b": 1, "a": 2}) == hashlib.sha256(b'{"a":2,"b":1}').hexdigest()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53])
def test_numbers_that_json_cannot_say_have_no_spelling(value: float) -> None:
    with pytest.raises(ValueError):
        canonical(value)


def test_the_order_of_a_schemas_properties_is_part_of_what_it_says() -> None:
    reason_first: Json = {"properties": {"reason": {}, "category": {}}, "type": "object"}
    category_first: Json = {"type": "object", "properties": {"category": {}, "reason": {}}}

    assert digest(reason_first) != digest(category_first)
    assert digest(category_first) == hashlib.sha256(canonical(category_first)).hexdigest()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.text()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_the_fast_spelling_is_that_of_the_reference(value: Json) -> None:
    assert canonical(value) == rfc8785.dumps(value)


schemas = st.recursive(
    st.fixed_dictionaries({"type": st.sampled_from(["string", "number"])}),
    lambda inner: st.builds(
        lambda names, each: {"type": "object", "properties": dict.fromkeys(names, each)},
        st.lists(
            st.sampled_from(["reason", "category", "a", "z", "propertyOrdering"]), unique=True, min_size=1
        ),
        inner,
    ),
    max_leaves=6,
)


def _names(schema: Json) -> object:
    """The properties of a schema in their order, and those below them."""
    return [(name, _names(each)) for name, each in schema.get("properties", {}).items()]


@given(schemas)
def test_what_was_spelled_is_restored_with_its_fields_in_their_order(schema: Json) -> None:
    again = restored(spelled({"output": {"schema": schema}}))

    assert _names(again["output"]["schema"]) == _names(schema)
    assert digest(again) == digest({"output": {"schema": schema}})


def test_an_ordering_that_the_team_wrote_itself_stays() -> None:
    written: Json = {"properties": {"a": {}, "b": {}}, "propertyOrdering": ["a", "b"]}

    assert restored(spelled(written)) == written
