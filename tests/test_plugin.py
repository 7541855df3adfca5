"""`pytest --deploy-gates`, as a user runs it."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from xml.etree import ElementTree

import pytest

from deploy_gates.core.canonical import Json, JsonObject
from project import CATEGORIES, Project


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "GITHUB_BASE_REF", "CI"):
        monkeypatch.delenv(name, raising=False)
    return Project(pytester.path)


def changed(project: Project, *, wrong: int = 0) -> None:
    """A new prompt; the baseline answers all cases right, the candidate all but `wrong`."""
    project.record()
    project.edit("Sort the ticket.", "Sort the ticket, please.")
    project.record(
        lambda inputs, number: {
            "category": CATEGORIES[(number + 1) % 3] if number < wrong else CATEGORIES[number % 3]
        }
    )


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("--deploy-gates", "-p", "no:randomly", *arguments)


def evidence(project: Project) -> JsonObject:
    files = sorted((project.root / ".deploy-gates/evidence").iterdir())
    assert len(files) == 1
    payload = json.loads(files[0].read_text())["payload"]
    statement: JsonObject = json.loads(base64.b64decode(payload))
    return statement


def gates(project: Project) -> dict[str, str]:
    predicate = evidence(project)["predicate"]
    assert isinstance(predicate, dict)
    listed = predicate["gates"]
    assert isinstance(listed, list)
    return {str(each["gate"]): str(each["verdict"]) for each in listed if isinstance(each, dict)}


def test_a_change_that_is_no_worse_passes_all_five_gates(pytester: pytest.Pytester, project: Project) -> None:
    changed(project)

    result = run(pytester)

    assert result.ret == 0, result.stdout.str()
    assert gates(project) == dict.fromkeys(("type", "unit", "integration", "golden", "cost"), "pass")
    result.stdout.fnmatch_lines(
        ["*triage*→*", "*messages*0*.content*", "*golden*60 of 60, baseline 60*", "*PASS*"]
    )


def test_the_checks_that_the_readme_shows_pass_beside_the_example(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path(__file__).parents[1]
    shutil.copytree(here / "golden", pytester.path / "golden")
    shutil.copy(here / "pyproject.toml", pytester.path)
    shown = (here / "README.md").read_text("utf-8").split("```python\n", 1)[1].split("```", 1)[0]
    (pytester.path / "tests/triage").mkdir(parents=True)
    (pytester.path / "tests/triage/test_own.py").write_text(shown)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    result = run(pytester, "-v", "--gate=unit,integration", "tests/triage/test_own.py")

    result.assert_outcomes(passed=2)


def test_a_change_that_is_worse_is_blocked_by_the_golden_gate(
    pytester: pytest.Pytester, project: Project
) -> None:
    changed(project, wrong=20)

    result = run(pytester)

    assert result.ret == 1
    assert gates(project)["golden"] == "fail"
    result.stdout.fnmatch_lines(
        ["*golden*40 of 60, baseline 60*", "*20 cases got worse*", "*BLOCK*golden fails*"]
    )


def test_a_few_misses_within_the_margin_leave_the_gate_green(
    pytester: pytest.Pytester, project: Project
) -> None:
    changed(project, wrong=1)

    result = run(pytester, "--junitxml=junit.xml")

    assert result.ret == 0, result.stdout.str()
    assert "1 missed" in result.stdout.str()
    suite = ElementTree.parse(project.root / "junit.xml").getroot()[0]
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0")
    properties = [each.get("name") for each in suite.iter("property")]
    assert properties.count("missed") == 1


def test_missing_answers_are_never_a_pass(pytester: pytest.Pytester, project: Project) -> None:
    project.record()
    project.edit("Sort the ticket.", "Sort the ticket, please.")

    result = run(pytester)

    assert result.ret == 1
    assert gates(project) == {
        "type": "pass",
        "unit": "pass",
        "integration": "inconclusive",
        "golden": "inconclusive",
        "cost": "pass",
    }
    result.stdout.fnmatch_lines(["*BLOCK*inconclusive*", "*--gate-record=new*"])


def test_a_config_that_cannot_be_read_blocks_at_the_type_gate(
    pytester: pytest.Pytester, project: Project
) -> None:
    project.edit("temperature: 0", "temperature: hot\n  temprature: 1")

    result = run(pytester)

    assert result.ret == 1
    result.stdout.fnmatch_lines(["*BLOCK*type fails*"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_nothing_changed_is_nothing_to_gate(pytester: pytest.Pytester, project: Project) -> None:
    result = run(pytester)

    assert result.ret == 0
    result.stdout.fnmatch_lines(["*no config changed since main*"])


def test_garbage_is_collected_after_a_run_as_it_was_before(
    pytester: pytest.Pytester, project: Project
) -> None:
    changed(project)
    program = """
        import gc, pytest
        before = gc.isenabled(), gc.get_threshold()
        status = pytest.main(["--deploy-gates", "--gate=type", "-p", "no:randomly"])
        print("LEFT AS IT WAS", status == 0, before == (gc.isenabled(), gc.get_threshold()))
    """

    result = pytester.runpython_c(textwrap.dedent(program))

    result.stdout.fnmatch_lines(["LEFT AS IT WAS True True"])


def test_chosen_gates_run_alone_and_the_others_are_skipped(
    pytester: pytest.Pytester, project: Project
) -> None:
    project.edit("Sort the ticket.", "Sort the ticket, please.")
    project.record()

    result = run(pytester, "--gate=type,cost")

    assert result.ret == 0, result.stdout.str()
    assert gates(project) == {
        "type": "pass",
        "unit": "skip",
        "integration": "skip",
        "golden": "skip",
        "cost": "pass",
    }


@pytest.mark.parametrize("arguments", [("-k", "refund"), ("golden/triage/cases.jsonl::refund-001",)])
def test_a_part_of_the_cases_decides_nothing(
    pytester: pytest.Pytester, project: Project, arguments: tuple[str, ...]
) -> None:
    changed(project)

    result = run(pytester, *arguments)

    assert result.ret == 1
    assert gates(project)["golden"] == "inconclusive"
    assert "did not run" in result.stdout.str()
    result.stdout.fnmatch_lines(["*hint: cases were left out (by `-k`,*"])


def test_a_golden_set_without_cases_is_said_once(pytester: pytest.Pytester, project: Project) -> None:
    changed(project)
    project.cases(())

    result = run(pytester)

    assert result.ret == 1
    assert result.stdout.str().count("holds no case that renders") == 1


def test_the_last_misses_run_again_with_lf(pytester: pytest.Pytester, project: Project) -> None:
    changed(project, wrong=2)
    run(pytester)

    result = run(pytester, "--lf")

    result.stdout.fnmatch_lines(["*collected * items*", "*2 missed*"])
    assert "58 passed" not in result.stdout.str()


def test_x_stops_at_the_first_miss(pytester: pytest.Pytester, project: Project) -> None:
    changed(project, wrong=20)

    result = run(pytester, "-x")

    assert result.ret != 0
    assert " 1 missed" in result.stdout.str()


@pytest.mark.parametrize("wrong", [0, 20])
def test_two_workers_find_what_one_process_finds(
    pytester: pytest.Pytester, project: Project, wrong: int
) -> None:
    changed(project, wrong=wrong)

    alone = run(pytester)
    alone_evidence = without_times(evidence(project))
    spread = run(pytester, "-n2")

    assert alone.ret == spread.ret == (1 if wrong else 0)
    assert without_times(evidence(project)) == alone_evidence
    assert screen(spread) == screen(alone)


def without_times(value: Json) -> Json:
    if isinstance(value, dict):
        return {
            key: without_times(each)
            for key, each in value.items()
            if key not in ("took_s", "started_at", "finished_at")
        }
    return [without_times(each) for each in value] if isinstance(value, list) else value


def screen(result: pytest.RunResult) -> list[str]:
    """Our part of the output, without the column that says how long it took."""
    lines = result.stdout.lines
    start = next(at for at, line in enumerate(lines) if "deploy gates" in line)
    return [
        " ".join(part for part in line.split() if part not in ("s",) and not _is_time(part))
        for line in lines[start:-1]
    ]


def _is_time(word: str) -> bool:
    return word.replace(".", "", 1).isdigit() and "." in word


def test_a_crashed_worker_is_never_a_pass(pytester: pytest.Pytester, project: Project) -> None:
    changed(project)
    project.write(
        "tests/test_triage.py",
        """
        import os, pytest

        @pytest.mark.gate("unit")
        def test_that_kills_its_worker():
            os._exit(9)
        """.replace("\n        ", "\n"),
    )

    result = run(pytester, "-n2")

    assert result.ret == 1, result.stdout.str()
    assert gates(project)["unit"] == "inconclusive"


TEAM = """
import pytest

@pytest.mark.gate("unit")
def test_the_prompt_is_polite(candidate, baseline):
    assert "please" in candidate.messages[0].content
    assert "please" not in baseline.messages[0].content

@pytest.mark.gate("integration", config="triage")
def test_the_model_answers(ask):
    assert "refund" in ask({"body": "ticket 1 about refund"}).text

def test_that_belongs_to_no_gate():
    raise AssertionError("never runs with --deploy-gates")
"""


def test_marked_tests_of_the_team_count_in_their_gate(pytester: pytest.Pytester, project: Project) -> None:
    changed(project)
    project.write("tests/test_triage.py", TEAM)

    result = run(pytester)

    assert result.ret == 0, result.stdout.str()
    result.stdout.fnmatch_lines(["*1 deselected*"])


def test_a_failing_test_of_the_team_blocks_its_gate(pytester: pytest.Pytester, project: Project) -> None:
    changed(project)
    project.write("tests/test_triage.py", TEAM.replace('"please" in', '"sorry" in'))

    result = run(pytester)

    assert result.ret == 1
    assert gates(project)["unit"] == "fail"
    assert "test_the_prompt_is_polite" in "\n".join(screen(result))


def test_a_skipped_test_of_the_team_is_not_known_and_blocks(
    pytester: pytest.Pytester, project: Project
) -> None:
    changed(project)
    project.write(
        "tests/test_triage.py", TEAM.replace("    assert", "    pytest.skip('no time')\n    assert", 1)
    )

    result = run(pytester)

    assert result.ret == 1
    assert gates(project)["unit"] == "inconclusive"


def test_tests_belong_to_a_gate_by_where_they_lie(pytester: pytest.Pytester, project: Project) -> None:
    project.write(
        "pyproject.toml",
        (project.root / "pyproject.toml").read_text()
        + '\n[tool.deploy_gates.unit]\npaths = ["tests/unit/*.py"]\n',
    )
    project.commit("a mapping")
    changed(project)
    project.write("tests/unit/test_here.py", "def test_without_a_mark():\n    assert False\n")

    result = run(pytester)

    assert result.ret == 1
    assert gates(project)["unit"] == "fail"


def test_without_the_switch_the_tests_of_a_gate_are_skipped(
    pytester: pytest.Pytester, project: Project
) -> None:
    project.write("tests/test_triage.py", TEAM.replace("raise AssertionError", "str"))

    result = pytester.runpytest_subprocess()

    result.assert_outcomes(passed=1, skipped=2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--gate=typ"], "there is no gate `typ`; did you mean `type`?"),
        (["--gate-config=triag"], "there is no config `triag`"),
        (["--gate-base=nowhere"], "the base nowhere names no commit"),
        (["--gate-budget=much"], "--gate-budget=much is no amount of dollars"),
        (["--gate-report=report.pdf"], ".md"),
    ],
)
def test_what_cannot_be_used_ends_with_status_4_and_one_sentence(
    pytester: pytest.Pytester, project: Project, arguments: list[str], sentence: str
) -> None:
    result = run(pytester, *arguments)

    assert result.ret == 4
    assert sentence in result.stderr.str() + result.stdout.str()
    assert "Traceback" not in result.stderr.str() + result.stdout.str()


def test_broken_settings_end_with_status_4_and_the_line(pytester: pytest.Pytester, project: Project) -> None:
    project.edit("margin_pt = 8.0", "margin_pct = 8.0", "pyproject.toml")

    result = run(pytester)

    assert result.ret == 4
    assert "pyproject.toml:8: `tool.deploy_gates.golden.margin_pct` is not known here" in result.stderr.str()


@pytest.mark.parametrize("suffix", ["md", "json", "html", "xml"])
def test_each_report_is_written(pytester: pytest.Pytester, project: Project, suffix: str) -> None:
    changed(project)

    result = run(pytester, f"--gate-report=out/report.{suffix}")

    assert result.ret == 0, result.stdout.str()
    assert "triage" in (project.root / f"out/report.{suffix}").read_text()


def test_a_state_folder_that_cannot_be_written_is_said_in_one_sentence(
    pytester: pytest.Pytester, project: Project
) -> None:
    changed(project)
    project.write(".deploy-gates", "a file where a folder should be")

    result = run(pytester)

    assert result.ret == 4
    assert "cannot be written" in result.stdout.str()
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


def test_a_full_disk_costs_no_recordings_and_gives_no_evidence(
    pytester: pytest.Pytester, project: Project
) -> None:
    changed(project)
    before = (project.folder / "recordings.jsonl").read_bytes()

    limited = f"ulimit -f 1; trap '' XFSZ; exec {sys.executable} -m pytest --deploy-gates -p no:cacheprovider"
    result = subprocess.run(
        ["sh", "-c", limited], cwd=project.root, capture_output=True, text=True, check=False
    )

    assert result.returncode == 4, result.stdout + result.stderr
    assert "cannot be written" in result.stdout
    assert (project.folder / "recordings.jsonl").read_bytes() == before
    assert not list((project.root / ".deploy-gates").rglob("*.json"))
