"""Connections to PostgreSQL: lent to one thread at a time, made anew after the server was away."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar

from deploy_gates.core.errors import StoreError, StoreUnavailable
from deploy_gates.store import without_password

try:
    import psycopg
except ImportError as missing:
    raise StoreError(
        "a store on PostgreSQL needs its driver, which is not installed",
        hint='pip install "pytest-deploy-gates[postgres]"',
    ) from missing
from psycopg import conninfo
from psycopg import errors as errors  # for the store, which need not know the driver
from psycopg.rows import DictRow, dict_row

CONNECTIONS_MAX = 8
"""How many connections one store has at most, but for its watchers."""
CONNECT_MAX_S = 5
STATEMENT_MAX_S = 10
"""How long one statement may take, waiting for others included."""
DEAD_AFTER_S = 15
"""A server that does not even acknowledge what it is sent is gone."""

Connection: TypeAlias = "psycopg.Connection[DictRow]"
_T = TypeVar("_T")

_REACHING = {
    "connect_timeout": CONNECT_MAX_S,
    "application_name": "deploy-gates",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": DEAD_AFTER_S * 1000,
}
"""Unless the URL says otherwise."""
_SETTINGS = {
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "statement_timeout": f"{STATEMENT_MAX_S}s",
    "idle_in_transaction_session_timeout": f"{STATEMENT_MAX_S}s",
}
"""What every session is set to: whoever is stopped in a transaction holds nobody up for longer."""


class Connections:
    """The connections of one store. A child begins without any, and leaves its parent's alone."""

    def __init__(self, address: str, *, durable: bool) -> None:
        self.url = re.sub(r"((?:^|[?&\s])(?:ssl)?password=)[^&\s]*", r"\1…", without_password(address))
        """Without a password."""
        self._address = address
        self._settings = _SETTINGS | ({} if durable else {"synchronous_commit": "off"})
        self._prepares = True
        self._begin()
        _all.add(self)

    def run(self, call: Callable[[Connection], _T]) -> _T:
        """What `call` makes of a connection, as a `StoreError` where it fails.

        It is called a second time if the connection was lost, or if the server asks for that.
        """
        try:
            return self._once(call)
        except psycopg.Error as error:
            if not self._may_go_on(error):
                raise translated(error, self.url) from error
        try:
            return self._once(call)
        except psycopg.Error as error:
            raise translated(error, self.url) from error

    def connect(self) -> Connection:
        """A connection of one's own. `StoreUnavailable` if there is none to be had."""
        try:
            return self._connect()
        except psycopg.Error as error:
            raise translated(error, self.url) from error

    def close(self) -> None:
        """Close every connection; those that are lent, when they come back."""
        with self._lock:
            self._is_closed = True
        self._drop_idle()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._idle: list[Connection] = []
        self._lent: set[Connection] = set()
        self._is_closed = False

    def _once(self, call: Callable[[Connection], _T]) -> _T:
        with self._lend() as connection:
            try:
                return call(connection)
            except (UnicodeEncodeError, errors.DataError) as error:
                raise StoreError(f"the store at {self.url} cannot keep that: {error}") from error

    @contextlib.contextmanager
    def _lend(self) -> Iterator[Connection]:
        if not self._free.acquire(timeout=STATEMENT_MAX_S):
            raise StoreUnavailable(f"all connections to {self.url} are busy", hint="try again")
        try:
            with self._lock:
                if self._is_closed:
                    raise StoreUnavailable(f"the store at {self.url} was closed")
                connection = self._idle.pop() if self._idle else None
            connection = connection or self.connect()
            self._lent.add(connection)
            try:
                yield connection
            finally:
                self._take_back(connection)
        finally:
            self._free.release()

    def _take_back(self, connection: Connection) -> None:
        idle = psycopg.pq.TransactionStatus.IDLE
        with self._lock:
            self._lent.discard(connection)
            is_good = connection.info.transaction_status == idle and not self._is_closed
            if is_good:
                self._idle.append(connection)
        if not is_good:
            connection.close()

    def _connect(self) -> Connection:
        asked = conninfo.conninfo_to_dict(self._address)
        connection = psycopg.connect(**(_REACHING | asked), autocommit=True, row_factory=dict_row)  # type: ignore[arg-type]
        try:
            connection.prepare_threshold = 1 if self._prepares else None
            connection.execute(
                "SELECT " + ", ".join("set_config(%s, %s, false)" for _ in self._settings),
                [each for pair in self._settings.items() for each in pair],
                prepare=False,
            )
        except BaseException:
            connection.close()
            raise
        return connection

    def _may_go_on(self, error: psycopg.Error) -> bool:
        """Whether another attempt may do better; on connections that are none of the old ones, if need be."""
        if isinstance(error, errors.DeadlockDetected | errors.SerializationFailure):
            return True
        if isinstance(error, errors.InvalidSqlStatementName | errors.DuplicatePreparedStatement):
            self._prepares = False  # a pooler in between gives every transaction another session
        elif isinstance(error, errors.FeatureNotSupported):
            if "cached plan" not in str(error):  # the tables were changed meanwhile
                return False
        elif not _is_lost(error):
            return False
        self._drop_idle()
        return True

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for each in idle:
            each.close()

    def _after_fork(self) -> None:
        if self._process == os.getpid():
            return  # made after the fork, by a thread that another one's hook has started already
        _abandoned.extend(self._idle)
        _abandoned.extend(self._lent)
        self._begin()


def translated(error: psycopg.Error, url: str) -> StoreError:
    """The error of the driver as one of ours, in a sentence that tells what is still true."""
    said = _first_line(error)
    if isinstance(error, errors.UndefinedTable | errors.UndefinedFunction):
        return StoreError(f"the store at {url} has no tables yet", hint="deploy-gates store upgrade")
    if isinstance(error, errors.QueryCanceled | errors.LockNotAvailable):
        return StoreUnavailable(
            f"the store at {url} was busy for {STATEMENT_MAX_S} s, and nothing was changed", hint="try again"
        )
    if isinstance(error, errors.DiskFull):
        return StoreUnavailable(f"the disk with the store at {url} is full, and nothing was changed")
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return StoreUnavailable(f"{url} is a copy that can only be read, and nothing was changed")
    if isinstance(error, errors.RaiseException | psycopg.IntegrityError):
        return StoreError(f"the store at {url} does not allow that: {said}")
    if isinstance(error, psycopg.OperationalError) or _is_lost(error):
        return StoreUnavailable(f"the store at {url} cannot be reached: {said}")
    return StoreError(f"the store at {url} cannot be used: {said}")


def abandon(connection: Connection) -> None:
    """Let go of a parent's connection in a child: to close it here would end it there."""
    _abandoned.append(connection)


def _is_lost(error: psycopg.Error) -> bool:
    """Whether the session ended under a statement."""
    ended = errors.AdminShutdown | errors.CrashShutdown | errors.IdleInTransactionSessionTimeout
    is_silent = isinstance(error, psycopg.OperationalError) and error.sqlstate is None
    return isinstance(error, ended) or is_silent


def _first_line(error: psycopg.Error) -> str:
    message = error.diag.message_primary or str(error)
    return next((line.strip() for line in message.splitlines() if line.strip()), type(error).__name__)


_all: weakref.WeakSet[Connections] = weakref.WeakSet()
_abandoned: list[Any] = []


def _forget_connections() -> None:
    for each in list(_all):
        each._after_fork()


os.register_at_fork(after_in_child=_forget_connections)
