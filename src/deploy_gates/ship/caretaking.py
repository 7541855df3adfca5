"""Going on with promotions that their runner has left: killed, cut off, or told to detach.

Production needs nothing but the store: a canary is decided, and what was approved or thawed goes on. Evidence
and smoke cases are in the repository, so those wait for the next `ship`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from deploy_gates import clock, runner
from deploy_gates.core.errors import DeployGatesError, Refused, StoreUnavailable
from deploy_gates.core.release import Act, Conclude, Promotion, State, Status, Step, next_step
from deploy_gates.ship.carrying import Carrier
from deploy_gates.store import LEASE_TTL, Store

EVERY_S = 2.0
"""How often it is looked whether somebody has left a promotion."""
AGAIN = timedelta(seconds=60)
"""What was held is tried again after this."""
CARRIED_MAX = 16
"""So many promotions are carried at a time; further ones wait for the next round."""

log = logging.getLogger("deploy_gates")


class Caretaker:
    """Looks after promotions in a thread, and carries each that is left in a thread of its own."""

    def __init__(
        self,
        store: Store,
        *,
        name: str = "serve",
        ttl: timedelta = LEASE_TTL,
        every_s: float = EVERY_S,
        now: Callable[[], datetime] = clock.now,
        on_move: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._owner = runner.owner(name)
        self._ttl = ttl
        self._every_s = every_s
        self._now = now
        self._on_move = on_move
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._carried: dict[int, threading.Thread] = {}
        self._thread = threading.Thread(target=self._look_after, name="caretaker", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """End; promotions that are carried are left as they are, for whoever comes next."""
        self._stop.set()
        with self._lock:
            threads = [self._thread, *self._carried.values()]
        for each in threads:
            if each.is_alive():
                each.join()

    def resume(self, id: int) -> None:
        """Go on with one promotion now. `Refused` where it has ended or another runner carries it."""
        promotion = self._store.take(id, self._owner, self._ttl)
        self._store.let_go(promotion)
        self._carry(id)

    def _look_after(self) -> None:
        was_away = False
        while not self._stop.wait(self._every_s):
            try:
                for each in self._store.promotions(is_open=True):
                    if self.is_left(each):
                        self._carry(each.id)
                was_away = False
            except StoreUnavailable as error:
                if not was_away:
                    log.warning("nobody looks after promotions: %s", error.message)
                was_away = True
            except Exception:  # a caretaker that ended would leave canaries to their deadline
                log.exception("looking after promotions failed")

    def is_left(self, promotion: Promotion) -> bool:
        """Whether nobody carries it, and there is something that can be done from here."""
        if promotion.is_carried(self._now()) or promotion.state is State.QUEUED:
            return False
        carrier = Carrier(store=self._store, owner=self._owner)
        following = next_step(promotion, carrier.facts(promotion))
        if isinstance(following, Step):
            is_here = following.act not in (Act.ADMIT, Act.SMOKE)
            last = promotion.journal[-1] if promotion.journal else None
            was_held = last is not None and last.status is Status.HELD and last.act is not Act.ANALYSIS
            return is_here and not (was_held and last is not None and last.at + AGAIN > self._now())
        return isinstance(following, Conclude)

    def _carry(self, id: int) -> None:
        with self._lock:
            self._carried = {each: thread for each, thread in self._carried.items() if thread.is_alive()}
            if id in self._carried or len(self._carried) >= CARRIED_MAX or self._stop.is_set():
                return
            thread = threading.Thread(
                target=self._carried_on, args=(id,), name=f"promotion {id}", daemon=True
            )
            self._carried[id] = thread
            thread.start()

    def _carried_on(self, id: int) -> None:
        carrier = Carrier(
            store=self._store,
            owner=self._owner,
            ttl=self._ttl,
            stop=self._stop,
            now=self._now,
            on_move=self._on_move,
        )
        try:
            for _ in carrier.carry(id):
                pass
        except Refused:
            return  # another runner was faster
        except DeployGatesError as error:
            log.warning("promotion %d is left as it is: %s", id, error.message)
        except Exception:
            log.exception("promotion %d is left as it is", id)
