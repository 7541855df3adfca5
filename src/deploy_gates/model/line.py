"""How an endpoint is reached: over `wire`, or by the official client where that is not enough."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from typing import Protocol

from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.errors import Cause, Unanswered
from deploy_gates.model import protocol, wire
from deploy_gates.model.values import Endpoint

FILE_MAX_BYTES = 1 << 30


class Line(Protocol):
    """How to reach an endpoint. What is no success raises `protocol.Refused`, or whatever went wrong."""

    async def whole(self, path: str, body: JsonObject) -> bytes:
        """The body of the response."""

    async def parts(self, path: str, body: JsonObject) -> tuple[bytes | None, AsyncIterator[object]]:
        """The body, where the response is no stream; else its events."""

    async def fetch(self, path: str) -> bytes:
        """What stands there."""

    async def upload(self, path: str, content: bytes, *, name: str, purpose: str) -> bytes:
        """Send a file; what is said of it."""

    async def close(self) -> None:
        """Hang up."""


def opened(endpoint: Endpoint) -> Line:
    """The shortest way to it. `Unanswered` where there is none."""
    key = endpoint.api_key.strip()
    if not (key.isascii() and key.isprintable()):
        raise Unanswered(Cause.UNAUTHORIZED, "the API key holds characters that no HTTP header can hold")
    if wire.serves(endpoint):
        return _Direct(endpoint)
    from deploy_gates.model.sdk import Sdk

    return Sdk(endpoint)


class _Direct:
    """An endpoint asked over `wire`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._wire = wire.Wire(endpoint)

    async def whole(self, path: str, body: JsonObject) -> bytes:
        return await (await self._reply(path, body)).read()

    async def parts(self, path: str, body: JsonObject) -> tuple[bytes | None, AsyncIterator[object]]:
        reply = await self._reply(path, body)
        is_stream = reply.headers.get("content-type", "").startswith("text/event-stream")
        return (None if is_stream else await reply.read()), reply.events()

    async def fetch(self, path: str) -> bytes:
        return await (await self._sent("GET", path, b"")).read(FILE_MAX_BYTES)

    async def upload(self, path: str, content: bytes, *, name: str, purpose: str) -> bytes:
        mark = f"deploy-gates-{secrets.token_hex(16)}"
        told = f'--{mark}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
        told += f'--{mark}\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\n'
        told += "content-type: application/jsonl\r\n\r\n"
        body = told.encode() + content + f"\r\n--{mark}--\r\n".encode()
        return await (await self._sent("POST", path, body, f"multipart/form-data; boundary={mark}")).read()

    async def _reply(self, path: str, body: JsonObject) -> wire.Reply:
        return await self._sent("POST", path, encoded(body))

    async def _sent(
        self, method: str, path: str, body: bytes, content_type: str = "application/json"
    ) -> wire.Reply:
        reply = await self._wire.send(method, path, body, content_type)
        if not 200 <= reply.status < 300:
            raise protocol.Refused(reply.status, reply.headers, _maybe_json(await reply.read()))
        return reply

    async def close(self) -> None:
        await self._wire.close()


def encoded(body: JsonObject) -> bytes:
    """A body as it is sent."""
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def _maybe_json(raw: bytes) -> object:
    try:
        made: object = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return made


def decoded(raw: bytes) -> object:
    """The JSON of a body. `Malformed` if it is none."""
    try:
        made: object = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise protocol.Malformed("the body is not JSON") from error
    return made
