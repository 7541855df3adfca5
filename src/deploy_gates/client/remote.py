"""Configs over HTTP: a stream that says when to read, and reading with ETags when there is no stream.

The service is answered by this module's memory of what the server said last. A server that is slow, silent,
or broken off costs a bounded wait in the background and nothing else.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.cost import Price
from deploy_gates.core.errors import StoreError, StoreUnavailable
from deploy_gates.core.parsing import list_, object_
from deploy_gates.core.promotion import Acknowledgement, Deployment, Serving
from deploy_gates.core.tally import Tally

if TYPE_CHECKING:
    from deploy_gates.core.ledger import Answer, Transaction

ANSWER_S = 5.0
"""How long a server may take for an answer; half of it in silence."""
ANSWER_MAX_BYTES = 32 << 20
SILENT_S = 25.0
"""A stream says every ten seconds that it is there; one that did not for so long is gone."""
POLL_S = 1.0
"""How often is asked while there is no stream."""
RETRY_FIRST_S, RETRY_MAX_S = 0.1, 3.0
"""How long to wait before a stream is opened again, doubled each time."""
CLOSE_WAIT_S = 0.1
"""How long `close` waits for a request under way, which otherwise cleans up behind itself."""
LINE_MAX_BYTES = 64 << 10
CHUNK_BYTES = 64 << 10

_BROKEN = (OSError, http.client.HTTPException, ValueError)


class HttpFeed:
    """Reads a server's environment, with a thread of its own for the stream."""

    def __init__(self, url: str, token: str, environment: str) -> None:
        self._server = _Server.of(url)
        self.url = self._server.url
        self._token = token
        self._environment = environment
        self._reading = _Line(self._server, token)
        self._writing = _Line(self._server, token)
        self._path = f"/v1/environments/{quote(environment, safe='')}"
        self._etag = ""
        self._deployments: tuple[Deployment, ...] = ()
        self._prices: Mapping[str, Price] = {}
        self._stream = _Stream(self._server, token, f"{self._path}/stream")

    def read(self, known: Collection[str]) -> Serving:
        self._stream.take()
        condition = {"If-None-Match": self._etag} if self._etag else {}
        answer = self._reading.ask("GET", self._path, headers=condition)
        if answer.status == 200:
            self._remember(answer)
        elif answer.status != 304 or not self._etag:
            raise answer.refused("what is served cannot be read")
        self._stream.seen = self._etag
        wanted = {each for row in self._deployments for each in (row.baseline, row.candidate) if each}
        configs = {digest: self._config(digest) for digest in sorted(wanted - set(known))}
        return Serving(
            environment=self._environment,
            deployments=self._deployments,
            configs={digest: spelling for digest, spelling in configs.items() if spelling is not None},
            prices=self._prices,
        )

    def wait(self, timeout_s: float) -> bool:
        return self._stream.wait(timeout_s)

    def wake(self) -> None:
        self._stream.wake()

    def acknowledge(
        self, instance: str, name: str, environment: str, served: Sequence[Acknowledgement]
    ) -> None:
        rows: list[Json] = [
            {
                "config": each.config,
                "revision": each.revision,
                "age_ms": each.age_ms,
                "reloaded": each.reloaded,
                "refused": each.refused,
                "reason": each.reason,
            }
            for each in served
        ]
        body: JsonObject = {"name": name, "environment": environment, "served": rows}
        self._write("PUT", f"/v1/instances/{instance}", body)

    def leave(self, instance: str) -> None:
        self._write("DELETE", f"/v1/instances/{instance}")

    def report(self, instance: str, first: int, tallies: Sequence[Tally]) -> None:
        body: JsonObject = {
            "instance": instance,
            "first": first,
            "tallies": [each.to_json() for each in tallies],
        }
        self._write("POST", "/v1/tallies", body)

    def renewed(self) -> HttpFeed:
        for each in (self._reading, self._writing, self._stream):
            each.forget()
        _parents.append(self)
        return HttpFeed(self.url, self._token, self._environment)

    def close(self) -> None:
        for each in (self._stream, self._reading, self._writing):
            each.close()

    def _remember(self, answer: _Answer) -> None:
        try:
            body = object_(json.loads(answer.body))
            deployments = tuple(Deployment.from_json(each) for each in list_(body["deployments"]))
            prices = {digest: Price.from_json(each) for digest, each in object_(body["prices"]).items()}
        except (ValueError, KeyError, RecursionError) as error:
            raise StoreError(f"{self.url} answers something else than what is served: {error}") from error
        self._etag, self._deployments, self._prices = answer.etag, deployments, prices

    def _config(self, digest: str) -> bytes | None:
        answer = self._reading.ask("GET", f"/v1/configs/{quote(digest, safe='')}")
        if answer.status == 200:
            return answer.body
        if answer.status == 404:
            return None  # that one revision cannot be served, and others can
        raise answer.refused(f"the config {digest[:7]} cannot be read")

    def _write(self, method: str, path: str, body: JsonObject | None = None) -> None:
        answer = self._writing.ask(method, path, body)
        if not 200 <= answer.status < 300:
            raise answer.refused(f"{method} {path.split('/')[2]} was not accepted")


class HttpPurse:
    """Transactions of credits by a server, over a few connections that are kept."""

    def __init__(self, url: str, token: str) -> None:
        self._server = _Server.of(url)
        self._token = token
        self._lock = threading.Lock()
        self._idle: list[_Line] = []

    def transact(self, asked: Transaction, *, price: Price | None = None, is_priced: bool = False) -> Answer:
        from deploy_gates.core import receipts

        body: JsonObject = {
            "organisation": asked.organisation,
            "id": asked.id,
            "kind": asked.kind.value,
            "amount": None if is_priced else asked.amount,
            "usage": receipts.usage_json(asked.usage),
            "model": asked.model,
            "reservation": asked.reservation,
            "hold_s": asked.hold_s,
            "note": asked.note,
        }
        if price is not None and is_priced:
            body["price"] = price.to_json()
        with self._lock:
            line = self._idle.pop() if self._idle else _Line(self._server, self._token)
        try:
            answer = line.ask("POST", "/v1/credits/transactions", body)
        finally:
            with self._lock:
                self._idle.append(line)
        try:
            return receipts.answer_of(json.loads(answer.body))
        except (ValueError, RecursionError):
            raise answer.refused("the transaction was not made") from None

    async def transact_async(
        self, asked: Transaction, *, price: Price | None = None, is_priced: bool = False
    ) -> Answer:
        import asyncio

        return await asyncio.to_thread(self.transact, asked, price=price, is_priced=is_priced)

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for each in idle:
            each.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Server:
    """Where a server is."""

    url: str
    host: str
    port: int | None
    prefix: str
    is_secure: bool

    @classmethod
    def of(cls, url: str) -> _Server:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise StoreError(f"{url!r} is no address of a server: {error}") from error
        if not host or parts.username or parts.query or parts.fragment:
            raise StoreError(
                f"{parts.scheme}://{host or ''} with what else stands there is no address of a server",
                hint="https://host:port, and the token apart from it",
            )
        prefix = parts.path.rstrip("/")
        netloc = parts.netloc.rpartition("@")[2]
        return cls(
            url=f"{parts.scheme}://{netloc}{prefix}",
            host=host,
            port=port,
            prefix=prefix,
            is_secure=parts.scheme == "https",
        )

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.is_secure else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=timeout_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    url: str
    status: int
    etag: str
    body: bytes = field(repr=False)

    def refused(self, what: str) -> StoreError:
        """What to raise for an answer that is none."""
        if self.status in (401, 403):
            return StoreError(
                f"{self.url} refuses the token ({self.status}): {what}{self._said()}",
                hint="`deploy-gates token create` makes one",
            )
        kind = StoreUnavailable if self.status >= 500 or self.status == 429 else StoreError
        return kind(f"{self.url} answers {self.status}: {what}{self._said()}")

    def _said(self) -> str:
        try:
            said = object_(json.loads(self.body)).get("error")
        except (ValueError, RecursionError):
            return ""
        return f"; it says: {said[:300]}" if isinstance(said, str) else ""


class _Line:
    """One connection that is kept, for one request at a time."""

    def __init__(self, server: _Server, token: str) -> None:
        self._server = server
        self._token = token
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        self._is_closed = False

    def ask(
        self,
        method: str,
        path: str,
        body: JsonObject | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> _Answer:
        """The answer, whatever its status. `StoreUnavailable` if there is none in time."""
        content = None if body is None else json.dumps(body).encode()
        sent = {**_authorization(self._token), **(headers or {})}
        if content is not None:
            sent["Content-Type"] = "application/json"
        with self._lock:
            is_kept = self._connection is not None
            try:
                return self._once(method, path, content, sent)
            except _BROKEN as error:
                if not is_kept or isinstance(error, TimeoutError) or self._is_closed:
                    raise self._lost(error) from error
            try:  # a connection that was kept may have been closed by the server meanwhile
                return self._once(method, path, content, sent)
            except _BROKEN as error:
                raise self._lost(error) from error

    def close(self) -> None:
        self._is_closed = True
        connection = self._connection
        _shut_socket(connection.sock if connection is not None else None)
        if self._lock.acquire(timeout=CLOSE_WAIT_S):
            self._drop()
            self._lock.release()

    def forget(self) -> None:
        """In a child after a fork: let go of the parent's connection, without a word to the server."""
        if self._connection is not None:
            _detach(self._connection.sock)

    def _once(self, method: str, path: str, content: bytes | None, headers: Mapping[str, str]) -> _Answer:
        if self._is_closed:
            raise ConnectionError("the client is closed")
        if self._connection is None:
            self._connection = self._server.connection(ANSWER_S / 2)
        is_kept = False
        try:
            self._connection.request(method, self._server.prefix + path, body=content, headers=dict(headers))
            with self._connection.getresponse() as response:
                body = _body(response, time.monotonic() + ANSWER_S)
                is_kept = not response.will_close and not self._is_closed
            etag = response.headers.get("ETag", "")
            return _Answer(url=self._server.url, status=response.status, etag=etag, body=body)
        finally:
            if not is_kept:
                self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _lost(self, error: Exception) -> StoreUnavailable:
        return StoreUnavailable(f"{self._server.url} does not answer: {_words(error)}")


def _body(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The whole body. `TimeoutError` if it is not there by `deadline`, on the monotonic clock."""
    body = bytearray()
    while part := response.read1(CHUNK_BYTES):
        body += part
        if len(body) > ANSWER_MAX_BYTES:
            raise ValueError(f"the answer is longer than {ANSWER_MAX_BYTES:,} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError(f"the answer takes longer than {ANSWER_S:.0f} s")
    if response.length:
        raise http.client.IncompleteRead(bytes(body), response.length)
    return bytes(body)


class _Stream:
    """Listens to a server's events in a thread of its own, and opens the stream again when it breaks."""

    def __init__(self, server: _Server, token: str, path: str) -> None:
        self._server = server
        self._token = token
        self._path = path
        self._news = threading.Condition()
        self._is_open = False
        self._is_woken = False
        self._told = ""
        """The ETag the server named last, and nobody has read since."""
        self.seen = ""
        """The ETag that was read last."""
        self._stop = threading.Event()
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """The news are being read. Listen, if nobody does yet."""
        with self._news:
            self._told = ""
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._listen, name="deploy-gates stream", daemon=True)
            self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Whether to read again: the server says so, or there is no stream and it is time to ask."""
        with self._news:
            was_open = self._is_open
            self._news.wait_for(
                lambda: self._is_woken or self._has_news() or self._is_open != was_open,
                timeout_s if was_open else min(timeout_s, POLL_S),
            )
            if self._is_woken:
                self._is_woken = False
                return False
            return self._has_news() or not was_open or not self._is_open

    def wake(self) -> None:
        with self._news:
            self._is_woken = True
            self._news.notify_all()

    def close(self) -> None:
        self._stop.set()
        self.wake()
        _shut_socket(self._socket)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_WAIT_S)

    def forget(self) -> None:
        """In a child after a fork; the thread is the parent's, and its buffers are locked for ever."""
        _detach(self._socket)

    def _has_news(self) -> bool:
        return bool(self._told) and self._told != self.seen

    def _listen(self) -> None:
        failures = 0
        while not self._stop.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError, AttributeError):
                self._receive()  # reading says what is wrong; the stream only makes it faster
            failures = 1 if self._is_open else failures + 1
            with self._news:
                self._is_open = False
                self._told = ""
                self._news.notify_all()
            longest_s = min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** min(failures - 1, 16))
            self._stop.wait(longest_s * random.uniform(0.5, 1.0))

    def _receive(self) -> None:
        """Listen to one stream, until it ends or says nothing for too long."""
        connection = self._server.connection(min(ANSWER_S, SILENT_S))
        try:
            connection.connect()
            self._socket = connection.sock
            if self._stop.is_set():
                return
            headers = {"Accept": "text/event-stream", **_authorization(self._token)}
            connection.request("GET", self._server.prefix + self._path, headers=headers)
            with connection.getresponse() as response:
                kind = response.headers.get_content_type()
                if response.status != 200 or kind != "text/event-stream":
                    return
                self._socket.settimeout(SILENT_S)
                self._read_events(response)
        finally:
            self._socket = None
            connection.close()

    def _read_events(self, response: http.client.HTTPResponse) -> None:
        event, data = "", ""
        while not self._stop.is_set():
            line = response.readline(LINE_MAX_BYTES)
            if not line.endswith(b"\n"):
                return  # it has ended, or is no stream of ours
            text = line.decode("utf-8", errors="replace").rstrip("\r\n")
            name, _, value = text.partition(":")
            if not text:
                if event == "changed":
                    self._hear(data)
                event, data = "", ""
            elif name == "event":
                event = value.strip()
            elif name == "data":
                data = value.strip()

    def _hear(self, data: str) -> None:
        etag = object_(json.loads(data)).get("etag")
        with self._news:
            self._told = etag if isinstance(etag, str) else ""
            self._is_open = True
            self._news.notify_all()


def _authorization(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _words(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "the answer breaks off"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _shut_socket(it: socket.socket | None) -> None:
    """Have whoever waits for it wait no more. Not by its own `shutdown`: that of TLS forgets its state."""
    if it is not None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(it, socket.SHUT_RDWR)


def _detach(it: socket.socket | None) -> None:
    if it is not None:
        number = it.detach()
        if number >= 0:
            socket.close(number)


_parents: list[HttpFeed] = []
"""What a child has of its parent's: the buffers in there are never touched again."""
