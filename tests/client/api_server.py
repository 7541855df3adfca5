"""A server that speaks the part of the HTTP API that clients use, over real sockets, and misbehaves as told.

    with serving(token="dg_1_secret") as server:
        server.release(1)
        client = ConfigClient(server.url, environment=ENVIRONMENT, token=server.token)

Assign to its public fields to have it misbehave from the next request on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from releases import ENVIRONMENT, PRICE, document

from deploy_gates.core import canonical
from deploy_gates.core.promotion import Deployment, Kind


class ApiServer:
    """The state of the server, what it was asked, and how it misbehaves."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.url = ""
        self.port = 0
        self.deployments: dict[str, Deployment] = {}
        self.spellings: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, int]] = []
        """Method, path, and the status that was answered."""
        self.instances: dict[str, Any] = {}
        self.acknowledged: list[Any] = []
        self.tallies: list[Any] = []
        self.streams = 0
        """How many are open."""
        self.opened = 0
        """How many were ever opened."""
        self.heartbeat_s = 0.1
        self.status = 0
        """Answer everything with this."""
        self.altered: dict[str, bytes] = {}
        """Answer with these in place of the documents of these digests."""
        self.body: bytes | None = None
        """Answer with this instead of what is served."""
        self.is_truncating = False
        """Break off in the middle of the body."""
        self.is_hanging = False
        """Take requests and never answer."""
        self.is_silent = False
        """Streams say nothing more, and stay open."""
        self.is_without_stream = False
        self.is_naming_etags_otherwise = False
        """Streams spell ETags in another way than answers do."""
        self.moved = threading.Condition()
        self.is_stopped = False

    @property
    def etag(self) -> str:
        pairs = [(each.config, each.revision) for each in self.deployments.values()]
        return f'"{hashlib.sha256(repr(sorted(pairs)).encode()).hexdigest()}"'

    def release(self, version: int, config: str = "triage", **fields: Any) -> int:
        """Serve another version; `fields` are of its deployment."""
        spelling = canonical.spelled(document(version))
        digest = canonical.digest_of(spelling)
        with self.moved:
            self.spellings[digest] = spelling
            before = self.deployments.get(config)
            revision = before.revision + 1 if before else 1
            made: dict[str, Any] = {"baseline": digest, "revision": revision, "kind": Kind.PROMOTE} | fields
            self.deployments[config] = Deployment(config=config, environment=ENVIRONMENT, **made)
            self.moved.notify_all()
        return int(made["revision"])

    def change(self, **fields: Any) -> None:
        """Misbehave from now on, or no longer; open streams take notice."""
        with self.moved:
            for name, value in fields.items():
                setattr(self, name, value)
            self.moved.notify_all()

    def count(self, method: str, part: str, status: int) -> int:
        """How many such requests there were."""
        return sum(
            method == each[0] and part in each[1] and status == each[2] for each in list(self.requests)
        )


class _Listener(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128

    def __init__(self, api: ApiServer, port: int) -> None:
        self.api = api
        self.sockets: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Conversation)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.sockets.add(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Conversation(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def do_GET(self) -> None:
        api, path = self.server.api, self.path
        if self._misbehaves():
            return
        here = f"/v1/environments/{ENVIRONMENT}"
        if path == here:
            self._answer_environment(api)
        elif path == f"{here}/stream" and not api.is_without_stream:
            self._stream(api)
        elif path.startswith("/v1/configs/") and (digest := path.rsplit("/", 1)[1]) in api.spellings:
            self._answer(200, api.altered.get(digest, api.spellings[digest]))
        else:
            self._answer(404, b'{"error": "there is no such thing"}')

    def do_PUT(self) -> None:
        if not self._misbehaves():
            api, body = self.server.api, self._read()
            api.instances[self.path.rsplit("/", 1)[1]] = body
            api.acknowledged.append(body)
            self._answer(204)

    def do_POST(self) -> None:
        if not self._misbehaves():
            self.server.api.tallies.append(self._read())
            self._answer(204)

    def do_DELETE(self) -> None:
        if not self._misbehaves():
            self.server.api.instances.pop(self.path.rsplit("/", 1)[1], None)
            self._answer(204)

    def log_message(self, *_: Any) -> None:
        """The tests look at `requests`."""

    def _read(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def _misbehaves(self) -> bool:
        api = self.server.api
        if api.is_hanging:
            with api.moved:
                api.moved.wait_for(lambda: not api.is_hanging or api.is_stopped)
            self.close_connection = True
            return True
        status = 401 if self.headers.get("Authorization") != f"Bearer {api.token}" else api.status
        if status:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(status, b'{"error": "the server said no", "hint": ""}')
        return bool(status)

    def _answer_environment(self, api: ApiServer) -> None:
        with api.moved:
            etag, rows = api.etag, [each.to_json() for each in api.deployments.values()]
            prices = {digest: PRICE.to_json() for digest in api.spellings}
        if self.headers.get("If-None-Match") == etag:
            self._answer(304, etag=etag)
            return
        said = {"environment": ENVIRONMENT, "deployments": rows, "prices": prices}
        self._answer(200, json.dumps(said).encode() if api.body is None else api.body, etag=etag)

    def _answer(self, status: int, body: bytes = b"", etag: str = "") -> None:
        api = self.server.api
        api.requests.append((self.command, self.path, status))
        self.send_response(status)
        if etag:
            self.send_header("ETag", etag)
        if status not in (204, 304):
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if api.is_truncating and body:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)

    def _stream(self, api: ApiServer) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with api.moved:
            api.opened += 1
            api.streams += 1
        try:
            said = ""
            while not (api.is_stopped or api.is_hanging or api.status):
                with api.moved:
                    etag = api.etag
                if not api.is_silent:
                    named = json.dumps({"etag": f"W/{etag}" if api.is_naming_etags_otherwise else etag})
                    news = f"event: changed\ndata: {named}\n\n"
                    self._write_chunk((news if etag != said else ":\n\n").encode())
                    said = etag
                with api.moved:
                    if api.etag == said or api.is_silent:
                        api.moved.wait(api.heartbeat_s)
        finally:
            with api.moved:
                api.streams -= 1

    def _write_chunk(self, content: bytes) -> None:
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")


@contextlib.contextmanager
def serving(
    token: str = "dg_1_secret",
    *,
    api: ApiServer | None = None,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> Iterator[ApiServer]:
    """A server on a free port; with the state of an earlier one and its port, that one come back."""
    api = api or ApiServer(token)
    api.is_stopped = False
    listener = _Listener(api, port)
    if tls is not None:
        listener.socket = tls.wrap_socket(listener.socket, server_side=True)
    api.port = listener.server_address[1]
    api.url = f"http{'s' if tls else ''}://127.0.0.1:{api.port}"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield api
    finally:
        api.change(is_stopped=True)
        listener.shutdown()
        thread.join()
        for each in listener.sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        listener.server_close()
        for each in listener.sockets:
            each.close()
