"""A release on its way through the environments: what is recorded of it, and the one step that comes next.

`next_step` decides and does nothing. The runner does the step, records it before and after, and asks again;
so whoever asks next, on whatever machine, goes on where the last one stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeAlias

from deploy_gates.core.canonical import Json, JsonObject, short
from deploy_gates.core.config import ENVIRONMENTS
from deploy_gates.core.promotion import Deployment

PRODUCTION = ENVIRONMENTS[-1]
"""Where a release is watched with real users before everybody gets it."""


class State(StrEnum):
    """Where a promotion has got to."""

    QUEUED = "queued"
    """Another release of the same config is on its way; this one comes next."""
    RUNNING = "running"
    SHIPPED = "shipped"
    BLOCKED = "blocked"
    """The evidence says no."""
    ROLLED_BACK = "rolled back"
    SUPERSEDED = "superseded"
    """A newer release of the same config came before this one had its turn."""
    ABORTED = "aborted"
    """Somebody moved an environment by hand, or called it off."""

    @property
    def is_final(self) -> bool:
        """Whether nothing comes after it."""
        return self not in (State.QUEUED, State.RUNNING)


class Act(StrEnum):
    """What a step does."""

    ADMIT = "evidence"
    """Verify the evidence, and have the store keep it."""
    APPROVAL = "approval"
    """Wait until enough people have approved."""
    THAW = "freeze"
    """Wait until a freeze has ended."""
    PROMOTE = "promote"
    """Have everybody in an environment get it."""
    SMOKE = "smoke"
    """Ask the smoke cases in an environment that serves it."""
    CANARY = "canary"
    """Have a share of production get it."""
    ANALYSIS = "analysis"
    """Watch the canary until it is decided."""
    ROLLBACK = "rollback"
    """Bring back what was served before."""


class Status(StrEnum):
    """What is said of a step in the journal."""

    BEGUN = "begun"
    DONE = "done"
    FAILED = "failed"
    """It was done, and says no: evidence that does not admit, a smoke case missed, a canary that is worse."""
    HELD = "held"
    """It cannot be done now: something is missing, or somebody is to decide. It is tried again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """A digest that may travel: what it is, who wrote it, and why."""

    config: str
    digest: str
    actor: str
    reason: str = ""
    """The subject of its commit."""
    commit: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One row of a promotion's journal. Rows are only added."""

    promotion: int
    number: int
    """From 1 on, without a gap."""
    act: Act
    environment: str
    """Empty for what concerns none: the evidence."""
    status: Status
    at_ms: int
    """Milliseconds since 1970, UTC, by the clock of the store."""
    owner: str
    """The runner that wrote it."""
    data: JsonObject = field(default_factory=dict)
    """What came of it, for people and for whoever goes on: `said` is one sentence."""

    @property
    def at(self) -> datetime:
        return datetime.fromtimestamp(self.at_ms / 1000, UTC)

    @property
    def said(self) -> str:
        """What came of it, in one sentence."""
        return str(self.data.get("said", ""))

    def to_json(self) -> JsonObject:
        return {
            "promotion": self.promotion,
            "number": self.number,
            "act": self.act.value,
            "environment": self.environment,
            "status": self.status.value,
            "at": self.at.isoformat(),
            "owner": self.owner,
            "data": self.data,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Promotion:
    """One release on its way: how far it has got, and everything that happened to it."""

    id: int
    release: Release
    until: str
    """The last environment it goes to."""
    baseline: str = ""
    """What that environment served when its turn came; empty: nothing yet."""
    policy: str = ""
    """The digest of the policy its evidence has to be under."""
    terms: Terms = field(default_factory=lambda: Terms())
    state: State = State.RUNNING
    conclusion: str = ""
    """How it ended, in one sentence."""
    proposed_at: datetime
    concluded_at: datetime | None = None
    owner: str = ""
    """The runner that carries it, or carried it last."""
    fence: int = 0
    lease_until: datetime | None = None
    journal: tuple[Entry, ...] = ()

    @property
    def environments(self) -> tuple[str, ...]:
        """Where it goes, in order."""
        return ENVIRONMENTS[: ENVIRONMENTS.index(self.until) + 1]

    def last(self, act: Act, environment: str = "") -> Entry | None:
        """What the journal says last of a step; `None`: it was never begun."""
        for entry in reversed(self.journal):
            if (entry.act, entry.environment) == (act, environment):
                return entry
        return None

    def outcome(self, act: Act, environment: str = "") -> Entry | None:
        """How a step ended; `None`: it has not, and has to be done, or done again."""
        entry = self.last(act, environment)
        return entry if entry is not None and entry.status in (Status.DONE, Status.FAILED) else None

    @property
    def held(self) -> str:
        """Why it does not go on; empty: nothing is known to hold it."""
        last = self.journal[-1] if self.journal else None
        return last.said if last is not None and last.status is Status.HELD else ""

    def is_held_for(self, data: JsonObject) -> bool:
        """Whether the journal says so last; a `cause` is the same whatever figures are said with it."""
        last = self.journal[-1] if self.journal else None
        if last is None or last.status is not Status.HELD:
            return False
        cause = data.get("cause")
        return last.data.get("cause") == cause if cause else last.said == data.get("said")

    def is_carried(self, now: datetime) -> bool:
        """Whether a runner has it in hand."""
        return not self.state.is_final and self.lease_until is not None and self.lease_until > now

    def asked_otherwise(self, *, until: str, policy: str, terms: Terms, now: datetime) -> bool:
        """Whether one proposed now would go further, or by other rules than this one."""
        is_further = ENVIRONMENTS.index(until) > ENVIRONMENTS.index(self.until)
        return is_further or policy != self.policy or terms.at(now) != self.terms.at(now)

    def key(self, step: Step) -> str:
        """The idempotency key of the move a step makes: whoever makes it again makes it once."""
        return f"promotion-{self.id}/{step.act.value}"

    def to_json(self) -> JsonObject:
        journal: list[Json] = [each.to_json() for each in self.journal]
        return {
            "id": self.id,
            "config": self.release.config,
            "digest": self.release.digest,
            "actor": self.release.actor,
            "reason": self.release.reason,
            "commit": self.release.commit,
            "until": self.until,
            "baseline": self.baseline,
            "policy": self.policy,
            "state": self.state.value,
            "held": self.held,
            "conclusion": self.conclusion,
            "proposed_at": self.proposed_at.isoformat(),
            "concluded_at": self.concluded_at.isoformat() if self.concluded_at else None,
            "owner": self.owner,
            "journal": journal,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Freeze:
    """A time in which nothing new goes into an environment. A rollback is never frozen."""

    environment: str
    since: datetime
    until: datetime
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What a promotion was proposed with. It does not change under way, whoever goes on with it."""

    weight_bp: int = 500
    """The share of production that the canary gets, in basis points."""
    canary: JsonObject = field(default_factory=dict)
    """The table `[tool.deploy_gates.canary]` as it was."""
    lasts_s: float = 0.0
    """After so long the clients end the canary by themselves; 0: never."""
    approvals: Mapping[str, int] = field(default_factory=dict)
    """How many people have to approve, by environment."""
    freezes: tuple[Freeze, ...] = ()
    smoke: bool = True
    """Whether development and staging ask the smoke cases."""
    low_traffic: bool = False
    """Whether a canary may begin that is not able to see its own margins."""

    def keeping(self, before: Terms, *, weight_bp: int | None) -> Terms:
        """These, for one that is proposed anew: what was said by hand need not be said again.

        A freeze is another matter: whoever goes through it says so each time.
        """
        low_traffic = self.low_traffic or before.low_traffic
        return replace(self, weight_bp=weight_bp or before.weight_bp, low_traffic=low_traffic)

    def at(self, now: datetime) -> Terms:
        """These, with the freezes of this moment alone."""
        return replace(self, freezes=tuple(each for each in self.freezes if each.since <= now < each.until))

    def to_json(self) -> JsonObject:
        freezes: list[Json] = [
            {
                "environment": each.environment,
                "since": each.since.isoformat(),
                "until": each.until.isoformat(),
                "reason": each.reason,
            }
            for each in self.freezes
        ]
        return {
            "weight_bp": self.weight_bp,
            "canary": self.canary,
            "lasts_s": self.lasts_s,
            "approvals": dict(self.approvals),
            "freezes": freezes,
            "smoke": self.smoke,
            "low_traffic": self.low_traffic,
        }

    @classmethod
    def from_json(cls, value: Json) -> Terms:
        """The terms written so. `ValueError` for anything else."""
        try:
            assert isinstance(value, dict)
            canary, approvals, freezes = value["canary"], value["approvals"], value["freezes"]
            assert isinstance(canary, dict), canary
            assert isinstance(approvals, dict), approvals
            assert isinstance(freezes, list), freezes
            return cls(
                weight_bp=int(value["weight_bp"]),  # type: ignore[arg-type]
                canary=canary,
                lasts_s=float(value["lasts_s"]),  # type: ignore[arg-type]
                approvals={name: int(count) for name, count in approvals.items()},  # type: ignore[arg-type]
                freezes=tuple(_freeze(each) for each in freezes),
                smoke=bool(value["smoke"]),
                low_traffic=bool(value["low_traffic"]),
            )
        except (AssertionError, KeyError, TypeError) as error:
            raise ValueError(f"these are no terms of a promotion: {error}") from error


def _freeze(value: Json) -> Freeze:
    assert isinstance(value, dict)
    return Freeze(
        environment=str(value["environment"]),
        since=datetime.fromisoformat(str(value["since"])),
        until=datetime.fromisoformat(str(value["until"])),
        reason=str(value["reason"]),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Approval:
    """Somebody says that a digest may go into an environment. It never replaces evidence."""

    config: str
    digest: str
    environment: str
    approver: str
    """Never the author of the release."""
    reason: str = ""
    at: datetime

    def to_json(self) -> JsonObject:
        return {
            "config": self.config,
            "digest": self.digest,
            "environment": self.environment,
            "approver": self.approver,
            "reason": self.reason,
            "at": self.at.isoformat(),
        }


# --- What comes next ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is so at this moment, besides the journal."""

    now: datetime
    deployments: Mapping[str, Deployment]
    """What each environment serves of this config; one that never served it is missing."""
    approvals: tuple[Approval, ...] = ()
    """Of this config and digest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Something to do now."""

    act: Act
    environment: str = ""
    reason: str = ""
    """Of a move: why, for the log."""
    expected: int = 0
    """Of a move: the revision this was decided at. Whoever moves the environment meanwhile prevents it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    """Nothing can be done now: the step that waits, and what for."""

    act: Act
    environment: str
    reason: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conclude:
    """It has ended."""

    state: State
    reason: str


Next: TypeAlias = Step | Hold | Conclude


def next_step(promotion: Promotion, facts: Facts) -> Next:
    """What to do next with a running promotion, and nothing but that.

    What an environment serves is believed before the journal: a runner may have died between a move and
    the line that says so. An environment that somebody else has moved meanwhile ends the promotion.
    """
    evidence = promotion.outcome(Act.ADMIT)
    if evidence is None:
        return Step(act=Act.ADMIT)
    if evidence.status is Status.FAILED:
        return Conclude(state=State.BLOCKED, reason=evidence.said)
    for environment in _ahead(promotion, facts):
        here = facts.deployments.get(environment) or Deployment(
            config=promotion.release.config, environment=environment
        )
        found = _in_environment(promotion, here, facts)
        if found is not None:
            return found
    return Conclude(state=State.SHIPPED, reason=f"{promotion.until} serves {short(promotion.release.digest)}")


def _ahead(promotion: Promotion, facts: Facts) -> tuple[str, ...]:
    """The environments that may have something to do; once it has reached production, only that one."""
    there = facts.deployments.get(PRODUCTION)
    is_there = there is not None and promotion.release.digest in (there.candidate, there.baseline)
    return (PRODUCTION,) if is_there and promotion.until == PRODUCTION else promotion.environments


def _in_environment(promotion: Promotion, here: Deployment, facts: Facts) -> Next | None:
    """What is still to be done in one environment; `None`: nothing."""
    digest = promotion.release.digest
    rolled_back = promotion.outcome(Act.ROLLBACK, here.environment)
    if rolled_back is not None:
        is_done = rolled_back.status is Status.DONE
        return Conclude(state=State.ROLLED_BACK if is_done else State.ABORTED, reason=rolled_back.said)
    if here.candidate not in ("", digest):
        return Hold(
            act=Act.PROMOTE,
            environment=here.environment,
            reason=f"a canary of {short(here.candidate)} runs in {here.environment}",
            hint=f"deploy-gates rollback {here.config} --env {here.environment}",
        )
    if here.environment == PRODUCTION and (here.candidate or promotion.last(Act.CANARY, here.environment)):
        return _in_canary(promotion, here, facts)
    if here.baseline == digest:
        return _verifying(promotion, here)
    if promotion.last(Act.ROLLBACK, here.environment) is not None:  # made, and not said yet
        return Conclude(state=State.ROLLED_BACK, reason=here.reason)
    refused = _refused(promotion, here, Act.PROMOTE, Act.CANARY)
    if refused is not None:
        return Conclude(state=State.BLOCKED, reason=refused.said)
    if promotion.outcome(Act.PROMOTE, here.environment) is not None:
        return Conclude(state=State.ABORTED, reason=_moved_away(here))
    waiting = _waiting(promotion, here, facts)
    if waiting is not None:
        return waiting
    # The first release of a config has nothing to be compared with: everybody gets it.
    is_first = not here.baseline
    act = Act.CANARY if here.environment == PRODUCTION and not is_first else Act.PROMOTE
    return _move(act, here, promotion.release.reason)


def _waiting(promotion: Promotion, here: Deployment, facts: Facts) -> Hold | None:
    """What keeps an environment shut for now."""
    frozen = [
        each
        for each in promotion.terms.freezes
        if each.environment == here.environment and each.since <= facts.now < each.until
    ]
    if frozen:
        last = max(frozen, key=lambda each: each.until)
        why = f": {last.reason}" if last.reason else ""
        return Hold(
            act=Act.THAW,
            environment=here.environment,
            reason=f"{here.environment} is frozen until {last.until:%Y-%m-%d %H:%M} UTC{why}",
            hint="`deploy-gates ship` goes on afterwards; `--through-freeze REASON` does not wait",
        )
    wanted = promotion.terms.approvals.get(here.environment, 0)
    given = {
        each.approver
        for each in facts.approvals
        if each.environment == here.environment and each.approver != promotion.release.actor
    }
    if len(given) < wanted:
        people = "person" if wanted == 1 else "people"
        return Hold(
            act=Act.APPROVAL,
            environment=here.environment,
            reason=f"{here.environment} wants {wanted} {people} other than {promotion.release.actor} to "
            f"approve, and has {len(given)}",
            hint=f"deploy-gates approve {here.config} --env {here.environment}",
        )
    return None


def _verifying(promotion: Promotion, here: Deployment) -> Next | None:
    """An environment serves the digest to everybody: whether the smoke cases are met."""
    if here.environment == PRODUCTION and promotion.last(Act.PROMOTE, PRODUCTION) is None:
        return None  # it was served before this promotion began, or somebody has promoted it by hand
    if not promotion.terms.smoke:
        return None
    smoke = promotion.outcome(Act.SMOKE, here.environment)
    if smoke is None:
        return Step(act=Act.SMOKE, environment=here.environment)
    if smoke.status is Status.DONE:
        return None
    if promotion.last(Act.PROMOTE, here.environment) is None:
        return Conclude(state=State.ABORTED, reason=smoke.said)  # it stood there before: nothing is ours
    return _move(Act.ROLLBACK, here, smoke.said)


def _in_canary(promotion: Promotion, here: Deployment, facts: Facts) -> Next | None:
    """Production serves the digest to a share, or did: what the analysis says, and whether it is done."""
    digest, analysis = promotion.release.digest, promotion.outcome(Act.ANALYSIS, here.environment)
    if here.baseline == digest:
        return None  # to everybody: decided so, or by somebody's hand
    begun = promotion.outcome(Act.CANARY, here.environment)
    if not here.candidate and (refused := _refused(promotion, here, Act.CANARY)):
        return Conclude(state=State.BLOCKED, reason=refused.said)
    if not here.candidate and begun is None:
        waiting = _waiting(promotion, here, facts)
        return waiting or _move(Act.CANARY, here, promotion.release.reason)
    if not here.candidate:
        last = promotion.last(Act.ROLLBACK, here.environment)
        if last is not None:  # made, and not said yet
            return Conclude(state=State.ROLLED_BACK, reason=here.reason)
        state = State.ROLLED_BACK if here.kind == "rollback" else State.ABORTED
        return Conclude(state=state, reason=_moved_away(here))
    if begun is None:
        return _move(Act.CANARY, here, promotion.release.reason)
    if refused := _refused(promotion, here, Act.PROMOTE):  # its evidence was revoked under way
        return _move(Act.ROLLBACK, here, refused.said)
    if analysis is not None and analysis.status is Status.FAILED:
        return _move(Act.ROLLBACK, here, analysis.said)
    if analysis is not None:
        return _move(Act.PROMOTE, here, analysis.said)
    if here.expires_at is not None and facts.now >= here.expires_at:
        reason = "nobody decided the canary before its deadline, so its clients were back already"
        return _move(Act.ROLLBACK, here, reason)
    return Step(act=Act.ANALYSIS, environment=here.environment)


def _move(act: Act, here: Deployment, reason: str) -> Step:
    return Step(act=act, environment=here.environment, reason=reason, expected=here.revision)


def _refused(promotion: Promotion, here: Deployment, *acts: Act) -> Entry | None:
    """The move into this environment that the store has refused for good."""
    found = (promotion.outcome(each, here.environment) for each in acts)
    return next((each for each in found if each is not None and each.status is Status.FAILED), None)


def _moved_away(here: Deployment) -> str:
    return (
        f"{here.actor} has moved {here.environment} to {short(here.baseline)} meanwhile (r{here.revision}): "
        f"{here.reason}"
    )
