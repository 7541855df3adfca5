"""`[tool.deploy_gates.notify]` and the environment variables it names, made into channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deploy_gates.core.canonical import Json
from deploy_gates.core.config import ENVIRONMENTS
from deploy_gates.notify import chat, github, jira, statuspage, webhook
from deploy_gates.notify.channel import Channel, Sender
from deploy_gates.notify.web import Endpoint

SOURCE = "/deploy-gates"
ATTEMPTS = 10
_ENDS = ("promotion.shipped", "promotion.blocked", "promotion.rolled-back", "promotion.aborted")
_GOES = ("promotion.proposed", "promotion.moved", "promotion.verified", "promotion.decided", "promotion.held")
_ALL = (*_GOES, *_ENDS, "promotion.superseded", "deployment.moved")
_HEARD: Mapping[str, tuple[str, ...]] = {
    "webhook": _ALL,
    "apprise": ("promotion.proposed", "promotion.held", *_ENDS, "deployment.moved"),
    "github": _ALL,
    "statuspage": ("promotion.moved", *_ENDS, "promotion.superseded"),
    "jira": ("promotion.proposed", *_ENDS, "promotion.superseded"),
    "github-issues": ("promotion.proposed", *_ENDS, "promotion.superseded"),
}
"""What each kind hears where the settings do not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Telling:
    """Who is told, and how: the settings with what the environment holds."""

    channels: tuple[Channel, ...] = ()
    source: str = SOURCE
    dashboard_url: str = ""
    attempts: int = ATTEMPTS

    @classmethod
    def of(cls, table: Mapping[str, Json], environ: Mapping[str, str]) -> Telling:
        """What the settings say, which the schema has checked. A secret that is missing is no error here."""
        raw = table.get("channels", {})
        assert isinstance(raw, dict), raw
        return cls(
            channels=tuple(_channel(name, each, environ) for name, each in raw.items()),
            source=_text(table, "source", SOURCE),
            dashboard_url=_text(table, "dashboard_url"),
            attempts=int(_text(table, "attempts", str(ATTEMPTS))),
        )

    def channel(self, name: str) -> Channel | None:
        """The channel of that name; `None`: these settings know none."""
        return next((each for each in self.channels if each.name == name), None)


class _Lacking(Exception):
    """Something that a channel needs is not here: one sentence."""


def _channel(name: str, raw: Json, environ: Mapping[str, str]) -> Channel:
    assert isinstance(raw, dict), raw
    kind = _text(raw, "kind")
    sender, lacks = None, ""
    try:
        sender = _SENDERS[kind](raw, environ)
    except _Lacking as error:
        lacks = str(error)
    return Channel(
        name=name,
        kind=kind,
        events=_texts(raw, "events") or _HEARD[kind],
        configs=_texts(raw, "configs"),
        environments=_texts(raw, "environments") or (ENVIRONMENTS[-1:] if kind == "statuspage" else ()),
        sender=sender,
        lacks=lacks,
    )


def _webhook(raw: Mapping[str, Json], environ: Mapping[str, str]) -> Sender:
    variable = _text(raw, "secret_env")
    secret = _secret(environ, variable)
    try:
        key = webhook.key_of(secret)
    except ValueError as error:
        raise _Lacking(f"${variable} {error}") from None
    url = _text(raw, "url") or _secret(environ, _text(raw, "url_env"))
    return webhook.Webhook(endpoint=Endpoint(url=url, secrets=(secret, url)), key=key)


def _chat(raw: Mapping[str, Json], environ: Mapping[str, str]) -> Sender:
    return chat.Chat(url=_secret(environ, _text(raw, "url_env")))


def _github(raw: Mapping[str, Json], environ: Mapping[str, str]) -> Sender:
    urls = raw.get("environment_urls", {})
    assert isinstance(urls, dict), urls
    return github.GitHub(
        endpoint=_github_endpoint(raw, environ),
        repository=_repository(raw, environ),
        writes=_texts(raw, "writes") or github.WRITES,
        environment_urls={name: str(url) for name, url in urls.items()},
    )


def _github_issues(raw: Mapping[str, Json], environ: Mapping[str, str]) -> Sender:
    return github.GitHubIssues(
        endpoint=_github_endpoint(raw, environ),
        repository=_repository(raw, environ),
        labels=_texts(raw, "labels") if "labels" in raw else ("deploy",),
    )


def _statuspage(raw: Mapping[str, Json], environ: Mapping[str, str]) -> Sender:
    token = _secret(environ, _text(raw, "token_env", "STATUSPAGE_API_KEY"))
    return statuspage.Statuspage(
        endpoint=_endpoint(_text(raw, "api_url", statuspage.API_URL), statuspage.headers(token), token),
        page=_text(raw, "page"),
        component=_text(raw, "component"),
        incident=bool(raw.get("incident", True)),
    )


def _jira(raw: Mapping[str, Json], environ: Mapping[str, str]) -> Sender:
    user = _secret(environ, _text(raw, "user_env", "JIRA_USER"))
    token = _secret(environ, _text(raw, "token_env", "JIRA_API_TOKEN"))
    return jira.Jira(
        endpoint=_endpoint(_text(raw, "url"), jira.headers(user, token), token),
        project=_text(raw, "project"),
        issue_type=_text(raw, "issue_type", "Task"),
        done=_text(raw, "done"),
    )


_SENDERS: Mapping[str, Callable[[Mapping[str, Json], Mapping[str, str]], Sender]] = {
    "webhook": _webhook,
    "apprise": _chat,
    "github": _github,
    "statuspage": _statuspage,
    "jira": _jira,
    "github-issues": _github_issues,
}


def _github_endpoint(raw: Mapping[str, Json], environ: Mapping[str, str]) -> Endpoint:
    token = _secret(environ, _text(raw, "token_env", "GITHUB_TOKEN"))
    url = _text(raw, "api_url") or environ.get("GITHUB_API_URL") or github.API_URL
    return _endpoint(url, github.headers(token), token)


def _endpoint(url: str, headers: Mapping[str, str], token: str) -> Endpoint:
    return Endpoint(url=url.rstrip("/"), headers=headers, secrets=(token,))


def _repository(raw: Mapping[str, Json], environ: Mapping[str, str]) -> str:
    found = _text(raw, "repository") or environ.get("GITHUB_REPOSITORY", "")
    if not found:
        raise _Lacking("neither `repository` nor $GITHUB_REPOSITORY says which repository")
    return found


def _secret(environ: Mapping[str, str], variable: str) -> str:
    """What the variable holds, fit for a header."""
    value = environ.get(variable, "").strip()
    if not value:
        raise _Lacking(f"${variable} is not set here")
    if not (value.isascii() and value.isprintable()):
        raise _Lacking(f"${variable} holds characters that no HTTP header can hold")
    return value


# The schema has checked every type below.


def _text(raw: Mapping[str, Json], key: str, default: str = "") -> str:
    return str(raw.get(key, default))


def _texts(raw: Mapping[str, Json], key: str) -> tuple[str, ...]:
    value = raw.get(key, [])
    assert isinstance(value, list), value
    return tuple(str(each) for each in value)
