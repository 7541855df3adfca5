"""What an environment serves, how it is moved, and the history that says so.

The store makes a move in one statement or not at all. What is written here is what both engines promise, and
what can be verified of them without either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from deploy_gates.core.assignment import WHOLE_BP
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.cost import Price


class Kind(StrEnum):
    """What a move does."""

    PROMOTE = "promote"
    """The digest becomes what everybody gets."""
    CANARY = "canary"
    """The digest is served to a share, or the share is changed."""
    ROLLBACK = "rollback"
    """The candidate goes; without one, an earlier baseline comes back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """What an environment serves of one config, at one revision: one row."""

    config: str
    environment: str
    revision: int = 0
    """0: nothing has been promoted yet."""
    kind: Kind | None = None
    baseline: str = ""
    """The digest that everybody gets who does not get the candidate."""
    candidate: str = ""
    weight_bp: int = 0
    """The share of keys that get the candidate, in basis points."""
    salt: str = ""
    expires_at: datetime | None = None
    """When clients end the canary by themselves, whoever died; `None`: never."""
    policy: str = ""
    """The digest of the policy under which evidence is admitted."""
    evidence: str = ""
    """The evidence that opened the environment to what was moved in last."""
    actor: str = ""
    reason: str = ""
    changed_at: datetime | None = None
    owner: str = ""
    """The runner that holds the lease or held it last."""
    fence: int = 0
    lease_until: datetime | None = None

    def to_json(self) -> JsonObject:
        """What everybody may know: the lease is the runners' business."""
        return {
            "config": self.config,
            "environment": self.environment,
            "revision": self.revision,
            "kind": self.kind.value if self.kind else "",
            "baseline": self.baseline,
            "candidate": self.candidate,
            "weight_bp": self.weight_bp,
            "salt": self.salt,
            "expires_at": self.expires_at.isoformat() if self.expires_at else None,
            "policy": self.policy,
            "evidence": self.evidence,
            "actor": self.actor,
            "reason": self.reason,
            "changed_at": self.changed_at.isoformat() if self.changed_at else None,
        }

    @classmethod
    def from_json(cls, value: Json) -> Deployment:
        """The deployment written so. `ValueError` for anything else."""
        raw = value if isinstance(value, dict) else {}
        changed_at, expires_at = raw.get("changed_at"), raw.get("expires_at")
        return cls(
            config=_text(raw, "config"),
            environment=_text(raw, "environment"),
            revision=_count(raw, "revision"),
            kind=Kind(_text(raw, "kind")) if raw.get("kind") else None,
            baseline=_text(raw, "baseline"),
            candidate=_text(raw, "candidate"),
            weight_bp=_count(raw, "weight_bp"),
            salt=_text(raw, "salt"),
            expires_at=datetime.fromisoformat(expires_at) if isinstance(expires_at, str) else None,
            policy=_text(raw, "policy"),
            evidence=_text(raw, "evidence"),
            actor=_text(raw, "actor"),
            reason=_text(raw, "reason"),
            changed_at=datetime.fromisoformat(changed_at) if isinstance(changed_at, str) else None,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """The right of one runner to move one environment for a while."""

    config: str
    environment: str
    owner: str
    fence: int
    until: datetime
    """By the clock of the store."""
    revision: int
    """Where the environment stood when the lease was taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """One change of what an environment serves, as somebody asks for it."""

    config: str
    environment: str
    kind: Kind
    digest: str
    """What is brought in; of a rollback what comes back, or stays when only the candidate goes."""
    weight_bp: int = 0
    """Of a canary: the share of keys, more than 0 and less than all."""
    salt: str = ""
    """Of a canary that begins; a canary that goes on keeps its own."""
    lasts_s: float = 0.0
    """Of a canary that begins: after so long clients end it by themselves; 0: never."""
    expected: int
    """The revision the environment is believed to be at."""
    fence: int
    """Of the lease; a rollback takes the environment over, and needs none."""
    policy: str = ""
    """The digest of the policy that the evidence has to be under. A rollback needs none."""
    adopt_policy: bool = False
    """Whether the environment shall judge by this policy from now on."""
    actor: str
    reason: str
    key: str
    """The idempotency key: the same move asked for again is made once, and answered as it was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """A move that was made."""

    deployment: Deployment
    replayed: bool = False
    """It had been made before, under the same key; nothing was changed now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One row of the history: who moved what, when, why, and by which evidence."""

    config: str
    environment: str
    revision: int
    kind: str
    baseline: str
    candidate: str
    weight_bp: int
    salt: str
    policy: str
    evidence: str
    fence: int
    actor: str
    reason: str
    key: str
    at_ms: int
    """Milliseconds since 1970, UTC, by the clock of the store; never earlier than the event before."""
    expires_at_ms: int = 0
    """Of a canary: when clients end it by themselves; 0: never."""
    previous: str
    """The hash of the event before; empty for the first."""
    hash: str

    def spelled(self) -> bytes:
        """What the hash is taken of: every field but the hash as a netstring, one after the other.

        Netstrings (D. J. Bernstein, 1997) are spelled alike by SQL on both engines and by Python, and no
        field can pretend to be two. A canary that does not expire is spelled as all were before any did.
        """
        expires = (self.expires_at_ms,) if self.expires_at_ms else ()
        return netstrings(
            self.previous,
            self.config,
            self.environment,
            self.revision,
            self.kind,
            self.baseline,
            self.candidate,
            self.weight_bp,
            self.salt,
            self.policy,
            self.evidence,
            self.fence,
            self.actor,
            self.reason,
            self.key,
            self.at_ms,
            *expires,
        )

    def to_json(self) -> JsonObject:
        return {
            "config": self.config,
            "environment": self.environment,
            "revision": self.revision,
            "kind": self.kind,
            "baseline": self.baseline,
            "candidate": self.candidate,
            "weight_bp": self.weight_bp,
            "salt": self.salt,
            "policy": self.policy,
            "evidence": self.evidence,
            "fence": self.fence,
            "actor": self.actor,
            "reason": self.reason,
            "key": self.key,
            "at": self.at.isoformat(),
            "expires_at_ms": self.expires_at_ms,
            "previous": self.previous,
            "hash": self.hash,
        }

    @property
    def at(self) -> datetime:
        return datetime.fromtimestamp(self.at_ms / 1000, UTC)

    def computed(self) -> str:
        """The hash this event should have."""
        return hashlib.sha256(self.spelled()).hexdigest()


def netstrings(*fields: str | int) -> bytes:
    """The fields, each with its length in bytes before it: `3:r42,`."""
    return b"".join(b"%d:%b," % (len(each), each) for each in (str(field).encode() for field in fields))


def verified(events: Iterable[Event], revision: int) -> Iterator[str]:
    """Everything that is wrong with the history of a deployment at `revision`, named row by row.

    `events` come as they are stored, oldest first. Nothing is yielded for an honest history.
    """
    expected, previous, last_ms = 1, "", 0
    for event in events:
        name = f"r{event.revision} of {event.config} in {event.environment}"
        if event.revision != expected:
            yield f"r{expected} does not stand before {name}: it was removed, or the two were reordered"
        elif event.previous != previous:
            yield f"{name} does not follow the event before it: one of the two was replaced"
        if event.computed() != event.hash:
            yield f"{name} was edited: its hash is not that of its content"
        if event.at_ms < last_ms:
            yield f"{name} is dated before the event it follows"
        expected, previous, last_ms = event.revision + 1, event.hash, event.at_ms
    if expected != revision + 1:
        yield f"the history ends at r{expected - 1}, but the environment is at r{revision}"


def served_before(events: Iterable[Event]) -> str:
    """The baseline that a rollback brings back; empty if there is none.

    Baselines are a stack: a promotion puts one on top, a rollback takes off what it left behind. So two
    rollbacks in a row go back twice, and never to what was just rolled back.
    """
    stack: list[str] = []
    for event in events:
        if event.kind == Kind.ROLLBACK and event.baseline in stack:
            del stack[stack.index(event.baseline) + 1 :]
        elif not stack or stack[-1] != event.baseline:
            stack.append(event.baseline)
    earlier = [each for each in stack if each and each != stack[-1]]
    return earlier[-1] if earlier else ""


def problem(deployment: Deployment) -> str:
    """Why a client refuses to serve this row; empty for one it can serve."""
    if not 0 <= deployment.weight_bp < WHOLE_BP:
        return f"a weight of {deployment.weight_bp} basis points does not exist"
    if bool(deployment.candidate) != bool(deployment.weight_bp):
        return "a candidate and its weight belong together"
    if deployment.candidate and not deployment.salt:
        return "a canary without a salt cannot be assigned"
    if deployment.revision and not deployment.baseline:
        return "there is no baseline to serve"
    return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Evidence as the store keeps it."""

    id: str
    """SHA-256 of the statement, in hexadecimal digits."""
    config: str
    digest: str
    policy: str
    verdict: str
    finished_at: datetime
    admitted_until: Mapping[str, datetime]
    """The environments it opens, and until when."""
    envelope: bytes
    signed_by: str = ""
    revoked_by: str = ""
    """The later failing evidence that took its force."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """All that one environment serves: what a client reads at once."""

    environment: str
    deployments: tuple[Deployment, ...]
    configs: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Their documents as spelled, by digest: those the reader did not know yet."""
    prices: Mapping[str, Price] = field(default_factory=dict)
    """What a call costs, by digest of the config, where it is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Acknowledgement:
    """What one instance of a client serves of one config, and what it refused."""

    config: str
    revision: int
    """The revision it serves; 0 if it serves none."""
    age_ms: int
    """For how long it has served that."""
    reloaded: bool = False
    """It served something else before, or nothing: how soon it followed can be told. False: it started so."""
    refused: int = 0
    """A newer revision that it cannot serve."""
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """A client, as the store sees it."""

    id: str
    name: str
    """For people: host and process."""
    environment: str
    config: str
    revision: int
    serving_since: datetime
    reloaded: bool
    refused: int
    reason: str
    seen_at: datetime

    def to_json(self) -> JsonObject:
        return {
            "id": self.id,
            "name": self.name,
            "environment": self.environment,
            "config": self.config,
            "revision": self.revision,
            "serving_since": self.serving_since.isoformat(),
            "reloaded": self.reloaded,
            "refused": self.refused,
            "reason": self.reason,
            "seen_at": self.seen_at.isoformat(),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What one environment serves of one config, and who follows."""

    deployment: Deployment
    instances: tuple[Instance, ...]
    """Clients that were heard of lately."""

    @property
    def following(self) -> tuple[Instance, ...]:
        """Those that serve the current revision."""
        return tuple(each for each in self.instances if each.revision == self.deployment.revision)

    @property
    def took(self) -> timedelta | None:
        """How long after the move the last of them served it; `None`: nobody had to follow."""
        moved = self.deployment.changed_at
        delays = [each.serving_since - moved for each in self.following if each.reloaded and moved]
        return max(max(delays), timedelta()) if delays else None


class Scope(StrEnum):
    """What a token allows."""

    READ = "read"
    REPORT = "report"
    PROMOTE = "promote"
    SPEND = "spend"
    """Credits: reserve, post, void, consume."""
    GRANT = "grant"
    """Credits: organisations, their limits, grants and corrections."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """The right to use the API; the secret itself is kept by nobody."""

    id: str
    name: str
    secret_hash: str
    """SHA-256 of the secret, which is random and long: nothing slower is needed."""
    scopes: frozenset[Scope]
    created_at: datetime
    created_by: str
    revoked_at: datetime | None = None


def _text(raw: JsonObject, key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str):
        raise ValueError(f"`{key}` is missing or no text")
    return value


def _count(raw: JsonObject, key: str) -> int:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"`{key}` is missing or no whole number")
    return value
