"""A config folder becomes a snapshot: values where it can be read, problems where it cannot."""

from __future__ import annotations

import json

import pytest

from deploy_gates.core.config import Comparison, Snapshot
from deploy_gates.core.errors import Problem
from deploy_gates.core.question import Api
from deploy_gates.snapshot import snapshot

CONFIG = """\
model: gpt-4.1-mini
messages:
  - {role: system, content: {file: prompt.md}}
  - {role: user, content: "{{ body }}"}
inputs: {type: object, properties: {body: {type: string}}, required: [body]}
parameters: {temperature: 0}
output: output.schema.json
golden: {exclude_paths: [reason]}
limits: {cost_per_request: "0.0004"}
"""
SCHEMA = '{"type": "object", "properties": {}, "additionalProperties": false}'
FILES = {
    "golden/a/config.yaml": CONFIG,
    "golden/a/prompt.md": "Sort the ticket.\n",
    "golden/a/output.schema.json": SCHEMA,
    "golden/a/cases.jsonl": '{"id": "one", "inputs": {"body": "x"}, "expected": {}}\n',
}


def read(files: dict[str, str]) -> Snapshot:
    def reading(file: str, most: int) -> tuple[str, Problem | None]:
        if file in files:
            return files[file], None
        return "", Problem(message="cannot be read: No such file or directory", file=file)

    return snapshot("golden/a/config.yaml", reading)


def digest_of(files: dict[str, str]) -> str:
    config = read(files).config
    assert config is not None
    return config.digest


def test_a_folder_is_read_whole_with_its_referenced_files_inlined() -> None:
    made = read(FILES)

    assert made.problems == ()
    assert made.config is not None
    assert made.config.api is Api.CHAT
    assert made.config.messages[0].content == "Sort the ticket.\n"
    assert made.config.output is not None
    assert made.config.output.schema == json.loads(SCHEMA)
    assert made.config.limits.cost_per_request_nanousd == 400_000
    assert [case.id for case in made.cases] == ["one"]


@pytest.mark.parametrize(
    "harmless",
    [
        CONFIG + "# a comment\n",
        CONFIG.replace("temperature: 0", "temperature: 0.0"),
        CONFIG.replace("model: gpt-4.1-mini\n", "") + "model: gpt-4.1-mini\n",
        CONFIG.replace("\n", "\r\n"),
        "x-note: for anchors only\n" + CONFIG,
    ],
    ids=["comment", "number", "key order", "line endings", "anchors"],
)
def test_the_digest_is_that_of_what_the_config_says_and_not_of_how(harmless: str) -> None:
    assert digest_of(FILES | {"golden/a/config.yaml": harmless}) == digest_of(FILES)


@pytest.mark.parametrize(
    "edit",
    [
        {"golden/a/prompt.md": "Sort the ticket well.\n"},
        {"golden/a/output.schema.json": SCHEMA.replace("false", "true")},
        {"golden/a/config.yaml": CONFIG.replace("temperature: 0", "temperature: 1")},
    ],
    ids=["prompt file", "schema file", "parameter"],
)
def test_the_digest_changes_with_every_file_the_config_refers_to(edit: dict[str, str]) -> None:
    assert digest_of(FILES | edit) != digest_of(FILES)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (
            {"golden/a/prompt.md": None},
            "golden/a/config.yaml:3: `messages[0].content` names golden/a/prompt.md",
        ),
        ({"golden/a/output.schema.json": "{"}, "golden/a/output.schema.json:1: is not JSON"),
        ({"golden/a/output.schema.json": "[]"}, "golden/a/output.schema.json:1: is not a JSON object"),
        ({"golden/a/config.yaml": CONFIG.replace("prompt.md", "../../../x")}, "lies outside the repository"),
        ({"golden/a/config.yaml": "- a\n"}, "golden/a/config.yaml:1: is not a mapping"),
        ({"golden/a/config.yaml": ""}, "golden/a/config.yaml: is empty"),
        ({"golden/a/cases.jsonl": '{"id": "a"}\n'}, "golden/a/cases.jsonl:1: lacks `inputs`"),
        ({"golden/a/cases.jsonl": '{"id": "a::b", "inputs": {}}'}, "golden/a/cases.jsonl:1: `id`"),
        ({"golden/a/cases.jsonl": '{"id": "a", "inputs": {}}\n' * 2}, "which line 1 has already"),
        (
            {"golden/a/cases.jsonl": '{"id": "a", "inputs": {}, "expcted": 1}'},
            "golden/a/cases.jsonl:1: `expcted` is not known here; did you mean `expected`?",
        ),
        (
            {"golden/a/cases.jsonl": '{"id": "a", "inputs": {}, "checks": [{"kind": "contain"}]}'},
            "did you mean `contains`?",
        ),
        (
            {"golden/a/cases.jsonl": '{"id": "a", "inputs": {}, "checks": [{"kind": "range", "path": "x"}]}'},
            "golden/a/cases.jsonl:1: `checks[0]` lacks",
        ),
        ({"golden/a/cases.jsonl": None}, "golden/a/cases.jsonl: cannot be read"),
    ],
)
def test_what_is_wrong_in_a_folder_is_said_with_file_and_line(
    edit: dict[str, str | None], sentence: str
) -> None:
    files = {name: text for name, text in (FILES | edit).items() if text is not None}

    said = [str(each) for each in read(files).problems]

    assert any(sentence in each for each in said), said


def test_one_broken_line_among_ten_thousand_is_the_only_one_told() -> None:
    lines = [json.dumps({"id": f"case-{n}", "inputs": {"body": "x"}}) for n in range(10_000)]
    lines[7_776] = lines[7_776][:-1]

    made = read(FILES | {"golden/a/cases.jsonl": "\n".join(lines)})

    assert len(made.cases) == 9_999
    assert [problem.line for problem in made.problems] == [7_777]


def test_a_case_overrides_how_the_config_compares() -> None:
    line = '{"id": "one", "inputs": {}, "expected": 1, "ignore_order": true}'

    made = read(FILES | {"golden/a/cases.jsonl": line})

    assert made.cases[0].comparison == Comparison(exclude_paths=("reason",), ignore_order=True)
