"""Whatever goes wrong while asking becomes one of our causes, and one sentence.

Nothing that a connection or the official client raises gets past this module. What happened is read from the
whole chain of causes.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from http import HTTPStatus

from deploy_gates.core.errors import Cause, Unanswered
from deploy_gates.core.question import Answer
from deploy_gates.model import protocol
from deploy_gates.model.values import Endpoint, Failed

SAID_MAX_CHARS = 300
"""So much of what an endpoint says goes into a message."""

KEY_MIN_CHARS = 8
"""What is shorter is no secret, and may be part of any word."""

_CAUSES_MAX = 10
_SNAPSHOT = re.compile(r"(-\d{2,8})+(-preview)?")
"""What follows a model's name in the name of one of its snapshots: `-2025-04-14`, `-0613`."""
_PASSING = frozenset({"408", "409", "429", "rate_limit_exceeded", "server_error", "timeout"})
"""Codes of failures told within an answer that may be gone the next time."""
_NOT_CONNECTED = frozenset({"ConnectError", "ClientConnectorError"})
"""Exceptions of httpx2 and of aiohttp that say that there never was a connection."""


def is_served_by(asked: str, served: str, served_as: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether `served` is the model asked for: `gpt-4.1-2025-04-14` is `gpt-4.1`, `gpt-4.1-mini` is not."""
    names = (asked, *served_as.get(asked, ()))
    return any(served == name or _is_snapshot(served, name) for name in names)


def _is_snapshot(served: str, name: str) -> bool:
    return served.startswith(name) and _SNAPSHOT.fullmatch(served, len(name)) is not None


def wrong_model(asked: str, answer: Answer) -> Failed:
    """Another model answered than the one asked for."""
    return Failed(
        cause=Cause.WRONG_MODEL,
        message=f"{answer.model} answered, where {asked} was asked",
        hint=f'if that is the same model, say so: `served_as = ["{answer.model}"]` under '
        f'`[tool.deploy_gates.models."{asked}"]`',
        usage=answer.usage,
    )


def too_slow(endpoint: Endpoint, within_s: float) -> Failed:
    """No whole answer came in time."""
    return Failed(
        cause=Cause.UNREACHABLE,
        message=f"{endpoint.place} gave no whole answer within {within_s:g} s",
        can_retry=True,
        is_late=True,
    )


def read(error: Exception, endpoint: Endpoint, now: Callable[[], datetime]) -> Failed:
    """What `error` means, whatever it is."""
    place = endpoint.place
    if isinstance(error, Unanswered):
        return Failed(cause=error.cause, message=error.message, hint=error.hint)
    if isinstance(error, protocol.Refused):
        return _status(error, endpoint, now)
    if isinstance(error, protocol.Failed):
        return _failure_within(error, endpoint)
    if isinstance(error, protocol.BrokeOff):
        message = f"{place} broke off: {error}"
        return Failed(cause=Cause.UNREACHABLE, message=message, can_retry=True, usage=error.usage)
    if isinstance(error, protocol.Malformed):
        message = f"{place} gave no answer of the protocol: {_short(str(error), endpoint)}"
        return Failed(cause=Cause.MALFORMED, message=message, can_retry=True, usage=error.usage)
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        message = f"{place} gave no answer of the protocol: a part of the stream is not JSON"
        return Failed(cause=Cause.MALFORMED, message=message, can_retry=True)
    return _no_connection(error, endpoint)


def _status(error: protocol.Refused, endpoint: Endpoint, now: Callable[[], datetime]) -> Failed:
    """An HTTP status that is no success."""
    status = error.status
    message = f"{endpoint.place} answered {status}: {_short(_said(error), endpoint)}"
    if status in (401, 403):
        return Failed(cause=Cause.UNAUTHORIZED, message=message, hint="look after the API key")
    if error.code == "insufficient_quota":
        return Failed(cause=Cause.UNAUTHORIZED, message=message, hint="the key's account is out of credit")
    if status in (408, 409, 429) or status >= 500:
        return Failed(
            cause=Cause.OVERLOADED,
            message=message,
            can_retry=True,
            wait_s=retry_after_s(error.headers, now),
            is_throttled=status == 429,
        )
    return Failed(cause=Cause.REFUSED, message=message)


def _said(error: protocol.Refused) -> str:
    """What the endpoint says of its refusal, in its own words."""
    body = error.said
    if isinstance(body, Mapping):
        for key in ("message", "detail", "error"):
            if isinstance(body.get(key), str) and body[key]:
                return str(body[key])
    with contextlib.suppress(ValueError):
        return HTTPStatus(error.status).phrase
    return "no reason given"


def _failure_within(error: protocol.Failed, endpoint: Endpoint) -> Failed:
    """A failure told in the body of a 200, or in the middle of a stream."""
    message = f"{endpoint.place} failed to answer: {_short(str(error), endpoint)}"
    if error.code == "insufficient_quota":
        return Failed(cause=Cause.UNAUTHORIZED, message=message, hint="the key's account is out of credit")
    if not error.code or error.code in _PASSING or error.code.startswith("5"):
        return Failed(cause=Cause.OVERLOADED, message=message, can_retry=True)
    return Failed(cause=Cause.REFUSED, message=message)


def _no_connection(error: Exception, endpoint: Endpoint) -> Failed:
    chain = list(_causes(error))
    names = {kind.__name__ for cause in chain for kind in type(cause).__mro__}
    said = next((each.strerror for each in chain if isinstance(each, OSError) and each.strerror), "")
    if any(isinstance(each, ConnectionRefusedError) for each in chain):
        said = "nobody listens there"
    last = chain[-1]
    is_refused = bool(names & _NOT_CONNECTED)
    verb = "cannot be reached" if is_refused or "UnsupportedProtocol" in names else "broke off"
    return Failed(
        cause=Cause.UNREACHABLE,
        message=f"{endpoint.place} {verb}: {_short(said or f'{type(last).__name__} {last}', endpoint)}",
        # What is wrong with the request itself, its URL for one, is wrong the next time too.
        can_retry="UnsupportedProtocol" not in names and not isinstance(error, (ValueError, TypeError)),
        is_refused=is_refused,
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what led to it."""
    at: BaseException | None = error
    for _ in range(_CAUSES_MAX):
        if at is None:
            return
        yield at
        at = at.__cause__ or at.__context__


def _short(text: str, endpoint: Endpoint) -> str:
    """One line of what was said, without the key, should it be repeated there."""
    if len(endpoint.api_key) >= KEY_MIN_CHARS:
        text = text.replace(endpoint.api_key, "***")
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= SAID_MAX_CHARS else text[: SAID_MAX_CHARS - 1] + "…"


def retry_after_s(headers: Mapping[str, str], now: Callable[[], datetime]) -> float | None:
    """How long an endpoint asks to wait: in milliseconds, in seconds, maybe with a fraction, or as a date."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with contextlib.suppress(ValueError):
            seconds = float(headers.get(name, "")) * unit_s
            if math.isfinite(seconds) and seconds >= 0:
                return seconds
    try:
        until = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
        # By the endpoint's own clock, where it shows it: ours may be minutes off.
        date = headers.get("date")
        since = email.utils.parsedate_to_datetime(date) if date else now()
        return max(0.0, (until - since).total_seconds())
    except (ValueError, TypeError):
        return None
