"""The gates against a real language model over a real socket: SmolLM2-135M under llama.cpp's server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import local_model

from project import Project
from test_plugin import gates, run

pytestmark = [
    pytest.mark.local_model,
    pytest.mark.skipif(
        bool(local_model.missing()),
        reason=f"{local_model.missing()} is not installed: `{local_model.INSTALL}`",
    ),
]


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with local_model.serve(threads=1) as url:
        yield url


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, base_url: str) -> Project:
    """The example's model on our small config, with few-shot examples, asked over HTTP."""
    monkeypatch.setenv("OPENAI_API_KEY", "local")
    monkeypatch.setenv("OPENAI_BASE_URL", base_url)
    made = Project(pytester.path, cases=12)
    for file in ("pyproject.toml", "golden/triage/config.yaml"):
        made.edit("our-7b", local_model.MODEL, file)
    made.edit("margin_pt = 8.0", "margin_pt = 40.0", "pyproject.toml")
    made.commit("the model that is here")
    return made


def test_a_live_run_judges_what_the_model_says(pytester: pytest.Pytester, project: Project) -> None:
    project.edit("Sort the ticket.", "Sort this ticket.")

    result = run(pytester, "--gate-record=all")

    found = gates(project)
    assert (found["type"], found["unit"], found["cost"]) == ("pass", "pass", "pass"), result.stdout.str()
    assert found["integration"] == "pass"
    kept = [json.loads(line) for line in (project.folder / "recordings.jsonl").read_text().splitlines()]
    assert len(kept) == 24
    assert {each["model"] for each in kept} == {local_model.MODEL}


def test_without_the_response_format_the_answers_are_no_longer_json(
    pytester: pytest.Pytester, project: Project
) -> None:
    """The server stops constraining; the schema is still checked, case by case."""
    project.edit("output: output.schema.json\n", "")
    cases = [
        json.loads(line) | {"checks": [{"kind": "schema", "schema": {"type": "object"}}]}
        for line in (project.folder / "cases.jsonl").read_text().splitlines()
    ]
    project.cases(cases)

    result = run(pytester, "--gate=integration,golden", "--gate-record=new")

    assert result.ret == 1
    assert gates(project)["golden"] == "fail", result.stdout.str()
