"""From evidence to an environment, by the runner and by the commands, on a real store."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from deploy_gates import clock, envelope, runner
from deploy_gates.core.canonical import JsonObject, short, spelled
from deploy_gates.core.errors import EnvelopeError, Refusal, Refused
from deploy_gates.core.evidence import Answers, admitted_until
from deploy_gates.core.gate import GateName, Verdict
from deploy_gates.core.policy import Policy
from deploy_gates.core.promotion import Kind
from deploy_gates.store import Store, open_store
from deploy_gates.store.rows import migrations
from deploy_gates.testing import NOW, POLICY, a_document, a_release
from project import Project, case
from sealed import an_evidence, failing, seal

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = open_store(f"sqlite:///{tmp_path / 'store.db'}")
    made.upgrade()
    yield made
    made.close()


def promoted(store: Store, digest: str, environment: str, **fields: object) -> int:
    asked: dict[str, object] = {
        "config": "ticket-triage",
        "environment": environment,
        "digest": digest,
        "policy": POLICY,
        "actor": "ada",
        "reason": "calmer tone",
    }
    return runner.promote(store, **(asked | fields)).deployment.revision  # type: ignore[arg-type]


def everywhere(store: Store, digest: str) -> None:
    for environment in ("development", "staging", "production"):
        promoted(store, digest, environment)


def rolled_back(store: Store, environment: str = "production", **fields: object) -> str:
    made = runner.rollback(
        store,
        config="ticket-triage",
        environment=environment,
        actor="lin",
        reason="refunds",
        **fields,  # type: ignore[arg-type]
    )
    return made.deployment.baseline


# --- Evidence becomes permission ----------------------------------------------------------------


def test_evidence_that_is_handed_in_opens_the_environments_its_answers_are_fresh_enough_for(
    store: Store,
) -> None:
    digest = runner.keep(store, "ticket-triage", spelled(a_document()))
    old = clock.now() - timedelta(days=8)

    record = runner.admit(store, envelope.enclose(an_evidence(digest, oldest=old)), policy=Policy())
    promoted(store, digest, "development")
    promoted(store, digest, "staging")
    with pytest.raises(Refused, match="which has passed"):
        promoted(store, digest, "production")

    assert record.admitted_until["production"] < clock.now() < record.admitted_until["staging"]


def test_answers_of_unknown_age_open_everything_but_production() -> None:
    evidence = an_evidence("a" * 64, answers=Answers(recorded=3))

    opened = {
        name: admitted_until(evidence, environment=name, policy=Policy())
        for name in ("development", "production")
    }

    assert opened["production"] is None
    assert opened["development"] is not None


def test_a_skipped_gate_opens_nothing_unless_the_policy_calls_it_optional() -> None:
    skipped = failing(an_evidence("a" * 64), Verdict.SKIP)

    assert admitted_until(skipped, environment="development", policy=Policy()) is None
    assert admitted_until(skipped, environment="development", policy=None) is None
    optional = Policy(optional=frozenset({GateName.GOLDEN}))
    assert admitted_until(skipped, environment="development", policy=optional) is not None


def test_a_later_failing_run_takes_the_permission_back(store: Store) -> None:
    digest = runner.keep(store, "ticket-triage", spelled(a_document()))
    passing = an_evidence(digest)
    runner.admit(store, envelope.enclose(passing), policy=Policy())
    promoted(store, digest, "development")

    revoking = runner.admit(store, envelope.enclose(failing(passing)), policy=Policy())
    with pytest.raises(Refused) as refused:
        promoted(store, digest, "staging")

    assert refused.value.refusal is Refusal.EVIDENCE
    assert f"revoked: a later run failed ({short(revoking.id)})" in refused.value.message


def test_evidence_that_nobody_trusted_signed_is_not_kept(store: Store) -> None:
    digest = runner.keep(store, "ticket-triage", spelled(a_document()))
    trusted, mallory = envelope.generate(), envelope.generate()
    keys = [envelope.public_key(trusted.public_pem.encode(), "ci.pub")]
    forged = envelope.enclose(
        an_evidence(digest), envelope.private_key(mallory.private_pem.encode(), "mallory.pem")
    )

    with pytest.raises(EnvelopeError):
        runner.admit(store, forged, keys=keys, require_signature=True, policy=Policy())

    assert store.evidence("ticket-triage") == ()


def test_evidence_of_a_config_nobody_kept_is_refused(store: Store) -> None:
    with pytest.raises(Refused, match="keeps no such config"):
        runner.admit(store, envelope.enclose(an_evidence("a" * 64)), policy=Policy())


# --- Rolling back -------------------------------------------------------------------------------


def test_a_rollback_brings_back_what_was_served_and_waits_for_nobody(store: Store) -> None:
    first, second = a_release(store, 1), a_release(store, 2)
    everywhere(store, first)
    everywhere(store, second)
    held = store.acquire("ticket-triage", "production", "a runner in the middle of a canary")

    back = rolled_back(store)
    with pytest.raises(Refused) as late:
        store.renew(held)

    assert back == first
    assert late.value.refusal is Refusal.FENCE


def test_a_rollback_ends_a_canary_and_leaves_the_baseline(store: Store) -> None:
    first, second = a_release(store, 1), a_release(store, 2)
    everywhere(store, first)
    promoted(store, second, "development")
    promoted(store, second, "staging")
    promoted(store, second, "production", weight_bp=500)

    back = rolled_back(store)
    (found,) = store.deployments("production", "ticket-triage")

    assert back == first
    assert (found.kind, found.candidate, found.weight_bp, found.revision) == (Kind.ROLLBACK, "", 0, 3)


def test_there_is_nothing_before_the_first(store: Store) -> None:
    everywhere(store, a_release(store))

    with pytest.raises(Refused, match="nothing to go back to"):
        rolled_back(store)
    with pytest.raises(Refused, match="nothing was ever promoted"):
        runner.rollback(store, config="other", environment="production", actor="lin", reason="")


def test_a_rollback_needs_no_evidence_that_still_stands(store: Store) -> None:
    first, second = a_release(store, 1), a_release(store, 2)
    everywhere(store, first)
    everywhere(store, second)
    runner.admit(store, envelope.enclose(failing(an_evidence(first))), policy=Policy())

    assert rolled_back(store) == first


# --- The commands -------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project", cases=12)


@pytest.fixture
def run(project: Project, tmp_path: Path) -> Command:
    """The command in the project, as a process, with no home and no settings of whoever runs the tests."""

    def deploy_gates(
        *arguments: str, at: Path = project.root, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("DEPLOY_GATES_", "GITHUB_"))
        }
        return subprocess.run(
            [sys.executable, "-m", "deploy_gates", *arguments],
            cwd=at,
            capture_output=True,
            text=True,
            check=False,
            env=kept | {"DEPLOY_GATES_ACTOR": "ada"} | variables,
        )

    return deploy_gates


def through(run: Command, *environments: str) -> None:
    for name in environments or ("development", "staging", "production"):
        done = run("promote", "triage", "--to", name, "--reason", "calmer tone")
        assert done.returncode == 0, done.stderr


def test_a_config_travels_in_order_and_status_and_log_tell_of_it(project: Project, run: Command) -> None:
    digest = seal(project)

    early = run("promote", "triage", "--to", "production")
    through(run)
    status, log = run("status"), run("log", "--verify")

    assert early.returncode == 1
    assert "production takes what staging serves, and staging serves nothing" in early.stderr
    assert status.stdout.count(short(digest)) == 3
    assert "promoted by ada: calmer tone" in status.stdout
    assert "VERIFIED  3 events of 3 deployments" in log.stdout


def test_without_evidence_nothing_moves(project: Project, run: Command) -> None:
    none = run("promote", "triage", "--to", "development", "--json")
    seal(project, Verdict.FAIL)
    blocked = run("promote", "triage", "--to", "development", "--json")

    assert (none.returncode, blocked.returncode) == (1, 1)
    assert json.loads(none.stdout)["refusal"] == "evidence"
    assert "there is no evidence" in json.loads(none.stdout)["error"]
    assert "the latest says fail" in json.loads(blocked.stdout)["error"]
    assert json.loads(run("status", "--json").stdout) == []


def test_a_changed_policy_has_to_be_adopted_and_then_old_evidence_no_longer_counts(
    project: Project, run: Command
) -> None:
    seal(project)
    through(run, "development")
    project.edit("margin_pt = 8.0", "margin_pt = 4.0", "pyproject.toml")
    project.edit("Sort the ticket.", "Sort the ticket, please.")

    seal(project)
    refused = run("promote", "triage", "--to", "development", "--json")
    adopted = run("promote", "triage", "--to", "development", "--adopt-policy", "--json")

    assert json.loads(refused.stdout)["refusal"] == "policy"
    assert adopted.returncode == 0, adopted.stdout


def test_evidence_found_with_other_cases_or_prices_is_refused(project: Project, run: Command) -> None:
    digest = seal(project)
    project.cases([case(1), case(2)])
    cases = run("promote", "triage", "--to", "development")
    seal(project)
    text = (project.root / "golden/triage/cases.jsonl").read_bytes()
    priced = an_evidence(digest, config="triage", dataset_digest=hashlib.sha256(text).hexdigest())
    priced = replace(priced, provenance=replace(priced.provenance, price_source="genai-prices 0"))
    envelope.write(project.root / "theirs.json", priced)
    prices = run("promote", "triage", "--to", "development", "--evidence", "theirs.json")

    assert [cases.returncode, prices.returncode] == [1, 1]
    assert "the golden cases of triage have changed since the gates ran" in cases.stderr
    assert "the prices of triage have changed since the gates ran" in prices.stderr


def test_a_canary_is_a_weight_and_a_rollback_ends_it(project: Project, run: Command) -> None:
    first = seal(project)
    through(run)
    project.edit("Sort the ticket.", "Sort the ticket, please.")
    second = seal(project)
    through(run, "development", "staging")

    canary = run("promote", "triage", "--to", "production", "--weight", "5")
    rollback = run("rollback", "triage", "--reason", "accepted fell")
    log = run("log", "triage", "--env", "production")

    assert f"CANARY  triage in production serves {short(first)}, 5 % {short(second)} (r2)" in canary.stdout
    assert f"ROLLED BACK  triage in production serves {short(first)} (r3)" in rollback.stdout
    assert f"back to {short(first)}" in log.stdout
    assert "accepted fell" in log.stdout


def test_a_rollback_needs_neither_git_nor_the_repository(
    project: Project, run: Command, tmp_path: Path
) -> None:
    first = seal(project)
    through(run, "development")
    project.edit("Sort the ticket.", "Sort the ticket, please.")
    seal(project)
    through(run, "development")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    url = f"sqlite:///{project.root}/.deploy-gates/store.db"

    done = run("rollback", "triage", "--env", "development", "--store", url, "--json", at=elsewhere, PATH="")

    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["deployment"]["baseline"] == first


def test_the_same_key_moves_once(project: Project, run: Command) -> None:
    seal(project)

    made = [
        json.loads(run("promote", "triage", "--to", "development", "--key", "merge-118", "--json").stdout)
        for _ in range(2)
    ]

    assert [each["replayed"] for each in made] == [False, True]
    assert [each["deployment"]["revision"] for each in made] == [1, 1]


def test_a_digest_the_store_keeps_is_promoted_without_the_file(project: Project, run: Command) -> None:
    digest = seal(project)
    through(run, "development")
    project.edit("Sort the ticket.", "Sort the ticket, please.")

    done = run("promote", "triage", "--to", "staging", "--digest", short(digest), "--json")

    assert json.loads(done.stdout)["deployment"]["baseline"] == digest


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        ("UPDATE history SET actor = 'mallory' WHERE revision = 1", "r1 of triage in development was edited"),
        ("DELETE FROM history WHERE revision = 1", "r1 does not stand before r2"),
        ("DELETE FROM history WHERE revision = 2", "the history ends at r1, but the environment is at r2"),
        ("UPDATE history SET revision = revision % 2 + 11", "reordered"),
        ("UPDATE deployment SET baseline = 'x'", "serves something else than r2"),
    ],
)
def test_a_log_that_was_tampered_with_is_named(
    project: Project, run: Command, tamper: str, said: str
) -> None:
    seal(project)
    through(run, "development")
    project.edit("Sort the ticket.", "Sort the ticket, please.")
    seal(project)
    through(run, "development")
    with sqlite3.connect(project.root / ".deploy-gates/store.db") as file:
        for (name,) in file.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            file.execute(f"DROP TRIGGER {name}")
        file.execute(tamper)
    file.close()

    done = run("log", "--verify")

    assert done.returncode == 1
    assert said in done.stdout
    assert "TAMPERED" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["promote", "triage", "--to", "moon"], 2, "invalid choice: 'moon'"),
        (["promote", "triag", "--to", "development"], 2, "there is no config 'triag'"),
        (["promote", "triage", "--to", "development", "--weight", "100"], 2, "is no share"),
        (["promote", "triage", "--to", "development", "--weight", "five"], 2, "is no share"),
        (["promote", "triage", "--to", "development", "--digest", "abc"], 1, "begins with abc"),
        (["promote", "triage", "--to", "development", "--evidence", "none.json"], 2, "no file none.json"),
        (["rollback", "triage"], 3, "there is no store in"),
        (["status"], 3, "there is no store in"),
        (["log", "--verify"], 3, "there is no store in"),
        (["status", "--store", "mysql://x"], 3, "is no store"),
        (["status", "--store", "sqlite:////nowhere/store.db"], 3, "there is no store at /nowhere/store.db"),
        (["log", "--limit", "0"], 2, "not a whole number from 1 on"),
        (["log", "--limit", "x"], 2, "x is not a whole number from 1 on"),
        (["token", "revoke", "abc"], 3, "there is no store in"),
    ],
)
def test_what_cannot_be_done_says_so_in_one_sentence(
    run: Command, arguments: list[str], status: int, said: str
) -> None:
    done = run(*arguments)

    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_looking_for_what_is_not_there_does_not_say_that_nothing_is(project: Project, run: Command) -> None:
    run("store", "upgrade")

    told = [
        run(*each).stdout for each in (["status"], ["status", "nope"], ["log", "nope", "--env", "production"])
    ]

    assert told == [
        "nothing was promoted yet\n",
        "nothing of nope was promoted yet\n",
        "nothing of nope was promoted to production yet\n",
    ]


def test_looking_makes_nothing(project: Project, run: Command) -> None:
    for command in ("status", "log", "rollback"):
        run(command, *(["triage"] if command == "rollback" else []))

    assert not (project.root / ".deploy-gates").exists()


def test_what_the_store_does_not_know_is_refused(project: Project, run: Command) -> None:
    run("store", "upgrade")

    done = [
        run("rollback", "triage"),
        run("token", "revoke", "abc"),
        run("log", "--verify"),
        run("log", "--verify", "triag", "--env=staging"),
    ]

    assert [each.returncode for each in done] == [1, 1, 1, 1]
    assert "nothing was ever promoted to triage in production" in done[0].stderr
    assert "no token abc in force" in done[1].stderr
    assert "there is no history to verify" in done[2].stderr
    assert "there is no history of triag in staging to verify" in done[3].stderr


def test_the_store_of_the_settings_and_of_the_environment_are_used(
    project: Project, run: Command, tmp_path: Path
) -> None:
    project.edit(
        "[tool.deploy_gates.golden]",
        '[tool.deploy_gates]\nstore = "sqlite:///ours.db"\n\n[tool.deploy_gates.golden]',
        "pyproject.toml",
    )

    of_settings = run("store", "upgrade", "--json")
    of_environment = run("store", "upgrade", "--json", DEPLOY_GATES_STORE=f"sqlite:///{tmp_path}/theirs.db")

    assert json.loads(of_settings.stdout) == {
        "store": f"sqlite:///{project.root}/ours.db",
        "before": 0,
        "after": len(migrations("sqlite")),
    }
    assert json.loads(of_environment.stdout)["store"] == f"sqlite:///{tmp_path}/theirs.db"


def test_a_newer_store_is_left_alone(project: Project, run: Command) -> None:
    run("store", "upgrade")
    with sqlite3.connect(project.root / ".deploy-gates/store.db") as file:
        file.execute("INSERT INTO migration VALUES (99, 0)")
    file.close()

    done = [run("store", "upgrade"), run("status"), run("rollback", "triage")]

    assert [each.returncode for each in done] == [3, 3, 3]
    assert all("is of version 99" in each.stderr or "are of version 99" in each.stderr for each in done)


def test_what_an_environment_serves_can_be_compared_with(project: Project, run: Command) -> None:
    seal(project)
    through(run, "development")
    project.edit("temperature: 0,", "temperature: 1,")

    said: list[JsonObject] = [
        json.loads(run("diff", base, "--json").stdout) for base in ("store:development", "store:staging")
    ]

    assert [each["key"] for each in said[0]["changed"][0]["fields"]] == ["parameters.temperature"]  # type: ignore[index, union-attr, call-overload]
    assert said[1]["changed"][0]["baseline"] == ""  # type: ignore[index, union-attr, call-overload]
    assert "names no environment" in run("diff", "store:moon").stderr


def test_times_are_those_of_the_store(store: Store) -> None:
    before = clock.now() - timedelta(milliseconds=1)
    everywhere(store, a_release(store))

    (event,) = store.history("ticket-triage", "production")

    assert before <= event.at <= clock.now()
    assert event.at != NOW


# --- Tokens -------------------------------------------------------------------------------------


def test_a_token_is_shown_once_and_kept_as_a_hash(project: Project, run: Command) -> None:
    made = run("token", "create", "triage", "--scope", "read", "--scope", "report")
    listed = run("token", "list")
    identity = made.stdout.split("_")[1]
    revoked = run("token", "revoke", identity)
    again = run("token", "list", "--json")

    secret = made.stdout.strip()
    assert secret.startswith("dg_")
    assert "shown this once" in made.stderr
    assert "triage" in listed.stdout
    assert "read report" in listed.stdout
    assert secret not in listed.stdout
    assert secret.encode() not in (project.root / ".deploy-gates/store.db").read_bytes()
    assert revoked.returncode == 0
    assert json.loads(again.stdout)[0]["revoked_at"]
