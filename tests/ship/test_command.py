"""`deploy-gates ship` as a merge runs it: a real repository, real processes, a real store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from users import Users

from deploy_gates import envelope
from deploy_gates.core.canonical import short
from deploy_gates.core.gate import Verdict
from deploy_gates.core.release import Promotion
from deploy_gates.store import open_store
from project import Project
from sealed import seal

PATIENCE_S = 60.0
QUICK = """
[tool.deploy_gates.canary]
unit = "request"
warm_up_s = 0
mark_s = 30

[tool.deploy_gates.canary.metrics.errors]
margin_pt = 20

[tool.deploy_gates.canary.metrics.latency]
margin_ratio = 10.0
tail_ratio = 50.0

[tool.deploy_gates.canary.metrics.cost]
margin_ratio = 10.0

[tool.deploy_gates.ship]
weight = 50
"""
"""Margins so wide that a quick test sees them."""
FROZEN = """weight = 50

[[tool.deploy_gates.ship.freezes]]
environment = "staging"
since = "2026-01-01T00:00:00Z"
until = "2126-01-01T00:00:00Z"
"""

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "project", cases=12)
    made.record()
    made.write("pyproject.toml", (made.root / "pyproject.toml").read_text() + QUICK)
    made.commit("recorded")
    return made


@pytest.fixture
def url(store_url: str) -> str:
    store = open_store(store_url)
    store.upgrade()
    store.close()
    return store_url


@pytest.fixture
def environ(project: Project, url: str) -> dict[str, str]:
    return {**os.environ, "DEPLOY_GATES_ACTOR": "ada", "DEPLOY_GATES_STORE": url, "TZ": "UTC"}


@pytest.fixture
def run(project: Project, environ: dict[str, str]) -> Command:
    def deploy_gates(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "deploy_gates", *arguments],
            cwd=project.root,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S * 2,
            env={**environ, **more},
            check=False,
        )

    return deploy_gates


@pytest.fixture
def users(project: Project, url: str) -> Iterator[Users]:
    """Users of production, in a process of their own."""
    with Users(url, "triage") as made:
        yield made


def changed(project: Project, wording: str) -> str:
    """The config with another wording, its answers and its evidence; the digest."""
    project.edit("Sort the ticket.", f"Sort the ticket. {wording}")
    project.record()
    project.commit(wording)
    return seal(project)


def promotions(url: str) -> tuple[Promotion, ...]:
    """All there are, newest first."""
    store = open_store(url)
    try:
        return store.promotions()
    finally:
        store.close()


def test_a_merge_ends_in_production_and_a_bad_one_does_not(
    project: Project, run: Command, users: Users
) -> None:
    first = seal(project)
    began = run("ship")
    users.start()

    second = changed(project, "Be calm.")
    users.wait_for(requests=400)
    good = run("ship")
    third = changed(project, "Be quick.")
    users.fail(third)
    bad = run("ship")
    status, log = run("status"), run("log", "--verify")

    assert began.returncode == 0, began.stdout + began.stderr
    assert f"shipped      production serves {short(first)} (r1)" in began.stdout
    assert good.returncode == 0, good.stdout + good.stderr
    assert f"sends 50 % to {short(second)}" in good.stdout
    assert f"production serves {short(second)} (r3); 1 of 1 client have it" in good.stdout
    assert bad.returncode == 1, bad.stdout + bad.stderr
    assert f"rolled back  production serves {short(second)} again (r5)" in bad.stdout
    assert short(third) in status.stdout, "development and staging keep it"
    assert "VERIFIED" in log.stdout
    assert users.served() == second


def test_nothing_to_ship_is_said(project: Project, run: Command) -> None:
    seal(project)
    run("ship")

    again = run("ship")

    assert (again.returncode, again.stdout) == (
        0,
        "nothing to ship: production serves every config as it is here\n",
    )


def test_where_there_is_no_config_nothing_is_called_shipped(
    project: Project, run: Command, tmp_path: Path
) -> None:
    project.edit(
        "[tool.deploy_gates.golden]",
        '[tool.deploy_gates]\nconfigs = ["none/*.yaml"]\n\n[tool.deploy_gates.golden]',
        "pyproject.toml",
    )

    done = run("ship")

    assert done.returncode == 2
    assert "there is no config in" in done.stderr


def test_evidence_that_fails_blocks_and_missing_evidence_holds(project: Project, run: Command) -> None:
    held = run("ship")
    seal(project, Verdict.FAIL)
    blocked = run("ship")

    assert (held.returncode, blocked.returncode) == (1, 1)
    assert "is missing" in held.stdout
    assert "golden fails" in blocked.stdout
    assert run("status", "--json").stdout.strip() == "[]"


def test_a_config_that_cannot_be_shipped_keeps_no_other_back(project: Project, run: Command) -> None:
    digest = seal(project)
    project.write("golden/another/config.yaml", "model: 7\n")

    done = run("ship")
    again = run("ship")
    alone = run("ship", "triage")

    assert (done.returncode, again.returncode) == (1, 2), done.stdout + done.stderr
    assert f"shipped      production serves {short(digest)}" in done.stdout
    assert "golden/another/config.yaml" in done.stderr
    assert "golden/another/config.yaml" in again.stderr
    assert (alone.returncode, "nothing to ship" in alone.stdout) == (0, True)


def test_a_smoke_case_that_is_missed_takes_the_environment_back(project: Project, run: Command) -> None:
    first = seal(project)
    run("ship")
    project.edit("Sort the ticket.", "Sort the ticket somehow.")
    project.record(lambda inputs, number: {"category": "technical"})
    seal(project)

    done = run("ship", "--json")

    told = json.loads(done.stdout)[0]
    assert done.returncode == 1
    assert told["state"] == "rolled back"
    assert "2 of 3 smoke cases missed in development" in told["conclusion"]
    status = json.loads(run("status", "--json").stdout)
    assert {each["deployment"]["baseline"] for each in status} == {first}


def test_without_smoke_cases_nothing_would_be_known(project: Project, run: Command) -> None:
    text = (project.folder / "cases.jsonl").read_text().replace(', "smoke"', "")
    project.write("golden/triage/cases.jsonl", text)
    seal(project)

    done = run("ship")

    assert done.returncode == 1
    assert "no case in golden/triage/cases.jsonl is tagged `smoke`" in done.stdout


def test_what_was_rolled_back_is_tried_again_only_when_asked_to(project: Project, run: Command) -> None:
    seal(project)
    run("ship")
    project.edit("Sort the ticket.", "Sort the ticket somehow.")
    project.record(lambda inputs, number: {"category": "technical"})
    seal(project)
    run("ship")

    again = run("ship")
    retried = run("ship", "--retry", "--json")

    assert again.returncode == 1
    assert "has rolled" in again.stderr
    assert "--retry" in again.stderr
    assert json.loads(retried.stdout)[0]["id"] == 3


def test_a_dry_run_tells_every_step_and_moves_nothing(project: Project, run: Command) -> None:
    seal(project)

    told = run("ship", "--dry-run")

    assert told.returncode == 0, told.stderr
    assert "development  r0 → r1" in told.stdout
    assert "nothing was moved" in told.stdout
    assert run("status", "--json").stdout.strip() == "[]"


def test_a_dry_run_says_what_would_be_waited_for(project: Project, run: Command) -> None:
    seal(project)
    run("ship")
    changed(project, "Be calm.")

    blind = run("ship", "--dry-run")
    project.edit("weight = 50", FROZEN, "pyproject.toml")
    frozen = run("ship", "--dry-run", "--low-traffic")

    assert [blind.returncode, frozen.returncode] == [1, 1]
    assert "production   held: nobody has reported a request" in blind.stdout
    assert "hint: deploy-gates ship --low-traffic goes on all the same" in blind.stdout
    assert "staging      held: staging is frozen until" in frozen.stdout


def test_what_is_held_goes_on_once_it_is_asked_for_otherwise(
    project: Project, run: Command, url: str
) -> None:
    project.edit("weight = 50", FROZEN, "pyproject.toml")
    seal(project)

    frozen, still = run("ship"), run("ship")
    through = run("ship", "--through-freeze", "it is urgent")
    changed(project, "Be calm.")
    project.edit(FROZEN, "weight = 50", "pyproject.toml")
    blind = run("ship")
    seen = run("ship", "--low-traffic", "--detach")

    assert [frozen.returncode, still.returncode, blind.returncode] == [1, 1, 1]
    assert "held         " in still.stdout
    assert "--through-freeze REASON` does not wait" in still.stderr
    assert through.returncode == 0, through.stdout + through.stderr
    assert "nobody has reported a request" in blind.stdout
    assert seen.returncode == 0, seen.stdout + seen.stderr
    assert "sends 50 %" in seen.stdout
    states = [each.state.value for each in promotions(url)]
    assert states == ["running", "superseded", "shipped", "superseded"]


def test_what_is_held_under_settings_that_have_changed_is_carried_under_the_new_ones(
    project: Project, run: Command
) -> None:
    project.edit("weight = 50", "weight = 50\napprovals = { staging = 1 }", "pyproject.toml")
    seal(project)

    held = run("ship")
    project.edit("approvals = { staging = 1 }", "", "pyproject.toml")
    done = run("ship")

    assert held.returncode == 1
    assert done.returncode == 0, done.stdout + done.stderr


def test_until_staging_stops_there(project: Project, run: Command) -> None:
    seal(project)

    done = run("ship", "--until", "staging")

    assert done.returncode == 0, done.stdout
    environments = [each["deployment"]["environment"] for each in json.loads(run("status", "--json").stdout)]
    assert environments == ["development", "staging"]


def test_an_approval_of_somebody_else_lets_it_go_on(project: Project, run: Command) -> None:
    project.edit("weight = 50", "weight = 50\napprovals = { staging = 1 }", "pyproject.toml")
    seal(project)

    held = run("ship")
    own = run("approve", "triage", "--env", "staging")
    given = run("approve", "triage", "--env", "staging", "--by", "bob")
    done = run("ship")

    assert held.returncode == 1
    assert "held: staging wants 1 person other than ada to approve" in held.stdout
    assert own.returncode == 1
    assert "another person is to approve it" in own.stderr
    assert given.returncode == 0, given.stderr
    assert done.returncode == 0, done.stdout + done.stderr


def test_ctrl_c_leaves_the_canary_and_the_next_ship_goes_on(
    project: Project, run: Command, users: Users, environ: dict[str, str]
) -> None:
    seal(project)
    run("ship")
    users.start()
    second = changed(project, "Be calm.")
    users.wait_for(requests=400)

    process = subprocess.Popen(
        [sys.executable, "-m", "deploy_gates", "ship"],
        cwd=project.root,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "sends 50 %" in line:
            break
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=PATIENCE_S)
    resumed = run("ship")

    assert process.returncode == 130, errors
    assert "`deploy-gates ship triage` goes on" in rest
    assert "clients are back by" in rest
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert users.served() == second


def test_a_runner_that_is_killed_is_followed_by_the_server(
    project: Project, run: Command, users: Users, environ: dict[str, str]
) -> None:
    seal(project)
    run("ship")
    users.start()
    third = changed(project, "Be quick.")
    users.wait_for(requests=400)
    users.fail(third)

    process = subprocess.Popen(
        [sys.executable, "-m", "deploy_gates", "ship"],
        cwd=project.root,
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "sends 50 %" in line:
            break
    process.kill()
    process.communicate()
    server = subprocess.Popen(
        [sys.executable, "-m", "deploy_gates", "serve", "--port", "0"],
        cwd=project.root,
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while json.loads(run("status", "triage", "--env", "production", "--json").stdout)[0]["deployment"][
            "candidate"
        ]:
            assert time.monotonic() < deadline, "nobody has gone on"
            time.sleep(0.5)
    finally:
        server.terminate()
        server.communicate(timeout=20)


def test_where_keys_are_named_only_what_they_have_signed_counts(project: Project, run: Command) -> None:
    mine, theirs = envelope.generate(), envelope.generate()
    project.write("gates.pub.pem", mine.public_pem)
    project.write(
        "pyproject.toml",
        (project.root / "pyproject.toml").read_text()
        + '\n[tool.deploy_gates.evidence]\npublic_keys = ["gates.pub.pem"]\n',
    )
    seal(project)
    unsigned = run("ship")
    seal(project, key=envelope.private_key(theirs.private_pem.encode(), "theirs"))
    stranger = run("ship")
    seal(project, key=envelope.private_key(mine.private_pem.encode(), "mine"))
    signed = run("ship")

    assert [each.returncode for each in (unsigned, stranger, signed)] == [1, 1, 0], signed.stdout
    assert "nobody has signed" in unsigned.stdout or "not signed" in unsigned.stdout
    assert "signed by" in signed.stdout
