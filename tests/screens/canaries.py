"""Canaries made by hand: every number of a reading is given, so that a screen can be compared with a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from deploy_gates.core.canary import (
    COST,
    ERRORS,
    LATENCY,
    Action,
    Arms,
    Aspect,
    Better,
    Decision,
    Kind,
    Metric,
    Plan,
    Reading,
    Word,
)

START_MS = 1_790_000_000_000
VALID = Metric(name="valid output", kind=Kind.SHARE, better=Better.HIGHER, margin_ratio=6.0)
ACCEPTED = Metric(name="accepted", kind=Kind.SHARE, better=Better.HIGHER, margin_pt=2.0)
PLAN = Plan(
    metrics=(
        Metric(name=ERRORS, kind=Kind.SHARE, margin_ratio=2.0, warm_up=False),
        VALID,
        ACCEPTED,
        Metric(
            name=LATENCY,
            kind=Kind.AMOUNT,
            margin_ratio=1.22,
            proofs=(Aspect.SHAPE, Aspect.P95, Aspect.P99),
        ),
        Metric(name=COST, kind=Kind.AMOUNT, margin_ratio=1.22, proofs=(Aspect.SHAPE,)),
        Metric(name="tokens", kind=Kind.AMOUNT, margin_ratio=1.5, proofs=(Aspect.SHAPE,), dry_run=True),
    )
)


def reading(metric: str, plan: Plan = PLAN, **fields: Any) -> Reading:
    """A reading of a metric of `plan`; what is not given is unknown yet."""
    planned = next(each for each in plan.metrics if each.name == metric)
    is_share = planned.kind is Kind.SHARE
    made: dict[str, Any] = {
        "aspect": Aspect.RATE if is_share else Aspect.SHAPE,
        "baseline": None,
        "candidate": None,
        "ratio": None,
        "low": None,
        "high": None,
        "margin_ratio": planned.margin_ratio,
        "log_e_harm": 0.0,
        "log_e_safe": 0.0,
        "word": Word.UNDECIDED,
        "seen_baseline": 0,
        "seen_candidate": 0,
        "needed": None,
        "dry_run": planned.dry_run,
    }
    return Reading(metric=metric, kind=planned.kind, better=planned.better, **(made | fields))


def decision(readings: Sequence[Reading], elapsed_s: float = 250, **fields: Any) -> Decision:
    """A decision after so many seconds."""
    made: dict[str, Any] = {
        "plan": PLAN,
        "action": Action.CONTINUE,
        "reason": "undecided",
        "cause": (),
        "started_ms": START_MS,
        "arms": Arms(baseline=21_850, candidate=1_150, excluded=150),
        "log_e": 0.2,
        "log_e_limit": math.log(1 / 0.007),
        "log_e_proof": math.log(20),
        "log_e_split": 0.0,
        "next_mark_s": 300.0,
        "marks": 0,
        "needed": None,
        "missing": (),
        "sums": cast(Any, None),
    }
    return Decision(at_ms=START_MS + round(elapsed_s * 1000), readings=tuple(readings), **(made | fields))


def going() -> Decision:
    """The example of the design: on its way, one metric undecided."""
    return decision(
        [
            reading(ERRORS, baseline=0.0101, candidate=0.0096, ratio=0.95, low=0.7, high=1.6, word=Word.SAFE),
            reading(
                "valid output",
                baseline=0.9991,
                candidate=0.9994,
                ratio=0.67,
                low=0.3,
                high=1.6,
                word=Word.SAFE,
            ),
            reading(
                "accepted",
                baseline=0.912,
                candidate=0.917,
                ratio=0.94,
                low=0.6,
                high=1.3,
                margin_ratio=1.25,
                needed=233,
            ),
            reading(LATENCY, baseline=1.42, candidate=1.31, ratio=0.92, low=0.88, high=0.97, word=Word.SAFE),
            reading(
                LATENCY,
                aspect=Aspect.P99,
                baseline=6.2,
                candidate=6.0,
                ratio=0.97,
                low=0.6,
                high=1.6,
                margin_ratio=1.49,
                needed=90,
            ),
            reading(LATENCY, aspect=Aspect.TAIL, baseline=7.9, candidate=7.7, ratio=0.98, margin_ratio=None),
            reading(
                COST, baseline=0.00064, candidate=0.00077, ratio=1.2, low=1.17, high=1.21, word=Word.SAFE
            ),
            reading("tokens", baseline=412.0, candidate=498.0, ratio=1.21, low=None, high=None),
        ],
        needed=233,
    )


def rolled_back() -> Decision:
    """The other example of the design: users reject what the candidate says."""
    return decision(
        [
            reading(ERRORS),
            reading("valid output", baseline=0.9994, candidate=0.9967, ratio=5.5, low=0.5, high=None),
            reading(
                "accepted",
                baseline=0.916,
                candidate=0.834,
                ratio=2.17,
                low=1.4,
                high=3.1,
                margin_ratio=1.25,
                word=Word.HARMFUL,
                log_e_harm=6.1,
            ),
            reading(LATENCY, baseline=1.31, candidate=0.88, ratio=0.67, low=0.65, high=0.8, word=Word.SAFE),
            reading(COST, baseline=0.00077, candidate=0.00045, ratio=0.58, low=0.5, high=0.6, word=Word.SAFE),
            reading("tokens", baseline=0.0, candidate=0.0),
        ],
        elapsed_s=185,
        action=Action.ROLLBACK,
        reason="accepted is worse, proved 216 to 1; 143 were needed",
        cause=("accepted",),
        arms=Arms(baseline=11_400, candidate=600, excluded=90, unfinished=2),
        log_e=math.log(216),
    )


def promoted() -> Decision:
    """Everything is proved."""
    found = going()
    return replace(
        found,
        action=Action.PROMOTE,
        reason="every metric is proved to be no worse than its margin",
        readings=tuple(replace(each, word=Word.SAFE, needed=None) for each in found.readings),
        at_ms=START_MS + 302_000,
        arms=Arms(baseline=26_828, candidate=1_412, excluded=150),
        marks=1,
        next_mark_s=600.0,
        needed=None,
    )


def waiting() -> Decision:
    """Nothing came yet."""
    return decision(
        [reading(each.name) for each in PLAN.metrics],
        action=Action.HOLD,
        reason="the candidate got no request yet",
        started_ms=None,
        arms=Arms(),
        log_e=0.0,
    )


def held() -> Decision:
    """Something is missing."""
    return replace(
        going(),
        action=Action.HOLD,
        reason="the candidate got no request for 15 s: traffic stays as it is",
        missing=(
            "the candidate got no request for 15 s",
            "the outcomes of 1,204 requests of the candidate were lost",
        ),
        arms=Arms(baseline=21_850, candidate=1_150, excluded=150, unfinished=7, dropped=1_204),
    )


def history(looks: int, plan: Plan = PLAN, worse: float = 1.1, **fields: Any) -> list[Decision]:
    """Looks five seconds apart, in which intervals close in on a candidate that is so many times worse."""
    return [_look(at, plan, worse, fields if at == looks else {}) for at in range(1, looks + 1)]


def _look(at: int, plan: Plan, worse: float, fields: dict[str, Any]) -> Decision:
    around = 3 / math.sqrt(at)
    readings = []
    for number, metric in enumerate(plan.metrics):
        if metric.warm_up and at <= 6:
            readings.append(reading(metric.name, plan))
            continue
        is_share = metric.kind is Kind.SHARE
        ratio = worse * (1 + 0.2 * math.sin(at * (number + 1)) / math.sqrt(at))
        baseline = 0.012 if is_share else 1.7
        readings.append(
            reading(
                metric.name,
                plan,
                baseline=baseline if metric.better is Better.LOWER else 1 - baseline,
                candidate=baseline * ratio if metric.better is Better.LOWER else 1 - baseline * ratio,
                ratio=ratio,
                low=ratio * math.exp(-around) if at > 3 else None,
                high=ratio * math.exp(around) if at > 3 else None,
                log_e_harm=math.log(worse) * at / 3 - number / 4,
                seen_baseline=950 * at,
                seen_candidate=50 * at,
                needed=40,
            )
        )
    return decision(
        readings,
        elapsed_s=5 * at,
        plan=plan,
        arms=Arms(baseline=950 * at, candidate=50 * at, excluded=min(50 * at, 300)),
        log_e=math.log(worse) * at / 4,
        marks=at // 60,
        **fields,
    )
