"""`deploy-gates deliveries`: what was told, what was given up, and telling it again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from outside import Service
from telling import SECRET, shipped, telling_to

from deploy_gates import notify
from deploy_gates.cli import deliveries
from deploy_gates.store import Store, open_store

SETTINGS = """
[tool.deploy_gates.notify.channels.hook-0]
kind = "webhook"
url = "{url}"
secret_env = "HOOK_SECRET"
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = open_store(f"sqlite:///{tmp_path / 'store.db'}")
    made.upgrade()
    yield made
    made.close()


@pytest.fixture
def command(
    store: Store,
    receiver: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str]]:
    """The command in a repository whose one channel is the receiver: its exit status, and what it prints."""
    (tmp_path / "pyproject.toml").write_text(SETTINGS.format(url=receiver.url))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEPLOY_GATES_STORE", f"sqlite:///{tmp_path / 'store.db'}")
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    parser = argparse.ArgumentParser()
    deliveries.add(parser.add_subparsers())

    def run(*arguments: str) -> tuple[int, str]:
        asked = parser.parse_args(["deliveries", *arguments])
        return asked.run(asked), capsys.readouterr().out

    return run


def given_up(store: Store, receiver: Service) -> str:
    """A release whose first message could not be delivered; its id."""
    telling = telling_to(receiver.url)
    shipped(store)
    notify.relay(store, telling)
    receiver.failing = [(410, {}, {"message": "moved away"})]
    notify.deliver(store, telling)
    (dead,) = store.deliveries(state="dead")
    return dead.id


def test_what_was_told_is_listed_newest_first(
    command: Callable[..., tuple[int, str]], store: Store, receiver: Service
) -> None:
    dead = given_up(store, receiver)

    status, out = command()

    lines = out.splitlines()
    assert status == 0
    assert "hook-0         promotion.shipped        delivered, 1 try" in lines[0]
    assert f"      {dead}" in lines
    assert "      127.0.0.1 answers 410: moved away" in lines
    assert max(map(len, lines)) <= 96


def test_dead_letters_alone_are_listed_with_the_way_to_send_them_again(
    command: Callable[..., tuple[int, str]], store: Store, receiver: Service
) -> None:
    given_up(store, receiver)

    _, out = command("--dead")

    assert out.count("promotion.") == 1
    assert out.splitlines()[-1] == "next: deploy-gates deliveries --retry ID sends a dead one again"


@pytest.mark.parametrize("named", ["by its id", "all"])
def test_a_dead_letter_is_sent_again(
    command: Callable[..., tuple[int, str]], store: Store, receiver: Service, named: str
) -> None:
    dead = given_up(store, receiver)

    status, out = command("--retry", dead if named == "by its id" else "all")

    assert status == 0
    assert "delivered, 1 try" in out
    assert receiver.asked[-1].headers["webhook-id"] == dead
    assert command("--dead") == (0, "nothing was to be delivered\n")


def test_a_dead_letter_that_fails_again_says_so(
    command: Callable[..., tuple[int, str]], store: Store, receiver: Service
) -> None:
    dead = given_up(store, receiver)
    receiver.failing = [(410, {}, None)]

    status, out = command("--retry", dead)

    assert status == 1
    assert "dead, 1 try" in out


def test_an_id_that_nobody_gave_up_is_refused(
    command: Callable[..., tuple[int, str]], store: Store, receiver: Service
) -> None:
    status, out = command("--retry", "nobody")

    assert status == 1
    assert "nothing of that id was given up: nobody" in out
    assert receiver.asked == []


def test_machines_read_the_same(
    command: Callable[..., tuple[int, str]], store: Store, receiver: Service
) -> None:
    given_up(store, receiver)

    _, out = command("--json", "--channel", "hook-0", "--promotion", "1", "--limit", "2")

    assert [each["state"] for each in json.loads(out)] == ["delivered", "delivered"]
