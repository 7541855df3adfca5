"""Are these answers no worse than those? Paired scores, one-sided bounds, and a word that can be trusted.

Only the share of cases that got worse and the share that got better carry news: two rates compared without
pairing throw it away. Every bound here errs towards not knowing. Shares and scores are between 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import NormalDist

MORE_MAX = 1_000_000
"""A question that so many more cases would not decide is not decided by cases."""
SUMS_MAX = 1024
"""So many different sums are counted one by one when signs are flipped; what is left is nearly normal."""
NEAR = 1e-9
"""Amounts that differ by no more than this, relatively, are the same amount."""
WEIGHT_LEAST, WEIGHT_MOST = 1e-6, 1e6
"""What a case may weigh: squares of such weights are far from where numbers end."""


class Conclusion(StrEnum):
    """What the pairs say."""

    NO_WORSE = "no worse"
    """The loss is smaller than the margin: proved."""
    WORSE = "worse"
    """There is a loss: proved, and its being smaller than the margin is not."""
    UNDECIDED = "undecided"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One case under both configs."""

    baseline: float
    candidate: float
    weight: float = 1.0
    cluster: str = ""
    """Cases of one cluster rise and fall together; empty: a cluster of its own."""
    same_request: bool = False
    """The identical request, judged by identical checks: the scores cannot differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """Two one-sided bounds, each of them at the confidence that was asked for."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Paired:
    """Baseline and candidate on the same cases."""

    n: int
    clusters: int
    baseline: float
    candidate: float
    delta: float
    """Candidate less baseline, weighted."""
    low: float
    """At worst: the true difference is at least this, at the confidence asked for."""
    high: float
    better: int
    worse: int
    p_worse: float
    """How likely so much loss, or more, would be if nothing had changed."""
    effective_n: float
    """As many independent cases of equal weight would say as much."""
    conclusion: Conclusion


def paired(
    pairs: Sequence[Pair], *, margin: float, confidence: float, harmful: float | None = None
) -> Paired:
    """Whether the candidate loses less than `margin`; each of its errors has at most `1 - confidence`.

    `harmful` is the confidence of a finding that it is worse, where that is another one.
    `ValueError` for no pairs, for scores outside 0..1, and for weights outside a millionth to a million.
    """
    _check(pairs, margin, confidence)
    moments = _moments(pairs)
    low, high = moments.low(confidence), -moments.swapped().low(confidence)
    p_worse = _sign_flips(moments.by_cluster)
    if all(pair.same_request for pair in pairs):
        low = high = 0.0  # nothing was drawn by chance: there is no luck to allow for
    conclusion = Conclusion.UNDECIDED
    if low >= -margin:
        conclusion = Conclusion.NO_WORSE
    elif p_worse < 1 - (harmful or confidence):
        conclusion = Conclusion.WORSE
    total = math.fsum(pair.weight for pair in pairs)
    return Paired(
        n=len(pairs),
        clusters=len(moments.by_cluster),
        baseline=math.fsum(pair.weight * pair.baseline for pair in pairs) / total,
        candidate=math.fsum(pair.weight * pair.candidate for pair in pairs) / total,
        delta=moments.delta,
        low=low,
        high=high,
        better=sum(pair.candidate > pair.baseline for pair in pairs),
        worse=sum(pair.candidate < pair.baseline for pair in pairs),
        p_worse=p_worse,
        effective_n=min(float(len(pairs)), moments.size),
        conclusion=conclusion,
    )


def undecided(found: Paired) -> Paired:
    """The same, where it is not time to conclude."""
    return replace(found, conclusion=Conclusion.UNDECIDED)


def more_needed(
    pairs: Sequence[Pair], *, margin: float, confidence: float, or_worse: bool = True
) -> int | None:
    """About how many more cases like these would decide; 0 if these do, `None` if no number would.

    Taken at the shares observed, so it is as likely too few as too many. Without `or_worse`, only a proof
    that it is no worse decides.
    """
    found = paired(pairs, margin=margin, confidence=confidence)
    if found.conclusion is Conclusion.NO_WORSE or (or_worse and found.conclusion is Conclusion.WORSE):
        return 0
    moments = _moments(pairs)
    z = NormalDist().inv_cdf(confidence)
    lost = -math.fsum(moments.by_cluster)
    spread = math.sqrt(math.fsum(each * each for each in moments.by_cluster))

    def decides(n: int) -> bool:
        times = n / len(pairs)
        if or_worse and lost * math.sqrt(times) > z * spread:
            return True
        return moments.low(confidence, times) >= -margin

    few, many = len(pairs), 2 * len(pairs)
    while not decides(many):
        few, many = many, many * 2
        if few - len(pairs) > MORE_MAX:
            return None
    while many - few > max(1, few // 100):
        middle = (few + many) // 2
        few, many = (few, middle) if decides(middle) else (middle, many)
    return many - len(pairs)


def hidden(pairs: Sequence[Pair], confidence: float) -> float:
    """So large a loss these could hide even if not a single one had changed: a share of 1."""
    return -paired(
        [replace(pair, candidate=pair.baseline) for pair in pairs], margin=0, confidence=confidence
    ).low


def samples_needed(n: int, more: int) -> int:
    """How many samples more of each of `n` cases say as much as `more` cases, where chance alone varies."""
    return -(-more // n)


def holm(chances: Mapping[str, float]) -> dict[str, float]:
    """Each chance, corrected for how many there are: Holm 1979, step down."""
    made: dict[str, float] = {}
    least = 0.0
    for at, (name, chance) in enumerate(sorted(chances.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, (len(chances) - at) * chance))
        made[name] = least
    return made


def detectable(n: float, discordant_share: float, confidence: float, power: float = 0.8) -> float | None:
    """The smallest loss, in points, that `n` cases prove with this power; `None` if not even a total one.

    Connor 1987, Biometrics 43:207: n = (z_α √ψ + z_β √(ψ - δ²))² / δ², solved for δ, ψ being the share of
    cases that change, which is at least δ.
    """
    if not n > 0 or not 0 <= discordant_share <= 1 or not 0 < power < 1:
        raise ValueError(f"no cases, share, or power: {n}, {discordant_share}, {power}")
    z_alpha, z_beta = NormalDist().inv_cdf(confidence), NormalDist().inv_cdf(power)

    def needed(loss: float) -> float:
        share = max(discordant_share, loss)
        return (z_alpha * math.sqrt(share) + z_beta * math.sqrt(share - loss * loss)) ** 2 / (loss * loss)

    if needed(1.0) > n:
        return None
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if needed(middle) <= n else (middle, high)
    return 100 * high


def wilson(k: float, n: float, confidence: float) -> Interval:
    """Bounds of one rate: the score interval of Wilson 1927, JASA 22:209."""
    if not n > 0 or not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is no rate")
    z, rate = NormalDist().inv_cdf(confidence), k / n
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(low=0.0 if k == 0 else middle - half, high=1.0 if k == n else middle + half)


def clopper_pearson(k: float, n: float, confidence: float) -> Interval:
    """Bounds of one rate that never promise too much: Clopper and Pearson 1934, Biometrika 26:404.

    `k` and `n` need not be whole, which carries the bound over to scores and weights.
    """
    if not n > 0 or not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is no rate")
    return _beta_bounds(k, n, confidence, lean=1.0)


def difference_low(better: float, worse: float, n: float, confidence: float) -> float:
    """The lower bound of (better - worse) / n, where so many of `n` cases changed for better and for worse.

    Square-and-add (Newcombe 1998, Statistics in Medicine 17:2635, method 10) of two rates of one sample, with
    Clopper-Pearson limits in place of Wilson's: without a single change it is the rule of three. Enumerated
    over n = 10..1000, margins of 1 to 10 pt, and every share of changes, the chance of passing a loss as
    large as the margin stays below 5.0 % at a confidence of 95 %; that of Tango's score interval (1998,
    Statistics in Medicine 17:891), which is a little narrower, reaches 6.8 %.
    """
    gained, lost = clopper_pearson(better, n, confidence), clopper_pearson(worse, n, confidence)
    return _square_and_add(better / n, worse / n, gained.low, lost.high)


def _square_and_add(gain: float, loss: float, least_gain: float, most_loss: float) -> float:
    below, above = gain - least_gain, most_loss - loss
    # What gets worse does not get better: the two shares are negatively correlated, which widens.
    against = math.sqrt(gain * loss / ((1 - gain) * (1 - loss))) if 0 < gain < 1 and 0 < loss < 1 else 0.0
    return max(-1.0, gain - loss - math.sqrt(below**2 + above**2 + 2 * against * below * above))


def _beta_bounds(k: float, n: float, confidence: float, lean: float) -> Interval:
    """Bounds of a rate from the beta law; at no success and at no failure they are Clopper and Pearson's.

    `lean` 1 is theirs everywhere, 0.5 would be Jeffreys's. What lies between never promises too much where
    counts are not whole: there is no step from one count to the next to be allowed for.
    """
    low = 0.0 if k <= 0 else beta_quantile(1 - confidence, k + 1 - lean, n - k + lean)
    if k >= n:
        return Interval(low=low, high=1.0)
    lean = lean if k > 0 else 1.0
    return Interval(low=low, high=beta_quantile(confidence, k + lean, n - k + 1 - lean))


def mcnemar(better: int, worse: int) -> float:
    """How likely so many worse among those that changed are by luck: one-sided mid-p of McNemar's test.

    Fagerland, Lydersen, and Laake 2013, BMC Medical Research Methodology 13:91.
    """
    changed = better + worse
    if changed == 0:
        return 1.0
    at_least = 1.0 if worse == 0 else beta_cdf(0.5, worse, changed - worse + 1)
    equal = math.exp(_ln_choose(changed, worse) - changed * math.log(2))
    return min(1.0, at_least - equal / 2)


# --- What all pairs say together ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Moments:
    """All that the bounds need to know of the pairs."""

    delta: float
    gain: _Side
    loss: _Side
    size: float
    """So many independent yes-or-no cases would say as much of what changed at all."""
    is_plain: bool
    """Yes or no, equal weights, no clusters: the shares are binomial and need no estimate of variance."""
    lean: float
    clusters: tuple[float, ...]
    """What each weighs, the heaviest first; empty where all are single cases that weigh the same."""
    alone: float
    """So many cases of equal weight would say as much if each were a cluster of its own."""
    error: float
    """The cluster-robust standard error of `delta`."""
    freedom: float
    by_cluster: tuple[float, ...]
    """What each cluster won or lost."""

    def swapped(self) -> _Moments:
        """The same with baseline and candidate exchanged."""
        return replace(self, delta=-self.delta, gain=self.loss, loss=self.gain)

    def low(self, confidence: float, times: float = 1.0) -> float:
        """The lower bound of the difference if there were `times` as many cases like these.

        Not plain: the worse of two, for each fails where the other holds. The cluster-robust t bound knows
        how the clusters differ, and is far too narrow where few of them changed; the one of the beta law at
        the effective sizes is not, and takes the correlation for known. It is widened by what clusters that
        fail as a whole could cost though none did so far. Simulated over clusters of equal and unequal size,
        weights, and scores, and over losses by whole clusters, by the large ones alone, by single cases, and
        by both, a loss as large as the margin passes in at most 5 % of the runs, give or take their luck.
        """
        if self.is_plain:
            size = self.size * times
            return difference_low(self.gain.mean * size, self.loss.mean * size, size, confidence)
        least_gain = self.gain.bounds(confidence, times, self.lean).low
        most_loss = self.loss.bounds(confidence, times, self.lean).high
        exact = _square_and_add(self.gain.mean, self.loss.mean, least_gain, most_loss)
        error = (1 - confidence) ** (1 / times)
        seen = 1 - error ** (1 / self.alone)
        if self.clusters:
            widened = (self.delta - exact) ** 2 + max(0.0, _unseen(self.clusters, error) ** 2 - seen**2)
            exact = self.delta - math.sqrt(widened)
        else:  # what was lost in part only is no better known than where nothing was
            exact = min(exact, -seen)
        freedom = (self.freedom + 1) * times - 1
        if freedom <= 0:
            return -1.0
        robust = self.delta - t_quantile(confidence, freedom) * self.error / math.sqrt(times)
        return max(-1.0, min(exact, robust))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Side:
    """What was won, or what was lost: a mean that varies as so many of so many yes-or-no cases do."""

    mean: float
    """Weighted, a share of 1."""
    count: float
    size: float

    def bounds(self, confidence: float, times: float, lean: float) -> Interval:
        found = _beta_bounds(self.count * times, self.size * times, confidence, lean)
        share = self.count / self.size
        return Interval(
            low=min(self.mean, self.mean - share + found.low), high=self.mean - share + found.high
        )


def _unseen(clusters: Sequence[float], chance: float) -> float:
    """The largest mean loss by clusters that fail as a whole none of which is seen, as likely as `chance`.

    Which of them fail is not known, so it is those at which that is largest: Σ w p, given Π (1 - p), is
    largest where clusters of more than a certain weight v fail with the chance 1 - v / w, and others never.
    """
    logs = 0.0
    for at, weight in enumerate(clusters, start=1):
        logs += math.log(weight)
        least = math.exp((logs + math.log(chance)) / at)
        if at == len(clusters) or clusters[at] <= least:
            break
    return math.fsum(each - least for each in clusters[:at]) / math.fsum(clusters)


FRACTIONS_LEAN = 3 / 4
WHOLE = 0.1
"""Changes of fractions are taken to vary as if so much of a whole case more had changed: large ones are rare.

Both are calibrated by simulation over sizes, rates, samples, and kinds of loss: one as large as the margin
passes in about 5 % of the runs where that is most likely, and in fewer elsewhere."""


def _moments(pairs: Sequence[Pair]) -> _Moments:
    """Sums by cluster: Liang and Zeger 1986, Biometrika 73:13, with G/(G-1) for few clusters; effective
    numbers of unequal weights by Kish 1965, Survey Sampling, § 8.2 and § 11.7.
    """
    weights, won = _by_cluster(pairs)
    total, clusters = math.fsum(weights), len(weights)
    delta = math.fsum(won) / total
    squares = math.fsum(weight**2 for weight in weights)
    changes = [pair.candidate - pair.baseline for pair in pairs]
    gains, losses = [max(0.0, each) for each in changes], [max(0.0, -each) for each in changes]
    is_even = clusters == len(pairs) and all(pair.weight == pairs[0].weight for pair in pairs)
    if is_even:
        gain, loss = _fractions(gains), _fractions(losses)
    else:  # what is won within a cluster makes up for what is lost there
        size = _size(pairs, changes, unseen=0.0)
        gain, loss = (
            _Side(mean=mean, count=mean * size, size=size)
            for mean in (_mean(pairs, gains), _mean(pairs, losses))
        )
    residuals = math.fsum((d - delta * weight) ** 2 for d, weight in zip(won, weights, strict=True))
    return _Moments(
        delta=delta,
        gain=gain,
        loss=loss,
        size=_size(pairs, changes),
        is_plain=is_even
        and all(score in (0, 1) for pair in pairs for score in (pair.baseline, pair.candidate)),
        lean=FRACTIONS_LEAN if is_even else 1.0,
        clusters=() if is_even else tuple(sorted(weights, reverse=True)),
        alone=total**2 / math.fsum(pair.weight**2 for pair in pairs),
        error=math.sqrt(residuals * clusters / (clusters - 1)) / total if clusters > 1 else 0.0,
        freedom=total**2 / squares - 1,
        by_cluster=tuple(won),
    )


def _mean(pairs: Sequence[Pair], changes: Sequence[float]) -> float:
    weighted = math.fsum(pair.weight * each for pair, each in zip(pairs, changes, strict=True))
    return weighted / math.fsum(pair.weight for pair in pairs)


def _fractions(changes: Sequence[float]) -> _Side:
    """As many yes-or-no cases as vary and lean to one side like these: the same second and third moment.

    By the second alone, many small changes hide how far off a few large ones can be.
    """
    squares = math.fsum(each**2 for each in changes) + WHOLE
    unit = (math.fsum(each**3 for each in changes) + WHOLE) / squares
    n = len(changes)
    return _Side(mean=math.fsum(changes) / n, count=squares / unit**2, size=n / unit)


def _size(pairs: Sequence[Pair], changes: Sequence[float], unseen: float = 1.0) -> float:
    """How many yes-or-no cases on their own would vary as little as these changes do by cluster.

    As if one cluster more that is `unseen` had changed as a whole: where nothing changed, only clusters
    count. Without it, what was seen of clusters counts alone, and cases vary no less than on their own.
    """
    mean, (weights, parts) = _mean(pairs, changes), _by_cluster(pairs, changes)
    squares, own_squares = (math.fsum(w * w for w in all_) for all_ in (weights, [p.weight for p in pairs]))
    weighed = list(zip((pair.weight for pair in pairs), changes, strict=True))
    spread = math.fsum((d - mean * weight) ** 2 for d, weight in zip(parts, weights, strict=True))
    if not unseen:
        spread = max(spread, math.fsum((weight * (each - mean)) ** 2 for weight, each in weighed))
    independent = math.fsum(weight**2 * abs(each) for weight, each in weighed) - mean**2 * own_squares
    expected = max(0.0, independent) + unseen * own_squares / len(weights)
    varies = (spread + unseen * squares / len(weights)) / expected if expected else 1.0
    # At most as much as perfect correlation would make of it; that, where all changed alike: none was seen.
    alike = squares / own_squares
    return math.fsum(weights) ** 2 / own_squares / (min(varies, alike) if varies > NEAR else alike)


def _by_cluster(
    pairs: Sequence[Pair], changes: Sequence[float] | None = None
) -> tuple[list[float], list[float]]:
    """The weight of each cluster, and what it won; or the sum of other `changes`, one a pair."""
    weights: dict[str | int, float] = {}
    won: dict[str | int, float] = {}
    for at, pair in enumerate(pairs):
        key = pair.cluster or at
        change = pair.candidate - pair.baseline if changes is None else changes[at]
        weights[key] = weights.get(key, 0.0) + pair.weight
        won[key] = won.get(key, 0.0) + pair.weight * change
    return list(weights.values()), list(won.values())


def _sign_flips(won: Sequence[float]) -> float:
    """How likely a sum as low as this is, were each cluster as likely to win what it lost: mid-p.

    Fisher's sign-flip test (1935, The Design of Experiments, § 21), exact for the largest amounts and with
    the normal limit for the rest, if any. Where all amounts are equal, it is McNemar's.
    """
    amounts = sorted((abs(each) for each in won if each), reverse=True)
    if not amounts:
        return 1.0
    if amounts[0] - amounts[-1] <= NEAR * amounts[0]:
        lost = sum(each < 0 for each in won)
        return mcnemar(len(amounts) - lost, lost)
    grain = NEAR * amounts[0]  # sums are counted in grains, so that equal ones meet
    chances = {0: 1.0}
    while amounts and len(chances) <= SUMS_MAX:
        step = round(amounts.pop(0) / grain)
        following: dict[int, float] = {}
        for total, chance in chances.items():
            for moved in (total - step, total + step):
                following[moved] = following.get(moved, 0.0) + chance / 2
        chances = following
    observed = round(math.fsum(won) / grain)
    spread = math.sqrt(math.fsum(each * each for each in amounts)) / grain

    def below(total: int) -> float:
        if spread:
            return NormalDist(0, spread).cdf(observed - total)
        return 0.5 if abs(observed - total) <= len(won) else float(total < observed)

    return math.fsum(chance * below(total) for total, chance in chances.items())


def _check(pairs: Sequence[Pair], margin: float, confidence: float) -> None:
    if not pairs:
        raise ValueError("no pairs: nothing can be said of nothing")
    if not 0 <= margin <= 1 or not 0.5 < confidence < 1:
        raise ValueError(f"a margin of {margin} at a confidence of {confidence} makes no sense")
    for pair in pairs:
        if not (0 <= pair.baseline <= 1 and 0 <= pair.candidate <= 1):
            raise ValueError(f"scores are between 0 and 1: {pair}")
        if not WEIGHT_LEAST <= pair.weight <= WEIGHT_MOST:
            raise ValueError(f"weights are between {WEIGHT_LEAST:g} and {WEIGHT_MOST:g}: {pair}")
        if pair.same_request and pair.baseline != pair.candidate:
            raise ValueError(f"the same request with the same checks has one score: {pair}")


# --- Distributions ------------------------------------------------------------------------------


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_x(a, b): DLMF 8.17.22, evaluated by Lentz's method."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_cdf(1 - x, b, a)
    tiny = 1e-300
    d = 1 / _not_zero(1 - (a + b) * x / (a + 1), tiny)
    c, fraction = 1.0, d
    for m in range(1, 100_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _not_zero(1 + term * d, tiny)
            c = _not_zero(1 + term / c, tiny)
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(a * math.log(x) + b * math.log1p(-x) - _ln_beta(a, b)) * fraction / a


def beta_quantile(p: float, a: float, b: float) -> float:
    """The x at which I_x(a, b) is `p`: Newton's method, held between bounds that only close in."""
    low, high, x = 0.0, 1.0, a / (a + b)
    for _ in range(200):
        gap = beta_cdf(x, a, b) - p
        low, high = (low, x) if gap > 0 else (x, high)
        density = math.exp((a - 1) * math.log(x) + (b - 1) * math.log1p(-x) - _ln_beta(a, b))
        following = x - gap / density if density > 0 else -1.0
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - x) <= 1e-13 * x or not 0 < following < 1:
            break
        x = following
    return x


def t_quantile(p: float, freedom: float) -> float:
    """Student's t, for p of at least a half: t² / (t² + ν) is a beta variable. DLMF 8.17 with a = ν/2."""
    x = beta_quantile(2 * (1 - p), freedom / 2, 0.5)
    return math.sqrt(freedom * (1 - x) / x)


def _ln_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _ln_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _not_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
