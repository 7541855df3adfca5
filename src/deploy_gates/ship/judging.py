"""What the canary of a promotion is judged by, what it will be able to see, and what was decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Self

from deploy_gates.core.canary import Action, Plan
from deploy_gates.core.canonical import Json
from deploy_gates.core.errors import SettingsError
from deploy_gates.core.release import Promotion, Status
from deploy_gates.core.tally import BIN_MS, Arm, Tally, Unit
from deploy_gates.report import quantities
from deploy_gates.settings import canary_plan
from deploy_gates.ship.checkout import Came
from deploy_gates.store import Store

if TYPE_CHECKING:
    from deploy_gates.canary.watching import Look, Source

SIGHT = timedelta(minutes=10)
"""So much of the past says how much traffic there is."""


@dataclass(frozen=True, kw_only=True)
class Judging:
    """A plan, and where its tallies come from."""

    plan: Plan
    source: Source | None
    """`None`: from the store, where clients report them."""
    delay_s: float
    unit: Unit | None
    """What is counted; `None`: users, where they keep an arm."""

    @classmethod
    def of(cls, promotion: Promotion, environment: str) -> Self:
        """As the terms of the promotion say. `SettingsError` where what judges is not installed."""
        try:
            from deploy_gates.canary import watching
        except ImportError as error:
            raise SettingsError(
                f"a canary is judged with {error.name}, which is not installed here",
                hint="pip install 'pytest-deploy-gates[canary]'",
            ) from error
        table = promotion.terms.canary
        plan = canary_plan(table)
        unit = plan.unit if "unit" in table else None
        raw = table.get("prometheus")
        if not isinstance(raw, Mapping):
            return cls(plan=plan, source=None, delay_s=watching.REPORTING_S, unit=unit)
        from deploy_gates.canary.prometheus import Prometheus

        server = Prometheus.of(raw, config=promotion.release.config, environment=environment)
        return cls(plan=plan, source=server.tallies, delay_s=server.delay_s, unit=unit)


def unseen(store: Store, promotion: Promotion, environment: str, now: datetime) -> Came | None:
    """Why a canary would be blind to its own margins, even at its last mark; `None`: it would see them."""
    judging = Judging.of(promotion, environment)
    if promotion.terms.low_traffic:
        return None
    from deploy_gates.core.planning import foresee
    from deploy_gates.report import canary

    baseline = _traffic(store, judging, promotion.release.config, environment, now)
    hint = "deploy-gates ship --low-traffic goes on all the same"
    requests = sum(max(each.started, each.finished) for each in baseline)
    if not requests:
        minutes = round(SIGHT.total_seconds() / 60)
        said = (
            f"nobody has reported a request of {promotion.release.config} in {environment} for {minutes} "
            "minutes, so a canary would see nothing"
        )
        return Came(status=Status.HELD, data={"said": said, "hint": hint, "cause": "no traffic"})
    span_ms = max(each.start_ms for each in baseline) - min(each.start_ms for each in baseline) + BIN_MS
    rate_rps = requests / span_ms * 1000
    plan = replace(judging.plan, mark_s=judging.plan.mark_s * (1 + judging.plan.extensions))
    found = foresee(plan, baseline, rate_rps=rate_rps, share=promotion.terms.weight_bp / 10_000)
    if found.is_enough:
        return None
    said = f"at {rate_rps:,.3g} requests a second, {'; '.join(canary.outlook(found))}"
    return Came(status=Status.HELD, data={"said": said, "hint": hint, "cause": "too little traffic"})


def decided(look: Look) -> Came:
    """What the journal keeps of the last look."""
    decision = look.decision
    assert decision is not None, look
    is_promoted = decision.action is Action.PROMOTE
    said = decision.reason if is_promoted else quantities.explained(decision) or decision.reason
    figures: Json = decision.to_json()
    return Came(
        status=Status.DONE if is_promoted else Status.FAILED,
        data={"said": said, "action": decision.action.value, "decision": figures},
    )


def held_for(look: Look) -> str:
    """Why a person has to decide the canary; empty: it is on its way."""
    decision = look.decision
    if decision is None or decision.action is not Action.HOLD:
        return ""
    return decision.reason if "undecided" in decision.cause else ""


def _traffic(store: Store, judging: Judging, config: str, environment: str, now: datetime) -> list[Tally]:
    """What the baseline was asked lately, request by request."""
    until_ms = int(now.timestamp() * 1000) // BIN_MS * BIN_MS
    since_ms = until_ms - int(SIGHT.total_seconds() * 1000)
    if judging.source is not None:
        found = list(judging.source(since_ms, until_ms))
    else:
        found = list(store.tallies(config, environment, since_ms=since_ms, until_ms=until_ms))
    return [each for each in found if each.arm is Arm.BASELINE and each.unit is Unit.REQUEST]
