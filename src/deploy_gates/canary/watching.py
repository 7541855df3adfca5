"""A canary that runs now, look by look: what clients told the store, or another source, and what it says.

Everything is worked out anew from the first bin, so that whoever starts watching later, or again, sees the
same looks. Nothing is moved here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeAlias

from deploy_gates import clock
from deploy_gates.core import parsing
from deploy_gates.core.canary import ERRORS, Action, Decision, Plan
from deploy_gates.core.canonical import restored
from deploy_gates.core.errors import DeployGatesError, Refusal, Refused
from deploy_gates.core.promotion import Deployment, Event, Kind
from deploy_gates.core.tally import BIN_MS, Arm, Tally, Unit
from deploy_gates.core.weighing import LIMIT_BASELINE_PART, weigh
from deploy_gates.store import Store

BEFORE_MS = 60_000
"""So much of the baseline before the start is the past that weights are made of."""
REPORTING_S = 3.0
"""Clients report every second; after this a bin is taken to be known."""
USER_S = 20.0
"""How long after the first request clients close the value of a user."""
TIMEOUT_S = 60.0
"""How long a call may take, where neither config can be read."""
POLL_S = 1.0
HISTORY_MAX = 500
"""So many events back the start of a canary is looked for."""

_PROMOTED = "promoted"

Source: TypeAlias = Callable[[int, int], Iterable[Tally]]
"""The tallies of the bins from one time to before another, in milliseconds since 1970."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What is known after one look, or that none was possible."""

    deployment: Deployment
    decision: Decision | None
    """`None`: not one bin is closed yet."""
    has_ended: bool = False
    """Whether this is the last look."""
    moved: str = ""
    """Who ended the canary meanwhile, and how; empty: it runs, or the decision is what ended the watch."""
    is_promoted: bool = False
    """Whether that made the candidate what everybody gets."""
    stale_s: float = 0.0
    """So long ago the tallies could be read for the last time; 0: just now."""
    problem: str = ""
    """Why they cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """A canary that runs: since when, at which revisions, and at which shares."""

    deployment: Deployment
    started_ms: int
    steps: tuple[Event, ...]
    """Its start and each change of its weight, oldest first."""
    revisions: frozenset[int]
    """Those at which the same baseline was served, its own among them."""
    timeout_s: float

    @property
    def shares(self) -> Mapping[int, float]:
        """The share of the candidate, by revision."""
        return {each.revision: each.weight_bp / 10_000 for each in self.steps}

    @property
    def since_ms(self) -> int:
        """The first bin that is read."""
        return (self.started_ms - BEFORE_MS) // BIN_MS * BIN_MS

    def takes(self, tally: Tally) -> bool:
        """Whether a tally is of this canary, or of its baseline before it.

        In the bin in which the canary began, what the baseline got before is neither: it had no candidate
        beside it, and would look as if the arms did not share the traffic as declared.
        """
        if tally.arm is Arm.CANDIDATE or self._is_first(tally):
            return tally.revision in self.shares
        return tally.revision in self.revisions

    def _is_first(self, tally: Tally) -> bool:
        return tally.start_ms <= self.started_ms < tally.start_ms + BIN_MS

    def labelled(self, tallies: Iterable[Tally]) -> Iterator[Tally]:
        """Tallies of a source that knows no revisions, each with the one that was served as its bin began.

        Of the bin in which the canary began, nobody can tell what was before: it is left out.
        """
        for each in tallies:
            if not self._is_first(each):
                served = [step.revision for step in self.steps if step.at_ms <= each.start_ms]
                yield replace(each, revision=served[-1] if served else self.steps[0].revision)


def find(store: Store, config: str, environment: str) -> Running:
    """The canary of `config` that runs in `environment`. `Refused` if there is none."""
    found = store.deployments(environment, config)
    deployment = found[0] if found else Deployment(config=config, environment=environment)
    if not deployment.candidate:
        raise Refused(
            Refusal.STATE,
            f"no canary of {config} runs in {environment}",
            hint=f"deploy-gates promote {config} --to {environment} --weight 5",
        )
    return _running(store, deployment)


def _running(store: Store, deployment: Deployment) -> Running:
    config, environment, revision = deployment.config, deployment.environment, deployment.revision
    events = store.history(config, environment, after=max(0, revision - HISTORY_MAX))
    steps: list[Event] = []
    revisions: set[int] = set()
    for event in reversed([each for each in events if each.revision <= revision]):
        if event.baseline != deployment.baseline:
            break
        is_step = event.kind == Kind.CANARY and event.candidate == deployment.candidate
        if is_step and len(steps) == len(revisions):  # nothing else has come in between
            steps.append(event)
        revisions.add(event.revision)
    return Running(
        deployment=deployment,
        started_ms=steps[-1].at_ms,
        steps=tuple(reversed(steps)),
        revisions=frozenset(revisions),
        timeout_s=_timeout_s(store, deployment),
    )


def _timeout_s(store: Store, deployment: Deployment) -> float:
    """The longer of what both configs allow a call to take."""
    found = []
    for digest in (deployment.baseline, deployment.candidate):
        kept = store.config(digest)
        try:
            if kept is not None:
                config = parsing.config(restored(kept[1]), deployment.config)
                found.append(config.environment(deployment.environment).timeout_s)
        except (KeyError, ValueError):
            continue  # a config of another version: what it serves is judged all the same
    return max(found, default=TIMEOUT_S)


def watch(
    store: Store,
    plan: Plan,
    config: str,
    environment: str,
    source: Source | None = None,
    *,
    unit: Unit | None = None,
    delay_s: float = REPORTING_S,
    now: Callable[[], datetime] = clock.now,
    wait: Callable[[float], object] = time.sleep,
) -> Iterator[Look]:
    """Yield a look for each bin that is closed, from the start of the running canary until it is decided.

    A bin is closed `delay_s` after its end if all its calls are back, and at the latest when none can come
    back any more. Without a unit, users are taken where clients report them. Tallies that cannot be read
    leave the decision as it is: the look says how old it is, and the next try comes within seconds.

    `Refused` if no canary runs, `StoreUnavailable` if the store is away from the beginning on. Once somebody
    has promoted or rolled back, the last look says so.
    """
    watching = _Watching(
        store=store,
        plan=plan,
        running=find(store, config, environment),
        source=source,
        fixed_unit=unit or (plan.unit if source or plan.unit is Unit.USER else None),
        delay_s=delay_s,
        now=now,
    )
    while True:
        look = None
        for look in watching.looks():
            yield look
        if look is not None and look.has_ended:
            return
        wait(POLL_S)


class Following:
    """The looks at one canary, worked out as far as one asks, while it runs or long after."""

    def __init__(
        self,
        store: Store,
        plan: Plan,
        begun: Deployment,
        source: Source | None = None,
        *,
        unit: Unit | None = None,
        delay_s: float = REPORTING_S,
        until: datetime | None = None,
        now: Callable[[], datetime] = clock.now,
    ) -> None:
        """`begun` is what was served once the canary had begun; `until` is when it ended, if it has."""
        self._watching = _Watching(
            store=store,
            plan=plan,
            running=_running(store, begun),
            source=source,
            fixed_unit=unit or (plan.unit if source or plan.unit is Unit.USER else None),
            delay_s=delay_s,
            now=now if until is None else lambda: until,
            is_past=True,
        )
        self.has_ended = False
        """Whether no further look is to come."""

    def looks(self) -> Iterator[Decision]:
        """The looks that are possible by now and were not yielded before. `StoreUnavailable`."""
        for look in self._watching.looks():
            self.has_ended = look.has_ended
            if look.decision is not None and not look.problem:
                yield look.decision


@dataclass(kw_only=True, slots=True)
class _Watching:
    """Where one watch has got to."""

    store: Store
    plan: Plan
    running: Running
    source: Source | None
    fixed_unit: Unit | None
    delay_s: float
    now: Callable[[], datetime]
    is_past: bool = False
    """Whether what happened to it later is no concern."""
    unit: Unit = field(init=False)
    next_ms: int = field(init=False)
    """The beginning of the first bin that is not weighed yet."""
    decision: Decision | None = None
    early: Sequence[Tally] = ()
    """What both got, by request and by user, before the candidate's first users can be judged."""
    read_ms: int = field(init=False)
    """When tallies could be read for the last time."""

    def __post_init__(self) -> None:
        self.unit = self.fixed_unit or Unit.REQUEST
        self.next_ms = self.running.since_ms
        self.read_ms = self._now_ms()

    def looks(self) -> Iterator[Look]:
        """All looks that are possible by now."""
        try:
            moved = "" if self.is_past else self._moved()
            tallies = [] if moved else self._read()
        except DeployGatesError as error:
            if isinstance(error, Refused):
                raise
            yield self._look(stale_s=(self._now_ms() - self.read_ms) / 1000, problem=error.message)
            return
        self.read_ms = self._now_ms()
        if moved:
            is_promoted = moved.startswith(_PROMOTED)
            yield replace(self._look(moved=moved, has_ended=True), is_promoted=is_promoted)
            return
        for step in self._closed(tallies):
            self.next_ms, found = step
            plan = replace(self.plan, unit=self.unit, shares=self._shares())
            self.decision = weigh(plan, found, self.decision, at_ms=self.next_ms)
            yield self._look(has_ended=self.decision.has_ended)
            if self.decision.has_ended:
                return
        if self.decision is not None and (why := self._beyond_limit()):
            self.decision = replace(
                self.decision, action=Action.ROLLBACK, reason=why, cause=(f"{ERRORS}.limit",)
            )
            yield self._look(has_ended=True)

    def _beyond_limit(self) -> str:
        """Whether the hard limit is reached before the first users are counted, whose time takes longer.

        At least half of all calls that the candidate's first users began have failed, by the limits of the
        plan, and not the baseline's. One user alone does not do that.
        """
        users = 0
        started, errors = dict.fromkeys(Arm, 0), dict.fromkeys(Arm, 0)
        for start_ms in sorted({each.start_ms for each in self.early if each.arm is Arm.CANDIDATE}):
            for each in self.early:
                if each.start_ms == start_ms and each.unit is Unit.REQUEST:
                    started[each.arm] += each.started
                    errors[each.arm] += each.errors
                elif each.start_ms == start_ms and each.arm is Arm.CANDIDATE:
                    users += each.started
            if users >= self.plan.limit_requests:
                break
        limit = self.plan.limit_errors / self.plan.limit_requests
        failed = errors[Arm.CANDIDATE] >= max(self.plan.limit_errors, limit * started[Arm.CANDIDATE])
        both = errors[Arm.BASELINE] > LIMIT_BASELINE_PART * limit * started[Arm.BASELINE]
        if users < self.plan.limit_requests or not failed or both:
            return ""
        of = f"{errors[Arm.CANDIDATE]:,} of {started[Arm.CANDIDATE]:,} requests"
        return f"{ERRORS} reached the hard limit: {of} of the candidate's first users failed"

    def _look(
        self, *, has_ended: bool = False, moved: str = "", stale_s: float = 0.0, problem: str = ""
    ) -> Look:
        return Look(
            deployment=self.running.deployment,
            decision=self.decision,
            has_ended=has_ended,
            moved=moved,
            stale_s=stale_s,
            problem=problem,
        )

    def _now_ms(self) -> int:
        return int(self.now().timestamp() * 1000)

    def _shares(self) -> Mapping[int, float]:
        return {**self.running.shares, **self.plan.shares}

    def _moved(self) -> str:
        """Who ended this canary, and how; takes note of a new weight."""
        before = self.running.deployment
        found = self.store.deployments(before.environment, before.config)
        after = found[0] if found else before
        if after.revision == before.revision:
            return ""
        events = self.store.history(before.config, before.environment, after=before.revision)
        for event in events:
            is_step = event.kind == Kind.CANARY and event.candidate == before.candidate
            if is_step and event.baseline == before.baseline:
                continue
            is_promoted = event.kind == Kind.PROMOTE and event.baseline == before.candidate
            done = _PROMOTED if is_promoted else "rolled back" if event.kind == Kind.ROLLBACK else "replaced"
            return f"{done} by {event.actor} at r{event.revision}: {event.reason}"
        self.running = _running(self.store, after)
        return ""

    def _read(self) -> list[Tally]:
        """All tallies of bins that are not weighed yet."""
        until_ms = self._now_ms() // BIN_MS * BIN_MS
        if until_ms <= self.next_ms:
            return []
        if self.source is not None:
            found = list(self.running.labelled(self.source(self.next_ms, until_ms)))
        else:
            deployment = self.running.deployment
            every = self.store.tallies(
                deployment.config, deployment.environment, since_ms=self.next_ms, until_ms=until_ms
            )
            found = [each for each in every if self.running.takes(each)]
        if self._finds_users(found):
            self.unit = self.fixed_unit = Unit.USER
            if self.next_ms != self.running.since_ms:
                # Nothing was judged yet: the baseline's requests are no past of its users.
                self.decision, self.next_ms = None, self.running.since_ms
                return self._read()
        is_first = self.unit is Unit.USER and (self.decision is None or self.decision.started_ms is None)
        self.early = found if is_first else ()
        return list(self._counted(found))

    def _counted(self, tallies: Sequence[Tally]) -> Iterator[Tally]:
        """Those of the unit; and of requests where users are it, that there were any."""
        for each in tallies:
            if each.unit is self.unit:
                yield each
            elif self.unit is Unit.USER and each.started + each.finished:
                yield Tally(
                    config=each.config,
                    environment=each.environment,
                    revision=each.revision,
                    arm=each.arm,
                    start_ms=each.start_ms,
                    unit=Unit.USER,
                )

    def _finds_users(self, tallies: Sequence[Tally]) -> bool:
        """Whether users turn out to be the unit, before the candidate's first bin is judged."""
        if self.fixed_unit is not None:
            return False
        if self.decision is not None and self.decision.started_ms is not None:
            self.fixed_unit = self.unit
            return False
        return any(each.unit is Unit.USER for each in tallies)

    def _closed(self, tallies: Sequence[Tally]) -> Iterator[tuple[int, tuple[Tally, ...]]]:
        """The bins that are closed, in order, with their ends; the first that is open holds up all others."""
        now_s = self._now_ms() / 1000
        latest_s = self.delay_s + (USER_S if self.unit is Unit.USER else self.running.timeout_s)
        if self.source is not None:
            latest_s = self.delay_s
        by_bin: dict[int, list[Tally]] = {}
        for each in tallies:
            by_bin.setdefault(each.start_ms, []).append(each)
        for start_ms in range(self.next_ms, self._now_ms() // BIN_MS * BIN_MS, BIN_MS):
            found = by_bin.get(start_ms, [])
            is_back = sum(each.finished - each.started for each in found) >= 0
            ended_s = (start_ms + BIN_MS) / 1000
            if now_s < ended_s + (self.delay_s if is_back else latest_s):
                return
            yield start_ms + BIN_MS, tuple(found)
