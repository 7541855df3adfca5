"""How many steps of the old list ran by themselves, over all promotions: counted once, and then kept up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from deploy_gates.core.eliminated import Arrived, eliminated
from deploy_gates.core.errors import DeployGatesError
from deploy_gates.core.release import Promotion
from deploy_gates.store import Store

PAGE = 500
REFRESH_S = 3.0

log = logging.getLogger("deploy_gates")


class Counter:
    """Counts in a thread of its own; what it knows so far is there at any time."""

    def __init__(
        self, store: Store, arrived: Callable[[Promotion], frozenset[Arrived]] = lambda promotion: frozenset()
    ) -> None:
        self._store = store
        self._arrived = arrived
        self._stop = threading.Event()
        self._ended = 0
        """Steps of promotions that have ended."""
        self._under_way: dict[int, int] = {}
        self._highest = 0
        self.is_whole = False
        """Whether every promotion has been counted once."""
        self.promotions = 0
        self._thread = threading.Thread(target=self._count, name="eliminated steps", daemon=True)

    @property
    def steps(self) -> int:
        """So many steps nobody had to do."""
        return self._ended + sum(self._under_way.values())

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
        counted = {number: self._store.promotion(number) for number in self._under_way}
        before, fresh = 0, list[Promotion]()
        while not self._stop.is_set():
            page = self._store.promotions(before=before, limit=PAGE)
            new = [each for each in page if each.id > self._highest]
            fresh += new
            if len(new) < PAGE:
                break
            before = new[-1].id
        ended, under_way = 0, dict[int, int]()
        for each in (*(each for each in counted.values() if each is not None), *fresh):
            steps = eliminated(each, self._arrived(each))
            if each.state.is_final:
                ended += steps
            else:
                under_way[each.id] = steps
        self._ended, self._under_way = self._ended + ended, under_way
        self._highest = max((each.id for each in fresh), default=self._highest)
        self.promotions += len(fresh)
