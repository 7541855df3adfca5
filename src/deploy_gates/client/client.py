"""The client: answers from memory, whatever the store does."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

from deploy_gates.client import forking
from deploy_gates.client.config import Config, Freshness, Offer
from deploy_gates.client.feeds import feed_of
from deploy_gates.client.following import Following
from deploy_gates.client.last_good import LastGood, default_path
from deploy_gates.client.outcomes import Outcomes
from deploy_gates.client.paying import paying_of
from deploy_gates.client.served import Served
from deploy_gates.client.snapshot import Row, Snapshot
from deploy_gates.core.assignment import WHOLE_BP
from deploy_gates.core.errors import ConfigUnavailable
from deploy_gates.core.tally import Tally

if TYPE_CHECKING:
    from _hashlib import HASH

CLOSE_OUTCOMES_S = 0.4
"""How long `close` tries to deliver the last tallies."""
CLOSE_CREDITS_S = 0.2
"""And the last transactions, where some are left."""
CLOSE_THREADS_S = 0.3
"""And how long it waits for its threads after that."""
DEFAULT_CACHE = Path("~/.cache")
"""Stands for the last good config's own place in the cache of this user."""

log = logging.getLogger("deploy_gates")

_Entry: TypeAlias = "tuple[Offer, Offer | None, HASH | None, bytes, float]"
"""Both arms, the hash of the salt, the hash below which a key gets the candidate, and until when it does."""


class ConfigClient:
    """What a service asks which config to use. One for a process is enough; it may be used by all threads.

    `url` is that of a store (`sqlite:///…`, `postgresql://…`), or of a server (`https://…`), which wants a
    `token`. Making one waits up to `wait_s` for the first answer and raises nothing if there is none: what
    was last served on this machine is then served from `last_good`, or nothing until the store is back.
    `StoreError` for a URL that can never work. `report` tells the store what is served and what came of it.

    With `credits`, or an `organisation` that pays unless a call names another, calls are paid for: entering
    `config.call()` asks the store and may be refused. While the store is away, such calls are refused, too,
    or made for nothing with `credits_away="allow"`.
    """

    def __init__(
        self,
        url: str,
        *,
        environment: str,
        token: str = "",
        name: str = "",
        last_good: Path | None = DEFAULT_CACHE,
        wait_s: float = 5.0,
        poll_s: float = 0.008,
        report: bool = True,
        credits: bool = False,
        organisation: str = "",
        credits_away: str = "refuse",
    ) -> None:
        feed = feed_of(url, token=token, environment=environment, poll_s=poll_s)
        self.url = feed.url
        self.environment = environment
        self._entries: dict[str, _Entry] = {}
        self._freshness = Freshness()
        self._outcomes = Outcomes(self._report)
        self._paying = paying_of(
            feed.url if url.startswith("sqlite:") else url,
            token=token,
            organisation=organisation,
            is_on=credits,
            away=credits_away,
        )
        self._callbacks: tuple[Callable[[frozenset[str]], None], ...] = ()
        self._changed = threading.Condition()
        self._is_closed = False
        path = default_path(self.url, environment) if last_good is DEFAULT_CACHE else last_good
        self._following = Following(
            feed,
            environment=environment,
            name=name,
            is_reporting=report,
            last_good=LastGood(path=path, url=self.url, environment=environment) if path else None,
            freshness=self._freshness,
            publish=self._publish,
            tell=self._tell,
        )
        forking.register(self)
        self._following.start()
        if not self._following.has_read.wait(wait_s):
            self._following.serve_last_good()

    def get(self, name: str, key: str | None = None) -> Config:
        """The config of that name for `key`, which keeps its arm for as long as a canary lasts.

        Without a key it is the baseline, and so it is for everybody once a canary has passed its deadline,
        whoever is away then. From memory: it never waits. `ConfigUnavailable` if there is none.
        """
        try:
            baseline, candidate, salted, limit, deadline = self._entries[name]
        except KeyError:
            raise self._unavailable(name) from None
        if salted is None or candidate is None or key is None:
            return Config(baseline, key)
        if deadline <= time.monotonic():  # whoever should have decided the canary may be dead
            return Config(baseline, key)
        drawn = salted.copy()
        try:
            drawn.update(key.encode())
        except (AttributeError, UnicodeEncodeError):  # it would fail while a canary runs, and only then
            drawn.update(str(key).encode("utf-8", "surrogatepass"))
        return Config(candidate if drawn.digest() < limit else baseline, key)

    def assign(self, name: str, key: str | None) -> Served:
        """The arm that `get` would return."""
        return self.get(name, key)._offer.served

    def arms(self, name: str) -> tuple[Served, Served | None]:
        """Baseline and candidate. `ConfigUnavailable` if there is neither."""
        row = self._row(name)
        return row.baseline, row.candidate if time.monotonic() < row.deadline else None

    def revision(self, name: str) -> int:
        """The revision that is served. `ConfigUnavailable` if there is none."""
        return self._row(name).deployment.revision

    @property
    def names(self) -> tuple[str, ...]:
        """The configs there are, by name."""
        return tuple(sorted(self._entries))

    @property
    def is_stale(self) -> bool:
        """Whether the store is away, so that there may be newer revisions."""
        return self._freshness.is_stale

    @property
    def stale_reason(self) -> str:
        """Why the store cannot be read; empty if it can."""
        return self._freshness.reason

    def on_change(self, callback: Callable[[frozenset[str]], None]) -> Callable[[], None]:
        """Call `callback` in the background with the names that changed; none: `is_stale` did.

        Returns what ends that. What the callback raises is logged.
        """
        with self._changed:
            self._callbacks = (*self._callbacks, callback)

        def unsubscribe() -> None:
            with self._changed:
                self._callbacks = tuple(each for each in self._callbacks if each is not callback)

        return unsubscribe

    def wait_for(self, name: str, revision: int, timeout_s: float) -> bool:
        """Whether `name` is served at `revision` or a later one, within `timeout_s`."""

        def is_there() -> bool:
            entry = self._entries.get(name)
            return entry is not None and entry[0].served.revision >= revision

        changed = self._changed
        with changed:
            return changed.wait_for(is_there, timeout_s)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Deliver the tallies there are; whether that was done within `timeout_s`."""
        return self._outcomes.flush(timeout_s)

    def close(self) -> None:
        """Deliver what there is and end, in less than a second. What is served can still be read."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
        forking.unregister(self)
        self._paying.close(CLOSE_CREDITS_S)
        self._outcomes.close(CLOSE_OUTCOMES_S)
        self._following.stop(CLOSE_THREADS_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ConfigClient {self.environment} at {self.url}>"

    # --- In the background ------------------------------------------------------------------------

    def _publish(self, snapshot: Snapshot) -> None:
        rows, before = snapshot.rows, self._entries
        entries = {name: self._entry(row, before.get(name)) for name, row in rows.items()}
        with self._changed:
            self._entries = entries
            self._changed.notify_all()

    def _entry(self, row: Row, before: _Entry | None) -> _Entry:
        if before is not None and before[0].served is row.baseline:
            return before
        baseline = self._offer(row.baseline)
        if row.candidate is None:
            return baseline, None, None, b"", row.deadline
        # The bucket is below the weight where the 64 bits drawn are below this; compared as bytes.
        limit = -(-(row.deployment.weight_bp << 64) // WHOLE_BP)
        salted = sha256(f"{row.deployment.salt}:".encode())
        return baseline, self._offer(row.candidate), salted, limit.to_bytes(8, "big"), row.deadline

    def _offer(self, served: Served) -> Offer:
        return Offer(served=served, freshness=self._freshness, outcomes=self._outcomes, paying=self._paying)

    def _tell(self, changed: frozenset[str]) -> None:
        for callback in self._callbacks:
            try:
                callback(changed)
            except Exception:
                log.exception("a callback of on_change failed")

    def _report(self, first: int, tallies: Sequence[Tally]) -> None:
        self._following.report(first, tallies)

    # --- Why not ----------------------------------------------------------------------------------

    def _row(self, name: str) -> Row:
        try:
            return self._following.snapshot.rows[name]
        except KeyError:
            raise self._unavailable(name) from None

    def _unavailable(self, name: str) -> ConfigUnavailable:
        snapshot, reason = self._following.snapshot, self._freshness.reason
        declined = snapshot.declined.get(name)
        if declined is not None:
            return ConfigUnavailable(
                f"r{declined.revision} of {name} cannot be served in {self.environment}, "
                f"and there is nothing before it: {declined.reason}"
            )
        if reason:
            kept = "what is served since is without it" if self._entries else "nothing was kept on disk"
            return ConfigUnavailable(
                f"there is no {name} to serve in {self.environment}: the store at {self.url} cannot be read "
                f"({reason}), and {kept}",
                hint="it is served as soon as the store can be read",
            )
        return ConfigUnavailable(
            f"nothing named {name} was promoted to {self.environment}",
            hint=f"there is {', '.join(self.names) or 'nothing'}; `deploy-gates status` shows all",
        )

    # --- Forks ------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Ask the threads out of their drivers; not for services."""
        self._following.ask_out()

    def wait_before_fork(self, deadline: float) -> None:
        """Wait until they are."""
        self._following.wait_until_out(deadline)

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._following.let_in()

    def after_fork_in_child(self) -> None:
        """Serve the same at once, with threads, connections, and a name of one's own."""
        self._changed = threading.Condition()
        if self._is_closed:
            return
        self._following = self._following.renewed()
        self._outcomes.after_fork()
        self._paying.after_fork()
        self._publish(self._following.snapshot)  # the parent may have been about to
        self._following.start()
