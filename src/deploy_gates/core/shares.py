"""A share of both arms, such as errors: how many of the bad ones are the candidate's.

Within a bin that number has Fisher's noncentral hypergeometric law, whose parameter is the odds ratio and
in which the rate itself, and so all drift, cancels out. Its likelihood is all there is to keep: e-values
are ratios of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from deploy_gates.core import sequential
from deploy_gates.core.canary import Aspect, Better, Metric, Plan
from deploy_gates.core.sequential import Bounds, Evidence, Floats, Measured

PAST_BINS = 12
"""A margin in points is turned into an odds ratio at the baseline's rate in the last minute."""

_GRID: Floats = np.arange(-100, 121, dtype=np.float64) * 0.05
"""Logarithms of the odds ratios whose likelihood is kept."""
_HARM: Floats = np.log([1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 200.0])
_HARM_PRIOR = sequential.prior(0.7, 1.2, 2, 1.7, 1.7, 1.2, 1, 1.5)
"""How much worse a bad candidate may be. The outage has a large part: the sooner it is found, the better."""
_SAFE: Floats = np.array([0.0, 0.35, -0.5])
"""Where the truth lies for a good candidate, as parts of the way from no difference to the margin."""
_RARE: Floats = np.array([0.1, 0.4])
"""And where bad outcomes are rare: parts of the margin in points. Who is worse by it has at least so many."""
_SAFE_PRIOR = sequential.prior(6, 1.8, 0.8, 0.9, 0.5)
_NEAR = np.array([2, 4, 6, 9, 13, 18, 25, 35, 50, 75, 106])
_NEAR_PRIOR = sequential.prior(1, 2, 2, 2, 2, 2, 1, 1, 0.5, 0.3, 0.7)
"""Alternatives of the confidence sequence: so many steps of the grid away, on both sides."""
_NEAR_WEIGHTS = np.concatenate([_NEAR_PRIOR, _NEAR_PRIOR]) / 2
_NEAR_PLACES = np.clip(
    np.concatenate([_NEAR, -_NEAR])[:, None] + np.arange(len(_GRID)), 0, len(_GRID) - 1
)  # beyond an end of the grid stands that end


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareSums:
    """What is kept of a share."""

    explain: bool = True
    """Whether the confidence sequence is kept, which decides nothing."""
    grid: Floats = field(default_factory=lambda: np.zeros(len(_GRID)))
    """The log-likelihood of each odds ratio."""
    worst: Floats = field(default_factory=lambda: np.full(len(_GRID), -np.inf))
    """The highest e-value each odds ratio ever had against it, as a logarithm."""
    harm: Floats = field(default_factory=lambda: np.zeros(len(_HARM)))
    safe: Floats = field(default_factory=lambda: np.zeros(len(_SAFE_PRIOR)))
    proved: float = 0.0
    """The highest e-value there ever was against "worse by the margin", as a logarithm."""
    law: Floats = field(default_factory=lambda: np.ones(1))
    """The law, if the candidate is no worse, of how many bad ones it has, from `law_low` on."""
    law_low: int = 0
    bad: int = 0
    seen: int = 0
    seen_baseline: int = 0
    expected: float = 0.0
    """The bad ones that the baseline's rates would have given the candidate."""
    past: tuple[tuple[int, int], ...] = ()
    """Bad and all of the baseline's last bins."""
    margin: float = math.nan
    """The logarithm of the odds ratio that is refused."""

    def taught(self, baseline: tuple[int, int]) -> Self:
        """After a bin that is not judged."""
        return replace(self, past=(*self.past, baseline)[-PAST_BINS:]) if baseline[1] else self

    def added(self, metric: Metric, baseline: tuple[int, int], candidate: tuple[int, int]) -> Self:
        """After a bin: bad ones, and all, of each arm."""
        (bad_b, n_b), (bad_c, n_c) = baseline, candidate
        taught = self.taught(baseline)
        if not (n_b and n_c):
            return taught
        margin = margin_of(metric, self.past or taught.past)
        base = math.log(metric.rollback_ratio)
        total, marked = n_b + n_c, bad_b + bad_c
        thetas = np.concatenate([_GRID, base + _HARM, [base], margin * _SAFE, [margin]])
        log_l = bad_c * thetas - sequential.log_mean_odds(thetas, total, marked, n_c)
        harm_end = len(_GRID) + len(_HARM)
        grid = self.grid + log_l[: len(_GRID)]
        safe = self.safe + np.append(log_l[harm_end + 1 : -1] - log_l[-1], _rare(metric, bad_c, n_c))
        low, law = sequential.hypergeometric(total, marked, n_c, log_theta=base)
        return replace(
            taught,
            grid=grid,
            worst=np.maximum(self.worst, _doubt(grid)) if self.explain else self.worst,
            harm=self.harm + log_l[len(_GRID) : harm_end] - log_l[harm_end],
            safe=safe,
            proved=max(self.proved, sequential.log_mean_exp(safe, _SAFE_PRIOR)),
            law=np.convolve(self.law, law),
            law_low=self.law_low + low,
            bad=self.bad + bad_c,
            seen=self.seen + n_c,
            seen_baseline=self.seen_baseline + n_b,
            expected=self.expected + n_c * bad_b / n_b,
            margin=margin,
        )

    def harms(self, metric: Metric) -> tuple[Evidence, ...]:
        """The e-value against "no worse"."""
        log_e = sequential.log_mean_exp(self.harm, _HARM_PRIOR)
        return (Evidence(aspect=Aspect.RATE, part=1.0, value=log_e),)

    def tests(self, metric: Metric) -> tuple[Evidence, ...]:
        """The p-value of "no worse", once and for all: exact, over all bins together."""
        p = float(self.law[max(0, self.bad - self.law_low) :].sum())
        return (Evidence(aspect=Aspect.RATE, part=1.0, value=p),)

    def measured(self, metric: Metric, plan: Plan) -> tuple[Measured, ...]:
        """The rates, their odds ratio, and what is proved of it."""
        if not self.seen:
            return (Measured(aspect=Aspect.RATE, margin_ratio=metric.margin_ratio),)
        rates = self.expected / self.seen, self.bad / self.seen
        if metric.better is Better.HIGHER:
            rates = 1 - rates[0], 1 - rates[1]
        has_bad = bool(self.bad or self.expected)
        bounds = sequential.bounds(_GRID, self.worst, -math.log1p(-plan.confidence))
        return (
            Measured(
                aspect=Aspect.RATE,
                baseline=rates[0],
                candidate=rates[1],
                ratio=sequential.peak(_GRID, self.grid) if has_bad else None,
                bounds=bounds if has_bad else Bounds(),
                margin_ratio=math.exp(self.margin),
                log_e_safe=self.proved,
                needed=self._needed(metric, plan) if self.proved < -math.log(plan.false_promotion) else None,
            ),
        )

    def _needed(self, metric: Metric, plan: Plan) -> int | None:
        rate = (self.expected + 0.5) / (self.seen + 1)
        share = self.seen / (self.seen + self.seen_baseline)
        return proof_needed(metric, plan, rate, self.margin, share, self.safe)


def _rare(metric: Metric, bad: float, n: float) -> Floats:
    """E-values, as logarithms, against a rate of the margin in points or more: the candidate's alone.

    They are valid whatever the baseline does, and all there is where neither arm has a bad outcome.
    """
    if metric.margin_pt is None:
        return np.zeros(len(_RARE))
    most = metric.margin_pt / 100
    return np.asarray(bad * np.log(_RARE) + (n - bad) * (np.log1p(-_RARE * most) - math.log1p(-most)))


def proof_needed(
    metric: Metric, plan: Plan, rate: float, margin: float, share: float, so_far: Floats | None = None
) -> int | None:
    """About so many more of the candidate prove the margin (a logarithm), if it is as the baseline."""
    thetas = np.append(margin * _SAFE, margin)
    log_l = rate * thetas - sequential.log_mean_odds_each(thetas, rate, share)
    growth = np.append(log_l[:-1] - log_l[-1], _rare(metric, rate, 1.0))
    lacking = -math.log(plan.false_promotion) - np.log(_SAFE_PRIOR)
    return sequential.needed(lacking - (0.0 if so_far is None else so_far), growth)


def detectable(rate: float, n: float, share: float, deviations: float) -> float | None:
    """The smallest odds ratio that exceeds its spread so many times, with `n` of the candidate."""
    for ratio in np.exp(np.arange(1, 121) * 0.05):
        worse = rate * ratio / (1 - rate + rate * ratio)
        mean = (1 - share) * rate + share * worse
        if (worse - rate) * math.sqrt(n * (1 - share)) >= deviations * math.sqrt(mean * (1 - mean)):
            return float(ratio)
    return None


def margin_of(metric: Metric, past: Sequence[tuple[int, int]]) -> float:
    """The logarithm of the odds ratio that is refused, at the baseline's rate in `past`: (bad, all)."""
    ratio = math.log(metric.margin_ratio) if metric.margin_ratio is not None else 1e-6
    if metric.margin_pt is None:
        return ratio
    bad, n = (sum(each[at] for each in past) for at in (0, 1))
    rate = (bad + 0.5) / (n + 1)
    worse = min(rate + metric.margin_pt / 100, 1 - 0.25 / (n + 1))
    return max(math.log(worse / (1 - worse)) - math.log(rate / (1 - rate)), ratio)


def _doubt(grid: Floats) -> Floats:
    """For each odds ratio, the logarithm of the e-value against it."""
    windows = grid[_NEAR_PLACES]
    top = windows.max(axis=0)
    return np.asarray(top + np.log(_NEAR_WEIGHTS @ np.exp(windows - top)) - grid, dtype=np.float64)
