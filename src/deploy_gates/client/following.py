"""Follows the store in the background: one thread reads, another one does what may take its time.

Nothing here ever raises into the service, and nothing goes by what time it is: that only says how long a
canary that was not seen before has left.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from deploy_gates import clock
from deploy_gates.client.config import Freshness
from deploy_gates.client.feeds import Feed
from deploy_gates.client.forking import Turnstile
from deploy_gates.client.last_good import LastGood
from deploy_gates.client.snapshot import (
    EMPTY,
    Snapshot,
    accepted,
    changes,
    expired,
    inherited,
    next_deadline,
)
from deploy_gates.core.errors import DeployGatesError, WorkspaceError
from deploy_gates.core.promotion import Acknowledgement, Serving
from deploy_gates.core.tally import Tally

REREAD_S = 5.0
"""The store is read at least so often: a notification may get lost without anybody noticing."""
RETRY_FIRST_S, RETRY_MAX_S = 0.05, 2.0
"""How long to wait before trying again, doubled each time."""
ACK_EVERY_S = 0.05
"""At most so often the store is told what is served."""
ACK_PAUSES = 10.0
"""And after so many times as long as it took to tell it: a store that is busy is told less."""
ACK_AGAIN_S = 1.0
"""When it did not work."""
CHILD_QUIET_S = 0.3
"""A child says nothing for so long: many only start another program, and are gone."""
HEARTBEAT_S = 10.0
"""At least so often."""
SAVE_EVERY_S = 1.0
"""At most so often the last good config is written."""

log = logging.getLogger("deploy_gates")


class Following:
    """The threads of one client, in one process.

    `publish` is called with each new snapshot, under a lock, and `tell` with what has changed, under none.
    """

    def __init__(
        self,
        feed: Feed,
        *,
        environment: str,
        name: str,
        is_reporting: bool,
        last_good: LastGood | None,
        freshness: Freshness,
        publish: Callable[[Snapshot], None],
        tell: Callable[[frozenset[str]], None],
        snapshot: Snapshot = EMPTY,
        quiet_s: float = 0.0,
    ) -> None:
        self._feed = feed
        self._environment = environment
        self._given_name = name
        self._is_reporting = is_reporting
        self._last_good = last_good
        self._freshness = freshness
        self._publish = publish
        self._tell = tell
        self.snapshot = snapshot
        self._quiet_s = quiet_s
        self.instance = os.urandom(8).hex()
        self.has_read = threading.Event()
        """Set once there is something to serve, or the store has said that there is nothing."""
        self._turnstile = Turnstile()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._errand = threading.Event()
        self._unacknowledged = True
        self._unsaved = False
        self._is_known = False
        """The store has heard of this instance."""
        self._save_failed = ""
        self._is_away = False
        self._last_good_read = False
        self._threads = [
            threading.Thread(target=self._follow, name="deploy-gates follow", daemon=True),
            threading.Thread(target=self._run_errands, name="deploy-gates errands", daemon=True),
        ]

    def start(self) -> None:
        """Begin; what can be served meanwhile is the snapshot."""
        for thread in self._threads:
            thread.start()

    def renewed(self) -> Following:
        """In a child after a fork: one like this, not yet started, that serves the same."""
        made = Following(
            self._feed.renewed(),
            environment=self._environment,
            name=self._given_name,
            is_reporting=self._is_reporting,
            last_good=self._last_good,
            freshness=self._freshness,
            publish=self._publish,
            tell=self._tell,
            snapshot=inherited(self.snapshot),
            quiet_s=CHILD_QUIET_S,
        )
        made._is_away = self._is_away
        if self.has_read.is_set():
            made.has_read.set()  # what is on disk may be older
        return made

    def report(self, first: int, tallies: Sequence[Tally]) -> None:
        """Deliver tallies. `StoreError` if that cannot be done now."""
        if self._is_reporting:
            with self._turnstile:
                self._feed.report(self.instance, first, tallies)

    def serve_last_good(self) -> None:
        """Serve what is on disk, if nothing is served yet."""
        if self._last_good is None or self._last_good_read or self.has_read.is_set():
            return
        last_good, self._last_good_read = self._last_good, True
        try:
            found = last_good.load()
        except WorkspaceError as error:
            log.warning("%s", error.message)
            return
        changed = self._accept(*found, is_confirmed=False) if found else frozenset()
        if changed:
            log.warning("the last good config is served, of %s", last_good.path)
            self._note(changed)

    def stop(self, timeout_s: float) -> None:
        """End both threads and let go of every connection, now or as soon as a call under way returns."""
        deadline = time.monotonic() + timeout_s
        self._stop.set()
        self._turnstile.open()
        self._errand.set()
        self._feed.wake()
        others = [each for each in self._threads if each is not threading.current_thread() and each.ident]
        for thread in others:
            thread.join(max(0.0, (deadline - time.monotonic()) / 2))
        self._feed.close()
        for thread in others:
            thread.join(max(0.0, deadline - time.monotonic()))

    def ask_out(self) -> None:
        """Ask both threads out of their drivers."""
        self._turnstile.close()
        self._feed.wake()

    def wait_until_out(self, deadline: float) -> None:
        """Until they are, or until `deadline`."""
        self._turnstile.wait_until_empty(deadline)

    def let_in(self) -> None:
        """Have them go on."""
        self._turnstile.open()

    # --- Reading --------------------------------------------------------------------------------

    def _follow(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                with self._turnstile:
                    serving = self._feed.read(self.snapshot.documents.keys())
                self._confirm(serving)
                failures = 0
                with self._turnstile:
                    self._feed.wait(REREAD_S)
            except DeployGatesError as error:
                self._lost(error.message)
            except Exception as error:
                log.exception("the store could not be read")
                self._lost(f"{type(error).__name__}: {error}")
            else:
                continue
            failures += 1
            self._stop.wait(pause_s(failures))

    def _confirm(self, serving: Serving) -> None:
        was_away, self._is_away = self._is_away, False
        changed = self._accept(serving, is_confirmed=True)
        if was_away:
            log.warning("the store can be read again")
            self._unacknowledged = True
            self._tell(frozenset())
        self._note(changed)

    def _lost(self, reason: str) -> None:
        if self._stop.is_set():
            return
        self._freshness.fault = reason
        self.serve_last_good()
        if not self._is_away:
            self._is_away = True
            log.warning("the store is away, and what was served last is served on: %s", reason)
            self._tell(frozenset())

    def _accept(
        self,
        serving: Serving,
        deadlines: Mapping[str, float] = MappingProxyType({}),
        *,
        is_confirmed: bool,
    ) -> frozenset[str]:
        """Serve that; the names of the configs that changed."""
        with self._lock:
            if not is_confirmed and self.has_read.is_set():
                return frozenset()
            before = self.snapshot
            after = accepted(
                serving,
                before,
                now=time.monotonic(),
                today=clock.now(),
                deadlines=deadlines,
                is_confirmed=is_confirmed,
            )
            changed = changes(before, after)
            if is_confirmed:
                self._freshness.confirmed_at, self._freshness.fault = time.monotonic(), ""
            self.snapshot = after
            if changed:
                self._publish(after)
            if is_confirmed or after.rows:
                self.has_read.set()
        for name, declined in after.declined.items():
            if before.declined.get(name) != declined:
                log.error("r%d of %s is refused: %s", declined.revision, name, declined.reason)
                self._unacknowledged = True
        for name in after.missing - before.missing:
            log.error("the store no longer names %s, which is served on: it may be another store", name)
        self._unsaved = self._unsaved or (is_confirmed and bool(changed))
        return changed

    def _note(self, changed: frozenset[str]) -> None:
        """Have the errands done, and those told who want to know."""
        if changed:
            self._unacknowledged = True
        if changed or self._unacknowledged or self._unsaved:
            self._errand.set()
        if changed:
            self._tell(changed)

    def _end_canaries(self) -> None:
        """Let go of the candidates whose time is over. Nobody has got them since; this tells of it."""
        with self._lock:
            before = self.snapshot
            after = expired(before, time.monotonic())
            if after is before:
                return
            self.snapshot = after
            self._publish(after)
        changed = changes(before, after)
        for name in sorted(changed):
            revision = after.rows[name].deployment.revision
            log.warning(
                "the canary of %s (r%d) has passed its deadline: everybody gets the baseline", name, revision
            )
        self._unsaved = True
        if not self._stop.is_set():
            self._tell(changed)

    # --- Errands --------------------------------------------------------------------------------

    def _run_errands(self) -> None:
        acknowledge_at = heartbeat_at = save_at = time.monotonic() + self._quiet_s
        while not self._stop.is_set():
            self._end_canaries()
            due = [heartbeat_at, next_deadline(self.snapshot)]
            due += [acknowledge_at] if self._unacknowledged else []
            due += [save_at] if self._unsaved else []
            wait_s = min(due) - time.monotonic()
            if wait_s > 0:
                self._errand.wait(wait_s)
                self._errand.clear()
                continue
            now = time.monotonic()
            if now >= heartbeat_at or (self._unacknowledged and now >= acknowledge_at):
                has_worked = self._acknowledge()
                told_at = time.monotonic()
                pause_s = max(ACK_EVERY_S, ACK_PAUSES * (told_at - now)) if has_worked else ACK_AGAIN_S
                acknowledge_at, heartbeat_at = told_at + min(pause_s, ACK_AGAIN_S), told_at + HEARTBEAT_S
            if self._unsaved and now >= save_at:
                self._save()
                save_at = time.monotonic() + SAVE_EVERY_S
        self._end_canaries()  # what is saved last must not give one more time that has passed its deadline
        if self._unsaved:
            self._save()
        if self._is_known and not self._freshness.reason:
            with contextlib.suppress(DeployGatesError), self._turnstile:
                self._feed.leave(self.instance)

    def _acknowledge(self) -> bool:
        """Tell the store what is served; whether that worked."""
        if not self._is_reporting or self._freshness.reason:
            self._unacknowledged = False  # until the store is back
            return True
        self._unacknowledged = False
        try:
            with self._turnstile:
                served = _served(self.snapshot, time.monotonic())
                self._feed.acknowledge(self.instance, self._name(), self._environment, served)
            self._is_known = True
            return True
        except DeployGatesError as error:
            log.debug("the store was not told what is served: %s", error.message)
        except Exception:
            log.exception("the store was not told what is served")
        self._unacknowledged = True
        return False

    def _save(self) -> None:
        self._unsaved = False
        if self._last_good is None:
            return
        try:
            self._last_good.save(self.snapshot)
            self._save_failed = ""
        except WorkspaceError as error:
            if not self._save_failed:
                log.warning("the last good config is not kept: %s", error.message)
            self._save_failed = error.message
        except Exception:
            log.exception("the last good config is not kept")

    def _name(self) -> str:
        return self._given_name or f"{os.uname().nodename}:{os.getpid()}"


def pause_s(failures: int) -> float:
    """How long to wait after so many failures, at random, so that not everybody comes back at once."""
    longest_s = min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** min(failures - 1, 16))
    return longest_s * random.uniform(0.5, 1.0)


def _served(snapshot: Snapshot, now: float) -> list[Acknowledgement]:
    """What is served and what was refused, config by config."""
    made = []
    for name in sorted(snapshot.rows.keys() | snapshot.declined.keys()):
        row, declined = snapshot.rows.get(name), snapshot.declined.get(name)
        made.append(
            Acknowledgement(
                config=name,
                revision=row.deployment.revision if row else 0,
                age_ms=max(0, int((now - row.since) * 1000)) if row else 0,
                reloaded=row.is_reload if row else False,
                refused=declined.revision if declined else 0,
                reason=declined.reason if declined else "",
            )
        )
    return made
