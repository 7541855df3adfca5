"""`deploy-gates`, as a process."""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from project import Project


def deploy_gates(*arguments: str, at: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy_gates", *arguments],
        cwd=at,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project", cases=30)


def test_diff_tells_each_field_and_the_cases(project: Project) -> None:
    project.edit("temperature: 0", "temperature: 0.5")
    project.edit('"refund-001"', '"refund-first"', "golden/triage/cases.jsonl")

    done = deploy_gates("diff", at=project.root)

    assert done.returncode == 0, done.stderr
    assert "parameters.temperature   0 → 0.5" in done.stdout
    assert "cases.jsonl   +1 −1 cases, 0 edited" in done.stdout


def test_diff_as_json_names_both_digests(project: Project) -> None:
    project.edit("temperature: 0", "temperature: 0.5")

    (changed,) = json.loads(deploy_gates("diff", "--json", at=project.root).stdout)["changed"]

    assert changed["fields"] == [{"key": "parameters.temperature", "baseline": "0", "candidate": "0.5"}]
    assert len(changed["baseline"]) == len(changed["candidate"]) == 64


def test_diff_in_full_shows_the_lines(project: Project) -> None:
    project.edit("Sort the ticket.", "Sort this ticket.")

    done = deploy_gates("diff", "--full", at=project.root)

    assert "+    content: Sort this ticket." in done.stdout


def test_diff_says_what_is_wrong_and_what_is_new(project: Project) -> None:
    project.edit("model: our-7b", "modle: our-7b")
    project.write("golden/second/config.yaml", "model: x\nmessages: [{role: user, content: hi}]\n")

    done = deploy_gates("diff", at=project.root)

    assert done.returncode == 0, done.stderr
    assert "`modle` is not known here; did you mean `model`?" in done.stdout
    assert "second  new → " in done.stdout


def test_diff_knows_a_config_that_was_renamed(project: Project) -> None:
    project.git("mv", "golden/triage", "golden/sorting")

    told = deploy_gates("diff", at=project.root).stdout
    (changed,) = json.loads(deploy_gates("diff", "--json", at=project.root).stdout)["changed"]

    assert "sorting (was triage)" in told
    assert "files differ" not in told
    assert changed["renamed_from"] == "triage"
    assert changed["baseline"] == changed["candidate"]


def test_diff_names_what_was_deleted_and_what_is_unchanged(project: Project) -> None:
    project.write("golden/second/config.yaml", "model: x\nmessages: [{role: user, content: hi}]\n")
    project.write("golden/second/cases.jsonl", '{"id": "a", "inputs": {}, "expected": "hi"}\n')
    project.commit("a second config")
    for path in (project.root / "golden/second").iterdir():
        path.unlink()

    told = deploy_gates("diff", at=project.root).stdout
    found = json.loads(deploy_gates("diff", "--json", at=project.root).stdout)

    assert "unchanged since main: triage" in told
    assert "deleted since main: second" in told
    assert (found["changed"], found["unchanged"], found["deleted"]) == ([], ["triage"], ["second"])


@pytest.mark.parametrize("name", ["config", "case", "settings"])
def test_schema_prints_json(tmp_path: Path, name: str) -> None:
    assert json.loads(deploy_gates("schema", name, at=tmp_path).stdout)["type"] == "object"


EVIDENCE = """
[tool.deploy_gates.evidence]
key_file = "gates.pem"
public_keys = ["gates.pub.pem"]
"""


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evidence of a run that blocks, signed with a key that `evidence keygen` has made."""
    pytest.importorskip("cryptography", reason="evidence is signed with the extra `sign`")
    project = Project(tmp_path_factory.mktemp("signed") / "project", cases=30)
    assert deploy_gates("evidence", "keygen", "gates", at=project.root).returncode == 0
    project.write("pyproject.toml", (project.root / "pyproject.toml").read_text() + EVIDENCE)
    project.commit("a key")
    project.edit("temperature: 0", "temperature: 0.0001")
    subprocess.run(
        [sys.executable, "-m", "pytest", "--deploy-gates"], cwd=project.root, check=False, capture_output=True
    )
    (made,) = (project.root / ".deploy-gates/evidence").iterdir()
    return made


def verify(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Verify it as somebody in the repository that it is of."""
    return deploy_gates("evidence", "verify", str(file), *arguments, at=file.parents[2])


def test_evidence_that_is_signed_is_verified_by_the_trusted_key(signed: Path) -> None:
    told = verify(signed)
    found = json.loads(verify(signed, "--json").stdout)

    assert told.returncode == 0, told.stderr
    assert "inconclusive  (signed by " in told.stdout
    assert f"signed by {found['signed_by']}" in told.stdout
    assert found["statement"]["subject"][0]["digest"]["sha256"].startswith(signed.stem[-7:])


def _promising(envelope: dict[str, Any]) -> None:
    """Turn every verdict into a pass."""
    said = base64.b64decode(envelope["payload"]).decode()
    better = said.replace('"inconclusive"', '"pass"').replace('"fail"', '"pass"')
    assert better != said
    envelope["payload"] = base64.b64encode(better.encode()).decode()


def _unsigned(envelope: dict[str, Any]) -> None:
    envelope["signatures"] = []


def _cut_off(envelope: dict[str, Any]) -> None:
    envelope["payload"] = envelope["payload"][:-8]


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (_promising, "was changed after"),
        (_cut_off, "was changed after"),
        (_unsigned, "is not signed, and a signature is required"),
    ],
)
def test_evidence_is_refused_that_was_changed_or_lost_its_signature(
    signed: Path, spoil: Callable[[dict[str, Any]], None], fault: str
) -> None:
    envelope = json.loads(signed.read_text())
    spoil(envelope)
    spoiled = signed.with_name("spoiled.json")
    spoiled.write_text(json.dumps(envelope))

    done = verify(spoiled)

    assert done.returncode == 1
    assert fault in done.stderr
    assert done.stdout == ""


def test_evidence_signed_by_somebody_else_is_refused(signed: Path) -> None:
    root = signed.parents[2]
    deploy_gates("evidence", "keygen", "stranger", at=root)

    done = verify(signed, "--key", "stranger.pub.pem")

    assert done.returncode == 1
    assert "and trusted are" in done.stderr


def test_where_no_key_is_trusted_a_signature_counts_for_nothing(signed: Path, tmp_path: Path) -> None:
    done = deploy_gates("evidence", "verify", str(signed), at=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "(no trusted signature)" in done.stdout


def test_a_key_is_never_overwritten(project: Project) -> None:
    pytest.importorskip("cryptography", reason="evidence is signed with the extra `sign`")
    deploy_gates("evidence", "keygen", "gates", at=project.root)
    key = (project.root / "gates.pem").read_bytes()

    again = deploy_gates("evidence", "keygen", "gates", at=project.root)

    assert again.returncode == 2
    assert (project.root / "gates.pem").read_bytes() == key
    assert (project.root / "gates.pem").stat().st_mode & 0o077 == 0


COMMANDS = ("init", "diff", "schema", "evidence", "evidence verify", "evidence keygen")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_holds_an_example_that_can_be_copied_and_run(project: Project, command: str) -> None:
    told = deploy_gates(*command.split(), "--help", at=project.root).stdout

    example = told.splitlines()[-1]
    assert example.startswith(f"example: deploy-gates {command}")
    done = deploy_gates(*shlex.split(example)[2:], at=project.root)
    assert done.returncode == (2 if command == "evidence verify" else 0), "it names evidence that is not here"


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "promotee",
        "diff no-such-commit",
        "diff --config no-such-config",
        "schema no-such-schema",
        "init no/such/folder",
        "evidence",
        "evidence verify",
        "evidence verify no-such-file.json",
        "evidence keygen no/such/folder/gates",
    ],
)
def test_usage_errors_end_with_status_2_and_a_word_on_stderr(project: Project, arguments: str) -> None:
    done = deploy_gates(*arguments.split(), at=project.root)

    assert done.returncode == 2
    assert done.stdout == ""
    assert "deploy-gates" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_can_be_read_by_machines_too(project: Project) -> None:
    done = deploy_gates("diff", "--json", "--config", "triaje", at=project.root)

    assert done.returncode == 2
    assert json.loads(done.stdout) == {
        "error": "there is no config `triaje` in this repository",
        "hint": "did you mean `triage`?",
    }


def test_a_command_that_is_misused_is_told_to_machines_too(project: Project) -> None:
    done = deploy_gates("promote", "triage", "--json", at=project.root)

    assert (done.returncode, done.stderr) == (2, "")
    assert json.loads(done.stdout) == {
        "error": "deploy-gates promote: the following arguments are required: --to",
        "hint": "deploy-gates promote --help",
    }
