"""A message to somebody outside, from the moment it has to be sent until it has arrived or is given up."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from deploy_gates.core.canonical import JsonObject


class Fate(StrEnum):
    """What has become of a delivery."""

    DUE = "due"
    """To be tried, now or later."""
    DELIVERED = "delivered"
    DEAD = "dead"
    """Given up after the last try: shown, and sent again only when somebody asks for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One message over one channel."""

    id: str
    """Names the message and the channel: the same one is kept and sent once."""
    thread: str
    """What it belongs to: `promotion/118`. The messages of a thread over one channel are sent in order."""
    channel: str
    """The name of the channel, as the settings say it."""
    body: JsonObject = field(repr=False)
    """The event, as CloudEvents spells it."""
    state: Fate = Fate.DUE
    attempts: int = 0
    created_at: datetime
    next_at: datetime
    """When it is tried next."""
    external_id: str = ""
    """What the other side calls it: a ticket, a deployment, a comment."""
    error: str = ""
    """Why the last try failed."""

    def to_json(self) -> JsonObject:
        return {
            "id": self.id,
            "thread": self.thread,
            "channel": self.channel,
            "body": self.body,
            "state": self.state.value,
            "attempts": self.attempts,
            "created_at": self.created_at.isoformat(),
            "next_at": self.next_at.isoformat(),
            "external_id": self.external_id,
            "error": self.error,
        }
