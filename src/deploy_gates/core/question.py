"""What is asked of a model, and what came back. Asking is a value; who asks is decided elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from deploy_gates.core.canonical import JsonObject, digest
from deploy_gates.core.cost import Usage


class Api(StrEnum):
    """Which of the two OpenAI protocols a config speaks."""

    CHAT = "chat.completions"
    RESPONSES = "responses"
    EMBEDDINGS = "embeddings"
    """Not for configs: what a check of similarity asks."""


PROTOCOLS = (Api.CHAT, Api.RESPONSES)
"""What a config can speak."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One request, exactly as it is sent."""

    api: Api
    body: JsonObject
    """The JSON body of the request; equal bodies are the same question."""
    digest: str
    """Names this request: what it asks, not where it is sent."""
    sample: int = 0
    """The how-maniest time the same is asked."""
    label: str = ""
    """For people: the case it belongs to."""

    @property
    def key(self) -> str:
        """What an answer to this question is kept under."""
        return f"{self.digest}#{self.sample}" if self.sample else self.digest

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))


def question(api: Api, body: JsonObject, *, label: str = "", sample: int = 0) -> Question:
    """The question that sends `body`."""
    return Question(
        api=api, body=body, digest=digest({"api": api.value, "body": body}), sample=sample, label=label
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A tool the model wants called, its arguments as the JSON text it wrote."""

    name: str
    arguments: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came back."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    refusal: str | None = None
    finish_reason: str = "stop"
    """`stop`, `length`, `tool_calls`, or `content_filter`, whichever protocol was spoken."""
    usage: Usage | None = None
    model: str = ""
    """The model that says it answered."""
    latency_s: float = 0.0
    first_token_s: float | None = None
    """For streamed answers: when the first token came."""
    asked_at: datetime | None = None
    recorded: bool = False
    """Taken from a recording, not asked now."""
