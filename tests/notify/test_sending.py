"""From the record to whoever is told: at least once, in order, and without holding anybody up."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
from journeys import COMMIT
from outside import Asked, GitHub, Service, listening
from telling import SECRET, concluded, moved, proposed, shipped, telling_to, until

from deploy_gates import clock, notify, runner
from deploy_gates.core.delivery import Delivery, Fate
from deploy_gates.core.errors import StoreUnavailable
from deploy_gates.notify import sending
from deploy_gates.store import Store, open_store
from deploy_gates.testing import a_release

HERE = Path(__file__).parent


def an_hour_ago() -> datetime:
    """Whoever fails now is due again at once."""
    return clock.now() - timedelta(hours=1)


def kinds(service: Service) -> list[str]:
    return [each.json["type"].removeprefix("io.deploy-gates.") for each in service.asked]


def ids(asked: list[Asked]) -> list[str]:
    return [each.headers["webhook-id"] for each in asked]


def states(store: Store) -> dict[str, int]:
    found = store.deliveries(limit=1_000)
    return {each.value: sum(one.state is each for one in found) for each in Fate}


# --- Relaying -----------------------------------------------------------------------------------


def test_a_release_is_told_of_in_order_however_often_it_is_relayed(store: Store, receiver: Service) -> None:
    telling = telling_to(receiver.url)
    promotion = proposed(store)
    notify.relay(store, telling)
    promotion = moved(store, promotion, "development")
    notify.relay(store, telling)
    notify.relay(store, telling)
    for environment in ("staging", "production"):
        promotion = moved(store, promotion, environment)
    concluded(store, promotion)
    notify.relay(store, telling)

    sent = notify.deliver(store, telling)

    expected = ["proposed", "moved", "moved", "moved", "shipped"]
    assert kinds(receiver) == [f"promotion.{each}" for each in expected]
    assert sent == len(expected)
    assert notify.relay(store, telling) == 0


def test_what_arrives_is_signed_and_says_what_was_moved_by_which_evidence(
    store: Store, receiver: Service
) -> None:
    telling = telling_to(receiver.url, dashboard_url="https://gates.acme.dev")
    promotion = shipped(store)

    notify.relay(store, telling)
    notify.deliver(store, telling)

    asked = receiver.asked[3]
    event = standardwebhooks.Webhook(SECRET).verify(asked.body, dict(asked.headers))
    assert event["data"]["environment"] == "production"
    assert event["data"]["revision"] == store.deployments("production", "ticket-triage")[0].revision
    assert event["data"]["url"] == f"https://gates.acme.dev/promotions/{promotion.id}"
    assert notify.arrived(store, telling, promotion) == {
        ("webhook", f"promotion.{each}") for each in ("proposed", "moved", "shipped")
    }


def test_a_move_by_hand_is_told_of_and_those_of_a_promotion_are_not_told_twice(
    store: Store, receiver: Service
) -> None:
    telling = telling_to(receiver.url)
    shipped(store, 1, commit="c" * 40)
    shipped(store, 2)
    back = a_release(store, 1)
    runner.rollback(
        store, config="ticket-triage", environment="production", actor="grace", reason="refunds go astray"
    )

    notify.relay(store, telling)
    notify.deliver(store, telling)

    by_hand = [each.json for each in receiver.asked if each.json["type"].endswith("deployment.moved")]
    (event,) = by_hand
    assert (event["data"]["actor"], event["data"]["move"]) == ("grace", "rollback")
    assert (event["data"]["digest"], event["data"]["commit"]) == (back, "c" * 40)


def test_without_channels_nothing_is_taken_from_those_who_have_some(store: Store, receiver: Service) -> None:
    proposed(store)

    assert notify.relay(store, telling_to()) == 0
    notify.relay(store, telling_to(receiver.url))
    notify.deliver(store, telling_to(receiver.url))

    assert kinds(receiver) == ["promotion.proposed"]


def test_what_is_older_than_a_day_is_history(
    store: Store, receiver: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy_gates.notify.relaying.NEWS_MAX", timedelta(seconds=-1))
    shipped(store, 1)
    shipped(store, 2)
    runner.rollback(store, config="ticket-triage", environment="production", actor="x", reason="y")

    relayed = notify.relay(store, telling_to(receiver.url))

    assert relayed > 0
    assert store.deliveries() == ()
    assert store.outbox() == ()


# --- Trying again -------------------------------------------------------------------------------


def test_a_receiver_that_stumbles_is_told_later_and_in_order(store: Store, receiver: Service) -> None:
    telling = telling_to(receiver.url)
    shipped(store)
    notify.relay(store, telling)
    receiver.failing = [(500, {}, None), (503, {}, None)]

    sent = notify.deliver(store, telling, now=an_hour_ago)

    assert sent == 7
    assert [each.removeprefix("promotion.") for each in kinds(receiver)] == [
        *["proposed"] * 3,
        *["moved"] * 3,
        "shipped",
    ]
    assert len(set(ids(receiver.asked))) == 5
    assert states(store) == {"due": 0, "delivered": 5, "dead": 0}


@pytest.mark.parametrize(
    ("attempts", "retry_after_s", "jitter", "pause_s"),
    [(1, 0, 1, 5), (1, 0, 0, 2.5), (3, 0, 1, 45), (9, 0, 1, 3_600), (500, 0, 1, 3_600), (1, 60, 1, 60)],
)
def test_pauses_grow_and_what_the_other_side_wants_is_kept(
    attempts: int, retry_after_s: float, jitter: float, pause_s: float
) -> None:
    assert sending.pause_s(attempts, retry_after_s, jitter) == pause_s


def test_a_failed_try_is_not_made_again_before_its_time(store: Store, receiver: Service) -> None:
    telling = telling_to(receiver.url)
    proposed(store)
    notify.relay(store, telling)
    receiver.failing = [(429, {"retry-after": "600"}, None)]

    notify.deliver(store, telling)
    notify.deliver(store, telling)

    assert len(receiver.asked) == 1
    (left,) = store.deliveries()
    assert left.state is Fate.DUE
    assert left.attempts == 1
    assert timedelta(seconds=590) < left.next_at - clock.now() <= timedelta(seconds=600)
    assert left.error == "127.0.0.1 answers 429"


def test_who_always_fails_ends_among_the_dead_letters_until_somebody_asks(
    store: Store, receiver: Service
) -> None:
    telling = telling_to(receiver.url, attempts=4)
    proposed(store)
    notify.relay(store, telling)
    receiver.failing = [(500, {}, {"message": "out of order"})] * 4
    notify.deliver(store, telling, now=an_hour_ago)
    (dead,) = store.deliveries(state="dead")

    assert len(receiver.asked) == dead.attempts == 4
    assert dead.error == "127.0.0.1 answers 500: out of order"
    assert notify.deliver(store, telling) == 0

    assert notify.again(store, "nobody") is None
    assert notify.again(store, dead.id) is not None
    notify.deliver(store, telling)

    assert states(store) == {"due": 0, "delivered": 1, "dead": 0}
    assert len(set(ids(receiver.asked))) == 1


def test_a_dead_letter_lets_those_after_it_pass(store: Store, receiver: Service) -> None:
    telling = telling_to(receiver.url)
    shipped(store)
    notify.relay(store, telling)
    receiver.failing = [(410, {}, None)]

    notify.deliver(store, telling)

    assert states(store) == {"due": 0, "delivered": 4, "dead": 1}


def test_a_secret_that_is_missing_here_leaves_it_to_who_has_it(store: Store, receiver: Service) -> None:
    proposed(store)
    notify.relay(store, telling_to(receiver.url))

    (due,) = store.due()
    poor = sending.Courier(store=store, telling=telling_to(receiver.url, environ={}), now=an_hour_ago)
    poor.carry(due)
    (left,) = store.deliveries()
    assert (left.state, left.attempts, left.error) == (Fate.DUE, 0, "$HOOK_SECRET is not set here")
    notify.deliver(store, telling_to(receiver.url))

    assert states(store) == {"due": 0, "delivered": 1, "dead": 0}


def test_a_secret_that_nobody_has_for_a_day_is_a_dead_letter(store: Store, receiver: Service) -> None:
    proposed(store)
    notify.relay(store, telling_to(receiver.url))

    notify.deliver(
        store,
        telling_to(receiver.url, environ={}),
        now=lambda: clock.now() + sending.LACKING_MAX + timedelta(minutes=1),
    )

    assert states(store) == {"due": 0, "delivered": 0, "dead": 1}


class _Broken:
    """A sender with a mistake in it."""

    def send(self, delivery: Delivery, earlier: Any) -> str:
        raise KeyError(SECRET)


def test_a_mistake_in_a_channel_is_a_failed_try_and_shows_no_secret(store: Store, receiver: Service) -> None:
    telling = telling_to(receiver.url, receiver.url)
    broken = replace(telling.channels[0], sender=_Broken())
    proposed(store)
    notify.relay(store, telling)

    notify.deliver(store, replace(telling, channels=(broken, telling.channels[1])))

    errors = {each.channel: (each.state, each.error) for each in store.deliveries()}
    assert errors == {
        "hook-0": (Fate.DUE, "sending it broke off: KeyError"),
        "hook-1": (Fate.DELIVERED, ""),
    }


def test_no_secret_is_ever_in_the_store(store: Store, receiver: Service) -> None:
    telling = telling_to(f"{receiver.url}/s3cr3t-path")
    shipped(store)
    notify.relay(store, telling)
    receiver.failing = [(500, {}, {"message": f"bad signature for {SECRET}"})]

    notify.deliver(store, telling, now=an_hour_ago)

    kept = json.dumps([each.to_json() for each in store.deliveries()])
    assert "s3cr3t-path" not in kept
    assert SECRET.removeprefix("whsec_") not in kept


# --- Many at once, and none ---------------------------------------------------------------------


def test_two_notifiers_at_once_send_everything_once(
    store: Store, store_url: str, receiver: Service, other: Service
) -> None:
    telling = telling_to(receiver.url, other.url)
    for number in range(1, 6):
        shipped(store, number, config=f"config-{number}")
    second = open_store(store_url)

    with notify.Notifier(store, telling) as one, notify.Notifier(second, telling) as two:
        until(lambda: states(store)["delivered"] == 50, f"{states(store)}")
        assert one.flush(5) + two.flush(5) == 0
    second.close()

    for service in (receiver, other):
        assert len(service.asked) == len(set(ids(service.asked))) == 25


def test_a_process_killed_before_it_could_say_so_has_it_sent_again_under_the_same_id(
    store: Store, store_url: str, receiver: Service
) -> None:
    proposed(store)
    receiver.hangs.set()
    process = subprocess.Popen(
        [sys.executable, str(HERE / "sender.py"), store_url, receiver.url, "1"], stdout=subprocess.PIPE
    )
    receiver.wait_for(1)

    process.send_signal(signal.SIGKILL)
    process.communicate()
    receiver.hangs.clear()
    receiver.let_go.set()
    telling = telling_to(receiver.url)
    assert states(store) == {"due": 1, "delivered": 0, "dead": 0}
    until(lambda: notify.deliver(store, telling), "its claim never ends")

    first, second = ids(receiver.asked)
    assert first == second
    assert states(store) == {"due": 0, "delivered": 1, "dead": 0}


def test_nobody_is_asked_while_nothing_is_due(store: Store, receiver: Service) -> None:
    with notify.Notifier(store, telling_to(receiver.url)) as notifier:
        assert notifier.flush(5) == 0

    assert receiver.asked == []


def test_without_channels_a_notifier_is_no_thread(store: Store) -> None:
    before = threading.active_count()

    with notify.Notifier(store, telling_to()) as notifier:
        assert threading.active_count() == before
        assert notifier.flush(5) == 0


@contextmanager
def hanging(store: Store, *others: Service) -> Iterator[tuple[Service, notify.Notifier]]:
    """A notifier whose first channel hangs."""
    with listening(Service()) as stuck:
        stuck.hangs.set()
        urls = [stuck.url, *(each.url for each in others)]
        with notify.Notifier(store, telling_to(*urls)) as notifier:
            try:
                yield stuck, notifier
            finally:
                stuck.let_go.set()


def test_a_rollback_does_not_wait_for_a_channel_that_hangs(store: Store, record_property: Any) -> None:
    shipped(store, 1)
    shipped(store, 2)

    with hanging(store) as (stuck, notifier):
        stuck.wait_for(1)
        began = time.monotonic()
        runner.rollback(
            store, config="ticket-triage", environment="production", actor="grace", reason="refunds"
        )
        notifier.wake()
        took_s = time.monotonic() - began
        still_hangs = not stuck.let_go.is_set()

    record_property("rollback_s", took_s)
    assert still_hangs
    assert took_s < 0.5


def test_a_channel_that_hangs_holds_up_no_other(store: Store, receiver: Service) -> None:
    with hanging(store, receiver) as (stuck, notifier):
        shipped(store)
        notifier.wake()
        stuck.wait_for(1)
        receiver.wait_for(5, 5)
        left = notifier.flush(0.2)

    assert len(kinds(receiver)) == 5
    assert left == 5


def test_a_notifier_outlives_a_store_that_is_away(store: Store, receiver: Service, caplog: Any) -> None:
    class Away:
        """The store, until it is not there."""

        is_away = True

        def __getattr__(self, name: str) -> Any:
            if self.is_away:
                raise StoreUnavailable("the store is away")
            return getattr(store, name)

    away = Away()
    proposed(store)

    with notify.Notifier(away, telling_to(receiver.url)) as notifier:  # type: ignore[arg-type]
        assert notifier.flush(5) == 0
        assert "nobody can be told just now: the store is away" in caplog.text
        away.is_away = False
        receiver.wait_for(1)


def test_closing_waits_for_nobody(store: Store) -> None:
    shipped(store)

    with hanging(store) as (stuck, notifier):
        stuck.wait_for(1)
        began = time.monotonic()
        notifier.close()
        took_s = time.monotonic() - began

    assert took_s < 5


def test_what_a_slow_channel_has_no_time_for_is_given_back(store: Store, receiver: Service) -> None:
    telling = telling_to(receiver.url)
    proposed(store, 1, config="one")
    proposed(store, 2, config="two")
    notify.relay(store, telling)
    claimed = store.due()
    long_ago = time.monotonic() - 30.0
    lanes = sending.Lanes(sending.Courier(store=store, telling=telling))

    lanes.put(claimed, long_ago)
    assert lanes.wait(5)
    lanes.close(1)

    assert receiver.asked == []
    assert {each.id for each in store.due()} == {each.id for each in claimed}


def test_a_flush_ends_when_everything_was_sent_and_not_after_the_first_batch(
    store: Store, receiver: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy_gates.notify.background.BATCH_MAX", 1)
    for number in range(1, 7):
        proposed(store, number, config=f"config-{number}")

    with notify.Notifier(store, telling_to(receiver.url)) as notifier:
        left = notifier.flush(20)

    assert left == 0
    assert len(receiver.asked) == 6


def test_the_comment_on_a_pull_request_tells_the_way_in_its_order(store: Store) -> None:
    with listening(GitHub(pulls={COMMIT: [7]})) as hub:
        table: Any = {
            "channels": {"hub": {"kind": "github", "repository": "acme/triage", "api_url": hub.url}}
        }
        telling = notify.Telling.of(table, {"GITHUB_TOKEN": hub.token})
        promotion = proposed(store, commit=COMMIT)
        for environment in promotion.environments:
            promotion = moved(store, promotion, environment)
            notify.relay(store, telling)
            notify.deliver(store, telling)
        concluded(store, promotion)
        notify.relay(store, telling)
        notify.deliver(store, telling)

    (comment,) = hub.comments
    rows = [line.split(" | ")[1] for line in comment["body"].splitlines() if line.startswith("| ")][2:]
    assert rows == ["", "development", "staging", "production", "production"]
    assert hub.commits[COMMIT][-1]["state"] == "success"
    assert hub.problems == []
