"""Who may do what, remembered for a moment: the store is not asked at every request."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from deploy_gates.core.errors import StoreUnavailable
from deploy_gates.core.promotion import Scope, Token
from deploy_gates.store import Store
from deploy_gates.store.tokens import checked, parts

OPEN = frozenset({Scope.READ, Scope.REPORT})
"""What needs no token on one machine, as long as there is none: neither moving nor spending."""
REMEMBERED_S = 3.0
"""For so long a token is not looked up again; a revoked one dies after it."""
REMEMBERED_MAX = 1_000
KEPT_S = 24 * 3600.0
"""While the store is away, for so long a token counts for what the store last said of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """What the store said of an id."""

    token: Token | None
    """`None`: nobody has it."""
    until: float
    """When the store is asked again, on the monotonic clock."""
    said_at: float


class Access:
    """Looks tokens up, and remembers them for a moment; while the store is away, for longer.

    With `is_local`, whoever asks sits on this machine: reading and reporting then need no token for as long
    as the store has none.
    """

    def __init__(self, store: Store, *, is_local: bool) -> None:
        self._store = store
        self._is_local = is_local
        self._lock = threading.Lock()
        self._known: dict[str, _Found] = {}
        self._has_tokens = True
        self._has_tokens_until = 0.0

    def remembered(self, sent: str) -> tuple[bool, Token | None]:
        """Whether it is known without asking the store who sends this, and who it is if anybody."""
        identity, secret = parts(sent)
        found = self._known.get(identity)
        if found is None or found.until < time.monotonic():
            return False, None
        return True, checked(found.token, secret)

    def look_up(self, sent: str) -> Token | None:
        """Who sends this; `None` for nobody. Asks the store, so it may take its time.

        `StoreUnavailable` where the store is away and has not said so within `KEPT_S`.
        """
        identity, secret = parts(sent)
        known = self._known.get(identity)
        if known is not None:  # others need not wait for the same answer
            self._remember(identity, known.token, said_at=known.said_at)
        try:
            token = self._store.token(identity) if identity else None
        except StoreUnavailable:
            if known is None or known.said_at + KEPT_S < time.monotonic():
                raise
            return checked(known.token, secret)
        self._remember(identity, token, said_at=time.monotonic())
        return checked(token, secret)

    def remembered_open(self, scope: Scope) -> bool | None:
        """Whether this needs no token here; `None` where the store has to be asked."""
        if not self._is_local or scope not in OPEN:
            return False
        return None if self._has_tokens_until < time.monotonic() else not self._has_tokens

    def is_open(self, scope: Scope) -> bool:
        """Whether this needs no token here. May ask the store."""
        remembered = self.remembered_open(scope)
        if remembered is not None:
            return remembered
        try:
            self._has_tokens = bool(self._store.tokens())
        except StoreUnavailable:
            if not self._has_tokens_until:  # it was never asked
                raise
        self._has_tokens_until = time.monotonic() + REMEMBERED_S
        return not self._has_tokens

    def _remember(self, identity: str, token: Token | None, *, said_at: float) -> None:
        found = _Found(token=token, until=time.monotonic() + REMEMBERED_S, said_at=said_at)
        with self._lock:
            if len(self._known) >= REMEMBERED_MAX and identity not in self._known:
                # Whoever tries ids does not make the server forget those that are right.
                right = {each: kept for each, kept in self._known.items() if kept.token is not None}
                self._known = right if len(right) < REMEMBERED_MAX else {}
            self._known[identity] = found
