"""Evidence without a run of the gates: sealed by hand, for what the tests promote."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from deploy_gates import clock, envelope, settings, workspace
from deploy_gates.core.canonical import short
from deploy_gates.core.evidence import Answers, Evidence, Provenance
from deploy_gates.core.gate import GateName, GateResult, Verdict
from deploy_gates.envelope import PrivateKey
from deploy_gates.testing import POLICY
from project import Project


def an_evidence(
    digest: str, *, policy: str = POLICY, oldest: datetime | None = None, **fields: object
) -> Evidence:
    """Five gates that pass, found just now."""
    made: dict[str, object] = {
        "config": "ticket-triage",
        "digest": digest,
        "baseline_digest": "",
        "dataset_digest": "d" * 64,
        "gates": tuple(
            GateResult(gate=gate, verdict=Verdict.PASS, measured=("all",), checks=3) for gate in GateName
        ),
        "answers": Answers(recorded=3, oldest=oldest or clock.now()),
        "spent_nanousd": 0,
        "provenance": Provenance(
            policy_digest=policy,
            price_source="genai-prices 0; declared in pyproject.toml",
            commit="0d4be12",
            is_dirty=False,
            tool_version="0.1.0",
            started_at=clock.now(),
            finished_at=clock.now(),
        ),
    }
    return Evidence(**(made | fields))  # type: ignore[arg-type]  # a builder for tests takes any field


def failing(evidence: Evidence, verdict: Verdict = Verdict.FAIL) -> Evidence:
    """The same with a golden gate that does not pass, a second later."""
    gates = tuple(
        replace(each, verdict=verdict) if each.gate is GateName.GOLDEN else each for each in evidence.gates
    )
    later = evidence.provenance.finished_at + timedelta(seconds=1)
    return replace(evidence, gates=gates, provenance=replace(evidence.provenance, finished_at=later))


def seal(project: Project, verdict: Verdict = Verdict.PASS, key: PrivateKey | None = None) -> str:
    """Put evidence for the config as it is where the gates put it; the digest."""
    snapshot = workspace.read_snapshot(project.root, "golden/triage/config.yaml")
    config = snapshot.config
    assert config is not None
    policy = settings.load(project.root).policy.digest
    evidence = an_evidence(
        config.digest, config="triage", policy=policy, dataset_digest=snapshot.cases_digest
    )
    if verdict is not Verdict.PASS:
        evidence = failing(evidence, verdict)
    envelope.write(
        project.root / ".deploy-gates/evidence" / f"triage-{short(config.digest)}.json", evidence, key
    )
    return config.digest
