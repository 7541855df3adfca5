"""Deploy tickets in Jira Cloud, by its REST API, version 3."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.delivery import Delivery
from deploy_gates.notify import words
from deploy_gates.notify.channel import Earlier
from deploy_gates.notify.web import Endpoint, Undelivered

DONE = "done"
"""The category of every status that ends an issue, whatever it is called."""
_API = "/rest/api/3"


def headers(user: str, token: str) -> Mapping[str, str]:
    """How a user is let in with a token."""
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Jira:
    """One project: a ticket is opened when a promotion is proposed, and closed with its outcome."""

    endpoint: Endpoint
    project: str
    issue_type: str = "Task"
    done: str = ""
    """The status of a closed ticket; empty: the first that ends it."""

    def send(self, delivery: Delivery, earlier: Earlier) -> str:
        """Open the ticket, or close it; its key. One that is closed unopened is opened first."""
        event = delivery.body
        key = next((each.external_id for each in earlier() if each.external_id), "") or self._found(event)
        if not key:
            made = self.endpoint.send("POST", f"{_API}/issue", {"fields": self._fields(event)})
            key = str(made.get("key") or "")
        if words.end(event):
            self._close(event, f"{_API}/issue/{urllib.parse.quote(key, safe='')}")
        return key

    def _found(self, event: JsonObject) -> str:
        """The ticket of this promotion, by its label; empty: there is none yet."""
        found = self.endpoint.send(
            "POST",
            f"{_API}/search/jql",
            {
                "jql": f'project = "{self.project}" AND labels = "{words.tag(event)}"',
                "maxResults": 1,
                "fields": ["status"],
            },
        )
        issues = found.get("issues")
        first = issues[0] if isinstance(issues, list) and issues else None
        return str(first.get("key")) if isinstance(first, dict) else ""

    def _fields(self, event: JsonObject) -> JsonObject:
        return {
            "project": {"key": self.project},
            "issuetype": {"name": self.issue_type},
            "summary": words.title(event),
            "description": document(words.text(event)),
            "labels": ["deploy-gates", words.tag(event)],
        }

    def _close(self, event: JsonObject, issue: str) -> None:
        found = self.endpoint.get(issue, fields="status")
        if _category(_inside(found, "fields", "status")) == DONE:
            return  # done before, or by somebody's hand
        title = words.title(event)
        comments = self.endpoint.get(f"{issue}/comment", orderBy="-created", maxResults="50")
        if json.dumps(title) not in json.dumps(_inside(comments, "comments")):
            body = document(f"{title}\n{words.text(event)}")
            self.endpoint.send("POST", f"{issue}/comment", {"body": body})
        listed = _inside(self.endpoint.get(f"{issue}/transitions"), "transitions")
        for each in listed if isinstance(listed, list) else ():
            to = _inside(each, "to")
            is_named = self.done in (_inside(to, "name"), _inside(each, "name"))
            if is_named if self.done else _category(to) == DONE:
                transition: JsonObject = {"transition": {"id": _inside(each, "id")}}
                self.endpoint.send("POST", f"{issue}/transitions", transition)
                return
        wanted = f"to {self.done}" if self.done else "that ends it"
        raise Undelivered(f"the ticket has no transition {wanted}", is_final=True)


def document(text: str) -> JsonObject:
    """Lines in the Atlassian Document Format, a paragraph each."""
    paragraphs: list[Json] = [
        {"type": "paragraph", "content": [{"type": "text", "text": line}]}
        for line in text.splitlines()
        if line
    ]
    return {"type": "doc", "version": 1, "content": paragraphs}


def _category(status: Json) -> Json:
    return _inside(status, "statusCategory", "key")


def _inside(value: Json, *path: str) -> Json:
    """What stands there, in an answer that may have any shape; `None`: nothing."""
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value
