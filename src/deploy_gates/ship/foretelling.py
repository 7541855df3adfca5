"""What a promotion would do, by the same rules, with nothing done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from deploy_gates.core.canary import Action
from deploy_gates.core.canonical import JsonObject, short
from deploy_gates.core.promotion import Deployment
from deploy_gates.core.release import (
    Act,
    Conclude,
    Entry,
    Facts,
    Hold,
    Promotion,
    State,
    Status,
    Step,
    next_step,
)
from deploy_gates.ship.carrying import MOVES, Carrier
from deploy_gates.ship.checkout import Came
from deploy_gates.ship.judging import unseen


@dataclass(frozen=True, kw_only=True, slots=True)
class Foretold:
    """One thing that would happen."""

    place: str
    """The environment, `evidence`, or how it would end."""
    said: str
    hint: str = ""
    is_well: bool
    """Whether it would go on, or end in the last environment."""


def foretold(carrier: Carrier, promotion: Promotion) -> Iterator[Foretold]:
    """What would be done, as if everything went well that only trying can tell."""
    facts = carrier.facts(promotion)
    while True:
        following = next_step(promotion, facts)
        if isinstance(following, Conclude):
            yield Foretold(place=following.state.value, said=following.reason, is_well=_is_well(following))
            return
        place = following.environment or following.act.value
        if isinstance(following, Hold):
            yield Foretold(place=place, said=f"held: {following.reason}", hint=following.hint, is_well=False)
            return
        came = _came(carrier, promotion, following, facts)
        is_held = came.status is Status.HELD
        yield Foretold(
            place=place,
            said=("held: " if is_held else "") + str(came.data["said"]),
            hint=str(came.data.get("hint", "")),
            is_well=came.status is Status.DONE,
        )
        if is_held:
            return
        entry = Entry(
            promotion=promotion.id,
            number=len(promotion.journal) + 1,
            act=following.act,
            environment=following.environment,
            status=came.status,
            at_ms=0,
            owner=carrier.owner,
            data=came.data,
        )
        promotion = replace(promotion, journal=(*promotion.journal, entry))
        facts = _moved(promotion, following, facts)


def _is_well(end: Conclude) -> bool:
    return end.state is State.SHIPPED


def _came(carrier: Carrier, promotion: Promotion, step: Step, facts: Facts) -> Came:
    """What would come of a step: really, where that moves nothing."""
    if step.act is Act.ADMIT:
        return carrier.admit(promotion)
    blind = unseen(carrier.store, promotion, step.environment, facts.now) if step.act is Act.CANARY else None
    return blind or _as_if(promotion, step, facts)


def _as_if(promotion: Promotion, step: Step, facts: Facts) -> Came:
    """A step that went well, for who asks what would be done."""
    here = facts.deployments.get(step.environment)
    revision, digest = here.revision if here else 0, short(promotion.release.digest)
    said = {
        Act.PROMOTE: f"r{revision} → r{revision + 1}, {digest} to everybody",
        Act.CANARY: f"r{revision + 1} sends {promotion.terms.weight_bp / 100:g} % to {digest}",
        Act.SMOKE: "the smoke cases are asked",
        Act.ANALYSIS: f"its canary is watched, and decided within {promotion.terms.lasts_s:.0f} s",
    }
    data: JsonObject = {"said": said.get(step.act, step.act.value), "action": Action.PROMOTE.value}
    return Came(status=Status.DONE, data=data)


def _moved(promotion: Promotion, step: Step, facts: Facts) -> Facts:
    """The facts after a move that went well."""
    if step.act not in MOVES:
        return facts
    release = promotion.release
    here = facts.deployments.get(step.environment) or Deployment(
        config=release.config, environment=step.environment
    )
    here = replace(here, revision=here.revision + 1)
    if step.act is Act.CANARY:
        here = replace(here, candidate=release.digest, weight_bp=promotion.terms.weight_bp)
    else:
        here = replace(here, baseline=release.digest, candidate="", weight_bp=0)
    return replace(facts, deployments={**facts.deployments, step.environment: here})
