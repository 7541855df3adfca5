"""Requests and answers: bodies of a bounded size, JSON, and errors in one sentence."""

from __future__ import annotations

import asyncio
import functools
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeAlias, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.errors import (
    DeployGatesError,
    EnvelopeError,
    Refusal,
    Refused,
    StoreError,
    StoreUnavailable,
)
from deploy_gates.core.promotion import Scope, Token
from deploy_gates.server.access import Access

BODY_MAX_BYTES = 1 << 20
BODY_S = 10.0
"""How long a client may take to send its body."""
RETRY_AFTER_S = 1
WHOLE_MAX = 2**53
DEPTH_MAX = 64
"""How deep JSON may be nested."""

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
_A = TypeVar("_A")
_T = TypeVar("_T")
_LOCAL = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?")


def answer(value: Json, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`value` as JSON."""
    return Response(
        json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace"),
        status_code=status,
        headers=dict(headers or {}),
        media_type="application/json",
    )


def error(message: str, status: int, *, hint: str = "", headers: Mapping[str, str] | None = None) -> Response:
    """What went wrong, and what to do."""
    return answer({"error": message, "hint": hint}, status, headers)


def refuse(message: str, status: int = 400, *, hint: str = "") -> HTTPException:
    """To be raised: what went wrong, and what to do."""
    return HTTPException(status, detail=f"{message}\0{hint}")


async def body(request: Request, most: int = BODY_MAX_BYTES) -> bytes:
    """The whole body. An answer is raised for one that is too long, too slow, or breaks off."""
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                content += part
                if len(content) > most:
                    raise refuse(f"the body is longer than {most:,} bytes", 413)
    except TimeoutError as late:
        raise refuse(f"the body took longer than {BODY_S:.0f} s", 408) from late
    except ClientDisconnect as gone:
        raise refuse("the body broke off") from gone
    return bytes(content)


async def document(request: Request, most: int = BODY_MAX_BYTES) -> JsonObject:
    """The JSON object in the body. An answer is raised for anything else."""
    return parsed(await body(request, most))


def parsed(content: bytes) -> JsonObject:
    """The JSON object in `content`; NaN and infinities are no JSON."""
    try:
        value = json.loads(content, parse_constant=_no_json, parse_float=_number)
        json.dumps(value).encode()
    except (ValueError, RecursionError) as wrong:
        raise refuse(f"the body is no JSON: {str(wrong)[:200]}") from wrong
    if not isinstance(value, dict):
        raise refuse("the body is no JSON object")
    if _depth(value) > DEPTH_MAX:
        raise refuse(f"the body is nested deeper than {DEPTH_MAX} levels")
    return value


def member(raw: JsonObject, name: str, kind: type[_T], default: _T | None = None) -> _T:
    """A member of that type; an answer is raised where it is missing or another."""
    value = raw.get(name, default)
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        return value
    words = {str: "text", int: "whole number", dict: "object", list: "list", bool: "boolean"}
    raise refuse(f"`{name}` is missing" if name not in raw else f"`{name}` is no {words[kind]}")


def only(raw: JsonObject, known: Iterable[str]) -> JsonObject:
    """The same; an answer is raised for members that nobody would read."""
    known = sorted(known)
    if unknown := sorted(set(raw) - set(known)):
        told = ", ".join(f"`{each[:40]}`" for each in unknown[:5])
        raise refuse(f"the body has {told}, which is not known here", hint=f"known are {', '.join(known)}")
    return raw


def text(raw: JsonObject, name: str, *, default: str | None = None, most: int = 2_000) -> str:
    """A text of a bounded length that a database can hold."""
    value = member(raw, name, str, default)
    if len(value) > most:
        raise refuse(f"`{name}` is longer than {most:,} characters")
    if "\0" in value or any(0xD800 <= ord(each) <= 0xDFFF for each in value):
        raise refuse(f"`{name}` holds a character that is no text")
    return value


def whole(raw: JsonObject, name: str, *, default: int | None = None, most: int = 2**53) -> int:
    """A whole number from 0 on."""
    value = member(raw, name, int, default)
    if not 0 <= value <= most:
        raise refuse(f"`{name}` is not from 0 to {most:,}")
    return value


async def allowed(request: Request, scope: Scope) -> Token | None:
    """Who asks; `None` where nobody has to say. An answer is raised for those who may not."""
    access: Access = request.app.state.access
    header = request.headers.get("authorization", "")
    kind, _, sent = header.partition(" ")
    sent = sent.strip() if kind.lower() == "bearer" else request.headers.get("x-api-key", "")
    if not sent:
        if _is_from_here(request) and await _is_open(access, scope):
            return None
        raise HTTPException(
            401,
            detail=f"a token for `{scope}` is needed\0deploy-gates token create NAME --scope {scope}",
            headers={"WWW-Authenticate": "Bearer"},
        )
    is_known, token = access.remembered(sent)
    if not is_known:
        token = await _from_store(access.look_up, sent)
    if token is None:
        raise HTTPException(
            401,
            detail="nobody knows this token, or it was revoked\0deploy-gates token list",
            headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
        )
    if scope not in token.scopes:
        raise refuse(
            f"this token is not for `{scope}`", 403, hint=f"deploy-gates token create NAME --scope {scope}"
        )
    return token


async def _is_open(access: Access, scope: Scope) -> bool:
    is_open = access.remembered_open(scope)
    return await _from_store(access.is_open, scope) if is_open is None else is_open


async def _from_store(call: Callable[[_A], _T], argument: _A) -> _T:
    """What the store says; strangers are not told which store that is."""
    try:
        return await run_in_threadpool(call, argument)
    except StoreUnavailable as away:
        raise HTTPException(
            503,
            detail="the store is away, so nobody can be let in who was not lately\0",
            headers={"Retry-After": str(RETRY_AFTER_S)},
        ) from away


def _is_from_here(request: Request) -> bool:
    """Whether nobody asks on behalf of another site: its pages reach loopback, too, through a browser."""
    origin = request.headers.get("origin")
    sites = [request.headers.get("host", "")] + ([] if origin is None else [origin.rpartition("://")[2]])
    return all(_LOCAL.fullmatch(each) for each in sites)


async def in_thread(call: Callable[..., _T], *arguments: object, **named: object) -> _T:
    """Do what may block in a thread."""
    return await run_in_threadpool(functools.partial(call, *arguments, **named))


def raised(failure: Exception) -> Response:
    """The answer to what an endpoint raised."""
    if isinstance(failure, HTTPException):
        message, _, hint = str(failure.detail).partition("\0")
        return error(message, failure.status_code, hint=hint, headers=failure.headers)
    if isinstance(failure, Refused):
        status = 404 if failure.refusal is Refusal.UNKNOWN else 409
        return answer(
            {"error": failure.message, "hint": failure.hint, "refusal": failure.refusal.value}, status
        )
    if isinstance(failure, EnvelopeError):
        return error(failure.message, 422, hint=failure.hint)
    if isinstance(failure, StoreUnavailable | StoreError):
        return error(failure.message, 503, hint=failure.hint, headers={"Retry-After": str(RETRY_AFTER_S)})
    if isinstance(failure, DeployGatesError):
        return error(failure.message, 400, hint=failure.hint)
    raise failure


def _number(spelled: str) -> int | float:
    """JSON does not tell 1.0 from 1, and neither does JSON Schema."""
    value = float(spelled)
    return int(value) if value.is_integer() and abs(value) <= WHOLE_MAX else value


def _no_json(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _depth(value: Json) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        each, depth = waiting.pop()
        deepest = max(deepest, depth)
        inner = each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        waiting += [(one, depth + 1) for one in inner]
    return deepest
