"""Who may do what: bearer tokens, of which the store knows only the hash."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from datetime import datetime

from deploy_gates.core.promotion import Scope, Token
from deploy_gates.store import Store

PREFIX = "dg"
SECRET_BYTES = 32
"""So random that a plain hash of it is safe."""
TOKEN_MAX_CHARS = 200
REMEMBERED_S = 3.0
"""For so long a token is not looked up again; a revoked one dies after it."""
REMEMBERED_MAX = 1_000

_NOBODY = "0" * 64
"""Compared with where there is no such token, so that knowing ids costs as much as not knowing them."""


def issue(name: str, scopes: frozenset[Scope], *, created_by: str, now: datetime) -> tuple[str, Token]:
    """A new token: what its owner sends, and what the store keeps."""
    identity, secret = secrets.token_hex(4), secrets.token_urlsafe(SECRET_BYTES)
    token = Token(
        id=identity,
        name=name,
        secret_hash=_hash(secret),
        scopes=scopes,
        created_at=now,
        created_by=created_by,
    )
    return f"{PREFIX}_{identity}_{secret}", token


class Access:
    """Looks tokens up, and remembers them for a moment.

    With `is_local`, whoever asks sits on this machine: reading and reporting then need no token for as long
    as the store has none.
    """

    def __init__(self, store: Store, *, is_local: bool) -> None:
        self._store = store
        self._is_local = is_local
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Token | None, float]] = {}
        self._open: tuple[bool, float] = (False, 0.0)

    def remembered(self, sent: str) -> tuple[bool, Token | None]:
        """Whether it is known without asking the store who sends this, and who it is if anybody."""
        identity, secret = _parts(sent)
        found = self._known.get(identity)
        if found is None or found[1] < time.monotonic():
            return False, None
        return True, _checked(found[0], secret)

    def look_up(self, sent: str) -> Token | None:
        """Who sends this; `None` for nobody. Asks the store, so it may take its time."""
        identity, secret = _parts(sent)
        token = self._store.token(identity) if identity else None
        with self._lock:
            if len(self._known) >= REMEMBERED_MAX:
                self._known.clear()
            self._known[identity] = (token, time.monotonic() + REMEMBERED_S)
        return _checked(token, secret)

    def is_open(self, scope: Scope) -> bool:
        """Whether this needs no token here. May ask the store."""
        if not self._is_local or scope is Scope.PROMOTE:
            return False
        is_open, until = self._open
        if until < time.monotonic():
            is_open = not self._store.tokens()
            self._open = (is_open, time.monotonic() + REMEMBERED_S)
        return is_open


def _parts(sent: str) -> tuple[str, str]:
    prefix, _, rest = sent.partition("_")
    identity, _, secret = rest.partition("_")
    return (identity, secret) if prefix == PREFIX and len(sent) <= TOKEN_MAX_CHARS else ("", "")


def _checked(token: Token | None, secret: str) -> Token | None:
    is_right = hmac.compare_digest(_hash(secret), token.secret_hash if token else _NOBODY)
    return token if token is not None and is_right and token.revoked_at is None else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()
