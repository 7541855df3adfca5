"""What became of calls: counted once, kept while the store is away, and never in anybody's way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseCompletedEvent
from releases import ENVIRONMENT, PRICE, Team, eventually, follows, team

from deploy_gates.client import ConfigClient, counting, outcomes
from deploy_gates.client.counting import USER_S, Began, Counting, End, Ended
from deploy_gates.client.outcomes import Call, Outcomes
from deploy_gates.client.served import Served
from deploy_gates.client.usage import usage_of
from deploy_gates.core.cost import Price, Usage
from deploy_gates.core.errors import StoreError, StoreUnavailable
from deploy_gates.core.tally import BIN_MS, METRICS_MAX, Arm, Tally, Unit, bucket_of
from deploy_gates.store import open_store
from deploy_gates.testing import NOW, a_config

CALL_MAX_US = 25.0
"""About 2 µs where the machine has nothing else to do."""
START_MS = int(NOW.timestamp() * 1000) // BIN_MS * BIN_MS
USAGE = Usage(input_tokens=1_000, output_tokens=200, cached_input_tokens=400, reasoning_tokens=50)


def served(**fields: Any) -> Served:
    made: dict[str, Any] = {
        "name": "ticket-triage",
        "environment": "production",
        "revision": 42,
        "arm": Arm.BASELINE,
        "digest": "0" * 64,
        "config": a_config(),
        "price": Price(
            input_usd=Decimal(10), output_usd=Decimal(20), cached_input_usd=Decimal(1), source="a test"
        ),
    }
    return Served(**(made | fields))


@dataclass
class Clock:
    """Two clocks that go when they are told to."""

    at: datetime = NOW
    at_s: float = 1_000.0

    def go(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        self.at_s += seconds

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at_s


@dataclass
class Receiver:
    """The far end of `send`: keeps what it gets once by number, and refuses for as long as it is told to."""

    refuse_with: Exception | None = None
    kept: dict[int, Tally] = field(default_factory=dict)
    batches: list[tuple[int, tuple[Tally, ...]]] = field(default_factory=list)

    def __call__(self, first: int, tallies: Sequence[Tally]) -> None:
        self.batches.append((first, tuple(tallies)))
        if self.refuse_with is not None:
            raise self.refuse_with
        for number, each in enumerate(tallies, start=first):
            read = Tally.from_json(json.loads(json.dumps(each.to_json())))
            assert self.kept.setdefault(number, read) == read, "the number was given to another tally"

    def sums(self, unit: Unit = Unit.REQUEST) -> dict[tuple[Any, ...], Tally]:
        return summed(each for each in self.kept.values() if each.unit is unit)

    def only(self, unit: Unit = Unit.REQUEST) -> Tally:
        (tally,) = self.sums(unit).values()
        return tally


def summed(tallies: Iterable[Tally]) -> dict[tuple[Any, ...], Tally]:
    sums: dict[tuple[Any, ...], Tally] = {}
    for each in tallies:
        sums[each.key] = sums[each.key] + each if each.key in sums else each
    return sums


def total(tallies: Iterable[Tally], what: Callable[[Tally], int]) -> int:
    return sum(what(each) for each in tallies)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def measuring(receiver: Receiver, clock: Clock) -> Iterator[Outcomes]:
    made = Outcomes(receiver, now=clock.now, monotonic=clock.monotonic)
    yield made
    made.close(0.2)


@pytest.fixture
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "RETRY_MAX_S", 0.001)
    monkeypatch.setattr(outcomes, "COUNT_EVERY_S", 0.001)
    monkeypatch.setattr(outcomes, "SEND_EVERY_S", 0.001)


# --- How calls end --------------------------------------------------------------------------------


def test_a_call_counts_in_the_five_seconds_in_which_it_began(
    measuring: Outcomes, receiver: Receiver, clock: Clock
) -> None:
    with measuring.begin(served(), None):
        clock.go(7.25)

    assert measuring.flush(5)
    tally = receiver.only()
    assert (tally.config, tally.environment, tally.revision) == ("ticket-triage", "production", 42)
    assert (tally.arm, tally.start_ms) == (Arm.BASELINE, START_MS)
    assert (tally.started, tally.finished, tally.errors, tally.dropped) == (1, 1, 0, 0)
    assert (tally.latency_s.total, dict(tally.latency_s.counts)) == (7.25, {bucket_of(7.25): 1})
    assert tally.cost_usd.n == 0


def test_an_exception_is_an_error_and_goes_its_way_untouched(measuring: Outcomes, receiver: Receiver) -> None:
    raised = ValueError("nothing of ours")

    with pytest.raises(ValueError) as caught, measuring.begin(served(), None):
        raise raised

    assert caught.value is raised
    assert raised.__cause__ is raised.__context__ is None
    assert measuring.flush(5)
    tally = receiver.only()
    assert (tally.started, tally.finished, tally.errors, tally.latency_s.n) == (1, 1, 1, 0)


def test_a_call_can_fail_without_an_exception(measuring: Outcomes, receiver: Receiver) -> None:
    with measuring.begin(served(), None) as call:
        call.fail("the answer was empty")

    assert measuring.flush(5)
    assert (receiver.only().finished, receiver.only().errors, receiver.only().latency_s.n) == (1, 1, 0)


@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt, GeneratorExit, SystemExit])
def test_a_call_that_the_caller_gives_up_ends_neither_well_nor_badly(
    measuring: Outcomes, receiver: Receiver, kind: type[BaseException]
) -> None:
    with pytest.raises(kind), measuring.begin(served(), None):
        raise kind

    assert measuring.flush(5)
    tally = receiver.only()
    assert (tally.started, tally.finished, tally.errors, tally.latency_s.n) == (1, 1, 0, 0)


def test_a_call_that_never_ends_has_begun(measuring: Outcomes, receiver: Receiver) -> None:
    call = measuring.begin(served(), None)

    call.__enter__()

    assert measuring.flush(5)
    assert (receiver.only().started, receiver.only().finished) == (1, 0)


def test_async_calls_are_measured_as_well_and_a_timeout_within_is_an_error(
    measuring: Outcomes, receiver: Receiver
) -> None:
    async def serve() -> None:
        async with measuring.begin(served(), None) as call:
            call.record(USAGE)
        with pytest.raises(TimeoutError):
            async with measuring.begin(served(), None), asyncio.timeout(0):
                await asyncio.Event().wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(hang(), 0.001)

    async def hang() -> None:
        async with measuring.begin(served(), None):
            await asyncio.Event().wait()

    asyncio.run(serve())

    assert measuring.flush(5)
    tally = receiver.only()
    assert (tally.started, tally.finished, tally.errors, tally.latency_s.n) == (3, 3, 1, 1)


def test_a_call_used_again_is_another_call(measuring: Outcomes, receiver: Receiver) -> None:
    call = measuring.begin(served(), None)

    with call:
        call.record(USAGE)
        call.fail()
    with call:
        pass

    assert measuring.flush(5)
    tally = receiver.only()
    assert (tally.started, tally.finished, tally.errors, tally.cost_usd.n) == (2, 2, 1, 1)


def test_what_is_done_with_a_call_outside_of_its_block_is_ignored(
    measuring: Outcomes, receiver: Receiver
) -> None:
    call = measuring.begin(served(), None)

    misused(call)
    with call:
        pass
    misused(call)

    assert measuring.flush(5)
    tally = receiver.only()
    assert (tally.started, tally.finished, tally.errors, tally.cost_usd.n, tally.metrics) == (1, 1, 0, 0, {})


def misused(call: Call) -> None:
    call.record(USAGE)
    call.score("helpful", True)
    call.fail()
    call.__exit__(None, None, None)


# --- What calls cost ------------------------------------------------------------------------------

CHAT_USAGE = {
    "prompt_tokens": 1_000,
    "completion_tokens": 200,
    "total_tokens": 1_200,
    "prompt_tokens_details": {"cached_tokens": 400},
    "completion_tokens_details": {"reasoning_tokens": 50},
}
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4.1-mini",
    "choices": [],
    "usage": CHAT_USAGE,
}
CHUNK = CHAT | {"object": "chat.completion.chunk"}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "gpt-4.1-mini",
    "output": [],
    "parallel_tool_calls": False,
    "tool_choice": "auto",
    "tools": [],
    "usage": {
        "input_tokens": 1_000,
        "output_tokens": 200,
        "total_tokens": 1_200,
        "input_tokens_details": {"cached_tokens": 400, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 50},
    },
}
COMPLETED = {"type": "response.completed", "sequence_number": 9, "response": RESPONSE}
ANSWERS: dict[str, object] = {
    "a chat completion": ChatCompletion.model_validate(CHAT),
    "the last chunk of a stream": ChatCompletionChunk.model_validate(CHUNK),
    "a response": Response.model_validate(RESPONSE),
    "the last event of a stream of responses": ResponseCompletedEvent.model_validate(COMPLETED),
    "a dictionary of a chat completion": CHAT,
    "a dictionary of a response": RESPONSE,
    "a dictionary of an event": COMPLETED,
    "the usage of a chat completion": ChatCompletion.model_validate(CHAT).usage,
    "our own": USAGE,
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_usage_is_read_and_priced(measuring: Outcomes, receiver: Receiver, answer: object) -> None:
    with measuring.begin(served(), None) as call:
        call.record(answer)

    assert usage_of(answer) == USAGE
    assert measuring.flush(5)
    usd = (600 * 10 + 400 * 1 + 200 * 20) / 1_000_000
    assert receiver.only().cost_usd.total == pytest.approx(usd)
    assert dict(receiver.only().cost_usd.counts) == {bucket_of(usd): 1}


class Explosive:
    """An answer, or a score, that cannot be looked at."""

    @property
    def usage(self) -> Usage:
        raise RuntimeError("no")

    def __float__(self) -> float:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "text",
        b"bytes",
        7,
        [],
        {},
        object(),
        Explosive(),
        {"usage": None},
        {"usage": "many"},
        {"usage": {"prompt_tokens": "7", "completion_tokens": 1}},
        {"usage": {"prompt_tokens": -7, "completion_tokens": 1}},
        {"usage": {"prompt_tokens": True, "completion_tokens": 1}},
        {"usage": {"prompt_tokens": 10**400, "completion_tokens": 1}},
        {"usage": {"prompt_tokens": 7}},
        {"response": {"usage": []}},
    ],
    ids=lambda answer: re.sub(r" at 0x\w+", "", repr(answer)),  # the same in every process
)
def test_an_answer_without_usage_costs_nothing_that_is_known(
    measuring: Outcomes, receiver: Receiver, answer: object
) -> None:
    with measuring.begin(served(), None) as call:
        call.record(answer)

    assert measuring.flush(5)
    assert (receiver.only().cost_usd.n, receiver.only().latency_s.n) == (0, 1)


def test_more_cached_than_sent_is_all_that_was_sent() -> None:
    stated = {"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 99}}

    assert usage_of({"usage": stated}) == Usage(input_tokens=10, output_tokens=1, cached_input_tokens=10)


def test_without_a_price_there_is_no_cost(measuring: Outcomes, receiver: Receiver) -> None:
    with measuring.begin(served(price=None), None) as call:
        call.record(USAGE)

    assert measuring.flush(5)
    assert receiver.only().cost_usd.n == 0


def test_the_chunks_of_a_stream_are_one_answer_and_several_answers_add_up(
    measuring: Outcomes, receiver: Receiver
) -> None:
    def chunk(id: str, tokens: int) -> dict[str, Any]:
        return CHUNK | {"id": id, "usage": {"prompt_tokens": 0, "completion_tokens": tokens}}

    with measuring.begin(served(), None) as call:
        for tokens in (1, 2, 3):
            call.record(chunk("a", tokens))
        call.record(CHUNK | {"id": "a", "usage": None})
        call.record(chunk("b", 10))
        call.record(Usage(input_tokens=0, output_tokens=100))
        call.record(Usage(input_tokens=0, output_tokens=100))

    assert measuring.flush(5)
    assert receiver.only().cost_usd.n == 1
    assert receiver.only().cost_usd.total == pytest.approx((3 + 10 + 200) * 20 / 1_000_000)


# --- How good they were ---------------------------------------------------------------------------


def test_scores_are_counted_one_each_and_the_last_one_counts(measuring: Outcomes, receiver: Receiver) -> None:
    with measuring.begin(served(), None) as call:
        call.score("helpful", False)
        call.score("helpful", True)
        call.score("length", 0.5)
    with measuring.begin(served(), None) as call:
        call.score("helpful", False)

    assert measuring.flush(5)
    found = receiver.only().metrics
    assert (found["helpful"].n, found["helpful"].total) == (2, 1)
    assert (found["length"].n, found["length"].total) == (1, 0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400, None, "much", Explosive()], ids=range(6))
def test_a_score_that_is_no_number_is_ignored(measuring: Outcomes, receiver: Receiver, value: Any) -> None:
    with measuring.begin(served(), None) as call:
        call.score("helpful", value)
        call.score("", 1)
        call.score("x" * 1_000, 1)
        call.score(None, 1)  # type: ignore[arg-type]  # as a caller without types might

    assert measuring.flush(5)
    assert receiver.only().metrics == {}


def test_enormous_scores_and_too_many_metrics_leave_a_tally_that_can_be_read(
    measuring: Outcomes, receiver: Receiver
) -> None:
    for n in range(METRICS_MAX + 5):
        with measuring.begin(served(), None) as call:
            call.score("enormous", 1.7e308)
            call.score(f"metric {n}", -1e300)

    assert measuring.flush(5)
    tally = receiver.only()
    assert len(tally.metrics) == METRICS_MAX
    assert tally.metrics["enormous"].n == tally.finished == METRICS_MAX + 5


# --- In nobody's way ------------------------------------------------------------------------------


def test_a_call_costs_microseconds(measuring: Outcomes) -> None:
    arm, best_s = served(), math.inf

    for _ in range(20):
        began = time.perf_counter()
        for _ in range(500):
            with measuring.begin(arm, "ada"):
                pass
        best_s = min(best_s, (time.perf_counter() - began) / 500)

    assert best_s * 1e6 < CALL_MAX_US


def test_a_store_that_hangs_keeps_nobody_waiting(clock: Clock) -> None:
    hung, go_on = threading.Event(), threading.Event()

    def hang(first: int, tallies: Sequence[Tally]) -> None:
        hung.set()
        go_on.wait(30)

    measuring = Outcomes(hang, now=clock.now, monotonic=clock.monotonic)
    try:
        with measuring.begin(served(), None):
            pass
        assert not measuring.flush(0.05)
        assert hung.wait(5)

        began = time.monotonic()
        for _ in range(1_000):
            with measuring.begin(served(), None):
                pass
        calls_s = time.monotonic() - began
        is_flushed = measuring.flush(0.05)
        measuring.close(0.1)
        took_s = time.monotonic() - began

        assert calls_s < took_s < 5  # whoever waited for the store would wait for thirty seconds
        assert not is_flushed
    finally:
        go_on.set()
        thread_ended(measuring)


def thread_ended(measuring: Outcomes) -> None:
    thread = measuring._delivery.thread
    assert thread is not None
    thread.join(10)
    assert not thread.is_alive()


def test_a_client_that_measures_nothing_has_no_thread_and_sends_nothing(receiver: Receiver) -> None:
    before = threading.active_count()
    measuring = Outcomes(receiver)

    assert measuring.flush(1)
    measuring.close()

    assert threading.active_count() == before
    assert receiver.batches == []


def test_what_is_measured_after_close_is_ignored(measuring: Outcomes, receiver: Receiver) -> None:
    with measuring.begin(served(), None):
        measuring.close()
    with measuring.begin(served(), None):
        pass
    measuring.close()

    assert measuring.flush(0.1)
    thread_ended(measuring)
    assert (receiver.only().started, receiver.only().finished) == (1, 0)


def test_tallies_are_sent_about_every_second_without_being_asked_for(
    measuring: Outcomes, receiver: Receiver
) -> None:
    with measuring.begin(served(), None):
        pass

    assert eventually(lambda: receiver.kept, 5)
    assert receiver.only().finished == 1


# --- The store away -------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_a_hurry")
@pytest.mark.parametrize("away", [StoreUnavailable("it is away"), OSError("no route"), StoreError("no")])
def test_what_cannot_be_sent_is_kept_and_sent_again_under_the_same_numbers(
    measuring: Outcomes, receiver: Receiver, clock: Clock, away: Exception
) -> None:
    receiver.refuse_with = away
    with measuring.begin(served(), None):
        clock.go(1)
    assert eventually(lambda: len(receiver.batches) >= 3)
    with measuring.begin(served(), None):
        clock.go(1)

    receiver.refuse_with = None

    assert measuring.flush(10)
    assert receiver.only().finished == 2
    assert all(batch == receiver.batches[0] for batch in receiver.batches[:3])
    assert sorted(receiver.kept) == list(range(1, len(receiver.kept) + 1))


@pytest.mark.usefixtures("in_a_hurry")
def test_a_batch_that_is_refused_for_good_is_given_up_and_counted_as_dropped(
    measuring: Outcomes, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.refuse_with = StoreError("it is too large")
    for _ in range(3):
        with measuring.begin(served(), None):
            pass
    assert eventually(lambda: receiver.batches and receiver.batches[-1][0] > 1)

    receiver.refuse_with = None

    assert measuring.flush(10)
    assert (receiver.only().finished, receiver.only().dropped) == (0, 3)
    assert "given up" in caplog.text


@pytest.mark.usefixtures("in_a_hurry")
def test_a_store_that_is_only_away_is_waited_for_however_long(
    measuring: Outcomes, receiver: Receiver
) -> None:
    receiver.refuse_with = StoreUnavailable("it is away")
    with measuring.begin(served(), None):
        pass
    assert eventually(lambda: len(receiver.batches) > 3 * outcomes.REFUSALS_MAX)

    receiver.refuse_with = None

    assert measuring.flush(10)
    assert (receiver.only().finished, receiver.only().dropped) == (1, 0)


def test_pauses_grow_and_are_drawn_at_random() -> None:
    first, last = ([outcomes._pause_s(failures) for _ in range(200)] for failures in (1, 500))

    assert outcomes.RETRY_FIRST_S / 2 <= min(first) <= max(first) <= outcomes.RETRY_FIRST_S
    assert outcomes.RETRY_MAX_S / 2 <= min(last) <= max(last) <= outcomes.RETRY_MAX_S
    assert len(set(last)) > 100


# --- Bounds ---------------------------------------------------------------------------------------


def test_calls_beyond_the_queue_are_dropped_and_counted_as_such(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(outcomes, "EVENTS_MAX", 10)
    monkeypatch.setattr(outcomes, "COUNT_EVERY_S", 60.0)
    measuring = Outcomes(receiver, now=clock.now, monotonic=clock.monotonic)
    candidate = served(arm=Arm.CANDIDATE)
    with measuring.begin(served(), None):  # one of them ends when the queue is full
        for _ in range(4):
            with measuring.begin(served(), None):
                pass
        for _ in range(7):
            with measuring.begin(candidate, None) as call:
                call.fail()

    measuring.close()

    tallies = {each.arm: each for each in receiver.sums().values()}
    assert (tallies[Arm.BASELINE].started, tallies[Arm.BASELINE].finished) == (5, 4)
    assert tallies[Arm.BASELINE].dropped == 1
    assert (tallies[Arm.CANDIDATE].started, tallies[Arm.CANDIDATE].finished) == (1, 0)
    assert tallies[Arm.CANDIDATE].dropped == 7


def began(arm: Served, key: str | None = None, at_s: float = 0.0) -> Began:
    return Began(arm, key, NOW + timedelta(seconds=at_s), at_s)


def ended(event: Began, after_s: float = 1.0, end: End = End.WELL, **fields: Any) -> Ended:
    return Ended(event, event.at_s + after_s, end, fields.get("cost_nanousd"), fields.get("scores", {}))


def taken(counting: Counting) -> list[Tally]:
    tallies: list[Tally] = []
    while batch := counting.take():
        assert len(batch) <= 200
        tallies += batch
    return tallies


def test_an_outage_of_days_takes_bounded_memory_and_says_what_was_lost() -> None:
    counter, calls = Counting(), 0

    for bin_ in range(8_000):
        for arm in (served(), served(arm=Arm.CANDIDATE)):
            for n in range(3):
                event = began(arm, at_s=bin_ * BIN_MS / 1000)
                counter.began(event)
                counter.ended(ended(event, after_s=0.1 * 1.05**n))
                calls += 1
    kept = taken(counter)

    assert len(kept) <= counting.SUMS_MAX
    assert total(kept, lambda each: each.started) + total(kept, lambda each: each.dropped) == calls
    for arm_ in Arm:
        of_arm = [each for each in kept if each.arm is arm_]
        assert total(of_arm, lambda each: each.started + each.dropped) == calls / 2
        assert max(each.start_ms for each in of_arm) == START_MS + 7_999 * BIN_MS


def test_histograms_of_all_widths_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "BUCKETS_MAX", 500)
    counter = Counting()

    for bin_ in range(100):
        for n in range(30):
            event = began(served(), at_s=bin_ * BIN_MS / 1000)
            counter.began(event)
            counter.ended(ended(event, after_s=1.05**n, cost_nanousd=10**n))
    kept = taken(counter)

    assert sum(len(each.latency_s.counts) + len(each.cost_usd.counts) for each in kept) <= 500
    assert total(kept, lambda each: each.started + each.dropped) == 3_000


def test_batches_are_small_enough_to_be_sent() -> None:
    counter = Counting()
    for n in range(counting.BATCH_TALLIES_MAX * 2 + 1):
        counter.began(began(served(), at_s=n * BIN_MS / 1000))

    sizes = [len(counter.take()) for _ in range(4)]

    assert sizes == [counting.BATCH_TALLIES_MAX, counting.BATCH_TALLIES_MAX, 1, 0]


calls_made = st.lists(
    st.tuples(
        st.sampled_from(Arm),
        st.integers(1, 3),
        st.sampled_from(["ada", "ben", None]),
        st.floats(0, 40),
        st.floats(0, 100),
        st.sampled_from(End),
        st.none() | st.integers(0, 10**9),
    ),
    max_size=40,
)


@given(calls=calls_made, canary=st.sampled_from(["", "a salt"]))
def test_every_call_is_counted_once_whatever_calls_there_are(
    calls: list[tuple[Arm, int, str | None, float, float, End, int | None]], canary: str
) -> None:
    counter = Counting()

    for arm, revision, key, at_s, after_s, end, cost in calls:
        event = began(served(arm=arm, revision=revision, canary=canary), key, at_s)
        counter.began(event)
        counter.ended(ended(event, after_s, end, cost_nanousd=cost))
    counter.close_users(math.inf)

    tallies = taken(counter)
    requests = [each for each in tallies if each.unit is Unit.REQUEST]
    users = [each for each in tallies if each.unit is Unit.USER]
    assert total(requests, lambda each: each.started) == len(calls)
    assert total(requests, lambda each: each.finished) == len(calls)
    assert total(requests, lambda each: each.errors) == sum(each[5] is End.BADLY for each in calls)
    assert total(requests, lambda each: each.latency_s.n) == sum(each[5] is End.WELL for each in calls)
    assert total(requests, lambda each: each.cost_usd.n) == sum(each[6] is not None for each in calls)
    keys = {each[2] for each in calls if each[2] is not None} if canary else set()
    assert total(users, lambda each: each.started) == len(keys)
    assert all(each.errors <= each.finished <= each.started for each in users)
    assert all(Tally.from_json(each.to_json()) == each for each in tallies)


# --- Users ----------------------------------------------------------------------------------------

BASELINE = served(canary="salt 1")
CANDIDATE = served(canary="salt 1", arm=Arm.CANDIDATE)


def users(counter: Counting) -> dict[tuple[Any, ...], Tally]:
    return summed(each for each in taken(counter) if each.unit is Unit.USER)


def count(counter: Counting, *calls: Ended) -> None:
    for each in calls:
        counter.began(each.began)
        counter.ended(each)


def test_a_user_is_one_value_of_all_calls_within_twenty_seconds() -> None:
    counter = Counting()
    count(
        counter,
        ended(began(CANDIDATE, "ada", 0), 1.0, cost_nanousd=1_000_000, scores={"helpful": 1.0}),
        ended(began(CANDIDATE, "ada", 6), 4.0, cost_nanousd=4_000_000, scores={"helpful": 0.0}),
        ended(began(CANDIDATE, "ada", 9), 0.1, End.BADLY),
        ended(began(CANDIDATE, "ada", 19), 1.5, cost_nanousd=1_000),
        ended(began(CANDIDATE, "ben", 7), 3.0),
    )

    counter.close_users(USER_S - 0.001)
    assert all(each.finished == 0 for each in users(counter).values())
    counter.close_users(USER_S)
    (ada,) = users(counter).values()
    counter.close_users(math.inf)
    (ben,) = users(counter).values()

    assert (ada.arm, ada.start_ms, ada.finished, ada.errors) == (Arm.CANDIDATE, START_MS, 1, 1)
    assert ada.latency_s.total == pytest.approx(2.0)
    assert ada.cost_usd.total == pytest.approx(0.002)
    assert (ada.metrics["helpful"].n, ada.metrics["helpful"].total) == (1, 0.5)
    assert (ben.start_ms, ben.finished, ben.errors) == (START_MS + BIN_MS, 1, 0)
    assert ben.latency_s.total == pytest.approx(3.0)


def test_users_are_counted_when_they_begin_in_the_bin_of_their_first_request() -> None:
    counter = Counting()

    for key, at_s in (("ada", 0), ("ada", 6), ("ben", 1), ("cleo", 6)):
        counter.began(began(BASELINE, key, at_s))

    started = {each.start_ms: each.started for each in users(counter).values()}
    assert started == {START_MS: 2, START_MS + BIN_MS: 1}


def test_a_user_whose_calls_never_came_back_has_begun_and_not_finished() -> None:
    counter = Counting()

    counter.began(began(BASELINE, "ada"))
    counter.close_users(math.inf)

    (tally,) = users(counter).values()
    assert (tally.started, tally.finished, tally.errors, tally.latency_s.n) == (1, 0, 0, 0)


def test_without_a_canary_or_a_key_there_are_no_users() -> None:
    counter = Counting()

    count(counter, ended(began(served(), "ada")), ended(began(BASELINE, None)))
    counter.close_users(math.inf)

    assert users(counter) == {}


def test_a_user_counts_once_in_a_canary_through_all_of_its_steps() -> None:
    counter = Counting()

    for step, arm in enumerate((BASELINE, CANDIDATE, CANDIDATE)):
        at_s = step * 100.0
        count(counter, ended(began(replace(arm, revision=42 + step), "ada", at_s)))
        counter.close_users(at_s + USER_S)
    count(counter, ended(began(replace(CANDIDATE, revision=44), "ben", 300.0)))

    counted = [(each.revision, each.arm, each.started) for each in users(counter).values()]
    assert counted == [(42, Arm.BASELINE, 1), (44, Arm.CANDIDATE, 1)]


def test_a_user_who_changes_the_arm_within_the_time_is_judged_by_the_first_one() -> None:
    counter = Counting()

    count(
        counter,
        ended(began(BASELINE, "ada", 0), 1.0),
        ended(began(replace(CANDIDATE, revision=43), "ada", 3), 9.0, End.BADLY),
    )
    counter.close_users(math.inf)

    (tally,) = users(counter).values()
    assert (tally.arm, tally.revision, tally.errors) == (Arm.BASELINE, 42, 0)
    assert tally.latency_s.total == pytest.approx(1.0)


def test_another_canary_counts_everybody_anew_and_stragglers_of_the_last_one_are_dropped() -> None:
    counter = Counting()
    second = replace(CANDIDATE, canary="salt 2", revision=50)

    for arm, key in ((BASELINE, "ada"), (second, "ada"), (BASELINE, "ben"), (BASELINE, "ada")):
        counter.close_users(math.inf)
        counter.began(began(arm, key))

    counted = {each.revision: (each.started, each.dropped) for each in users(counter).values()}
    assert counted == {42: (1, 2), 50: (1, 0)}


def test_memory_of_users_is_given_back_when_the_canary_is_over() -> None:
    counter = Counting()
    counter.began(began(BASELINE, "ada"))
    counter.close_users(math.inf)

    counter.began(began(served(revision=43), "ada"))

    assert counter._canaries == {}
    assert counter._users == {}


@pytest.mark.parametrize("bound", ["USERS_SEEN_MAX", "USERS_PENDING_MAX"])
def test_users_beyond_memory_are_no_units_and_are_counted_as_dropped(
    bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, bound, 5)
    counter = Counting()

    for n in range(8):
        count(counter, ended(began(BASELINE, f"user-{n}")))
    count(counter, ended(began(BASELINE, "user-0")))
    counter.close_users(math.inf)

    (tally,) = users(counter).values()
    assert (tally.started, tally.finished, tally.dropped) == (5, 5, 3)


def test_users_still_pending_are_closed_early_when_the_client_closes(
    measuring: Outcomes, receiver: Receiver, clock: Clock
) -> None:
    with measuring.begin(CANDIDATE, "ada"):
        clock.go(2)
    assert measuring.flush(5)
    assert (receiver.only(Unit.USER).started, receiver.only(Unit.USER).finished) == (1, 0)

    measuring.close(5)

    assert (receiver.only(Unit.USER).started, receiver.only(Unit.USER).finished) == (1, 1)
    assert receiver.only(Unit.USER).latency_s.total == pytest.approx(2.0)


# --- A real client and a real store ---------------------------------------------------------------


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


@pytest.fixture
def releasing(url: str) -> Iterator[Team]:
    with team(url) as made:
        yield made


def tallies_of(url: str, unit: Unit = Unit.REQUEST) -> list[Tally]:
    store = open_store(url)
    try:
        found = store.tallies("triage", ENVIRONMENT)
        return list(summed(each for each in found if each.unit is unit).values())
    finally:
        store.close()


def test_what_many_threads_measure_arrives_in_the_store_exactly(url: str, releasing: Team) -> None:
    revision = releasing.release(1)
    usage = Usage(input_tokens=1_000, output_tokens=100)

    def serve(client: ConfigClient) -> None:
        for n in range(250):
            with client.get("triage").call() as call:
                call.record(usage)
                if n % 10 == 0:
                    call.fail()

    with ConfigClient(url, environment=ENVIRONMENT, last_good=None) as client:
        threads = [threading.Thread(target=serve, args=(client,)) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert client.flush()

    found = tallies_of(url)
    assert {each.revision for each in found} == {revision}
    assert total(found, lambda each: each.started) == total(found, lambda each: each.finished) == 2_000
    assert total(found, lambda each: each.errors) == 200
    assert total(found, lambda each: each.latency_s.n) == 1_800
    assert sum(each.cost_usd.total for each in found) == pytest.approx(
        2_000 * PRICE.cost_nanousd(usage) / 1e9
    )


def test_users_of_both_arms_arrive_while_a_canary_runs_and_only_then(url: str, releasing: Team) -> None:
    releasing.release(1)

    with ConfigClient(url, environment=ENVIRONMENT, last_good=None) as client:
        for n in range(10):
            with client.get("triage", f"user-{n}").call():
                pass
        canary = releasing.release(2, weight_bp=5_000)
        assert follows(client, canary, "triage")
        arms = [client.assign("triage", f"user-{n}").arm for n in range(100)]
        for n in range(200):
            with client.get("triage", f"user-{n % 100}").call():
                pass

    found = tallies_of(url, Unit.USER)
    assert {each.revision for each in found} == {canary}
    assert 0 < arms.count(Arm.CANDIDATE) < 100
    for arm in Arm:
        of_arm = [each for each in found if each.arm is arm]
        assert total(of_arm, lambda each: each.started) == arms.count(arm)
        assert total(of_arm, lambda each: each.latency_s.n) == arms.count(arm)
    assert total(tallies_of(url), lambda each: each.finished) == 210


def run(script: str, url: str, timeout_s: float = 60) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, url, ENVIRONMENT],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


AT_EXIT = """
import sys
from deploy_gates.client import ConfigClient
client = ConfigClient(sys.argv[1], environment=sys.argv[2], last_good=None)
for n in range(25):
    with client.get("triage").call():
        pass
"""


def test_nothing_is_lost_when_the_process_ends_without_closing(url: str, releasing: Team) -> None:
    releasing.release(1)

    run(AT_EXIT, url)

    assert total(tallies_of(url), lambda each: each.finished) == 25


HANGING = """
import threading, time
from deploy_gates.client.outcomes import Outcomes
from deploy_gates.client.served import Served
from deploy_gates.core.tally import Arm
from deploy_gates.testing import a_config
measuring = Outcomes(lambda first, tallies: threading.Event().wait())
arm = Served(name="a", environment="b", revision=1, arm=Arm.BASELINE, digest="c", config=a_config())
with measuring.begin(arm, None):
    pass
print(time.monotonic())
"""


def test_a_store_that_hangs_does_not_hold_up_the_end_of_the_process(url: str) -> None:
    ending_at = float(run(HANGING, url))

    took_s = time.monotonic() - ending_at

    assert outcomes.EXIT_S * 0.9 < took_s < outcomes.EXIT_S + 3


FORKED = """
import os, sys
from deploy_gates.client import ConfigClient
client = ConfigClient(sys.argv[1], environment=sys.argv[2], last_good=None)
def serve(calls):
    for n in range(calls):
        with client.get("triage").call():
            pass
serve(10)
with client.get("triage").call():
    pid = os.fork()
    if not pid:
        serve(5)
if not pid:
    serve(2)
    assert client.flush(20)
    client.close()
    os._exit(0)
_, status = os.waitpid(pid, 0)
assert status == 0, status
assert client.flush(20)
client.close()
"""


def test_a_fork_in_the_middle_of_a_call_loses_none_and_counts_none_twice(url: str, releasing: Team) -> None:
    releasing.release(1)

    run(FORKED, url)

    found = tallies_of(url)
    assert total(found, lambda each: each.started) == total(found, lambda each: each.finished) == 18
    assert total(found, lambda each: each.dropped) == 0


def test_a_store_that_is_busy_costs_no_outcome(url: str, tmp_path: Path, releasing: Team) -> None:
    releasing.release(1)

    with ConfigClient(url, environment=ENVIRONMENT, last_good=None) as client:
        config = client.get("triage")
        with config.call():
            pass
        assert client.flush()
        with contextlib.closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for _ in range(20):
                with config.call():
                    pass
            is_delivered = client.flush(0.3)
            other.execute("ROLLBACK")
        assert client.flush(30)

    assert not is_delivered
    assert total(tallies_of(url), lambda each: each.finished) == 21
