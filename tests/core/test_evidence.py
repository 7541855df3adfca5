"""Evidence is for one digest, is equal for equal runs, and admits nothing else."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import ConfigChange
from deploy_gates.core.errors import EnvelopeError
from deploy_gates.core.evidence import PREDICATE_TYPE, Answers, Evidence, Provenance, admits, seal, settled
from deploy_gates.core.gate import Found, GateName, GateResult, Outcome, Verdict
from deploy_gates.core.policy import Policy
from deploy_gates.testing import NOW, a_case, a_change, a_config, a_snapshot

POLICY = Policy(digest="b" * 64)
PROVENANCE = Provenance(
    policy_digest=POLICY.digest,
    price_source="genai-prices 0.2.3",
    commit="0d4be12",
    is_dirty=False,
    tool_version="0.1.0",
    started_at=NOW,
    finished_at=NOW + timedelta(seconds=44),
)


def results(**verdicts: Verdict) -> tuple[GateResult, ...]:
    """Five results that pass, but for the verdicts given by the gate's name."""
    return tuple(
        GateResult(
            gate=gate,
            verdict=verdicts.get(gate.value, Verdict.PASS),
            measured=("6 of 6 checks",),
            required=("all",),
            checks=6,
            figures={"interval_pt": [-0.6, 2.2]},
            took_s=0.1,
        )
        for gate in GateName
    )


def outcome(check: str, **fields: object) -> Outcome:
    made: dict[str, object] = {"gate": GateName.GOLDEN, "config": "ticket-triage", "found": Found.MET}
    return Outcome(check=check, **(made | fields))  # type: ignore[arg-type]  # a builder


OUTCOMES = (
    outcome("cases.jsonl::a", asked=2, spent_nanousd=700, oldest_answer="2026-11-23T09:14:02Z"),
    outcome("cases.jsonl::b", replayed=3, spent_nanousd=0, oldest_answer="2026-11-20T08:00:00+00:00"),
    outcome("config.yaml::type/schema", gate=GateName.TYPE),
)


def change() -> ConfigChange:
    candidate = a_snapshot(cases=[a_case("refund-partial")], cases_digest="c" * 64)
    return a_change(candidate, a_snapshot(a_config(model="gpt-4.1-nano")))


def sealed(given: tuple[GateResult, ...] | None = None, outcomes: tuple[Outcome, ...] = OUTCOMES) -> Evidence:
    evidence = seal(change(), results() if given is None else given, outcomes, PROVENANCE)
    assert evidence is not None
    return evidence


# --- Sealing ------------------------------------------------------------------------------------


def test_evidence_names_the_exact_config_cases_and_baseline_it_is_about() -> None:
    about = change()
    assert about.baseline is not None
    assert about.baseline.config is not None
    assert about.candidate.config is not None

    evidence = sealed()

    assert evidence.digest == about.candidate.config.digest
    assert evidence.baseline_digest == about.baseline.config.digest
    assert evidence.dataset_digest == "c" * 64


def test_evidence_says_where_the_answers_came_from_and_when_the_oldest_was_given() -> None:
    evidence = sealed()

    assert evidence.answers == Answers(recorded=3, live=2, oldest=datetime(2026, 11, 20, 8, tzinfo=UTC))
    assert evidence.spent_nanousd == 700


def test_one_recorded_answer_without_a_date_leaves_the_age_of_all_unknown() -> None:
    undated = outcome("cases.jsonl::c", replayed=1)

    evidence = sealed(outcomes=(*OUTCOMES, undated))

    assert evidence.answers == Answers(recorded=4, live=2, oldest=None)


def test_a_config_that_cannot_be_read_gets_no_evidence() -> None:
    broken = a_change(replace(a_snapshot(), config=None))

    evidence = seal(broken, results(type=Verdict.FAIL), (), PROVENANCE)

    assert evidence is None


def test_a_new_config_has_no_baseline_digest() -> None:
    evidence = seal(a_change(a_snapshot()), results(), (), PROVENANCE)

    assert evidence is not None
    assert evidence.baseline_digest == ""


def test_the_order_in_which_checks_report_leaves_no_trace() -> None:
    worse: list[Json] = [{"case": f"case-{n}", "got": n / 7} for n in range(20)]
    reasons = tuple(f"case-{n} got worse" for n in range(20))
    chance = random.Random(20261123)

    def once() -> JsonObject:
        shuffled = chance.sample(worse, k=20)
        total = math.fsum(chance.sample([0.1] * 10, k=10)) + chance.choice([0.0, 1e-15])
        golden = replace(
            results()[3],
            reasons=tuple(chance.sample(reasons, k=20)),
            figures={"total": total, "worse": shuffled},
        )
        given = tuple(golden if each.gate is GateName.GOLDEN else each for each in results())
        return sealed(given, tuple(chance.sample(OUTCOMES, k=3))).to_statement()

    made = {json.dumps(once(), sort_keys=True) for _ in range(20)}

    assert len(made) == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1 + 0.2, 0.3),
        (-0.0, 0.0),
        (math.nan, None),
        (-math.inf, None),
        (10**17 + 1, 10**17 + 1),
        (True, True),
        ([2.5, -0.6], [2.5, -0.6]),
        ([2.5, None, 1], [2.5, None, 1]),
        (["refund", "billing"], ["billing", "refund"]),
        ([{"case": "b"}, {"case": "a"}], [{"case": "a"}, {"case": "b"}]),
    ],
    ids=str,
)
def test_settled_figures_keep_what_decides_and_drop_what_wobbles(value: Json, expected: Json) -> None:
    assert json.dumps(settled(value)) == json.dumps(expected)


# --- As a statement -----------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize("oldest", [None, datetime(2026, 11, 20, 8, 0, 0, 123456, tzinfo=UTC)])
def test_evidence_crosses_borders_as_json_and_comes_back_equal(
    verdict: Verdict, oldest: datetime | None
) -> None:
    evidence = replace(sealed(results(golden=verdict)), answers=Answers(recorded=1, oldest=oldest))

    back = Evidence.from_statement(json.loads(json.dumps(evidence.to_statement())))

    assert back == evidence


def test_the_statement_is_in_toto_v1_with_the_digest_as_its_subject() -> None:
    evidence = sealed()

    statement = evidence.to_statement()

    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == PREDICATE_TYPE
    assert statement["subject"] == [{"name": "ticket-triage", "digest": {"sha256": evidence.digest}}]


def _set(path: str, value: Json) -> Callable[[JsonObject], None]:
    """An edit of the statement at `a.b.0.c`."""

    def edit(statement: JsonObject) -> None:
        *above, last = path.split(".")
        at: Json = statement
        for key in above:
            at = at[int(key)] if isinstance(at, list) else at[key]  # type: ignore[index]
        at[last] = value  # type: ignore[index,call-overload]

    return edit


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_set("_type", "https://in-toto.io/Statement/v0.1"), "no in-toto Statement v1"),
        (_set("predicateType", "https://slsa.dev/provenance/v1"), "unknown predicateType"),
        (_set("subject", []), "has 0 subjects"),
        (_set("subject.0.digest.sha256", "8a41d07"), "no SHA-256 digest"),
        (_set("predicate", None), "`predicate` is missing"),
        (_set("predicate.verdict", "fail"), "contradicts itself"),
        (_set("predicate.gates", []), "the five gates, each once"),
        (_set("predicate.gates.0.gate", "cost"), "the five gates, each once"),
        (_set("predicate.gates.0.gate", "vibes"), "unknown gate or verdict"),
        (_set("predicate.gates.0.verdict", "green"), "unknown gate or verdict"),
        (_set("predicate.gates.0.checks", True), "`checks` is missing"),
        (_set("predicate.gates.0.reasons", [1]), "`reasons` is missing"),
        (_set("predicate.answers.oldest", "2026-11-23T09:14:02"), "no time with a zone"),
        (_set("predicate.started_at", "yesterday"), "no time with a zone"),
        (_set("predicate.git.dirty", "no"), "`dirty` is missing"),
    ],
)
def test_a_statement_that_is_not_evidence_is_refused_in_one_sentence(
    edit: Callable[[JsonObject], None], says: str
) -> None:
    statement = json.loads(json.dumps(sealed().to_statement()))
    edit(statement)

    with pytest.raises(EnvelopeError, match=says):
        Evidence.from_statement(statement)


@pytest.mark.parametrize("value", [None, [], "evidence", 7])
def test_json_that_is_no_object_is_no_statement(value: Json) -> None:
    with pytest.raises(EnvelopeError, match="the statement is missing or not what it should be"):
        Evidence.from_statement(value)


# --- What it admits -----------------------------------------------------------------------------


def test_evidence_of_five_passes_opens_every_environment_to_its_digest() -> None:
    evidence = sealed()

    admitted = [
        admits(evidence, digest=evidence.digest, environment=each, policy=POLICY, now=NOW).is_admitted
        for each in ("development", "staging", "production")
    ]

    assert admitted == [True, True, True]


@pytest.mark.parametrize("gate", GateName)
@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.SKIP])
def test_one_gate_that_did_not_pass_closes_every_environment(gate: GateName, verdict: Verdict) -> None:
    evidence = sealed(results(**{gate.value: verdict}))

    admission = admits(evidence, digest=evidence.digest, environment="development", policy=POLICY, now=NOW)

    assert len(admission.refusals) == 1
    assert admission.refusals[0].startswith(gate.value)


def test_an_optional_gate_may_be_skipped_but_not_fail() -> None:
    optional = replace(POLICY, optional=frozenset({GateName.UNIT}))

    def refusals(verdict: Verdict) -> int:
        evidence = sealed(results(unit=verdict))
        return len(
            admits(evidence, digest=evidence.digest, environment="staging", policy=optional, now=NOW).refusals
        )

    assert refusals(Verdict.SKIP) == 0
    assert refusals(Verdict.FAIL) == 1
    assert refusals(Verdict.INCONCLUSIVE) == 1


def test_evidence_admits_no_other_digest_and_no_other_policy() -> None:
    evidence = sealed()

    admission = admits(
        evidence,
        digest="d" * 64,
        environment="development",
        policy=replace(POLICY, digest="e" * 64),
        now=NOW,
    )

    assert admission.refusals == (
        f"the evidence is for {evidence.digest[:7]}, not for ddddddd",
        "the policy has changed since the gates ran",
    )


@pytest.mark.parametrize(
    ("answers", "environment", "refused"),
    [
        (Answers(recorded=3, oldest=NOW - timedelta(days=7)), "production", []),
        (
            Answers(recorded=3, oldest=NOW - timedelta(days=9)),
            "production",
            ["its oldest answer is 9 days old, and production takes 7 days at most"],
        ),
        (Answers(recorded=3, oldest=NOW - timedelta(days=900)), "staging", []),
        (
            Answers(recorded=3, oldest=None),
            "production",
            ["nobody knows how old its recorded answers are, and production asks"],
        ),
        (Answers(live=3, oldest=None), "production", []),
    ],
)
def test_old_answers_open_staging_and_not_production(
    answers: Answers, environment: str, refused: list[str]
) -> None:
    evidence = replace(sealed(), answers=answers)

    admission = admits(evidence, digest=evidence.digest, environment=environment, policy=POLICY, now=NOW)

    assert list(admission.refusals) == refused
