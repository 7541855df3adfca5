"""Golden cases asked in batches: submitted once, whoever is killed when, and collected whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from batches import BatchServer, Body, serve_batches
from deploy_gates.core.cost import Usage
from deploy_gates.core.errors import Cause
from deploy_gates.core.gate import Found, Outcome
from deploy_gates.core.question import Question
from deploy_gates.model import Batches, Budget, Endpoint, Engine, Record
from deploy_gates.model.batch import Pending, Register
from deploy_gates.testing import NOW
from project import CATEGORIES, Project
from test_model import Kept, Naps, a_check, a_question
from test_plugin import gates, run


def refund(body: Body) -> str:
    return "refund"


@contextmanager
def engine(server: BatchServer, folder: Path, **fields: object) -> Iterator[Engine]:
    """An engine that asks in batches, and is closed at the end."""
    patience_s = fields.pop("patience_s", 3_600.0)
    batches = Batches(
        register=folder / "triage.json",
        patience_s=patience_s,  # type: ignore[arg-type]
        price=lambda question, usage: 1,
    )
    made: dict[str, object] = {
        "recorded": {},
        "endpoint": Endpoint(base_url=server.base_url, api_key="sk-x", timeout_s=5.0),
        "record": Record.NEW,
        "journal": Kept(),
        "price": lambda question, usage: 2,
        "estimate": lambda question: Usage(input_tokens=100, output_tokens=900),
        "now": lambda: NOW,
        "sleep": Naps(),
        "batches": batches,
    }
    running = Engine(**(made | fields))  # type: ignore[arg-type]  # a builder for tests takes any field
    try:
        yield running
    finally:
        running.close()


def asked(running: Engine, names: str = "abc") -> list[Outcome]:
    checks = [a_check(name) for name in names]
    with running.batching([a_question(name) for name in names]):
        running.ask_ahead(checks)
        return [running.outcome(check) for check in checks]


def test_all_that_is_asked_at_once_is_one_batch(tmp_path: Path) -> None:
    journal = Kept()

    with serve_batches(refund) as server, engine(server, tmp_path, journal=journal) as running:
        outcomes = asked(running)

    assert [each.found for each in outcomes] == [Found.MET] * 3
    assert len(server.batches) == 1
    assert sorted(server.questions) == sorted(a_question(name).key for name in "abc")
    assert sorted(journal.lines) == sorted((a_question(name).key, "refund") for name in "abc")
    assert [each.spent_nanousd for each in outcomes] == [1, 1, 1]
    assert not (tmp_path / "triage.json").exists()


def test_what_failed_within_a_batch_is_not_known_and_the_rest_is(tmp_path: Path) -> None:
    def answer(body: Body) -> str | int:
        return 400 if body["messages"][0]["content"] == "b" else "refund"

    with serve_batches(answer, answered_max=2) as server, engine(server, tmp_path) as running:
        outcomes = asked(running)

    assert [each.found for each in outcomes] == [Found.MET, Found.UNKNOWN, Found.UNKNOWN]
    assert outcomes[1].figures["unanswered"] == Cause.REFUSED
    assert "could not be executed in time" in outcomes[2].reasons[0]


def test_a_batch_that_the_endpoint_refuses_says_why(tmp_path: Path) -> None:
    with serve_batches(refund, status="failed") as server, engine(server, tmp_path) as running:
        outcomes = asked(running)

    assert {each.found for each in outcomes} == {Found.UNKNOWN}
    assert outcomes[0].reasons == ("batch_1 was refused: line 1 is not JSON",)
    assert not (tmp_path / "triage.json").exists()


def test_a_batch_that_is_left_is_collected_later_and_submitted_once(tmp_path: Path) -> None:
    with serve_batches(refund, is_finished=False) as server:
        with engine(server, tmp_path, patience_s=0.0) as running:
            left = asked(running)
        server.finish()
        with engine(server, tmp_path) as running:
            found = asked(running, "abcd")

    assert {each.found for each in left} == {Found.UNKNOWN}
    assert left[0].reasons == ("batch_1 is under way: 0 of 3 are answered",)
    assert "--gate-batch" in str(left[0].figures["hint"])
    assert {each.found for each in found} == {Found.MET}
    assert sorted(server.questions) == sorted(a_question(name).key for name in "abcd")
    assert len(server.batches) == 2


def test_a_batch_whose_creation_was_not_confirmed_is_not_created_again(tmp_path: Path) -> None:
    with serve_batches(refund, deaf_creates=1) as server, engine(server, tmp_path) as running:
        outcomes = asked(running)

    assert {each.found for each in outcomes} == {Found.MET}
    assert len(server.batches) == 1


@pytest.mark.parametrize(("was_created", "batches"), [(True, 1), (False, 1)])
def test_who_was_killed_while_creating_finds_out_whether_it_worked(
    tmp_path: Path, was_created: bool, batches: int
) -> None:
    keys = tuple(a_question(name).key for name in "abc")

    with serve_batches(refund) as server:
        place = server.base_url.split("/")[2]
        Register(tmp_path / "triage.json").put(
            Pending(
                token="t1",
                place=place,
                api="chat.completions",
                keys=keys,
                submitted_at="2026-11-23T09:00:00+00:00",
            )
        )
        if was_created:
            lines = [_line(a_question(name)) for name in "abc"]
            file = server.keep("".join(lines).encode())
            server.create(
                {
                    "input_file_id": file,
                    "endpoint": "/v1/chat/completions",
                    "metadata": {"deploy-gates": "t1"},
                }
            )
        with engine(server, tmp_path) as running:
            outcomes = asked(running)

    assert {each.found for each in outcomes} == {Found.MET}
    assert len(server.batches) == batches


def _line(question: Question) -> str:
    made = {"custom_id": question.key, "method": "POST", "url": "/v1/chat/completions", "body": question.body}
    return json.dumps(made) + "\n"


def test_no_more_is_submitted_than_may_be_spent(tmp_path: Path) -> None:
    with serve_batches(refund) as server, engine(server, tmp_path, budget=Budget(5)) as running:
        outcomes = asked(running, "abcd")

    assert [each.found for each in outcomes] == [Found.MET, Found.MET, Found.UNKNOWN, Found.UNKNOWN]
    assert outcomes[-1].figures["unanswered"] == Cause.BUDGET
    assert len(server.questions) == 2


# --- Whole runs ---------------------------------------------------------------------------------


def right(body: Body) -> str:
    prompt = body["messages"][-1]["content"]
    return json.dumps({"category": next(each for each in CATEGORIES if each in prompt)})


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A change of which nothing is recorded, and a key to ask with."""
    for name in ("GITHUB_BASE_REF", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    made = Project(pytester.path, cases=40)
    made.edit("Sort the ticket.", "Sort the ticket, please.")
    return made


def test_cases_are_asked_in_a_batch_and_the_endpoint_is_tried_live(
    pytester: pytest.Pytester, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_batches(right) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        result = run(pytester, "--gate-batch")

    assert result.ret == 0, result.stdout.str()
    assert set(gates(project).values()) == {"pass"}
    assert len(server.batches) == 1
    assert len(server.questions) == 80 - len(server.singles)
    assert len((project.folder / "recordings.jsonl").read_text().splitlines()) == 80
    result.stdout.fnmatch_lines(["*in batches*", "*batch_1 has completed and is collected*"])


def test_a_run_that_is_killed_waits_for_the_same_batch_the_next_time(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "pytest", "--deploy-gates", "--gate-batch", "-p", "no:cacheprovider"]
    with serve_batches(right, is_finished=False) as server:
        environ = os.environ | {"OPENAI_BASE_URL": server.base_url}
        first = subprocess.Popen(
            command, cwd=project.root, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        assert server.created.wait(60)
        first.send_signal(signal.SIGKILL)
        first.wait()
        server.finish()
        again = subprocess.run(
            command, cwd=project.root, env=environ, capture_output=True, text=True, check=False
        )

    assert again.returncode == 0, again.stdout
    assert len(server.batches) == 1
    assert len(server.questions) == len(set(server.questions))


def test_without_the_option_a_batch_under_way_is_told(
    pytester: pytest.Pytester, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_batches(right, is_finished=False) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        left = run(pytester, "--gate-batch", "--gate-batch-wait=0")
        later = run(pytester, "--gate-record=none")

    assert left.ret == 1
    left.stdout.fnmatch_lines(["*batch_1 is under way*"])
    later.stdout.fnmatch_lines(["*batches of triage are under way: `--gate-batch` collects them*"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gate-batch-wait=5"], "*add --gate-batch*"),
        (["--gate-batch", "--gate-batch-wait=soon"], "*is no number of minutes*"),
    ],
)
def test_a_wait_that_makes_no_sense_is_refused(
    pytester: pytest.Pytester, project: Project, options: list[str], said: str
) -> None:
    result = run(pytester, *options)

    assert result.ret == 4
    result.stderr.fnmatch_lines([said])
