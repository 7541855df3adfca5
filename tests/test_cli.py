"""`deploy-gates`, as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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


def test_init_fills_an_empty_repository_that_passes_at_once(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=tmp_path, check=True)

    made = deploy_gates("init", at=tmp_path)
    gated = subprocess.run(
        [sys.executable, "-m", "pytest", "--deploy-gates"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert made.returncode == 0, made.stderr
    assert "created  golden/hello/config.yaml" in made.stdout
    assert gated.returncode == 0, gated.stdout
    assert "PASS" in gated.stdout


def test_init_overwrites_nothing_and_a_second_time_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "ours"\n')
    (tmp_path / "golden/hello").mkdir(parents=True)
    (tmp_path / "golden/hello/config.yaml").write_text("ours: true\n")

    first = deploy_gates("init", at=tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    second = deploy_gates("init", "--json", at=tmp_path)

    assert first.returncode == 0, first.stderr
    assert "kept     golden/hello/config.yaml" in first.stdout
    assert 'name = "ours"' in (tmp_path / "pyproject.toml").read_text()
    assert {each["action"] for each in json.loads(second.stdout)} == {"kept"}
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_init_leaves_a_broken_pyproject_alone(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project\n")

    done = deploy_gates("init", at=tmp_path)

    assert done.returncode == 2
    assert "is not TOML" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]


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


def test_diff_says_what_is_wrong_and_what_is_gone(project: Project) -> None:
    project.edit("model: our-7b", "modle: our-7b")
    project.write("golden/old/config.yaml", "model: x\nmessages: [{role: user, content: hi}]\n")
    project.git("add", "-A")

    done = deploy_gates("diff", at=project.root)

    assert "`modle` is not known here; did you mean `model`?" in done.stdout
    assert "old  new →" in done.stdout


@pytest.mark.parametrize("name", ["config", "case", "settings"])
def test_schema_prints_json(tmp_path: Path, name: str) -> None:
    assert json.loads(deploy_gates("schema", name, at=tmp_path).stdout)["type"] == "object"


@pytest.fixture
def signed(project: Project) -> Path:
    """Evidence of a run, signed with a key that `evidence keygen` has made."""
    pytest.importorskip("cryptography", reason="evidence is signed with the extra `sign`")
    assert deploy_gates("evidence", "keygen", "gates", at=project.root).returncode == 0
    project.write("pyproject.toml", (project.root / "pyproject.toml").read_text() + EVIDENCE)
    project.commit("a key")
    project.edit("temperature: 0", "temperature: 0.0001")
    subprocess.run(
        [sys.executable, "-m", "pytest", "--deploy-gates"], cwd=project.root, check=False, capture_output=True
    )
    (made,) = (project.root / ".deploy-gates/evidence").iterdir()
    return made


EVIDENCE = """
[tool.deploy_gates.evidence]
key_file = "gates.pem"
public_keys = ["gates.pub.pem"]
"""


def test_evidence_that_is_signed_is_verified_by_the_trusted_key(signed: Path, project: Project) -> None:
    done = deploy_gates("evidence", "verify", str(signed), at=project.root)

    assert done.returncode == 0, done.stderr
    assert "signed by" in done.stdout


def test_evidence_that_was_changed_is_refused(signed: Path, project: Project) -> None:
    envelope = json.loads(signed.read_text())
    envelope["payload"] = envelope["payload"][:-8] + "AAAA" + envelope["payload"][-4:]
    signed.write_text(json.dumps(envelope))

    done = deploy_gates("evidence", "verify", str(signed), at=project.root)

    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_a_key_is_never_overwritten(project: Project) -> None:
    pytest.importorskip("cryptography", reason="evidence is signed with the extra `sign`")
    deploy_gates("evidence", "keygen", "gates", at=project.root)
    key = (project.root / "gates.pem").read_bytes()

    again = deploy_gates("evidence", "keygen", "gates", at=project.root)

    assert again.returncode == 2
    assert (project.root / "gates.pem").read_bytes() == key
    assert (project.root / "gates.pem").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("command", ["init", "diff", "schema", "evidence verify", "evidence keygen"])
def test_help_holds_an_example(tmp_path: Path, command: str) -> None:
    done = deploy_gates(*command.split(), "--help", at=tmp_path)

    assert "example: deploy-gates" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["promotee"], ["diff", "no-such-commit"]])
def test_usage_errors_end_with_status_2(project: Project, arguments: list[str]) -> None:
    done = deploy_gates(*arguments, at=project.root)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr
