"""`deploy-gates golden`, as a process: review, accept, check, import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy_gates.core.canonical import Json, JsonObject
from project import Project, case


def golden(*arguments: str, at: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy_gates", "golden", *arguments],
        cwd=at,
        capture_output=True,
        text=True,
        check=False,
    )


def wrong(inputs: JsonObject, number: int) -> Json:
    return {"category": "billing"}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Nine cases, of which the candidate answers six otherwise than expected."""
    made = Project(tmp_path / "project", cases=9)
    made.record()
    made.commit("answers")
    made.edit("Sort the ticket.", "Sort this <b>ticket</b>.")
    made.record(wrong)
    return made


def expected(project: Project) -> dict[str, Json]:
    lines = (project.folder / "cases.jsonl").read_text("utf-8").splitlines()
    return {each["id"]: each["expected"] for each in map(json.loads, lines)}


def test_review_shows_changed_answers_side_by_side_the_worse_ones_first(project: Project) -> None:
    done = golden("review", at=project.root)

    assert done.returncode == 0, done.stderr
    assert "6 worse, 3 the same" in done.stdout
    assert "refund-001  worse  refund, smoke" in done.stdout
    assert '"category": "refund"' in done.stdout
    assert "misses    category: expected refund, got billing" in done.stdout
    assert all(len(line) <= 96 for line in done.stdout.splitlines())


def test_review_reads_without_unicode_too(project: Project) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy_gates", "golden", "review"],
        cwd=project.root,
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )

    assert b" | " in done.stdout
    assert b"\\u" not in done.stdout


def test_review_is_one_page_that_loads_nothing_and_escapes_what_it_shows(project: Project) -> None:
    cases = [case(number) for number in range(9)]
    cases[1]["inputs"] = {"body": "<script>alert(1)</script>"}
    project.cases(cases)
    project.record(wrong)

    done = golden("review", "--html", "out/review.html", at=project.root)
    page = (project.root / "out/review.html").read_text("utf-8")

    assert done.returncode == 0, done.stderr
    assert "<del>refund</del>" in page
    assert "<ins>billing</ins>" in page
    assert "<script" not in page
    assert "default-src 'none'" in page


def test_what_is_accepted_is_expected_from_now_on_and_nothing_else_changes(project: Project) -> None:
    before = expected(project)

    done = golden("review", "--accept", "refund-001", at=project.root)
    after = expected(project)

    assert done.returncode == 0, done.stderr
    assert "accepted: refund-001 expects what the candidate answers" in done.stdout
    assert after == before | {"refund-001": {"category": "billing"}}
    assert "5 worse" in golden("review", at=project.root).stdout


def test_nothing_is_accepted_that_has_no_answer(project: Project) -> None:
    before = expected(project)

    done = golden("review", "--accept", "refund-001", "--accept", "no-such", at=project.root)

    assert done.returncode == 1
    assert "not accepted: no-such" in done.stderr
    assert expected(project) == before


def test_review_as_json_names_what_changed(project: Project) -> None:
    (review,) = json.loads(golden("review", "--json", at=project.root).stdout)["reviews"]

    assert {each["came"] for each in review["cases"]} == {"worse"}
    assert len(review["cases"]) == 6


def test_without_a_change_there_is_nothing_to_review(project: Project) -> None:
    project.commit("merged")

    assert "nothing to review" in golden("review", at=project.root).stdout


def test_check_tells_contradictions_and_refuses_them(project: Project) -> None:
    clean = golden("check", at=project.root)
    twin = case(1) | {"id": "twin", "expected": {"category": "technical"}}
    project.cases([*(case(number) for number in range(9)), twin])

    done = golden("check", "triage", at=project.root)

    assert clean.returncode == 0, clean.stdout
    assert done.returncode == 1
    assert "contradiction: the same inputs, and not the same expected: refund-001, twin" in done.stdout


def test_check_says_that_there_is_nothing_to_check(tmp_path: Path) -> None:
    done = golden("check", at=tmp_path)

    assert (done.returncode, done.stdout) == (
        0,
        "there is no config here, and so no golden set; deploy-gates init makes a first one\n",
    )


def test_check_compares_with_samples_of_production(project: Project) -> None:
    project.cases([case(number) for number in range(40)])
    project.write(
        "sent.jsonl", "".join(json.dumps({"body": f"où est ma commande {at}"}) + "\n" for at in range(50))
    )

    done = golden("check", "--production", "sent.jsonl", "--json", at=project.root)

    assert any(each["kind"] == "drift" for each in json.loads(done.stdout)["triage"])


def test_imported_cases_are_added_once(project: Project) -> None:
    project.write(
        "evals.jsonl", json.dumps({"input": "The lamp is broken", "ideal": "refund", "id": "lamp"}) + "\n"
    )

    first = golden("import", "evals.jsonl", "--to", "triage", "--variable", "body", at=project.root)
    again = golden("import", "evals.jsonl", "--to", "triage", "--variable", "body", at=project.root)

    assert "1 case added to golden/triage/cases.jsonl" in first.stderr
    assert "left out: 1 case whose id is there already" in again.stderr
    assert expected(project)["lamp"] == "refund"


def test_without_a_config_imported_cases_are_printed(project: Project) -> None:
    project.write("tests.csv", "body,__expected\nhello,refund\n")

    done = golden("import", "tests.csv", at=project.root)

    assert json.loads(done.stdout) == {"id": "case-0001", "inputs": {"body": "hello"}, "expected": "refund"}
