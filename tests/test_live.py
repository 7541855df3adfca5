"""The gates against a server that misbehaves, over a real socket: never a traceback, never a wrong pass."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from deploy_gates.core.canonical import Json
from project import CATEGORIES, MODEL, Project, case
from servers import Breaks, Drops, Fails, Hangs, Raw, Reply, Request, Says, refused_url, serve
from test_plugin import gates, run, screen

Script = Callable[[Request], Reply]


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A change of which nothing is recorded, and a key to ask with."""
    for name in ("GITHUB_BASE_REF", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    made = Project(pytester.path, cases=40)
    made.edit("Sort the ticket.", "Sort the ticket, please.")
    made.edit("timeout_s: 30", "timeout_s: 1")
    return made


def right(request: Request) -> Says:
    """The category that the ticket names."""
    named = next(each for each in CATEGORIES if each in request.prompt)
    return Says({"category": named}, usage=(30, 8))


COST_NANOUSD = 30 * 100 + 8 * 200
"""What each such answer costs, at the prices in the settings of the project."""


def sometimes(reply: Reply, every: int = 5) -> Script:
    """Well answered, but each so-many-th request gets `reply` at its first attempt."""
    return lambda request: reply if request.number % every == 0 and request.attempt == 1 else right(request)


@pytest.mark.parametrize(
    "script",
    [
        right,
        sometimes(Fails(429, retry_after="0.05")),
        sometimes(Fails(500)),
        sometimes(Breaks()),
        sometimes(Drops()),
        sometimes(Raw(b"{not json")),
        sometimes(Hangs(), every=20),
    ],
    ids=["well behaved", "429 with Retry-After", "500", "truncated body", "dropped", "invalid JSON", "hangs"],
)
def test_faults_that_pass_do_not_change_the_verdict(
    pytester: pytest.Pytester, project: Project, monkeypatch: pytest.MonkeyPatch, script: Script
) -> None:
    with serve(script) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        result = run(pytester)

    assert result.ret == 0, result.stdout.str()
    assert gates(project) == dict.fromkeys(("type", "unit", "integration", "golden", "cost"), "pass")
    assert len((project.folder / "recordings.jsonl").read_text().splitlines()) == 80


@pytest.mark.parametrize(
    ("script", "integration"),
    [
        (lambda _: Fails(500), "inconclusive"),
        (lambda _: Fails(401, "no such key"), "inconclusive"),
        (lambda _: Fails(400, "response_format is not supported"), "fail"),
        (lambda _: Raw('{"choices": "garbage"}'), "inconclusive"),
        (lambda _: Says({"category": "refund"}, model="another-model"), "fail"),
    ],
    ids=["always 500", "wrong key", "refuses the request", "garbage", "another model"],
)
def test_faults_that_stay_are_never_a_pass_and_never_a_traceback(
    pytester: pytest.Pytester,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    script: Script,
    integration: str,
) -> None:
    with serve(script) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        result = run(pytester)

    assert result.ret == 1
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    assert gates(project)["integration"] == integration
    assert gates(project)["golden"] == "inconclusive"


def test_an_endpoint_that_is_not_there_is_said_in_one_sentence(
    pytester: pytest.Pytester, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", refused_url())

    result = run(pytester)

    assert result.ret == 1
    assert gates(project)["golden"] == "inconclusive"
    assert "Traceback" not in result.stdout.str()


def test_nothing_is_asked_of_a_config_that_cannot_pass(
    pytester: pytest.Pytester, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.edit('cost_per_request: "0.01"', 'cost_per_request: "0.000000001"')

    with serve(right) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        result = run(pytester)

    assert result.ret == 1
    assert server.asked == 0
    assert "not asked, since the cost gate already blocks" in " ".join(result.stdout.str().split())


def test_the_run_stops_asking_before_its_budget_is_spent(
    pytester: pytest.Pytester, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(right) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        result = run(pytester, "--gate-budget=0.0001")

    assert result.ret == 1
    assert 0 < server.asked < 80
    assert gates(project)["golden"] == "inconclusive"
    assert "budget" in "\n".join(screen(result))


def test_a_server_that_leaves_the_schema_is_caught(
    pytester: pytest.Pytester, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The baseline keeps to the schema, the candidate talks."""

    def script(request: Request) -> Says:
        talks = "please" in request.body["messages"][0]["content"]
        return Says("Sure! I think this is about a refund.") if talks else right(request)

    with serve(script) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        result = run(pytester)

    assert result.ret == 1
    assert gates(project)["golden"] == "fail"
    assert gates(project)["integration"] == "fail"


def test_what_was_answered_survives_kill_9_and_is_not_asked_again(
    pytester: pytest.Pytester, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    with serve(lambda request: Says(right(request).content, usage=(30, 8), after_s=0.05)) as server:
        project.edit(
            "margin_pt = 8.0", "margin_pt = 8.0\n[tool.deploy_gates]\nin_flight = 1", "pyproject.toml"
        )
        project.commit("the candidate, asked one at a time")
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        journal = project.root / ".deploy-gates/journal/triage.jsonl"
        killed = subprocess.Popen(
            [sys.executable, "-m", "pytest", "--deploy-gates", "-q", "--gate-base=HEAD~1"],
            cwd=project.root,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (
            journal.exists() and journal.read_text().count("key") >= 10
        ):
            time.sleep(0.02)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        asked_before = server.asked
        result = run(pytester, "--gate-base=HEAD~1")
        asked_after = server.asked - asked_before

    assert result.ret == 0, result.stdout.str()
    assert 10 <= asked_before < 80
    assert asked_before + asked_after <= 80 + 1, "the one call under way may be asked again"
    assert len((project.folder / "recordings.jsonl").read_text().splitlines()) == 80
    assert not journal.exists()


def test_ctrl_c_ends_at_once_and_keeps_what_was_answered(
    pytester: pytest.Pytester, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_from = 10
    script = lambda request: right(request) if request.number < slow_from else Hangs()  # noqa: E731
    project.edit("timeout_s: 1", "timeout_s: 60")
    with serve(script) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "--deploy-gates"],
            cwd=project.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and server.asked < slow_from + 5:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)

    assert process.returncode == 2
    assert "Traceback" not in output
    kept = [json.loads(line) for line in (project.folder / "recordings.jsonl").read_text().splitlines()]
    assert len(kept) >= slow_from - 1
    assert {each["model"] for each in kept} == {MODEL}


def test_two_workers_ask_each_question_once(
    pytester: pytest.Pytester, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(right) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        result = run(pytester, "-n2")

    assert result.ret == 0, result.stdout.str()
    assert server.asked == 80
    assert len((project.folder / "recordings.jsonl").read_text().splitlines()) == 80


def test_asking_everything_again_goes_on_where_it_was_broken_off(
    pytester: pytest.Pytester, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(lambda request: right(request) if request.number <= 50 else Fails(401)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        broken_off = run(pytester, "--gate-record=all")

    with serve(right) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        resumed = run(pytester, "--gate-record=all")
        again = server.asked
        everything = run(pytester, "--gate-record=all")

    assert (broken_off.ret, resumed.ret, everything.ret) == (1, 0, 0), resumed.stdout.str()
    assert again == 30
    assert server.asked == 30 + 80


def by_config(candidate: Callable[[int], bool]) -> Script:
    """Both configs answer well, but the candidate misses the tickets whose number says so."""

    def script(request: Request) -> Says:
        number = int(re.findall(r"ticket (\d+)", request.prompt)[-1])
        is_candidate = "please" in str(request.body["messages"])
        return Says({"category": "nothing"}) if is_candidate and candidate(number) else right(request)

    return script


def many(project: Project, cases: int = 600) -> None:
    """So many cases in the baseline as well, and no more at once than show that asking stops."""
    project.git("stash", "-q")
    project.cases([case(number) for number in range(cases)])
    table = "[tool.deploy_gates.golden]"
    project.edit(table, f"[tool.deploy_gates]\nin_flight = 8\n\n{table}", "pyproject.toml")
    project.commit("many cases")
    project.git("stash", "pop", "-q")


def recorded(project: Project) -> list[str]:
    return (project.folder / "recordings.jsonl").read_text("utf-8").splitlines(keepends=True)


@pytest.mark.parametrize(
    ("candidate", "verdict"),
    [(lambda number: number % 3 == 0, "fail"), (lambda number: False, "pass")],
    ids=["a third is lost", "nothing is lost"],
)
def test_asking_stops_as_soon_as_the_verdict_is_certain_and_a_replay_finds_the_same(
    pytester: pytest.Pytester,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    candidate: Callable[[int], bool],
    verdict: str,
) -> None:
    many(project)
    with serve(by_config(candidate)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        live = run(pytester)
    monkeypatch.delenv("OPENAI_API_KEY")

    replayed = run(pytester)

    told = [next(line for line in screen(each) if "certain after" in line) for each in (live, replayed)]
    assert gates(project)["golden"] == verdict
    assert live.ret == replayed.ret == (verdict == "fail")
    assert told[0] == told[1]
    assert server.asked < 300
    assert "not known" not in replayed.stdout.str()


def test_a_second_run_asks_nothing_that_the_recordings_decide_and_all_that_is_asked_is_told_as_spent(
    pytester: pytest.Pytester, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(project)
    told, asked, spent = [], [], []
    with serve(right) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        for _ in range(3):
            result = run(pytester, "--gate-report=report.json")
            told.append(next(line for line in screen(result) if "certain after" in line))
            asked.append(server.asked)
            spent.append(json.loads((project.root / "report.json").read_text("utf-8"))["spent_nanousd"])

    assert asked == [asked[0]] * 3
    assert told == [told[0]] * 3
    assert spent == [len(recorded(project)) * COST_NANOUSD, 0, 0]


def test_recordings_that_do_not_decide_are_added_to_and_that_is_told_as_spent(
    pytester: pytest.Pytester, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(project)
    project.record()
    before = recorded(project)[::2]
    project.write("golden/triage/recordings.jsonl", "".join(before))
    with serve(right) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        run(pytester, "--gate-report=report.json")

    spent = json.loads((project.root / "report.json").read_text("utf-8"))["spent_nanousd"]
    assert 0 < server.asked < 300
    assert spent == (len(recorded(project)) - len(before)) * COST_NANOUSD


def test_without_early_stop_all_are_asked(
    pytester: pytest.Pytester, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(project, 500)
    project.edit("margin_pt = 8.0", "margin_pt = 8.0\nearly_stop = false", "pyproject.toml")
    with serve(right) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        result = run(pytester)

    assert result.ret == 0, result.stdout.str()
    assert server.asked == 1_000
    assert "certain after" not in result.stdout.str()


def test_a_case_that_swung_before_is_asked_more_often_and_each_time_anew(
    pytester: pytest.Pytester, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    past = [[f"earlier-{at}", f"2026-10-0{at + 1}T00:00:00Z", at % 2] for at in range(4)]
    project.write(
        ".deploy-gates/history/triage.jsonl", json.dumps({"case": "refund-001", "scored": past}) + "\n"
    )
    with serve(right) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        result = run(pytester)
        replayed = run(pytester, "--gate-record=none")

    lines = (project.folder / "recordings.jsonl").read_text("utf-8").splitlines()
    kept = [each["key"] for each in map(json.loads, lines) if each["case"] == "refund-001"]
    remembered = (project.root / ".deploy-gates/history/triage.jsonl").read_text("utf-8").splitlines()
    assert result.ret == replayed.ret == 0, result.stdout.str()
    assert server.asked == 80 + 2 * 4
    assert len(set(kept)) == 10
    assert "flaky: refund-001" in result.stdout.str()
    assert len(remembered) == 40


JUDGED = """\
[tool.deploy_gates.models.our-judge]
input_usd_per_mtok = "1.00"
output_usd_per_mtok = "1.00"
context_window = 8192
max_output_tokens = 100
encoding = "o200k_base"
"""


def test_a_judge_is_asked_recorded_and_paid_for_and_changing_it_is_a_change(
    pytester: pytest.Pytester, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.git("checkout", "-q", ".")
    check: Json = {"kind": "judge", "rubric": "It names a category.", "min": 0.5}
    project.cases([case(number, checks=[check]) if number == 1 else case(number) for number in range(40)])
    project.write("golden/triage/judge.yaml", "model: our-judge\nvotes: 2\nparameters: {max_tokens: 100}\n")
    label = {"rubric": "It names a category.", "answer": "refund", "score": 1}
    project.write("golden/triage/judge.labels.jsonl", json.dumps(label) + "\n")
    project.edit("limits:", "golden: {judge: judge.yaml}\nlimits:")
    project.edit("[tool.deploy_gates.golden]", f"{JUDGED}\n[tool.deploy_gates.golden]", "pyproject.toml")
    project.commit("with a judge")
    project.edit("Sort the ticket.", "Sort the ticket, please.")

    def script(request: Request) -> Says:
        is_judge = request.body["model"] == "our-judge"
        return Says({"reason": "it does", "score": 0.9}, usage=(50, 10)) if is_judge else right(request)

    with serve(script) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        result = run(pytester, "-v")
        asked = server.asked
        project.edit("votes: 2", "votes: 3", "golden/triage/judge.yaml")
        again = run(pytester)

    assert result.ret == 0, result.stdout.str()
    # Both arms answer in the same words, so one judgement of two votes serves both; and one label.
    assert asked == 80 + 2 + 1
    assert "the judge agrees with people in 1 of 1 answers" in " ".join(result.stdout.str().split())
    kept = (project.folder / "recordings.jsonl").read_text("utf-8").splitlines()
    assert sum(json.loads(each)["case"] == "judge of refund-001" for each in kept) == 3
    assert again.ret == 0, again.stdout.str()
    assert server.asked == asked + 1
