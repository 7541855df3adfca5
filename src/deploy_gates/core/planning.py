"""What a canary will be able to see, before it starts: traffic, not the clock, limits what can be proved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import ndtri

from deploy_gates.core import amounts, shares
from deploy_gates.core.amounts import Law
from deploy_gates.core.canary import Aspect, Kind, Metric, Plan
from deploy_gates.core.tally import Arm, Tally
from deploy_gates.core.weighing import Half, mark_rate

POWER = 0.8
"""A change counts as seen if it is rolled back by the mark this often."""
SHARES = (0.05, 0.1, 0.25, 0.5)
"""Shares of traffic that are tried when one is not enough."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """What a plan sees of one metric by its mark."""

    metric: str
    aspect: Aspect
    """The one that takes longest to prove."""
    kind: Kind
    baseline: float
    """Its rate, or its median, in its own unit."""
    margin_ratio: float
    detectable_ratio: float | None
    """Harm of this size is rolled back four times in five; `None`: not even ten times worse."""
    needed: int | None
    """So many of the candidate prove the margin, if it does not differ; `None`: no number does."""
    got: int
    """So many it will get by the mark, the warm-up left out."""
    needed_s: float | None
    """How long that takes at this traffic and share."""
    dry_run: bool = False

    @property
    def is_enough(self) -> bool:
        """Whether the margin can be proved by the mark."""
        return self.needed is not None and self.needed <= self.got


@dataclass(frozen=True, kw_only=True, slots=True)
class Foresight:
    """What a plan sees of all its metrics, and what would help."""

    rate_rps: float
    share: float
    mark_s: float
    sights: tuple[Sight, ...]
    missing: tuple[str, ...]
    """Metrics the baseline has no values of."""
    share_enough: float | None
    """The smallest share of `SHARES` that is enough, if this one is not."""
    mark_enough_s: float | None
    """The mark that is enough at this share."""

    @property
    def is_enough(self) -> bool:
        """Whether the plan sees its own margins."""
        return not self.missing and all(each.is_enough for each in self.sights if not each.dry_run)


def foresee(plan: Plan, baseline: Sequence[Tally], *, rate_rps: float, share: float) -> Foresight:
    """What `plan` will see at so many requests a second, of which `share` go to the candidate.

    Where users are the unit, that is users a second. The traffic is taken to be as that of `baseline` was.
    """
    half = Half.of([each for each in baseline if each.arm is Arm.BASELINE])
    found, missing = [], []
    for metric in plan.metrics:
        sight = _sight(plan, metric, half, rate_rps, share)
        if sight is not None:
            found.append(sight)
        elif not metric.dry_run:
            missing.append(metric.name)
    seen = tuple(found)
    judged = [each for each in seen if not each.dry_run]
    is_enough = all(each.is_enough for each in judged)
    longest = max((each.needed_s or math.inf for each in judged), default=math.inf)
    share_enough = None
    if not is_enough:
        share_enough = next(
            (
                more
                for more in SHARES
                if more > share and _all_seen(plan, half, rate_rps, more, [each.metric for each in judged])
            ),
            None,
        )
    return Foresight(
        rate_rps=rate_rps,
        share=share,
        mark_s=plan.mark_s,
        sights=seen,
        missing=tuple(missing),
        share_enough=share_enough,
        mark_enough_s=None if is_enough or math.isinf(longest) else longest,
    )


def _all_seen(plan: Plan, half: Half, rate_rps: float, share: float, names: Sequence[str]) -> bool:
    found = [_sight(plan, metric, half, rate_rps, share) for metric in plan.metrics if metric.name in names]
    return all(each is not None and each.is_enough for each in found)


def _sight(plan: Plan, metric: Metric, half: Half, rate_rps: float, share: float) -> Sight | None:
    warm_up_s = plan.warm_up_s if metric.warm_up else 0.0
    arriving = rate_rps * share
    got = arriving * (plan.mark_s - warm_up_s)
    weights = sum(each.weight for each in plan.judged)
    weight = metric.weight / (weights if not metric.dry_run else weights + metric.weight)
    deviations = float(ndtri(1 - mark_rate(plan, 0) * weight) + ndtri(POWER))
    if metric.kind is Kind.SHARE:
        bad, n = half.share(metric)
        if not n:
            return None
        rate = (bad + 0.5) / (n + 1)
        margin = shares.margin_of(metric, [(bad, n)])
        needs = {Aspect.RATE: shares.proof_needed(metric, plan, rate, margin, share)}
        margins = {Aspect.RATE: math.exp(margin)}
        seen, baseline = shares.detectable(rate, got, share, deviations), rate
    else:
        law = Law.of(half.amount(metric).counts, metric.better)
        if law is None:
            return None
        needs = {each: amounts.proof_needed(metric, plan, law, each, share) for each in metric.proofs}
        margins = {each: amounts.margin_of(metric, each) for each in metric.proofs}
        seen, baseline = amounts.detectable(law, got, share, deviations), law.median(metric)
    aspect = max(needs, key=lambda each: math.inf if needs[each] is None else needs[each] or 0)
    needed = needs[aspect]
    return Sight(
        metric=metric.name,
        aspect=aspect,
        kind=metric.kind,
        baseline=baseline,
        margin_ratio=margins[aspect],
        detectable_ratio=seen,
        needed=needed,
        got=math.floor(got),
        needed_s=None if needed is None else needed / arriving + warm_up_s,
        dry_run=metric.dry_run,
    )
