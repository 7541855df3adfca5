"""GitHub's REST API: deployments and their statuses, the status of the commit, one comment a pull request.

Nothing is made before it was looked for: a delivery that comes twice makes nothing twice.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import ENVIRONMENTS
from deploy_gates.core.delivery import Delivery, Fate
from deploy_gates.notify import words
from deploy_gates.notify.channel import Earlier
from deploy_gates.notify.events import data_of, kind_of
from deploy_gates.notify.web import Endpoint

VERSION = "2022-11-28"
API_URL = "https://api.github.com"
EARLIER_MAX = 5
"""So many deployments are looked at for what was served before."""
WRITES = ("deployment", "status", "comment")
PAGE = "100"
PAGES_MAX = 10
"""So many pages of comments are searched for ours."""
_ENDED = {
    "shipped": ("success", "success"),
    "blocked": ("failure", "failure"),
    "rolled-back": ("failure", "failure"),
    "superseded": ("error", "inactive"),
    "aborted": ("error", "inactive"),
}
"""How a promotion ended: the state of its commit, and of the deployment that was under way."""


def headers(token: str) -> Mapping[str, str]:
    """What every request says."""
    return {
        "authorization": f"Bearer {token}",
        "accept": "application/vnd.github+json",
        "x-github-api-version": VERSION,
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class GitHub:
    """One repository."""

    endpoint: Endpoint
    repository: str
    writes: tuple[str, ...] = WRITES
    environment_urls: Mapping[str, str] = field(default_factory=dict)

    def send(self, delivery: Delivery, earlier: Earlier) -> str:
        """Bring the repository to where the promotion is; the id of its deployment, if this one made one.

        A move without a commit, or with one of another repository, has no place here.
        """
        event = delivery.body
        if not data_of(event).get("commit"):
            return ""
        known = earlier()
        told = [each.body for each in known if each.state is Fate.DELIVERED or each.id == delivery.id] or [
            event
        ]
        is_last = told[-1:] == [event]  # else it was given up once, and later ones have arrived meanwhile
        deployment = self._deploy(event) if "deployment" in self.writes and is_last else ""
        if "promotion" in data_of(event):
            if "status" in self.writes:
                self._say(told[-1])
            if "comment" in self.writes:
                self._comment(told)
        return deployment

    @property
    def _at(self) -> str:
        return f"/repos/{self.repository}"

    # --- Deployments ----------------------------------------------------------------------------

    def _deploy(self, event: JsonObject) -> str:
        """The deployment of the environment, made where there is none, and its status."""
        data, kind = data_of(event), kind_of(event)
        environment = str(data.get("environment") or "")
        state = _state(event)
        if kind in ("promotion.superseded", "promotion.aborted"):
            for each in ENVIRONMENTS:
                found = self._deployment(event, each)
                if found and self._last_state(found) == "in_progress":
                    self._set(found, event, each, "inactive")
            return ""
        if not environment or not state:
            return ""
        ours = self._deployment(event, environment)
        if not ours and kind in ("promotion.moved", "deployment.moved"):
            ours = self._deployed(event, environment)
        if ours and self._last_state(ours) != state:
            self._set(ours, event, environment, state)
        if ours and state == "success":
            self._supersede(event, environment, ours)
        return str(ours or "")

    def _supersede(self, event: JsonObject, environment: str, ours: int) -> None:
        """What the environment served of this config before is inactive now.

        GitHub would do so by itself, for every config of the repository at once.
        """
        found = self.endpoint.get(
            f"{self._at}/deployments", environment=environment, task=_task(event), per_page=str(EARLIER_MAX)
        )
        for each in found if isinstance(found, list) else ():
            other = _id(each) if isinstance(each, dict) else 0
            if 0 < other < ours and self._last_state(other) == "success":
                self._set(other, event, environment, "inactive")

    def _deployment(self, event: JsonObject, environment: str) -> int:
        """The deployment of this promotion in the environment; 0: there is none yet."""
        found = self.endpoint.get(
            f"{self._at}/deployments",
            sha=str(data_of(event)["commit"]),
            environment=environment,
            task=_task(event),
            per_page=PAGE,
        )
        for each in found if isinstance(found, list) else ():
            payload = each.get("payload") if isinstance(each, dict) else None
            if (
                isinstance(each, dict)
                and isinstance(payload, dict)
                and payload.get("tag") == words.tag(event)
            ):
                return _id(each)
        return 0

    def _deployed(self, event: JsonObject, environment: str) -> int:
        data = data_of(event)
        made = self.endpoint.send(
            "POST",
            f"{self._at}/deployments",
            {
                "ref": data["commit"],
                "task": _task(event),
                "auto_merge": False,
                "required_contexts": [],  # the evidence has spoken, and is stricter
                "environment": environment,
                "production_environment": environment == ENVIRONMENTS[-1],
                "description": words.said(event),
                "payload": {
                    "tag": words.tag(event),
                    "config": data["config"],
                    "digest": data["digest"],
                    "promotion": data.get("promotion"),
                },
            },
        )
        return _id(made)

    def _last_state(self, deployment: int) -> str:
        found = self.endpoint.get(f"{self._at}/deployments/{deployment}/statuses", per_page="1")
        last = found[0] if isinstance(found, list) and found else None
        return str(last.get("state")) if isinstance(last, dict) else ""

    def _set(self, deployment: int, event: JsonObject, environment: str, state: str) -> None:
        data = data_of(event)
        page = str(data.get("url") or "")
        status: JsonObject = {
            "state": state,
            "environment": environment,
            "description": words.said(event),
            "auto_inactive": False,
        }
        if page:
            status["log_url"] = page
        if self.environment_urls.get(environment) or page:
            status["environment_url"] = self.environment_urls.get(environment) or page
        self.endpoint.send("POST", f"{self._at}/deployments/{deployment}/statuses", status)

    # --- The commit and its pull request --------------------------------------------------------

    def _say(self, event: JsonObject) -> None:
        """The status of the commit: pending until the promotion has ended. The last one counts."""
        data, ended = data_of(event), words.end(event)
        status: JsonObject = {
            "state": _ENDED[ended][0] if ended else "pending",
            "description": words.said(event),
            "context": f"deploy-gates/{data['config']}",
        }
        if data.get("url"):
            status["target_url"] = data["url"]
        self.endpoint.send("POST", f"{self._at}/statuses/{data['commit']}", status)

    def _comment(self, events: Sequence[JsonObject]) -> None:
        """The one comment of the promotion on each pull request of the commit: it is changed as it goes."""
        event = events[-1]
        found = self.endpoint.get(f"{self._at}/commits/{data_of(event)['commit']}/pulls")
        body: JsonObject = {"body": words.comment(events)}
        for each in found if isinstance(found, list) else ():
            number = each.get("number") if isinstance(each, dict) else None
            if not isinstance(number, int):
                continue
            ours = commented(self.endpoint, f"{self._at}/issues/{number}", words.marker(event))
            if ours:
                self.endpoint.send("PATCH", f"{self._at}/issues/comments/{ours}", body)
            else:
                self.endpoint.send("POST", f"{self._at}/issues/{number}/comments", body)


@dataclass(frozen=True, kw_only=True, slots=True)
class GitHubIssues:
    """Deploy tickets as issues: opened when a promotion is proposed, closed with its outcome."""

    endpoint: Endpoint
    repository: str
    labels: tuple[str, ...] = ("deploy",)

    def send(self, delivery: Delivery, earlier: Earlier) -> str:
        """Open the issue, or close it; its number. One that is closed unopened is opened first."""
        event = delivery.body
        number = next((each.external_id for each in earlier() if each.external_id), "") or self._found(event)
        if not number:
            made = self.endpoint.send(
                "POST",
                f"/repos/{self.repository}/issues",
                {
                    "title": words.title(event),
                    "body": f"{words.marker(event)}\n{words.literal_lines(words.text(event))}",
                    "labels": list(self.labels),
                },
            )
            number = str(made.get("number") or "")
        if ended := words.end(event):
            self._close(event, number, ended)
        return number

    def _close(self, event: JsonObject, number: str, ended: str) -> None:
        at = f"/repos/{self.repository}/issues/{urllib.parse.quote(number, safe='')}"
        found = self.endpoint.get(at)
        if isinstance(found, dict) and found.get("state") == "closed":
            return  # done before, or by somebody's hand
        if not commented(self.endpoint, at, words.marker(event)):
            said = words.literal_lines(f"{words.title(event)}\n{words.text(event)}")
            self.endpoint.send("POST", f"{at}/comments", {"body": f"{words.marker(event)}\n{said}"})
        reason = "completed" if ended == "shipped" else "not_planned"
        self.endpoint.send("PATCH", at, {"state": "closed", "state_reason": reason})

    def _found(self, event: JsonObject) -> str:
        """The number of the issue of this promotion; empty: there is none yet."""
        asked = {"labels": ",".join(self.labels)} if self.labels else {}
        since = str(data_of(event).get("proposed_at") or event["time"])
        found = self.endpoint.get(
            f"/repos/{self.repository}/issues", state="all", since=_utc(since), per_page=PAGE, **asked
        )
        for each in found if isinstance(found, list) else ():
            if isinstance(each, dict) and str(each.get("body")).startswith(words.marker(event)):
                return str(each.get("number"))
        return ""


def commented(endpoint: Endpoint, issue: str, marker: str) -> int:
    """The comment that begins with `marker` on an issue or a pull request; 0: there is none yet."""
    for page in range(1, PAGES_MAX + 1):
        found = endpoint.get(f"{issue}/comments", per_page=PAGE, page=str(page))
        comments = found if isinstance(found, list) else []
        for each in comments:
            if isinstance(each, dict) and str(each.get("body")).startswith(marker):
                return _id(each)
        if len(comments) < int(PAGE):
            break
    return 0


def _state(event: JsonObject) -> str:
    """The state of the environment's deployment after this event; empty: it says nothing of it."""
    data, kind = data_of(event), kind_of(event)
    if ended := words.end(event):
        return _ENDED[ended][1]
    if kind == "deployment.moved":
        return "in_progress" if data.get("candidate") else "success"
    if kind == "promotion.moved" and data.get("move") == "rollback":
        return "failure"
    if kind == "promotion.moved":
        return "success" if data.get("is_verified") else "in_progress"
    if kind in ("promotion.verified", "promotion.decided"):
        is_next = kind == "promotion.verified" and data["is_met"]
        return "success" if is_next else "" if data["is_met"] else "failure"
    return ""


def _task(event: JsonObject) -> str:
    """By this, the deployments of a config are told from those of other configs and other tools."""
    return f"deploy-gates:{data_of(event)['config']}"


def _id(value: JsonObject) -> int:
    found: Json = value.get("id")
    return found if isinstance(found, int) else 0


def _utc(time: str) -> str:
    """A moment as GitHub reads it: whole seconds, `Z`."""
    return f"{time[:19]}Z"
