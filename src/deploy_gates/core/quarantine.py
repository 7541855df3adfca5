"""Cases that are known to be flaky and do not count for a while: by an explicit list, each with its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime

from deploy_gates.core.config import ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantine:
    """Which cases do not count now, and which count again."""

    cases: Mapping[str, str] = field(default_factory=dict)
    """Until when, by id."""
    expired: tuple[str, ...] = ()


def of(config: ModelConfig | None, now: datetime) -> Quarantine:
    """What `golden: {quarantine: [...]}` says on this day; the day named is the last one."""
    golden = config.document.get("golden") if config else None
    listed = golden.get("quarantine") if isinstance(golden, dict) else None
    held: dict[str, str] = {}
    expired = []
    for each in listed if isinstance(listed, list) else []:
        assert isinstance(each, dict), "the schema of configs says so"
        case, until = str(each["case"]), str(each["until"])
        if _is_over(until, now.date()):
            expired.append(case)
        else:
            held[case] = until
    return Quarantine(cases=held, expired=tuple(expired))


def _is_over(until: str, today: date) -> bool:
    """A day that no calendar has, as the 31st of June, is over."""
    try:
        return date.fromisoformat(until) < today
    except ValueError:
        return True
