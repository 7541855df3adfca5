"""Pictures of canaries: each is worked out as far as somebody has looked, and shared by whoever looks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from deploy_gates.core.promotion import Deployment, Event, Kind
from deploy_gates.core.release import PRODUCTION, Act, Promotion, Status
from deploy_gates.store import Store

if TYPE_CHECKING:
    from deploy_gates.canary.watching import Following
    from deploy_gates.core.canary import Decision

KEPT_MAX = 32
"""So many canaries are remembered; one that is looked at again is worked out again."""
LOOKS_MAX = 720
"""Of a longer canary every second look is left out."""
REPORTED = timedelta(seconds=30)
"""So long after its end the last of a canary may still be told: users are judged late."""
LACKING = "pip install 'pytest-deploy-gates[canary]'"


@dataclass(eq=False)
class _Kept:
    following: Following
    lock: threading.Lock = field(default_factory=threading.Lock)
    history: list[Decision] = field(default_factory=list)
    drawn: str = ""
    """The picture of all of it; empty: something came since."""


class Pictures:
    """The canaries of one store. May be used by many threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, bool], _Kept] = OrderedDict()

    def drawn(self, promotion: Promotion) -> str:
        """The analysis as a part of a page; empty where there was no canary, or nothing to see yet.

        `ImportError` where what it takes is not installed.
        """
        begun = promotion.outcome(Act.CANARY, PRODUCTION)
        if begun is None or begun.status is not Status.DONE:
            return ""
        from deploy_gates.report import analysis

        kept = self._of(promotion, int(str(begun.data.get("to", 0))))
        if kept is None:
            return ""
        with kept.lock:
            self._look(kept)
            history = [each for each in kept.history if each.started_ms is not None]
            if history and not kept.drawn:
                kept.drawn = analysis.fragment(history)
            return kept.drawn

    def _of(self, promotion: Promotion, revision: int) -> _Kept | None:
        key = promotion.id, _has_ended(promotion)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                return kept
        following = self._following(promotion, revision)
        if following is None:
            return None
        with self._lock:
            kept = self._kept.setdefault(key, _Kept(following))
            while len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)
            return kept

    def _following(self, promotion: Promotion, revision: int) -> Following | None:
        from deploy_gates.canary.watching import Following
        from deploy_gates.ship.judging import Judging

        events = self._store.history(promotion.release.config, PRODUCTION, after=revision - 1, limit=1)
        if not events or events[0].kind != Kind.CANARY:
            return None
        judging = Judging.of(promotion, PRODUCTION)
        analysis = promotion.outcome(Act.ANALYSIS, PRODUCTION)
        until = None
        if _has_ended(promotion):
            until = (analysis.at if analysis else promotion.concluded_at or events[0].at) + (
                timedelta() if analysis else REPORTED
            )
        return Following(
            self._store,
            judging.plan,
            _as_begun(events[0]),
            judging.source,
            unit=judging.unit,
            delay_s=judging.delay_s,
            until=until,
        )

    def _look(self, kept: _Kept) -> None:
        from deploy_gates.core.weighing import Sums

        if kept.following.has_ended:
            return
        for each in kept.following.looks():
            kept.drawn = ""
            if kept.history and each.at_ms < kept.history[-1].at_ms:
                kept.history.clear()  # worked out anew, with users as the unit
            if len(kept.history) >= LOOKS_MAX:
                del kept.history[1::2]
            kept.history.append(replace(each, sums=Sums(metrics={})))


def _has_ended(promotion: Promotion) -> bool:
    return promotion.state.is_final or promotion.outcome(Act.ANALYSIS, PRODUCTION) is not None


def _as_begun(event: Event) -> Deployment:
    return Deployment(
        config=event.config,
        environment=event.environment,
        revision=event.revision,
        kind=Kind(event.kind),
        baseline=event.baseline,
        candidate=event.candidate,
        weight_bp=event.weight_bp,
        salt=event.salt,
    )
