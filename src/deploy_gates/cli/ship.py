"""The commands that carry a release to production: ship, and approve."""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from deploy_gates.cli.frame import (
    DONE,
    REFUSED,
    Commands,
    actor,
    existing,
    opened,
    print_json,
    stored,
    terminal,
    weight,
)
from deploy_gates.core.canonical import Json, short
from deploy_gates.core.config import ENVIRONMENTS
from deploy_gates.core.errors import DeployGatesError, Refused, SettingsError, WorkspaceError

if TYPE_CHECKING:
    from deploy_gates.core.canary import Decision
    from deploy_gates.core.promotion import Standing
    from deploy_gates.core.release import Promotion
    from deploy_gates.ship.carrying import Carrier, Told
    from deploy_gates.ship.checkout import Checkout
    from deploy_gates.store import Store

INTERRUPTED = 130
REDRAW_S = 0.1
TELL_S = 3.0
"""So long is waited, once everything is done, for notifications to be sent."""
STOP_S = 10.0
"""So long a runner has to come to a moment at which it can be left."""


def add(commands: Commands) -> None:
    """Add these commands to the parser."""
    ship = stored(
        commands,
        "ship",
        _ship,
        "carry what was merged from its evidence to all of production, or back",
        "deploy-gates ship ticket-triage",
    )
    ship.add_argument("configs", nargs="*", metavar="NAME", help="the configs (default: all that changed)")
    ship.add_argument(
        "--until",
        default=ENVIRONMENTS[-1],
        choices=ENVIRONMENTS,
        help="the last environment (default: production)",
    )
    ship.add_argument("--detach", action="store_true", help="leave the canary to `deploy-gates serve`")
    ship.add_argument("--dry-run", action="store_true", help="say what would be done, and move nothing")
    ship.add_argument("--retry", action="store_true", help="try again what was rolled back before")
    ship.add_argument("--weight", default="", metavar="PCT", help="the share of the canary (default: 5)")
    ship.add_argument(
        "--through-freeze", default="", metavar="REASON", help="do not wait for the end of a freeze"
    )
    ship.add_argument(
        "--low-traffic", action="store_true", help="begin a canary that cannot see its own margins"
    )
    ship.add_argument("--evidence", type=existing, metavar="FILE", help="evidence to hand in")
    ship.add_argument("--by", default="", metavar="NAME", help="who does it (default: the user)")

    approve = stored(
        commands,
        "approve",
        _approve,
        "let a release into an environment that wants somebody else's word",
        "deploy-gates approve ticket-triage --env production",
    )
    approve.add_argument("config", metavar="NAME", help="the config")
    approve.add_argument("--env", default=ENVIRONMENTS[-1], choices=ENVIRONMENTS, help="default: production")
    approve.add_argument("--reason", default="", help="why, for the log")
    approve.add_argument("--by", default="", metavar="NAME", help="who approves (default: the user)")


# --- Shipping -----------------------------------------------------------------------------------


def _ship(asked: argparse.Namespace) -> int:
    from deploy_gates import notify, runner, settings, workspace
    from deploy_gates.ship.carrying import Carrier
    from deploy_gates.ship.checkout import Checkout

    root = workspace.find_root(Path.cwd())
    checkout = Checkout(
        root=root,
        settled=settings.load(root),
        evidence=asked.evidence,
    )
    if not (asked.configs or checkout.names):
        raise SettingsError(
            f"there is no config in {root}, so there is nothing that could be shipped",
            hint="`configs` in [tool.deploy_gates] says where they lie; deploy-gates init makes a first one",
        )
    by = asked.by or actor()
    with opened(asked, makes=True) as store:
        carrier = Carrier(store=store, owner=runner.owner(by), checkout=checkout)
        promotions, refused = _proposals(carrier, checkout, asked, by)
        if not promotions and refused:
            raise refused[0]
        if not promotions:
            return _nothing(asked)
        if asked.dry_run:
            return _foretell(carrier, promotions, asked.json) or bool(refused) * REFUSED
        with notify.Notifier(store, notify.Telling.of(checkout.settled.notify, os.environ)) as notifier:
            carrier = replace(carrier, on_move=notifier.wake)
            status = _Shipping(carrier, promotions, detach=asked.detach, as_json=asked.json).run()
            if left := notifier.flush(TELL_S):
                print(
                    f"{left} notifications are still to be delivered: deploy-gates deliveries",
                    file=sys.stderr,
                )
        return status or bool(refused) * REFUSED


def _proposals(
    carrier: Carrier, checkout: Checkout, asked: argparse.Namespace, by: str
) -> tuple[list[Promotion], list[DeployGatesError]]:
    """A promotion of every config that has something to do, and why others cannot have one.

    What keeps one config back does not keep back the others: it is said, and they go on.
    """
    promotions: list[Promotion] = []
    refused: list[DeployGatesError] = []
    for name in asked.configs or checkout.names:
        try:
            if not asked.dry_run:
                carrier.settle(name)
            promotions += _proposed(carrier.store, checkout, name, asked, by)
        except (SettingsError, WorkspaceError, Refused) as error:
            refused.append(error)
    for each in refused if promotions else refused[1:]:
        print(f"deploy-gates: {each}", file=sys.stderr)
    return promotions, refused


def _proposed(
    store: Store, checkout: Checkout, name: str, asked: argparse.Namespace, by: str
) -> list[Promotion]:
    """The promotion of one config, if there is anything to do; with `--dry-run` nobody else knows of it."""
    from deploy_gates.core.release import Promotion

    if asked.dry_run:
        from deploy_gates import clock

        release = checkout.release(store, name, by)
        here = next(iter(store.deployments(asked.until, name)), None)
        if here is not None and here.baseline == release.digest:
            return []
        foreseen = Promotion(
            id=0,
            release=release,
            until=asked.until,
            baseline=here.baseline if here else "",
            policy=checkout.settled.policy.digest,
            terms=checkout.terms(
                weight_bp=weight(asked.weight),
                through_freeze=asked.through_freeze,
                low_traffic=asked.low_traffic,
            ),
            proposed_at=clock.now(),
        )
        return [foreseen]
    proposed = checkout.propose(
        store,
        name,
        actor=by,
        until=asked.until,
        weight_bp=weight(asked.weight),
        through_freeze=asked.through_freeze,
        low_traffic=asked.low_traffic,
        retry=asked.retry,
    )
    return [] if proposed is None else [proposed]


def _nothing(asked: argparse.Namespace) -> int:
    if asked.json:
        print_json([])
    else:
        what = " and ".join(asked.configs) or "every config"
        print(f"nothing to ship: {asked.until} serves {what} as it is here")
    return DONE


class _Shipping:
    """Carries promotions side by side, each in a thread, and shows them on one screen."""

    def __init__(
        self, carrier: Carrier, promotions: Sequence[Promotion], *, detach: bool, as_json: bool
    ) -> None:
        self._carrier = carrier
        self._ids = [each.id for each in promotions]
        self._detach = detach
        self._as_json = as_json
        self._news: queue.SimpleQueue[tuple[int, Told | BaseException | None]] = queue.SimpleQueue()
        self._screen = _Screen(promotions, as_json=as_json)
        self._failed: BaseException | None = None

    def run(self) -> int:
        """Until every promotion has ended or cannot go on; the exit status."""
        threads = [
            threading.Thread(target=self._carry, args=(each,), name=f"promotion {each}", daemon=True)
            for each in self._ids
        ]
        was_interrupted = False
        with _terminable():
            try:
                for each in threads:
                    each.start()
                self._follow(len(threads))
            except KeyboardInterrupt:
                was_interrupted = True
                self._carrier.stop.set()
                deadline = time.monotonic() + STOP_S
                for each in threads:
                    each.join(max(0.0, deadline - time.monotonic()))
        known = [self._carrier.store.promotion(each) for each in self._ids]
        promotions = [each for each in known if each is not None]
        self._screen.end(promotions, was_interrupted=was_interrupted, is_detached=self._detach)
        if self._failed is not None:
            raise self._failed
        if was_interrupted:
            return INTERRUPTED
        return DONE if all(_is_well(each, self._detach) for each in promotions) else REFUSED

    def _follow(self, running: int) -> None:
        while running:
            try:
                number, told = self._news.get(timeout=1.0)
            except queue.Empty:
                self._screen.refresh()
                continue
            if told is None:
                running -= 1
            elif isinstance(told, BaseException):
                self._failed = self._failed or told
            else:
                self._screen.show(number, told)

    def _carry(self, id: int) -> None:
        from deploy_gates.core.release import Act

        carrier = replace(self._carrier)  # the others go on when this one is left
        stop = self._carrier.stop
        try:
            for told in carrier.ship(id):
                self._news.put((id, told))
                if self._detach and told.step is not None and told.step.act is Act.ANALYSIS:
                    return
        except DeployGatesError as error:
            if not stop.is_set():
                self._news.put((id, error))
        except BaseException as error:  # noqa: BLE001  # shown by the main thread
            self._news.put((id, error))
        finally:
            self._news.put((id, None))


def _is_well(promotion: Promotion, is_detached: bool) -> bool:
    from deploy_gates.core.release import Act, State, Status

    if promotion.state is State.SHIPPED:
        return True
    last = promotion.journal[-1] if promotion.journal else None
    is_watched = last is not None and last.act is Act.ANALYSIS and last.status is not Status.FAILED
    return is_detached and is_watched and not promotion.state.is_final


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """A job that is cancelled ends as one that is interrupted: the promotion is left safely."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --- What would be done -------------------------------------------------------------------------


def _foretell(carrier: Carrier, promotions: Sequence[Promotion], as_json: bool) -> int:
    """Go through every step as if each went well, by the same rules, and do none."""
    from deploy_gates.ship.foretelling import foretold

    screen, status, told = terminal(), DONE, list[Json]()
    for promotion in promotions:
        release = promotion.release
        if not as_json:
            print(f"\n{screen.said(release.config)}  {short(release.digest)}\n")
        for each in foretold(carrier, promotion):
            told.append({"config": release.config, "place": each.place, "said": each.said})
            status = status if each.is_well else REFUSED
            if as_json:
                continue
            print(screen.said(f"  {each.place:<13}{each.said}"))
            if each.hint:
                print(screen.said(f"\n  hint: {each.hint}"))
    if as_json:
        print_json(told)
    else:
        print("\nnothing was moved")
    return status


# --- Approving ----------------------------------------------------------------------------------


def _approve(asked: argparse.Namespace) -> int:
    from deploy_gates import clock
    from deploy_gates.core.errors import Refusal
    from deploy_gates.core.release import Approval

    by = asked.by or actor()
    with opened(asked) as store:
        found = store.promotions(asked.config, is_open=True)
        if not found:
            raise Refused(
                Refusal.STATE, f"no release of {asked.config} is on its way", hint="deploy-gates ship"
            )
        release = found[-1].release  # the oldest: the one that runs
        if by == release.actor:
            raise Refused(
                Refusal.STATE,
                f"{by} brought {short(release.digest)}, and another person is to approve it",
                hint="--by NAME says who approves",
            )
        approval = Approval(
            config=asked.config,
            digest=release.digest,
            environment=asked.env,
            approver=by,
            reason=asked.reason,
            at=clock.now(),
        )
        store.approve(approval)
    if asked.json:
        print_json(approval.to_json())
    else:
        print(f"{by} lets {short(release.digest)} of {asked.config} into {asked.env}")
    return DONE


# --- The screen ---------------------------------------------------------------------------------


class _Screen:
    """Promotions as they move: blocks that redraw on a terminal, a line an event elsewhere."""

    def __init__(self, promotions: Sequence[Promotion], *, as_json: bool) -> None:
        self._as_json = as_json
        self._is_live = sys.stdout.isatty() and not as_json
        self._terminal = terminal()
        self._promotions = {each.id: each for each in promotions}
        self._told = {each.id: len(each.journal) for each in promotions}
        """So many lines of each journal are printed."""
        self._looks: dict[int, Decision] = {}
        self._standings: dict[int, Standing] = {}
        self._notes: dict[int, str] = {}
        self._drawn = 0
        self._drawn_at = 0.0

    def show(self, id: int, told: Told) -> None:
        """Take note of what has happened, and show it."""
        from deploy_gates.report import canary, shipping

        before = self._looks.get(id)
        self._promotions[id] = told.promotion
        if told.standing is not None:
            self._standings[id] = told.standing
        decision = told.look.decision if told.look is not None else None
        if decision is not None and told.promotion.id == id:
            self._looks[id] = decision
        problem = told.problem or (told.look.problem if told.look is not None else "")
        is_new = problem and self._notes.get(id) != problem
        self._notes[id] = problem or (told.hold.reason if told.hold is not None else "")
        if self._is_live:
            self.refresh()
            return
        if self._as_json:
            return
        for entry in told.promotion.journal[self._told[id] :]:
            said = shipping.line(told.promotion, entry, self._terminal)
            if said:
                print(said, flush=True)
        self._told[id] = max(self._told[id], len(told.promotion.journal))
        has_begun = decision is not None and decision.started_ms is not None
        if decision is not None and has_begun and canary.is_news(before, decision):
            print(shipping.look(decision, self._terminal), flush=True)
        if is_new:
            print(self._terminal.said(problem), file=sys.stderr, flush=True)

    def refresh(self, *, is_last: bool = False) -> None:
        """Draw everything anew, not too often."""
        now = time.monotonic()
        if not self._is_live or (not is_last and now - self._drawn_at < REDRAW_S):
            return
        self._drawn_at = now
        lines = [line for each in self._promotions for line in self._block(each, has_stopped=is_last)]
        self._erase()
        if not is_last:
            lines = lines[-(os.get_terminal_size().lines - 1) :]  # what scrolled away cannot be redrawn
            self._drawn = len(lines)
        sys.stdout.write("".join(f"{each}\n" for each in lines))
        sys.stdout.flush()

    def end(self, promotions: Sequence[Promotion], *, was_interrupted: bool, is_detached: bool) -> None:
        """How it ended: everything once more, and what is true now."""
        from deploy_gates import clock
        from deploy_gates.report import shipping

        self._promotions = {each.id: each for each in promotions}
        if self._as_json:
            told: list[Json] = [each.to_json() for each in promotions]
            print_json(told)
            return
        self.refresh(is_last=True)
        for each in promotions:
            if not self._is_live:
                print(
                    shipping.last_line(
                        each,
                        self._terminal,
                        now=clock.now(),
                        decision=self._looks.get(each.id),
                        standing=self._standings.get(each.id),
                    )
                )
                if hint := shipping.hint(each):
                    print(self._terminal.said(f"hint: {hint}"), file=sys.stderr)
            if not each.state.is_final and (was_interrupted or is_detached):
                for line in _left(each, clock.now()):
                    print(f"  {self._terminal.said(line)}")

    def _block(self, id: int, *, has_stopped: bool) -> list[str]:
        from deploy_gates import clock
        from deploy_gates.report import shipping

        promotion = self._promotions[id]
        note = self._notes.get(id) or (
            "ctrl-c leaves it running: `deploy-gates ship` resumes it, `deploy-gates rollback "
            f"{promotion.release.config}` ends it"
        )
        return shipping.block(
            promotion,
            self._terminal,
            now=clock.now(),
            decision=self._looks.get(id),
            standing=self._standings.get(id),
            note=note,
            has_stopped=has_stopped,
        )

    def _erase(self) -> None:
        if self._drawn:
            sys.stdout.write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0


def _left(promotion: Promotion, now: datetime) -> Iterator[str]:
    """What happens to a promotion that nobody carries at the moment."""
    from deploy_gates.core.release import PRODUCTION, Act

    name = promotion.release.config
    yield f"left as it is: `deploy-gates ship {name}` goes on, `deploy-gates rollback {name}` ends it"
    canary = promotion.outcome(Act.CANARY, PRODUCTION)
    expires_at = canary.data.get("expires_at") if canary is not None else None
    if isinstance(expires_at, str):
        left = datetime.fromisoformat(expires_at) - now
        if left > timedelta():
            until = f"{datetime.fromisoformat(expires_at).astimezone():%H:%M:%S}"
            yield f"`deploy-gates serve` decides the canary; without one, clients are back by {until}"
