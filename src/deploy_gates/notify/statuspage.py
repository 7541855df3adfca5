"""Atlassian Statuspage: a component under maintenance while a canary runs, an incident after a rollback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.delivery import Delivery
from deploy_gates.notify import words
from deploy_gates.notify.channel import Earlier
from deploy_gates.notify.events import data_of, kind_of
from deploy_gates.notify.web import Endpoint

API_URL = "https://api.statuspage.io"
FINE, WORKED_ON = "operational", "under_maintenance"


def headers(token: str) -> Mapping[str, str]:
    """How a key is let in."""
    return {"authorization": f"OAuth {token}"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Statuspage:
    """One component of one page."""

    endpoint: Endpoint
    page: str
    component: str
    incident: bool = True

    def send(self, delivery: Delivery, earlier: Earlier) -> str:
        """Bring the page to where the promotion is; the id of an incident, if there is one.

        Only what a canary has changed is changed back: an outage that somebody else reports stays.
        """
        event = delivery.body
        if _is_canary(event):
            self._turn(FINE, WORKED_ON)
            return ""
        is_over = words.end(event) or data_of(event).get("move") == "rollback"
        if not is_over or not any(_is_canary(each.body) for each in earlier()):
            return ""  # nobody was told of anything
        self._turn(WORKED_ON, FINE)
        if self.incident and words.end(event) == "rolled-back":
            return self._found(event) or self._reported(event)
        return ""

    def _turn(self, before: str, after: str) -> None:
        at = f"/v1/pages/{self.page}/components/{self.component}"
        found = self.endpoint.get(at)
        if isinstance(found, dict) and found.get("status") == before:
            self.endpoint.send("PATCH", at, {"component": {"status": after}})

    def _found(self, event: JsonObject) -> str:
        """The incident of this promotion; empty: there is none yet."""
        found = self.endpoint.get(f"/v1/pages/{self.page}/incidents", limit="50")
        for each in found if isinstance(found, list) else ():
            metadata = each.get("metadata") if isinstance(each, dict) else None
            ours = metadata.get("deploy_gates") if isinstance(metadata, dict) else None
            if isinstance(each, dict) and isinstance(ours, dict) and ours.get("tag") == words.tag(event):
                return str(each.get("id"))
        return ""

    def _reported(self, event: JsonObject) -> str:
        """Tell of the rollback. It is over when it is told: the incident is resolved."""
        made = self.endpoint.send(
            "POST",
            f"/v1/pages/{self.page}/incidents",
            {
                "incident": {
                    "name": words.title(event),
                    "status": "resolved",
                    "impact_override": "minor",
                    "body": words.text(event),
                    "component_ids": [self.component],
                    "metadata": {"deploy_gates": {"tag": words.tag(event)}},
                }
            },
        )
        return str(made.get("id") or "")


def _is_canary(event: JsonObject) -> bool:
    return kind_of(event) == "promotion.moved" and data_of(event).get("move") == "canary"
