"""What a promotion would do, by the same rules, with nothing done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from deploy_gates.core.canary import Action
from deploy_gates.core.canonical import JsonObject, short
from deploy_gates.core.promotion import Deployment
from deploy_gates.core.release import Act, Conclude, Entry, Facts, Next, Promotion, Status, Step, next_step
from deploy_gates.ship.carrying import MOVES, Carrier
from deploy_gates.ship.checkout import Came


def foretold(carrier: Carrier, promotion: Promotion) -> Iterator[tuple[str, str, Next]]:
    """Where what would be done, as if every step went well: environment, words, and the step itself."""
    facts = carrier.facts(promotion)
    while True:
        following = next_step(promotion, facts)
        place = "" if isinstance(following, Conclude) else following.environment
        if not isinstance(following, Step):
            yield place, following.reason, following
            return
        came = _as_if(promotion, following, facts)
        if following.act is Act.ADMIT:
            came = carrier.admit(promotion)
        yield place, str(came.data["said"]), following
        if came.status is Status.HELD:
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
