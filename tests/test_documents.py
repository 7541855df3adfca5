"""YAML, JSON, and JSON Lines come in as people write them; what is wrong comes out with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from deploy_gates import documents
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.documents import parse_json, parse_json_lines, parse_yaml


def problems_of(text: str) -> list[str]:
    document = parse_yaml(text, "config.yaml")
    return [str(each) for each in document.problems or documents.validate(document, "config")]


MINIMAL = "model: gpt-4.1-mini\nmessages: [{role: user, content: hi}]\n"


@pytest.mark.parametrize(
    ("added", "sentence"),
    [
        ("modle: x", "config.yaml:3: `modle` is not known here; did you mean `model`?"),
        ("model: y", "config.yaml:3: `model` stands here twice; keep one of the two"),
        ("api: chat", 'config.yaml:3: `api` is "chat", and must be one of'),
        ("limits: {context_window: many}", 'config.yaml:3: `limits.context_window` is the string "many"'),
        (
            "parameters: {temperature: 3}",
            "config.yaml:3: `parameters.temperature` is 3, and must be at most 2",
        ),
        ("parameters: {n: 2}", "config.yaml:3: `parameters.n` is 2, and must be 1"),
        ("traffic: []", "config.yaml:3: `traffic` is a list, and must be a mapping"),
        ("tools: []", "config.yaml:3: `tools` is empty"),
        ("tools:\n  - type: function", "config.yaml:4: `tools[0]` lacks `function`"),
        ("output: 3", "config.yaml:3: `output` is the number 3, and must be a string"),
        ("parameters: {messages: []}", "config.yaml:3: `parameters.messages` does not belong here"),
        ("limits: {cost_per_request: .inf}", "which JSON cannot say"),
        ("limits: {context_window: 99999999999999999999}", "larger than 2**53"),
        ("metadata: !!python/object:os.system {}", "has the tag"),
        ("metadata: {", "config.yaml:4: is not YAML: while parsing a flow"),
        ("metadata: {a: *b}", "config.yaml:3: is not YAML: found undefined alias 'b'"),
    ],
)
def test_what_is_wrong_in_a_config_is_said_with_its_line_and_key(added: str, sentence: str) -> None:
    said = problems_of(MINIMAL + added + "\n")

    assert any(sentence in each for each in said), said


def test_all_problems_are_told_at_once_in_the_order_of_the_file() -> None:
    said = problems_of("model: 3\napi: x\nmessages: []\nlimts: {}\n")

    assert [line.split(":")[1] for line in said] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    "text",
    [
        MINIMAL,
        MINIMAL.replace("\n", "\r\n"),
        json.dumps({"model": "gpt-4.1-mini", "messages": [{"role": "user", "content": "hi"}]}),
        "x-base: &base {temperature: 0}\n" + MINIMAL + "parameters: {<<: *base, seed: 1}\n",
    ],
    ids=["yaml", "windows line endings", "json", "anchors and merge keys"],
)
def test_a_valid_config_has_no_problem_however_it_is_written(text: str) -> None:
    assert problems_of(text) == []


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"),
        ("0o17", 15),
        ("017", 17),
        ("1_000", "1_000"),
        ("1e3", 1000.0),
        ("~", None),
        ("'1'", "1"),
        ("2026-11-23", "2026-11-23"),
        ("12:30:00", "12:30:00"),
        ("True", True),
    ],
)
def test_plain_scalars_mean_what_yaml_1_2_says(written: str, value: object) -> None:
    document = parse_yaml(f"a: {written}\n", "x.yaml")

    assert document.value == {"a": value}


def test_merged_keys_give_way_to_those_written_out() -> None:
    document = parse_yaml("one: &one {a: 1, b: 1}\ntwo: {<<: *one, b: 2}\n", "x.yaml")

    assert document.value == {"one": {"a": 1, "b": 1}, "two": {"a": 1, "b": 2}}


def test_aliases_that_expand_to_a_billion_values_are_refused() -> None:
    lines = ["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"]
    lines += [f"a{n}: &a{n} [{','.join(f'*a{n - 1}' for _ in range(10))}]" for n in range(1, 10)]

    document = parse_yaml("\n".join(lines), "x.yaml")

    assert "more than 100,000 values" in str(document.problems[0])


def test_an_alias_that_contains_itself_is_refused() -> None:
    document = parse_yaml("a: &a [*a]\n", "x.yaml")

    assert "an alias contains itself" in str(document.problems[0])


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"a: caf\xe9\n", "x.yaml:1: is not UTF-8: byte 0xe9 at offset 6; save the file as UTF-8"),
        (b"a: 1\n\xff\xfeb", "x.yaml:2: is not UTF-8"),
        (b"a: \0\n", "x.yaml:1: holds a NUL byte"),
        (b"a" * 200, "x.yaml: is 0.0 MiB; at most 0 MiB are read"),
    ],
)
def test_bytes_that_are_no_text_are_refused_in_one_sentence(raw: bytes, sentence: str) -> None:
    text, problem = documents.decode(raw, "x.yaml", max_bytes=100)

    assert text == ""
    assert sentence in str(problem)


def test_a_byte_order_mark_is_dropped() -> None:
    text, problem = documents.decode(b"\xef\xbb\xbfmodel: x\n", "x.yaml", max_bytes=100)

    assert (text, problem) == ("model: x\n", None)


def test_a_symlink_that_points_at_itself_is_a_problem_and_no_traceback(tmp_path: Path) -> None:
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)

    _, problem = documents.read(loop, "loop.yaml", 100)

    assert "cannot be read: Too many levels of symbolic links" in str(problem)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"a": 1, "a": 2}', "has the key `a` twice"),
        ('{"a": NaN}', "holds NaN"),
        ('{"a": 1e999}', "larger than any number JSON can say"),
        ('{"a": 9007199254740993}', "larger than 2**53"),
        ('{"a": }', "is not JSON: Expecting value at column 7"),
        ("[" * 100_000, "is nested too deep"),
    ],
)
def test_json_that_is_ambiguous_is_refused(text: str, sentence: str) -> None:
    document = parse_json(text, "x.json")

    assert sentence in str(document.problems[0])


def test_each_line_of_a_dataset_is_read_by_itself() -> None:
    lines = dict(parse_json_lines('{"a": 1}\r\n\r\n{broken\r\n{"a": 2}\r\n', "cases.jsonl"))

    assert {number: document.value for number, document in lines.items()} == {
        1: {"a": 1},
        3: None,
        4: {"a": 2},
    }
    assert "cases.jsonl:3: is not JSON" in str(lines[3].problems[0])


NUMBERS: JsonObject = {"type": ["integer", "null"], "minimum": 0, "exclusiveMaximum": 3}
TREE: JsonObject = {
    "$defs": {"tree": {"type": "object", "properties": {"children": {"items": {"$ref": "#/$defs/tree"}}}}},
    "$ref": "#/$defs/tree",
}
QUICK: list[JsonObject] = [
    NUMBERS,
    TREE,
    {"enum": [1, "a", None, [True], {"a": 1}]},
    {"type": "string", "pattern": "^[a-c]+$", "maxLength": 3},
    {"properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False},
    {"oneOf": [{"type": "number"}, {"minimum": 2}]},
    {"type": "string", "format": "date"},
]
NUMBER = st.integers(-2, 4) | st.sampled_from([0.0, 1.0, 1.5])
KEYS = st.sampled_from(["a", "b", "children"])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBER | st.text("abcd", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
    max_leaves=6,
)


@pytest.mark.parametrize("schema", QUICK, ids=json.dumps)
@given(value=VALUES)
def test_what_is_quickly_found_valid_is_valid(schema: JsonObject, value: Json) -> None:
    pytest.importorskip("jsonschema_rs")
    is_valid = documents.quick(schema)

    assert is_valid is not None
    assert not is_valid(value) or Draft202012Validator(schema).is_valid(value)


def test_nothing_is_fetched_to_be_quick() -> None:
    assert documents.quick({"$ref": "http://127.0.0.1:9/schema.json"}) is None
