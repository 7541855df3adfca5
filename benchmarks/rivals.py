"""Rules that people judge canaries by today, written anew from their documents, on the same tallies as ours.

Each takes a `Series` and returns the number of the 5 s bin after which it rolls back, or `None`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from deploy_gates.core.tally import GROWTH, Arm, Histogram, Tally

ALPHA = 0.01
METRICS = 3
LOW, HIGH = -260, 260
"""Buckets that simulated values fall into."""
CENTRES = np.exp((np.arange(LOW, HIGH) + 0.5) * math.log(GROWTH))

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Bins of the canary: (arm, bin), and (arm, bin, bucket); the candidate is arm 1."""

    n: Floats
    errors: Floats
    latency: Floats
    cost: Floats

    @classmethod
    def of(cls, looks: Sequence[tuple[int, tuple[Tally, ...]]]) -> Self:
        """From the first request of the candidate on."""
        bins = [tallies for _, tallies in looks]
        first = next(at for at, each in enumerate(bins) if any(t.arm is Arm.CANDIDATE for t in each))
        bins = bins[first:]
        n, errors = np.zeros((2, len(bins))), np.zeros((2, len(bins)))
        latency, cost = (np.zeros((2, len(bins), HIGH - LOW)) for _ in range(2))
        for at, tallies in enumerate(bins):
            for tally in tallies:
                arm = int(tally.arm is Arm.CANDIDATE)
                n[arm, at] += tally.finished
                errors[arm, at] += tally.errors
                _put(latency[arm, at], tally.latency_s)
                _put(cost[arm, at], tally.cost_usd)
        return cls(n=n, errors=errors, latency=latency, cost=cost)

    @property
    def bins(self) -> int:
        return int(self.n.shape[1])


def _put(row: Floats, histogram: Histogram) -> None:
    for bucket, count in histogram.counts.items():
        row[min(max(bucket, LOW), HIGH - 1) - LOW] += count


def _quantile(counts: Floats, share: float) -> float:
    cumulated = np.cumsum(counts)
    if not cumulated[-1]:
        return math.nan
    return float(CENTRES[min(int(np.searchsorted(cumulated, share * cumulated[-1])), len(CENTRES) - 1)])


def _mean(counts: Floats) -> float:
    return float(counts @ CENTRES / counts.sum()) if counts.sum() else math.nan


def _intervals(series: Series, seconds: int) -> list[slice]:
    size = seconds // 5
    return [slice(begin, begin + size) for begin in range(0, series.bins - size + 1, size)]


# --- Thresholds ----------------------------------------------------------------------------------


def argo_absolute(series: Series) -> int | None:
    """Argo Rollouts: success >= 95 % and p99 <= 10 s, every 60 s, failureLimit 0."""
    for each in _intervals(series, 60):
        failed = series.errors[1, each].sum() > 0.05 * series.n[1, each].sum()
        if failed or _quantile(series.latency[1, each].sum(axis=0), 0.99) > 10:
            return int(each.stop) - 1
    return None


def flagger(series: Series) -> int | None:
    """Flagger: success >= 99 % and p99 <= 7.5 s, every 30 s, threshold 5."""
    strikes = 0
    for each in _intervals(series, 30):
        n = series.n[1, each].sum()
        failed = not n or series.errors[1, each].sum() > 0.01 * n
        strikes += bool(failed or _quantile(series.latency[1, each].sum(axis=0), 0.99) > 7.5)
        if strikes >= 5:
            return int(each.stop) - 1
    return None


def argo_relative(series: Series) -> int | None:
    """Argo Rollouts: errors, p95 and mean cost at most 1.2 times the stable ones, every 30 s, 3 strikes."""
    strikes = [0, 0, 0]
    for each in _intervals(series, 30):
        rates = series.errors[:, each].sum(axis=1) / np.maximum(series.n[:, each].sum(axis=1), 1)
        p95 = [_quantile(series.latency[arm, each].sum(axis=0), 0.95) for arm in (0, 1)]
        costs = [_mean(series.cost[arm, each].sum(axis=0)) for arm in (0, 1)]
        worse = (rates[1] > 1.2 * rates[0], p95[1] > 1.2 * p95[0], costs[1] > 1.2 * costs[0])
        strikes = [strike + bool(bad) for strike, bad in zip(strikes, worse, strict=True)]
        if max(strikes) >= 3:
            return int(each.stop) - 1
    return None


# --- Kayenta -------------------------------------------------------------------------------------


def kayenta(series: Series) -> int | None:
    """Kayenta's NetflixACAJudge on 60 points of 5 s, once at 300 s."""
    return series.bins - 1 if _kayenta_fails(series, series.bins) else None


def kayenta_every_minute(series: Series) -> int | None:
    """The same judged every 60 s, each metric critical."""
    for end in range(12, series.bins + 1, 12):
        if _kayenta_fails(series, end):
            return end - 1
    return None


def _kayenta_fails(series: Series, end: int) -> bool:
    rates = [series.errors[arm, :end] / np.maximum(series.n[arm, :end], 1) for arm in (0, 1)]
    latency, cost = (
        [np.array([_mean(bins[arm, at]) for at in range(end)]) for arm in (0, 1)]
        for bins in (series.latency, series.cost)
    )
    return any(_is_high(baseline, candidate) for baseline, candidate in (rates, latency, cost))


def _is_high(baseline: Floats, candidate: Floats) -> bool:
    """Mann-Whitney's 98 % interval of the shift lies above a quarter of the estimate, and the mean rose."""
    baseline, candidate = baseline[~np.isnan(baseline)], candidate[~np.isnan(candidate)]
    m, n = len(candidate), len(baseline)
    if min(m, n) < 2:
        return False
    shifts = np.sort((candidate[:, None] - baseline[None, :]).ravel())
    spread = math.sqrt(m * n * (m + n + 1) / 12)
    at = max(math.floor(m * n / 2 - float(ndtri(0.99)) * spread), 0)
    middle = float(np.median(shifts))
    return bool(shifts[at] > 0.25 * abs(middle) and candidate.mean() > baseline.mean())


# --- Tests of all that came so far ----------------------------------------------------------------


def _scores(series: Series) -> Floats:
    """One-sided z of errors, mean log latency and mean cost, pooled since the start: (metric, bin)."""
    n, errors = np.cumsum(series.n, axis=1), np.cumsum(series.errors, axis=1)
    rate = errors.sum(axis=0) / np.maximum(n.sum(axis=0), 1)
    spread = np.sqrt(np.maximum(rate * (1 - rate), 1e-12) * (1 / np.maximum(n, 1)).sum(axis=0))
    found = [(errors[1] / np.maximum(n[1], 1) - errors[0] / np.maximum(n[0], 1)) / spread]
    for bins, values in ((series.latency, np.log(CENTRES)), (series.cost, CENTRES)):
        counts = np.cumsum(bins.sum(axis=2), axis=1)
        totals, squares = np.cumsum(bins @ values, axis=1), np.cumsum(bins @ values**2, axis=1)
        k = np.maximum(counts, 1)
        variances = np.maximum(squares / k - (totals / k) ** 2, 1e-18) / k
        found.append((totals[1] / k[1] - totals[0] / k[0]) / np.sqrt(variances.sum(axis=0)))
    return np.stack(found)


def _first(hits: object) -> int | None:
    there = np.flatnonzero(np.asarray(hits))
    return int(there[0]) if len(there) else None


def peeked(series: Series) -> int | None:
    """p < 0.05, every 5 s."""
    return _first((_scores(series) > ndtri(0.95)).any(axis=0))


def bonferroni(series: Series) -> int | None:
    """p < 0.01 over the metrics, every 5 s."""
    return _first((_scores(series) > ndtri(1 - ALPHA / METRICS)).any(axis=0))


def fixed(series: Series) -> int | None:
    """The same, once at 300 s."""
    fails = bool((_scores(series)[:, -1] > ndtri(1 - ALPHA / METRICS)).any())
    return series.bins - 1 if fails else None


LOOKS = 10


@cache
def _obrien_fleming() -> float:
    """The constant of 10 looks: C sqrt(10 / k) is exceeded with probability alpha over the metrics."""
    walks = np.cumsum(np.random.default_rng(1).standard_normal((400_000, LOOKS)), axis=1) / math.sqrt(LOOKS)
    return float(np.quantile(walks.max(axis=1), 1 - ALPHA / METRICS))


def obrien_fleming(series: Series) -> int | None:
    """O'Brien and Fleming 1979, 10 looks, Bonferroni over the metrics."""
    ends = (np.arange(1, LOOKS + 1) * series.bins // LOOKS) - 1
    bounds = _obrien_fleming() * np.sqrt(LOOKS / np.arange(1, LOOKS + 1))
    at = _first((_scores(series)[:, ends] > bounds).any(axis=0))
    return None if at is None else int(ends[at])


def normal_mixture(series: Series) -> int | None:
    """GAVI, mSPRT, asymptotic confidence sequences: a normal mixture, tuned to 500 requests."""
    v = np.cumsum(series.n[1]) / 500
    bound = np.sqrt((1 + 1 / np.maximum(v, 1e-9)) * np.log((1 + v) / (2 * ALPHA / METRICS) ** 2))
    return _first((_scores(series) > bound).any(axis=0))


def netflix_2022(series: Series) -> int | None:
    """Lindon, Sanden and Shirikian 2022: a beta mixture on the arm of each error, uniform bands of laws."""
    share = 0.05
    errors = np.cumsum(series.errors, axis=1)
    log_e = np.array([_beta_mixture(c, b, share) for b, c in errors.T])
    odds_rose = errors[1] > share * errors.sum(axis=0)
    hits = (log_e > math.log(METRICS / ALPHA)) & odds_rose
    for bins in (series.latency, series.cost):
        counts = np.cumsum(bins, axis=1)
        n = np.maximum(counts.sum(axis=2), 1)
        laws = np.cumsum(counts, axis=2) / n[:, :, None]
        logs = np.log(np.log(math.e * n)) + 0.8 * math.log(1612 * METRICS / ALPHA)
        bands = 0.85 * np.sqrt(logs / n)  # Howard and Ramdas 2022, theorem 2
        hits |= (laws[0] - laws[1]).max(axis=1) > bands.sum(axis=0)
    return _first(hits)


def _beta_mixture(candidate: float, baseline: float, share: float, worth: float = 100.0) -> float:
    a, b = share * worth, (1 - share) * worth
    return (
        math.lgamma(a + candidate)
        + math.lgamma(b + baseline)
        - math.lgamma(a + b + candidate + baseline)
        - (math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))
        - candidate * math.log(share)
        - baseline * math.log1p(-share)
    )


RIVALS: Mapping[str, Callable[[Series], int | None]] = {
    "argo, absolute": argo_absolute,
    "flagger": flagger,
    "argo, relative": argo_relative,
    "kayenta, at 300 s": kayenta,
    "kayenta, every 60 s": kayenta_every_minute,
    "p < 0.05, peeked": peeked,
    "bonferroni, peeked": bonferroni,
    "fixed, at 300 s": fixed,
    "o'brien-fleming": obrien_fleming,
    "gavi / msprt": normal_mixture,
    "netflix 2022": netflix_2022,
}
