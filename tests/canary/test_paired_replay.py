"""Pairs are asked over a real socket, of servers that behave and of others, and kept in files."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Generator
from decimal import Decimal
from pathlib import Path

import pytest

from deploy_gates import baseline, settings
from deploy_gates.canary import pairs
from deploy_gates.canary.pairs import Asker, Prompt, Spent, is_candidate_first
from deploy_gates.core.canary import Action, Plan
from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.errors import SettingsError, StoreUnavailable, Unanswered, WorkspaceError
from deploy_gates.core.pairs import Pair, Pairing
from project import CATEGORIES, Project
from servers import Fails, Reply, Request, Says, Script, refused_url, serve

RIGHT = {"category": "refund"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A candidate that says please, which servers can tell, and a key to ask with."""
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    made = Project(tmp_path / "triage", cases=40)
    made.edit("Sort the ticket.", "Sort the ticket, please.")
    made.edit("timeout_s: 30", "timeout_s: 5")
    return made


def is_candidate(request: Request) -> bool:
    return "please" in request.body["messages"][0]["content"]


def asker(project: Project, budget_usd: str = "1") -> Asker:
    settled = settings.load(project.root)
    change = baseline.changes(project.root, settled, names=["triage"], gate_all=True).changed[0]
    return Asker(change, settled, root=project.root, budget_usd=Decimal(budget_usd))


def asked(project: Project, repeat: int = 1, **fields: str) -> Generator[Pair, None, None]:
    made = asker(project, **fields)
    return made.pairs(_prompts(project), repeat=repeat)


def _prompts(project: Project) -> tuple[Prompt, ...]:
    settled = settings.load(project.root)
    return pairs.golden(baseline.changes(project.root, settled, gate_all=True).changed[0])


def test_each_prompt_is_answered_by_both_and_priced(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(lambda request: Says(RIGHT, usage=(30, 16 if is_candidate(request) else 8))) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        found = list(asked(project, repeat=2))

    assert server.asked == 160
    assert sorted(each.id for each in found) == sorted([each.id for each in _prompts(project)] * 2)
    assert not any(each.baseline.error or each.candidate.error for each in found)
    assert {each.baseline.cost_usd for each in found} == {4.6e-6}
    assert {each.candidate.cost_usd for each in found} == {6.2e-6}
    assert all(each.baseline.latency_s and each.candidate.latency_s for each in found)


def test_what_one_of_both_fails_at_is_an_error_of_that_one(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(request: Request) -> Reply:
        return Fails(400, "no such tool") if is_candidate(request) else Says(RIGHT)

    pairing = Pairing(Plan())
    with serve(script) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        with contextlib.closing(asked(project)) as answered:
            for pair in answered:
                if pairing.add(pair).has_ended:
                    break

    finding = pairing.finding()
    assert (finding.action, finding.cause) == (Action.ROLLBACK, ("errors",))
    assert finding.pairs < 15
    assert server.asked < 40, "nothing is asked after the decision but what was under way"


def test_the_same_config_twice_is_asked_twice(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.edit("Sort the ticket, please.", "Sort the ticket.")
    project.edit("timeout_s: 5", "timeout_s: 6")

    with serve(Says(RIGHT)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        found = list(asked(project))

    assert server.asked == 2 * len(found) == 80


def test_who_is_asked_first_is_drawn_and_always_the_same() -> None:
    first = [is_candidate_first(f"prompt-{number}", 0) for number in range(1_000)]

    assert 450 < sum(first) < 550
    assert first == [is_candidate_first(f"prompt-{number}", 0) for number in range(1_000)]
    assert first != [is_candidate_first(f"prompt-{number}", 1) for number in range(1_000)]


def test_nothing_is_asked_that_the_budget_does_not_cover(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Pair] = []
    with serve(Says(RIGHT, usage=(30, 8))) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        with pytest.raises(Spent, match="budget"):
            found.extend(asked(project, budget_usd="0.0001"))

    assert 0 < len(found) < 40
    assert server.asked * 4.6e-6 <= 0.0001


def test_an_endpoint_that_is_not_there_is_nobodys_error(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", refused_url())

    with pytest.raises(StoreUnavailable, match="neither config gets an answer"):
        list(asked(project))


def test_a_key_that_is_refused_ends_it_at_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(Fails(401, "no such key")) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        with pytest.raises(Unanswered):
            list(asked(project))

    assert server.asked < 12


def test_without_a_key_or_a_baseline_nobody_is_asked(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(SettingsError, match="OPENAI_API_KEY is not set"):
        asker(project)

    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    project.git("rm", "-rq", "--cached", "golden")
    project.commit("an empty baseline")
    project.git("rm", "-rq", "--cached", "golden")
    project.git("commit", "-qm", "nothing")
    with pytest.raises(SettingsError, match="there is no baseline"):
        asker(project)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "holds no prompts"),
        (['{"body": "a"}', "{"], "line 2 is no JSON"),
        (['{"body": "a"}', "", "[1]"], "line 3 is no JSON object"),
        (['{"id": "a", "inputs": 3}'], "line 1: `inputs` is no object"),
    ],
)
def test_prompts_that_cannot_be_read_are_told_with_their_line(
    tmp_path: Path, lines: list[str], said: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(lines))

    with pytest.raises(WorkspaceError, match=said):
        pairs.read_prompts(path)


def test_prompts_are_inputs_or_have_them(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"body": "a"}\n\n{"id": "b", "inputs": {"body": "c"}}\n')

    found = pairs.read_prompts(path)

    assert [(each.id, each.inputs) for each in found] == [("line-1", {"body": "a"}), ("b", {"body": "c"})]


# --- The command ---------------------------------------------------------------------------------


def command(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy_gates", "canary", "pair", *arguments],
        cwd=project.root,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def slower(after_s: float) -> Script:
    return lambda request: Says(RIGHT, usage=(30, 8), after_s=after_s if is_candidate(request) else 0.002)


def test_the_command_asks_until_it_is_decided_keeps_the_pairs_and_finds_the_same_in_them(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(slower(0.3)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        asked_now = command(project, "triage", "--save", "pairs.ndjson", "--json")
        before = server.asked
        again = command(project, "--from", "pairs.ndjson", "--json")

    assert (asked_now.returncode, again.returncode) == (1, 1), asked_now.stderr
    finding: JsonObject = json.loads(asked_now.stdout)["finding"]
    assert (finding["action"], finding["cause"]) == ("rollback", ["latency"])
    assert json.loads(again.stdout)["finding"] == finding
    assert json.loads(asked_now.stdout)["spent_nanousd"] > 0
    assert server.asked == before < 80


def test_candidates_that_are_no_worse_are_proved_to_be_and_others_told_how_many_more_it_takes(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.root / "tickets.jsonl").write_text(
        "".join(json.dumps({"body": f"ticket {n} about {CATEGORIES[n % 3]}"}) + "\n" for n in range(60))
    )
    wide = ("--margin", "latency=10", "--margin", "errors=10pt", "--margin", "cost=1.5")
    # How long the machine takes is chance: it is no part of the one, and within a wide margin of the other.
    with serve(Says(RIGHT, usage=(30, 8), after_s=0.02)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        undecided = command(project, "triage", "--prompts", "tickets.jsonl", "--dry-run", "latency")
        proved = command(project, "triage", "--prompts", "tickets.jsonl", *wide)

    assert undecided.returncode == 1
    assert "more pairs would decide" in undecided.stdout
    assert proved.returncode == 0, proved.stdout
    assert "NO WORSE" in proved.stdout


def test_pairs_that_cannot_be_read_are_told_with_their_line(project: Project) -> None:
    good = '{"id": "a", "baseline": {"error": true}, "candidate": {"error": false, "latency_s": 1}}\n'
    (project.root / "pairs.ndjson").write_text(good + good.replace("1", "-1"))

    done = command(project, "--from", "pairs.ndjson")

    assert done.returncode == 2
    assert "pairs.ndjson, line 2: `candidate.latency_s` is -1" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_wrong_behind_the_pair_that_decides_is_noticed(project: Project) -> None:
    fails = '{"id": "a", "baseline": {"error": false, "latency_s": 1}, "candidate": {"error": true}}\n'
    (project.root / "pairs.ndjson").write_text(fails * 50)
    decided = command(project, "--from", "pairs.ndjson", "--json")
    (project.root / "pairs.ndjson").write_text(fails * 50 + "{\n")

    done = command(project, "--from", "pairs.ndjson")

    assert json.loads(decided.stdout)["finding"]["action"] == "rollback"
    assert json.loads(decided.stdout)["finding"]["pairs"] < 50
    assert done.returncode == 2
    assert "pairs.ndjson, line 51" in done.stderr
