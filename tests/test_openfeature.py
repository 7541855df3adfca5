"""The provider for OpenFeature, by its own SDK, over a real client and a real store."""

from __future__ import annotations

import asyncio
import copy
import json
import queue
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import EventDetails, ProviderEvent
from openfeature.exception import ErrorCode, ProviderNotReadyError
from openfeature.flag_evaluation import Reason
from openfeature.provider import ProviderStatus

from deploy_gates.client import ConfigClient
from deploy_gates.core.canonical import digest
from deploy_gates.flags import differing
from deploy_gates.openfeature import DeployGatesProvider
from deploy_gates.store import Store
from deploy_gates.testing import a_document
from flagged import (
    BASELINE,
    CANDIDATE,
    CONFIG,
    ENVIRONMENT,
    PATIENCE_S,
    a_store,
    connect,
    eventually,
    release,
    released,
)

PARAMETERS = f"{CONFIG}.parameters"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with a_store(url) as made:
        release(made, BASELINE)
        yield made


@pytest.fixture
def client(url: str, store: Store) -> Iterator[ConfigClient]:
    with connect(url) as made:
        yield made


@pytest.fixture(autouse=True)
def nobody_else() -> Iterator[None]:
    yield
    api.shutdown()


@pytest.fixture
def ours(client: ConfigClient) -> OpenFeatureClient:
    """The SDK's client, with our provider behind it."""
    api.set_provider_and_wait(DeployGatesProvider(client))
    return api.get_client()


class Told:
    """The events that the SDK tells, in their order."""

    def __init__(self) -> None:
        self._events: queue.Queue[tuple[ProviderEvent, EventDetails]] = queue.Queue()
        for event in ProviderEvent:
            api.add_handler(event, self._kept(event))

    def _kept(self, event: ProviderEvent) -> Callable[[EventDetails], None]:
        return lambda details: self._events.put((event, details))

    def next(self, wanted: ProviderEvent) -> EventDetails:
        """The next event, which has to be this one; who is ready may be told so more than once."""
        event, details = self._events.get(timeout=PATIENCE_S)
        while event is ProviderEvent.PROVIDER_READY and wanted is not event:
            event, details = self._events.get(timeout=PATIENCE_S)
        assert event is wanted
        return details


# --- Values ---------------------------------------------------------------------------------------


def test_every_type_is_resolved(ours: OpenFeatureClient) -> None:
    values: list[Any] = [
        ours.get_boolean_value(f"{PARAMETERS}.stream", True),
        ours.get_string_value(f"{CONFIG}.model", "none"),
        ours.get_integer_value(f"{PARAMETERS}.max_completion_tokens", 0),
        ours.get_float_value(f"{PARAMETERS}.temperature", 0.0),
        ours.get_float_value(f"{PARAMETERS}.top_p", 0.0),
        ours.get_object_value(PARAMETERS, {}),
        ours.get_object_value(f"{PARAMETERS}.stop", []),
        ours.get_object_value(CONFIG, {}),
    ]

    assert values == [
        False,
        "gpt-4.1-mini",
        120,
        0.5,
        1.0,
        BASELINE["parameters"],
        ["END", "STOP"],
        BASELINE,
    ]
    assert [type(each) for each in values] == [bool, str, int, float, float, dict, list, dict]


def test_the_async_variants_answer_alike(ours: OpenFeatureClient) -> None:
    async def ask() -> list[Any]:
        return [
            await ours.get_boolean_value_async(f"{PARAMETERS}.stream", True),
            await ours.get_string_value_async(f"{CONFIG}.model", "none"),
            await ours.get_integer_value_async(f"{PARAMETERS}.max_completion_tokens", 0),
            await ours.get_float_value_async(f"{PARAMETERS}.temperature", 0.0),
            await ours.get_object_value_async(PARAMETERS, {}),
            (await ours.get_string_details_async("nothing", "mine")).error_code,
        ]

    found = asyncio.run(ask())

    assert found == [False, "gpt-4.1-mini", 120, 0.5, BASELINE["parameters"], ErrorCode.FLAG_NOT_FOUND]


def test_an_answer_says_where_it_is_from(ours: OpenFeatureClient) -> None:
    found = ours.get_string_details(f"{CONFIG}.model", "none", EvaluationContext("ada"))

    assert (found.variant, found.reason, found.error_code) == ("baseline", Reason.STATIC, None)
    assert found.flag_metadata == {
        "config": CONFIG,
        "environment": ENVIRONMENT,
        "revision": 1,
        "digest": digest(BASELINE),
    }
    assert api.get_provider_metadata().name == "deploy-gates"


def test_the_targeting_key_draws_the_arm(ours: OpenFeatureClient, client: ConfigClient, store: Store) -> None:
    assert released(client, release(store, CANDIDATE, weight_bp=5_000))

    for key in (f"user-{n}" for n in range(40)):
        found = ours.get_float_details(f"{PARAMETERS}.temperature", 0.0, EvaluationContext(key))

        arm = client.assign(CONFIG, key)
        assert (found.variant, found.reason) == (arm.arm.value, Reason.SPLIT)
        assert (found.value, found.flag_metadata["digest"]) == (
            arm.document["parameters"]["temperature"],  # type: ignore[index,call-overload]
            arm.digest,
        )
    without_key = ours.get_float_details(f"{PARAMETERS}.temperature", 0.0)
    assert (without_key.variant, without_key.reason) == ("baseline", Reason.STATIC)


def test_who_changes_what_they_got_changes_it_for_nobody_else(
    ours: OpenFeatureClient, client: ConfigClient
) -> None:
    before = copy.deepcopy(client.get(CONFIG).document)

    got: Any = ours.get_object_value(CONFIG, {})
    got["parameters"]["stop"].append("STOP AGAIN")
    got["messages"][0]["content"] = "Sort nothing."
    got.clear()

    assert client.get(CONFIG).document == before == ours.get_object_value(CONFIG, {})
    assert json.dumps(ours.get_object_value(CONFIG, {})) == json.dumps(before)


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "flag", "default"),
    [
        ("boolean", f"{CONFIG}.model", True),
        ("boolean", f"{PARAMETERS}.top_p", True),
        ("string", PARAMETERS, "mine"),
        ("string", f"{PARAMETERS}.stream", "mine"),
        ("integer", f"{PARAMETERS}.temperature", 7),
        ("integer", f"{PARAMETERS}.stream", 7),
        ("float", f"{CONFIG}.model", 7.0),
        ("float", f"{PARAMETERS}.stream", 7.0),
        ("object", f"{CONFIG}.model", {"mine": 1}),
    ],
)
def test_another_type_than_was_asked_for_is_a_mismatch_and_the_default_is_used(
    ours: OpenFeatureClient, ask: str, flag: str, default: Any
) -> None:
    found = getattr(ours, f"get_{ask}_details")(flag, default)

    assert (found.value, found.reason) == (default, Reason.ERROR)
    assert found.error_code is ErrorCode.TYPE_MISMATCH
    assert flag in found.error_message


@pytest.mark.parametrize("flag", ["nothing", "", f"{CONFIG}.nothing", f"{PARAMETERS}.seed", "x" * 5_000])
def test_a_flag_that_is_not_there_is_not_found_and_the_default_is_used(
    ours: OpenFeatureClient, flag: str
) -> None:
    found = ours.get_string_details(flag, "mine")

    assert (found.value, found.reason) == ("mine", Reason.ERROR)
    assert found.error_code is ErrorCode.FLAG_NOT_FOUND
    assert found.error_message


def test_before_anything_could_be_read_the_provider_is_not_ready(url: str) -> None:
    with connect(url, wait_s=0) as client:
        provider = DeployGatesProvider(client)

        with pytest.raises(ProviderNotReadyError, match="nothing could be read"):
            api.set_provider_and_wait(provider)
        found = api.get_client().get_string_details(f"{CONFIG}.model", "mine")

    assert (found.value, found.error_code) == ("mine", ErrorCode.PROVIDER_NOT_READY)


# --- Events ---------------------------------------------------------------------------------------


def test_a_promotion_names_the_flags_that_changed(
    ours: OpenFeatureClient, client: ConfigClient, store: Store
) -> None:
    told = Told()
    told.next(ProviderEvent.PROVIDER_READY)

    release(store, CANDIDATE, weight_bp=500)
    by_canary = told.next(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED)
    assert released(client, release(store, CANDIDATE))
    by_promotion = told.next(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED)
    release(store, a_document(3), "another")
    by_another = told.next(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED)

    assert by_canary.flags_changed == by_promotion.flags_changed == differing(CONFIG, [BASELINE, CANDIDATE])
    assert f"{PARAMETERS}.temperature" in by_canary.flags_changed
    assert f"{PARAMETERS}.top_p" not in by_canary.flags_changed
    assert by_another.flags_changed is not None
    assert {"another", "another.model"} <= set(by_another.flags_changed)
    assert not any(each.startswith(CONFIG) for each in by_another.flags_changed)
    assert ours.get_float_value(f"{PARAMETERS}.temperature", 0.0) == 0.25


@contextmanager
def unreadable(file: Path) -> Iterator[None]:
    """A store whose tables are not where they were."""
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("PRAGMA busy_timeout = 5000")
        other.execute("PRAGMA legacy_alter_table = ON")  # the triggers shall not follow
        other.execute("ALTER TABLE deployment RENAME TO mislaid")
        yield
        other.execute("ALTER TABLE mislaid RENAME TO deployment")


def test_the_store_going_away_is_told_and_so_is_its_return(
    ours: OpenFeatureClient, client: ConfigClient, tmp_path: Path
) -> None:
    told = Told()

    with unreadable(tmp_path / "store.db"):
        told.next(ProviderEvent.PROVIDER_STALE)
        found = ours.get_string_details(f"{CONFIG}.model", "none")
        while_away = ours.get_provider_status()
    told.next(ProviderEvent.PROVIDER_READY)

    assert (found.value, found.variant, found.reason) == ("gpt-4.1-mini", "baseline", Reason.STALE)
    assert while_away is ProviderStatus.STALE
    assert eventually(lambda: ours.get_provider_status() is ProviderStatus.READY)
    assert ours.get_string_details(f"{CONFIG}.model", "none").reason is Reason.STATIC


def test_who_starts_from_the_last_good_config_is_told_that_it_is_stale(
    url: str, store: Store, tmp_path: Path
) -> None:
    last_good = tmp_path / "last good.json"
    with connect(url, last_good=last_good):
        assert eventually(last_good.exists)

    with unreadable(tmp_path / "store.db"), connect(url, last_good=last_good) as client:
        api.set_provider_and_wait(DeployGatesProvider(client))
        told = Told()
        found = api.get_client().get_string_details(f"{CONFIG}.model", "none")
        told.next(ProviderEvent.PROVIDER_STALE)

        assert (found.value, found.reason) == ("gpt-4.1-mini", Reason.STALE)
        assert api.get_client().get_provider_status() is ProviderStatus.STALE


def test_a_store_that_appears_later_makes_the_provider_ready(url: str) -> None:
    with connect(url, wait_s=0) as client:
        with pytest.raises(ProviderNotReadyError):
            api.set_provider_and_wait(DeployGatesProvider(client))
        ours, told = api.get_client(), Told()
        told.next(ProviderEvent.PROVIDER_ERROR)

        with a_store(url) as store:
            release(store, BASELINE)
            told.next(ProviderEvent.PROVIDER_READY)
            changed = told.next(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED).flags_changed

        assert ours.get_string_value(f"{CONFIG}.model", "none") == "gpt-4.1-mini"
        assert changed is not None
        assert {CONFIG, f"{CONFIG}.model"} <= set(changed)


def test_after_shutdown_nothing_is_told_and_the_client_goes_on(
    ours: OpenFeatureClient, client: ConfigClient, store: Store
) -> None:
    provider = ours.provider
    assert isinstance(provider, DeployGatesProvider)
    told: list[object] = []
    provider.attach(lambda *event: told.append(event))

    provider.shutdown()
    provider.shutdown()
    revision = release(store, CANDIDATE)

    assert released(client, revision)
    assert client.get(CONFIG).revision == revision
    assert told == []


def test_a_provider_can_be_set_again_after_shutdown(client: ConfigClient, store: Store) -> None:
    provider = DeployGatesProvider(client)
    for document in (CANDIDATE, BASELINE):
        api.set_provider_and_wait(provider)
        told = Told()

        release(store, document)

        assert told.next(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED).flags_changed
        api.clear_providers()


def test_without_the_sdk_the_import_says_what_to_install() -> None:
    script = "import sys; sys.modules['openfeature'] = None; import deploy_gates.openfeature"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "pip install pytest-deploy-gates[openfeature]" in done.stderr
