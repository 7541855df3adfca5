"""When enough is known: looks at a growing sample that together err no more often than one look at its end.

Each look spends a part of the error that was declared, by how much of the sample is there (Lan and DeMets
1983, Biometrika 70:659; the family of Kim and DeMets 1987, Biometrika 74:149). What a look may spend becomes
its own confidence by the joint law of the looks (Armitage, McPherson, and Rowe 1969, JRSS A 132:235).
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from deploy_gates.core import stats
from deploy_gates.core.stats import Conclusion, Pair, Paired

SHARES = (0.02, 0.03, 0.045, 0.065, 0.09, 0.12, 0.16, 0.21, 0.27, 0.35, 0.45, 0.57, 0.7, 0.84, 1.0)
"""After so much of the sample one looks, and as soon as not a single change would prove safety."""
CASES_MIN = 500
"""With fewer cases than these, looking early costs more in proof than in calls."""
LOOK_MIN = 20
SPENDING = 0.8
"""The exponent by which the error of a proof of safety is spent: less than 1 is sooner than in proportion to
what is known, for a change that changes nothing. That of a proof of harm is spent in proportion."""
GRID = 80
REACH = 6.0
"""So far out are chances still counted, in standard errors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What one look may conclude: all together have the confidence that was declared."""

    cases: int
    """After so many."""
    safe: float | None
    """The confidence of a proof of safety; `None`: so few could not prove it even if nothing changed at all,
    and what is not spent here is there for the looks to come."""
    harmful: float
    """That of a proof of harm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped:
    """What the first look that decides has found, or the last one."""

    cases: int
    """So many cases it rests on."""
    found: Paired


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What the order needs to know of a case."""

    id: str
    cluster: str = ""
    kind: str = ""
    """Cases of one kind are alike as far as anybody knows: stable ones, ones that are always missed."""


@functools.lru_cache(maxsize=4)
def order(cases: tuple[Case, ...], seed: str) -> tuple[str, ...]:
    """In which order cases are asked: by chance, what belongs together together, each kind in its share.

    `seed` makes it another order for another change: nobody can arrange cases so that a kind comes late.
    """
    kinds: dict[str, dict[str, list[str]]] = {}
    for case in cases:
        together = case.cluster or f"\0{case.id}"
        kinds.setdefault(case.kind, {}).setdefault(together, []).append(case.id)
    placed: list[tuple[float, str, str]] = []
    for kind, clusters in kinds.items():
        shuffled = sorted(clusters, key=lambda each: _digest(seed, each))
        start = int(_digest(seed, f"\1{kind}")[:8], 16) / 16**8
        for at, cluster in enumerate(shuffled):
            place = (at + start) / len(shuffled)
            placed += [(place, cluster, each) for each in clusters[cluster]]
    first: dict[str, float] = {}
    for place, cluster, _ in placed:
        first[cluster] = min(place, first.get(cluster, place))
    return tuple(case for *_, case in sorted((first[cluster], cluster, case) for _, cluster, case in placed))


@functools.cache
def looks(n: int, *, margin: float, confidence: float) -> tuple[Look, ...]:
    """When one looks at `n` cases; once, at the end, where they are few."""
    if n < CASES_MIN:
        return (Look(cases=n, safe=confidence, harmful=confidence),)
    error = 1 - confidence
    counts = {math.ceil(share * n) for share in SHARES if share * n >= LOOK_MIN}
    soonest = next((k for k in range(LOOK_MIN, n) if (1 - margin) ** k <= _spent(k / n, error)), n)
    counts = {each for each in counts if abs(each - soonest) > soonest / 10 or each == n} | {soonest}
    shares = tuple(each / n for each in sorted(counts))
    safe = tuple(_spent(share, error) if share * n >= soonest else 0.0 for share in shares)
    harmful = tuple(error * share for share in shares)
    levels = zip(sorted(counts), _confidences(shares, safe), _confidences(shares, harmful), strict=True)
    return tuple(Look(cases=cases, safe=one, harmful=other or confidence) for cases, one, other in levels)


def decide(pairs: Sequence[Pair], *, n: int, margin: float, confidence: float, since: int = 0) -> Stopped:
    """What the looks at the first pairs of `n` say; the last one that is due speaks if none decides.

    `pairs` are in the order in which they were asked, without a gap. Looks at no more than `since` of them
    have not decided, and are not taken again.
    """
    planned = looks(n, margin=margin, confidence=confidence)
    look = planned[0]
    for look in [each for each in planned if since < each.cases <= len(pairs)]:
        found = _seen(pairs[: look.cases], look, margin)
        if found.conclusion is not Conclusion.UNDECIDED:
            return Stopped(cases=look.cases, found=found)
    found = _seen(pairs, look, margin)
    if len(pairs) < n:  # between two looks nothing is decided
        found = stats.undecided(found)
    return Stopped(cases=len(pairs), found=found)


def _seen(pairs: Sequence[Pair], look: Look, margin: float) -> Paired:
    found = stats.paired(pairs, margin=margin, confidence=look.safe or look.harmful, harmful=look.harmful)
    is_too_soon = found.conclusion is Conclusion.NO_WORSE and look.safe is None
    return stats.undecided(found) if is_too_soon else found


def _spent(share: float, error: float) -> float:
    """How much of the error proofs of safety may have used up by then."""
    return error * math.pow(share, SPENDING)


def _digest(seed: str, text: str) -> str:
    return hashlib.sha256(f"{seed}\0{text}".encode()).hexdigest()


# --- What each look may say ---------------------------------------------------------------------


@functools.cache
def _confidences(shares: tuple[float, ...], spent: tuple[float, ...]) -> tuple[float | None, ...]:
    """Such that no effect crosses at a look as often as it may spend; `None` where that is never."""
    normal = NormalDist()
    found: list[float | None] = []
    before = last = 0.0
    points: list[tuple[float, float]] = [(0.0, 1.0)]
    """The chance of each value of the sum, among those that have not crossed."""
    for share, until in zip(shares, spent, strict=True):
        if until <= last:
            found.append(None)
            continue
        bound = _crossing(points, share - before, until - last)
        found.append(normal.cdf(bound / math.sqrt(share)))
        points = _moved(points, share - before, bound, low=-REACH * math.sqrt(share))
        before, last = share, until
    return tuple(found)


def _crossing(points: Sequence[tuple[float, float]], step: float, may: float) -> float:
    """The sum that is exceeded after this step with the chance `may`."""
    spread = math.sqrt(step)

    def exceeds(bound: float) -> float:
        return math.fsum(
            chance * 0.5 * math.erfc((bound - at) / (spread * math.sqrt(2))) for at, chance in points
        )

    low, high = -REACH, REACH
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if exceeds(middle) > may else (low, middle)
    return high


def _moved(
    points: Sequence[tuple[float, float]], step: float, bound: float, low: float
) -> list[tuple[float, float]]:
    """The law after this step of what stays below the bound, on a grid whose cells keep their chances."""
    spread, width = math.sqrt(step), (bound - low) / GRID

    def below(edge: float) -> Callable[[float], float]:
        return lambda at: 0.5 * math.erfc((at - edge) / (spread * math.sqrt(2)))

    edges = [low + cell * width for cell in range(GRID + 1)]
    masses = [math.fsum(chance * below(edge)(at) for at, chance in points) for edge in edges]
    return [
        (low + (cell + 0.5) * width, masses[cell + 1] - masses[cell] + (masses[0] if cell == 0 else 0.0))
        for cell in range(GRID)
    ]
