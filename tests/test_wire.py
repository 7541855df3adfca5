"""HTTP as servers speak it, in all the ways they frame a body, byte for byte over a real socket."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from deploy_gates.core.errors import Unanswered
from deploy_gates.model import protocol, wire
from deploy_gates.model.values import Endpoint


@dataclass
class Listening:
    """A server that says these bytes, one after the other, to one request after the other."""

    url: str = ""
    heard: list[bytes] = field(default_factory=list)
    connections: int = 0


@contextmanager
def saying(*replies: bytes, hangs_up: bool = False) -> Iterator[Listening]:
    """Each reply answers one request; with `hangs_up`, the connection is closed after each."""
    told, left = Listening(), list(replies)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        told.url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"

        def serve() -> None:
            while left:
                connection, _ = listening.accept()
                told.connections += 1
                with connection:
                    while left and (data := _request(connection)):
                        told.heard.append(data)
                        connection.sendall(left.pop(0))
                        if hangs_up:
                            break

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield told
        thread.join(5)


def _request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def asked(url: str, times: int = 1) -> Sequence[tuple[int, bytes]]:
    """The status and the body of each reply."""

    async def ask() -> list[tuple[int, bytes]]:
        line = wire.Wire(Endpoint(base_url=url, api_key="sk-x"))
        try:
            found = []
            for _ in range(times):
                reply = await line.post("/chat/completions", b"{}")
                found.append((reply.status, await reply.read()))
            return found
        finally:
            await line.close()

    return asyncio.run(asyncio.wait_for(ask(), 5))


PACKED = gzip.compress(b"hello")
FRAMED = {
    "a length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
    "chunks and trailers": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n"
    ),
    "packed": (
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(PACKED) + PACKED
    ),
    "early hints first": (
        b"HTTP/1.1 103 -\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
    ),
    "no reason": b"HTTP/1.1 200\r\ncontent-length: 5\r\n\r\nhello",
}


@pytest.mark.parametrize("name", FRAMED)
def test_a_body_is_read_however_it_is_framed_and_the_connection_kept(name: str) -> None:
    with saying(FRAMED[name], FRAMED[name]) as server:
        found = asked(server.url, times=2)

    assert found == [(200, b"hello")] * 2
    assert server.connections == 1


def test_a_body_may_end_where_the_connection_does() -> None:
    with saying(b"HTTP/1.0 200 OK\r\n\r\nhello", b"HTTP/1.0 200 OK\r\n\r\nhello", hangs_up=True) as server:
        found = asked(server.url, times=2)

    assert found == [(200, b"hello")] * 2
    assert server.connections == 2


def test_what_asks_for_it_is_not_used_again() -> None:
    reply = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello"

    with saying(reply, reply, hangs_up=True) as server:
        asked(server.url, times=2)

    assert server.connections == 2


BROKEN = {
    "half a body": b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello",
    "half a chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhello",
    "no last chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\ncontent-le",
    "nothing": b"",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_ends_too_early_is_no_answer(name: str) -> None:
    with saying(BROKEN[name], hangs_up=True) as server, pytest.raises(wire.Closed):
        asked(server.url)


MALFORMED = {
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "a length that is none": b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello",
    "a huge length": b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
    "a chunk without a length": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nhello\r\n",
    "an encoding nobody asked for": b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 1\r\n\r\nx",
    "not the encoding it says": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nxyz",
    "a head without an end": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_http_is_said_to_be_none(name: str) -> None:
    with saying(MALFORMED[name], hangs_up=True) as server, pytest.raises(protocol.Malformed):
        asked(server.url)


def test_a_redirect_on_the_same_host_is_followed_and_the_key_goes_nowhere_else() -> None:
    here = b"HTTP/1.1 307 -\r\nlocation: /v2/chat\r\ncontent-length: 0\r\n\r\n"
    away = b"HTTP/1.1 307 -\r\nlocation: http://other.example/v1\r\ncontent-length: 0\r\n\r\n"

    with saying(here, FRAMED["a length"], away) as server:
        found = asked(server.url, times=2)

    assert [status for status, _ in found] == [200, 307]
    assert [each.split(b" ")[1] for each in server.heard] == [
        b"/v1/chat/completions",
        b"/v2/chat",
        b"/v1/chat/completions",
    ]


def test_the_request_is_what_the_protocol_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")

    with saying(FRAMED["a length"]) as server:
        asked(server.url + "?api-version=7")

    (heard,) = server.heard
    assert heard.startswith(b"POST /v1/chat/completions?api-version=7 HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"\r\nauthorization: Bearer sk-x\r\n" in heard
    assert b"\r\nopenai-organization: org-1\r\n" in heard
    assert heard.endswith(b"\r\ncontent-length: 2\r\n\r\n{}")


@pytest.mark.parametrize(
    ("base_url", "proxies", "is_direct"),
    [
        ("https://api.example.com/v1", {}, True),
        ("", {}, True),
        ("https://ada:secret@api.example.com/v1", {}, False),
        ("https://api.example.com/v1", {"https_proxy": "http://127.0.0.1:3128"}, False),
        (
            "https://api.example.com/v1",
            {"https_proxy": "http://127.0.0.1:3128", "no_proxy": "example.com"},
            True,
        ),
        ("https://api.example.com/v1", {"all_proxy": "http://127.0.0.1:3128"}, False),
        ("http://api.example.com/v1", {"https_proxy": "http://127.0.0.1:3128"}, True),
    ],
)
def test_what_goes_through_a_proxy_is_left_to_the_official_client(
    monkeypatch: pytest.MonkeyPatch, base_url: str, proxies: dict[str, str], is_direct: bool
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)

    assert wire.serves(Endpoint(base_url=base_url)) is is_direct


def test_an_address_without_a_host_is_said_to_be_none() -> None:
    with pytest.raises(Unanswered, match="no address"):
        wire.serves(Endpoint(base_url="localhost:8080"))
