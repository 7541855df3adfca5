"""One HTTP request to somebody else's server: bounded in time and size, never redirected, never logged.

`http.client` rather than a library: clients that log the URLs they ask would log those that are secrets, and
their time-outs bound every read, not the whole.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import functools
import http.client
import json
import re
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from deploy_gates import __version__, clock
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.errors import DeployGatesError

SEND_S = 10.0
"""So long a request may take from the first byte sent to the last one read."""
CONNECT_S = 5.0
ANSWER_MAX_BYTES = 1 << 20
SAID_MAX = 200
"""So many characters of what a server says are kept."""
RETRY_AFTER_MAX_S = 3_600.0
"""Nobody makes us wait for longer."""
_PASSING = (408, 409, 423, 425, 429)
"""Refusals that may be gone at the next try; all other 4xx want a person."""


class Undelivered(DeployGatesError):
    """A message did not arrive. Its text holds no secret: it is kept, and shown."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0, is_final: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """The other side wants to be left alone for so long; 0: it did not say."""
        self.is_final = is_final
        """Whether another try would be answered alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    """By names in small letters."""
    body: bytes = field(repr=False)

    def json(self) -> Json:
        """The body; `None` where it is no JSON."""
        try:
            value: Json = json.loads(self.body)
        except ValueError:
            return None
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A server, and how to be let in."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What must not be repeated, whatever the server says."""

    @property
    def host(self) -> str:
        """The only part of the URL that is shown: the rest may be a secret."""
        return urllib.parse.urlsplit(self.url).hostname or "?"

    def get(self, path: str, **query: str) -> Json:
        """Read something. `Undelivered` if it cannot be had."""
        asked = f"?{urllib.parse.urlencode(query)}" if query else ""
        return self.checked(self.ask("GET", path + asked)).json()

    def send(self, method: str, path: str, value: JsonObject) -> JsonObject:
        """Send JSON; what came back, empty if nothing did. `Undelivered` unless it was accepted."""
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        answer = self.checked(self.ask(method, path, body, {"content-type": "application/json"}))
        found = answer.json()
        return found if isinstance(found, dict) else {}

    def ask(
        self, method: str, path: str = "", body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request, whatever its answer. `Undelivered` where there is none."""
        began = time.monotonic()
        sent = {
            "user-agent": f"deploy-gates/{__version__}",
            "accept": "application/json",
            "accept-encoding": "identity",
            "connection": "close",
            **self.headers,
            **(headers or {}),
        }
        with _connection(self.url) as (connection, target):
            try:
                connection.connect()
                connection.sock.settimeout(SEND_S)
                connection.request(method, (target + path) or "/", body, sent)
                response = connection.getresponse()
                read = response.read(ANSWER_MAX_BYTES + 1)
                if time.monotonic() - began >= SEND_S:
                    raise TimeoutError  # it was cut, and what was cut off may look like a whole answer
            except (OSError, ValueError, http.client.HTTPException) as error:
                took_s = min(time.monotonic() - began, SEND_S)
                if isinstance(error, TimeoutError) or took_s >= SEND_S:
                    raise Undelivered(f"{self.host} did not answer within {took_s:.0f} s") from None
                raise Undelivered(_cut_short(self.host, error)) from None
        if len(read) > ANSWER_MAX_BYTES:
            raise Undelivered(f"{self.host} answered with more than {ANSWER_MAX_BYTES >> 20} MiB")
        return Answer(
            status=response.status,
            headers={name.lower(): value for name, value in response.getheaders()},
            body=read,
        )

    def checked(self, answer: Answer) -> Answer:
        """The answer, if it says yes. `Undelivered` otherwise."""
        status = answer.status
        if 200 <= status < 300:
            return answer
        if 300 <= status < 400:
            raise Undelivered(
                f"{self.host} sends elsewhere (status {status}), and is not followed", is_final=True
            )
        wait_s = retry_after_s(answer)
        said = self._said(answer)
        raise Undelivered(
            f"{self.host} answers {status}" + (f": {said}" if said else ""),
            retry_after_s=wait_s,
            is_final=status < 500 and status not in _PASSING and not wait_s,
        )

    def _said(self, answer: Answer) -> str:
        """What the server says is wrong, without any secret that it may repeat."""
        found = answer.json()
        if not isinstance(found, dict):
            return ""
        said = found.get("message") or found.get("errorMessages") or found.get("error") or ""
        text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
        for secret in self.secrets:
            text = text.replace(secret, "…")
        return " ".join(text.split())[:SAID_MAX]


def retry_after_s(answer: Answer) -> float:
    """How long the server wants to be left alone, within the limit; 0 where it does not say."""
    text = answer.headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", text):
        return min(float(text), RETRY_AFTER_MAX_S)
    if text:
        with contextlib.suppress(ValueError, TypeError):
            until = email.utils.parsedate_to_datetime(text)
            return min(max((until - clock.now()).total_seconds(), 1.0), RETRY_AFTER_MAX_S)
    reset = answer.headers.get("x-ratelimit-reset", "")
    if answer.headers.get("x-ratelimit-remaining") == "0" and re.fullmatch(r"\d{1,12}", reset):
        return min(max(int(reset) - clock.now().timestamp(), 1.0), RETRY_AFTER_MAX_S)
    return 0.0


def _cut_short(host: str, error: Exception) -> str:
    """Why there is no answer, in words that hold nothing of the request."""
    match error:
        case socket.gaierror():
            return f"{host} cannot be found"
        case ConnectionRefusedError():
            return f"{host} cannot be reached: nobody listens there"
        case ssl.SSLCertVerificationError():
            return f"{host} cannot be trusted: {error.verify_message}"
        case ssl.SSLError():
            return f"{host} does not speak TLS: {error.reason}"
        case OSError() if error.strerror:
            return f"{host} cannot be reached: {error.strerror}"
        case _:
            return f"{host} broke off"


# --- Connections --------------------------------------------------------------------------------


@contextlib.contextmanager
def _connection(url: str) -> Iterator[tuple[http.client.HTTPConnection, str]]:
    """A connection that is cut after `SEND_S`, and what to ask it for; through a proxy where one is set."""
    try:
        connection, target = _made(urllib.parse.urlsplit(url))
    except ValueError:
        raise Undelivered("the URL is none of http or https", is_final=True) from None
    done = threading.Event()
    watching = threading.Thread(target=_cut, args=(connection, done), name="send deadline", daemon=True)
    watching.start()
    try:
        yield connection, target
    finally:
        done.set()
        watching.join()
        connection.close()


def _made(parts: urllib.parse.SplitResult) -> tuple[http.client.HTTPConnection, str]:
    is_tls = parts.scheme == "https"
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ValueError("not for us")
    host, port = parts.hostname, parts.port or (443 if is_tls else 80)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    if not proxy or urllib.request.proxy_bypass(f"{host}:{port}"):
        return _to(host, port, is_tls=is_tls), target
    through = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    made = _to(through.hostname or "", through.port or 3128, is_tls=is_tls)
    if is_tls:
        made.set_tunnel(host, port, headers=_let_through(through))
        return made, target
    return made, f"http://{parts.netloc}{target}"


def _to(host: str, port: int, *, is_tls: bool) -> http.client.HTTPConnection:
    if is_tls:
        return http.client.HTTPSConnection(host, port, timeout=CONNECT_S, context=_trust())
    return http.client.HTTPConnection(host, port, timeout=CONNECT_S)


def _let_through(proxy: urllib.parse.SplitResult) -> dict[str, str]:
    """What a proxy of HTTPS wants to hear before it opens the tunnel."""
    if proxy.username is None:
        return {}
    pair = f"{urllib.parse.unquote(proxy.username)}:{urllib.parse.unquote(proxy.password or '')}"
    return {"proxy-authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def _cut(connection: http.client.HTTPConnection, done: threading.Event) -> None:
    """End a request that takes too long, however slowly something still comes."""
    if done.wait(SEND_S):
        return
    while True:
        found = connection.sock
        if found is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(found, socket.SHUT_RDWR)
        if done.wait(0.1):
            return


@functools.cache
def _trust() -> ssl.SSLContext:
    """Whom to trust: reading that takes long."""
    return ssl.create_default_context()
