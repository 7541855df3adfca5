"""Processes that are killed in the midst of random transactions, and asked again: nothing is lost or made."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deploy_gates.store import open_store

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))


@pytest.mark.timeout(600)
def test_no_credit_is_lost_or_made_by_processes_that_are_killed(store_url: str) -> None:
    import credits as benchmark  # type: ignore[import-not-found,unused-ignore]

    store = open_store(store_url)
    store.upgrade()
    store.close()

    came = benchmark.campaign(store_url, 3_000, workers=3, kills=4)

    assert came.kills >= 1
    assert (came.lost, came.made, came.below, came.breaks) == (0, 0, 0, ())
