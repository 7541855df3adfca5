"""A store of each engine, with its tables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy_gates.store import Store, open_store


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    made = open_store(store_url)
    made.upgrade()
    yield made
    made.close()
