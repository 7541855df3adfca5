"""Who looks at a page, and what they may do: signed in by a token, or nobody in particular.

A session is a random name in a cookie, and its token stays here: a cookie that is stolen from a disk opens
nothing once the server is restarted, and a token that is revoked ends its sessions within seconds.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from deploy_gates.core.errors import DeployGatesError
from deploy_gates.core.promotion import Scope, Token
from deploy_gates.server.access import Access
from deploy_gates.server.asking import allowed, in_thread, refuse

COOKIE = "deploy_gates_session"
SESSION_S = 8 * 3600
SESSIONS_MAX = 1_000
READING = frozenset({Scope.READ, Scope.PROMOTE})
"""Either of these is enough to read."""
MESSAGES_MAX = 8
"""So many of its last messages a session remembers, for pages that are loaded again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Visitor:
    """Whoever asked for a page and may read it."""

    name: str = ""
    """Of the token; empty: nobody is signed in, and nobody has to be."""
    may_promote: bool = False
    csrf: str = ""
    """What a form of this visitor has to send back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Session:
    sent: str
    """The token as its owner sends it."""
    csrf: str
    until: float
    """On the monotonic clock."""
    messages: dict[str, str] = field(default_factory=dict)
    """What came of its forms; a link cannot put words there."""


class Visitors:
    """The sessions of one server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: dict[str, _Session] = {}

    async def reader(self, request: Request) -> Visitor:
        """Whoever asks, if they may read. A redirect to the sign-in page is raised otherwise."""
        session = self._session(request)
        if session is not None:
            token = await _token(request, session.sent)
            if token is not None and token.scopes & READING:
                return _visitor(token, session.csrf)
        try:
            token = await allowed(request, Scope.READ)
        except HTTPException as refused:
            if refused.status_code not in (401, 403):
                raise
            asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            raise HTTPException(
                303, headers={"Location": f"/sign-in?next={quote(asked, safe='')}"}
            ) from refused
        return Visitor(name=token.name) if token is not None else Visitor()

    async def known(self, request: Request) -> Visitor:
        """Whoever is signed in, for a page that says what went wrong; nobody where that cannot be told."""
        session = self._session(request)
        try:
            token = await _token(request, session.sent) if session is not None else None
        except DeployGatesError:
            token = None
        return _visitor(token, session.csrf) if session is not None and token is not None else Visitor()

    async def promoter(self, request: Request, csrf: str) -> Visitor:
        """Whoever sends a form, if they may promote and have sent it from a page of ours."""
        check_origin(request)
        session = self._session(request)
        token = await _token(request, session.sent) if session is not None else None
        if session is None or token is None:
            raise HTTPException(303, headers={"Location": "/sign-in"})
        _check_csrf(session, csrf)
        if Scope.PROMOTE not in token.scopes:
            raise refuse(f"{token.name} may not promote or roll back, and nothing was done", 403)
        return _visitor(token, session.csrf)

    async def sign_in(self, request: Request, sent: str, to: str) -> Response | None:
        """A session for whoever sends this token; `None` where nobody knows it.

        An answer is raised for a token that could not see a page: it would only be asked to sign in again.
        """
        check_origin(request)
        token = await _token(request, sent)
        if token is None:
            return None
        if not token.scopes & READING:
            raise refuse(
                f"{token.name} may not read the dashboard, and was not signed in",
                403,
                hint="`deploy-gates token create NAME --scope read` makes a token that may",
            )
        name = secrets.token_urlsafe(32)
        now = time.monotonic()
        with self._lock:
            self._sessions = {key: each for key, each in self._sessions.items() if each.until > now}
            while len(self._sessions) >= SESSIONS_MAX:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[name] = _Session(sent=sent, csrf=secrets.token_urlsafe(32), until=now + SESSION_S)
        answer = RedirectResponse(_own(to), 303)
        answer.set_cookie(
            COOKIE,
            name,
            max_age=SESSION_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    def sign_out(self, request: Request, csrf: str) -> Response:
        """End the session."""
        check_origin(request)
        session = self._session(request)
        if session is not None:
            _check_csrf(session, csrf)
            with self._lock:
                self._sessions.pop(request.cookies.get(COOKIE, ""), None)
        answer = RedirectResponse("/", 303)
        answer.delete_cookie(COOKIE)
        return answer

    def tell(self, request: Request, said: str) -> str:
        """Keep a message for the next page of this session; what to ask for it by."""
        session, name = self._session(request), secrets.token_urlsafe(6)
        if session is not None:
            with self._lock:
                while len(session.messages) >= MESSAGES_MAX:
                    del session.messages[next(iter(session.messages))]
                session.messages[name] = said
        return name

    def told(self, request: Request, name: str) -> str:
        """The message; empty where there is none."""
        session = self._session(request)
        return session.messages.get(name, "") if session is not None else ""

    def _session(self, request: Request) -> _Session | None:
        found = self._sessions.get(request.cookies.get(COOKIE, ""))
        return found if found is not None and found.until > time.monotonic() else None


def check_origin(request: Request) -> None:
    """An answer is raised for a form that another site sends."""
    origin = request.headers.get("origin")
    if origin is None:
        is_own = request.headers.get("sec-fetch-site", "none") in ("same-origin", "none")
    else:
        is_own = urlsplit(origin).netloc == request.headers.get("host")
    if not is_own:
        raise refuse("this form was sent by another site, and nothing was done", 403)


def _check_csrf(session: _Session, csrf: str) -> None:
    if not hmac.compare_digest(csrf.encode("utf-8", "replace"), session.csrf.encode()):
        raise refuse("this form is outdated, and nothing was done", 403, hint="load the page again")


def _visitor(token: Token, csrf: str) -> Visitor:
    return Visitor(name=token.name, may_promote=Scope.PROMOTE in token.scopes, csrf=csrf)


async def _token(request: Request, sent: str) -> Token | None:
    access: Access = request.app.state.access
    is_known, token = access.remembered(sent)
    return token if is_known else await in_thread(access.look_up, sent)


def _own(to: str) -> str:
    """A path of this server, whatever somebody put into a link."""
    parts = urlsplit(to)
    is_own = not parts.scheme and not parts.netloc and to.startswith("/") and not to.startswith(("//", "/\\"))
    return to if is_own else "/"
