"""Weighing a canary: continue, promote, or roll back, after each bin, from sums that never grow.

Each metric has several e-processes against "no worse" (see `sequential`), of which the mean is one again; the mean
over the metrics decides a rollback at any time, and one exact or permutation test a metric does so at the mark.
Promotion is the reverse: every aspect that is to be proved has an e-process against "worse by the margin", and all of
them have to reach 1 / `false_promotion`. Confidence sequences are the ratios that no e-process has ruled out.
Requests are compared within one bin and revision only, so drift and traffic steps are nobody's fault.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TypeAlias

import numpy as np

from deploy_gates.core import sequential
from deploy_gates.core.canary import (
    COST,
    ERRORS,
    LATENCY,
    Action,
    Arms,
    Aspect,
    Better,
    Decision,
    Inconclusive,
    Kind,
    Metric,
    Plan,
    Reading,
    Word,
)
from deploy_gates.core.sequential import Floats
from deploy_gates.core.tally import BIN_MS, GROWTH, HIGHEST, LOWEST, Arm, Histogram, Tally

BUCKETS = HIGHEST - LOWEST + 1
STEP = math.log(GROWTH)
PAST_BINS = 12
"""Weights are made of the baseline's last minute."""
PAST_LEAST = 40
"""Fewer values of the baseline than this say nothing of its law."""

ANYTIME_PART = 0.5
"""So much of the false-rollback rate is spent on looking at any time, the rest on the marks."""
MARK_DECAY = 0.03
"""Each further mark gets this part of what the one before got."""
SUSPICION = math.log(10)
"""While a metric has this much evidence of harm, nothing is promoted."""
SPLIT_LIMIT = math.log(1000)
"""At this evidence against the declared share, nothing is promoted: requests get lost or counted twice."""
DROPPED_MAX = 0.01
"""If clients lost more than this part of their outcomes, nothing is promoted."""

_GRID = np.arange(-100, 121) * 0.05
"""Logarithms of the odds ratios whose likelihood is kept, of shares."""
_SHARE_HARM = np.log([1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 200.0])
_SHARE_HARM_PRIOR = sequential.shares(([0.7, 1.2, 2, 1.7, 1.7, 1.2, 1, 1.5], 1.0))
_SHARE_SAFE = np.array([0.0, 0.35, -0.5])
"""Where the truth may lie, as parts of the way from no difference to the margin."""
_SHARE_SAFE_PRIOR = sequential.shares(([7, 2, 1], 1.0))
_SHARE_NEAR = np.array([2, 4, 6, 9, 13, 18, 25, 35, 50])
_SHARE_NEAR_PRIOR = sequential.shares(([1, 2, 2, 2, 2, 2, 1, 1, 0.5], 1.0))
"""Alternatives of the confidence sequence: so many steps of the grid away."""

_SHIFTS = np.array([0.05, 0.105, 0.2, 0.37, 0.7, 1.2])
_SHIFTS_PRIOR = (0.4, 1.0, 1.1, 1.5, 1.0, 0.4)
_TAILS = ((0.02, 2.0), (0.08, 1.9), (0.02, 3.2))
_TAILS_PRIOR = (1.2, 1.4, 0.4)
"""A part of the requests is so many standard deviations worse."""
_QUANTILES = {Aspect.P50: 0.5, Aspect.P95: 0.95, Aspect.P99: 0.99}
_EXCESS = np.log([1.3, 1.8, 3.0])
_MEANS = (0.03, 0.1, 0.3)
_MEAN_CAP = 40.0
"""A value is at most so many times the mean: one huge request must not decide."""
@dataclass(frozen=True, kw_only=True, slots=True)
class _Parts:
    """What is spent on each aspect of an amount; quantiles are shown, and proved before a promotion."""

    anytime: Mapping[Aspect, float]
    mark: Mapping[Aspect, float]


_LATENCY_PARTS = _Parts(
    anytime={Aspect.SHAPE: 0.6, Aspect.TAIL: 0.36, Aspect.MEAN: 0.04},
    mark={Aspect.SHAPE: 0.75, Aspect.TAIL: 0.65},
)
"""Latency goes wrong by its tail, too: a few requests that hang."""
_PARTS = _Parts(
    anytime={Aspect.SHAPE: 0.84, Aspect.TAIL: 0.08, Aspect.MEAN: 0.08},
    mark={Aspect.SHAPE: 0.75, Aspect.TAIL: 0.1},
)


def _parts(metric: Metric) -> _Parts:
    return _LATENCY_PARTS if metric.name == LATENCY else _PARTS


_SAFE_SHIFTS = np.array([0.12, 0.22, 0.4, 0.8])
_SAFE_EXCESS = np.log([0.75, 0.5, 0.25])
_NEAR_SHIFTS = np.array([0.05, 0.1, 0.2, 0.4, 0.8])
_NEAR_EXCESS = np.log([1.15, 1.5, 2.5])
_FINE = 4
_REACH = 40
"""Confidence sequences of amounts reach from 1.04^-40 to 1.04^40, in steps of a quarter of a bucket."""
_SCALES = np.arange(-_REACH * _FINE, _REACH * _FINE + 1) * (STEP / _FINE)
_AHEAD = 60

AMOUNT_ASPECTS = (Aspect.SHAPE, Aspect.P50, Aspect.P95, Aspect.P99, Aspect.TAIL, Aspect.MEAN)
_BOUNDED = (Aspect.SHAPE, Aspect.P50, Aspect.P95, Aspect.P99, Aspect.MEAN)
"""Aspects with a confidence sequence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareSums:
    """What is kept of a share."""

    grid: Floats = field(default_factory=lambda: np.zeros(len(_GRID)))
    worst: Floats = field(default_factory=lambda: np.full(len(_GRID), -np.inf))
    """The highest e-value each odds ratio ever had against it, as a logarithm."""
    harm: Floats = field(default_factory=lambda: np.zeros(len(_SHARE_HARM)))
    safe: Floats = field(default_factory=lambda: np.zeros(len(_SHARE_SAFE)))
    law: Floats = field(default_factory=lambda: np.ones(1))
    """The law, if the candidate is no worse, of how many bad outcomes it has, from `law_low` on."""
    law_low: int = 0
    bad: int = 0
    seen: int = 0
    seen_baseline: int = 0
    expected: float = 0.0
    """What the baseline's rates would have given the candidate: the baseline, weighted as the candidate is."""
    past: tuple[tuple[int, int], ...] = ()
    """Bad and all of the baseline's last bins."""
    margin: float = math.nan
    """The logarithm of the odds ratio that is refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AmountSums:
    """What is kept of an amount."""

    harm: Mapping[Aspect, Floats] = field(default_factory=dict)
    safe: Mapping[Aspect, Floats] = field(default_factory=dict)
    near: Mapping[Aspect, Floats] = field(default_factory=dict)
    """E-values, as logarithms, by alternative and scale, for the confidence sequences."""
    worst: Mapping[Aspect, Floats] = field(default_factory=dict)
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


MetricSums: TypeAlias = ShareSums | AmountSums


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """Everything that the next look needs."""

    metrics: Mapping[str, MetricSums]
    split: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Units of the candidate and of the baseline, by revision."""
    first: int = 0
    first_errors: int = 0
    """The candidate's first units, up to the hard limit, and how many of them failed."""
    silent: int = 0
    silent_baseline: int = 0
    """Bins in a row without a unit."""
    marked: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Half:
    """One arm of one stratum."""

    n: int = 0
    errors: int = 0
    unfinished: int = 0
    dropped: int = 0
    latency: Histogram = Histogram()
    cost: Histogram = Histogram()
    metrics: Mapping[str, Histogram] = field(default_factory=dict)

    @classmethod
    def of(cls, tallies: Sequence[Tally]) -> _Half:
        metrics: dict[str, Histogram] = {}
        for tally in tallies:
            for name, histogram in tally.metrics.items():
                metrics[name] = metrics[name] + histogram if name in metrics else histogram
        return cls(
            n=sum(max(each.started, each.finished) for each in tallies),
            errors=sum(each.errors + max(0, each.started - each.finished) for each in tallies),
            unfinished=sum(max(0, each.started - each.finished) for each in tallies),
            dropped=sum(each.dropped for each in tallies),
            latency=_added([each.latency_s for each in tallies]),
            cost=_added([each.cost_usd for each in tallies]),
            metrics=metrics,
        )

    def amount(self, metric: Metric) -> tuple[Floats, float]:
        """The histogram of an amount, worse to the right, and the sum."""
        found = {LATENCY: self.latency, COST: self.cost}.get(metric.name) or self.metrics.get(metric.name)
        if found is None or not found.counts:
            return np.zeros(BUCKETS), 0.0
        counts = np.zeros(BUCKETS)
        buckets = np.fromiter(found.counts.keys(), dtype=np.intp, count=len(found.counts)) - LOWEST
        counts[buckets] = np.fromiter(found.counts.values(), dtype=float, count=len(found.counts))
        return (counts if metric.better is Better.LOWER else counts[::-1]), found.total

    def share(self, metric: Metric) -> tuple[int, int]:
        """How many bad ones, of how many."""
        if metric.name == ERRORS:
            return self.errors, self.n
        found = self.metrics.get(metric.name, Histogram())
        true = sum(count for bucket, count in found.counts.items() if bucket >= 0)
        return (true if metric.better is Better.LOWER else found.n - true), found.n


def _added(histograms: Sequence[Histogram]) -> Histogram:
    if len(histograms) == 1:
        return histograms[0]
    counts: dict[int, int] = {}
    for each in histograms:
        for bucket, count in each.counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
    return Histogram(counts=counts, total=sum(each.total for each in histograms))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stratum:
    """What both arms got in one bin of one revision."""

    start_ms: int
    revision: int
    baseline: _Half
    candidate: _Half


def weigh(
    plan: Plan, tallies: Iterable[Tally], before: Decision | None = None, *, at_ms: int
) -> Decision:
    """What to do, now that the bins up to `at_ms` are closed.

    `tallies` are those of the bins that `before` has not weighed yet, in any order; what came of the baseline
    before the candidate's first request is the past that weights are made of. `ValueError` for a tally of a bin
    that was weighed before or is not closed. A decision that has ended stays as it is.
    """
    if before is not None and before.has_ended:
        return before
    strata = _strata(tallies)
    since_ms = before.at_ms if before else min((each.start_ms for each in strata), default=at_ms)
    for each in strata:
        if not since_ms <= each.start_ms <= at_ms - BIN_MS:
            raise ValueError(
                f"a tally of the bin at {each.start_ms} does not lie between {since_ms} and {at_ms}"
            )
    sums = before.sums if before else Sums(metrics={each.name: _sums(each) for each in plan.metrics})
    arms = before.arms if before else Arms()
    started_ms = before.started_ms if before else None
    marks = before.marks if before else 0
    by_bin = {start: list(group) for start, group in groupby(strata, key=lambda each: each.start_ms)}
    for start in range(since_ms, at_ms, BIN_MS):
        found = by_bin.get(start, [])
        if started_ms is None and any(each.candidate.n for each in found):
            started_ms = start
        sums, arms = _bin(plan, sums, arms, found, started_ms)
    return _decision(plan, sums, arms, at_ms, started_ms, marks)


def _strata(tallies: Iterable[Tally]) -> list[_Stratum]:
    ordered = sorted(tallies, key=lambda each: (each.start_ms, each.revision))
    strata = []
    for (start, revision), group in groupby(ordered, key=lambda each: (each.start_ms, each.revision)):
        both = list(group)
        baseline, candidate = ([each for each in both if each.arm is arm] for arm in Arm)
        strata.append(
            _Stratum(
                start_ms=start,
                revision=revision,
                baseline=_Half.of(baseline),
                candidate=_Half.of(candidate),
            )
        )
    return strata


def _sums(metric: Metric) -> MetricSums:
    return ShareSums() if metric.kind is Kind.SHARE else AmountSums()


# --- One bin -------------------------------------------------------------------------------------


def _bin(
    plan: Plan, sums: Sums, arms: Arms, strata: Sequence[_Stratum], started_ms: int | None
) -> tuple[Sums, Arms]:
    metrics = dict(sums.metrics)
    split = dict(sums.split)
    first, first_errors = sums.first, sums.first_errors
    for stratum in strata:
        warm = started_ms is not None and stratum.start_ms - started_ms < plan.warm_up_s * 1000
        baseline, candidate = stratum.baseline, stratum.candidate
        for metric in plan.metrics:
            judged = started_ms is not None and not (metric.warm_up and warm)
            metrics[metric.name] = _metric(metric, metrics[metric.name], stratum, judged)
        arms = Arms(
            baseline=arms.baseline + (baseline.n if started_ms is not None else 0),
            candidate=arms.candidate + candidate.n,
            unfinished=arms.unfinished + candidate.unfinished,
            dropped=arms.dropped + candidate.dropped,
            excluded=arms.excluded + (candidate.n if warm else 0),
        )
        if started_ms is not None:
            in_candidate, in_baseline = split.get(stratum.revision, (0, 0))
            split[stratum.revision] = (in_candidate + candidate.n, in_baseline + baseline.n)
        if first < plan.limit_requests:
            first, first_errors = first + candidate.n, first_errors + candidate.errors
    got = sum(each.candidate.n for each in strata), sum(each.baseline.n for each in strata)
    return replace(
        sums,
        metrics=metrics,
        split=split,
        first=first,
        first_errors=first_errors,
        silent=0 if got[0] or started_ms is None else sums.silent + 1,
        silent_baseline=0 if got[1] or started_ms is None else sums.silent_baseline + 1,
    ), arms


def _metric(metric: Metric, sums: MetricSums, stratum: _Stratum, judged: bool) -> MetricSums:
    if isinstance(sums, ShareSums):
        return _share(metric, sums, stratum.baseline.share(metric), stratum.candidate.share(metric), judged)
    return _amount(metric, sums, stratum.baseline.amount(metric), stratum.candidate.amount(metric), judged)


def _share(
    metric: Metric, sums: ShareSums, baseline: tuple[int, int], candidate: tuple[int, int], judged: bool
) -> ShareSums:
    past = (*sums.past, baseline)[-PAST_BINS:] if baseline[1] else sums.past
    (bad_b, n_b), (bad_c, n_c) = baseline, candidate
    if not (judged and n_b and n_c):
        return replace(sums, past=past)
    margin = _share_margin(metric, sums.past or past)
    base = math.log(metric.rollback_ratio)
    harm, safe = base + _SHARE_HARM, margin * _SHARE_SAFE
    total, marked = n_b + n_c, bad_b + bad_c
    thetas = np.concatenate([_GRID, harm, [base], safe, [margin]])
    log_l = bad_c * thetas - sequential.log_mean_odds(thetas, total, marked, n_c)
    grid, rest = np.split(log_l, [len(_GRID)])
    grid_sum = sums.grid + grid
    low, law = sequential.hypergeometric(total, marked, n_c, log_theta=base)
    return replace(
        sums,
        grid=grid_sum,
        worst=np.maximum(sums.worst, _share_doubt(grid_sum)),
        harm=sums.harm + rest[: len(harm)] - rest[len(harm)],
        safe=sums.safe + rest[len(harm) + 1 : -1] - rest[-1],
        law=np.convolve(sums.law, law),
        law_low=sums.law_low + low,
        bad=sums.bad + bad_c,
        seen=sums.seen + n_c,
        seen_baseline=sums.seen_baseline + n_b,
        expected=sums.expected + n_c * bad_b / n_b,
        past=past,
        margin=margin,
    )


def _share_margin(metric: Metric, past: Sequence[tuple[int, int]]) -> float:
    """The logarithm of the odds ratio at the margin; points are turned into odds at the baseline's last rate."""
    if metric.margin_ratio is not None:
        return math.log(metric.margin_ratio)
    assert metric.margin_pt is not None
    bad, n = (sum(each[at] for each in past) for at in (0, 1))
    rate = (bad + 0.5) / (n + 1)
    worse = min(rate + metric.margin_pt / 100, 1 - 0.25 / (n + 1))
    return max(math.log(worse / (1 - worse)) - math.log(rate / (1 - rate)), 1e-6)


def _share_doubt(grid: Floats) -> Floats:
    """For each odds ratio, the logarithm of the e-value against it: alternatives on both sides."""
    padded = np.pad(grid, _SHARE_NEAR[-1], mode="edge")
    offsets = np.concatenate([_SHARE_NEAR, -_SHARE_NEAR]) + _SHARE_NEAR[-1]
    windows = padded[offsets[:, None] + np.arange(len(grid))[None, :]]
    weights = np.concatenate([_SHARE_NEAR_PRIOR, _SHARE_NEAR_PRIOR])[:, None] / 2
    top = windows.max(axis=0)
    return np.asarray(top + np.log((weights * np.exp(windows - top)).sum(axis=0)) - grid)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Law:
    """The baseline's law as its last minute showed it, and the weights made of it, by bucket."""

    counts: Floats
    scores: Floats
    log_shifts: Floats
    log_tails: Floats
    log_means: Floats
    marks: Floats
    """The scores of the tests at the mark, shape and tail, each with the same spread."""
    quantiles: Mapping[Aspect, int]
    """The bucket of each quantile."""


def _law(past: Sequence[Floats], better: Better) -> _Law | None:
    counts = np.sum(past, axis=0) if past else np.zeros(BUCKETS)
    total = counts.sum()
    if total < PAST_LEAST:
        return None
    z = sequential.normal_scores(counts, ahead=_AHEAD, step=STEP)
    centres = np.arange(BUCKETS) if better is Better.LOWER else np.arange(BUCKETS)[::-1]
    log_x = np.clip((centres + LOWEST + 0.5) * STEP * (1 if better is Better.LOWER else -1), -600, 600)
    top = log_x[counts > 0].max()
    x = np.exp(np.minimum(log_x - top, 40.0))
    mean = float(counts @ x / total)
    relative = np.minimum(x / mean, _MEAN_CAP)
    cumulated = np.cumsum(counts)
    log_tails = np.stack([np.log1p(part * np.expm1(d * z - d * d / 2)) for part, d in _TAILS])
    marks = np.stack([z, log_tails[0]])
    spread = np.sqrt(np.maximum((marks**2) @ counts / total - (marks @ counts / total) ** 2, 1e-12))
    return _Law(
        counts=counts,
        scores=z,
        log_shifts=_SHIFTS[:, None] * z,
        log_tails=log_tails,
        log_means=np.stack([np.log1p(bet * (relative - 1)) for bet in _MEANS]),
        marks=marks / spread[:, None],
        quantiles={
            aspect: int(np.searchsorted(cumulated, share * total)) for aspect, share in _QUANTILES.items()
        },
    )


def _amount(
    metric: Metric,
    sums: AmountSums,
    baseline: tuple[Floats, float],
    candidate: tuple[Floats, float],
    judged: bool,
) -> AmountSums:
    (b, total_b), (c, total_c) = baseline, candidate
    n_b, n_c = int(b.sum()), int(c.sum())
    past = (*sums.past, b)[-PAST_BINS:] if n_b else sums.past
    law = _law(sums.past, metric.better) if judged and n_b and n_c else None
    if law is None:
        return replace(sums, past=past)
    near = _near(law, b, c)
    moved = _moved(c, math.log(metric.rollback_ratio))
    scores, generating = _scores(law, b, moved, n_c)
    added = {aspect: sums.near.get(aspect, 0.0) + rows for aspect, rows in near.items()}
    return replace(
        sums,
        harm=_plus(sums.harm, _harm(metric, law, b, moved, n_c)),
        safe=_plus(sums.safe, _safe(metric, law, b, c, n_c)),
        near=added,
        worst={
            aspect: np.maximum(sums.worst.get(aspect, -np.inf), _mean_doubt(rows))
            for aspect, rows in added.items()
        },
        scores=sums.scores + scores,
        generating=sums.generating + generating,
        candidate=sums.candidate + c,
        baseline=sums.baseline + b * (n_c / n_b),
        total=sums.total + total_c,
        total_baseline=sums.total_baseline + total_b * (n_c / n_b),
        seen=sums.seen + n_c,
        seen_baseline=sums.seen_baseline + n_b,
        past=past,
    )


def _plus(sums: Mapping[Aspect, Floats], more: Mapping[Aspect, Floats]) -> dict[Aspect, Floats]:
    return {aspect: sums[aspect] + rows if aspect in sums else rows for aspect, rows in more.items()}


def _harm(metric: Metric, law: _Law, b: Floats, c: Floats, n_c: int) -> dict[Aspect, Floats]:
    """One bin's e-values, as logarithms, against "no worse"."""
    rows = np.concatenate([law.log_shifts, law.log_tails, law.log_means])
    found = np.split(_log_e(rows, b, c, n_c), [len(law.log_shifts), -len(law.log_means)])
    return {
        Aspect.SHAPE: found[0],
        Aspect.TAIL: found[1],
        Aspect.MEAN: found[2],
        **{aspect: _excess(_EXCESS, b, c, at + 1, n_c) for aspect, at in law.quantiles.items()},
    }


def _safe(metric: Metric, law: _Law, b: Floats, c: Floats, n_c: int) -> dict[Aspect, Floats]:
    """One bin's e-values, as logarithms, against "worse by the margin or more"."""
    found = {}
    for aspect in metric.proofs:
        margin = _margin(metric, aspect)
        if aspect in law.quantiles:
            # Rounded to whole buckets towards the smaller margin: what is proved of it holds of the larger.
            shifted = _shift(c, math.floor(math.log(margin) / STEP + 1e-9))
            found[aspect] = _excess(_SAFE_EXCESS, b, shifted, law.quantiles[aspect], n_c)
        else:
            rows = -_SAFE_SHIFTS[:, None] * law.scores if aspect is not Aspect.MEAN else -law.log_means
            found[aspect] = _log_e(rows, b, _moved(c, math.log(margin)), n_c)
    return found


def _margin(metric: Metric, aspect: Aspect) -> float:
    assert metric.margin_ratio is not None
    return max(metric.margin_ratio, metric.tail_ratio) if aspect is Aspect.P99 else metric.margin_ratio


def _log_e(log_w: Floats, b: Floats, c: Floats, n_c: int) -> Floats:
    pooled = b + c
    there = np.flatnonzero(pooled)
    rows = log_w[:, there]
    return np.asarray(rows @ c[there] - sequential.log_mean_product(rows, pooled[there], n_c))


def _excess(log_odds: Floats, b: Floats, c: Floats, at: int, n_c: int) -> Floats:
    in_c, in_b = round(float(c[at:].sum())), int(b[at:].sum())
    total = n_c + int(b.sum())
    return np.asarray(in_c * log_odds - sequential.log_mean_odds(log_odds, total, in_c + in_b, n_c))


def _scores(law: _Law, b: Floats, c: Floats, n_c: int) -> tuple[Floats, Floats]:
    """The candidate's scores less their expectation, and the cumulant generating function of that."""
    pooled = b + c
    there = np.flatnonzero(pooled)
    n = pooled[there]
    scores = law.marks[:, there]
    scores = scores - (scores @ n / n.sum())[:, None]
    rows = (scores[:, None, :] * sequential.TILTS[:, None]).reshape(-1, len(there))
    return scores @ c[there], sequential.log_mean_product(rows, n, n_c).reshape(len(scores), -1)


def _shift(counts: Floats, buckets: int) -> Floats:
    """The histogram of the values divided by `GROWTH ** buckets`."""
    if buckets == 0:
        return counts
    moved = np.zeros_like(counts)
    moved[:-buckets] = counts[buckets:]
    moved[0] += counts[:buckets].sum()
    return moved


def _moved(counts: Floats, log_ratio: float) -> Floats:
    """The histogram of the values divided by a ratio of 1 or more: a bucket is split where it straddles two."""
    whole, part = divmod(log_ratio / STEP, 1.0)
    lower = _shift(counts, int(whole))
    return lower if part < 1e-9 else (1 - part) * lower + part * _shift(lower, 1)


def _near(law: _Law, b: Floats, c: Floats) -> dict[Aspect, Floats]:
    """One bin's e-values against every scale, by aspect: (alternatives, scales), for confidence sequences.

    The mean over all choices is bounded by the power of the mean weight (Maclaurin), which is cheap for all scales
    at once, and errs on the wide side.
    """
    at = np.flatnonzero(c)
    low, high = max(int(at[0]) - _REACH - 1, 0), min(int(at[-1]) + _REACH + 2, BUCKETS)
    window = np.arange(low, high)
    padded = np.pad(c, _REACH + 1)
    shifted = np.lib.stride_tricks.sliding_window_view(padded, high - low)
    moved = shifted[low + 1 : low + 2 * _REACH + 2]  # row s: the values divided by GROWTH ** (s - REACH)
    z = law.scores
    steps = {
        aspect: _NEAR_EXCESS[:, None] * (np.arange(BUCKETS) > at_quantile)
        for aspect, at_quantile in law.quantiles.items()
    }
    one_sided = {Aspect.SHAPE: _NEAR_SHIFTS[:, None] * z, **steps, Aspect.MEAN: law.log_means}
    rows = np.concatenate([rows for each in one_sided.values() for rows in (each, -each)])
    w = np.exp(rows)
    inside = rows[:, window] @ moved.T
    pooled = w[:, window] @ moved.T + (w @ b)[:, None]
    n_c = float(c.sum())
    found = _finer(inside) - n_c * np.log(_finer(pooled) / (n_c + float(b.sum())))
    parts = np.cumsum([2 * len(each) for each in one_sided.values()])[:-1]
    return dict(zip(one_sided, np.split(found, parts), strict=True))


def _finer(rows: Floats) -> Floats:
    """Between two whole buckets, a histogram is split in proportion, and sums over it are linear in that."""
    parts = np.arange(_FINE) / _FINE
    between = rows[:, :-1, None] * (1 - parts) + rows[:, 1:, None] * parts
    return np.concatenate([between.reshape(len(rows), -1), rows[:, -1:]], axis=1)


def _mean_doubt(rows: Floats) -> Floats:
    top = rows.max(axis=0)
    return np.asarray(top + np.log(np.exp(rows - top).mean(axis=0)))


# --- What it comes to ----------------------------------------------------------------------------


def _decision(
    plan: Plan, sums: Sums, arms: Arms, at_ms: int, started_ms: int | None, marks: int
) -> Decision:
    elapsed_s = 0.0 if started_ms is None else (at_ms - started_ms) / 1000
    weights = _weights(plan)
    log_e = float(
        np.logaddexp.reduce(
            [math.log(weights[each.name]) + _log_harm(each, sums.metrics[each.name]) for each in plan.judged]
        )
    )
    is_mark = marks <= _extensions(plan) and elapsed_s >= plan.mark_s * (marks + 1)
    failed = _failed(plan, sums, weights, marks) if is_mark else ()
    readings = tuple(
        reading
        for metric in plan.metrics
        for reading in _readings(plan, metric, sums.metrics[metric.name], weights.get(metric.name, 0.0), failed)
    )
    marks += is_mark
    draft = Decision(
        plan=plan,
        action=Action.CONTINUE,
        reason="",
        cause=(),
        at_ms=at_ms,
        started_ms=started_ms,
        readings=readings,
        arms=arms,
        log_e=log_e,
        log_e_limit=-math.log(plan.false_rollback * ANYTIME_PART),
        log_e_proof=-math.log(plan.false_promotion),
        log_e_split=_log_split(plan, sums),
        next_mark_s=plan.mark_s * (marks + 1) if marks <= _extensions(plan) else None,
        marks=marks,
        needed=max((each.needed for each in readings if each.needed is not None), default=None),
        missing=_missing(plan, sums, arms, elapsed_s),
        sums=sums,
    )
    action, reason, cause = _verdict(draft, weights, failed, is_mark)
    return replace(draft, action=action, reason=reason, cause=cause)


def _verdict(
    draft: Decision, weights: Mapping[str, float], failed: tuple[str, ...], is_mark: bool
) -> tuple[Action, str, tuple[str, ...]]:
    plan, sums = draft.plan, draft.sums
    if draft.started_ms is None:
        return Action.HOLD, "the candidate got no request yet", ()
    if sums.first_errors >= max(plan.limit_errors, sums.first * plan.limit_errors / plan.limit_requests):
        why = f"the hard limit: {sums.first_errors} of the candidate's first {sums.first} requests failed"
        return Action.ROLLBACK, why, (f"{ERRORS}.limit",)
    if draft.log_e >= draft.log_e_limit:
        cause = _cause(plan, sums, weights)
        why = f"{cause[0]} is worse, proved {_odds(draft.log_e)} to 1; {_odds(draft.log_e_limit)} were needed"
        return Action.ROLLBACK, why, cause
    if failed:
        why = f"{failed[0]} is worse at the mark of {plan.mark_s * draft.marks:.0f} s"
        return Action.ROLLBACK, why, failed
    if sums.silent * BIN_MS >= plan.missing_limit_s * 1000:
        return Action.ROLLBACK, f"{draft.missing[0]}: nothing can be judged", ("missing",)
    if max(sums.silent, sums.silent_baseline) >= plan.missing_bins or draft.log_e_split >= SPLIT_LIMIT:
        return Action.HOLD, f"{draft.missing[0]}: traffic stays as it is", ()
    unproved = _unproved(draft)
    if not unproved and not draft.missing:
        return Action.PROMOTE, "every metric is proved to be no worse than its margin", ()
    open_points = "; ".join([*draft.missing, *unproved][:3])
    if draft.marks <= _extensions(plan):
        if is_mark:
            return Action.CONTINUE, f"undecided at the mark ({open_points}): {_extended(draft)}", ()
        return Action.CONTINUE, f"undecided: {open_points}", ()
    final = plan.then if plan.on_inconclusive is Inconclusive.EXTEND else plan.on_inconclusive
    why = f"undecided after {draft.elapsed_s:.0f} s: {open_points}"
    return (Action.ROLLBACK if final is Inconclusive.ROLLBACK else Action.HOLD), why, ("undecided",)


def _extended(draft: Decision) -> str:
    return f"it goes on to {draft.next_mark_s:.0f} s" if draft.next_mark_s else ""


def _odds(log_e: float) -> str:
    return f"{math.exp(min(log_e, 40)):,.0f}" if log_e < math.log(1e7) else f"1e{log_e / math.log(10):.0f}"


def _weights(plan: Plan) -> dict[str, float]:
    whole = sum(each.weight for each in plan.judged)
    return {each.name: each.weight / whole for each in plan.judged}


def _extensions(plan: Plan) -> int:
    return plan.extensions if plan.on_inconclusive is Inconclusive.EXTEND else 0


def _mark_rate(plan: Plan, mark: int) -> float:
    """The part of the false-rollback rate that is spent at the mark of this number, from 0."""
    parts = [MARK_DECAY**each for each in range(_extensions(plan) + 1)]
    return plan.false_rollback * (1 - ANYTIME_PART) * parts[mark] / sum(parts)


_PRIORS = {
    Aspect.SHAPE: sequential.shares((_SHIFTS_PRIOR, 1.0)),
    Aspect.TAIL: sequential.shares((_TAILS_PRIOR, 1.0)),
    Aspect.MEAN: sequential.shares(([1.0] * len(_MEANS), 1.0)),
    **{each: sequential.shares(([1.0] * len(_EXCESS), 1.0)) for each in _QUANTILES},
}


def _log_harm(metric: Metric, sums: MetricSums) -> float:
    """The logarithm of the e-value of a metric against "no worse"."""
    if isinstance(sums, ShareSums):
        return sequential.log_mean_exp(sums.harm, _SHARE_HARM_PRIOR)
    if not sums.harm:
        return 0.0
    by_aspect = [math.log(part) + _log_harm_of(sums, aspect) for aspect, part in _parts(metric).anytime.items()]
    return float(np.logaddexp.reduce(by_aspect))


def _log_harm_of(sums: AmountSums, aspect: Aspect) -> float:
    rows = sums.harm.get(aspect)
    return 0.0 if rows is None else sequential.log_mean_exp(rows, _PRIORS[aspect])


def _log_safe(sums: MetricSums, aspect: Aspect) -> float:
    """The logarithm of the e-value of an aspect against "worse by the margin"."""
    if isinstance(sums, ShareSums):
        return sequential.log_mean_exp(sums.safe, _SHARE_SAFE_PRIOR)
    rows = sums.safe.get(aspect)
    return 0.0 if rows is None else sequential.log_mean_exp(rows, np.full(len(rows), 1 / len(rows)))


def _cause(plan: Plan, sums: Sums, weights: Mapping[str, float]) -> tuple[str, ...]:
    """The aspects with the most evidence of harm: those that would have been enough, or else the strongest."""
    found = []
    for metric in plan.judged:
        each = sums.metrics[metric.name]
        if isinstance(each, ShareSums):
            found.append((math.log(weights[metric.name]) + _log_harm(metric, each), metric.name))
            continue
        for aspect, part in _parts(metric).anytime.items():
            log_e = math.log(weights[metric.name] * part) + _log_harm_of(each, aspect)
            found.append((log_e, _named(metric.name, aspect)))
    found.sort(reverse=True)
    enough = [name for log_e, name in found if log_e >= -math.log(plan.false_rollback * ANYTIME_PART)]
    return tuple(enough or [found[0][1]])


def _named(metric: str, aspect: Aspect) -> str:
    return metric if aspect in (Aspect.RATE, Aspect.SHAPE) else f"{metric}.{aspect.value}"


def _failed(plan: Plan, sums: Sums, weights: Mapping[str, float], mark: int) -> tuple[str, ...]:
    """The aspects that fail their one test at a mark, the strongest first."""
    tests = []
    for metric in plan.judged:
        each = sums.metrics[metric.name]
        if isinstance(each, ShareSums):
            tests.append((metric.name, weights[metric.name], _at_least(each.law_low, each.law, each.bad)))
            continue
        for aspect, part in _parts(metric).mark.items():
            tests.append((_named(metric.name, aspect), weights[metric.name] * part, _p_value(each, aspect)))
    rate = _mark_rate(plan, mark) / sum(part for _, part, _ in tests)
    found = [(p / part, name) for name, part, p in tests if p <= rate * part]
    return tuple(name for _, name in sorted(found))


def _p_value(sums: AmountSums, aspect: Aspect) -> float:
    at = (Aspect.SHAPE, Aspect.TAIL).index(aspect)
    return sequential.upper_tail(float(sums.scores[at]), sums.generating[at])


def _at_least(low: int, law: Floats, value: int) -> float:
    return float(law[max(0, value - low) :].sum())


def _log_split(plan: Plan, sums: Sums) -> float:
    """The logarithm of the e-value against the declared shares of traffic."""
    total = 0.0
    for revision, (candidate, baseline) in sums.split.items():
        share = plan.shares.get(revision, plan.share)
        if share is not None:
            total += sequential.log_beta_binomial(candidate, baseline, share)
    return total


def _missing(plan: Plan, sums: Sums, arms: Arms, elapsed_s: float) -> tuple[str, ...]:
    found = []
    if sums.silent >= plan.missing_bins:
        found.append(f"the candidate got no request for {sums.silent * BIN_MS // 1000} s")
    if sums.silent_baseline >= plan.missing_bins:
        found.append(f"the baseline got no request for {sums.silent_baseline * BIN_MS // 1000} s")
    if _log_split(plan, sums) >= SPLIT_LIMIT:
        found.append("the arms do not share the traffic as declared: requests are lost or counted twice")
    if arms.dropped > DROPPED_MAX * max(arms.candidate, 1):
        found.append(f"the outcomes of {arms.dropped:,} requests of the candidate were lost")
    for metric in plan.judged:
        each = sums.metrics[metric.name]
        due_s = (plan.warm_up_s if metric.warm_up else 0.0) + plan.missing_bins * BIN_MS / 1000
        if not each.seen and elapsed_s > due_s:
            found.append(f"there is no {metric.name} of both arms to compare")
    return tuple(found)


def _unproved(draft: Decision) -> list[str]:
    """Why a promotion is not proved, a clause each."""
    found = []
    names = {each.name: each for each in draft.plan.judged}
    for each in draft.readings:
        if each.metric not in names or each.margin_ratio is None:
            continue
        if each.log_e_safe < draft.log_e_proof:
            more = f", about {each.needed:,} more requests" if each.needed else ""
            found.append(f"{_named(each.metric, each.aspect)} is not proved{more}")
    for name, metric in names.items():
        if _log_harm(metric, draft.sums.metrics[name]) >= SUSPICION:
            found.append(f"{name} looks worse")
    return found


# --- Readings ------------------------------------------------------------------------------------


def _readings(
    plan: Plan, metric: Metric, sums: MetricSums, weight: float, failed: tuple[str, ...]
) -> list[Reading]:
    if isinstance(sums, ShareSums):
        return [_share_reading(plan, metric, sums, weight, failed)]
    law = _law(sums.past, metric.better)
    found = [_amount_reading(plan, metric, sums, law, aspect, weight, failed) for aspect in AMOUNT_ASPECTS]
    words = {each.aspect: each.word for each in found}
    return [
        replace(each, word=words[Aspect.P99])
        if each.aspect is Aspect.TAIL and each.word is Word.UNDECIDED
        else each
        for each in found
    ]


def _share_reading(
    plan: Plan, metric: Metric, sums: ShareSums, weight: float, failed: tuple[str, ...]
) -> Reading:
    limit = -math.log1p(-plan.confidence)
    low, high = _bounds(_GRID, sums.worst, limit) if sums.seen else (None, None)
    margin = math.exp(sums.margin) if sums.seen else metric.margin_ratio
    log_e_safe = _log_safe(sums, Aspect.RATE)
    log_e_harm = _log_harm(metric, sums)
    rates = (sums.expected / sums.seen, sums.bad / sums.seen) if sums.seen else (None, None)
    if metric.better is Better.HIGHER and rates[0] is not None and rates[1] is not None:
        rates = 1 - rates[0], 1 - rates[1]
    is_harmful = metric.name in failed or _is_proved(plan, log_e_harm, weight)
    word = _word(plan, is_harmful, log_e_safe, low, margin)
    return Reading(
        metric=metric.name,
        aspect=Aspect.RATE,
        kind=metric.kind,
        better=metric.better,
        baseline=rates[0],
        candidate=rates[1],
        ratio=_peak(_GRID, sums.grid) if sums.seen and (sums.bad or sums.expected) else None,
        low=low,
        high=high,
        margin_ratio=margin,
        log_e_harm=log_e_harm,
        log_e_safe=log_e_safe,
        word=word,
        seen_baseline=sums.seen_baseline,
        seen_candidate=sums.seen,
        needed=_share_needed(plan, sums) if word is Word.UNDECIDED and sums.seen else None,
        dry_run=metric.dry_run,
    )


def _amount_reading(
    plan: Plan,
    metric: Metric,
    sums: AmountSums,
    law: _Law | None,
    aspect: Aspect,
    weight: float,
    failed: tuple[str, ...],
) -> Reading:
    limit = -math.log1p(-plan.confidence)
    low = high = ratio = None
    if sums.seen and aspect in _BOUNDED:
        low, high = _bounds(_SCALES, sums.worst[aspect], limit)
        ratio = _peak(_SCALES, -_mean_doubt(sums.near[aspect]))
    baseline, candidate = (_estimate(metric, sums, arm, aspect) for arm in Arm) if sums.seen else (None, None)
    if aspect is Aspect.TAIL and baseline and candidate:
        ratio = candidate / baseline if metric.better is Better.LOWER else baseline / candidate
    log_e_safe, log_e_harm = _log_safe(sums, aspect), _log_harm_of(sums, aspect)
    is_proof = aspect in metric.proofs
    margin = _margin(metric, aspect)
    is_harmful = _named(metric.name, aspect) in failed or _is_proved(
        plan, log_e_harm, weight * _parts(metric).anytime.get(aspect, 0.0)
    )
    if is_proof:
        word = _word(plan, is_harmful, log_e_safe, low, margin)
    else:
        within = high is not None and high <= margin
        word = Word.HARMFUL if is_harmful else Word.SAFE if within else Word.UNDECIDED
    needed = None
    if is_proof and word is Word.UNDECIDED and law is not None and sums.seen:
        needed = _amount_needed(plan, metric, sums, law, aspect)
    return Reading(
        metric=metric.name,
        aspect=aspect,
        kind=metric.kind,
        better=metric.better,
        baseline=baseline,
        candidate=candidate,
        ratio=ratio,
        low=low,
        high=high,
        margin_ratio=margin if is_proof else None,
        log_e_harm=log_e_harm,
        log_e_safe=log_e_safe,
        word=word,
        seen_baseline=sums.seen_baseline,
        seen_candidate=sums.seen,
        needed=needed,
        dry_run=metric.dry_run,
    )


def _is_proved(plan: Plan, log_e: float, part: float) -> bool:
    return part > 0 and log_e + math.log(part) >= -math.log(plan.false_rollback * ANYTIME_PART)


def _word(
    plan: Plan, is_harmful: bool, log_e_safe: float, low: float | None, margin: float | None
) -> Word:
    if is_harmful or (low is not None and margin is not None and low > margin):
        return Word.HARMFUL
    return Word.SAFE if log_e_safe >= -math.log(plan.false_promotion) else Word.UNDECIDED


def _bounds(grid: Floats, worst: Floats, limit: float) -> tuple[float | None, float | None]:
    """The ratios between which nothing was ruled out; `None` where the grid ends before that.

    Where every ratio was ruled out (the arms differ by more than a scale), the least doubted one is left.
    """
    alive = np.flatnonzero(worst < limit)
    if not len(alive):
        only = math.exp(float(grid[int(np.argmin(worst))]))
        return only, only
    first, last = int(alive[0]), int(alive[-1])
    low = None if first == 0 else _crossing(grid, worst, first - 1, first, limit)
    high = None if last == len(grid) - 1 else _crossing(grid, worst, last, last + 1, limit)
    return low, high


def _crossing(grid: Floats, worst: Floats, left: int, right: int, limit: float) -> float:
    rise = worst[right] - worst[left]
    part = (limit - worst[left]) / rise if np.isfinite(rise) and rise else 0.5
    return math.exp(float(grid[left] + (grid[right] - grid[left]) * min(max(part, 0.0), 1.0)))


def _peak(grid: Floats, height: Floats) -> float:
    """Where a curve is highest, between the points of its grid by a parabola."""
    at = int(np.argmax(height))
    if at in (0, len(grid) - 1):
        return math.exp(float(grid[at]))
    left, middle, right = (float(each) for each in height[at - 1 : at + 2])
    bend = left - 2 * middle + right
    part = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return math.exp(float(grid[at] + part * (grid[1] - grid[0])))


def _estimate(metric: Metric, sums: AmountSums, arm: Arm, aspect: Aspect) -> float | None:
    counts = sums.candidate if arm is Arm.CANDIDATE else sums.baseline
    n = float(counts.sum())
    if aspect is Aspect.MEAN:
        return (sums.total if arm is Arm.CANDIDATE else sums.total_baseline) / n
    cumulated = np.cumsum(counts)
    if aspect is Aspect.TAIL:
        beyond = np.clip(cumulated - 0.95 * n, 0, counts)
        return float(beyond @ _centres(metric) / beyond.sum())
    rank = {**_QUANTILES, Aspect.SHAPE: 0.5}[aspect] * n
    at = int(np.searchsorted(cumulated, rank))
    part = (rank - (cumulated[at] - counts[at])) / counts[at] if counts[at] else 0.5
    if metric.better is Better.LOWER:
        return math.exp((at + LOWEST + part) * STEP)
    return math.exp((BUCKETS - at + LOWEST - part) * STEP)


def _centres(metric: Metric) -> Floats:
    centres = np.exp((np.arange(BUCKETS) + LOWEST + 0.5) * STEP)
    return centres if metric.better is Better.LOWER else centres[::-1]


def _share_needed(plan: Plan, sums: ShareSums) -> int | None:
    rate = (sums.expected + 0.5) / (sums.seen + 1)
    thetas = sums.margin * _SHARE_SAFE
    growth = rate * (thetas - sums.margin) - (
        np.log1p(rate * np.expm1(thetas)) - np.log1p(rate * math.expm1(sums.margin))
    )
    share = sums.seen / (sums.seen + sums.seen_baseline)
    return _more(plan, sums.safe, np.log(_SHARE_SAFE_PRIOR), growth * (1 - share))


def _amount_needed(
    plan: Plan, metric: Metric, sums: AmountSums, law: _Law, aspect: Aspect
) -> int | None:
    f = law.counts / law.counts.sum()
    moved = _moved(f, math.log(_margin(metric, aspect)))
    if aspect in law.quantiles:
        rows = _SAFE_EXCESS[:, None] * (np.arange(BUCKETS) >= law.quantiles[aspect])
    else:
        rows = -law.log_means if aspect is Aspect.MEAN else -_SAFE_SHIFTS[:, None] * law.scores
    share = sums.seen / (sums.seen + sums.seen_baseline)
    growth = rows @ moved - np.log(np.exp(rows) @ ((1 - share) * f + share * moved))
    return _more(plan, sums.safe[aspect], np.full(len(rows), -math.log(len(rows))), growth)


def _more(plan: Plan, log_e: Floats, log_prior: Floats, growth: Floats) -> int | None:
    """About so many more of the candidate, if it does not differ, until the best alternative has proved it."""
    lacking = -math.log(plan.false_promotion) - log_prior - log_e
    useful = growth > 1e-7
    if not useful.any():
        return None
    return max(1, math.ceil(float((lacking[useful] / growth[useful]).min())))
