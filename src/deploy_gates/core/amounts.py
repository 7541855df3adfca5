"""An amount of both arms, such as latency: is the candidate's law worse, in its whole or in its tail?

Values live in buckets of 4 %. Weights of buckets come from the baseline's last minutes alone: tilts of its
normal scores for the whole law (near optimal for a lognormal one), contaminations for the tail, bets on the
mean. The labels within a bin are then compared as `sequential` says. A margin divides the candidate's
values first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deploy_gates.core import sequential
from deploy_gates.core.canary import LATENCY, Aspect, Better, Metric, Plan
from deploy_gates.core.sequential import Evidence, Floats, Measured
from deploy_gates.core.tally import GROWTH, HIGHEST, LOWEST

BUCKETS = HIGHEST - LOWEST + 1
STEP = math.log(GROWTH)
PAST_BINS = 36
"""Weights are made of the baseline's last three minutes."""
PAST_LEAST = 40
"""Fewer values of the baseline than this say nothing of its law."""
MEAN_CAP = 40.0
"""For the mean, a value counts at most as so many times the mean: one huge request must not decide."""
ROUGH = 0.01
"""Of neighbouring buckets, the sum of the squared differences of their parts: a law above it has steps, as
where values are rounded. Below it lies a lognormal law whose values spread by a tenth or more."""
SPREAD_LEAST = 0.1
"""The least spread of scores: those of a law that is a single value have none."""
TILT_MAX = 1.5
"""No score counts more, in nats: so far the mean over all choices is known to within a hundredth."""

Places: TypeAlias = slice | NDArray[np.intp]

_QUANTILES = {Aspect.P50: 0.5, Aspect.P95: 0.95, Aspect.P99: 0.99}
_LEVELS: Floats = np.array(list(_QUANTILES.values()))
_LOG_X: Floats = (np.arange(BUCKETS, dtype=np.float64) + LOWEST + 0.5) * STEP
"""The middle of each bucket, worse to the right where lower is better."""
_SHIFTS: Floats = np.array([0.05, 0.105, 0.2, 0.37, 0.7, 1.2])
"""The whole law is worse by so many of its standard deviations."""
_TAILS = ((0.02, 2.0), (0.08, 1.9), (0.02, 3.2))
"""A part of the requests is worse by so many standard deviations."""
_MEANS: Floats = np.array([0.03, 0.1, 0.3])
_EXCESS: Floats = np.log([1.3, 1.8, 3.0])
"""So many times the odds of lying beyond a quantile of the baseline."""
_PRIORS = {
    Aspect.SHAPE: sequential.prior(0.5, 1.4, 1.1, 1.4, 0.8, 0.3),
    Aspect.TAIL: sequential.prior(1.2, 1.4, 0.4),
    Aspect.MEAN: sequential.prior(1, 1, 1),
    **{aspect: sequential.prior(1, 1, 1) for aspect in _QUANTILES},
}
_SAFE: Floats = np.array([1.0, 0.5, 1.6])
_SAFE_PRIOR = sequential.prior(7, 2, 1)
"""Where the truth lies for a good candidate: the margin away from the margin, or a part of that."""
_NEAR_SHIFTS: Floats = np.array([0.05, 0.1, 0.2, 0.4, 0.8])
_NEAR_EXCESS: Floats = np.log([1.15, 1.5, 2.5])
_LIFT = 200
"""So many buckets, or 2,500 times: more than the largest margin."""
_FINE = 3
_REACH = 32
_SCALES: Floats = np.arange(-_REACH * _FINE, _REACH * _FINE + 1, dtype=np.float64) * (STEP / _FINE)
"""Confidence sequences reach from 1.04^-32 to 1.04^32, in steps of a third of a bucket."""
_RATIOS: Floats = np.concatenate([np.arange(1.01, 2.0, 0.01), np.arange(2.0, 10.1, 0.1)])
_NEAR_ASPECTS = (Aspect.SHAPE, *_QUANTILES, Aspect.MEAN)
_NEAR_ROWS = {Aspect.SHAPE: 10, Aspect.P50: 6, Aspect.P95: 6, Aspect.P99: 6, Aspect.MEAN: 6}
_ASPECTS = (*_NEAR_ASPECTS[:-1], Aspect.TAIL, Aspect.MEAN)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parts:
    """What is spent on each aspect; quantiles are shown, and proved before a promotion."""

    anytime: Mapping[Aspect, float]
    mark: Mapping[Aspect, float]


_LATENCY_PARTS = _Parts(
    anytime={Aspect.SHAPE: 0.6, Aspect.TAIL: 0.38, Aspect.MEAN: 0.02},
    mark={Aspect.SHAPE: 1.1, Aspect.TAIL: 0.35},
)
"""Latency goes wrong by its tail, too: a few requests that hang."""
_OTHER_PARTS = _Parts(
    anytime={Aspect.SHAPE: 0.88, Aspect.TAIL: 0.06, Aspect.MEAN: 0.06},
    mark={Aspect.SHAPE: 0.5, Aspect.TAIL: 0.02},
)


def _parts(metric: Metric) -> _Parts:
    return _LATENCY_PARTS if metric.name == LATENCY else _OTHER_PARTS


def margin_of(metric: Metric, aspect: Aspect) -> float:
    """How many times worse an aspect of this metric may not be."""
    assert metric.margin_ratio is not None
    return max(metric.margin_ratio, metric.tail_ratio) if aspect is Aspect.P99 else metric.margin_ratio


@dataclass(frozen=True, kw_only=True, slots=True)
class Values:
    """The values of one arm in one bin: a histogram with worse to the right, and their sum."""

    counts: Floats
    n: int
    total: float

    @classmethod
    def of(cls, metric: Metric, counts: Mapping[int, int], total: float) -> Self:
        """From buckets as tallies have them."""
        dense = np.zeros(BUCKETS)
        if counts:
            dense[np.fromiter(counts.keys(), np.intp, len(counts)) - LOWEST] = np.fromiter(
                counts.values(), np.float64, len(counts)
            )
        worse_right = dense if metric.better is Better.LOWER else dense[::-1]
        return cls(counts=worse_right, n=sum(counts.values()), total=total)


@dataclass(frozen=True, kw_only=True, slots=True)
class Law:
    """The baseline's law, as its last minutes showed it."""

    counts: Floats
    scores: Floats
    """The normal score of each bucket."""
    means: Floats
    """Each bucket in units of the mean, capped."""
    quantiles: Mapping[Aspect, int]
    """The bucket of each quantile."""
    spreads: Floats
    """The standard deviations of the two scores of the mark, shape and tail."""
    better: Better
    is_rough: bool
    """Whether buckets differ from their neighbours by more than chance: then none may be split."""

    @classmethod
    def of(cls, counts: Floats, better: Better) -> Self | None:
        """`None`: too few values."""
        if counts.sum() < PAST_LEAST:
            return None
        return cls._of(counts, better)

    @classmethod
    def _of(cls, counts: Floats, better: Better) -> Self:
        seen = np.flatnonzero(counts)
        inside = counts[seen]
        cumulated = np.cumsum(inside)
        total = float(cumulated[-1])
        log_x = _LOG_X if better is Better.LOWER else _LOG_X[::-1]
        highest = log_x[seen[-1] if better is Better.LOWER else seen[0]]
        x = np.exp(np.clip(log_x - highest, -600.0, 40.0))
        places = seen[np.searchsorted(cumulated, _LEVELS * total)]
        z = sequential.normal_scores(counts, step=STEP)
        marks = np.stack([z[seen], _tail(z[seen], *_TAILS[0])])
        variances = marks**2 @ inside / total - (marks @ inside / total) ** 2
        around = counts[max(0, int(seen[0]) - 1) : int(seen[-1]) + 2]
        steps = around[1:] - around[:-1]
        return cls(
            counts=counts,
            scores=z,
            spreads=np.maximum(np.sqrt(np.maximum(variances, 0.0)), SPREAD_LEAST),
            means=np.minimum(x / float(inside @ x[seen] / total), MEAN_CAP),
            quantiles=dict(zip(_QUANTILES, places.tolist(), strict=True)),
            better=better,
            is_rough=float(steps @ steps) - 2 * total > ROUGH * total**2,
        )

    def moved(self, counts: Floats, log_ratio: float, *, upwards: bool = False) -> Floats:
        """The histogram of the values made better by a ratio of 1 or more.

        Where it ends within buckets, these are split. In a rough law nobody knows how, and it ends before,
        or, `upwards`, behind: on the side that proves less.
        """
        if not self.is_rough:
            return _moved(counts, log_ratio, _zero(self.better))
        whole = math.ceil(log_ratio / STEP - 1e-9) if upwards else _whole(log_ratio)
        return _shift(counts, whole, _zero(self.better))

    def lifted(self, b: Floats, c: Floats) -> tuple[Law, Floats, Floats]:
        """Law and histograms as they are, unless all of the law is zero, which no ratio makes better.

        Then zero counts as the smallest amount there is: one that is worse has none, and every zero of the
        candidate is evidence.
        """
        if self.counts[_zero(self.better)] < self.counts.sum():
            return self, b, c
        law, b, c = (_lifted(each, self.better) for each in (self.counts, b, c))
        return Law._of(law, self.better), b, c

    def median(self, metric: Metric) -> float:
        """In the metric's own unit."""
        at = self.quantiles[Aspect.P50]
        return math.exp(((at if metric.better is Better.LOWER else BUCKETS - 1 - at) + LOWEST + 0.5) * STEP)

    def safe_shifts(self, at: Places, moved: Floats) -> Floats:
        """Logarithms of weights that fall: evidence that there is no difference, and not `moved`'s."""
        total = float(self.counts.sum())
        distance = float(self.counts @ self.scores - moved @ self.scores) / total
        tilts = np.minimum(max(distance, 1e-6) * _SAFE, TILT_MAX)
        return np.asarray(-tilts[:, None] * self.scores[at], dtype=np.float64)

    def safe_odds(self, aspect: Aspect, buckets: int) -> Floats:
        """The same for the odds of lying at a quantile or beyond, which is moved by so many buckets."""
        total, place = float(self.counts.sum()), self.quantiles[aspect]
        here, there = (float(self.counts[each:].sum()) + 0.5 for each in (place, place + buckets))
        odds = math.log(there / (total + 1 - there)) - math.log(here / (total + 1 - here))
        return np.asarray(min(odds, -1e-6) * _SAFE, dtype=np.float64)

    def shifts(self, at: Places, sizes: Floats) -> Floats:
        """Logarithms of weights of buckets, for the whole law."""
        return np.asarray(sizes[:, None] * self.scores[at], dtype=np.float64)

    def tails(self, at: Places) -> Floats:
        """The same for the tail."""
        return np.stack([_tail(self.scores[at], part, distance) for part, distance in _TAILS])

    def bets(self, at: Places) -> Floats:
        """The same for the mean."""
        return np.log1p(_MEANS[:, None] * (self.means[at] - 1))


def _tail(z: Floats, part: float, distance: float) -> Floats:
    """The log-likelihood ratio of a normal law of which a part lies so far away."""
    return np.asarray(np.log1p(part * np.expm1(distance * z - distance**2 / 2)), dtype=np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class AmountSums:
    """What is kept of an amount. All e-values are logarithms, by alternative."""

    explain: bool = True
    """Whether estimates and confidence sequences are kept, which decide nothing."""
    harm: Mapping[Aspect, Floats] = field(default_factory=dict)
    safe: Mapping[Aspect, Floats] = field(default_factory=dict)
    proved: Mapping[Aspect, float] = field(default_factory=dict)
    """The highest e-value there ever was against "worse by the margin", by aspect."""
    near: Floats = field(default_factory=lambda: np.zeros((sum(_NEAR_ROWS.values()), len(_SCALES))))
    """Against every scale: (alternatives of all aspects, scales), for the confidence sequences."""
    doubts: Floats = field(default_factory=lambda: np.zeros((len(_NEAR_ASPECTS), len(_SCALES))))
    """The e-value that each scale has against it, by aspect."""
    worst: Floats = field(default_factory=lambda: np.full((len(_NEAR_ASPECTS), len(_SCALES)), -np.inf))
    """The highest e-value each scale ever had against it, by aspect."""
    scores: Floats = field(default_factory=lambda: np.zeros(2))
    """The candidate's scores, shape and tail, less what is expected of them."""
    generating: Floats = field(default_factory=lambda: np.zeros((2, len(sequential.TILTS))))
    """Their cumulant generating functions, over all choices of who is who."""
    candidate: Floats = field(default_factory=lambda: np.zeros(BUCKETS))
    baseline: Floats = field(default_factory=lambda: np.zeros(BUCKETS))
    """Weighted as the candidate is, bin by bin, so that drift does not part the two."""
    total: float = 0.0
    total_baseline: float = 0.0
    seen: int = 0
    seen_baseline: int = 0
    past: tuple[Floats, ...] = ()
    """The baseline's last bins."""
    past_counts: Floats = field(default_factory=lambda: np.zeros(BUCKETS))
    """Their sum."""
    law: Law | None = None
    """The law of that."""

    def taught(self, metric: Metric, baseline: Values) -> Self:
        """After a bin that is not judged."""
        if not baseline.n:
            return self
        counts = self.past_counts + baseline.counts
        if len(self.past) == PAST_BINS:
            counts = counts - self.past[0]
        return replace(
            self,
            past=(*self.past, baseline.counts)[-PAST_BINS:],
            past_counts=counts,
            law=Law.of(counts, metric.better),
        )

    def added(self, metric: Metric, baseline: Values, candidate: Values) -> Self:
        """After a bin."""
        taught, law = self.taught(metric, baseline), self.law
        n_b, n_c = baseline.n, candidate.n
        if law is None or not (n_b and n_c):
            return taught
        b, c = baseline.counts, candidate.counts
        harm, scores, generating = _against_harm(metric, law, b, c, n_c)
        safe = _plus(self.safe, _against_margins(metric, law, b, c, n_c))
        near, doubts = self.near, self.doubts
        if self.explain:
            near = near + _near(law, b, c)
            doubts = _doubts(near)
        return replace(
            taught,
            harm=_plus(self.harm, harm),
            safe=safe,
            proved={
                each: max(self.proved.get(each, 0.0), sequential.log_mean_exp(rows, _SAFE_PRIOR))
                for each, rows in safe.items()
            },
            near=near,
            doubts=doubts,
            worst=np.maximum(self.worst, doubts),
            scores=self.scores + scores,
            generating=self.generating + generating,
            candidate=self.candidate + c,
            baseline=self.baseline + b * (n_c / n_b),
            total=self.total + candidate.total,
            total_baseline=self.total_baseline + baseline.total * (n_c / n_b),
            seen=self.seen + n_c,
            seen_baseline=self.seen_baseline + n_b,
        )

    def harms(self, metric: Metric) -> tuple[Evidence, ...]:
        """The e-values against "no worse", by aspect; those that decide have a part of 1."""
        parts = _parts(metric).anytime
        return tuple(
            Evidence(aspect=aspect, part=parts.get(aspect, 0.0), value=self._log_harm(aspect))
            for aspect in _ASPECTS
        )

    def tests(self, metric: Metric) -> tuple[Evidence, ...]:
        """The p-values of "no worse", once and for all."""
        return tuple(
            Evidence(aspect=aspect, part=part, value=sequential.upper_tail(float(score), generating))
            for (aspect, part), score, generating in zip(
                _parts(metric).mark.items(), self.scores, self.generating, strict=True
            )
        )

    def measured(self, metric: Metric, plan: Plan) -> tuple[Measured, ...]:
        """All aspects: what was measured, and what is proved of it."""
        if not (self.seen and self.explain):
            return tuple(self._proof(metric, plan, aspect) for aspect in _ASPECTS)
        baseline = _estimates(metric, self.baseline, self.total_baseline)
        candidate = _estimates(metric, self.candidate, self.total)
        return tuple(
            self._measured(metric, plan, aspect, baseline[aspect], candidate[aspect]) for aspect in _ASPECTS
        )

    def _proof(self, metric: Metric, plan: Plan, aspect: Aspect) -> Measured:
        is_proof, proved = aspect in metric.proofs, self.proved.get(aspect, 0.0)
        is_open = self.explain and is_proof and proved < -math.log(plan.false_promotion)
        return Measured(
            aspect=aspect,
            margin_ratio=margin_of(metric, aspect) if is_proof else None,
            log_e_safe=proved,
            needed=self._needed(metric, plan, aspect) if is_open else None,
        )

    def _measured(
        self, metric: Metric, plan: Plan, aspect: Aspect, baseline: float, candidate: float
    ) -> Measured:
        ratio, bounds = None, sequential.Bounds()
        if aspect in _NEAR_ASPECTS:
            at = _NEAR_ASPECTS.index(aspect)
            ratio = sequential.peak(_SCALES, -self.doubts[at])
            bounds = sequential.bounds(_SCALES, self.worst[at], -math.log1p(-plan.confidence))
            if self.law is not None and self.law.is_rough:
                bounds = bounds.widened(GROWTH)  # values are told apart to one bucket
        elif baseline and candidate:
            ratio = candidate / baseline if metric.better is Better.LOWER else baseline / candidate
        if not (baseline and candidate):
            is_same = baseline == candidate
            ratio, bounds = (1.0, sequential.Bounds(low=1.0, high=1.0)) if is_same else (None, bounds)
        return replace(
            self._proof(metric, plan, aspect),
            baseline=baseline,
            candidate=candidate,
            ratio=ratio,
            bounds=bounds,
        )

    def _log_harm(self, aspect: Aspect) -> float:
        rows = self.harm.get(aspect)
        return 0.0 if rows is None else sequential.log_mean_exp(rows, _PRIORS[aspect])

    def _needed(self, metric: Metric, plan: Plan, aspect: Aspect) -> int | None:
        if self.law is None or aspect not in self.safe:
            return None
        share = self.seen / (self.seen + self.seen_baseline)
        return proof_needed(metric, plan, self.law, aspect, share, self.safe[aspect])


def proof_needed(
    metric: Metric, plan: Plan, law: Law, aspect: Aspect, share: float, so_far: Floats | None = None
) -> int | None:
    """About so many more of the candidate prove an aspect, if the candidate is as the baseline."""
    law, _, _ = law.lifted(law.counts, law.counts)
    f, margin = law.counts / law.counts.sum(), math.log(margin_of(metric, aspect))
    moved = law.moved(f, margin)
    at = np.flatnonzero(f + moved)
    if aspect in _QUANTILES:
        moved = _shift(f, _whole(margin), _zero(metric.better))
        at = np.flatnonzero(f + moved)
        rows = law.safe_odds(aspect, _whole(margin))[:, None] * (at >= law.quantiles[aspect])
    else:
        rows = -law.bets(at) if aspect is Aspect.MEAN else law.safe_shifts(at, moved * law.counts.sum())
    # The power of the mean weight stands for the mean over all choices; near no difference, that takes away
    # as much again as the candidate's share.
    pooled = np.log(np.exp(rows) @ ((1 - share) * f + share * moved)[at])
    growth = (rows @ moved[at] - pooled) / (1 - share)
    lacking = -math.log(plan.false_promotion) - np.log(_SAFE_PRIOR) - (0.0 if so_far is None else so_far)
    return sequential.needed(lacking, growth)


def detectable(law: Law, n: float, share: float, deviations: float) -> float | None:
    """The smallest ratio whose score exceeds its spread so many times, with `n` of the candidate."""
    f = law.counts / law.counts.sum()
    spread = math.sqrt(max(float(f @ law.scores**2) - float(f @ law.scores) ** 2, 0.0))
    for ratio in _RATIOS:
        d = float(f @ law.scores - law.moved(f, math.log(ratio)) @ law.scores)
        if d > 0 and d * math.sqrt(n * (1 - share)) >= deviations * spread:
            return float(ratio)
    return None


def _plus(sums: Mapping[Aspect, Floats], more: Mapping[Aspect, Floats]) -> dict[Aspect, Floats]:
    return {aspect: sums[aspect] + rows if aspect in sums else rows for aspect, rows in more.items()}


def _against_harm(
    metric: Metric, law: Law, b: Floats, c: Floats, n_c: int
) -> tuple[dict[Aspect, Floats], Floats, Floats]:
    """One bin: e-values against "no worse", the scores of the marks, and their generating functions."""
    moved = law.moved(c, math.log(metric.rollback_ratio), upwards=True)
    pooled = b + moved
    at = np.flatnonzero(pooled)
    n, inside = pooled[at], moved[at]
    shifts, tails, bets = law.shifts(at, _SHIFTS), law.tails(at), law.bets(at)
    scores = np.stack([law.scores[at], tails[0]]) / law.spreads[:, None]
    scores = scores - (scores @ n / n.sum())[:, None]
    tilted = (scores[:, None, :] * sequential.TILTS[:, None]).reshape(-1, len(at))
    rows = np.concatenate([shifts, tails, bets, tilted])
    log_mean = sequential.log_mean_product(rows, n, n_c)
    split = len(rows) - len(tilted)
    log_e = rows[:split] @ inside - log_mean[:split]
    return (
        {
            Aspect.SHAPE: log_e[: len(shifts)],
            Aspect.TAIL: log_e[len(shifts) : -len(bets)],
            Aspect.MEAN: log_e[-len(bets) :],
            **{aspect: _excess(_EXCESS, b, moved, place + 1, n_c) for aspect, place in law.quantiles.items()},
        },
        scores @ inside,
        log_mean[split:].reshape(2, -1),
    )


def _against_margins(metric: Metric, law: Law, b: Floats, c: Floats, n_c: int) -> dict[Aspect, Floats]:
    """One bin: e-values against "worse by the margin or more"."""
    found = {}
    law, b, c = law.lifted(b, c)
    for aspect in metric.proofs:
        margin = math.log(margin_of(metric, aspect))
        if aspect in law.quantiles:
            # Whole buckets, towards the smaller margin: what is proved of it holds of the larger.
            odds = law.safe_odds(aspect, _whole(margin))
            moved = _shift(c, _whole(margin), _zero(metric.better))
            found[aspect] = _excess(odds, b, moved, law.quantiles[aspect], n_c)
            continue
        moved = law.moved(c, margin)
        pooled = b + moved
        at = np.flatnonzero(pooled)
        rows = -law.bets(at) if aspect is Aspect.MEAN else law.safe_shifts(at, law.moved(law.counts, margin))
        found[aspect] = rows @ moved[at] - sequential.log_mean_product(rows, pooled[at], n_c)
    return found


def _excess(log_odds: Floats, b: Floats, c: Floats, at: int, n_c: int) -> Floats:
    """One bin: e-values for the odds of lying in bucket `at` or beyond."""
    in_c, in_b = round(float(c[at:].sum())), int(b[at:].sum())
    total = n_c + int(b.sum())
    return np.asarray(in_c * log_odds - sequential.log_mean_odds(log_odds, total, in_c + in_b, n_c))


def _whole(margin: float) -> int:
    """So many whole buckets lie within a margin, which is a logarithm."""
    return math.floor(margin / STEP + 1e-9)


def _zero(better: Better) -> int:
    """The bucket of zero, which no ratio moves."""
    return 0 if better is Better.LOWER else BUCKETS - 1


def _shift(counts: Floats, buckets: int, zero: int) -> Floats:
    """The histogram of the values made better by `GROWTH ** buckets`."""
    if buckets == 0:
        return counts
    moved = np.zeros_like(counts)
    moved[:-buckets] = counts[buckets:]
    moved[0] += counts[:buckets].sum()
    if zero:
        moved[zero - buckets] -= counts[zero]
        moved[zero] += counts[zero]
    return moved


def _moved(counts: Floats, log_ratio: float, zero: int) -> Floats:
    """The histogram of the values made better by a ratio: buckets that straddle two are split."""
    whole, part = divmod(log_ratio / STEP, 1.0)
    lower = _shift(counts, int(whole), zero)
    return lower if part < 1e-9 else (1 - part) * lower + part * _shift(lower, 1, zero)


def _lifted(counts: Floats, better: Better) -> Floats:
    """The histogram with room on the good side of zero."""
    lifted = np.zeros_like(counts)
    if better is Better.HIGHER:
        lifted[:-_LIFT] = counts[_LIFT:]
        lifted[0] += counts[:_LIFT].sum()
    else:
        lifted[_LIFT:] = counts[:-_LIFT]
        lifted[-1] += counts[-_LIFT:].sum()
    return lifted


def _near(law: Law, b: Floats, c: Floats) -> Floats:
    """One bin: e-values against every scale, (alternatives of all aspects, scales).

    The mean over all choices is bounded by the power of the mean weight (Maclaurin), which is cheap for all
    scales at once, and errs on the wide side.
    """
    still = c.copy()
    still[_REACH + 1 : -_REACH - 1] = 0.0  # zero, and what is beyond all buckets, no ratio moves
    scaled = c - still
    inside_c, used = np.flatnonzero(scaled), np.flatnonzero(b + c)
    low, high = (int(inside_c[0]) - _REACH - 1, int(inside_c[-1]) + _REACH + 2) if len(inside_c) else (0, 1)
    at = slice(min(low, int(used[0])), max(high, int(used[-1]) + 1))
    # Column s holds the values divided by GROWTH ** (s - REACH).
    places = np.arange(low, high)[:, None] + np.arange(-_REACH, _REACH + 1)
    moved = scaled.take(places, mode="clip")  # the outermost buckets are empty
    buckets = np.arange(at.start, at.stop)
    one_sided = [law.shifts(at, _NEAR_SHIFTS)]
    one_sided += [_NEAR_EXCESS[:, None] * (buckets > place) for place in law.quantiles.values()]
    one_sided.append(law.bets(at))
    log_w = np.concatenate([rows for each in one_sided for rows in (each, -each)])
    w = np.exp(log_w)
    inner = slice(low - at.start, high - at.start)
    inside = _finer(log_w[:, inner] @ moved) + (log_w @ still[at])[:, None]
    pooled = _finer(w[:, inner] @ moved) + (w @ (b + still)[at])[:, None]
    n_c = float(c.sum())
    return np.asarray(inside - n_c * np.log(pooled / (n_c + float(b.sum()))), dtype=np.float64)


def _finer(rows: Floats) -> Floats:
    """Between two whole buckets a histogram is split in proportion, and sums over it are linear in that."""
    finer = np.empty((len(rows), _FINE * (rows.shape[1] - 1) + 1))
    finer[:, ::_FINE] = rows
    for part in range(1, _FINE):
        finer[:, part::_FINE] = rows[:, :-1] * (1 - part / _FINE) + rows[:, 1:] * (part / _FINE)
    return finer


def _doubts(near: Floats) -> Floats:
    """The logarithm of the mean e-value against every scale, by aspect."""
    ends = np.cumsum(list(_NEAR_ROWS.values()))[:-1]
    starts = np.concatenate([[0], ends])
    sizes = np.array(list(_NEAR_ROWS.values()))[:, None]
    top = np.maximum.reduceat(near, starts, axis=0)
    spread = np.exp(near - np.repeat(top, sizes[:, 0], axis=0))
    return np.asarray(top + np.log(np.add.reduceat(spread, starts, axis=0) / sizes), dtype=np.float64)


def _estimates(metric: Metric, counts: Floats, total: float) -> dict[Aspect, float]:
    """One arm in the metric's own unit: the median for the shape, the mean of the worst 5 % for the tail."""
    at = np.flatnonzero(counts)
    inside = counts[at]
    cumulated = np.cumsum(inside)
    n = float(cumulated[-1])
    is_lower = metric.better is Better.LOWER
    lower_edges = at if is_lower else BUCKETS - at  # of a mirrored bucket, the edge that is passed first
    found = {Aspect.MEAN: total / n}
    for aspect, share in {**_QUANTILES, Aspect.SHAPE: 0.5}.items():
        place = min(int(np.searchsorted(cumulated, share * n)), len(at) - 1)
        part = 1 - float(cumulated[place] - share * n) / float(inside[place])
        edge = float(lower_edges[place]) + (part if is_lower else -part)
        found[aspect] = 0.0 if at[place] == _zero(metric.better) else math.exp((edge + LOWEST) * STEP)
    beyond = np.clip(cumulated - 0.95 * n, 0, inside)
    middles = np.exp((lower_edges + (0.5 if is_lower else -0.5) + LOWEST) * STEP)
    middles[at == _zero(metric.better)] = 0.0
    found[Aspect.TAIL] = float(beyond @ middles / beyond.sum())
    return found
