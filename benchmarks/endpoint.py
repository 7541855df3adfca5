"""A model that answers at once, in a process of its own: fast enough never to be what a benchmark measures.

    python benchmarks/endpoint.py --port 0

It speaks as much of Chat Completions as whole answers need. A prompt names its ticket, `ticket 17 about
refund`, and the answer has seven fields, right but for 3.5 % of the tickets. `POST /set` takes a JSON object
and begins to count anew: `delay_s`, and which share of first attempts fails how (`fault`, `share`). `GET
/stats` tells how many requests came, how many at once at most, and how many tickets were asked again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import re
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

CATEGORIES = ("billing", "refund", "technical")
FIELDS = ("category", "priority", "sentiment", "product", "needs_human", "language", "summary")
WRONG_PER_MILLE = 35
HANGS_FOR_S = 10.0
_TICKET = re.compile(rb"ticket (\d+) about (\w+)")
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
DRIPS_FOR_S = 5.0
ERRORS = {
    "429": (429, "slow down", "retry-after: 1\r\n"),
    "429-fraction": (429, "slow down", "retry-after: 0.05\r\n"),
    "429-bare": (429, "slow down", ""),
    "500": (500, "this is on us", ""),
    "503": (503, "come back later", ""),
}
FAULTS = (*ERRORS, "hang", "drip", "truncated", "broken-json", "dropped", "reset")


def is_wrong(ticket: int) -> bool:
    """Whether the model is wrong about a ticket: always about the same ones."""
    return ticket * 2_654_435_761 % 1_000_003 % 1_000 < WRONG_PER_MILLE


def is_struck(ticket: int, share: float) -> bool:
    """Whether the first attempt of a ticket fails, where a share of them does."""
    return ticket * 40_503 % 999_983 % 10_000 < share * 10_000


def answer(ticket: int, category: str) -> dict[str, Any]:
    """What the model answers to a ticket."""
    if is_wrong(ticket):
        category = CATEGORIES[(CATEGORIES.index(category) + 1) % len(CATEGORIES)]
    return {
        "category": category,
        "priority": "normal",
        "sentiment": "neutral",
        "product": "lamp",
        "needs_human": False,
        "language": "en",
        "summary": f"A customer writes about {category} and waits for an answer.",
    }


@dataclass
class State:
    """How it behaves, and what it was asked."""

    delay_s: float = 0.0
    fault: str = ""
    share: float = 0.0
    down_after: int = 0
    """After so many requests nothing but 500 is answered; 0: never."""
    requests: int = 0
    in_flight: int = 0
    most: int = 0
    first_at: float = 0.0
    asked: Counter[int] = field(default_factory=Counter)


class Connection(asyncio.Protocol):
    """One connection, one request after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop, state: State) -> None:
        self.loop = loop
        self.state = state
        self.transport: asyncio.Transport | None = None
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None

    def data_received(self, data: bytes) -> None:
        self.received = self.received + data if self.received else data
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return
        found = _LENGTH.search(self.received, 0, end)
        length = int(found[1]) if found else 0
        if len(self.received) < end + 4 + length:
            return
        head, body = self.received[:end], self.received[end + 4 : end + 4 + length]
        self.received = self.received[end + 4 + length :]
        if head.startswith(b"POST /v1/"):
            self._ask(body)
        else:
            self._control(head, body)

    def _ask(self, body: bytes) -> None:
        state = self.state
        state.requests += 1
        state.in_flight += 1
        state.most = max(state.most, state.in_flight)
        state.first_at = state.first_at or time.time()
        if state.delay_s:
            self.loop.call_later(state.delay_s, self._reply, body)
        else:
            self._reply(body)

    def _reply(self, body: bytes) -> None:
        state = self.state
        state.in_flight -= 1
        if self.transport is None:
            return
        named = _TICKET.search(body)
        ticket = int(named[1]) if named else 0
        state.asked[ticket] += 1
        is_first = state.asked[ticket] == 1
        if state.down_after and state.requests > state.down_after:
            self._error(500, "the provider is away")
        elif state.fault and is_first and is_struck(ticket, state.share):
            self._fail(ticket, named[2].decode() if named else "")
        else:
            self._send(200, completion(ticket, named[2].decode() if named else CATEGORIES[0]))

    def _fail(self, ticket: int, category: str) -> None:
        assert self.transport is not None
        fault, whole = self.state.fault, completion(ticket, category or CATEGORIES[0])
        if fault in ERRORS:
            self._error(*ERRORS[fault])
        elif fault == "broken-json":
            self._send(200, whole[: len(whole) // 2])
        elif fault == "truncated":
            self.transport.write(_head(200, len(whole)) + whole[: len(whole) // 2])
            self.transport.close()
        elif fault == "dropped":
            self.transport.close()
        elif fault == "reset":
            linger = struct.pack("ii", 1, 0)  # closing sends RST then, and throws away what was written
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()
        elif fault == "drip":
            self.transport.write(_head(200, len(whole)))
            for at in range(len(whole)):
                self.loop.call_later(DRIPS_FOR_S * at / len(whole), self._drip, whole[at : at + 1])
        elif fault == "hang":
            self.loop.call_later(HANGS_FOR_S, self.transport.close)

    def _drip(self, drop: bytes) -> None:
        if self.transport is not None:
            self.transport.write(drop)

    def _error(self, status: int, message: str, header: str = "") -> None:
        self._send(status, json.dumps({"error": {"message": message, "code": None}}).encode(), header)

    def _send(self, status: int, body: bytes, header: str = "") -> None:
        assert self.transport is not None
        self.transport.write(_head(status, len(body), header) + body)

    def _control(self, head: bytes, body: bytes) -> None:
        state = self.state
        if head.startswith(b"POST /set"):
            state.__init__(**json.loads(body))  # type: ignore[misc]  # begin anew, in place
        told = {
            "requests": state.requests,
            "most": state.most,
            "first_at": state.first_at,
            "tickets": len(state.asked),
            "again": sum(count - 1 for count in state.asked.values()),
        }
        self._send(200, json.dumps(told).encode())


def _head(status: int, length: int, header: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status} -\r\ncontent-type: application/json\r\n{header}content-length: {length}\r\n\r\n"
    ).encode()


def completion(ticket: int, category: str) -> bytes:
    """The body of a Chat Completions response."""
    return _completion(json.dumps(answer(ticket, category)))


@functools.cache
def _completion(answer: str) -> bytes:
    text = json.dumps(answer)
    return (
        f'{{"id": "chatcmpl-1", "object": "chat.completion", "created": 1790000000, "model": "our-7b", '
        f'"choices": [{{"index": 0, "message": {{"role": "assistant", "content": {text}, "refusal": null}}, '
        '"finish_reason": "stop", "logprobs": null}], "usage": {"prompt_tokens": 180, '
        '"completion_tokens": 52, "total_tokens": 232}}'
    ).encode()


# --- From other processes -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """A running endpoint, as the benchmark sees it."""

    url: str

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def set(self, **fields: Any) -> None:
        """Behave so, and count from zero."""
        request = urllib.request.Request(f"{self.url}/set", data=json.dumps(fields).encode())
        with urllib.request.urlopen(request) as response:
            response.read()

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/stats") as response:
            told: dict[str, Any] = json.load(response)
        return told


@contextlib.contextmanager
def running() -> Iterator[Remote]:
    """An endpoint until the block ends."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--port", "0"], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout is not None
    try:
        yield Remote(url=process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()


async def _serve(port: int) -> None:
    loop, state = asyncio.get_running_loop(), State()
    listening = socket.create_server(("127.0.0.1", port), backlog=4096)
    server = await loop.create_server(lambda: Connection(loop, state), sock=listening)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=0)
    asked = parser.parse_args()
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve(asked.port))
    else:
        uvloop.run(_serve(asked.port))


if __name__ == "__main__":
    main()
