"""How a golden case fared before: which answers it had, and whether they agree.

What is compared never decides how it is compared: an answer that is part of a comparison may not choose how
often its case is asked, or chance would be counted twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence
from dataclasses import dataclass

KEPT_MAX = 50
"""So many answers of one case are remembered; older ones are forgotten."""
SWINGS_MIN = 2
"""A case that was met, missed, and met again is unstable; one that changed once may have been changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One answer to a case, and how well it met it."""

    key: str
    """Of the question that was asked."""
    asked_at: str
    """RFC 3339: together with the key it names the answer."""
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Past:
    """All answers to one case that are remembered, oldest first."""

    scored: tuple[Scored, ...] = ()

    def without(self, compared: Container[tuple[str, str]]) -> Past:
        """The same less the answers that are compared now, named by key and time."""
        return Past(scored=tuple(each for each in self.scored if (each.key, each.asked_at) not in compared))

    @property
    def is_unstable(self) -> bool:
        """Whether equal questions had unequal answers, or scores went up and down."""
        by_key: dict[str, set[float]] = {}
        for each in self.scored:
            by_key.setdefault(each.key.partition("#")[0], set()).add(each.score)
        if any(len(scores) > 1 for scores in by_key.values()):
            return True
        scores = [each.score for each in self.scored]
        return sum(one != other for one, other in itertools.pairwise(scores)) >= SWINGS_MIN

    @property
    def rate(self) -> float:
        """The mean score; 1 where nothing is remembered."""
        return sum(each.score for each in self.scored) / len(self.scored) if self.scored else 1.0

    @property
    def swing(self) -> float:
        """How likely two answers differ, as far as scores tell: 0 for a case that never changed."""
        return 2 * self.rate * (1 - self.rate)


def short(key: str) -> str:
    """The key of a question as histories say it: 64 bits tell the answers to one case apart."""
    digest, _, sample = key.partition("#")
    return f"{digest[:16]}#{sample}" if sample else digest[:16]


def merged(before: Sequence[Scored], after: Sequence[Scored]) -> tuple[Scored, ...]:
    """Both, each answer once, oldest first, at most `KEPT_MAX`."""
    known = {(each.key, each.asked_at): each for each in (*before, *after)}
    return tuple(sorted(known.values(), key=lambda each: each.asked_at))[-KEPT_MAX:]
