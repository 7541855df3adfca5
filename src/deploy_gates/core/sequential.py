"""Sequential statistics of two arms served at the same time: evidence one may look at at any time.

Everything rests on one fact. Within one bin, and if the arms do not differ, which of the N requests went to
the candidate says nothing about how they went: every choice of k of N is as likely as any other. So for any
positive weight w that was chosen before the bin,

    E = product of w over the candidate's requests / mean of that product over all choices of k of N

is 1 on average: an e-value. Products over bins are e-processes, whatever traffic, share and drift do
between bins. The mean over all choices is an elementary symmetric polynomial of the weights; for a w with
two values it is the normaliser of Fisher's noncentral hypergeometric law. Names: Vovk and Wang 2021,
E-values; Ville 1939 for the bound 1/alpha at all times; McCullagh and Nelder 1989, 7.3 for the law; Daniels
1954 for the saddlepoint.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, ndtr, ndtri

from deploy_gates.core.canary import Aspect

Floats: TypeAlias = NDArray[np.float64]

STEPS_MAX = 40
"""Newton steps towards a saddlepoint; about three are needed."""
TELLING_LEAST = 1e-7
"""A sum whose generating function is lower than this at the smallest tilt hardly varies at all."""
SETTLED = 0.01
"""A last step shorter than this has found it."""
TERMS_MAX = 512
"""Sums of so many terms are added up one by one; longer ones go by the saddlepoint."""
TABLED = 1 << 15
"""The factorials of smaller numbers are looked up: a bin seldom has more requests."""


def log_mean_product(log_w: Floats, n: Floats, k: float) -> Floats:
    """The logarithm of the mean, over all choices of `k` of `sum(n)` values, of the product of their weights.

    `log_w` (rows, values) holds the logarithm of a weight for each distinct value, `n` (values) how often it
    occurs. By the saddlepoint with the two next terms of its expansion, relative to the same expansion of the
    number of choices: off by less than 1e-4 for weights up to e, from k = 1 on; exact for equal weights.
    Where weights are so far apart that no saddlepoint is found, the power of the mean weight, which the mean
    never exceeds (Maclaurin).
    """
    total = float(n.sum())
    if k <= 0:
        return np.zeros(log_w.shape[0])
    if k >= total:
        return np.asarray(log_w @ n)
    odds = math.log(k / (total - k))
    centre = log_w @ n / total
    w = np.exp(log_w - centre[:, None])
    tilt = math.exp(odds) * total / (w @ n)
    for _ in range(STEPS_MAX):
        p = w * tilt[:, None]
        p /= 1 + p
        step = (p @ n - k) / np.maximum((p * (1 - p)) @ n, 1e-300)
        tilt = tilt * np.exp(-np.clip(step, -2.0, 2.0))
        if np.abs(step).max() < 1e-4:  # the exponent is flat there: what is left is of the order of 1e-8
            break
    tilted = w * tilt[:, None]
    spread, correction = _expansion(tilted / (1 + tilted), n)
    plain_spread, plain = _plain_expansion(k / total, total)
    exponent = np.log1p(tilted) @ n - k * np.log(tilt)
    plain_exponent = total * math.log(total / (total - k)) - k * odds
    found = (exponent - plain_exponent) + 0.5 * np.log(plain_spread / spread) + np.log(correction / plain)
    found = np.where(np.abs(step) < SETTLED, found, np.inf)
    return np.asarray(k * centre + np.minimum(found, k * np.log(w @ n / total)))


def log_mean_odds_each(log_theta: Floats, rate: float, share: float) -> Floats:
    """`log_mean_odds` of very many values, for each one chosen: `rate` of them are marked, `share` chosen."""
    theta = np.exp(log_theta)
    middle = (1 - rate) + rate * theta - share * (1 + theta)
    tilt = (np.sqrt(middle**2 + 4 * theta * (1 - share) * share) - middle) / (2 * theta * (1 - share))
    exponent = (1 - rate) * np.log1p(tilt) + rate * np.log1p(theta * tilt) - share * np.log(tilt)
    plain = -math.log1p(-share) - share * math.log(share / (1 - share))
    return np.asarray((exponent - plain) / share)


def _plain_expansion(p: float, n: float) -> tuple[float, float]:
    """`_expansion` of `n` alike."""
    q = p * (1 - p)
    k2, k3, k4 = n * q, n * q * (1 - 2 * p), n * q * (1 - 6 * q)
    k5, k6 = k3 * (1 - 12 * q), k2 * (1 - 30 * q + 120 * q * q)
    first = k4 / (8 * k2**2) - 5 * k3**2 / (24 * k2**3)
    second = (
        -k6 / (48 * k2**3)
        + 35 * k4**2 / (384 * k2**4)
        + 7 * k5 * k3 / (48 * k2**4)
        - 35 * k3**2 * k4 / (64 * k2**5)
        + 385 * k3**4 / (1152 * k2**6)
    )
    return k2, max(1 + first + second, 0.05)


def _expansion(p: Floats, n: Floats) -> tuple[Floats, Floats]:
    """Variance of a sum of Bernoullis; the density at its mean over a normal law's, to two terms."""
    q = p * (1 - p)
    odd = q * (1 - 2 * p)
    squared = q * q
    k2, k3, fourth = np.maximum(q @ n, 1e-9), odd @ n, squared @ n
    k4 = k2 - 6 * fourth
    k5 = k3 - 12 * ((odd * q) @ n)
    k6 = k2 - 30 * fourth + 120 * ((squared * q) @ n)
    first = k4 / (8 * k2**2) - 5 * k3**2 / (24 * k2**3)
    second = (
        -k6 / (48 * k2**3)
        + 35 * k4**2 / (384 * k2**4)
        + 7 * k5 * k3 / (48 * k2**4)
        - 35 * k3**2 * k4 / (64 * k2**5)
        + 385 * k3**4 / (1152 * k2**6)
    )
    return k2, np.maximum(1 + first + second, 0.05)


def log_mean_odds(log_theta: Floats, total: int, marked: int, k: int) -> Floats:
    """The same for weights `exp(log_theta)` of `marked` of the `total` values and 1 of the others; exact.

    That is the normaliser of the noncentral hypergeometric law of how many marked ones are among `k`.
    """
    low, high = max(0, k + marked - total), min(k, marked)
    if high <= low:
        return np.asarray(log_theta * low)
    if high - low > TERMS_MAX:
        rows = np.stack([np.zeros_like(log_theta), log_theta], axis=1)
        return log_mean_product(rows, np.array([total - marked, marked], dtype=float), k)
    j, log_p = _hypergeometric(total, marked, k, low, high)
    return log_sum_exp(log_p + log_theta[:, None] * j)


def hypergeometric(total: int, marked: int, k: int, *, log_theta: float = 0.0) -> tuple[int, Floats]:
    """The law of how many marked ones are among `k` of `total`: the least number, and probabilities."""
    low, high = max(0, k + marked - total), min(k, marked)
    j, log_p = _hypergeometric(total, marked, k, low, high)
    log_p = log_p + log_theta * j
    return low, np.asarray(np.exp(log_p - log_sum_exp(log_p)))


def _hypergeometric(total: int, marked: int, k: int, low: int, high: int) -> tuple[Floats, Floats]:
    j = np.arange(low, high + 1, dtype=float)
    if total >= TABLED:
        counts = np.stack([j, marked - j, k - j, total - marked - k + j])
        log_ways = gammaln(counts + 1).sum(axis=0)
    else:
        table, rest = _log_factorials(), total - marked - k
        log_ways = table[low : high + 1] + table[rest + low : rest + high + 1]
        log_ways += table[marked - high : marked - low + 1][::-1] + table[k - high : k - low + 1][::-1]
    constant = (
        math.lgamma(marked + 1)
        + math.lgamma(total - marked + 1)
        - math.lgamma(total + 1)
        + math.lgamma(k + 1)
        + math.lgamma(total - k + 1)
    )
    return j, np.asarray(constant - log_ways)


@functools.cache
def _log_factorials() -> Floats:
    return np.asarray(gammaln(np.arange(1, TABLED + 1, dtype=np.float64)))


TILTS: Floats = 0.006 * 1.7 ** np.arange(10, dtype=np.float64)
"""Where the cumulant generating function of a sum of scores is kept, in 1 / deviation of one score."""


def upper_tail(x: float, generating: Floats) -> float:
    """How likely a sum with mean 0 reaches `x`, by Lugannani and Rice 1980 (as Barndorff-Nielsen's r*).

    `generating` is its cumulant generating function at `TILTS`; it adds up over independent bins. Never
    less than a normal law's answer, which is given where `x` lies below one standard deviation or beyond
    all tilts.
    """
    from scipy.interpolate import CubicSpline  # a tenth of a second to import, for a test a mark

    if generating[0] <= TELLING_LEAST:  # all values are alike, but for rounding
        return 1.0
    # Over the square of its argument, the function is flat near 0; in logarithms it bends slowly everywhere.
    spline = CubicSpline(np.log(TILTS), np.log(np.maximum(generating, 1e-300) / TILTS**2))
    spread = math.sqrt(2 * float(generating[0]) / float(TILTS[0]) ** 2)
    plain = float(ndtr(-x / spread))
    if x < spread:
        return plain
    low, high = float(np.log(TILTS[0])), float(np.log(TILTS[-1]))
    for _ in range(50):
        middle = (low + high) / 2
        slope = math.exp(middle + float(spline(middle))) * (2 + float(spline(middle, 1)))
        low, high = (middle, high) if slope < x else (low, middle)
    at = (low + high) / 2
    tilt, height = math.exp(at), math.exp(float(spline(at)))
    rise, bow = float(spline(at, 1)), float(spline(at, 2))
    exponent = tilt * x - tilt**2 * height
    bend = height * (2 + 3 * rise + rise**2 + bow)
    if exponent <= 0 or bend <= 0:
        return plain
    r, u = math.sqrt(2 * exponent), tilt * math.sqrt(bend)
    return min(1.0, max(plain, float(ndtr(-(r + math.log(u / r) / r)))))


def log_mean_exp(rows: Floats, weights: Floats) -> float:
    """The logarithm of the weighted mean of e-values given as logarithms; the weights add up to 1."""
    top = float(rows.max())
    return top + math.log(float(np.exp(rows - top) @ weights))


def log_sum_exp(rows: Floats) -> Floats:
    """The logarithm of the sum along the last axis of what is given as logarithms."""
    top = rows.max(axis=-1, keepdims=True)
    return np.asarray(top[..., 0] + np.log(np.exp(rows - top).sum(axis=-1)))


def normal_scores(counts: Floats, *, step: float) -> Floats:
    """The normal score of each bucket of a histogram: the place of its middle rank on a standard normal law.

    Above the highest value seen, scores go on rising by `step` (the width of a bucket) over the spread of the
    upper half, by at most 1.5: a value nobody has seen is worse than the worst that was.
    """
    seen = np.flatnonzero(counts)
    first, top = int(seen[0]), int(seen[-1])
    inside = counts[first : top + 1]
    cumulated = np.cumsum(inside)
    total = float(cumulated[-1])
    least = 0.5 / (total + 1)
    z = np.full(len(counts), ndtri(least))
    ranks = (cumulated - inside / 2 + least) / (total + 2 * least)
    z[first : top + 1] = ndtri(np.clip(ranks, least, 1 - least))
    middle, upper = np.searchsorted(cumulated, np.array([0.5, 0.9]) * total).tolist()
    spread = max((upper - middle) * step / 1.2816, step)
    z[top + 1 :] = z[top] + np.minimum(np.arange(1, len(counts) - top) * (step / spread), 1.5)
    return z


def log_beta_binomial(candidate: int, baseline: int, share: float, concentration: float = 400.0) -> float:
    """The e-value, as a logarithm, against every request going to the candidate with probability `share`.

    The alternative is a beta law around `share` that is worth `concentration` requests (Robbins 1970).
    """
    a, b = share * concentration, (1 - share) * concentration
    return (
        _log_beta(a + candidate, b + baseline)
        - _log_beta(a, b)
        - candidate * math.log(share)
        - baseline * math.log1p(-share)
    )


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def prior(*weights: float) -> Floats:
    """Weights of alternatives, adding up to 1."""
    return np.array(weights, dtype=np.float64) / sum(weights)


# --- What the sums of a metric tell ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """Between these ratios nothing was ruled out; `None`: no end was found."""

    low: float | None = None
    high: float | None = None

    def widened(self, times: float) -> Bounds:
        """So many times lower and higher."""
        return Bounds(
            low=None if self.low is None else self.low / times,
            high=None if self.high is None else self.high * times,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """An e-value, as a logarithm, or a p-value of one aspect, and the part that is spent on it."""

    aspect: Aspect
    part: float
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One aspect of both arms; see `Reading`."""

    aspect: Aspect
    margin_ratio: float | None
    baseline: float | None = None
    candidate: float | None = None
    ratio: float | None = None
    bounds: Bounds = Bounds()
    log_e_safe: float = 0.0
    needed: int | None = None


def bounds(grid: Floats, worst: Floats, limit: float) -> Bounds:
    """The ratios, of which `grid` holds logarithms, whose e-value never reached `limit`.

    Where every ratio was ruled out (the arms differ by more than a scale), the least doubted one is left.
    """
    alive = np.flatnonzero(worst < limit)
    if not len(alive):
        only = math.exp(float(grid[int(np.argmin(worst))]))
        return Bounds(low=only, high=only)
    first, last = int(alive[0]), int(alive[-1])
    return Bounds(
        low=None if first == 0 else _crossing(grid, worst, first - 1, first, limit),
        high=None if last == len(grid) - 1 else _crossing(grid, worst, last, last + 1, limit),
    )


def _crossing(grid: Floats, worst: Floats, left: int, right: int, limit: float) -> float:
    rise = float(worst[right] - worst[left])
    part = (limit - float(worst[left])) / rise if math.isfinite(rise) and rise else 0.5
    return math.exp(float(grid[left]) + float(grid[right] - grid[left]) * min(max(part, 0.0), 1.0))


def peak(grid: Floats, height: Floats) -> float:
    """Where a curve is highest, between the points of its grid by a parabola."""
    at = int(np.argmax(height))
    if at in (0, len(grid) - 1):
        return math.exp(float(grid[at]))
    left, middle, right = (float(each) for each in height[at - 1 : at + 2])
    bend = left - 2 * middle + right
    part = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return math.exp(float(grid[at]) + part * float(grid[1] - grid[0]))


def needed(lacking: Floats, growth: Floats) -> int | None:
    """About so many more, each adding `growth` to what is `lacking`; of the best alternative."""
    useful = growth > 1e-7
    if not useful.any():
        return None
    return max(0, math.ceil(float((lacking[useful] / growth[useful]).min())))
