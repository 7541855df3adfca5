"""What tests of several kinds share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import engines

with contextlib.suppress(ImportError):  # the gates run where nothing is installed for the tests
    from hypothesis import settings

    # How long an example takes says nothing: whichever comes first in its process loads what all others use.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a real PostgreSQL, one for the session."""
    with engines.postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store without tables, on each engine."""
    if request.param == "sqlite":
        return engines.fresh_sqlite(tmp_path)
    return engines.fresh_postgres(request.getfixturevalue("postgres"))
