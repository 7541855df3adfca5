"""The report of the gates where a change is reviewed: one comment of a pull or merge request, updated.

What CI says of itself in its variables is enough to find the place; an earlier comment of ours is changed.
"""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.errors import SettingsError
from deploy_gates.notify import github
from deploy_gates.notify.web import Endpoint, Undelivered, retry_after_s
from deploy_gates.report.comment import MARKER

TRIES = 3
"""So often GitHub or GitLab is asked, when it is busy or cannot be reached."""
WAIT_MAX_S = 20.0
"""Between two tries, whatever the other side wants: a job is waiting, and paid by the minute."""
PAGES_MAX = 30
"""So many pages of comments, of a hundred each, are searched for ours."""
_MEMBERS = ("OWNER", "MEMBER", "COLLABORATOR")
_SECTION = "\n## "
"""How the part about one config begins; a report without any has judged nothing."""


class Done(StrEnum):
    """What became of the comment."""

    CREATED = "created"
    CHANGED = "changed"
    KEPT = "kept"
    """It says that already, or there is nothing to say and there was no comment."""
    FORBIDDEN = "forbidden"
    """The token may read only, as that of a pull request from a fork."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One pull request or merge request, and how to write there."""

    name: str
    """As people say it: `pull request 7`."""
    endpoint: Endpoint
    comments: str
    """The path of the list of its comments."""
    comment: str
    """The path of one comment, without its number."""
    change: str
    """The HTTP method that changes one."""
    job: str
    """Where the log of this run is; empty: nobody knows."""
    user: str = ""
    """The path that says who we are; empty: the token belongs to a robot, and robots are marked."""


def place(environ: Mapping[str, str]) -> Place | None:
    """Where this run of CI wants its report; `None`: it is a run for no pull request or merge request.

    `SettingsError` outside of GitHub Actions and GitLab CI, or without a token.
    """
    if environ.get("GITHUB_ACTIONS") == "true":
        return _pull_request(environ)
    if environ.get("GITLAB_CI") == "true":
        return _merge_request(environ)
    raise SettingsError(
        "this is neither GitHub Actions nor GitLab CI, so nobody knows which pull request is meant",
        hint="elsewhere, post .deploy-gates/report.md with what your CI offers: docs/ci.md has an example",
    )


def post(at: Place, report: str | None) -> Done:
    """Have the report stand there once; `None`: the gates came to none, and an older one must not stay.

    `Undelivered` if the other side cannot be reached or does not accept it.
    """
    for tried in range(1, TRIES + 1):
        try:
            return _post(at, report)
        except Undelivered as error:
            if error.is_final or tried == TRIES:
                raise
            time.sleep(min(error.retry_after_s or float(tried), WAIT_MAX_S))
    raise AssertionError("the last try returns or raises")


def _post(at: Place, report: str | None) -> Done:
    body = _without_report(at) if report is None else report
    ours = _ours(at)
    if ours is None:
        if report is not None and _SECTION not in report:
            return Done.KEPT  # no config changed: that is worth no comment
        return Done.CREATED if _write(at, "POST", at.comments, body) else Done.FORBIDDEN
    if str(ours.get("body", "")).replace("\r\n", "\n").strip() == body.strip():
        return Done.KEPT
    return Done.CHANGED if _write(at, at.change, f"{at.comment}/{ours['id']}", body) else Done.FORBIDDEN


def _without_report(at: Place) -> str:
    log = f"[the log of the job]({at.job})" if at.job else "the log of the job"
    return f"{MARKER}\n**no verdict**: the gates came to no report; {log} says why\n"


def _write(at: Place, method: str, path: str, body: str) -> bool:
    """Whether we may."""
    sent = json.dumps({"body": body}).encode()
    answer = at.endpoint.ask(method, path, sent, {"content-type": "application/json"})
    if answer.status == 403 and not retry_after_s(answer):
        return False
    at.endpoint.checked(answer)
    return True


# --- Which comment is ours ----------------------------------------------------------------------


def _ours(at: Place) -> JsonObject | None:
    """The first comment with our mark by somebody who may write here: anybody can copy a mark."""
    marked = [each for each in _comments(at) if str(each.get("body", "")).startswith(MARKER)]
    if not marked:
        return None
    me = _number(at.endpoint.get(at.user)) if at.user else None
    return next((each for each in marked if _is_ours(each, me)), None)


def _is_ours(comment: JsonObject, me: Json) -> bool:
    if me is not None:
        return _number(comment.get("author")) == me
    user = comment.get("user")
    is_robot = isinstance(user, dict) and user.get("type") == "Bot"
    return is_robot or comment.get("author_association") in _MEMBERS


def _number(found: Json) -> Json:
    return found.get("id") if isinstance(found, dict) else None


def _comments(at: Place) -> Iterator[JsonObject]:
    for page in range(1, PAGES_MAX + 1):
        found = at.endpoint.get(at.comments, per_page=github.PAGE, page=str(page))
        comments = found if isinstance(found, list) else []
        yield from (each for each in comments if isinstance(each, dict) and "id" in each)
        if len(comments) < int(github.PAGE):
            return


# --- What CI says of itself ---------------------------------------------------------------------


def _pull_request(environ: Mapping[str, str]) -> Place | None:
    number = _pull_request_number(environ)
    if number is None:
        return None
    token = _token(environ, "GITHUB_TOKEN", "GH_TOKEN")
    repository = _told(environ, "GITHUB_REPOSITORY")
    server, run = environ.get("GITHUB_SERVER_URL", ""), environ.get("GITHUB_RUN_ID", "")
    return Place(
        name=f"pull request {number}",
        endpoint=Endpoint(
            url=environ.get("GITHUB_API_URL", github.API_URL).rstrip("/"),
            headers=github.headers(token),
            secrets=(token,),
        ),
        comments=f"/repos/{repository}/issues/{number}/comments",
        comment=f"/repos/{repository}/issues/comments",
        change="PATCH",
        job=f"{server}/{repository}/actions/runs/{run}" if server and run else "",
    )


def _pull_request_number(environ: Mapping[str, str]) -> int | None:
    """The event that started the workflow tells it."""
    path = environ.get("GITHUB_EVENT_PATH", "")
    try:
        event = json.loads(Path(path).read_bytes()) if path else {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}, which GITHUB_EVENT_PATH names, cannot be read: {error}") from error
    found = event.get("pull_request") if isinstance(event, dict) else None
    number = found.get("number") if isinstance(found, dict) else None
    return number if isinstance(number, int) else None


def _merge_request(environ: Mapping[str, str]) -> Place | None:
    number = environ.get("CI_MERGE_REQUEST_IID", "")
    if not number:
        return None
    token = _token(environ, "DEPLOY_GATES_GITLAB_TOKEN", "GITLAB_TOKEN")
    project = urllib.parse.quote(_told(environ, "CI_MERGE_REQUEST_PROJECT_ID"), safe="")
    notes = f"/projects/{project}/merge_requests/{urllib.parse.quote(number, safe='')}/notes"
    return Place(
        name=f"merge request {number}",
        endpoint=Endpoint(
            url=_told(environ, "CI_API_V4_URL").rstrip("/"),
            headers={"private-token": token},
            secrets=(token,),
        ),
        comments=notes,
        comment=notes,
        change="PUT",
        job=environ.get("CI_JOB_URL", ""),
        user="/user",
    )


def _token(environ: Mapping[str, str], *variables: str) -> str:
    found = next((environ[each].strip() for each in variables if environ.get(each, "").strip()), "")
    if not found:
        raise SettingsError(
            f"${variables[0]} is not set, so nothing can be written to the reviewers",
            hint="docs/ci.md says which token, and where it comes from",
        )
    if not (found.isascii() and found.isprintable()):
        raise SettingsError(f"${variables[0]} holds characters that no HTTP header can hold")
    return found


def _told(environ: Mapping[str, str], variable: str) -> str:
    found = environ.get(variable, "")
    if not found:
        raise SettingsError(f"CI does not say ${variable}")
    return found
