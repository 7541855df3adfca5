"""The end of a run: outcomes are judged, evidence is sealed, recordings are kept, reports are written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from deploy_gates import __version__, envelope, report
from deploy_gates.answers import Answers
from deploy_gates.core import evidence
from deploy_gates.core.canonical import short
from deploy_gates.core.config import ENVIRONMENTS, ConfigChange
from deploy_gates.core.evidence import Provenance
from deploy_gates.core.gate import GateName, GateResult, Outcome, Verdict
from deploy_gates.gates import GATES
from deploy_gates.report import GateReport, RunReport
from deploy_gates.settings import Settings
from deploy_gates.workspace import STATE_FOLDER, Changes


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What is known when the last check has reported."""

    root: Path
    settings: Settings
    changes: Changes
    answers: Answers
    chosen: tuple[GateName, ...]
    outcomes: tuple[Outcome, ...]
    finished: datetime
    reports: tuple[str, ...] = ()


def conclude(run: Run) -> RunReport:
    """Judge and seal every change. What cannot be written is a note on the report, and blocks."""
    notes = list(run.changes.notes) + run.answers.keep() + run.answers.remember(run.outcomes)
    made = tuple(_judged(run, change) for change in run.answers.changes)
    told = RunReport(
        changes=made,
        base=run.changes.base,
        started_at=run.answers.context.now,
        finished_at=run.finished,
        unchanged=run.changes.unchanged,
        deleted=run.changes.deleted,
        asked=sum(outcome.asked for outcome in run.outcomes),
        replayed=sum(outcome.replayed for outcome in run.outcomes),
        spent_nanousd=sum(outcome.spent_nanousd for outcome in run.outcomes),
        budget_usd=run.answers.budget_usd,
        notes=tuple(notes),
        tool_version=__version__,
    )
    for path in run.reports:
        report.write(run.root / path, told)
    return told


def _judged(run: Run, change: ConfigChange) -> GateReport:
    outcomes = [each for each in run.outcomes if each.config == change.name]
    context = run.answers.context
    results = tuple(
        _timed(
            GATES[name].judge(change, outcomes, context), outcomes, run.answers.asking_s.get(change.name, 0.0)
        )
        if name in run.chosen
        else _skipped(name)
        for name in GateName
    )
    sealed = evidence.seal(change, results, outcomes, _provenance(run))
    if sealed is None:
        return GateReport(change=change, results=results)
    path = Path(STATE_FOLDER, "evidence", f"{change.name}-{short(sealed.digest)}.json")
    key = envelope.configured_key(
        run.root, file=run.settings.key_file, variable=run.settings.key_env, environ=os.environ
    )
    envelope.write(run.root / path, sealed, key)
    open_to = tuple(
        name
        for name in ENVIRONMENTS
        if evidence.admits(
            sealed, digest=sealed.digest, environment=name, policy=context.policy, now=run.finished
        ).is_admitted
    )
    return GateReport(
        change=change, results=results, evidence_path=path.as_posix(), open_to=open_to, hints=_hints(open_to)
    )


def _timed(result: GateResult, outcomes: Sequence[Outcome], asking_s: float) -> GateResult:
    """The result with what its gate took and spent, and each reason once.

    Questions are answered side by side, not in a row.
    """
    own = [each for each in outcomes if each.gate is result.gate]
    took_s = sum(each.took_s for each in own)
    if result.gate in (GateName.GOLDEN, GateName.INTEGRATION):
        took_s = min(took_s, asking_s)
    return replace(
        result,
        reasons=tuple(dict.fromkeys(result.reasons)),
        took_s=took_s,
        spent_nanousd=sum(each.spent_nanousd for each in own),
    )


def _hints(open_to: Sequence[str]) -> tuple[str, ...]:
    if open_to and "production" not in open_to:
        return ("production wants fresh answers: set the endpoint's key and add `--gate-record=all`",)
    return ()


def _skipped(name: GateName) -> GateResult:
    return GateResult(gate=name, verdict=Verdict.SKIP, measured=("not chosen",))


def _provenance(run: Run) -> Provenance:
    return Provenance(
        policy_digest=run.settings.policy.digest,
        price_source=run.answers.price_source,
        commit=run.changes.commit,
        is_dirty=run.changes.is_dirty,
        tool_version=__version__,
        started_at=run.answers.context.now,
        finished_at=run.finished,
    )


def check_reports(root: Path, paths: Sequence[str]) -> None:
    """Refuse reports that could not be written, before anything is asked."""
    for path in paths:
        report.check(root / path)
