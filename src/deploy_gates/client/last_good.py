"""The last good config on disk: what is served after a restart while the store is away."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy_gates import files
from deploy_gates.client.snapshot import Snapshot
from deploy_gates.core import canonical
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.cost import Price
from deploy_gates.core.errors import WorkspaceError
from deploy_gates.core.parsing import list_, object_
from deploy_gates.core.promotion import Deployment, Serving

FORMAT = 1
FILE_MAX_BYTES = 64 << 20
PRIVATE = 0o600
"""Prompts are nobody else's business."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def default_path(url: str, environment: str) -> Path | None:
    """One file per store and environment, in the cache of this user; `None` for a user without a home."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return None if root.startswith("~") else Path(root) / "deploy-gates" / f"{_origin(url, environment)}.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class LastGood:
    """One file, and what it is the last good config of."""

    path: Path
    url: str
    """Without a password, which may change while the store stays the same."""
    environment: str

    def save(self, snapshot: Snapshot) -> None:
        """Write it, whole or not at all. `WorkspaceError` if that cannot be done."""
        body: JsonObject = {
            "format": FORMAT,
            "origin": _origin(self.url, self.environment),
            "environment": self.environment,
            "deployments": [row.deployment.to_json() for _, row in sorted(snapshot.rows.items())],
            "configs": {},
            "prices": {},
            "canaries": _left(snapshot),
        }
        configs, prices = object_(body["configs"]), object_(body["prices"])
        for row in snapshot.rows.values():
            for digest in filter(None, (row.deployment.baseline, row.deployment.candidate)):
                document = snapshot.documents[digest]
                configs[digest] = document.spelling.decode()
                if document.price is not None:
                    prices[digest] = document.price.to_json()
        content = json.dumps({"digest": canonical.digest(body), "body": body}, ensure_ascii=False)
        files.replace(self.path, content.encode(), mode=PRIVATE)

    def load(self) -> tuple[Serving, Mapping[str, float]] | None:
        """What was saved, and when the canaries in it end by themselves, on the monotonic clock, by config.

        `None` if nothing was saved. `WorkspaceError` for a file that is damaged or another's.
        """
        try:
            with self.path.open("rb") as file:
                content = file.read(FILE_MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise WorkspaceError(f"{self.path} cannot be read: {error.strerror or error}") from error
        try:
            if len(content) > FILE_MAX_BYTES:
                raise ValueError(f"it is longer than {FILE_MAX_BYTES:,} bytes")
            return self._read(json.loads(content))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise WorkspaceError(f"{self.path} is damaged and is not used: {error}") from error

    def _read(self, value: Json) -> tuple[Serving, Mapping[str, float]]:
        document = object_(value)
        body = object_(document["body"])
        if document["digest"] != canonical.digest(body):
            raise ValueError("its content is not what its digest says")
        if (body["format"], body["origin"]) != (FORMAT, _origin(self.url, self.environment)):
            raise ValueError("it is the last good config of another store or environment")
        serving = Serving(
            environment=self.environment,
            deployments=tuple(Deployment.from_json(each) for each in list_(body["deployments"])),
            configs={digest: str(each).encode() for digest, each in object_(body["configs"]).items()},
            prices={digest: Price.from_json(each) for digest, each in object_(body["prices"]).items()},
        )
        return serving, _deadlines(object_(body.get("canaries", {})))


def _origin(url: str, environment: str) -> str:
    return hashlib.sha256(f"{url}\n{environment}".encode()).hexdigest()[:32]


def _left(snapshot: Snapshot) -> JsonObject:
    """When canaries end by themselves, in terms that a wall clock set back meanwhile does not change.

    Until the machine is started anew the monotonic clock is the same for all processes. After that, what was
    left when the file was written is the most.
    """
    now, boot = time.monotonic(), _boot()
    return {
        name: {
            "boot": boot,
            "deadline_ms": round(row.deadline * 1000),
            "left_ms": max(0, round((row.deadline - now) * 1000)),
        }
        for name, row in sorted(snapshot.rows.items())
        if row.deployment.candidate and math.isfinite(row.deadline)
    }


def _deadlines(canaries: JsonObject) -> dict[str, float]:
    now, boot = time.monotonic(), _boot()
    found: dict[str, float] = {}
    for name, value in canaries.items():
        each = object_(value)
        deadline_ms, left_ms = each["deadline_ms"], each["left_ms"]
        if not isinstance(deadline_ms, int) or not isinstance(left_ms, int):
            raise ValueError(f"the deadline of {name} is no number")
        found[name] = now + left_ms / 1000
        if boot and each["boot"] == boot:
            found[name] = min(found[name], deadline_ms / 1000)
    return found


def _boot() -> str:
    """Which start of this machine it is; empty where the machine does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
