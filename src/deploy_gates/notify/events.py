"""What has happened, as CloudEvents 1.0: made of the journal alone, so whoever makes them makes the same."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.promotion import Event
from deploy_gates.core.release import Act, Entry, Promotion, State, Status

TYPE_PREFIX = "io.deploy-gates."
FIGURES_MAX_BYTES = 64 << 10
"""The figures of a decision are left out where they are larger: receivers refuse large messages."""
_STEP = timedelta(microseconds=1)
_KINDS = {Act.PROMOTE: "promote", Act.CANARY: "canary", Act.ROLLBACK: "rollback"}


def kind_of(event: JsonObject) -> str:
    """The type of an event as the settings name it: `promotion.shipped`."""
    return str(event["type"]).removeprefix(TYPE_PREFIX)


def data_of(event: JsonObject) -> JsonObject:
    """What an event says."""
    data = event["data"]
    assert isinstance(data, dict), data
    return data


def time_of(event: JsonObject) -> datetime:
    """When it happened, by the clock of the store."""
    return datetime.fromisoformat(str(event["time"]))


def of_promotion(promotion: Promotion, *, source: str, dashboard_url: str = "") -> tuple[JsonObject, ...]:
    """Everything there is to tell of a promotion, in order.

    Each has the same id and the same time whenever it is made again.
    """
    name = f"promotion-{promotion.id}-{int(promotion.proposed_at.timestamp() * 1000):x}"
    common: JsonObject = {
        "promotion": promotion.id,
        "key": name,
        "config": promotion.release.config,
        "digest": promotion.release.digest,
        "baseline": promotion.baseline,
        "actor": promotion.release.actor,
        "reason": promotion.release.reason,
        "commit": promotion.release.commit,
        "until": promotion.until,
        "policy": promotion.policy,
        "proposed_at": promotion.proposed_at.isoformat(),
    }
    if dashboard_url:
        common["url"] = f"{dashboard_url.rstrip('/')}/promotions/{promotion.id}"
    told = [_proposed(promotion)]
    held = ""
    for entry in promotion.journal:
        said = _of_entry(promotion, entry)
        if entry.status is Status.HELD:
            again, held = entry.said == held, entry.said
            if again:
                continue
        elif entry.status is not Status.BEGUN:
            held = ""
        if said is not None:
            told.append(said)
    if promotion.state.is_final:
        told.append(_concluded(promotion))
    return tuple(
        {
            "specversion": "1.0",
            "id": f"{name}-{suffix}",
            "source": source,
            "type": f"{TYPE_PREFIX}promotion.{kind}",
            "subject": f"{promotion.release.config}/{promotion.id}",
            "time": at.astimezone(UTC).isoformat(),
            "datacontenttype": "application/json",
            "data": {**common, **data},
        }
        for suffix, kind, at, data in told
    )


def of_move(event: Event, *, source: str, dashboard_url: str = "", commit: str = "") -> JsonObject:
    """A move that somebody made by hand."""
    data: JsonObject = {
        "key": f"moved-{event.hash[:32]}",
        "config": event.config,
        "environment": event.environment,
        "revision": event.revision,
        "move": event.kind,
        "digest": event.candidate or event.baseline,
        "baseline": event.baseline,
        "candidate": event.candidate,
        "weight_bp": event.weight_bp,
        "actor": event.actor,
        "reason": event.reason,
        "commit": commit,
        "policy": event.policy,
        "evidence": event.evidence,
        "said": f"{event.actor} moved {event.environment} to r{event.revision} by hand: {event.reason}",
    }
    if dashboard_url:
        data["url"] = dashboard_url.rstrip("/")
    return {
        "specversion": "1.0",
        "id": f"moved-{event.hash[:32]}",
        "source": source,
        "type": f"{TYPE_PREFIX}deployment.moved",
        "subject": f"{event.config}/{event.environment}",
        "time": event.at.isoformat(),
        "datacontenttype": "application/json",
        "data": data,
    }


_Told = tuple[str, str, datetime, JsonObject]
"""The end of the id, the kind of the event, when, and what it says besides what all of them say."""


def _proposed(promotion: Promotion) -> _Told:
    said = f"{promotion.release.actor} proposed it for {promotion.until}"
    if promotion.release.reason:
        said += f": {promotion.release.reason}"
    return "proposed", "proposed", promotion.proposed_at, {"environment": "", "said": said}


def _of_entry(promotion: Promotion, entry: Entry) -> _Told | None:
    """What one line of the journal is to others; `None`: nothing."""
    data: JsonObject = {"environment": entry.environment, "said": entry.said, "step": entry.act.value}
    is_done = entry.status is Status.DONE
    if entry.status is Status.HELD:
        kind = "held"
        data["hint"] = str(entry.data.get("hint", ""))
    elif entry.status is Status.BEGUN:
        return None
    elif entry.act in _KINDS and is_done:
        kind = "moved"
        data |= {
            "move": _KINDS[entry.act],
            "revision": entry.data.get("to"),
            "serves": entry.data.get("baseline", ""),
            "evidence": _evidence(promotion),
            "is_verified": _is_verified(promotion, entry),
        }
        if entry.act is Act.CANARY:
            data |= {key: entry.data.get(key) for key in ("weight_bp", "expires_at")}
    elif entry.act is Act.SMOKE:
        kind = "verified"
        data |= {"is_met": is_done, "cases": entry.data.get("cases"), "met": entry.data.get("met")}
    elif entry.act is Act.ANALYSIS:
        kind = "decided"
        data |= {"is_met": is_done, "action": entry.data.get("action"), "figures": _figures(entry)}
    else:
        return None
    return str(entry.number), kind, entry.at + entry.number * _STEP, data


def _concluded(promotion: Promotion) -> _Told:
    rolled_back = [each for each in promotion.journal if each.act is Act.ROLLBACK]
    where = {
        State.SHIPPED: promotion.until,
        State.ROLLED_BACK: rolled_back[-1].environment if rolled_back else promotion.until,
    }
    at = max(promotion.concluded_at or promotion.proposed_at, *(each.at for each in promotion.journal[-1:]))
    data: JsonObject = {
        "environment": where.get(promotion.state, ""),
        "said": promotion.conclusion,
        "state": promotion.state.value,
        "evidence": _evidence(promotion),
    }
    decided = promotion.outcome(Act.ANALYSIS, promotion.until)
    if decided is not None:
        data["figures"] = _figures(decided)
    kind = promotion.state.value.replace(" ", "-")
    return kind, kind, at + (len(promotion.journal) + 1) * _STEP, data


def _evidence(promotion: Promotion) -> Json:
    found = promotion.outcome(Act.ADMIT)
    return found.data.get("evidence", "") if found is not None else ""


def _is_verified(promotion: Promotion, entry: Entry) -> bool:
    """Whether nothing is asked of the environment after this move any more."""
    was_watched = promotion.last(Act.CANARY, entry.environment) is not None
    return entry.act is Act.PROMOTE and (was_watched or not promotion.terms.smoke)


def _figures(entry: Entry) -> Json:
    """The decision of the canary in figures, where they are small enough to be sent."""
    found = _finite(entry.data.get("decision"))
    return found if len(json.dumps(found)) <= FIGURES_MAX_BYTES else None


def _finite(value: Json) -> Json:
    """`value` as JSON has it for everybody: infinity and NaN, which only Python reads, are nothing."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
