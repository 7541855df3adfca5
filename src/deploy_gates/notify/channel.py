"""One way to somebody outside: what it wants to hear, and who sends it."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.delivery import Delivery
from deploy_gates.notify.events import data_of, kind_of

Earlier: TypeAlias = Callable[[], Sequence[Delivery]]
"""The deliveries of the same thread over the same channel up to this one, oldest first."""


class Sender(Protocol):
    """Speaks the protocol of one service."""

    def send(self, delivery: Delivery, earlier: Earlier) -> str:
        """Send it once; what the other side calls it. `Undelivered` where it did not arrive.

        The same delivery may come twice, as after a crash: what it does to the other side is done once.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Channel:
    """A channel of the settings."""

    name: str
    kind: str
    events: tuple[str, ...]
    configs: tuple[str, ...] = ()
    """Patterns; empty: all."""
    environments: tuple[str, ...] = ()
    """Empty: all. What concerns no environment is always heard."""
    sender: Sender | None = None
    """`None`: this process cannot send over it, see `lacks`."""
    lacks: str = ""
    """What is missing here, in one sentence: another process may have it."""

    def wants(self, event: JsonObject) -> bool:
        """Whether this event goes over this channel."""
        data = data_of(event)
        where = str(data.get("environment") or "")
        return (
            kind_of(event) in self.events
            and (
                not self.configs
                or any(fnmatch.fnmatchcase(str(data["config"]), each) for each in self.configs)
            )
            and (not self.environments or not where or where in self.environments)
        )
