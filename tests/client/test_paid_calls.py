"""Calls that an organisation pays for: reserved before, posted after, voided where there was no answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from releases import ENVIRONMENT, document, eventually, team

from deploy_gates.client import ConfigClient
from deploy_gates.core import canonical
from deploy_gates.core.cost import Usage
from deploy_gates.core.errors import CreditsRefused, StoreError, StoreUnavailable
from deploy_gates.core.ledger import Allowance, Balance, Entry, Kind, Terms
from deploy_gates.core.promotion import Scope
from deploy_gates.credits import Credits
from deploy_gates.store import open_store

sys.path.append(str(Path(__file__).resolve().parents[1] / "server"))

from serving import a_token, serving

WORST = 2_000_000
"""What a call of the config costs at worst, in micro-credits: $0.002."""
USAGE = {
    "prompt_tokens": 1_000,
    "completion_tokens": 200,
    "total_tokens": 1_200,
    "prompt_tokens_details": {"cached_tokens": 400},
    "completion_tokens_details": {"reasoning_tokens": 150},
}
COST = 1_000 * 100 + 200 * 200
"""In micro-credits, at 0.10 and 0.20 dollars a million; cached input costs the same there."""


def completion(**fields: Any) -> ChatCompletion:
    """An answer as the SDK gives it."""
    made = {"id": "a", "choices": [], "created": 1, "model": "m", "object": "chat.completion", "usage": USAGE}
    return ChatCompletion.model_validate(made | fields)


@pytest.fixture
def purse(store_url: str) -> Iterator[Credits]:
    with team(store_url) as releasing:
        releasing.release_spelled(spelled())
        with Credits(store_url) as made:
            made.ledger.add("acme", "Acme", Terms(), "ada")
            made.grant("acme", 5 * WORST, id="grant")
            yield made


def spelled(**fields: Any) -> bytes:
    return canonical.spelled(document(1) | {"limits": {"cost_per_request": "0.002"}} | fields)


@pytest.fixture
def client(store_url: str, purse: Credits) -> Iterator[ConfigClient]:
    with connected(store_url, organisation="acme") as made:
        yield made


def connected(url: str, **options: Any) -> ConfigClient:
    return ConfigClient(url, environment=ENVIRONMENT, last_good=None, **options)


def balance(purse: Credits) -> Balance:
    found = purse.organisation("acme")
    assert found is not None
    return found.balance


def entries(purse: Credits) -> list[Entry]:
    return [each for each in purse.ledger.entries("acme") if each.kind not in (Kind.TERMS, Kind.GRANT)]


def test_a_call_is_reserved_before_and_posted_after(client: ConfigClient, purse: Credits) -> None:
    with client.get("triage").call() as call:
        during = balance(purse)
        call.record(completion())

    assert during == Balance(available=4 * WORST, reserved=WORST, issued=-5 * WORST)
    assert balance(purse) == Balance(available=5 * WORST - COST, spent=COST, issued=-5 * WORST)
    reserved, posted = entries(purse)
    assert posted.usage == Usage(
        input_tokens=1_000, output_tokens=200, cached_input_tokens=400, reasoning_tokens=150
    )
    assert (posted.model, posted.reservation, bool(posted.price)) == ("model-1", reserved.id, True)
    assert posted.note.startswith("triage r1 baseline ")
    audited = purse.ledger.audit("acme")
    assert audited is not None
    assert audited.faults == ()


def test_what_is_deducted_is_what_the_canary_measures(
    store_url: str, client: ConfigClient, purse: Credits
) -> None:
    with client.get("triage").call() as call:
        call.record(completion())
    assert client.flush()

    store = open_store(store_url)
    measured = sum(each.cost_usd.total for each in store.tallies("triage", ENVIRONMENT))
    store.close()
    assert round(measured * 1e9) == balance(purse).spent == COST


def test_a_call_that_fails_or_is_given_up_is_voided(client: ConfigClient, purse: Credits) -> None:
    config = client.get("triage")
    for error in (ValueError("no answer"), KeyboardInterrupt(), None):
        with contextlib.suppress(ValueError, KeyboardInterrupt), config.call() as call:
            if error is None:
                call.fail("no good")
            else:
                raise error

    assert [each.kind for each in entries(purse)] == [Kind.RESERVE, Kind.VOID] * 3
    assert balance(purse) == Balance(available=5 * WORST, issued=-5 * WORST)


def test_an_answer_is_paid_also_where_something_fails_after_it(client: ConfigClient, purse: Credits) -> None:
    with contextlib.suppress(ValueError), client.get("triage").call() as call:
        call.record(completion())
        raise ValueError("the answer is no JSON")

    assert balance(purse).spent == COST


def test_a_call_that_says_nothing_of_its_usage_costs_what_was_reserved(
    client: ConfigClient, purse: Credits
) -> None:
    with client.get("triage").call():
        pass

    assert balance(purse).spent == WORST
    assert "usage unknown" in entries(purse)[-1].note


def test_the_chunks_of_a_stream_are_one_answer(client: ConfigClient, purse: Credits) -> None:
    chunk = {"id": "a", "choices": [], "created": 1, "model": "m", "object": "chat.completion.chunk"}
    with client.get("triage").call() as call:
        for usage in (None, USAGE | {"completion_tokens": 1}, USAGE):
            call.record(ChatCompletionChunk.model_validate(chunk | {"usage": usage}))

    assert balance(purse).spent == COST


def test_several_answers_in_one_call_add_up(client: ConfigClient, purse: Credits) -> None:
    with client.get("triage").call() as call:
        call.record(completion(id="a"))
        call.record(completion(id="b"))

    assert balance(purse).spent == 2 * COST
    assert entries(purse)[-1].usage.input_tokens == 2_000


def test_what_is_not_there_is_not_spent(client: ConfigClient, purse: Credits) -> None:
    config = client.get("triage")
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(config.call()).record(completion())
        with pytest.raises(CreditsRefused, match=r"acme has 0 credits available and 10 reserved") as refused:
            stack.enter_context(config.call())

    assert (refused.value.reason, refused.value.retry_after_s) == ("balance", None)
    assert balance(purse).spent == 5 * COST


def test_a_rate_limit_says_when_there_is_room(client: ConfigClient, purse: Credits) -> None:
    limits = (Allowance(rate="requests_per_minute", most=1),)
    purse.ledger.change("acme", lambda terms: Terms(allowances=limits), actor="ada")
    config = client.get("triage")
    with config.call() as call:
        call.record(completion())

    with pytest.raises(CreditsRefused) as refused, config.call():
        pass

    assert refused.value.reason == "requests per minute"
    assert refused.value.retry_after_s is not None
    assert 50 < refused.value.retry_after_s <= 60


def test_coroutines_pay_without_holding_their_loop_up(client: ConfigClient, purse: Credits) -> None:
    config = client.get("triage")

    async def one() -> None:
        async with config.call(worst=Usage(input_tokens=1_000, output_tokens=200)) as call:
            await asyncio.sleep(0)
            call.record(completion())

    async def run() -> None:
        await asyncio.gather(*(one() for _ in range(20)))

    asyncio.run(run())

    assert balance(purse).spent == 20 * COST


def test_a_coroutine_that_is_cancelled_leaves_nothing_reserved(client: ConfigClient, purse: Credits) -> None:
    config = client.get("triage")

    async def hang() -> None:
        async with config.call():
            await asyncio.sleep(60)

    async def run(turns: int) -> None:
        task = asyncio.create_task(hang())
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns > 10:
            await asyncio.to_thread(eventually, lambda: balance(purse).reserved)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    for turns in (1, 2, 11):
        asyncio.run(run(turns))

    assert eventually(lambda: balance(purse) == Balance(available=5 * WORST, issued=-5 * WORST))


def test_who_pays_can_be_said_at_each_call(store_url: str, purse: Credits) -> None:
    purse.ledger.add("globex", "Globex", Terms(lowest=-5 * WORST), "ada")
    with connected(store_url, credits=True) as client:
        config = client.get("triage")
        with config.call(organisation="globex", id="request-1") as call:
            call.record(completion())
        with pytest.raises(CreditsRefused, match="no organisation is named"):
            config.call()

    found = purse.organisation("globex")
    assert found is not None
    assert found.balance.spent == COST
    assert [each.id for each in purse.ledger.entries("globex")][1:] == ["request-1", "request-1:post"]


def test_without_credits_nothing_is_asked(store_url: str, purse: Credits) -> None:
    with connected(store_url) as client, client.get("triage").call() as call:
        call.record(completion())

    assert entries(purse) == []


def test_what_a_call_costs_at_worst_has_to_be_known(store_url: str) -> None:
    with team(store_url) as releasing:
        releasing.release(1)
    with connected(store_url, organisation="acme") as client:
        with pytest.raises(CreditsRefused, match="costs at worst"), client.get("triage").call():
            pass
        with pytest.raises(CreditsRefused, match="no organisation acme"):
            client.get("triage").call(worst=Usage(input_tokens=1, output_tokens=1)).__enter__()


def test_odd_settings_are_told(store_url: str) -> None:
    with pytest.raises(StoreError, match="credits_away is 'maybe': there is refuse, allow"):
        connected(store_url, organisation="acme", credits_away="maybe")


# --- While the ledger is away -------------------------------------------------------------------


@pytest.fixture
def away(tmp_path: Path) -> Path:
    """A file with a release and credits, that can be moved away."""
    path = tmp_path / "store.db"
    with team(f"sqlite:///{path}", durable=True) as releasing:
        releasing.release_spelled(spelled())
        with Credits(f"sqlite:///{path}") as made:
            made.ledger.add("acme", "Acme", Terms(), "ada")
            made.grant("acme", 5 * WORST, id="grant")
    return path


def hidden(path: Path) -> None:
    for each in path.parent.glob("store.db*"):
        shutil.move(each, each.with_name(f"hidden-{each.name}"))


def test_no_call_is_made_that_cannot_be_reserved(away: Path) -> None:
    with connected(f"sqlite:///{away}", organisation="acme") as client:
        config = client.get("triage")
        hidden(away)

        with pytest.raises(StoreUnavailable, match="its credits cannot be reserved"), config.call():
            pass


def test_unless_somebody_has_said_that_it_is(away: Path, caplog: pytest.LogCaptureFixture) -> None:
    with connected(f"sqlite:///{away}", organisation="acme", credits_away="allow") as client:
        config = client.get("triage")
        hidden(away)

        with config.call() as call:
            call.record(completion())

    assert "a call of triage is made that nobody pays for" in caplog.text


def test_what_was_reserved_is_posted_once_the_ledger_is_back(
    store_url: str, purse: Credits, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(store_url, organisation="acme") as client:
        with client.get("triage").call() as call:
            open_purse = client._paying.purse
            transact = open_purse.transact
            tries: list[int] = []

            def broken(*arguments: Any, **named: Any) -> Any:
                tries.append(1)
                if len(tries) < 3:
                    raise StoreUnavailable("the store is away")
                return transact(*arguments, **named)

            monkeypatch.setattr(open_purse, "transact", broken)
            call.record(completion())

        assert balance(purse).reserved == WORST
        assert eventually(lambda: balance(purse).spent == COST)


def test_a_child_of_a_fork_pays_by_itself(client: ConfigClient, purse: Credits) -> None:
    def pay() -> None:
        with client.get("triage").call() as call:
            call.record(completion())

    pay()
    child = os.fork()
    if child == 0:
        try:
            pay()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    pay()

    assert os.waitstatus_to_exitcode(status) == 0
    assert balance(purse).spent == 3 * COST


# --- Through a server ---------------------------------------------------------------------------


def test_a_server_does_the_same_for_clients_without_a_database(store_url: str, purse: Credits) -> None:
    store = open_store(store_url)
    token = a_token(store, Scope.READ, Scope.REPORT, Scope.SPEND)
    store.close()
    with (
        serving(store_url, token, "--no-carry", "--environment", ENVIRONMENT) as server,
        connected(server.url, token=token, organisation="acme") as client,
    ):
        with client.get("triage").call() as call:
            call.record(completion())
        with (
            pytest.raises(CreditsRefused) as refused,
            client.get("triage").call(worst=Usage(input_tokens=10**8 - 1, output_tokens=1)),
        ):
            pass

        async def run() -> None:
            async with client.get("triage").call() as call:
                call.record(completion())

        asyncio.run(run())

    assert refused.value.reason == "balance"
    assert balance(purse).spent == 2 * COST
