"""Evidence for one digest: what the gates found, sealed, and what it admits.

Two runs over the same files and the same answers seal the same evidence, but for its times: figures are
rounded, and no list depends on the order in which checks happened to report.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from deploy_gates.core.canonical import Json, JsonObject, short
from deploy_gates.core.config import ConfigChange
from deploy_gates.core.errors import EnvelopeError
from deploy_gates.core.gate import GateName, GateResult, Outcome, Verdict, worst
from deploy_gates.core.policy import Policy

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:deploy-gates:evidence:1"
"""Changes whenever an older reader would misread the predicate."""

SIGNIFICANT_DIGITS = 9
"""Sums of floats differ in their last digits with the order of their terms; nobody decides on those."""

ANSWERS_MAX_AGE: Mapping[str, timedelta] = {"production": timedelta(days=7)}
"""How old the oldest answer may be; an environment that is not named takes any age."""

FOREVER = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Where the answers came from, and when."""

    recorded: int = 0
    live: int = 0
    oldest: datetime | None = None
    """`None`: there was no answer, or one whose age nobody knows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """What all evidence of one run has in common."""

    policy_digest: str
    price_source: str
    commit: str
    is_dirty: bool
    """The work tree differed from the commit."""
    tool_version: str
    started_at: datetime
    finished_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What five gates found of one exact config."""

    config: str
    digest: str
    baseline_digest: str
    """Empty: there was no baseline, or none that could be read."""
    dataset_digest: str
    gates: tuple[GateResult, ...]
    answers: Answers
    spent_nanousd: int
    provenance: Provenance

    @property
    def verdict(self) -> Verdict:
        return worst(result.verdict for result in self.gates)

    def to_statement(self) -> JsonObject:
        """This evidence as an in-toto Statement, version 1."""
        facts = self.provenance
        return {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": self.config, "digest": {"sha256": self.digest}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "verdict": self.verdict.value,
                "gates": [gate_json(result) for result in self.gates],
                "baseline": self.baseline_digest,
                "dataset": self.dataset_digest,
                "policy": facts.policy_digest,
                "prices": facts.price_source,
                "answers": {
                    "recorded": self.answers.recorded,
                    "live": self.answers.live,
                    "oldest": None if self.answers.oldest is None else _rfc3339(self.answers.oldest),
                },
                "spent_nanousd": self.spent_nanousd,
                "git": {"commit": facts.commit, "dirty": facts.is_dirty},
                "tool": {"name": "pytest-deploy-gates", "version": facts.tool_version},
                "started_at": _rfc3339(facts.started_at),
                "finished_at": _rfc3339(facts.finished_at),
            },
        }

    @classmethod
    def from_statement(cls, statement: Json) -> Evidence:
        """The evidence in an in-toto Statement; `EnvelopeError` for anything that is not exactly that."""
        raw = _expect(statement, dict, "the statement")
        if raw.get("_type") != STATEMENT_TYPE:
            raise EnvelopeError(
                f"the payload is no in-toto Statement v1: its _type is {_shown(raw, '_type')}"
            )
        if raw.get("predicateType") != PREDICATE_TYPE:
            raise EnvelopeError(
                f"the statement is of an unknown predicateType, {_shown(raw, 'predicateType')}",
                hint=f"this version reads {PREDICATE_TYPE}",
            )
        name, digest = _subject(raw)
        predicate = _get(raw, "predicate", dict)
        git, tool = _get(predicate, "git", dict), _get(predicate, "tool", dict)
        evidence = cls(
            config=name,
            digest=digest,
            baseline_digest=_get(predicate, "baseline", str),
            dataset_digest=_get(predicate, "dataset", str),
            gates=tuple(_gate(each) for each in _get(predicate, "gates", list)),
            answers=_answers(_get(predicate, "answers", dict)),
            spent_nanousd=_get(predicate, "spent_nanousd", int),
            provenance=Provenance(
                policy_digest=_get(predicate, "policy", str),
                price_source=_get(predicate, "prices", str),
                commit=_get(git, "commit", str),
                is_dirty=_get(git, "dirty", bool),
                tool_version=_get(tool, "version", str),
                started_at=_time(predicate, "started_at"),
                finished_at=_time(predicate, "finished_at"),
            ),
        )
        if [result.gate for result in evidence.gates] != list(GateName):
            raise EnvelopeError("the evidence does not hold the five gates, each once")
        if predicate.get("verdict") != evidence.verdict.value:
            raise EnvelopeError(
                f"the evidence contradicts itself: it says {_shown(predicate, 'verdict')}, "
                f"its gates say {evidence.verdict}"
            )
        return evidence


def seal(
    change: ConfigChange,
    results: Sequence[GateResult],
    outcomes: Sequence[Outcome],
    provenance: Provenance,
) -> Evidence | None:
    """The evidence for the candidate of `change`; `None` if it cannot be read: it has no digest then.

    `results` are those of the five gates in their order, `outcomes` all of this change.
    """
    assert [result.gate for result in results] == list(GateName), results
    if change.candidate.config is None:
        return None
    baseline = change.baseline.config if change.baseline else None
    return Evidence(
        config=change.name,
        digest=change.candidate.config.digest,
        baseline_digest=baseline.digest if baseline else "",
        dataset_digest=change.candidate.cases_digest,
        gates=tuple(_sealed(result) for result in results),
        answers=_answers_of(outcomes),
        spent_nanousd=sum(outcome.spent_nanousd for outcome in outcomes),
        provenance=provenance,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """Whether evidence opens an environment to a digest, and every reason why it does not."""

    environment: str
    refusals: tuple[str, ...] = ()

    @property
    def is_admitted(self) -> bool:
        return not self.refusals


def admits(
    evidence: Evidence,
    *,
    digest: str,
    environment: str,
    policy: Policy,
    now: datetime,
    answers_max_age: Mapping[str, timedelta] = ANSWERS_MAX_AGE,
) -> Admission:
    """Whether `evidence` lets `digest` into `environment`: every gate passed, under this policy, lately."""
    refusals: list[str] = []
    if evidence.digest != digest:
        refusals.append(f"the evidence is for {short(evidence.digest)}, not for {short(digest)}")
    if evidence.provenance.policy_digest != policy.digest:
        refusals.append("the policy has changed since the gates ran")
    for result in evidence.gates:
        if result.blocks:
            refusals.append(f"{result.gate} says {result.verdict}")
        elif result.verdict is Verdict.SKIP and result.gate not in policy.optional:
            refusals.append(f"{result.gate} was skipped")
    refusals += _too_old(evidence.answers, environment, now, answers_max_age.get(environment))
    return Admission(environment=environment, refusals=tuple(refusals))


def admitted_until(
    evidence: Evidence,
    *,
    environment: str,
    policy: Policy | None,
    answers_max_age: Mapping[str, timedelta] = ANSWERS_MAX_AGE,
) -> datetime | None:
    """Until when `evidence` opens an environment to its digest; `None`: it does not.

    Without the `policy` nobody knows which gates may be skipped, so none may.
    """
    optional = frozenset() if policy is None else policy.optional
    for result in evidence.gates:
        if result.blocks or (result.verdict is Verdict.SKIP and result.gate not in optional):
            return None
    limit = answers_max_age.get(environment)
    if limit is None or not (evidence.answers.recorded or evidence.answers.oldest):
        return FOREVER
    return None if evidence.answers.oldest is None else evidence.answers.oldest + limit


def settled(value: Json) -> Json:
    """`value` without what may differ between equal runs: the last digits, and the order of reports.

    Lists of numbers keep their order, for an interval has a lower and an upper end.
    """
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") + 0.0 if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: settled(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        items = [settled(each) for each in value]
        if all(each is None or isinstance(each, int | float) for each in items):
            return items
        return sorted(items, key=lambda each: json.dumps(each, sort_keys=True))
    return value


def _sealed(result: GateResult) -> GateResult:
    figures = settled(result.figures)
    assert isinstance(figures, dict), figures
    return replace(
        result,
        figures=figures,
        reasons=tuple(sorted(result.reasons)),
        hint="",  # advice for the day, no finding
        took_s=round(result.took_s, 3),
    )


def _answers_of(outcomes: Iterable[Outcome]) -> Answers:
    resting = [outcome for outcome in outcomes if outcome.asked or outcome.replayed]
    is_dated = all(outcome.oldest_answer or not outcome.replayed for outcome in resting)
    dates = [datetime.fromisoformat(each.oldest_answer) for each in resting if each.oldest_answer]
    return Answers(
        recorded=sum(outcome.replayed for outcome in resting),
        live=sum(outcome.asked for outcome in resting),
        oldest=min(dates, default=None) if is_dated else None,
    )


def _too_old(answers: Answers, environment: str, now: datetime, limit: timedelta | None) -> list[str]:
    if limit is None or not (answers.recorded or answers.oldest):
        return []
    if answers.oldest is None:
        return [f"nobody knows how old its recorded answers are, and {environment} asks"]
    age = now - answers.oldest
    if age <= limit:
        return []
    return [f"its oldest answer is {_days(age)} old, and {environment} takes {_days(limit)} at most"]


def _days(span: timedelta) -> str:
    days = span / timedelta(days=1)
    return f"{days:.1f} days" if days % 1 else f"{days:.0f} days"


# --- JSON, both ways ----------------------------------------------------------------------------


def gate_json(result: GateResult) -> JsonObject:
    """One gate's result, as it stands in evidence."""
    return {
        "gate": result.gate.value,
        "verdict": result.verdict.value,
        "measured": list(result.measured),
        "required": list(result.required),
        "reasons": list(result.reasons),
        "checks": result.checks,
        "missed": result.missed,
        "unknown": result.unknown,
        "figures": result.figures,
        "took_s": result.took_s,
        "spent_nanousd": result.spent_nanousd,
    }


def _gate(value: Json) -> GateResult:
    raw = _expect(value, dict, "a gate")
    gate, verdict = _get(raw, "gate", str), _get(raw, "verdict", str)
    if gate not in set(GateName) or verdict not in set(Verdict):
        raise EnvelopeError(f"the evidence speaks of an unknown gate or verdict: {gate!r}, {verdict!r}")
    took_s = raw.get("took_s")
    return GateResult(
        gate=GateName(gate),
        verdict=Verdict(verdict),
        measured=_strings(raw, "measured"),
        required=_strings(raw, "required"),
        reasons=_strings(raw, "reasons"),
        checks=_get(raw, "checks", int),
        missed=_get(raw, "missed", int),
        unknown=_get(raw, "unknown", int),
        figures=_get(raw, "figures", dict),
        took_s=float(took_s) if isinstance(took_s, int) else _get(raw, "took_s", float),
        spent_nanousd=_get(raw, "spent_nanousd", int),
    )


def _answers(raw: JsonObject) -> Answers:
    return Answers(
        recorded=_get(raw, "recorded", int),
        live=_get(raw, "live", int),
        oldest=None if raw.get("oldest") is None else _time(raw, "oldest"),
    )


def _subject(statement: JsonObject) -> tuple[str, str]:
    subjects = _get(statement, "subject", list)
    if len(subjects) != 1:
        raise EnvelopeError(f"the statement has {len(subjects)} subjects; evidence is for one config")
    subject = _expect(subjects[0], dict, "the subject")
    digest = _get(_get(subject, "digest", dict), "sha256", str)
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise EnvelopeError("the statement's subject has no SHA-256 digest")
    return _get(subject, "name", str), digest


_T = TypeVar("_T")


def _expect(value: Json, kind: type[_T], name: str) -> _T:
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        return value
    raise EnvelopeError(f"the evidence cannot be read: {name} is missing or not what it should be")


def _get(raw: Mapping[str, Json], key: str, kind: type[_T]) -> _T:
    return _expect(raw.get(key), kind, f"`{key}`")


def _strings(raw: Mapping[str, Json], key: str) -> tuple[str, ...]:
    return tuple(_expect(each, str, f"`{key}`") for each in _get(raw, key, list))


def _time(raw: Mapping[str, Json], key: str) -> datetime:
    text = _get(raw, key, str)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise EnvelopeError(f"the evidence cannot be read: `{key}` is no time with a zone")
    return time


def _rfc3339(time: datetime) -> str:
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _shown(raw: Mapping[str, Json], key: str) -> str:
    return json.dumps(raw.get(key))[:100]
