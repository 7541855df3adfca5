"""Simulated traffic: what a canary would see of harm, and of nothing, before anybody has users.

Requests arrive at random, each with an error or not, a latency and a cost that are correlated; the
candidate may be worse in any of them. What is common to both arms (drift, bursts, steps of the share) is
nobody's fault, and what is one user's is one user's. The same traffic comes as tallies, for simulations by
the thousand, or as observations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, ndtr

from deploy_gates.core.errors import SettingsError
from deploy_gates.core.tally import BIN_MS, GROWTH, HIGHEST, LOWEST, Arm, Histogram, Tally, Unit

Step: TypeAlias = tuple[int, tuple[Tally, ...]]
"""The end of a bin, and its tallies."""
Floats: TypeAlias = NDArray[np.float64]

BIN_S = BIN_MS / 1000
START_MS = 10_000 * BIN_MS
"""When simulated canaries start."""
USER_S = 20.0
"""The value of a user is closed so long after the first request."""
REQUESTS_MAX = 50_000_000
LATENCY_MAX_S = 600.0
_BUCKETS = HIGHEST - LOWEST + 1


class Family(StrEnum):
    """What a law looks like around its median."""

    LOGNORMAL = "lognormal"
    GAMMA = "gamma"
    """Light-tailed."""
    BIMODAL = "bimodal"
    """A third of the values, answers from a cache, are ten times smaller."""
    PARETO = "pareto"
    """Heavy-tailed: above the median, a power law."""
    DISCRETE = "discrete"
    """Nine values, evenly apart in logarithms."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Law:
    """The law of an amount."""

    median: float
    spread: float
    """The standard deviation of the logarithm, of a lognormal law; of the others, about."""
    family: Family = Family.LOGNORMAL

    def at(self, z: Floats) -> Floats:
        """The values whose normal scores are `z`."""
        s = self.spread
        match self.family:
            case Family.LOGNORMAL:
                x = np.exp(s * z)
            case Family.GAMMA:
                shape = 1 / s**2
                x = gammaincinv(shape, np.clip(ndtr(z), 1e-12, 1 - 1e-12)) / gammaincinv(shape, 0.5)
            case Family.BIMODAL:
                x = np.exp(s * z / 2) * np.where(z < -0.43, 0.1, 1.0)
            case Family.PARETO:
                x = np.where(z < 0, np.exp(s * z), np.maximum(2 * ndtr(-np.abs(z)), 1e-12) ** (-s / 1.5))
            case Family.DISCRETE:
                x = np.exp(s * np.clip(np.round(2 * z) / 2, -2, 2))
        return np.asarray(self.median * x, dtype=np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """What comes, and how much worse the candidate is."""

    rate_rps: float = 100.0
    share: float = 0.05
    duration_s: float = 300.0
    before_s: float = 60.0
    """So long the baseline is served alone."""
    error_rate: float = 0.01
    latency: Law = field(default_factory=lambda: Law(median=0.8, spread=0.8662))
    """A median of 0.8 s, and a 99th percentile of 6 s."""
    cost: Law = field(default_factory=lambda: Law(median=0.002, spread=1.0))
    """In dollars."""
    huge_share: float = 0.005
    huge_ratio: float = 20.0
    """Such a part of the requests costs so many times as much."""
    correlation: float = 0.6
    """Of latency and cost, as normal scores."""

    errors_ratio: float = 1.0
    latency_ratio: float = 1.0
    cost_ratio: float = 1.0
    tail_share: float = 0.0
    tail_ratio: float = 1.0
    """This part of the candidate's requests is so many times slower."""
    cold_s: float = 0.0
    """So long the candidate's latency and cost are worse by the next two."""
    cold_latency_ratio: float = 1.5
    cold_cost_ratio: float = 1.3

    drift: float = 0.0
    """So far the request rate, errors, latency and cost of both arms rise and fall in five minutes."""
    bursts: int = 0
    """So many times both arms fail ten times as often, and take twice as long, for ten seconds."""
    steps: tuple[tuple[float, float], ...] = ()
    """From when on the candidate gets which share."""
    requests_per_user: float = 1.0
    """Above one, users keep their arm, and their requests are alike."""
    user_gap_s: float = 4.0
    user_spread: float = 0.5
    """How far users differ, in the logarithm of their latency, cost and error rate."""

    @property
    def unit(self) -> Unit:
        """What is to be counted."""
        return Unit.USER if self.requests_per_user > 1 else Unit.REQUEST


def checked(traffic: Traffic) -> Traffic:
    """The traffic, if it can be simulated. `SettingsError` if it cannot."""
    expected = traffic.rate_rps * (traffic.duration_s + traffic.before_s)
    wrong = [
        (not traffic.rate_rps > 0, "a rate above 0 is needed"),
        (not 0 < traffic.share < 1, "the share lies outside 0 to 1"),
        (not BIN_S <= traffic.duration_s <= 86_400, "it lasts from 5 s to a day"),
        (not 0 <= traffic.before_s <= 3_600, "it begins at most an hour before the canary"),
        (not 0 <= traffic.error_rate * traffic.errors_ratio <= 1, "the candidate's error rate is above 1"),
        (min(traffic.latency_ratio, traffic.cost_ratio, traffic.tail_ratio) <= 0, "ratios are above 0"),
        (not 0 <= traffic.tail_share <= 1, "the part that is slower lies outside 0 to 1"),
        (expected > REQUESTS_MAX, f"{expected:,.0f} requests are more than {REQUESTS_MAX:,}"),
    ]
    for bad, why in wrong:
        if bad:
            raise SettingsError(f"this traffic cannot be simulated: {why}")
    return traffic


_BASE = Traffic()
_DRIFT = replace(_BASE, drift=0.5)
NULLS: Mapping[str, Traffic] = {
    "aa": _BASE,
    "drift": _DRIFT,
    "bursts": replace(_BASE, bursts=3),
    "steps": replace(_DRIFT, steps=((100.0, 0.25), (200.0, 0.5))),
    "sticky": replace(_BASE, requests_per_user=5.0),
    "cold": replace(_BASE, cold_s=20.0),
}
"""Good candidates, in bad weather."""
HARMS: Mapping[str, Traffic] = {
    "err1.5": replace(_BASE, errors_ratio=1.5),
    "err2": replace(_BASE, errors_ratio=2.0),
    "err5": replace(_BASE, errors_ratio=5.0),
    "outage": replace(_BASE, errors_ratio=50.0),
    "lat10": replace(_BASE, latency_ratio=1.1),
    "lat30": replace(_BASE, latency_ratio=1.3),
    "tail": replace(_BASE, tail_share=0.062, tail_ratio=6.0),
    "rare-tail": replace(_BASE, tail_share=0.02, tail_ratio=6.0),
    "cost10": replace(_BASE, cost_ratio=1.1),
    "cost30": replace(_BASE, cost_ratio=1.3),
    "cost2": replace(_BASE, cost_ratio=2.0),
    "verbose": replace(_BASE, latency_ratio=1.3, cost_ratio=1.5),
}
SCENARIOS: Mapping[str, Traffic] = {**NULLS, **HARMS}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Requests:
    """All requests, by time."""

    t: Floats
    """In seconds since the start of the canary."""
    candidate: NDArray[np.bool_]
    error: NDArray[np.bool_]
    latency_s: Floats
    cost: Floats
    user: NDArray[np.int64]


def steps(traffic: Traffic, seed: int) -> Iterator[Step]:
    """The traffic as tallies, bin by bin; users' where they keep their arm."""
    requests = _requests(checked(traffic), np.random.default_rng(seed))
    bins = round(traffic.before_s / BIN_S) + round(traffic.duration_s / BIN_S)
    arms = _places(traffic, requests)
    is_alive = np.bincount(arms, minlength=2 * bins) > 0  # also of users who were all counted before
    if traffic.unit is Unit.USER:
        requests = _users(requests, traffic.duration_s)
        arms = _places(traffic, requests)
    counts = np.bincount(arms, minlength=2 * bins)
    errors = np.bincount(arms[requests.error], minlength=2 * bins)
    good = ~requests.error
    latencies = _histograms(arms[good], requests.latency_s[good], 2 * bins)
    costs = _histograms(arms, requests.cost, 2 * bins)
    first_ms = START_MS - round(traffic.before_s / BIN_S) * BIN_MS
    for each in range(bins):
        start_ms = first_ms + each * BIN_MS
        revision = 1 + sum(start_ms >= START_MS + since * 1000 for since, _ in traffic.steps)
        yield (
            start_ms + BIN_MS,
            tuple(
                Tally(
                    config="simulated",
                    environment="simulated",
                    revision=revision,
                    arm=arm,
                    start_ms=start_ms,
                    unit=traffic.unit,
                    started=int(counts[2 * each + number]),
                    finished=int(counts[2 * each + number]),
                    errors=int(errors[2 * each + number]),
                    latency_s=latencies[2 * each + number],
                    cost_usd=costs[2 * each + number],
                )
                for number, arm in enumerate(Arm)
                if is_alive[2 * each + number]
            ),
        )


def _places(traffic: Traffic, requests: _Requests) -> NDArray[np.int64]:
    """The bin and arm of each request, as one number."""
    at = np.floor((requests.t + traffic.before_s) / BIN_S).astype(np.int64)
    return np.asarray(at * 2 + requests.candidate)


def observations(traffic: Traffic, seed: int) -> Iterator[str]:
    """The traffic as lines that `canary replay` reads, by time."""
    requests = _requests(checked(traffic), np.random.default_rng(seed))
    names = [arm.value for arm in Arm]
    has_users = traffic.unit is Unit.USER
    for each in range(len(requests.t)):
        key = f'"key": "user-{requests.user[each]}", ' if has_users else ""
        yield (
            f'{{"t": {requests.t[each]:.4f}, "arm": "{names[int(requests.candidate[each])]}", {key}'
            f'"error": {"true" if requests.error[each] else "false"}, '
            f'"latency_s": {requests.latency_s[each]:.6g}, "cost": {requests.cost[each]:.6g}}}\n'
        )


def shares(traffic: Traffic) -> Mapping[int, float]:
    """The share by revision."""
    return {1: traffic.share, **{at + 2: share for at, (_, share) in enumerate(traffic.steps)}}


def _requests(traffic: Traffic, rng: np.random.Generator) -> _Requests:
    t, user = _arrivals(traffic, rng)
    n = len(t)
    candidate = _arms(traffic, t, user, rng)
    level, burst = _weather(traffic, t, rng)
    z = rng.standard_normal((2, n))
    z[1] = traffic.correlation * z[0] + math.sqrt(1 - traffic.correlation**2) * z[1]
    theirs = np.zeros(int(user.max(initial=-1)) + 1)
    if traffic.unit is Unit.USER:
        theirs = traffic.user_spread * rng.standard_normal(len(theirs))
    alike = np.exp(theirs[user])
    cold = candidate & (t >= 0) & (t < traffic.cold_s)
    latency = traffic.latency.at(z[0]) * level * (1 + burst) * alike
    latency *= np.where(candidate, traffic.latency_ratio, 1.0) * np.where(
        cold, traffic.cold_latency_ratio, 1.0
    )
    latency *= np.where(candidate & (rng.random(n) < traffic.tail_share), traffic.tail_ratio, 1.0)
    cost = traffic.cost.at(z[1]) * level * alike
    cost *= np.where(rng.random(n) < traffic.huge_share, traffic.huge_ratio, 1.0)
    cost *= np.where(candidate, traffic.cost_ratio, 1.0) * np.where(cold, traffic.cold_cost_ratio, 1.0)
    failing = traffic.error_rate * level * (1 + 9 * burst) * alike
    failing = failing * np.where(candidate, traffic.errors_ratio, 1.0)
    return _Requests(
        t=t,
        candidate=candidate,
        error=rng.random(n) < np.minimum(failing, 1.0),
        latency_s=np.minimum(latency, LATENCY_MAX_S),
        cost=cost,
        user=user,
    )


def _arrivals(traffic: Traffic, rng: np.random.Generator) -> tuple[Floats, NDArray[np.int64]]:
    """When requests begin, in order, and whose they are. Where drift is, their rate rises and falls."""
    per_user = max(traffic.requests_per_user, 1.0)
    peak = traffic.rate_rps * (1 + traffic.drift) / per_user
    lead_s = traffic.before_s + (10 * traffic.user_gap_s * per_user if per_user > 1 else 0.0)
    n = rng.poisson(peak * (lead_s + traffic.duration_s))
    begins = rng.uniform(-lead_s, traffic.duration_s, n)
    if traffic.drift:
        begins = begins[rng.random(n) * (1 + traffic.drift) < _level(traffic, begins)]
    if per_user <= 1:
        t = np.sort(begins)
        return t, np.arange(len(t))
    times = rng.geometric(1 / per_user, len(begins))
    user = np.repeat(np.arange(len(begins)), times)
    gaps = rng.exponential(traffic.user_gap_s, len(user))
    firsts = np.cumsum(times) - times
    waited = np.cumsum(gaps)
    t = np.repeat(begins - waited[firsts], times) + waited
    inside = np.flatnonzero((t >= -traffic.before_s) & (t < traffic.duration_s))
    inside = inside[np.argsort(t[inside], kind="stable")]
    return t[inside], user[inside]


def _arms(
    traffic: Traffic, t: Floats, user: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Each user has a place, and those below the share are the candidate's: whoever is, stays."""
    share = np.full(len(t), traffic.share)
    for since, each in traffic.steps:
        share[t >= since] = each
    places = rng.random(int(user.max(initial=-1)) + 1)
    return np.asarray((places[user] < share) & (t >= 0))


def _level(traffic: Traffic, t: Floats) -> Floats:
    return 1 + traffic.drift * np.sin(2 * math.pi * t / 300)


def _weather(traffic: Traffic, t: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """What both arms feel: a level, and whether there is a burst."""
    burst = np.zeros(len(t))
    for begin in rng.uniform(0, max(traffic.duration_s - 10, 1), traffic.bursts):
        burst[(t >= begin) & (t < begin + 10)] = 1.0
    return _level(traffic, t), burst


def _users(requests: _Requests, duration_s: float) -> _Requests:
    """One value a user, at the first request: whether any failed, and geometric means, within 20 s."""
    order = np.lexsort((requests.t, requests.user))
    user, t = requests.user[order], requests.t[order]
    firsts = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
    began = np.repeat(t[firsts], np.diff(np.r_[firsts, len(t)]))
    # Who was there before the candidate got traffic is no user of the canary: the first request came earlier.
    counted = t - began < USER_S
    number = np.cumsum(np.r_[True, user[1:] != user[:-1]]) - 1
    number, kept = number[counted], order[counted]
    n = len(firsts)
    good = ~requests.error[kept]
    answered = np.bincount(number[good], minlength=n)
    logs = np.bincount(number[good], weights=np.log(requests.latency_s[kept][good]), minlength=n)
    bills = np.bincount(number, weights=np.log(requests.cost[kept]), minlength=n)
    failed = np.bincount(number[~good], minlength=n) > 0
    whole = t[firsts] + USER_S <= duration_s
    chosen = order[firsts]
    return _Requests(
        t=t[firsts][whole],
        candidate=requests.candidate[chosen][whole],
        error=failed[whole],
        latency_s=np.exp(logs / np.maximum(answered, 1))[whole],
        cost=np.exp(bills / np.bincount(number, minlength=n))[whole],
        user=requests.user[chosen][whole],
    )


def _histograms(arms: NDArray[np.int64], values: Floats, n: int) -> list[Histogram]:
    buckets = np.clip(np.floor(np.log(values) / math.log(GROWTH)).astype(np.int64), LOWEST, HIGHEST)
    keys, counts = np.unique(arms * _BUCKETS + buckets - LOWEST, return_counts=True)
    totals = np.bincount(arms, weights=values, minlength=n)
    ends = np.searchsorted(keys, np.arange(n + 1) * _BUCKETS)
    found = []
    for each in range(n):
        inside = slice(ends[each], ends[each + 1])
        there = (keys[inside] - each * _BUCKETS + LOWEST).tolist()
        found.append(
            Histogram(
                counts=dict(zip(there, counts[inside].tolist(), strict=True)), total=float(totals[each])
            )
        )
    return found


def information_nats(traffic: Traffic) -> float:
    """What one request of the candidate, and its share of the baseline's, tell of the harm, in nats.

    With log(1 / alpha) over it: the fewest requests of the candidate that any test of concurrent traffic
    with that false-rollback rate needs on average (Wald 1945). It is the mutual information of arm and
    outcome over the share: KL(f1 || m) + (1 - share) / share KL(f0 || m), m the mixture of both laws. Of
    the metric that is worse; of latency and cost together where both are. `ValueError` where these are not
    lognormal.
    """
    if {traffic.latency.family, traffic.cost.family} != {Family.LOGNORMAL}:
        raise ValueError("the information is known of lognormal laws only")
    p, q = traffic.error_rate, min(traffic.error_rate * traffic.errors_ratio, 1.0)
    told = _told(np.array([p, 1 - p]), np.array([q, 1 - q]), traffic.share)
    s_x, s_y = traffic.latency.spread, traffic.cost.spread
    x, y = np.meshgrid(np.linspace(-7, 10, 681), np.linspace(-7, 11, 721), indexing="ij")
    huge = math.log(traffic.huge_ratio) / s_y
    slow = math.log(traffic.tail_ratio) / s_x
    a, b = math.log(traffic.latency_ratio) / s_x, math.log(traffic.cost_ratio) / s_y
    baseline = _mixture(x, y, traffic, (0.0, 0.0, huge, 0.0, 0.0))
    candidate = _mixture(x, y, traffic, (a, b, huge, slow, traffic.tail_share))
    is_slower, is_dearer = bool(a or slow * traffic.tail_share), bool(b)
    if is_slower != is_dearer:  # how it moves away from the other metric is nothing that its own law shows
        axis = 1 if is_slower else 0
        candidate, baseline = candidate.sum(axis=axis), baseline.sum(axis=axis)
    return told + (1 - q) * _told(baseline / baseline.sum(), candidate / candidate.sum(), traffic.share)


def _told(baseline: Floats, candidate: Floats, share: float) -> float:
    mixture = np.maximum(share * candidate + (1 - share) * baseline, 1e-300)
    of_candidate = candidate * np.log(np.maximum(candidate, 1e-300) / mixture)
    of_baseline = baseline * np.log(np.maximum(baseline, 1e-300) / mixture)
    return float(of_candidate.sum() + (1 - share) / share * of_baseline.sum())


def _mixture(
    x: Floats, y: Floats, traffic: Traffic, places: tuple[float, float, float, float, float]
) -> Floats:
    a, b, huge, slow, slow_share = places
    total = np.zeros_like(x)
    for dx, in_x in ((0.0, 1 - slow_share), (slow, slow_share)):
        for dy, in_y in ((0.0, 1 - traffic.huge_share), (huge, traffic.huge_share)):
            if in_x * in_y:
                total += in_x * in_y * _normal(x - a - dx, y - b - dy, traffic.correlation)
    return total


def _normal(x: Floats, y: Floats, correlation: float) -> Floats:
    rest = 1 - correlation**2
    exponent = -(x * x - 2 * correlation * x * y + y * y) / (2 * rest)
    return np.asarray(np.exp(exponent) / (2 * math.pi * math.sqrt(rest)))
