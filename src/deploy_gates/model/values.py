"""What the engine and the caller say to each other, and the money that both look after."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TypeAlias
from urllib.parse import urlsplit

from deploy_gates.core.cost import Usage
from deploy_gates.core.errors import Cause, Unanswered, WorkspaceError
from deploy_gates.core.question import Answer, Question

Price: TypeAlias = Callable[[Question, Usage], "int | None"]
"""What a question costs that used so much, in nano-dollars; `None` if nobody knows."""
Estimate: TypeAlias = Callable[[Question], Usage]
"""The most that a question can use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Where questions are asked."""

    base_url: str = ""
    """Empty: OpenAI's own."""
    api_key: str = field(default="", repr=False)
    timeout_s: float = 60.0
    """How long one call may take, from the first byte sent to the last one received."""
    served_as: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Under which other names the endpoint says that a model answered."""

    @property
    def place(self) -> str:
        """Host and port, for people; nothing else that may stand in a URL."""
        try:
            host = urlsplit(self.base_url).netloc.rpartition("@")[2]
        except ValueError:
            host = ""
        return host or self.base_url or "api.openai.com"


class Journal(Protocol):
    """Where answers are kept as they arrive."""

    answers: Mapping[str, Answer]
    """What earlier runs left there and this one may serve."""

    def open(self) -> None:
        """Make sure that answers can be kept. `WorkspaceError` if not."""

    def append(self, question: Question, answer: Answer) -> None:
        """Keep one answer. `WorkspaceError` if it cannot be kept."""

    def close(self) -> None:
        """Let go of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """Why a call, or a question, has no answer."""

    cause: Cause
    message: str
    hint: str = ""
    can_retry: bool = False
    wait_s: float | None = None
    """How long the endpoint asks to wait."""
    is_throttled: bool = False
    """429: there is nothing wrong but the pace."""
    is_late: bool = False
    """No whole answer came in time."""
    is_refused: bool = False
    """No connection could be made."""
    usage: Usage | None = None
    """What it cost all the same."""

    def unanswered(self) -> Unanswered:
        return Unanswered(self.cause, self.message, hint=self.hint)


INTERRUPTED = Failed(
    cause=Cause.INTERRUPTED,
    message="the run ended before this was answered",
    hint="run again: what was answered is not asked again",
)


SPARED = Failed(
    cause=Cause.SPARED, message="not asked, since the verdict was certain without it", can_retry=False
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A question to be asked, and the worst it can cost; `None` if nobody knows."""

    question: Question
    worst_nanousd: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """How a question ended."""

    question: Question
    result: Answer | Failed
    took_s: float = 0.0
    spent_nanousd: int = 0
    retried: int = 0
    is_unpriced: bool = False


class Asker(Protocol):
    """Who asks: one by one, or in batches."""

    problem: WorkspaceError | None
    """Why answers can no longer be kept."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Ask these, in this order."""

    def withdraw(self, keys: Collection[str]) -> None:
        """Do not ask those of these that wait for their turn; they end as spared."""

    def stop(self) -> None:
        """Leave everything unfinished, now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batches:
    """That questions may be asked in batches, and how."""

    register: Path
    """Where it is kept what is under way."""
    patience_s: float
    """How long a batch is waited for, before it is left for another run to collect."""
    price: Price
    tell: Callable[[str], None] = lambda said: None


class Room(StrEnum):
    """Whether a budget has room for one call more."""

    YES = "yes"
    LATER = "later"
    """Perhaps, once calls under way turn out to cost less than they might."""
    NO = "no"


class Budget:
    """What a run may spend at most; shared by all that ask, on any thread.

    The worst a call can cost is reserved before it is made, and what it did cost is posted after it: so the
    limit holds even if all calls under way cost their worst.
    """

    def __init__(self, limit_nanousd: int | None = None) -> None:
        self.limit_nanousd = limit_nanousd
        self.spent_nanousd = 0
        self._reserved = 0
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], None]] = []

    def reserve(self, worst_nanousd: int, when_free: Callable[[], None]) -> Room:
        """Reserve, if there is room. If there may be later, `when_free` is called once, on any thread."""
        with self._lock:
            if self.limit_nanousd is not None:
                if self.spent_nanousd + worst_nanousd > self.limit_nanousd:
                    return Room.NO
                if self.spent_nanousd + self._reserved + worst_nanousd > self.limit_nanousd:
                    self._waiting.append(when_free)
                    return Room.LATER
            self._reserved += worst_nanousd
            return Room.YES

    def settle(self, worst_nanousd: int, spent_nanousd: int = 0) -> None:
        """Give back what was reserved, and post what was spent."""
        with self._lock:
            self._reserved -= worst_nanousd
            self.spent_nanousd += spent_nanousd
            waiting, self._waiting = self._waiting, []
        for when_free in waiting:
            when_free()
