"""Configs as flags: every member has a name, and says for whom and why it is what it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy_gates.client import ConfigClient
from deploy_gates.core.canonical import Json, JsonObject, digest
from deploy_gates.core.errors import ConfigUnavailable, DeployGatesError
from deploy_gates.core.tally import Arm
from deploy_gates.flags import (
    FLAG_MAX_CHARS,
    MEMBERS_MAX,
    FlagNotFound,
    Reason,
    differing,
    evaluate,
    flags,
    members,
)
from deploy_gates.store import Store
from flagged import BASELINE, CANDIDATE, CONFIG, ENVIRONMENT, a_store, connect, eventually, release, released


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with a_store(url) as made:
        yield made


@pytest.fixture
def client(url: str, store: Store) -> Iterator[ConfigClient]:
    """A client of a store that serves the baseline."""
    release(store, BASELINE)
    with connect(url) as made:
        yield made


# --- Values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        (CONFIG, BASELINE),
        (f"{CONFIG}.model", "gpt-4.1-mini"),
        (f"{CONFIG}.parameters.temperature", 0.5),
        (f"{CONFIG}.parameters.top_p", 1),
        (f"{CONFIG}.parameters.stream", False),
        (f"{CONFIG}.parameters.stop", ["END", "STOP"]),
        (f"{CONFIG}.parameters.metadata.team", "support"),
        (f"{CONFIG}.inputs.properties.body", {"type": "string"}),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_a_flag_is_what_stands_at_its_place(client: ConfigClient, flag: str, value: Json) -> None:
    found = evaluate(client, flag, None)

    assert found.value == value
    assert type(found.value) is type(value)


def test_a_flag_says_where_it_is_from(client: ConfigClient) -> None:
    found = evaluate(client, f"{CONFIG}.model", "ada")

    assert (found.variant, found.reason) == (Arm.BASELINE, Reason.STATIC)
    assert found.metadata == {
        "config": CONFIG,
        "environment": ENVIRONMENT,
        "revision": 1,
        "digest": digest(BASELINE),
    }


def test_nothing_is_copied(client: ConfigClient) -> None:
    assert evaluate(client, CONFIG, None).value is client.get(CONFIG).document


@pytest.mark.parametrize(
    "flag",
    [
        "",
        ".",
        "another",
        "ticket",
        "ticket-triage-2",
        f"{CONFIG}.",
        f"{CONFIG}..model",
        f".{CONFIG}",
        f"{CONFIG}.nothing",
        f"{CONFIG}.model.name",
        f"{CONFIG}.messages.0",
        f"{CONFIG}.messages.0.role",
        f"{CONFIG}.parameters.seed",
        f"{CONFIG}.parameters.metadata.cost.center",
        f"{CONFIG.upper()}.model",
        "x" * 10_000 + ".y" * 1_000,
        f"{CONFIG}.parameters.metadata.",
        "ti\ud800cket",
    ],
    ids=lambda flag: ascii(flag)[:40],
)
def test_a_flag_that_is_not_there_is_not_found(client: ConfigClient, flag: str) -> None:
    with pytest.raises(FlagNotFound) as missing:
        evaluate(client, flag, None)

    assert isinstance(missing.value, DeployGatesError)
    assert "\n" not in missing.value.message
    assert missing.value.hint


def test_a_config_wins_over_a_member_that_would_be_called_the_same(
    client: ConfigClient, store: Store
) -> None:
    revision = release(store, CANDIDATE, f"{CONFIG}.parameters")
    assert released(client, revision, f"{CONFIG}.parameters")

    found = evaluate(client, f"{CONFIG}.parameters.model", None)

    assert found.metadata["config"] == f"{CONFIG}.parameters"
    assert evaluate(client, f"{CONFIG}.parameters", None).value == CANDIDATE
    assert evaluate(client, f"{CONFIG}.model", None).metadata["config"] == CONFIG


# --- For whom, and why ----------------------------------------------------------------------------


def test_while_a_canary_runs_the_key_decides(client: ConfigClient, store: Store) -> None:
    assert released(client, release(store, CANDIDATE, weight_bp=5_000))
    keys = [f"user-{n}" for n in range(40)]

    found = {key: evaluate(client, f"{CONFIG}.parameters.temperature", key) for key in keys}
    without_key = evaluate(client, f"{CONFIG}.parameters.temperature", None)

    assert {each.reason for each in found.values()} == {Reason.SPLIT}
    assert {(each.variant, each.value) for each in found.values()} == {
        (Arm.BASELINE, 0.5),
        (Arm.CANDIDATE, 0.25),
    }
    assert all(each.variant is client.assign(CONFIG, key).arm for key, each in found.items())
    assert (without_key.variant, without_key.reason) == (Arm.BASELINE, Reason.STATIC)


@pytest.mark.parametrize(
    "key", ["", "👩‍💻", "ada \ud83d lovelace", "x" * 10_000], ids=lambda key: ascii(key)[:20]
)
def test_any_text_is_a_key(client: ConfigClient, store: Store, key: str) -> None:
    assert released(client, release(store, CANDIDATE, weight_bp=5_000))

    assert evaluate(client, CONFIG, key).variant is client.assign(CONFIG, key).arm


def test_what_is_served_without_a_store_is_stale(url: str, store: Store, tmp_path: Path) -> None:
    release(store, BASELINE)
    last_good = tmp_path / "last good.json"
    with connect(url, last_good=last_good):
        assert eventually(last_good.exists)
    store.close()
    for file in tmp_path.glob("store.db*"):
        file.unlink()

    with connect(url, last_good=last_good) as client:
        found = evaluate(client, f"{CONFIG}.model", "ada")

    assert (found.value, found.variant, found.reason) == ("gpt-4.1-mini", Arm.BASELINE, Reason.STALE)


def test_before_anything_could_be_read_there_is_no_saying_what_flags_there_are(url: str) -> None:
    with connect(url, wait_s=0) as client, pytest.raises(ConfigUnavailable):
        evaluate(client, CONFIG, None)


def test_a_store_in_which_nothing_is_promoted_has_no_flags(url: str, store: Store) -> None:
    with connect(url) as client:
        with pytest.raises(FlagNotFound):
            evaluate(client, CONFIG, None)

        assert list(flags(client)) == []


# --- Lists ----------------------------------------------------------------------------------------


def test_every_flag_is_listed_and_can_be_evaluated(client: ConfigClient, store: Store) -> None:
    assert released(client, release(store, CANDIDATE, "another"), "another")

    listed = list(flags(client))

    assert listed[0] == "another"
    assert {CONFIG, f"{CONFIG}.parameters.temperature", f"{CONFIG}.messages"} <= set(listed)
    assert len(listed) == len(set(listed))
    assert all(evaluate(client, each, None).value is not None for each in listed)
    assert not any("seed" in each or "cost" in each or each.endswith(".") for each in listed)


def test_flags_are_those_of_the_arm_that_the_key_gets(client: ConfigClient, store: Store) -> None:
    assert released(client, release(store, CANDIDATE, weight_bp=5_000))
    arms = {client.assign(CONFIG, key).arm: key for key in map(str, range(40))}
    only_before = f"{CONFIG}.parameters.stop"

    assert only_before in flags(client, arms[Arm.BASELINE])
    assert only_before not in flags(client, arms[Arm.CANDIDATE])


def test_documents_as_deep_as_they_come_are_listed() -> None:
    document: JsonObject = {}
    for _ in range(5_000):
        document = {"a": document}

    assert len(members("deep", document)) == 1 + (FLAG_MAX_CHARS - len("deep")) // len(".a")
    assert len(members("wide", {str(n): n for n in range(20_000)})) == MEMBERS_MAX


def test_flags_that_differ_are_named_with_all_around_them() -> None:
    found = differing(CONFIG, [BASELINE, CANDIDATE])

    assert found == [
        CONFIG,
        f"{CONFIG}.messages",
        f"{CONFIG}.parameters",
        f"{CONFIG}.parameters.max_completion_tokens",
        f"{CONFIG}.parameters.metadata",
        f"{CONFIG}.parameters.metadata.team",
        f"{CONFIG}.parameters.stop",
        f"{CONFIG}.parameters.stream",
        f"{CONFIG}.parameters.temperature",
    ]


@pytest.mark.parametrize(("one", "other"), [(1, True), (0, False), ({"a": 1, "b": 2}, {"b": 2, "a": 1})])
def test_values_that_python_calls_equal_may_differ(one: Json, other: Json) -> None:
    assert f"{CONFIG}.x" in differing(CONFIG, [{"x": one}, {"x": other}])


def test_nothing_differs_from_itself() -> None:
    assert differing(CONFIG, [BASELINE, BASELINE]) == differing(CONFIG, []) == []
