"""Runs of the gates as they end, to be shown."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

from deploy_gates.core.canonical import Json, short
from deploy_gates.core.config import ConfigChange, FieldChange, Snapshot
from deploy_gates.core.gate import GateName, GateResult, Verdict
from deploy_gates.report import GateReport, RunReport
from deploy_gates.testing import NOW, a_change, a_config, a_snapshot

EVERYWHERE = ("development", "staging", "production")


def run(*reports: GateReport, **fields: object) -> RunReport:
    made: dict[str, object] = {
        "base": "main",
        "started_at": NOW,
        "finished_at": NOW + timedelta(seconds=44.6),
        "asked": 403,
        "replayed": 400,
        "spent_nanousd": 310_000_000,
        "budget_usd": Decimal("2.00"),
        "tool_version": "0.1.0",
    }
    return RunReport(changes=reports, **(made | fields))  # type: ignore[arg-type]  # a builder


def snapshot(name: str, version: int) -> Snapshot:
    return a_snapshot(a_config(name=name, document={"name": name, "version": version}))


def change(name: str = "ticket-triage", **fields: object) -> ConfigChange:
    """A calmer tone."""
    made = a_change(snapshot(name, 2), snapshot(name, 1))
    told = (
        FieldChange(key="parameters.temperature", baseline="0.2", candidate="0.0"),
        FieldChange(key="messages[0].content", baseline="", candidate="+14 −3 lines, +1,240 characters"),
    )
    return replace(made, **({"fields": told} | fields))  # type: ignore[arg-type]  # a builder


def results(*others: GateResult) -> tuple[GateResult, ...]:
    """Five gates that pass; `others` stand in for those of their name."""
    passed = [
        GateResult(
            gate=GateName.TYPE,
            verdict=Verdict.PASS,
            measured=("6 of 6 checks",),
            required=("all",),
            took_s=0.1,
        ),
        GateResult(
            gate=GateName.UNIT,
            verdict=Verdict.PASS,
            measured=("11 of 11 checks",),
            required=("all",),
            took_s=0.3,
        ),
        GateResult(
            gate=GateName.INTEGRATION,
            verdict=Verdict.PASS,
            measured=("3 of 3 calls, slowest 1.9 s",),
            required=("all, ≤ 3.0 s",),
            took_s=2.1,
            spent_nanousd=2_000_000,
        ),
        GateResult(
            gate=GateName.GOLDEN,
            verdict=Verdict.PASS,
            measured=("387 of 400, baseline 384", "+0.8 pt, at worst −0.6 pt (95 % sure)"),
            required=("", "≥ −2.0 pt"),
            figures={"change_pt": 0.75, "low_pt": -0.6, "high_pt": 2.1, "margin_pt": 2, "confidence": 0.95},
            checks=400,
            missed=13,
            took_s=41.8,
            spent_nanousd=308_000_000,
        ),
        GateResult(
            gate=GateName.COST,
            verdict=Verdict.PASS,
            measured=("$0.77 per 1k requests, baseline $0.64",),
            required=("≤ $0.90",),
            took_s=0.2,
        ),
    ]
    by_name = {result.gate: result for result in [*passed, *others]}
    return tuple(by_name[gate] for gate in GateName)


def passing() -> GateReport:
    return sealed(GateReport(change=change(), results=results(), open_to=EVERYWHERE))


def sealed(report: GateReport) -> GateReport:
    config = report.change.candidate.config
    assert config is not None
    path = f".deploy-gates/evidence/{report.change.name}-{short(config.digest)}.json"
    return replace(report, evidence_path=path)


def _case(id: str, field: str, expected: str, got: str, *tags: str) -> Json:
    return {"case": id, "field": field, "expected": expected, "got": got, "tags": list(tags)}


WORSE: list[Json] = [
    _case("refund-after-30-days", "category", "refund", "billing", "refund"),
    _case("refund-partial", "category", "refund", "billing", "refund"),
    _case("refund-chargeback", "priority", "high", "normal", "refund"),
    *(_case(f"refund-{n}", "category", "refund", "billing", "refund") for n in range(8)),
    *(_case(f"invoice-{n}", "reason", "at most 120 characters", "212 characters") for n in range(4)),
]
BETTER: list[Json] = [_case(f"outage-{n}", "category", "technical", "technical") for n in range(3)]


def blocked() -> GateReport:
    golden = GateResult(
        gate=GateName.GOLDEN,
        verdict=Verdict.FAIL,
        measured=("372 of 400, baseline 384", "−3.0 pt, at worst −4.8 pt (95 % sure)"),
        required=("", "≥ −2.0 pt"),
        hint="try the weak spot alone: `pytest --deploy-gates --gate=golden -k refund`",
        figures={
            "change_pt": -3.0,
            "low_pt": -4.8,
            "high_pt": -1.2,
            "margin_pt": 2.0,
            "confidence": 0.95,
            "worse": WORSE,
            "better": BETTER,
        },
        checks=400,
        missed=28,
        took_s=33.0,
        spent_nanousd=64_000_000,
    )
    told = FieldChange(key="model", baseline="gpt-4.1-mini", candidate="gpt-4.1-nano")
    return sealed(GateReport(change=change(fields=(told,)), results=results(golden)))


def undecided() -> GateReport:
    golden = GateResult(
        gate=GateName.GOLDEN,
        verdict=Verdict.INCONCLUSIVE,
        measured=("38 of 40, baseline 39", "−2.5 pt, at worst −8.9 pt (95 % sure)"),
        required=("", "≥ −2.0 pt"),
        reasons=(
            "40 cases cannot tell a loss of 2.0 pt from none",
            "2 cases have no answer: the endpoint kept answering 429 until the retries were used up, and the "
            "time for the run was over",
        ),
        hint="120 more cases or 3 samples more of each would decide",
        figures={"change_pt": -2.5, "low_pt": -8.9, "high_pt": 3.9, "margin_pt": 2.0, "confidence": 0.95},
        checks=40,
        missed=2,
        unknown=2,
        took_s=9.4,
        spent_nanousd=6_000_000,
    )
    return sealed(
        GateReport(change=change(), results=results(golden), hints=("`--gate-record=new` asks again",))
    )


def new() -> GateReport:
    fresh = a_change(snapshot("hello", 1))
    golden = GateResult(
        gate=GateName.GOLDEN,
        verdict=Verdict.PASS,
        measured=("20 of 20, at worst 86 % (95 % sure)",),
        required=("≥ 80 %",),
        checks=20,
        took_s=0.4,
    )
    unit = GateResult(gate=GateName.UNIT, verdict=Verdict.SKIP, measured=("no check; optional by policy",))
    return sealed(
        GateReport(
            change=fresh,
            results=results(golden, unit),
            open_to=("development", "staging"),
            hints=("production wants fresh answers: set OPENAI_API_KEY and add `--gate-record=all`",),
        )
    )


def unreadable() -> GateReport:
    broken = a_change(replace(snapshot("reply-draft", 2), config=None), snapshot("reply-draft", 1))
    typed = GateResult(
        gate=GateName.TYPE,
        verdict=Verdict.FAIL,
        measured=("0 of 1 checks",),
        required=("all",),
        reasons=(
            "golden/reply-draft/config.yaml:12: `temprature` is not a key of `parameters`; did you mean "
            "`temperature`?",
            "golden/reply-draft/config.yaml:19: `messages[1].content` is missing",
        ),
        checks=1,
        missed=1,
        took_s=0.1,
    )
    nothing = [
        GateResult(gate=gate, verdict=Verdict.INCONCLUSIVE, measured=("no check was executed",))
        for gate in GateName
        if gate is not GateName.TYPE
    ]
    return GateReport(change=broken, results=results(typed, *nothing))


def chosen() -> GateReport:
    """Only two of the gates were asked for."""
    others = [
        GateResult(gate=gate, verdict=Verdict.SKIP, measured=("not chosen",))
        for gate in (GateName.UNIT, GateName.INTEGRATION, GateName.GOLDEN)
    ]
    return GateReport(change=change(), results=results(*others))
