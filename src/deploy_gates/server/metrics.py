"""What Prometheus reads: what is served where, by how many, and what was asked of this server."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from deploy_gates.core.canonical import short
from deploy_gates.core.promotion import Standing

if TYPE_CHECKING:
    from deploy_gates.server import Service

COUNTS_MAX = 1_000
METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE"}
"""Counted by name; there are dozens, and nobody shall use them up to hide the others."""


class Requests:
    """How many requests there were, by route and status."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str, int], int] = {}

    def count(self, method: str, route: str, status: int) -> None:
        """One more of these."""
        key = (method if method in METHODS else "other", route, status)
        with self._lock:
            if key in self._counts or len(self._counts) < COUNTS_MAX:
                self._counts[key] = self._counts.get(key, 0) + 1

    def counts(self) -> dict[tuple[str, str, int], int]:
        with self._lock:
            return dict(self._counts)


def exposition(standings: Sequence[Standing], service: Service) -> str:
    """The metrics, in Prometheus's text format 0.0.4."""
    return "\n".join([*_served(standings), *_clients(standings), *_server(service), ""])


def _served(standings: Sequence[Standing]) -> Iterator[str]:
    yield from _head("deploy_gates_revision", "gauge", "The revision an environment is at.")
    for each in standings:
        yield _line("deploy_gates_revision", _place(each), each.deployment.revision)
    yield from _head("deploy_gates_serving_info", "gauge", "What an environment serves.")
    for each in standings:
        found = each.deployment
        labels = {"baseline": short(found.baseline), "candidate": short(found.candidate)}
        yield _line("deploy_gates_serving_info", _place(each) | labels, 1)
    yield from _head("deploy_gates_candidate_weight_ratio", "gauge", "The share of keys on the candidate.")
    for each in standings:
        yield _line("deploy_gates_candidate_weight_ratio", _place(each), each.deployment.weight_bp / 10_000)
    yield from _head("deploy_gates_changed_timestamp_seconds", "gauge", "When an environment was moved last.")
    for each in standings:
        moved = each.deployment.changed_at
        if moved is not None:
            yield _line("deploy_gates_changed_timestamp_seconds", _place(each), moved.timestamp())


def _clients(standings: Sequence[Standing]) -> Iterator[str]:
    yield from _head("deploy_gates_clients", "gauge", "Clients heard of lately, by what they do.")
    for each in standings:
        refusing = sum(bool(one.refused) for one in each.instances)
        following = len(each.following)
        states = {
            "following": following,
            "refusing": refusing,
            "behind": len(each.instances) - following - refusing,
        }
        for state, number in states.items():
            yield _line("deploy_gates_clients", _place(each) | {"state": state}, max(0, number))


def _server(service: Service) -> Iterator[str]:
    yield from _head("deploy_gates_is_stale", "gauge", "Whether the store is away, and memory is served.")
    for name, mirror in service.mirrors.items():
        yield _line("deploy_gates_is_stale", {"environment": name}, int(mirror.is_stale))
    yield from _head("deploy_gates_streams", "gauge", "Streams that are open.")
    for name, mirror in service.mirrors.items():
        yield _line("deploy_gates_streams", {"environment": name}, mirror.listeners)
    yield from _head("deploy_gates_requests_total", "counter", "Requests, by route and status.")
    for (method, route, status), number in sorted(service.requests.counts().items()):
        labels = {"method": method, "route": route, "status": str(status)}
        yield _line("deploy_gates_requests_total", labels, number)


def _place(standing: Standing) -> dict[str, str]:
    return {"config": standing.deployment.config, "environment": standing.deployment.environment}


def _head(name: str, kind: str, help: str) -> Iterator[str]:
    yield f"# HELP {name} {help}"
    yield f"# TYPE {name} {kind}"


def _line(name: str, labels: dict[str, str], value: float) -> str:
    said = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{said}}} {value:g}" if isinstance(value, int) else f"{name}{{{said}}} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
