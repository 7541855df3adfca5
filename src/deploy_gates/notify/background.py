"""The thread that relays and sends while something else runs: a promotion, or the server."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Self

from deploy_gates.core.delivery import Fate
from deploy_gates.notify.relaying import relay
from deploy_gates.notify.sending import BATCH_MAX, Courier, Lanes
from deploy_gates.notify.settled import Telling
from deploy_gates.store import Store

POLL_S = 1.0
"""So long something may wait that nobody says `wake` for."""
AWAY_S = 2.0
"""After so long a store is asked again that could not be."""
CLOSE_S = 0.5
"""So long `close` waits for a request that is under way."""
LEFT_MAX = 1_000

log = logging.getLogger("deploy_gates")


class Notifier:
    """Tells whoever is to be told, in threads of its own. It never raises into whoever runs it.

    Many may run on one store. Without any channel it does nothing at all.
    """

    def __init__(self, store: Store, telling: Telling) -> None:
        self._store = store
        self._telling = telling
        self._lanes = Lanes(Courier(store=store, telling=telling), on_sent=self.wake)
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._round = threading.Condition()
        self._rounds = 0
        self._is_idle = False
        self._is_away = False
        self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)

    def start(self) -> None:
        """Begin. Nothing begins where there is no channel."""
        if self._telling.channels:
            self._thread.start()

    def wake(self) -> None:
        """Something has happened: look now, rather than within a second. It neither waits nor raises."""
        self._wake.set()

    def flush(self, timeout_s: float) -> int:
        """Wait until all that is due was tried, for so long at most; how many are still to be delivered.

        What failed is not waited for, and neither is a store that is away: somebody tries again later.
        """
        if not self._thread.is_alive():
            return 0
        deadline = time.monotonic() + timeout_s
        with self._round:
            begun = self._rounds + 2  # the round that is under way may have looked already
            while not (self._is_away or (self._rounds >= begun and self._is_idle)):
                if time.monotonic() >= deadline:
                    break
                self._wake.set()
                self._round.wait(min(0.1, max(0.0, deadline - time.monotonic())))
        return self._left()

    def close(self) -> None:
        """End. What was not sent is sent by whoever looks at the store next."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)
        self._lanes.close(CLOSE_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            is_away, is_busy = False, False
            try:
                is_busy = self._look()
            except Exception as error:  # noqa: BLE001  # whoever runs this has other work to do
                is_away = True
                if not self._is_away:
                    log.warning("nobody can be told just now: %s", _said(error))
            with self._round:
                self._rounds += 1
                self._is_away, self._is_idle = is_away, not is_busy and self._lanes.is_idle
                self._round.notify_all()
            if is_away:
                self._stop.wait(AWAY_S)
            elif not is_busy:
                self._wake.wait(POLL_S)
                self._wake.clear()

    def _look(self) -> bool:
        """One round; whether there was anything to do."""
        relayed = relay(self._store, self._telling)
        claimed_at = time.monotonic()
        due = self._store.due(limit=BATCH_MAX)
        self._lanes.put(due, claimed_at)
        return bool(relayed or due)

    def _left(self) -> int:
        try:
            return len(self._store.deliveries(state=Fate.DUE.value, limit=LEFT_MAX))
        except Exception:  # noqa: BLE001  # it is only asked for a screen
            return 0


def _said(error: Exception) -> str:
    return getattr(error, "message", type(error).__name__)
