"""An OpenAI-compatible server over a real socket, that misbehaves as told.

    def script(request: Request) -> Reply:
        return Fails(429, retry_after="0.05") if request.attempt == 1 else Says({"category": "refund"})

    with serve(script) as server:
        ask(server.base_url)  # http://127.0.0.1:…/v1, reachable from other processes too

    assert server.asked == 2 and server.most_in_flight == 1

A script is a function of the request, or one reply for all of them. It speaks Chat Completions and the
Responses API, plain or streamed, whichever the request asked for. `request.attempt` counts how often the
same body came, from 1; `request.number` counts all requests. Replies:

| reply | what the client sees |
| --- | --- |
| `Says` | a well-formed answer; slow, cut off, or by another model where told |
| `Fails` | an error of the protocol: a status, a message, maybe `Retry-After` |
| `Raw` | exactly these bytes as the body of a response |
| `Breaks` | a response that ends in the middle of its body |
| `Drops` | a connection that is closed without a word |
| `Hangs` | nothing, until the client goes away |

`refused_url()` is an address at which nobody listens. The server runs on one thread and answers a thousand
requests in well under a second; stopping it takes no time, whoever hangs.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

HEAD_END = b"\r\n\r\n"
STOP_WITHIN_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request as it arrived."""

    number: int
    attempt: int
    path: str
    headers: Mapping[str, str]
    """By lower-case name."""
    body: dict[str, Any]

    @property
    def prompt(self) -> str:
        """The text of the last message."""
        turns = self.body.get("messages") or self.body.get("input") or [{}]
        return turns if isinstance(turns, str) else str(turns[-1].get("content", ""))

    @property
    def is_chat(self) -> bool:
        return self.path.endswith("/chat/completions")

    @property
    def is_streamed(self) -> bool:
        return self.body.get("stream") is True


@dataclass(frozen=True, slots=True)
class Says:
    """A well-formed answer; anything but a string is said as its JSON."""

    content: Any
    model: str = ""
    """Empty: the one that was asked for."""
    finish_reason: str = "stop"
    refusal: str | None = None
    tool_calls: Sequence[tuple[str, str]] = ()
    """Names and arguments."""
    usage: tuple[int, int] | None = (100, 20)
    """Input and output tokens."""
    after_s: float = 0.0
    pause_s: float = 0.0
    """Between the parts of a stream."""
    parts: int = 4
    """How many parts a stream has."""
    cut_after: int | None = None
    """A stream is closed after so many of its events, as if all had been said."""

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else json.dumps(self.content)


@dataclass(frozen=True, slots=True)
class Fails:
    """An error, as the protocol has it."""

    status: int
    message: str = "the server said no"
    code: str | None = None
    retry_after: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Raw:
    """These bytes, whatever they mean."""

    body: bytes | str
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Breaks:
    """A response whose body ends too early."""

    after_bytes: int = 20


@dataclass(frozen=True, slots=True)
class Drops:
    """A connection that is closed without a word."""


@dataclass(frozen=True, slots=True)
class Hangs:
    """Nothing at all."""


Reply: TypeAlias = Says | Fails | Raw | Breaks | Drops | Hangs
Script: TypeAlias = Callable[[Request], Reply]


class Server:
    """What the server was asked; read it from any thread."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.base_url = ""
        self.requests: list[Request] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self._attempts: Counter[bytes] = Counter()

    @property
    def asked(self) -> int:
        return len(self.requests)

    def receive(self, head: bytes, body: bytes) -> Request:
        lines = head.decode("latin-1").split("\r\n")
        self._attempts[body] += 1
        request = Request(
            number=len(self.requests) + 1,
            attempt=self._attempts[body],
            path=lines[0].split(" ")[1],
            headers={
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
            },
            body=json.loads(body) if body else {},
        )
        self.requests.append(request)
        return request


@contextmanager
def serve(script: Script | Reply) -> Iterator[Server]:
    """A server at `server.base_url` until the block ends."""
    server = Server(script if callable(script) else lambda _: script)
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    server.base_url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    loop = asyncio.new_event_loop()
    stopping = asyncio.Event()
    serving = _serve(listening, server, stopping)
    thread = threading.Thread(target=_run, args=(loop, serving), name="model-server", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(STOP_WITHIN_S)
        assert not thread.is_alive(), "the server of the test does not stop"


def refused_url() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


def _run(loop: asyncio.AbstractEventLoop, serving: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(serving)


async def _serve(listening: socket.socket, server: Server, stopping: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    connections: set[_Connection] = set()
    accepting = await loop.create_server(lambda: _Connection(loop, server, connections), sock=listening)
    await stopping.wait()
    accepting.close()
    for each in tuple(connections):
        if each.transport is not None:
            each.transport.abort()
    await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    """One connection, one request after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop, server: Server, all: set[_Connection]) -> None:
        self.loop = loop
        self.server = server
        self.all = all
        self.transport: asyncio.Transport | None = None
        self.received = b""
        self.is_busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.all.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.all.discard(self)
        self._done()

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, rest = self.received.partition(HEAD_END)
        if not end or self.is_busy:
            return
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line[:15].lower() == b"content-length:"), 0
        )
        if len(rest) < length:
            return
        self.received = rest[length:]
        self._begin(self.server.receive(head, rest[:length]))

    def _begin(self, request: Request) -> None:
        self.is_busy = True
        self.server.in_flight += 1
        self.server.most_in_flight = max(self.server.most_in_flight, self.server.in_flight)
        reply = self.server.script(request)
        after_s = 0.0 if isinstance(reply, (Breaks, Drops, Hangs)) else reply.after_s
        if after_s:
            self.loop.call_later(after_s, self._reply, request, reply)
        else:
            self._reply(request, reply)

    def _done(self) -> None:
        if self.is_busy:
            self.is_busy = False
            self.server.in_flight -= 1

    def _reply(self, request: Request, reply: Reply) -> None:
        if self.transport is None or isinstance(reply, Hangs):
            return
        if isinstance(reply, Says) and request.is_streamed:
            self._stream(request, reply)
        elif isinstance(reply, Says):
            self._send(200, json.dumps(_whole(request, reply)).encode())
        elif isinstance(reply, Fails):
            error = {"error": {"message": reply.message, "type": "error", "code": reply.code, "param": None}}
            wait = {} if reply.retry_after is None else {"retry-after": reply.retry_after}
            self._send(reply.status, json.dumps(error).encode(), headers=wait | dict(reply.headers))
        elif isinstance(reply, Raw):
            body = reply.body.encode() if isinstance(reply.body, str) else reply.body
            self._send(reply.status, body, reply.content_type, reply.headers)
        else:
            if isinstance(reply, Breaks):
                body = json.dumps(_whole(request, Says("half of this is lost"))).encode()
                self.transport.write(
                    _head(200, len(body), "application/json", {}) + body[: reply.after_bytes]
                )
            self.transport.close()

    def _send(
        self,
        status: int,
        body: bytes,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        assert self.transport is not None
        self._done()
        self.transport.write(_head(status, len(body), content_type, headers or {}) + body)

    def _stream(self, request: Request, reply: Says) -> None:
        assert self.transport is not None
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        events = _events(request, reply)
        if reply.cut_after is not None:
            events = events[: reply.cut_after]
        self._next_event(events, reply.pause_s)

    def _next_event(self, events: list[bytes], pause_s: float) -> None:
        while events:
            if self.transport is None:
                return
            event = events.pop(0)
            self.transport.write(b"%x\r\n%s\r\n" % (len(event), event))
            if pause_s and events:
                self.loop.call_later(pause_s, self._next_event, events, pause_s)
                return
        if self.transport is not None:
            self._done()
            self.transport.write(b"0\r\n\r\n")


def _head(status: int, length: int, content_type: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} -", f"content-type: {content_type}", f"content-length: {length}"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()


# --- Well-formed answers ------------------------------------------------------------------------


def _whole(request: Request, says: Says) -> dict[str, Any]:
    return _chat(request, says) if request.is_chat else _response(request, says)


def _model(request: Request, says: Says) -> str:
    return says.model or str(request.body.get("model", ""))


def _chat(request: Request, says: Says) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": says.text, "refusal": says.refusal}
    if says.tool_calls:
        message["tool_calls"] = [
            {"id": f"call_{at}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for at, (name, arguments) in enumerate(says.tool_calls)
        ]
    made = {
        "id": f"chatcmpl-{request.number}",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": _model(request, says),
        "choices": [{"index": 0, "message": message, "finish_reason": says.finish_reason, "logprobs": None}],
    }
    if says.usage is not None:
        made["usage"] = _chat_usage(*says.usage)
    return made


def _chat_usage(prompt: int, completion: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 10},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }


def _response(request: Request, says: Says) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "output_text", "text": says.text, "annotations": []}
    if says.refusal is not None:
        part = {"type": "refusal", "refusal": says.refusal}
    output: list[dict[str, Any]] = [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "assistant", "status": "completed", "content": [part]},
    ]
    output += [
        {"type": "function_call", "call_id": f"call_{at}", "name": name, "arguments": arguments}
        for at, (name, arguments) in enumerate(says.tool_calls)
    ]
    reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(says.finish_reason)
    made: dict[str, Any] = {
        "id": f"resp_{request.number}",
        "object": "response",
        "created_at": 1_790_000_000,
        "model": _model(request, says),
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "error": None,
        "output": output,
    }
    if says.usage is not None:
        made["usage"] = {
            "input_tokens": says.usage[0],
            "input_tokens_details": {"cached_tokens": 10},
            "output_tokens": says.usage[1],
            "output_tokens_details": {"reasoning_tokens": 5},
            "total_tokens": sum(says.usage),
        }
    return made


def _events(request: Request, says: Says) -> list[bytes]:
    """The events of a stream, the text in `parts` pieces."""
    size = max(1, -(-len(says.text) // says.parts))
    pieces = [says.text[at : at + size] for at in range(0, len(says.text), size)]
    return _chat_events(request, says, pieces) if request.is_chat else _response_events(request, says, pieces)


def _chat_events(request: Request, says: Says, pieces: list[str]) -> list[bytes]:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in pieces]
    if says.refusal is not None:
        deltas.append({"refusal": says.refusal})
    for at, (name, arguments) in enumerate(says.tool_calls):
        half = len(arguments) // 2
        function = {"name": name, "arguments": arguments[:half]}
        deltas.append(
            {"tool_calls": [{"index": at, "id": f"call_{at}", "type": "function", "function": function}]}
        )
        deltas.append({"tool_calls": [{"index": at, "function": {"arguments": arguments[half:]}}]})
    choices: list[list[dict[str, Any]]] = [
        [{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas
    ]
    choices.append([{"index": 0, "delta": {}, "finish_reason": says.finish_reason}])
    base: dict[str, Any] = {
        "id": f"chatcmpl-{request.number}",
        "object": "chat.completion.chunk",
        "model": _model(request, says),
    }
    chunks = [base | {"choices": each} for each in choices]
    if says.usage is not None and request.body.get("stream_options", {}).get("include_usage"):
        chunks.append(base | {"choices": [], "usage": _chat_usage(*says.usage)})
    return [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]


def _response_events(request: Request, says: Says, pieces: list[str]) -> list[bytes]:
    whole = _response(request, says)
    events: list[dict[str, Any]] = [{"type": "response.created", "response": whole | {"output": []}}]
    events += [{"type": "response.output_text.delta", "delta": piece} for piece in pieces]
    events.append({"type": f"response.{whole['status']}", "response": whole})
    return [f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in events]
