"""Bearer tokens: their owners hold the secret, and the store only its hash."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import datetime

from deploy_gates.core.promotion import Scope, Token

PREFIX = "dg"
SECRET_BYTES = 32
"""So random that a plain hash of it is safe."""
TOKEN_MAX_CHARS = 200

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


def parts(sent: str) -> tuple[str, str]:
    """The id and the secret in what somebody sends; empty if it is no token."""
    prefix, _, rest = sent.partition("_")
    identity, _, secret = rest.partition("_")
    return (identity, secret) if prefix == PREFIX and len(sent) <= TOKEN_MAX_CHARS else ("", "")


def checked(token: Token | None, secret: str) -> Token | None:
    """The token, if this is its secret and it is in force; compared in constant time."""
    is_right = hmac.compare_digest(_hash(secret), token.secret_hash if token else _NOBODY)
    return token if token is not None and is_right and token.revoked_at is None else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()
