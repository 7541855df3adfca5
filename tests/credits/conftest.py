"""A ledger on each engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy_gates.store import open_store
from deploy_gates.store.ledger import Ledger, ledger_of


@pytest.fixture
def ledger(store_url: str) -> Iterator[Ledger]:
    store = open_store(store_url)
    store.upgrade()
    made = ledger_of(store)
    yield made
    made.close()
