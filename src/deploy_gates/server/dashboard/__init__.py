"""The dashboard: pages that the server renders, with live updates where there is JavaScript."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from importlib import resources
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlencode

from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from deploy_gates import __version__, clock, notify, runner
from deploy_gates.core import eliminated
from deploy_gates.core.canonical import short
from deploy_gates.core.config import ENVIRONMENTS
from deploy_gates.core.delivery import Fate
from deploy_gates.core.errors import DeployGatesError, Refused, StoreError
from deploy_gates.core.ledger import moment_ms, written
from deploy_gates.core.promotion import Deployment, Event
from deploy_gates.core.release import PRODUCTION, Act, Promotion
from deploy_gates.report.analysis import FRAGMENT_STYLE
from deploy_gates.report.credits import effect
from deploy_gates.report.record import percent
from deploy_gates.report.text import visible
from deploy_gates.server.asking import body, in_thread, refuse
from deploy_gates.server.dashboard import views
from deploy_gates.server.dashboard.counting import Counter
from deploy_gates.server.dashboard.live import Live
from deploy_gates.server.dashboard.pictures import LACKING, Pictures
from deploy_gates.server.dashboard.visitors import Visitor, Visitors
from deploy_gates.store import TALLIES_KEPT

if TYPE_CHECKING:
    import jinja2

    from deploy_gates.server import Service
    from deploy_gates.store import Store

PAGE = 50
"""Rows of a page."""
LOG_PAGE = 100
FORM_MAX_BYTES = 16 << 10
REASON_MAX_CHARS = 1_000
_WHOLE = r"[0-9]{1,15}"
NAME_MAX_CHARS = 200
_NAME = re.compile(rf"[^\x00-\x1f/\ud800-\udfff]{{1,{NAME_MAX_CHARS}}}")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Dashboard:
    """The pages over one service, and the threads behind them."""

    def __init__(self, service: Service, telling: notify.Telling | None = None) -> None:
        self.service = service
        self.store = service.store
        self.telling = telling
        self.visitors = Visitors()
        self.live = Live(service.store)
        self.pictures = Pictures(service.store)
        self.changes = views.Changes(service.store)
        is_told = telling is not None and telling.channels
        self.counter = Counter(service.store, self._arrived if is_told else None)
        self._templates = _templates()
        self._static = _static()

    def start(self) -> None:
        """Begin to count."""
        self.counter.start()

    def close(self) -> None:
        """End; open pages are told."""
        self.live.close()
        self.counter.close()

    def routes(self) -> list[Route]:
        """The pages."""
        get, post = ["GET"], ["POST"]
        return [
            Route("/", self._read(self._environments), methods=get),
            Route("/promotions/{id}", self._read(self._promotion), methods=get),
            Route("/promotions/{id}/rollback", self._do(self._roll_back), methods=post),
            Route("/promotions/{id}/resume", self._do(self._resume), methods=post),
            Route("/configs/{config}", self._read(self._config), methods=get),
            Route("/log", self._read(self._log), methods=get),
            Route("/deliveries", self._read(self._deliveries), methods=get),
            Route("/deliveries/again", self._do(self._again), methods=post),
            Route("/credits", self._read(self._credits), methods=get),
            Route("/credits/{organisation}", self._read(self._organisation), methods=get),
            Route("/eliminated", self._read(self._eliminated), methods=get),
            Route("/sign-in", self._sign_in_page, methods=get),
            Route("/sign-in", self._do(self._sign_in), methods=post),
            Route("/sign-out", self._do(self._sign_out), methods=post),
            Route("/live", self._live, methods=get),
            Route("/static/{name}", self._file, methods=get),
        ]

    # --- Pages ----------------------------------------------------------------------------------

    async def _environments(self, request: Request, visitor: Visitor) -> Response:
        standings = await in_thread(runner.status, self.store)
        under_way = await in_thread(self.store.promotions, is_open=True)
        recent = await in_thread(self.store.promotions, limit=10)
        every = views.rows(standings)
        after = request.query_params.get("after", "")[:200]
        rows = [each for each in every if each.config > after]
        return self._page(
            request,
            visitor,
            "environments.html",
            rows=rows[:PAGE],
            further=len(rows[PAGE:]),
            configs=len(every),
            under_way=under_way,
            recent=[each for each in recent if each.state.is_final],
            environments=ENVIRONMENTS,
        )

    async def _promotion(self, request: Request, visitor: Visitor) -> Response:
        promotion = await self._found(request)
        config = promotion.release.config
        standings = await in_thread(runner.status, self.store, config=config)
        production = next((each for each in standings if each.deployment.environment == PRODUCTION), None)
        drawn, lacking = "", ""
        try:
            drawn = await in_thread(self.pictures.drawn, promotion)
        except ImportError:
            lacking = LACKING
        except DeployGatesError as error:
            lacking = error.message
        now = clock.now()
        is_left = not promotion.state.is_final and not promotion.is_carried(now)
        return self._page(
            request,
            visitor,
            "promotion.html",
            promotion=promotion,
            steps=views.steps(promotion, now),
            gates=await in_thread(views.gates, self.store, promotion),
            changes=await in_thread(self.changes.between, promotion.baseline, promotion.release.digest),
            analysis=drawn,
            lacking=lacking,
            standings=standings,
            eliminated=eliminated.eliminated(promotion, await in_thread(self._arrived, promotion)),
            rollback=views.rollback_of(production, promotion),
            can_resume=is_left and self.service.caretaker is not None,
            is_left=is_left,
            has_canary=promotion.outcome(Act.CANARY, PRODUCTION) is not None,
            kept_days=TALLIES_KEPT.days,
            carries=self.service.caretaker is not None,
        )

    async def _config(self, request: Request, visitor: Visitor) -> Response:
        config = _name(request.path_params["config"])
        standings = await in_thread(runner.status, self.store, config=config)
        before = _number(request, "before")
        promotions = await in_thread(self.store.promotions, config, before=before, limit=PAGE)
        if not standings and not promotions and not before:
            raise refuse(f"nothing of a config {config!r} was ever promoted", 404, hint="/")
        return self._page(
            request,
            visitor,
            "config.html",
            config=config,
            rows=views.rows(standings),
            promotions=promotions,
            older=promotions[-1].id if len(promotions) == PAGE else 0,
            environments=ENVIRONMENTS,
        )

    async def _log(self, request: Request, visitor: Visitor) -> Response:
        config, environment = (_filter(request, each) for each in ("config", "environment"))
        deployments = await in_thread(self.store.deployments, environment, config)
        moved = [each for each in deployments if each.revision]
        before = _number(request, "before")
        if before and len(moved) == 1:
            events = await in_thread(_earlier, self.store, moved[0], before)
        else:
            events = list(await in_thread(self.store.latest, config, environment, limit=LOG_PAGE))
        problems = None
        if request.query_params.get("verify"):
            problems = [said for each in moved for said in await in_thread(_problems, self.store, each)]
        older = events[-1].revision if len(moved) == 1 and events and events[-1].revision > 1 else 0
        return self._page(
            request,
            visitor,
            "log.html",
            events=events,
            config=config,
            environment=environment,
            environments=ENVIRONMENTS,
            configs=sorted({each.config for each in await in_thread(self.store.deployments)}),
            problems=problems,
            verified=sum(each.revision for each in moved),
            deployments=len(moved),
            older=older,
            query=urlencode({"config": config, "environment": environment}),
        )

    async def _deliveries(self, request: Request, visitor: Visitor) -> Response:
        state = request.query_params.get("state", "")
        chosen = state if state in set(Fate) else ""
        found = await in_thread(self.store.deliveries, state=chosen, limit=LOG_PAGE)
        return self._page(
            request,
            visitor,
            "deliveries.html",
            deliveries=found,
            state=chosen,
            states=list(Fate),
            is_told=self.telling is not None and bool(self.telling.channels),
        )

    async def _credits(self, request: Request, visitor: Visitor) -> Response:
        after = _filter(request, "after")
        ledger = self.service.credits.ledger
        found = await in_thread(ledger.organisations, after, PAGE + 1)
        further = len(found) > PAGE
        return self._page(
            request, visitor, "credits.html", organisations=found[:PAGE], further=further, after=after
        )

    async def _organisation(self, request: Request, visitor: Visitor) -> Response:
        ledger, name = self.service.credits.ledger, _name(request.path_params["organisation"])
        found = await in_thread(ledger.organisation, name)
        if found is None:
            raise refuse(f"there is no organisation {name!r}", 404, hint="/credits")
        before = _number(request, "before") or 2**62
        faults = None
        if request.query_params.get("verify"):
            audited = await in_thread(ledger.audit, name)
            faults = audited.faults if audited is not None else ()
        return self._page(
            request,
            visitor,
            "organisation.html",
            found=found,
            entries=await in_thread(ledger.entries, name, before=before, limit=PAGE, newest=True),
            faults=faults,
            now_us=moment_ms(clock.now()) * 1000,
        )

    async def _eliminated(self, request: Request, visitor: Visitor) -> Response:
        return self._page(request, visitor, "eliminated.html", steps=eliminated.STEPS, total=eliminated.TOTAL)

    # --- Doing ----------------------------------------------------------------------------------

    async def _roll_back(self, request: Request) -> Response:
        form = await _form(request)
        visitor = await self.visitors.promoter(request, form.get("csrf", ""))
        promotion = await self._found(request)
        try:
            moved = await in_thread(
                runner.rollback,
                self.store,
                config=promotion.release.config,
                environment=PRODUCTION,
                actor=visitor.name,
                reason=form.get("reason", "").strip()[:REASON_MAX_CHARS] or "rolled back from the dashboard",
                expected=_revision(form),
            )
        except Refused as refused:
            return self._told(request, f"/promotions/{promotion.id}", refused.message)
        here = moved.deployment
        said = f"production serves {short(here.baseline)} again (r{here.revision})"
        return self._told(request, f"/promotions/{promotion.id}", said)

    async def _resume(self, request: Request) -> Response:
        form = await _form(request)
        await self.visitors.promoter(request, form.get("csrf", ""))
        promotion = await self._found(request)
        caretaker, said = self.service.caretaker, f"promotion {promotion.id} goes on"
        if caretaker is None:
            said = "this server does not carry promotions; run `deploy-gates ship`"
        else:
            try:
                await in_thread(caretaker.resume, promotion.id)
            except Refused as refused:
                said = refused.message
        return self._told(request, f"/promotions/{promotion.id}", said)

    async def _again(self, request: Request) -> Response:
        form = await _form(request)
        await self.visitors.promoter(request, form.get("csrf", ""))
        found = await in_thread(notify.again, self.store, form.get("id", ""))
        if self.service.notifier is not None:
            self.service.notifier.wake()
        said = "it is sent again" if found is not None else "there is no such dead letter any more"
        return self._told(request, "/deliveries", said)

    # --- Signing in -----------------------------------------------------------------------------

    async def _sign_in_page(self, request: Request) -> Response:
        to = request.query_params.get("next", "/")
        return self._page(request, Visitor(), "sign_in.html", to=to, problem="")

    async def _sign_in(self, request: Request) -> Response:
        form = await _form(request)
        to = form.get("next", "/")
        answer = await self.visitors.sign_in(request, form.get("token", "").strip(), to)
        if answer is not None:
            return answer
        problem = "nobody knows this token, or it was revoked"
        return self._page(request, Visitor(), "sign_in.html", status=401, to=to, problem=problem)

    async def _sign_out(self, request: Request) -> Response:
        form = await _form(request)
        return self.visitors.sign_out(request, form.get("csrf", ""))

    # --- What pages are made of -----------------------------------------------------------------

    async def _live(self, request: Request) -> Response:
        await self.visitors.reader(request)
        return EventSourceResponse(self.live.events(), ping=15, send_timeout=30)

    async def _file(self, request: Request) -> Response:
        found = self._static.get(request.path_params["name"])
        if found is None:
            raise refuse("there is no such file", 404)
        content, kind, etag = found
        headers = {"ETag": etag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    async def _found(self, request: Request) -> Promotion:
        number = request.path_params["id"]
        is_number = re.fullmatch(_WHOLE, number) is not None
        found = await in_thread(self.store.promotion, int(number)) if is_number else None
        if found is None:
            raise refuse(f"there is no promotion {number[:20]}", 404)
        return found

    def _arrived(self, promotion: Promotion) -> frozenset[tuple[str, str]]:
        if self.telling is None or not self.telling.channels:
            return frozenset()
        return notify.arrived(self.store, self.telling, promotion)

    def _read(
        self, page: Callable[[Request, Visitor], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """The page for whoever may read; what goes wrong is a page, too."""

        async def read(request: Request) -> Response:
            visitor = await self.visitors.reader(request)
            try:
                return await page(request, visitor)
            except (DeployGatesError, HTTPException) as error:
                return self._problem(request, visitor, error)

        return read

    def _do(self, act: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """What a form does; whoever sent it gets a page, whatever goes wrong."""

        async def do(request: Request) -> Response:
            try:
                return await act(request)
            except (DeployGatesError, HTTPException) as error:
                return self._problem(request, await self.visitors.known(request), error)

        return do

    async def elsewhere(self, request: Request, failure: HTTPException) -> Response:
        """The page that says that nothing is at this address."""
        if failure.status_code == 404:
            failure = refuse("there is no such page", 404, hint="/")
        return self._problem(request, await self.visitors.known(request), failure)

    def _told(self, request: Request, to: str, said: str) -> Response:
        """Back to a page, which then says so."""
        return RedirectResponse(f"{to}?said={self.visitors.tell(request, said)}", 303)

    def _problem(
        self, request: Request, visitor: Visitor, error: DeployGatesError | HTTPException
    ) -> Response:
        if isinstance(error, HTTPException):
            if error.status_code < 400:
                raise error
            message, _, hint = str(error.detail).partition("\0")
            status = error.status_code
        else:
            message, hint, status = error.message, error.hint, 503 if isinstance(error, StoreError) else 400
        return self._page(request, visitor, "problem.html", status=status, message=message, hint=hint)

    def _page(
        self, request: Request, visitor: Visitor, template: str, status: int = 200, **values: object
    ) -> Response:
        now = clock.now()
        rendered = self._templates.get_template(template).render(
            values
            | {
                "visitor": visitor,
                "path": request.url.path,
                "said": self.visitors.told(request, request.query_params.get("said", "")),
                "now": now,
                "ago": lambda when: views.ago(when, now),
                "counter": self.counter,
                "has_tokens": not visitor.name,
            }
        )
        return Response(rendered, status_code=status, media_type="text/html", headers=_HEADERS)


def _templates() -> jinja2.Environment:
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("deploy_gates.server.dashboard"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "short": short,
        "percent": percent,
        "visible": visible,
        "state": views.state,
        "doing": views.doing,
        "verdict": views.verdict,
        "move": views.kind_of,
        "clients": views.clients,
        "exact": _exact,
        "prose": _prose,
        "iso": datetime.isoformat,
        "credits": written,
        "effect": effect,
        "moment": lambda at_ms: datetime.fromtimestamp(at_ms / 1000, UTC),
        "path": lambda text: quote(text, safe=""),
    }
    made.globals["version"] = __version__
    return made


def _exact(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def _prose(text: str) -> str:
    """Text whose words in backticks are code."""
    from markupsafe import Markup, escape

    parts = [escape(visible(each)) for each in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(each) if at % 2 else each for at, each in enumerate(parts)
    )


def _static() -> dict[str, tuple[bytes, str, str]]:
    """Every file with its kind and its ETag."""
    folder = resources.files("deploy_gates.server.dashboard").joinpath("static")
    style = folder.joinpath("style.css").read_bytes() + FRAGMENT_STYLE.encode()
    files = {
        "style.css": (style, "text/css"),
        "live.js": (folder.joinpath("live.js").read_bytes(), "text/javascript"),
        "icon.svg": (folder.joinpath("icon.svg").read_bytes(), "image/svg+xml"),
    }
    return {
        name: (content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
        for name, (content, kind) in files.items()
    }


def _earlier(store: Store, deployment: Deployment, before: int) -> list[Event]:
    """The moves of one deployment before a revision, the newest first."""
    first = max(0, before - 1 - LOG_PAGE)
    read = store.history(deployment.config, deployment.environment, after=first, limit=LOG_PAGE)
    return [event for event in reversed(read) if event.revision < before]


def _problems(store: object, deployment: object) -> list[str]:
    return list(runner.problems(store, deployment))  # type: ignore[arg-type]  # in a thread


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form. An answer is raised for anything else."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise refuse("this is no form", 415)
    content = await body(request, FORM_MAX_BYTES)
    try:
        fields = parse_qs(content.decode(), keep_blank_values=True, max_num_fields=20)
    except ValueError as error:
        raise refuse("this is no form") from error
    found = {name: values[-1] for name, values in fields.items()}
    if any("\0" in each for each in found.values()):
        raise refuse("a form holds a character that is no text, and nothing was done")
    return found


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise refuse(f"a config has a name of 1 to {NAME_MAX_CHARS} characters", 404)
    return text


def _filter(request: Request, name: str) -> str:
    text = request.query_params.get(name, "")
    if re.search(r"[\x00-\x1f\ud800-\udfff]", text) or len(text) > NAME_MAX_CHARS:
        raise refuse(f"{name} is no name", 404)
    return text


def _revision(form: dict[str, str]) -> int | None:
    """The revision that whoever clicked has seen; an answer is raised for what is none."""
    text = form.get("revision", "")
    if text and not re.fullmatch(_WHOLE, text):
        raise refuse("this form is outdated, and nothing was done", hint="load the page again")
    return int(text) if text else None


def _number(request: Request, name: str) -> int:
    text = request.query_params.get(name, "")
    return int(text) if re.fullmatch(_WHOLE, text) else 0
