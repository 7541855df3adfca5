"""The last good config on disk: served when the store is away, refused when it is damaged."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from releases import ENVIRONMENT, PRICE, Team, digest, eventually, follows, team

from deploy_gates.client import ConfigClient
from deploy_gates.client.last_good import default_path
from deploy_gates.core.errors import ConfigUnavailable


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store/store.db"


@pytest.fixture
def releasing(url: str) -> Iterator[Team]:
    with team(url) as made:
        yield made


@pytest.fixture
def kept(tmp_path: Path, url: str, releasing: Team) -> Path:
    """The last good config of a client that served version 1."""
    releasing.release(1)
    path = tmp_path / "cache" / "last.json"
    connect(url, path).close()
    return path


def connect(url: str, path: Path | None, environment: str = ENVIRONMENT, wait_s: float = 5) -> ConfigClient:
    return ConfigClient(url, environment=environment, last_good=path, wait_s=wait_s)


@contextlib.contextmanager
def away(tmp_path: Path) -> Iterator[None]:
    """The store is not where it was, meanwhile."""
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    try:
        yield
    finally:
        (tmp_path / "elsewhere").rename(tmp_path / "store")


def test_a_client_that_starts_while_the_store_is_away_serves_what_was_served_last(
    tmp_path: Path, url: str, kept: Path
) -> None:
    with away(tmp_path), connect(url, kept) as client:
        config = client.get("triage")

        assert (config.digest, config.revision, config.is_stale) == (digest(1), 1, True)
        assert client.arms("triage")[0].price == PRICE
        assert "there is no store" in client.stale_reason
        with pytest.raises(ConfigUnavailable, match="what is served since is without it"):
            client.get("other")


def test_it_catches_up_when_the_store_is_back(tmp_path: Path, url: str, releasing: Team, kept: Path) -> None:
    told: list[frozenset[str]] = []
    with contextlib.ExitStack() as stack:
        with away(tmp_path):
            client = stack.enter_context(connect(url, kept))
            client.on_change(told.append)
        releasing.release(2)

        assert follows(client, 2)
        assert eventually(lambda: frozenset() in told)
        assert not client.is_stale
        assert client.get("triage").digest == digest(2)
        assert eventually(lambda: [each.revision for each in releasing.store.instances()] == [2])
        assert not releasing.store.instances()[0].reloaded


def test_a_client_whose_store_goes_away_serves_on_and_follows_when_it_is_back(
    tmp_path: Path, url: str, releasing: Team, caplog: pytest.LogCaptureFixture
) -> None:
    releasing.release(1)
    told: list[frozenset[str]] = []
    with connect(url, None) as client:
        client.on_change(told.append)
        with away(tmp_path):
            assert eventually(lambda: client.is_stale)
            assert client.get("triage").digest == digest(1)
            assert client.get("triage").is_stale
        releasing.release(2)

        assert follows(client, 2)
        assert eventually(lambda: len(told) == 3)
        assert sorted(told, key=len) == [frozenset(), frozenset(), frozenset({"triage"})]
    assert caplog.text.count("the store is away") == caplog.text.count("can be read again") == 1


def test_the_file_is_for_this_user_alone(kept: Path) -> None:
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [each.name for each in kept.parent.iterdir()] == ["last.json"]


def test_the_file_follows_what_is_served(tmp_path: Path, url: str, releasing: Team, kept: Path) -> None:
    with connect(url, kept) as client:
        for version in range(2, 12):
            assert follows(client, releasing.release(version))

    with away(tmp_path), connect(url, kept) as client:
        assert client.get("triage").digest == digest(11)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"model-1", b"model-7"),
        lambda content: content.replace(b'"revision": 1', b'"revision": 7'),
        lambda content: b"\0" * len(content),
        lambda content: b"null",
        lambda content: b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_refused_and_replaced_when_the_store_is_back(
    tmp_path: Path, url: str, kept: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    good = kept.read_bytes()
    assert callable(damage)
    kept.write_bytes(damage(good))

    with (
        away(tmp_path),
        connect(url, kept, wait_s=0.2) as client,
        pytest.raises(ConfigUnavailable, match="nothing was kept on disk"),
    ):
        client.get("triage")
    connect(url, kept).close()

    assert caplog.text.count(f"{kept} is damaged and is not used") == 1
    assert json.loads(kept.read_bytes()) == json.loads(good)


def test_the_file_of_another_environment_is_not_served(tmp_path: Path, url: str, kept: Path) -> None:
    with (
        away(tmp_path),
        connect(url, kept, "production", wait_s=0.2) as client,
        pytest.raises(ConfigUnavailable),
    ):
        client.get("triage")


def test_without_a_file_nothing_is_kept(tmp_path: Path, url: str, releasing: Team) -> None:
    releasing.release(1)

    connect(url, None).close()

    assert [each.name for each in tmp_path.iterdir()] == ["store"]


def test_a_file_that_cannot_be_written_is_named_once_and_stops_nothing(
    tmp_path: Path,
    url: str,
    releasing: Team,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deploy_gates.client.following.SAVE_EVERY_S", 0.0)
    (tmp_path / "cache").write_text("a file where a folder belongs")
    releasing.release(1)

    with connect(url, tmp_path / "cache" / "last.json") as client:
        for version in (2, 3, 4):
            assert follows(client, releasing.release(version))

    assert caplog.text.count("the last good config is not kept") == 1


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from deploy_gates.client import ConfigClient
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # no file grows beyond that
path = Path(sys.argv[2])
with ConfigClient(sys.argv[1], environment="development", last_good=path, report=False) as client:
    print(client.get("triage").digest)
"""


def test_a_full_disk_leaves_what_was_kept_before(url: str, releasing: Team, kept: Path) -> None:
    good = kept.read_bytes()
    releasing.release(2)

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL_DISK, url, str(kept)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, f"{digest(2)}\n"), done.stderr
    assert "the last good config is not kept" in done.stderr
    assert kept.read_bytes() == good
    assert [each.name for each in kept.parent.iterdir()] == ["last.json"]


def test_by_default_the_file_lies_in_the_cache_of_the_user_one_for_each_store_and_environment(
    tmp_path: Path, url: str, releasing: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    releasing.release(1)

    for environment in (ENVIRONMENT, "staging"):
        ConfigClient(url, environment=environment).close()
    monkeypatch.chdir(tmp_path)
    ConfigClient("sqlite:///store/store.db", environment=ENVIRONMENT).close()

    (file,) = (tmp_path / "caches" / "deploy-gates").iterdir()
    assert file == default_path(url, ENVIRONMENT)
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
