"""What a change is compared with: a commit, or what an environment serves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from deploy_gates import workspace
from deploy_gates.core import parsing
from deploy_gates.core.canonical import restored, short
from deploy_gates.core.config import ENVIRONMENTS, ModelConfig
from deploy_gates.core.errors import SettingsError
from deploy_gates.settings import Settings
from deploy_gates.store import DEFAULT_URL, STORE_VARIABLE, open_store
from deploy_gates.workspace import Changes

PREFIX = "store:"


def changes(
    root: Path, settled: Settings, *, base: str = "", names: Sequence[str] = (), gate_all: bool = False
) -> Changes:
    """What changed since `base`: a commit, or `store:production` for what production serves."""
    if not base.startswith(PREFIX):
        return workspace.changes(root, settled, base=base, names=names, gate_all=gate_all)
    environment = base.removeprefix(PREFIX)
    if environment not in ENVIRONMENTS:
        raise SettingsError(
            f"the base {base} names no environment", hint=", ".join(PREFIX + each for each in ENVIRONMENTS)
        )
    served = _served(root, settled, environment)
    return workspace.changes_since(
        root, settled, served, base=environment, names=names, gate_all=gate_all or settled.gate_all
    )


def _served(root: Path, settled: Settings, environment: str) -> dict[str, ModelConfig]:
    """What everybody gets there who is in no canary, by name. `StoreError` if the store cannot be read."""
    url = os.environ.get(STORE_VARIABLE, "") or settled.store or DEFAULT_URL
    store = open_store(url, root=root)
    try:
        store.check()
        serving = store.serving(environment)
    finally:
        store.close()
    made = {}
    for each in serving.deployments:
        try:
            made[each.config] = parsing.config(restored(serving.configs[each.baseline]), each.config)
        except (KeyError, ValueError) as error:
            raise SettingsError(
                f"{environment} serves {each.config} {short(each.baseline)}, which cannot be read: {error}",
                hint="compare with a commit",
            ) from error
    return made
