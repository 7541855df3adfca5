"""HTTP/1.1 to one endpoint, as much of it as asking a model takes: POST JSON, read the answer.

The official client takes most of a second to import and a millisecond a call, and sends no more than this
does. So it is kept for what is not here: proxies, and credentials in the address (`sdk`). What is read is
held to the protocol: a body that ends too early is no answer, and nothing is guessed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import ssl
import sys
import time
import zlib
from collections.abc import AsyncIterator, Mapping
from urllib.parse import quote, urljoin, urlsplit

from deploy_gates.core.errors import Cause, Unanswered
from deploy_gates.model import protocol
from deploy_gates.model.values import Endpoint

DEFAULT_URL = "https://api.openai.com/v1"
HEAD_MAX_BYTES = 1 << 16
BODY_MAX_BYTES = 1 << 26
IDLE_MAX_S = 4.0
"""Servers close what is idle for five seconds, many of them."""
RESOLVED_FOR_S = 60.0
REDIRECTS_MAX = 5
_END = b"\r\n\r\n"


class ConnectError(Exception):
    """No connection could be made."""


class Closed(Exception):
    """The other side hung up before it had said all."""


def serves(endpoint: Endpoint) -> bool:
    """Whether this can reach it: directly, by an address and nothing else. `Unanswered` if it is none."""
    try:
        parts = urlsplit(endpoint.base_url or DEFAULT_URL)
        _ = parts.port
    except ValueError as error:
        raise Unanswered(Cause.UNREACHABLE, f"{endpoint.place} is no address: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Unanswered(
            Cause.UNREACHABLE, f"{endpoint.place} cannot be reached: no address of HTTP", hint=_ADDRESS_HINT
        )
    return parts.username is None and not _is_proxied(parts.scheme, parts.hostname)


_ADDRESS_HINT = "write `base_url` like https://api.example.com/v1"


def _is_proxied(scheme: str, host: str) -> bool:
    if sys.platform != "darwin" and not any(name.lower().endswith("_proxy") for name in os.environ):
        return False
    from urllib.request import getproxies, proxy_bypass  # reads the settings of macOS, too

    proxies = getproxies()
    return bool(proxies.get(scheme) or proxies.get("all")) and not proxy_bypass(host)


class Reply:
    """What came back: the head at once, the rest as it is read."""

    def __init__(self, status: int, headers: Mapping[str, str], connection: _Connection, wire: Wire) -> None:
        self.status = status
        self.headers = headers
        self._connection = connection
        self._wire = wire

    async def read(self, most: int = BODY_MAX_BYTES) -> bytes:
        """All of it. `Closed` if it ends too early."""
        made = bytearray()
        async for part in self._parts(most):
            made += part
            if len(made) > most:
                raise _too_large(most)
        return _inflated(bytes(made), self.headers.get("content-encoding", "identity"), most)

    async def events(self) -> AsyncIterator[object]:
        """The events of a stream, decoded; what `[DONE]` ends, and an error within it raises."""
        rest = b""
        async for part in self._parts():
            *lines, rest = (rest + part).split(b"\n")
            if len(rest) > BODY_MAX_BYTES:
                raise protocol.Malformed("an event of the stream has no end")
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                said = line[5:].strip()
                if said.startswith(b"[DONE]"):
                    return
                event: object = json.loads(said)
                if isinstance(event, dict) and isinstance(event.get("error"), dict):
                    raise protocol.failure(event["error"])
                yield event

    async def _parts(self, most: int = BODY_MAX_BYTES) -> AsyncIterator[bytes]:
        connection, headers, is_whole = self._connection, self.headers, False
        try:
            if self.status in (204, 304):
                is_whole = True
            elif "chunked" in headers.get("transfer-encoding", "").lower():
                while size := _size(await connection.line()):
                    yield await connection.exactly(size, most)
                    await connection.line()
                while await connection.line():
                    pass  # trailers
                is_whole = True
            elif "content-length" in headers:
                yield await connection.exactly(_number(headers["content-length"]), most)
                is_whole = True
            else:
                while part := await connection.rest():
                    yield part
        finally:
            self._wire.release(connection, is_whole and headers.get("connection", "").lower() != "close")


def _size(line: bytes) -> int:
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError:
        raise protocol.Malformed("a chunk of the body has no length") from None


def _number(text: str) -> int:
    if not text.isdecimal():
        raise protocol.Malformed(f"the length of the body is {text[:40]!r}")
    return int(text)


def _too_large(most: int) -> protocol.Malformed:
    return protocol.Malformed(f"the body is larger than {most // (1 << 20):,} MiB")


def _inflated(body: bytes, encoding: str, most: int) -> bytes:
    if encoding in ("identity", ""):
        return body
    if encoding not in ("gzip", "deflate"):
        raise protocol.Malformed(f"the body is encoded as {encoding[:40]}, which was not asked for")
    try:
        making = zlib.decompressobj(wbits=47)
        made = making.decompress(body, most)
    except zlib.error as error:
        raise protocol.Malformed(f"the body is not {encoding}") from error
    if not making.eof and not making.unconsumed_tail:
        raise Closed(f"the body ends before its {encoding} does")
    if making.unconsumed_tail:
        raise _too_large(most)
    return made


class Wire:
    """Connections to one endpoint, kept for as long as they are of use."""

    def __init__(self, endpoint: Endpoint, *, user_agent: str = "pytest-deploy-gates") -> None:
        parts = urlsplit(endpoint.base_url or DEFAULT_URL)
        self._url = f"{parts.scheme}://{parts.netloc}"
        self._scheme = parts.scheme
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._path = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~-._")
        self._query = f"?{parts.query}" if parts.query else ""
        sent = {
            "host": parts.netloc.encode("idna").decode() if not parts.netloc.isascii() else parts.netloc,
            "authorization": f"Bearer {endpoint.api_key.strip() or 'none'}",
            "accept": "application/json, text/event-stream",
            "accept-encoding": "gzip, deflate",
            "user-agent": user_agent,
        }
        for name, variable in _OF_ACCOUNT.items():
            if value := os.environ.get(variable):
                sent[name] = value.strip()
        self._head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._addresses: tuple[float, list[str]] = (0.0, [])
        self._resolving = asyncio.Lock()

    async def post(self, path: str, body: bytes) -> Reply:
        """Send JSON; the head of what comes back."""
        return await self.send("POST", path, body, "application/json")

    async def send(self, method: str, path: str, body: bytes, content_type: str) -> Reply:
        """Send it; the head of what comes back. Redirects that keep the method are followed."""
        target = f"{self._path}{path}{self._query}"
        for _ in range(REDIRECTS_MAX):
            reply = await self._once(f"{method} {target}", body, content_type)
            where = reply.headers.get("location", "")
            if reply.status not in (307, 308) or not where:
                return reply
            parts = urlsplit(urljoin(self._url + target, where))
            if f"{parts.scheme}://{parts.netloc}" != self._url:
                return reply  # elsewhere nobody may have the key
            await reply.read()
            target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        return reply

    async def _once(self, what: str, body: bytes, content_type: str) -> Reply:
        connection = await self._connection()
        sized = f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
        try:
            connection.send(f"{what} HTTP/1.1\r\n{self._head}{sized}".encode() + body)
            status, headers = await connection.head()
        except BaseException:
            self.release(connection, is_whole=False)
            raise
        return Reply(status, headers, connection, self)

    def release(self, connection: _Connection, is_whole: bool) -> None:
        """Keep it for the next, if all was read that was sent."""
        if is_whole and connection.is_clean:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()
            self._all.discard(connection)

    async def close(self) -> None:
        for connection in self._all:
            connection.close()
        self._all.clear()
        self._idle.clear()
        await asyncio.sleep(0)

    async def _connection(self) -> _Connection:
        while self._idle:
            kept = self._idle.pop()
            if kept.is_clean and time.monotonic() - kept.idle_since < IDLE_MAX_S:
                return kept
            kept.close()
            self._all.discard(kept)
        made = await self._connect()
        self._all.add(made)
        return made

    async def _connect(self) -> _Connection:
        secure = _trust() if self._scheme == "https" else None
        failed: Exception = OSError("it has no address")
        for address in await self._resolved():
            try:
                _, made = await asyncio.get_running_loop().create_connection(
                    _Connection,
                    address,
                    self._port,
                    ssl=secure,
                    server_hostname=self._host if secure else None,
                )
            except (OSError, ssl.SSLError) as error:
                failed = error
            else:
                return made
        raise ConnectError(str(failed)) from failed

    async def _resolved(self) -> list[str]:
        """The addresses of the host, looked up by one of those who want to know."""
        with contextlib.suppress(ValueError):
            return [str(ipaddress.ip_address(self._host))]
        async with self._resolving:
            at, addresses = self._addresses
            if not addresses or time.monotonic() - at > RESOLVED_FOR_S:
                try:
                    found = await asyncio.get_running_loop().getaddrinfo(
                        self._host,
                        self._port,
                        type=1,  # a stream
                    )
                except OSError as error:
                    raise ConnectError(str(error)) from error
                addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
                self._addresses = (time.monotonic(), addresses)
            return addresses


_OF_ACCOUNT = {"openai-organization": "OPENAI_ORG_ID", "openai-project": "OPENAI_PROJECT_ID"}


def _trust() -> ssl.SSLContext:
    from deploy_gates.model.sdk import trust

    return trust()


class _Connection(asyncio.Protocol):
    """One connection: what came and was not read yet, and who waits for more."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._came = bytearray()
        self._is_over = False
        self._lost: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._came += data
        self._wake()

    def eof_received(self) -> None:
        self._is_over = True
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_over, self._lost = True, error
        self._wake()

    @property
    def is_clean(self) -> bool:
        """Whether another request may go over it."""
        return not self._is_over and not self._came

    def send(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def head(self) -> tuple[int, dict[str, str]]:
        """The status, and the headers by lower-case name."""
        while True:
            while (end := self._came.find(_END)) < 0:
                if len(self._came) > HEAD_MAX_BYTES:
                    raise protocol.Malformed("the head of the response has no end")
                await self._more()
            first, *lines = bytes(self._came[:end]).decode("latin-1").split("\r\n")
            del self._came[: end + len(_END)]
            version, _, rest = first.partition(" ")
            if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
                raise protocol.Malformed(f"it does not speak HTTP: {first[:60]!r}")
            status = int(rest[:3])
            if status >= 200:
                break  # before it, 100 and 103 only say that more is to come
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        if version == "HTTP/1.0":
            headers.setdefault("connection", "close")
        return status, headers

    async def line(self) -> bytes:
        while (end := self._came.find(b"\r\n")) < 0:
            if len(self._came) > HEAD_MAX_BYTES:
                raise protocol.Malformed("a line of the response has no end")
            await self._more()
        found = bytes(self._came[:end])
        del self._came[: end + 2]
        return found

    async def exactly(self, size: int, most: int) -> bytes:
        if size > most:
            raise _too_large(most)
        while len(self._came) < size:
            await self._more()
        found = bytes(self._came[:size])
        del self._came[:size]
        return found

    async def rest(self) -> bytes:
        """What has come by now, and nothing at the end."""
        if not self._came and not self._is_over:
            with contextlib.suppress(Closed):
                await self._more()
        if self._lost is not None:
            raise Closed("the connection was lost") from self._lost
        found = bytes(self._came)
        self._came.clear()
        return found

    async def _more(self) -> None:
        if self._is_over:
            raise Closed("the connection was closed") from self._lost
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
