"""Times in which nothing new goes into an environment: holidays, weekends, the night before a launch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from deploy_gates.core.release import Freeze

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
AHEAD = timedelta(days=28)
"""So far ahead the windows of every week are written out: no promotion waits for longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """One freeze as a team declares it: once, or every week."""

    environment: str
    since: datetime | None = None
    """Of one that comes once: when it begins and ends."""
    until: datetime | None = None
    weekday: str = ""
    """Of one that comes every week: `fri`."""
    hour: int = 0
    minute: int = 0
    hours: float = 0.0
    """For how long."""
    timezone: str = "UTC"
    """Whose clock the weekday and the time are of; summer time is kept."""
    reason: str = ""


def freezes(windows: Iterable[Window], now: datetime) -> tuple[Freeze, ...]:
    """The freezes that have not ended and begin within `AHEAD`, in order."""
    found = [each for window in windows for each in _written_out(window, now)]
    return tuple(sorted(found, key=lambda each: (each.since, each.until)))


def _written_out(window: Window, now: datetime) -> Iterable[Freeze]:
    if window.since is not None and window.until is not None:
        spans = [(window.since.astimezone(UTC), window.until.astimezone(UTC))]
    else:
        spans = _weekly(window, now)
    for since, until in spans:
        if until > now and since < now + AHEAD:
            yield Freeze(environment=window.environment, since=since, until=until, reason=window.reason)


def _weekly(window: Window, now: datetime) -> list[tuple[datetime, datetime]]:
    here = now.astimezone(ZoneInfo(window.timezone))
    days = WEEKDAYS.index(window.weekday) - here.weekday()
    first = here.replace(hour=window.hour, minute=window.minute, second=0, microsecond=0)
    spans = []
    for week in range(-1, AHEAD.days // 7 + 1):
        # On the wall clock of the zone: what begins at 16:00 does so in summer and in winter.
        since = (first + timedelta(days=days + 7 * week)).astimezone(UTC)
        spans.append((since, since + timedelta(hours=window.hours)))
    return spans
