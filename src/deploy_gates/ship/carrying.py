"""The runner: look, do the next step, record it before and after, repeat.

It may be killed anywhere: whoever carries the promotion next reads what was recorded and goes on. A move that
is made twice is made once, by its idempotency key; a smoke case may be asked twice.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from deploy_gates import clock, runner
from deploy_gates.core.canonical import JsonObject, short
from deploy_gates.core.errors import DeployGatesError, Refusal, Refused, StoreUnavailable
from deploy_gates.core.promotion import Deployment, Standing
from deploy_gates.core.release import (
    Act,
    Conclude,
    Facts,
    Hold,
    Promotion,
    State,
    Status,
    Step,
    next_step,
)
from deploy_gates.ship.checkout import Came, Checkout, admission
from deploy_gates.ship.judging import Judging, decided, held_for, unseen
from deploy_gates.store import LEASE_TTL, Store

if TYPE_CHECKING:
    from deploy_gates.canary.watching import Look

TRIES_MAX = 20
"""So often a move is tried again because somebody else holds the environment just now."""
PAUSE_S = 0.25
AWAY_PAUSE_S = 0.5
RUNNER = "ship"
"""Who rolls back in the log: nobody's hand."""
AWAY_MAX_S = 60.0
"""So long a runner waits for a store that is away before it leaves the promotion to the next one."""
_PASSING = (Refusal.REVISION, Refusal.FENCE, Refusal.LEASE)
"""Refusals that say nothing against the release."""
MOVES = (Act.PROMOTE, Act.CANARY, Act.ROLLBACK)


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """How a promotion stands after something has happened: what a screen shows."""

    promotion: Promotion
    step: Step | None = None
    """What is being done now."""
    hold: Hold | None = None
    """Why nothing is done."""
    look: Look | None = None
    """The last look at its canary."""
    standing: Standing | None = None
    """What the last environment serves after the last move, and which clients have it."""
    problem: str = ""
    """What keeps the runner from its work for the moment: the store is away."""


@dataclass(kw_only=True)
class Carrier:
    """Carries one promotion after the other. One of them is carried by one runner at a time."""

    store: Store
    owner: str
    checkout: Checkout | None = None
    """The repository; `None`: whatever needs it waits for a runner that has it."""
    ttl: timedelta = LEASE_TTL
    stop: threading.Event = field(default_factory=threading.Event)
    """Set it to have the promotion left as it is, at the next moment that is safe."""
    now: Callable[[], datetime] = clock.now
    wait: Callable[[float], object] | None = None
    """Lets so many seconds pass; `None`: they do, unless `stop` is set."""
    on_move: Callable[[], None] = lambda: None
    """Called after every line of the journal: somebody may have to be told. It neither waits nor raises."""
    crosses: Callable[[str], None] = lambda place: None
    """Called at every place where a runner may be killed; tests do."""

    def carry(self, id: int) -> Iterator[Told]:
        """Do everything that can be done for a promotion by now, and yield after each thing.

        `Refused` where another runner carries it or takes it over. It ends when the promotion has, when
        nothing can be done, or when told to stop.
        """
        known: Promotion | None = None
        away_since = 0.0
        while True:
            try:
                known = promotion = self.store.take(id, self.owner, self.ttl)
                with self._alive(promotion) as lost:
                    for told in self._steps(promotion, lost):
                        known, away_since = told.promotion, 0.0
                        yield told
                return
            except StoreUnavailable as error:
                away_since = away_since or time.monotonic()
                is_over = time.monotonic() - away_since > AWAY_MAX_S
                if known is None or is_over or self.stop.is_set():
                    raise
                yield Told(promotion=known, problem=error.message)
                self._wait(AWAY_PAUSE_S)

    def ship(self, id: int) -> Iterator[Told]:
        """Carry a promotion once its turn has come; one before it that nobody carries is carried first."""
        said = ""
        while not self.stop.is_set():
            promotion = self.store.promotion(id)
            if promotion is None:
                raise Refused(Refusal.UNKNOWN, f"there is no promotion {id}")
            if promotion.state is not State.QUEUED:
                yield from self.carry(id) if not promotion.state.is_final else (Told(promotion=promotion),)
                return
            front = self._front(promotion)
            if front is not None and not front.is_carried(self.now()):
                for told in self._finished(front):
                    yield Told(promotion=promotion, hold=_queued(front), look=told.look)
            elif front is not None and (waits := _queued(front)).reason != said:
                said = waits.reason
                yield Told(promotion=promotion, hold=waits)
            self._wait(PAUSE_S)

    def settle(self, config: str) -> None:
        """End what has only to be said: promotions of a config whose runner died before the last line."""
        for each in self.store.promotions(config, is_open=True):
            if each.state is not State.RUNNING or each.is_carried(self.now()):
                continue
            if isinstance(next_step(each, self.facts(each)), Conclude):
                for _ in self._finished(each):
                    pass

    def _front(self, promotion: Promotion) -> Promotion | None:
        """The promotion of the same config that runs."""
        found = self.store.promotions(promotion.release.config, is_open=True)
        return next((each for each in found if each.state is State.RUNNING), None)

    def _finished(self, front: Promotion) -> Iterator[Told]:
        try:
            yield from self.carry(front.id)
        except Refused:
            return  # another runner was faster

    def _steps(self, promotion: Promotion, lost: threading.Event) -> Iterator[Told]:
        tries, standing = 0, None
        while not self.stop.is_set() and not promotion.state.is_final:
            _check(promotion, lost)
            following = next_step(promotion, self.facts(promotion))
            if isinstance(following, Conclude):
                self.crosses("before the conclusion")
                promotion = self.store.conclude(promotion, following.state, following.reason)
                self.on_move()
                yield Told(promotion=promotion, standing=standing)
                return
            if isinstance(following, Hold):
                promotion = self._hold(promotion, following)
                yield Told(promotion=promotion, hold=following, standing=standing)
                return
            promotion = self._begin(promotion, following)
            yield Told(promotion=promotion, step=following, standing=standing)
            came: Came | None = None
            for told in self._do(promotion, following, lost):
                if isinstance(told, Came):
                    came = told
                else:
                    yield told
            if came is None:  # another try: somebody was faster, or the canary was ended by hand
                tries += 1
                if tries > TRIES_MAX:
                    raise Refused(
                        Refusal.LEASE,
                        f"{following.environment} is being moved by somebody else all the time",
                        hint="deploy-gates status; then ship again",
                    )
                self._wait(0 if following.act is Act.ANALYSIS else PAUSE_S)
                continue
            self.crosses(f"after {following.act} {following.environment}".rstrip())
            promotion = self._write(promotion, following, came)
            is_moved = following.act in MOVES and came.status is Status.DONE
            if is_moved and following.environment == promotion.until:
                standing = self._followed(promotion, following)
            yield Told(promotion=promotion, standing=standing)
            if came.status is Status.HELD:
                return

    # --- Looking --------------------------------------------------------------------------------

    def facts(self, promotion: Promotion) -> Facts:
        """What is so now, besides the journal."""
        release = promotion.release
        found = self.store.deployments(config=release.config)
        return Facts(
            now=self.now(),
            deployments={each.environment: each for each in found if each.revision},
            approvals=self.store.approvals(release.config, release.digest)
            if promotion.terms.approvals
            else (),
        )

    # --- Doing ----------------------------------------------------------------------------------

    def _do(self, promotion: Promotion, step: Step, lost: threading.Event) -> Iterator[Told | Came]:
        """One step; it yields what came of it last, or nothing where it has to be looked at anew."""
        self.crosses(f"before {step.act} {step.environment}".rstrip())
        if step.act is Act.ADMIT:
            yield self.admit(promotion)
        elif step.act is Act.SMOKE:
            yield self._smoke(promotion, step)
        elif step.act is Act.ANALYSIS:
            yield from self._analyse(promotion, step, lost)
        else:
            yield from self._move(promotion, step)

    def admit(self, promotion: Promotion) -> Came:
        """Whether its evidence opens every environment on the way."""
        if self.checkout is None:
            return admission(self.store, promotion)
        return self.checkout.verified(self.store, promotion)

    def _smoke(self, promotion: Promotion, step: Step) -> Came:
        if self.checkout is None:
            said = f"the smoke cases of {promotion.release.config} are in its repository, and not here"
            return Came(status=Status.HELD, data={"said": said, "hint": "deploy-gates ship"})
        return self.checkout.smoked(self.store, promotion, step.environment)

    def _move(self, promotion: Promotion, step: Step) -> Iterator[Came]:
        release, environment = promotion.release, step.environment
        if step.act is Act.CANARY and (held := unseen(self.store, promotion, environment, self.now())):
            yield held
            return
        before = self._deployment(promotion, environment)
        try:
            if step.act is Act.ROLLBACK:
                moved = runner.rollback(
                    self.store,
                    config=release.config,
                    environment=environment,
                    actor=RUNNER,
                    reason=step.reason,
                    key=promotion.key(step),
                    expected=step.expected,
                )
            else:
                is_canary = step.act is Act.CANARY
                moved = runner.promote(
                    self.store,
                    config=release.config,
                    environment=environment,
                    digest=release.digest,
                    policy=promotion.policy,
                    actor=release.actor,
                    reason=step.reason,
                    weight_bp=promotion.terms.weight_bp if is_canary else None,
                    key=promotion.key(step),
                    expected=step.expected,
                    adopt_policy=True,
                    lasts_s=promotion.terms.lasts_s if is_canary else 0.0,
                )
        except Refused as refused:
            if refused.refusal not in _PASSING:
                data: JsonObject = {"said": refused.message, "hint": refused.hint}
                yield Came(status=Status.FAILED, data={**data, "refusal": refused.refusal.value})
            return
        yield Came(status=Status.DONE, data=_told_of(step, before, moved.deployment))

    def _analyse(self, promotion: Promotion, step: Step, lost: threading.Event) -> Iterator[Told | Came]:
        """Watch the canary until it is decided, ended by somebody, or past its deadline."""
        from deploy_gates.canary import watching

        release, environment = promotion.release, step.environment
        judging = Judging.of(promotion, environment)
        expires_at = self._deployment(promotion, environment).expires_at
        was_held = ""

        def pause(seconds: float) -> None:
            """Between two looks: whether this runner is still the one to look."""
            _check(promotion, lost)
            self._wait(seconds)
            if self.stop.is_set() or (expires_at is not None and self.now() >= expires_at):
                raise _Break

        looks = watching.watch(
            self.store,
            judging.plan,
            release.config,
            environment,
            judging.source,
            unit=judging.unit,
            delay_s=judging.delay_s,
            now=self.now,
            wait=pause,
        )
        try:
            for look in looks:
                if look.moved:
                    return
                yield Told(promotion=promotion, step=step, look=look)
                if look.has_ended:
                    yield decided(look)
                    return
                held = held_for(look)
                if held and held != was_held:
                    came = Came(status=Status.HELD, data={"said": held})
                    promotion, was_held = self._write(promotion, step, came), held
        except _Break:
            return
        except Refused as refused:
            if refused.refusal is not Refusal.STATE:  # else somebody has ended it before the first look
                raise

    def _wait(self, seconds: float) -> None:
        if self.wait is not None:
            self.wait(seconds)
        else:
            self.stop.wait(seconds)

    # --- Recording ------------------------------------------------------------------------------

    def _begin(self, promotion: Promotion, step: Step) -> Promotion:
        """Say in the journal that a step begins; said once where it is tried again or gone on with."""
        last = promotion.journal[-1] if promotion.journal else None
        if last is not None and (last.act, last.environment) == (step.act, step.environment):
            is_mine = last.status is Status.BEGUN and last.owner == self.owner
            if is_mine or last.status is Status.HELD:
                return promotion
        said: JsonObject = {"said": step.reason} if step.reason else {}
        if last is None:
            said["baseline"] = self._deployment(promotion, promotion.until).baseline
        promotion = self.store.write(promotion, step.act, step.environment, Status.BEGUN, said)
        self.on_move()
        return promotion

    def _write(self, promotion: Promotion, step: Step, came: Came) -> Promotion:
        if came.status is Status.HELD and promotion.is_held_for(came.data):
            return promotion
        promotion = self.store.write(promotion, step.act, step.environment, came.status, came.data)
        self.on_move()
        return promotion

    def _hold(self, promotion: Promotion, hold: Hold) -> Promotion:
        if promotion.held == hold.reason:
            return promotion
        data: JsonObject = {"said": hold.reason, "hint": hold.hint}
        promotion = self.store.write(promotion, hold.act, hold.environment, Status.HELD, data)
        self.on_move()
        return promotion

    def _deployment(self, promotion: Promotion, environment: str) -> Deployment:
        found = self.store.deployments(environment, promotion.release.config)
        return found[0] if found else Deployment(config=promotion.release.config, environment=environment)

    def _followed(self, promotion: Promotion, step: Step) -> Standing | None:
        """Which clients have it. A store that is away has made the move all the same."""
        try:
            return runner.followed(self.store, self._deployment(promotion, step.environment))
        except StoreUnavailable:
            return None

    @contextlib.contextmanager
    def _alive(self, promotion: Promotion) -> Iterator[threading.Event]:
        """Renews the lease in the background; the event says that it is lost."""
        lost, done = threading.Event(), threading.Event()

        def renew() -> None:
            while not done.wait(self.ttl.total_seconds() / 3):
                try:
                    self.store.keep_on(promotion, self.ttl)
                except Refused:
                    lost.set()
                    return
                except DeployGatesError:
                    continue  # away: the next try, or the fence, decides

        thread = threading.Thread(target=renew, name=f"lease of promotion {promotion.id}", daemon=True)
        thread.start()
        try:
            yield lost
        finally:
            done.set()
            thread.join()
            with contextlib.suppress(DeployGatesError):
                self.store.let_go(promotion)


def _queued(front: Promotion) -> Hold:
    reason = f"promotion {front.id} of {short(front.release.digest)} is on its way and comes first"
    return Hold(act=Act.ADMIT, environment="", reason=reason)


class _Break(Exception):
    """There is nothing more to look at for now."""


def _check(promotion: Promotion, lost: threading.Event) -> None:
    if lost.is_set():
        raise Refused(
            Refusal.FENCE,
            f"another runner has taken over promotion {promotion.id}; nothing more was done here",
            hint="deploy-gates status",
        )


def _told_of(step: Step, before: Deployment, after: Deployment) -> JsonObject:
    """What a move did, for the journal. A move made before is told as it was made."""
    was = after.revision - 1 if before.revision >= after.revision else before.revision
    data: JsonObject = {"from": was, "to": after.revision, "baseline": after.baseline}
    if step.act is Act.CANARY:
        data["weight_bp"] = after.weight_bp
        data["expires_at"] = after.expires_at.isoformat() if after.expires_at else None
        said = f"r{after.revision} sends {after.weight_bp / 100:g} % to {short(after.candidate)}"
    elif step.act is Act.ROLLBACK:
        said = step.reason
    else:
        said = f"r{was} → r{after.revision}"
    return {"said": said, **data}
