"""The record: what every environment serves, by which evidence, and who moved it.

Two engines hold the same tables and make the same promises: SQLite for one machine, PostgreSQL for many. The
statements are written out in `sqlite.py` and `postgres.py`, the tables in numbered files under `schema/`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.cost import Price
from deploy_gates.core.delivery import Delivery
from deploy_gates.core.errors import StoreError
from deploy_gates.core.promotion import (
    Acknowledgement,
    Deployment,
    Event,
    Instance,
    Lease,
    Move,
    Moved,
    Record,
    Serving,
    Token,
)
from deploy_gates.core.release import Act, Approval, Promotion, Release, State, Status, Terms
from deploy_gates.core.tally import Tally

DEFAULT_URL = "sqlite:///.deploy-gates/store.db"
STORE_VARIABLE = "DEPLOY_GATES_STORE"
"""The environment variable that names the store, before the settings do."""
LEASE_TTL = timedelta(seconds=15)
LEASE_MAX = timedelta(minutes=10)
"""No lease is longer: one that claims to be was given before the clock was set back, and holds nobody up."""
INSTANCE_TTL = timedelta(seconds=30)
"""A client that was not seen for so long is gone: it says that it is there every ten seconds."""
CLAIM_TTL = timedelta(seconds=60)
"""So long one sender has for a delivery before another one tries."""
WAIT_MAX = timedelta(hours=2)
"""No delivery is put off for longer: one that claims to be was so before the clock was set back."""
TALLIES_KEPT = timedelta(days=14)
ROWS_MAX = 10_000
"""How many rows one read returns at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Upgraded:
    """What an upgrade did: the version of the schema before and after."""

    before: int
    after: int


class Watcher(Protocol):
    """Tells when the store may have changed. Used by one thread; `wake` and `close` by any."""

    def wait(self, timeout_s: float) -> bool:
        """Whether something may have changed since the last call; `False` after `timeout_s` without.

        `StoreUnavailable` if nobody can tell any more: make a new one.
        """

    def wake(self) -> None:
        """Have a waiting `wait` return at once."""

    def close(self) -> None:
        """Let go of the connection."""


class Store(Protocol):
    """Some forty calls, each one transaction. Every call may raise `StoreUnavailable`.

    One store may be used by many threads.
    """

    url: str
    """Without a password."""

    # The schema

    def upgrade(self) -> Upgraded:
        """Create or migrate the tables; nothing happens where they are current. `StoreError` if newer."""

    def check(self) -> None:
        """`StoreError` where the tables are missing, older, or newer than this version knows."""

    def warnings(self) -> tuple[str, ...]:
        """What whoever runs this store should know about it."""

    # What is promoted

    def put_config(self, name: str, spelling: bytes, price: Price | None = None) -> str:
        """Keep a config, once per digest, and what a call of it costs now; returns the digest."""

    def config(self, digest: str) -> tuple[str, bytes] | None:
        """Name and spelling of a config; `None` if it is not here."""

    def put_evidence(self, record: Record) -> bool:
        """Keep evidence; whether it is new. A failing one revokes all earlier of the same config and digest.

        `Refused` where its config is not kept here.
        """

    def evidence(self, config: str, digest: str = "", *, limit: int = 100) -> tuple[Record, ...]:
        """The evidence of a config, the latest run first."""

    # Leases

    def acquire(self, config: str, environment: str, owner: str, ttl: timedelta = LEASE_TTL) -> Lease:
        """Take the lease of a deployment, with the next fence. `Refused` while another one runs.

        The row is made where there is none. The same owner asking again gets the next fence as well.
        """

    def renew(self, lease: Lease, ttl: timedelta = LEASE_TTL) -> Lease:
        """Hold the lease for longer. `Refused` once it has expired or somebody has taken over."""

    def release(self, lease: Lease) -> None:
        """Give the lease back; nothing happens where it is another's by now."""

    # Moves

    def move(self, move: Move) -> Moved:
        """Make the move, in one statement, wholly or not at all. `Refused`, with the reason."""

    def deployments(self, environment: str = "", config: str = "") -> tuple[Deployment, ...]:
        """What is served where, by config and then in the order in which a release travels."""

    def history(
        self, config: str, environment: str, *, after: int = 0, limit: int = ROWS_MAX
    ) -> tuple[Event, ...]:
        """The events of one deployment after a revision, in the order of their revisions."""

    def latest(self, config: str = "", environment: str = "", *, limit: int = 100) -> tuple[Event, ...]:
        """The newest events of all deployments, of a config, or of an environment; the newest first."""

    # Reading side

    def serving(self, environment: str, known: Collection[str] = ()) -> Serving:
        """What the environment serves, with the configs whose digests are not `known`: one snapshot."""

    def watch(self) -> AbstractContextManager[Watcher]:
        """A watcher with a connection of its own."""

    def acknowledge(
        self, instance: str, name: str, environment: str, served: Sequence[Acknowledgement]
    ) -> None:
        """What an instance serves now, in place of what it said before; also that it is alive."""

    def leave(self, instance: str) -> None:
        """The instance has ended."""

    def instances(self, environment: str = "", config: str = "") -> tuple[Instance, ...]:
        """The instances seen within `INSTANCE_TTL`."""

    # Tallies

    def add_tallies(self, instance: str, first: int, tallies: Sequence[Tally]) -> None:
        """Keep tallies, numbered from `first` on by their sender. What was sent before changes nothing."""

    def tallies(
        self, config: str, environment: str, *, since_ms: int = 0, until_ms: int = 2**62
    ) -> Iterator[Tally]:
        """The tallies of a deployment in the bins from `since_ms` to before `until_ms`, by bin."""

    # Tokens

    def put_token(self, token: Token) -> None:
        """Keep a token."""

    def tokens(self) -> tuple[Token, ...]:
        """All tokens, the newest last; revoked ones too."""

    def token(self, id: str) -> Token | None:
        """One token; `None` if nobody knows it."""

    def revoke_token(self, id: str) -> bool:
        """Whether there was such a token in force; it is not any more."""

    # Promotions

    def propose(
        self, release: Release, *, until: str, policy: str, terms: Terms, is_anew: bool = False
    ) -> Promotion:
        """Put a release on its way; the promotion that is under way already where it is the same digest.

        One promotion of a config runs at a time. Another one is queued, and supersedes what was queued
        before it. One that stands still (nobody holds its lease, and it has no candidate in any
        environment) is superseded as well, and the new one runs; with `is_anew` also where it is the same
        digest. `Refused` where the config is not kept.
        """

    def promotion(self, id: int) -> Promotion | None:
        """One promotion, with its journal."""

    def promotions(
        self, config: str = "", *, is_open: bool = False, before: int = 0, limit: int = 100
    ) -> tuple[Promotion, ...]:
        """Promotions with their journals, newest first: of a config, under way, numbered below `before`."""

    def take(self, id: int, owner: str, ttl: timedelta = LEASE_TTL) -> Promotion:
        """Take the lease of a promotion, with the next fence; one that is queued runs if its turn has come.

        `Refused` with `LEASE` while another runner holds it, with `STATE` where it has ended or is still
        queued. The same owner asking again gets the next fence as well.
        """

    def keep_on(self, promotion: Promotion, ttl: timedelta = LEASE_TTL) -> None:
        """Hold the lease for longer. `Refused` once it has expired or somebody has taken over."""

    def let_go(self, promotion: Promotion) -> None:
        """Give the lease back; nothing happens where it is another's by now."""

    def write(
        self, promotion: Promotion, act: Act, environment: str, status: Status, data: JsonObject
    ) -> Promotion:
        """Add a row to the journal under the fence; the promotion as it is then. `Refused` by the fence."""

    def conclude(self, promotion: Promotion, state: State, conclusion: str) -> Promotion:
        """End it under the fence, for good, and give the lease back. The one that is queued may run."""

    def approve(self, approval: Approval) -> None:
        """Keep an approval, by the clock of the store; the first of a person counts."""

    def approvals(self, config: str, digest: str = "") -> tuple[Approval, ...]:
        """Who has approved what, oldest first."""

    # Notifications

    def outbox(self, limit: int = ROWS_MAX) -> tuple[Event, ...]:
        """The moves nobody has been told of yet, oldest first."""

    def told(self, event: Event, deliveries: Sequence[Delivery] = ()) -> None:
        """This move leaves the outbox, and these deliveries are kept, in one transaction."""

    def untold(self, limit: int = ROWS_MAX) -> tuple[Promotion, ...]:
        """The promotions that have changed since they were last `announced`, the longest ago first."""

    def announced(self, promotion: Promotion, deliveries: Sequence[Delivery] = ()) -> None:
        """The promotion was told of as it is here, and these deliveries are kept, in one transaction.

        What was written to it meanwhile is still untold. A delivery that is kept already is not kept twice.
        """

    def due(self, *, limit: int = 100, claim: timedelta = CLAIM_TTL) -> tuple[Delivery, ...]:
        """Deliveries to try now, oldest first, each its thread's first; nobody else gets them for `claim`."""

    def settle(self, delivery: Delivery) -> None:
        """Keep how a try ended: its state, attempts, next try, external id, and error."""

    def deliveries(
        self, *, thread: str = "", channel: str = "", state: str = "", limit: int = 100
    ) -> tuple[Delivery, ...]:
        """Deliveries, the newest first."""

    def close(self) -> None:
        """Let go of the connections. A closed store is not used again."""


def open_store(url: str, *, root: Path | None = None, durable: bool = True) -> Store:
    """The store at `url`: `sqlite:///relative`, `sqlite:////absolute`, or `postgresql://…`.

    A relative path starts at `root`, or else at the current folder. A store that is not `durable` may lose
    its last writes with the power or with a database that is killed, never with the process that wrote them:
    right for tallies, wrong for promotions. Nothing is opened before it is used. `StoreError` for a URL that
    is neither.
    """
    if url.startswith("sqlite:///"):
        from deploy_gates.store.sqlite import SqliteStore

        path = Path(url.removeprefix("sqlite:///").partition("?")[0])
        if not path.name:
            raise StoreError(f"{url} names no file", hint=f"for example {DEFAULT_URL}")
        return SqliteStore((root or Path.cwd()) / path, durable=durable)
    if re.match(r"postgres(ql)?://", url):
        from deploy_gates.store.postgres import PostgresStore

        return PostgresStore(url, durable=durable)
    raise StoreError(
        f"{without_password(url)!r} is no store", hint=f"{DEFAULT_URL}, or postgresql://user@host/database"
    )


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:…@", url)
