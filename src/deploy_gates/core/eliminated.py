"""The 119 steps by which a change was deployed by hand, and what does each of them now.

The list names its steps; how they add up to 119 is our reading of it, said row by row. A row counts for a
promotion only if its journal, or a notification that arrived, says that it was done.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeAlias

from deploy_gates.core.release import Act, Promotion, Status

TOTAL = 119
"""What the old list counts: four systems, three services, two environments (staging and production)."""

Arrived: TypeAlias = tuple[str, str]
"""A notification that arrived: the kind of its channel, and the event: `("jira", "promotion.proposed")`."""

PROPOSED = ("promotion.proposed",)
MOVED = ("promotion.moved",)
CONCLUDED = tuple(
    f"promotion.{each}" for each in ("shipped", "blocked", "rolled-back", "superseded", "aborted")
)


@dataclass(frozen=True, kw_only=True, slots=True)
class OldStep:
    """One row of the old list."""

    name: str
    named: str = ""
    """What the old list calls it; empty: it follows from how the row before is read."""
    count: int
    """How many of the 119."""
    reading: str
    """How the count adds up: this breakdown is ours."""
    by: str
    """What does it now."""
    act: Act | None = None
    """The step of a promotion that does it; `None`: a person, or a notification."""
    instead: Act | None = None
    """The step that does it where there is no canary: a first release has nothing to be compared with."""
    environment: str = ""
    says_no_too: bool = False
    """Whether it was done where the answer is no, too: tests that fail have run."""
    kinds: tuple[str, ...] = ()
    """The kinds of channels whose notification does it."""
    events: tuple[str, ...] = ()
    """The notifications that do it, any one of them."""

    @property
    def is_by_hand(self) -> bool:
        """Whether a person still does it."""
        return self.act is None and not self.kinds


_REPOSITORY = (
    OldStep(
        name="Write the change",
        named="update config",
        count=1,
        reading="in the first of 4 systems",
        by="a person, in one file",
    ),
    OldStep(
        name="Copy it to wherever else it is kept",
        count=3,
        reading="the other 3 of 4 systems",
        by="the store keeps it once, by its digest; every client reads it there",
        act=Act.ADMIT,
    ),
    OldStep(
        name="Test on one's own machine",
        named="local tests",
        count=4,
        reading="set up, run, try prompts by eye, note what came out",
        by="`pytest --deploy-gates`: five gates, and evidence for this digest",
        act=Act.ADMIT,
        says_no_too=True,
    ),
    OldStep(
        name="Open a pull request",
        named="pull request",
        count=2,
        reading="commit, open",
        by="a person",
    ),
    OldStep(
        name="Say in it what was tested",
        count=2,
        reading="list what differs, paste the results",
        by="the report of the gates, as a comment",
        act=Act.ADMIT,
        says_no_too=True,
    ),
    OldStep(
        name="See CI through",
        named="CI",
        count=3,
        reading="wait, read, run again what was flaky",
        by="the gates in CI; `ship` verifies their evidence",
        act=Act.ADMIT,
        says_no_too=True,
    ),
    OldStep(name="Review", named="review", count=2, reading="read, approve", by="a person"),
    OldStep(name="Merge", named="merge", count=1, reading="one click", by="a person"),
)

_STAGING = (
    OldStep(
        name="Set environment variables in staging",
        named="environment variables on three services twice",
        count=18,
        reading="3 services × 6: log in, find it, set the model, set the prompt, save, restart",
        by="one promotion; clients follow within a second, without a restart",
        act=Act.PROMOTE,
        environment="staging",
    ),
    OldStep(
        name="Smoke test staging",
        named="smoke tests twice",
        count=9,
        reading="3 services × 3: call, read the answer, note it",
        by="the smoke cases",
        act=Act.SMOKE,
        environment="staging",
        says_no_too=True,
    ),
    OldStep(
        name="Watch staging for 30 minutes",
        named="monitor 30 minutes",
        count=3,
        reading="one look every 10 minutes",
        by="nobody has to: the smoke cases ask, and the canary watches real users",
        act=Act.SMOKE,
        environment="staging",
        says_no_too=True,
    ),
)

_BEFORE_PRODUCTION = (
    OldStep(
        name="Open a deploy ticket",
        named="ticket",
        count=5,
        reading="open, describe, link the pull request, link the results, assign",
        by="a `jira` or `github-issues` channel, when the promotion is proposed",
        kinds=("jira", "github-issues"),
        events=PROPOSED,
    ),
    OldStep(
        name="Collect approvals",
        named="approvals",
        count=6,
        reading="2 people × 3: ask, remind, note it in the ticket",
        by="evidence under the policy; where the settings demand people, it stays with them",
        act=Act.ADMIT,
    ),
    OldStep(
        name="Announce it on the status page",
        named="status page",
        count=3,
        reading="log in, write, publish",
        by="a `statuspage` channel, when production is moved",
        kinds=("statuspage",),
        events=MOVED,
    ),
    OldStep(
        name="Announce it to stakeholders",
        named="stakeholders",
        count=2,
        reading="write, send",
        by="an `apprise` or `webhook` channel, when it is proposed or moved",
        kinds=("apprise", "webhook"),
        events=(*PROPOSED, *MOVED),
    ),
)

_PRODUCTION = (
    OldStep(
        name="Set environment variables in production",
        count=18,
        reading="3 services × 6, as in staging",
        by="the canary: the same promotion, for a share of production first",
        act=Act.CANARY,
        instead=Act.PROMOTE,
        environment="production",
    ),
    OldStep(
        name="Smoke test production",
        count=9,
        reading="3 services × 3, as in staging",
        by="the first requests of the canary, under a hard limit of errors",
        act=Act.ANALYSIS,
        instead=Act.SMOKE,
        environment="production",
        says_no_too=True,
    ),
    OldStep(
        name="Watch production for 60 minutes",
        named="monitor 60 minutes",
        count=6,
        reading="one look every 10 minutes",
        by="the analysis of the canary, which decides",
        act=Act.ANALYSIS,
        environment="production",
        says_no_too=True,
    ),
    OldStep(
        name="Deploy to all of production",
        named="deploy",
        count=12,
        reading="3 services × 4: start, wait, verify the version, note it",
        by="one promotion, once the canary is decided; `status` counts the clients that follow",
        act=Act.PROMOTE,
        environment="production",
    ),
)

_AFTERWARDS = (
    OldStep(
        name="Clear the status page",
        count=3,
        reading="log in, write, publish",
        by="a `statuspage` channel, when the promotion has ended",
        kinds=("statuspage",),
        events=CONCLUDED,
    ),
    OldStep(
        name="Tell stakeholders how it went",
        count=2,
        reading="write, send",
        by="an `apprise` or `webhook` channel, when the promotion has ended",
        kinds=("apprise", "webhook"),
        events=CONCLUDED,
    ),
    OldStep(
        name="Close the ticket",
        named="ticket closed",
        count=5,
        reading="find it, note the outcome, add the figures, close it, tell who asked",
        by="the channel that opened it, when the promotion has ended",
        kinds=("jira", "github-issues"),
        events=CONCLUDED,
    ),
)

STEPS: tuple[OldStep, ...] = (*_REPOSITORY, *_STAGING, *_BEFORE_PRODUCTION, *_PRODUCTION, *_AFTERWARDS)
"""The old list, in its order."""

BY_HAND = sum(each.count for each in STEPS if each.is_by_hand)
"""How many a person still does, all of them before the merge."""


def eliminated(promotion: Promotion, arrived: Collection[Arrived] = ()) -> int:
    """How many of the old steps ran by themselves in this promotion.

    Only what was done counts: one that was blocked has no more than its evidence. `arrived` are its
    notifications that did.
    """
    return sum(each.count for each in STEPS if ran(each, promotion, arrived))


def ran(step: OldStep, promotion: Promotion, arrived: Collection[Arrived] = ()) -> bool:
    """Whether a step of the old list ran by itself in this promotion."""
    if step.kinds:
        return any((kind, event) in arrived for kind in step.kinds for event in step.events)
    if step.named == "approvals" and any(promotion.terms.approvals.values()):
        return False  # people were asked
    for act in (step.act, step.instead):
        found = promotion.outcome(act, step.environment) if act is not None else None
        if found is not None and (found.status is Status.DONE or step.says_no_too):
            return True
    return False
