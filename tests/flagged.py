"""Two versions of a config, released into a real store, for tests of flags."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from deploy_gates import runner
from deploy_gates.client import ConfigClient
from deploy_gates.core.canonical import JsonObject, spelled
from deploy_gates.store import Store, open_store
from deploy_gates.testing import POLICY, a_document, a_record

ENVIRONMENT = "development"
CONFIG = "ticket-triage"
PATIENCE_S = 20.0
"""Long enough for a busy machine; nobody waits for it where all is well."""

BASELINE: JsonObject = a_document(1) | {
    "parameters": {
        "temperature": 0.5,
        "top_p": 1,
        "max_completion_tokens": 120,
        "stop": ["END", "STOP"],
        "stream": False,
        "seed": None,
        "metadata": {"team": "support", "cost.center": "7", "": "nameless"},
    }
}
CANDIDATE: JsonObject = a_document(2) | {"parameters": {"temperature": 0.25, "top_p": 1, "stream": True}}


def release(store: Store, document: JsonObject, config: str = CONFIG, *, weight_bp: int | None = None) -> int:
    """Promote a document with all the evidence it takes, or serve it to a share; the revision."""
    digest = store.put_config(config, spelled(document))
    store.put_evidence(a_record(digest, config=config))
    moved = runner.promote(
        store,
        config=config,
        environment=ENVIRONMENT,
        digest=digest,
        policy=POLICY,
        actor="ada",
        reason="a test",
        weight_bp=weight_bp,
    )
    return moved.deployment.revision


@contextmanager
def a_store(url: str) -> Iterator[Store]:
    """The store at `url`, with its tables."""
    store = open_store(url, durable=False)
    try:
        store.upgrade()
        yield store
    finally:
        store.close()


def connect(url: str, **options: Any) -> ConfigClient:
    return ConfigClient(url, environment=ENVIRONMENT, **({"last_good": None} | options))


def released(client: ConfigClient, revision: int, config: str = CONFIG) -> bool:
    return client.wait_for(config, revision, PATIENCE_S)


def eventually(condition: Callable[[], Any]) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
