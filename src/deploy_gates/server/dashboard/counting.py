"""How many steps of the old list ran by themselves, over all promotions: counted once, and then kept up."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from deploy_gates import clock
from deploy_gates.core.eliminated import Arrived, eliminated
from deploy_gates.core.errors import DeployGatesError
from deploy_gates.core.release import Promotion
from deploy_gates.store import Store

PAGE = 100
PAUSE_S = 0.02
"""Between two pages of many: pages for people come first."""
FEW = 8
"""So many of the newest are asked for at first: mostly none of them is new."""
REFRESH_S = 3.0
LATE_MAX = 500
"""So many promotions are counted again and again; further ones are taken to be over."""
LATE = timedelta(minutes=10)
"""So long after its end a promotion is counted again: notifications of how it went arrive later."""

log = logging.getLogger("deploy_gates")


class Counter:
    """Counts in a thread of its own; what it knows so far is there at any time."""

    def __init__(
        self, store: Store, arrived: Callable[[Promotion], frozenset[Arrived]] | None = None
    ) -> None:
        """`arrived` tells which notifications of a promotion arrived; `None`: nobody is notified."""
        self._store = store
        self._arrived = arrived
        self._stop = threading.Event()
        self._ended = 0
        """Steps of promotions that have ended long ago."""
        self._late: dict[int, int] = {}
        """Steps of those that may still get more."""
        self._highest = 0
        self.is_whole = False
        """Whether every promotion has been counted once."""
        self.promotions = 0
        self._thread = threading.Thread(target=self._count, name="eliminated steps", daemon=True)

    @property
    def steps(self) -> int:
        """So many steps nobody had to do."""
        return self._ended + sum(self._late.values())

    def start(self) -> None:
        """Begin to count."""
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def _count(self) -> None:
        while not self._stop.is_set():
            try:
                self._refresh()
                self.is_whole = True
            except DeployGatesError:
                pass  # the store is away: next time
            except Exception:
                log.exception("eliminated steps are not counted")
            self._stop.wait(REFRESH_S)

    def _refresh(self) -> None:
        """Count what is new, all or nothing: a store that goes away meanwhile has nothing counted twice."""
        late, now = dict[int, int](), clock.now()
        ended, highest, promotions = self._ended, self._highest, self.promotions
        for each in itertools.chain(self._known(), self._fresh()):
            if self._stop.is_set():
                return
            steps = eliminated(each, self._arrived(each) if self._arrived else frozenset())
            if self._is_over(each, now) or len(late) >= LATE_MAX:
                ended += steps
            else:
                late[each.id] = steps
            promotions += each.id > self._highest
            highest = max(highest, each.id)
        self._late, self._ended, self._highest, self.promotions = late, ended, highest, promotions

    def _is_over(self, promotion: Promotion, now: datetime) -> bool:
        ended = promotion.concluded_at
        return ended is not None and (self._arrived is None or ended + LATE < now)

    def _known(self) -> Iterator[Promotion]:
        """Promotions whose steps may have become more."""
        for number in self._late:
            found = self._store.promotion(number)
            if found is not None:
                yield found

    def _fresh(self) -> Iterator[Promotion]:
        """Promotions that were not counted before, the newest first."""
        before, limit = 0, FEW
        while not self._stop.is_set():
            page = self._store.promotions(before=before, limit=limit)
            new = [each for each in page if each.id > self._highest]
            yield from new
            if len(new) < limit:
                return
            before, limit = new[-1].id, PAGE
            self._stop.wait(PAUSE_S)
