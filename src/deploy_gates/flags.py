"""Configs as feature flags: a whole config is one flag, and so is every member of it.

`ticket-triage` is the config as an object, `ticket-triage.parameters.temperature` is what stands there. Dots
lead into objects and never into lists; a member whose own name has a dot is reached through the object around
it. A config wins over a member that would be called the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from deploy_gates.client import ConfigClient
from deploy_gates.client.served import Served
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.errors import ConfigUnavailable, DeployGatesError
from deploy_gates.core.tally import Arm

MEMBERS_MAX = 10_000
"""Flags listed of one config; what comes after them is still found by its name."""


FLAG_MAX_CHARS = 1_000
"""No flag has a longer name; members further inside are reached through the object around them."""


class FlagNotFound(DeployGatesError):
    """There is no config of that name, or nothing at that place in it."""


class Reason(StrEnum):
    """Why this value and no other, in the words of OpenFeature."""

    STATIC = "STATIC"
    """Everybody gets it."""
    SPLIT = "SPLIT"
    """A canary runs, and the key decided."""
    STALE = "STALE"
    """The store is away: it may be another one by now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What a flag is for one key."""

    value: Json
    """Part of a document that is shared: do not change it."""
    variant: Arm
    reason: Reason
    metadata: dict[str, str | int]
    """`config`, `environment`, `revision`, and `digest`."""


def evaluate(client: ConfigClient, flag: str, key: str | None) -> Evaluation:
    """What `flag` is for `key`; which type it should have is the caller's business.

    `FlagNotFound`, or `ConfigUnavailable` where nothing at all could be read yet.
    """
    if len(flag) > FLAG_MAX_CHARS:
        raise FlagNotFound(
            f"there is no flag with a name of {len(flag)} characters", hint=f"{FLAG_MAX_CHARS} are the most"
        )
    names = client.names
    name = next((each for each in _prefixes(flag) if each in names), "")
    if not name:
        raise _missing(client, flag)
    try:
        served = client.assign(name, key)
    except ConfigUnavailable as error:
        raise FlagNotFound(error.message, hint=error.hint) from error
    value: Json = served.document
    for member in flag[len(name) + 1 :].split(".") if flag != name else ():
        value = value.get(member) if isinstance(value, dict) and member else None
    if value is None:
        raise FlagNotFound(
            f"{name} has no value at {flag[len(name) + 1 :]!r} in r{served.revision}, its {served.arm.value}",
            hint="dots lead from object to object, and not into lists",
        )
    return Evaluation(
        value=value,
        variant=served.arm,
        reason=_reason(client, served, key),
        metadata={
            "config": served.name,
            "environment": served.environment,
            "revision": served.revision,
            "digest": served.digest,
        },
    )


def flags(client: ConfigClient, key: str | None = None) -> Iterator[str]:
    """Every flag there is for `key`, config by config."""
    for name in client.names:
        yield from members(name, client.assign(name, key).document)


def members(name: str, document: JsonObject) -> dict[str, Json]:
    """The flags of one config: the config itself, and what stands in it, objects before what is in them."""
    found: dict[str, Json] = {}
    waiting: list[tuple[str, Json]] = [(name, document)]
    while waiting and len(found) < MEMBERS_MAX:
        path, value = waiting.pop()
        if len(path) > FLAG_MAX_CHARS:
            continue
        found[path] = value
        if isinstance(value, dict):
            inner = [(f"{path}.{each}", value[each]) for each in value if each and "." not in each]
            waiting += reversed([each for each in inner if each[1] is not None])
    return found


def differing(name: str, documents: Sequence[JsonObject]) -> list[str]:
    """The flags of one config that are not the same in all of these documents of it."""
    every = [members(name, each) for each in documents]
    return sorted(
        path
        for path in set().union(*every)
        if any(path not in each or not _is_same(each[path], every[0].get(path)) for each in every)
    )


def _prefixes(flag: str) -> Iterator[str]:
    """The flag, and what stands before its dots, the longest first."""
    while flag:
        yield flag
        flag = flag.rpartition(".")[0]


def _missing(client: ConfigClient, flag: str) -> DeployGatesError:
    names = client.names
    if not names and client.is_stale:
        return ConfigUnavailable(
            f"there is no flag {flag!r} yet: nothing could be read from the store at {client.url}",
            hint="flags are there as soon as the store can be read",
        )
    return FlagNotFound(
        f"there is no flag {flag!r} in {client.environment}",
        hint=f"flags begin with the name of a config: {', '.join(names) or 'none is promoted yet'}",
    )


def _reason(client: ConfigClient, served: Served, key: str | None) -> Reason:
    if client.is_stale:
        return Reason.STALE
    return Reason.SPLIT if served.canary and key is not None else Reason.STATIC


def _is_same(one: Json, other: Json) -> bool:
    """Equal, and `true` is not 1."""
    return one is other or (one == other and repr(one) == repr(other))
