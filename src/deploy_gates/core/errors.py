"""Every error this package raises, and the one value for what is wrong in a user's file.

DeployGatesError
├── SettingsError        the settings or the command line cannot be used        exit status 4
├── WorkspaceError       the repository or its files cannot be read or written  exit status 4
├── PromptError          a template cannot be rendered with these inputs
├── Unanswered           a model was asked, or would have to be, and did not answer
├── EnvelopeError        evidence that cannot be signed, read, or trusted       exit status 1
├── Refused              the store did not make the move that was asked for     exit status 1
├── StoreError           the store cannot be used as it is: URL, schema, driver exit status 3
│   └── StoreUnavailable it cannot be reached, is busy, full, or gone           exit status 3
├── CreditsRefused       an organisation's credits or limits do not allow a call
└── ConfigUnavailable    a client has no config of that name to serve
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class DeployGatesError(Exception):
    """What happened and what is still true; then, after a blank line, one `hint:` to act on."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message}\n\nhint: {hint}" if hint else message)
        self.message = message
        self.hint = hint


class SettingsError(DeployGatesError):
    """The settings or the command line cannot be used."""


class WorkspaceError(DeployGatesError):
    """The repository or one of its files cannot be read or written."""


class PromptError(DeployGatesError):
    """A template cannot be rendered with these inputs."""


class EnvelopeError(DeployGatesError):
    """Evidence that cannot be signed, read, or trusted."""


class Refusal(StrEnum):
    """Why a move was not made: each leads to another remedy."""

    REVISION = "revision"
    """Someone else moved the environment first."""
    FENCE = "fence"
    """Another runner has taken the environment over."""
    LEASE = "lease"
    """Another runner holds the environment, or the own lease has expired."""
    KEY_REUSED = "key reused"
    """The idempotency key belongs to another move."""
    EVIDENCE = "evidence"
    """No unrevoked passing evidence under the current policy."""
    POLICY = "policy"
    """The environment judges by another policy than the one named."""
    ORDER = "order"
    """The environment before this one does not serve the digest."""
    STATE = "state"
    """There is nothing to do that with: no canary, nothing earlier, the same digest already."""
    UNKNOWN = "unknown"
    """The store knows no such config, digest, environment, or revision."""


class Refused(DeployGatesError):
    """The store did not make the move that was asked for, and nothing was changed."""

    def __init__(self, refusal: Refusal, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.refusal = refusal


class StoreError(DeployGatesError):
    """The store cannot be used as it is."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, is busy, full, or gone."""


class CreditsRefused(DeployGatesError):
    """A call was not made: its organisation has not enough credits, or has used up a limit."""

    def __init__(
        self, message: str, *, hint: str = "", reason: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        """Which limit it was: a word of `ledger.No`; empty: it could not even be asked."""
        self.retry_after_s = retry_after_s
        """When there is room again; `None`: waiting changes nothing."""


class ConfigUnavailable(DeployGatesError):
    """A client has no config of that name to serve."""


class Cause(StrEnum):
    """Why a question has no answer: each leads to another remedy."""

    NOT_RECORDED = "not recorded"
    """Replaying only, and this request was never recorded."""
    UNREACHABLE = "unreachable"
    """The endpoint could not be reached, hung, or broke off, also after retries."""
    OVERLOADED = "overloaded"
    """The endpoint kept answering 429 or 5xx until the retries were used up."""
    REFUSED = "refused"
    """The endpoint understood and refused: 400, 404, 413, 422. The config is at fault."""
    UNAUTHORIZED = "unauthorized"
    """401 or 403: the key is at fault."""
    MALFORMED = "malformed"
    """The endpoint answered something that is not an answer of its protocol."""
    WRONG_MODEL = "wrong model"
    """Another model answered than the one asked for."""
    BUDGET = "budget"
    """Asking could spend more than the run may spend."""
    INTERRUPTED = "interrupted"
    """The run ended before the question was asked."""
    SPARED = "spared"
    """The verdict was certain without it."""


class Unanswered(DeployGatesError):
    """A model was asked, or would have to be, and did not answer."""

    def __init__(self, cause: Cause, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.cause = cause


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong in a user's file: what, where, and what to do."""

    message: str
    file: str = ""
    line: int = 0
    key: str = ""
    """Where in the document, as people write it: `messages[0].content`."""
    hint: str = ""

    def __str__(self) -> str:
        place = ":".join(part for part in (self.file, str(self.line or "")) if part)
        key = f"`{self.key}` " if self.key else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{place}{': ' if place else ''}{key}{self.message}{hint}"
