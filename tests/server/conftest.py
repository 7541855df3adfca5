"""A store, a server on it, and a browser that looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Window, browsing, window
from playwright.sync_api import Browser
from serving import Server, serving

import engines
from deploy_gates.store import Store, open_store


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "sqlite":
        made = open_store(engines.fresh_sqlite(tmp_path))
    else:
        made = open_store(engines.fresh_postgres(request.getfixturevalue("postgres")))
    made.upgrade()
    yield made
    made.close()


@pytest.fixture
def server(store: Store) -> Iterator[Server]:
    with serving(store.url, "", "--no-carry") as made:
        yield made


@pytest.fixture
def seen(browser: Browser, server: Server) -> Iterator[Window]:
    with window(browser, server.url) as made:
        yield made
