"""The store over HTTP: an API, server-sent events, and OFREP for OpenFeature clients in any language."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy_gates.client import ConfigClient
from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.config import ENVIRONMENTS
from deploy_gates.core.errors import DeployGatesError, SettingsError
from deploy_gates.core.policy import Policy
from deploy_gates.credits import Credits
from deploy_gates.credits.pricing import Pricing
from deploy_gates.envelope import PublicKey
from deploy_gates.notify import Notifier, Telling
from deploy_gates.server import api, asking, ofrep
from deploy_gates.server import credits as ledger
from deploy_gates.server.access import Access
from deploy_gates.server.connection import Connection
from deploy_gates.server.dashboard import Dashboard
from deploy_gates.server.description import openapi
from deploy_gates.server.metrics import Requests
from deploy_gates.server.mirror import Mirror
from deploy_gates.ship.caretaking import Caretaker
from deploy_gates.store import Store, open_store
from deploy_gates.store.ledger import ledger_of

FOR_PROGRAMS = ("/v1/", "/ofrep/")
KEEP_ALIVE_S = 20
CONCURRENT_MAX = 2_000
"""Requests at a time, streams among them; more are told to come back."""
STOP_S = 3
"""How long requests under way may take once the server is to end."""
CONFIGS_MAX = 512
"""Configs kept in memory for who reads them by digest."""
FIRST_READ_S = 2.0


class Service:
    """What the endpoints share."""

    def __init__(
        self,
        store: Store,
        client: ConfigClient,
        *,
        keys: Sequence[PublicKey],
        require_signature: bool,
        policy: Policy | None,
        caretaker: Caretaker | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        self.store = store
        self.notifier = notifier
        self.caretaker = caretaker
        """Goes on with promotions that their runner has left; `None`: nobody does here."""
        self.client = client
        self.keys = keys
        self.require_signature = require_signature
        self.policy = policy
        self.mirrors = {name: Mirror(store, name) for name in ENVIRONMENTS}
        self.requests = Requests()
        self.description: JsonObject = openapi()
        self._configs: dict[str, tuple[str, bytes]] = {}
        self.credits = Credits(ledger=ledger_of(store), price=Pricing(policy))
        self.dashboard: Dashboard | None = None

    def mirror(self, request: Request) -> Mirror:
        """The mirror of the environment in the path; an answer is raised where there is none."""
        name = request.path_params["environment"]
        if name not in self.mirrors:
            raise asking.refuse(f"there is no environment {name[:100]!r}", 404, hint=", ".join(ENVIRONMENTS))
        return self.mirrors[name]

    def config(self, digest: str) -> tuple[str, bytes] | None:
        """Name and spelling of a config: from memory where it is served, or was read before."""
        if digest not in self._configs:
            found = self.store.config(digest)
            if found is None:
                return None
            if len(self._configs) >= CONFIGS_MAX:
                self._configs.clear()
            self._configs[digest] = found
        return self._configs[digest]

    def start(self) -> None:
        """Follow every environment."""
        for each in self.mirrors.values():
            each.start()
        if self.dashboard is not None:
            self.dashboard.start()
        for each in self.mirrors.values():
            each.has_read.wait(FIRST_READ_S)
        if self.notifier is not None:
            self.notifier.start()
        if self.caretaker is not None:
            self.caretaker.start()

    def close(self) -> None:
        """Let go of everything; streams end."""
        if self.dashboard is not None:
            self.dashboard.close()
        if self.caretaker is not None:
            self.caretaker.close()
        if self.notifier is not None:
            self.notifier.close()
        for each in self.mirrors.values():
            each.close()
        self.client.close()
        self.credits.close()  # and the store with it


def application(
    url: str,
    *,
    environment: str = "production",
    root: Path | None = None,
    is_local: bool = True,
    keys: Sequence[PublicKey] = (),
    require_signature: bool = False,
    policy: Policy | None = None,
    origins: Sequence[str] = (),
    carries: bool = False,
    telling: Telling | None = None,
) -> ASGIApp:
    """The server as an ASGI application over the store at `url`; OFREP serves one environment.

    `is_local` says that only this machine can reach it: reading then needs no token as long as there is none.
    Pages from `origins` may read over OFREP with a token. One that `carries` goes on with promotions that
    their runner has left, and sends what others are to be told by `telling`.
    """
    store = open_store(url, root=root)
    store.check()
    client = ConfigClient(_absolute(url, root), environment=environment, report=False, wait_s=FIRST_READ_S)
    notifier = Notifier(store, telling) if telling is not None and telling.channels else None
    service = Service(
        store,
        client,
        keys=keys,
        require_signature=require_signature,
        policy=policy,
        caretaker=Caretaker(store, on_move=notifier.wake if notifier else _nobody) if carries else None,
        notifier=notifier,
    )

    service.dashboard = dashboard = Dashboard(service, telling)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            service.close()

    app = Starlette(
        routes=[
            *api.routes(service),
            *ledger.routes(service),
            *ofrep.routes(client),
            *dashboard.routes(),
        ],
        lifespan=lifespan,
        middleware=[_for_browsers(origins)] if origins else [],
        exception_handlers={
            HTTPException: _to_browsers(dashboard),
            DeployGatesError: _answered,
            500: _failed,
        },
    )
    app.state.access = Access(store, is_local=is_local)
    return _Counting(app, service.requests)


def serve(
    url: str,
    *,
    host: str,
    port: int,
    announce: Callable[[str], None],
    environment: str = "production",
    root: Path | None = None,
    keys: Sequence[PublicKey] = (),
    require_signature: bool = False,
    policy: Policy | None = None,
    origins: Sequence[str] = (),
    carries: bool = True,
    telling: Telling | None = None,
) -> None:
    """Serve until interrupted; `announce` is told the address once connections are taken."""
    listening = _listen(host, port)
    try:
        app = application(
            url,
            environment=environment,
            root=root,
            is_local=_is_loopback(host),
            keys=keys,
            require_signature=require_signature,
            policy=policy,
            origins=origins,
            carries=carries,
            telling=telling,
        )
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listening.getsockname()[1]}"
        server = _Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=STOP_S,
                limit_concurrency=CONCURRENT_MAX,
                http=Connection,
                lifespan="on",
            ),
            lambda: announce(address),
        )
        server.run(sockets=[listening])
    finally:
        listening.close()


def _nobody() -> None:
    """Nobody is told."""


def _for_browsers(origins: Sequence[str]) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "If-None-Match", "X-API-Key"],
        expose_headers=["ETag"],
        max_age=600,
    )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._started()


class _Counting:
    """Counts requests by route and status, around everything else."""

    def __init__(self, app: Starlette, requests: Requests) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                path = getattr(route, "path", "elsewhere")
                self._requests.count(scope["method"], path, message["status"])
            await send(message)

        await self._app(scope, receive, counted)


def _answered(request: Request, failure: Exception) -> Response:
    return asking.raised(failure)


def _to_browsers(dashboard: Dashboard) -> Callable[[Request, Exception], Awaitable[Response]]:
    """People who look for a page get one, even where there is none; programs get JSON."""

    async def answered(request: Request, failure: Exception) -> Response:
        is_page = "text/html" in request.headers.get("accept", "")
        is_page = is_page and not request.url.path.startswith(FOR_PROGRAMS)
        if is_page and isinstance(failure, HTTPException) and failure.status_code in (404, 405):
            return await dashboard.elsewhere(request, failure)
        return asking.raised(failure)

    return answered


def _failed(request: Request, failure: Exception) -> Response:
    logging.getLogger("deploy_gates").error(
        "%s %s failed", request.method, request.url.path, exc_info=failure
    )
    return asking.error("the server could not do that; its log says why", 500)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise SettingsError(f"{host} is no address to listen on: {error.strerror or error}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        return listening
    except (OSError, OverflowError) as error:
        listening.close()
        said = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(
            f"nobody can listen on {host}:{port}: {said}", hint="another --port, or 0 for any free one"
        ) from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _absolute(url: str, root: Path | None) -> str:
    """The URL of a file from wherever one stands."""
    prefix = "sqlite:///"
    if root is None or not url.startswith(prefix):
        return url
    return f"{prefix}{root / url.removeprefix(prefix)}"
