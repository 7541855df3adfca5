"""Stores of both engines, services, and promotions that go through the store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from outside import Service, listening

from deploy_gates.store import Store, open_store


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    made = open_store(store_url)
    made.upgrade()
    yield made
    made.close()


@pytest.fixture
def receiver() -> Iterator[Service]:
    with listening(Service()) as service:
        yield service


@pytest.fixture
def other() -> Iterator[Service]:
    with listening(Service()) as service:
        yield service
