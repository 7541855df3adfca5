"""What callers meet: threads and coroutines, prices by the name of a model, and batches they never see."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from deploy_gates.core.cost import Price
from deploy_gates.core.errors import StoreError, StoreUnavailable
from deploy_gates.core.ledger import OWN_ID, TERMS_ID, Answer, Kind, No, Terms, Transaction
from deploy_gates.credits import AsyncCredits, Credits, Usage
from deploy_gates.credits.batching import Batcher
from deploy_gates.store import open_store

PRICE = Price(input_usd=Decimal("0.40"), output_usd=Decimal("1.60"), cached_input_usd=Decimal("0.10"))
USAGE = Usage(input_tokens=1_000, cached_input_tokens=400, output_tokens=200, reasoning_tokens=150)
COST = 240_000 + 40_000 + 320_000
"""Of that usage at that price, in micro-credits: fresh input, cached input, output with its reasoning."""


@pytest.fixture
def purse(store_url: str) -> Iterator[Credits]:
    store = open_store(store_url)
    store.upgrade()
    store.close()
    with Credits(store_url) as made:
        made.ledger.add("acme", "Acme", Terms(), "ada")
        assert made.grant("acme", 10**9, id="grant").accepted
        yield made


def test_a_call_costs_what_its_tokens_cost(purse: Credits) -> None:
    answer = purse.consume("acme", id="call-1", model="mine", usage=USAGE, price=PRICE)

    assert answer.entry is not None
    assert (answer.entry.amount, answer.entry.usage, answer.entry.model) == (COST, USAGE, "mine")
    audited = purse.ledger.audit("acme")
    assert audited is not None
    assert audited.faults == ()


def test_a_model_that_is_known_has_its_price(purse: Credits) -> None:
    known = purse.consume("acme", id="call-1", model="gpt-4.1-mini", usage=USAGE)
    unknown = purse.consume("acme", id="call-2", model="nobody-knows-me", usage=USAGE)

    assert known.entry is not None
    assert known.entry.amount == COST
    assert unknown.no is No.UNPRICED


def test_a_reservation_is_posted_by_its_id(purse: Credits) -> None:
    purse.reserve("acme", id="call-1", model="mine", usage=USAGE, price=PRICE)
    used = Usage(input_tokens=1_000, output_tokens=10)

    posted = purse.post("acme", "call-1", model="mine", usage=used, price=PRICE)
    again = purse.post("acme", "call-1", model="mine", usage=used, price=PRICE)
    voided = purse.void("acme", "call-1")

    assert posted.balance.spent == 416_000
    assert (again.replayed, again.balance) == (True, posted.balance)
    assert voided.no is No.CLOSED


def test_threads_share_round_trips_and_lose_nothing(purse: Credits) -> None:
    def call(number: int) -> None:
        for turn in range(20):
            assert purse.consume("acme", id=f"{number}-{turn}", amount=10).accepted

    callers = [threading.Thread(target=call, args=(number,)) for number in range(16)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()

    found = purse.organisation("acme")
    assert found is not None
    assert found.balance.spent == 16 * 20 * 10


def test_coroutines_go_the_same_way(purse: Credits) -> None:
    async def call(number: int) -> Answer:
        asking = AsyncCredits(purse)
        await asking.reserve("acme", id=f"call-{number}", usage=USAGE, price=PRICE)
        return await asking.post("acme", f"call-{number}", usage=USAGE, price=PRICE)

    async def run() -> list[Answer]:
        return await asyncio.gather(*(call(number) for number in range(50)))

    answers = asyncio.run(run())

    assert all(each.accepted for each in answers)
    assert max(each.balance.spent for each in answers) == 50 * COST


def test_who_gives_up_waiting_can_void_what_may_be_reserved(purse: Credits) -> None:
    async def run() -> Answer:
        asking = AsyncCredits(purse)
        task = asyncio.create_task(asking.reserve("acme", id="call-1", usage=USAGE, price=PRICE))
        await asyncio.sleep(0)
        task.cancel()
        return await asking.void("acme", "call-1")

    answer = asyncio.run(run())

    found = purse.organisation("acme")
    assert found is not None
    assert (answer.no in (None, No.NO_RESERVATION), found.balance.reserved) == (True, 0)


def test_a_child_of_a_fork_asks_by_itself(purse: Credits) -> None:
    assert purse.consume("acme", id="parent", amount=10).accepted

    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if purse.consume("acme", id="child", amount=10).accepted else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert purse.consume("acme", id="later", amount=10).balance.spent == 30


def test_who_comes_after_the_end_is_told_so(purse: Credits) -> None:
    purse.close()

    with pytest.raises(StoreUnavailable, match="closed"):
        purse.consume("acme", id="call-1", amount=1)


@pytest.mark.parametrize(
    "fields",
    [
        {"id": ""},
        {"id": "x" * 201},
        {"id": f"{OWN_ID}1"},
        {"id": f"{TERMS_ID}1"},
        {"id": "a\0b"},
        {"amount": -1},
        {"amount": 10**16},
        {"hold_s": 10**9},
        {"usage": Usage(input_tokens=1, cached_input_tokens=2, output_tokens=0)},
        {"usage": Usage(input_tokens=-1, output_tokens=0)},
    ],
)
def test_what_makes_no_sense_is_not_asked(purse: Credits, fields: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        purse.reserve(**({"organisation": "acme", "id": "call-1", "amount": 1} | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"organisation": None}, "`organisation` is no text"),
        ({"id": 5}, "`id` is no text"),
        ({"model": None}, "`model` is no text"),
        ({"note": b"why"}, "`note` is no text"),
        ({"amount": 1.5}, "`amount` is no whole number"),
        ({"amount": "5"}, "`amount` is no whole number"),
        ({"usage": {}}, "`usage` is no Usage"),
        ({"usage": Usage(input_tokens=1.5, output_tokens=0)}, "`input_tokens` of the usage is no whole"),  # type: ignore[arg-type]
        ({"usage": Usage(input_tokens=0, output_tokens="5")}, "`output_tokens` of the usage is no whole"),  # type: ignore[arg-type]
        ({"usage": Usage(input_tokens=-1, output_tokens=0)}, "one transaction is of 0 to"),
    ],
)
def test_what_is_of_another_type_is_told_in_a_sentence(
    purse: Credits, fields: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        purse.consume(**({"organisation": "acme", "id": "call-1", "amount": 1} | fields))  # type: ignore[arg-type]


def test_a_reservation_is_named_by_a_text(purse: Credits) -> None:
    with pytest.raises(ValueError, match="`reservation` is no text"):
        purse.post("acme", None, id="post-1", amount=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`reservation` is no text"):
        purse.void("acme", 5)  # type: ignore[arg-type]


# --- Batches ------------------------------------------------------------------------------------


def asked(id: str, organisation: str = "acme", **fields: object) -> Transaction:
    kind = Kind.POST if fields else Kind.CONSUME
    return Transaction(organisation=organisation, id=id, kind=kind, amount=1, **fields)  # type: ignore[arg-type]


class Slow:
    """Sends when it is allowed to, and remembers what was in each batch."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.may_go = threading.Semaphore(0)
        self.is_busy = threading.Event()

    def __call__(self, batch: Sequence[Transaction]) -> list[Answer]:
        self.batches.append([each.id for each in batch])
        self.is_busy.set()
        assert self.may_go.acquire(timeout=10)
        if len(batch) > 1 and any(each.id == "poison" for each in batch):
            raise StoreError("the batch cannot be kept")
        if batch[0].id == "poison":
            raise StoreError("that cannot be kept")
        return [Answer(transaction=each.id, organisation=each.organisation) for each in batch]


def ask_all(batcher: Batcher, every: Sequence[Transaction]) -> list[tuple[threading.Thread, list[object]]]:
    """Ask in threads, one after the other in a fixed order."""
    asking = []
    for each in every:
        outcome: list[object] = []

        def ask(each: Transaction = each, outcome: list[object] = outcome) -> None:
            try:
                outcome.append(batcher.ask(each))
            except StoreError as error:
                outcome.append(error)

        before = batcher._waiting
        thread = threading.Thread(target=ask)
        thread.start()
        while batcher._waiting == before:
            pass
        asking.append((thread, outcome))
    return asking


def finished(send: Slow, asking: Sequence[tuple[threading.Thread, list[object]]]) -> list[object]:
    send.may_go.release(1_000)
    for thread, _ in asking:
        thread.join(10)
    return [outcome[0] for _, outcome in asking]


def test_what_comes_while_one_is_under_way_goes_with_the_next() -> None:
    send = Slow()
    batcher = Batcher(send, workers=2)

    first = ask_all(batcher, [asked("a")])
    send.is_busy.wait(10)
    rest = ask_all(batcher, [asked("b"), asked("c"), asked("d")])
    finished(send, [*first, *rest])

    assert send.batches == [["a"], ["b", "c", "d"]]
    batcher.close()


def test_what_has_the_same_id_or_reservation_waits_for_the_next() -> None:
    send = Slow()
    batcher = Batcher(send, workers=1)

    asking = ask_all(batcher, [asked("a")])
    send.is_busy.wait(10)
    asking += ask_all(batcher, [asked("b"), asked("b"), asked("c", reservation="b"), asked("d")])
    finished(send, asking)

    assert send.batches == [["a"], ["b"], ["b"], ["c", "d"]]
    batcher.close()


def test_one_that_cannot_be_kept_harms_none_of_the_others() -> None:
    send = Slow()
    batcher = Batcher(send, workers=1)

    asking = ask_all(batcher, [asked("a")])
    send.is_busy.wait(10)
    asking += ask_all(batcher, [asked("b"), asked("poison"), asked("c")])
    outcomes = finished(send, asking)

    assert [isinstance(each, Answer) for each in outcomes] == [True, True, False, True]
    batcher.close()


def test_the_test_that_the_docs_show_passes(tmp_path: Path) -> None:
    docs = (Path(__file__).parents[2] / "docs/credits.md").read_text("utf-8")
    (shown,) = (block for block in docs.split("```python\n")[1:] if "def test_" in block)
    scope: dict[str, Any] = {}

    exec(shown.partition("```")[0], scope)

    scope["test_who_has_no_credits_is_refused"](tmp_path)
