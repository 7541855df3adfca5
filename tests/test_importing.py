"""Cases of other tools become golden cases; what has no counterpart is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy_gates import documents, importing
from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.errors import WorkspaceError
from deploy_gates.importing import Imported

PROMPTFOO = """
prompts: [prompt.txt]
defaultTest:
  vars: {language: en}
  assert: [{type: not-icontains, value: as an AI}]
tests:
  - description: A refund, please!
    vars: {body: The lamp is broken}
    assert:
      - {type: equals, value: refund}
      - {type: contains, value: sorry}
      - {type: icontains-any, value: [money, refund]}
      - {type: regex, value: "ref.nd"}
      - {type: llm-rubric, value: is polite, threshold: 0.7}
      - {type: similar, value: You get it back}
      - {type: javascript, value: output.length < 100}
    metadata: {tags: [refund, smoke]}
  - vars: {body: hello}
    assert:
      - {type: is-json, value: {type: object, required: [category]}}
      - {type: contains-all, value: "a, b"}
      - {type: latency, threshold: 2000}
  - description: nothing to hold
    vars: {body: bye}
    assert: [{type: python, value: check.py}]
  - file://more.yaml
"""


def imported(tmp_path: Path, name: str, text: str, **options: str) -> Imported:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    made = importing.read(path, **options)
    for case in made.cases:
        line = importing.spelled(case)
        for at, document in documents.parse_json_lines(line, "cases.jsonl"):
            problems = document.problems or documents.validate(document, "case", line=at)
            assert not problems, problems
    return made


def test_promptfoo_tests_become_cases(tmp_path: Path) -> None:
    made = imported(tmp_path, "promptfooconfig.yaml", PROMPTFOO)

    first, second, third = made.cases
    unlike: JsonObject = {"kind": "not_contains", "value": "as an AI", "ignore_case": True}
    assert first == {
        "id": "a-refund-please",
        "inputs": {"language": "en", "body": "The lamp is broken"},
        "expected": "refund",
        "checks": [
            unlike,
            {"kind": "contains", "value": "sorry"},
            {"kind": "regex", "pattern": "(?i)money|refund"},
            {"kind": "regex", "pattern": "ref.nd"},
            {"kind": "judge", "rubric": "is polite", "min": 0.7},
            {"kind": "similarity", "reference": "You get it back", "min": 0.75},
        ],
        "tags": ["refund", "smoke"],
    }
    assert second["checks"] == [
        unlike,
        {"kind": "schema", "schema": {"type": "object", "required": ["category"]}},
        {"kind": "contains", "value": "a"},
        {"kind": "contains", "value": "b"},
    ]
    assert third["checks"] == [unlike]
    assert made.left_out == {
        "assertions of the type javascript": 1,
        "assertions of the type latency": 1,
        "assertions of the type python": 1,
        "tests that are kept in another file": 1,
    }


def test_rows_of_a_csv_become_cases(tmp_path: Path) -> None:
    text = (
        "body,language,__expected,__expected2,__description\n"
        '"broken, lamp",en,refund,,Broken lamp\n'
        "hello,de,contains: hallo,similar(0.9): guten Tag,\n"
        "x,en,grade: is polite,,\n"
        "y,en,python: len(output) < 5,,\n"
    )

    made = imported(tmp_path, "tests.csv", text)

    assert made.cases == [
        {"id": "broken-lamp", "inputs": {"body": "broken, lamp", "language": "en"}, "expected": "refund"},
        {
            "id": "case-0002",
            "inputs": {"body": "hello", "language": "de"},
            "checks": [
                {"kind": "contains", "value": "hallo"},
                {"kind": "similarity", "reference": "guten Tag", "min": 0.9},
            ],
        },
        {
            "id": "case-0003",
            "inputs": {"body": "x", "language": "en"},
            "checks": [{"kind": "judge", "rubric": "is polite", "min": 0.5}],
        },
    ]
    assert made.left_out["cases that ask for nothing that can be carried over"] == 1


def test_samples_of_openai_evals_become_cases(tmp_path: Path) -> None:
    lines = [
        {
            "input": [{"role": "system", "content": "Sort."}, {"role": "user", "content": "The lamp"}],
            "ideal": "refund",
        },
        {"messages": [{"role": "user", "content": "2+2?"}], "ideal": ["4", "four"]},
        {"input": "plain", "ideal": ["one"]},
        {"input": [{"role": "user", "content": [{"type": "image_url"}]}], "ideal": "a cat"},
    ]

    made = imported(tmp_path, "samples.jsonl", "\n".join(map(json.dumps, lines)), variable="body")

    assert made.cases == [
        {"id": "case-0001", "inputs": {"body": "The lamp"}, "expected": "refund"},
        {
            "id": "case-0002",
            "inputs": {"body": "2+2?"},
            "checks": [{"kind": "regex", "pattern": r"\A\s*(?:4|four)\s*\Z"}],
        },
        {"id": "case-0003", "inputs": {"body": "plain"}, "expected": "one"},
    ]
    assert made.left_out == {
        "messages of the role system: the config has its own": 1,
        "samples whose last message is no text": 1,
    }


def test_ids_are_unique_and_can_be_named(tmp_path: Path) -> None:
    tests = "tests:\n" + "".join(
        f'  - {{description: "A [b]: c/d", vars: {{n: {at}}}, assert: [{{type: equals, value: x}}]}}\n'
        for at in range(3)
    )

    made = imported(tmp_path, "t.yaml", tests)

    assert [case["id"] for case in made.cases] == ["a-b-c-d", "a-b-c-d-2", "a-b-c-d-3"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.txt", "", "nobody knows how to read it"),
        ("t.yaml", "tests: 3", "has no list of `tests`"),
        ("t.yaml", "a: [", "is not YAML"),
        ("t.yaml", "tests: []", "holds no case"),
        ("t.csv", "a,b,c\n", "holds no case"),
        ("t.jsonl", "[1]\n", "is no sample of an eval"),
        ("t.csv", "a,b\n1\n", "row 1 has not as many columns"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(WorkspaceError, match=said):
        imported(tmp_path, name, text)
