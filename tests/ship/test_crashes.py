"""Runners that are killed at every place there is, and one that sleeps while another takes over."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from road import CONFIG, Road
from runner_process import REFUSED, Runners, road_of

from deploy_gates import clock, runner, settings
from deploy_gates.core.release import Act, Promotion, State, Status
from deploy_gates.ship.carrying import MOVES, Carrier
from deploy_gates.ship.checkout import Checkout
from deploy_gates.store import Store, open_store
from project import Project
from sealed import seal

TTL_S = 0.6
LONG_S = 60.0
PATIENCE_S = 20.0
GOOD = (
    "before evidence",
    "after evidence",
    "before promote development",
    "after promote development",
    "before promote staging",
    "after promote staging",
    "before canary production",
    "after canary production",
    "before analysis production",
    "after analysis production",
    "before promote production",
    "after promote production",
    "before the conclusion",
)
BAD = (
    "after analysis production",
    "before rollback production",
    "after rollback production",
    "before the conclusion",
)
SMOKED = (
    "before smoke development",
    "after smoke development",
    "after promote staging",
    "before smoke staging",
    "after smoke staging",
)
MISSED = (
    "after smoke development",
    "before rollback development",
    "after rollback development",
    "before the conclusion",
)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    made = open_store(store_url, durable=False)
    made.upgrade()
    yield made
    made.close()


@pytest.fixture
def road(store: Store) -> Road:
    """Version 1 is everywhere, and users are there."""
    made = Road(store=store)
    assert made.ship(1).state is State.SHIPPED
    made.at += timedelta(seconds=60)
    made.serve()
    return made


@pytest.fixture
def runners(store_url: str, store: Store) -> Iterator[Runners]:
    with Runners(store_url) as made:
        yield made


def killed_everywhere(
    store: Store, runners: Runners, id: int, places: Sequence[str], **task: Any
) -> list[tuple[str, int, bool]]:
    """One runner after the other, each killed at the next place: how each of them ended, and whether by then
    the promotion had."""
    found = []
    for place in places:
        status = runners.wait(runners.start(id, place=place, ttl_s=LONG_S, **task))
        promotion = store.promotion(id)
        assert promotion is not None
        found.append((place, status, promotion.state.is_final))
        store.let_go(promotion)  # as if the lease of the dead had run out
    return found


def everywhere(places: Sequence[str]) -> list[tuple[str, int, bool]]:
    """Each came to its place, and nothing had ended by then."""
    return [(place, -signal.SIGKILL, False) for place in places]


def wait_for_the_end_of_the_lease(store: Store, id: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (found := store.promotion(id)) and found.lease_until and found.lease_until > clock.now():
        assert time.monotonic() < deadline, "the lease does not end"
        time.sleep(0.02)


def wrong(store: Store, id: int, config: str) -> list[str]:
    """What a crash has spoilt: rows of the journal or of the history that are missing, twice, or edited."""
    found = store.promotion(id)
    assert found is not None
    numbers = [each.number for each in found.journal]
    problems = [] if numbers == list(range(1, len(numbers) + 1)) else [f"the journal has gaps: {numbers}"]
    for here in store.deployments(config=config):
        problems += runner.problems(store, here)
        keys = Counter(each.key for each in store.history(config, here.environment))
        problems += [f"{key} was made {count} times" for key, count in keys.items() if count > 1]
        for event in store.history(config, here.environment):
            if event.key.startswith(f"promotion-{id}/"):
                act = Act(event.key.partition("/")[2])
                if found.last(act, here.environment) is None:
                    problems.append(f"nobody has said r{event.revision} in {here.environment}")
    for entry in found.journal:
        if entry.act in MOVES and entry.status is Status.DONE:
            events = store.history(config, entry.environment)
            if entry.data["to"] not in [each.revision for each in events]:
                problems.append(f"{entry.act} {entry.environment} was said, and never made")
    return problems


# --- Killed --------------------------------------------------------------------------------------


def test_a_good_release_arrives_though_its_runner_is_killed_everywhere(road: Road, runners: Runners) -> None:
    proposed = road.propose(2)

    killed = killed_everywhere(road.store, runners, proposed.id, GOOD, road=road_of(road))
    ended = road.carried(proposed.id)

    digest = proposed.release.digest
    assert killed == everywhere(GOOD)
    assert (ended.state, ended.conclusion) == (State.SHIPPED, f"production serves {digest[:7]}")
    assert [road.serves(each) for each in ("development", "staging", "production")] == [(digest, "")] * 3
    assert wrong(road.store, proposed.id, CONFIG) == []


@pytest.mark.parametrize(("failing", "said"), [(0.2, "errors rose"), (0.9, "errors reached the hard limit")])
def test_a_bad_release_is_taken_back_though_its_runner_is_killed_everywhere(
    road: Road, runners: Runners, failing: float, said: str
) -> None:
    road.failing, before = failing, road.serves()
    proposed = road.propose(2)

    killed = killed_everywhere(road.store, runners, proposed.id, BAD, road=road_of(road))
    ended = road.carried(proposed.id)

    assert killed == everywhere(BAD)
    assert ended.state is State.ROLLED_BACK
    assert said in ended.conclusion
    assert road.serves() == before
    assert wrong(road.store, proposed.id, CONFIG) == []


# --- Killed while smoke cases are asked ----------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "project", cases=4)
    made.record()
    return made


def to_staging(store: Store, project: Project) -> tuple[Carrier, Promotion]:
    """Somebody with the repository, and a promotion of what is in it."""
    checkout = Checkout(root=project.root, settled=settings.load(project.root))
    proposed = checkout.propose(store, "triage", actor="ada", until="staging")
    assert proposed is not None
    return Carrier(store=store, owner=runner.owner("next"), checkout=checkout), proposed


def test_smoke_cases_are_asked_again_where_nobody_has_said_what_they_found(
    store: Store, project: Project, runners: Runners
) -> None:
    digest = seal(project)
    carrier, proposed = to_staging(store, project)

    killed = killed_everywhere(store, runners, proposed.id, SMOKED, root=str(project.root))
    *_, told = carrier.ship(proposed.id)

    assert killed == everywhere(SMOKED)
    assert told.promotion.state is State.SHIPPED
    assert [each.baseline for each in store.deployments(config="triage") if each.revision] == [digest] * 2
    assert wrong(store, proposed.id, "triage") == []


def test_a_missed_smoke_case_is_taken_back_though_its_runner_is_killed_everywhere(
    store: Store, project: Project, runners: Runners
) -> None:
    first = seal(project)
    carrier, proposed = to_staging(store, project)
    list(carrier.ship(proposed.id))
    project.edit("Sort the ticket.", "Sort the ticket somehow.")
    project.record(lambda inputs, number: {"category": "technical"})
    seal(project)
    carrier, proposed = to_staging(store, project)

    killed = killed_everywhere(store, runners, proposed.id, MISSED, root=str(project.root))
    *_, told = carrier.ship(proposed.id)

    assert killed == everywhere(MISSED)
    assert told.promotion.state is State.ROLLED_BACK
    assert "smoke cases missed in development" in told.promotion.conclusion
    assert [each.baseline for each in store.deployments(config="triage") if each.revision] == [first] * 2
    assert wrong(store, proposed.id, "triage") == []


# --- Asleep --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["before canary production", "before promote production"])
def test_a_runner_that_wakes_after_another_has_taken_over_changes_nothing(
    road: Road, runners: Runners, place: str
) -> None:
    proposed = road.propose(2)
    pid = runners.start(proposed.id, place=place, signal=signal.SIGSTOP, ttl_s=TTL_S, road=road_of(road))
    runners.wait_until_stopped(pid)
    wait_for_the_end_of_the_lease(road.store, proposed.id)
    ended = road.carried(proposed.id)
    runner.rollback(road.store, config=CONFIG, environment="production", actor="lin", reason="not today")
    before = [road.serves(), road.store.history(CONFIG, "production")]

    os.kill(pid, signal.SIGCONT)
    status = runners.wait(pid)

    assert status == REFUSED
    assert ended.state is State.SHIPPED
    assert road.store.promotion(proposed.id) == ended
    assert [road.serves(), road.store.history(CONFIG, "production")] == before
    assert wrong(road.store, proposed.id, CONFIG) == []
