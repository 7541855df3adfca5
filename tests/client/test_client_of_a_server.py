"""The client at this package's own server, as two processes on one store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from releases import ENVIRONMENT, PRICE, Team, digest, eventually, follows, team

from deploy_gates.client import ConfigClient


@pytest.fixture
def releasing(store_url: str) -> Iterator[Team]:
    with team(store_url) as made:
        yield made


@pytest.fixture
def address(store_url: str, releasing: Team) -> Iterator[str]:
    """Where the server listens, a process of its own."""
    with subprocess.Popen(
        [*DEPLOY_GATES, "serve", "--port=0", f"--environment={ENVIRONMENT}", f"--store={store_url}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


@pytest.fixture
def token(store_url: str, releasing: Team) -> str:
    made = subprocess.run(
        [
            *DEPLOY_GATES,
            "token",
            "create",
            "a-test",
            "--scope=read",
            "--scope=report",
            f"--store={store_url}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return made.stdout.strip()


DEPLOY_GATES = (sys.executable, "-m", "deploy_gates")


def test_a_client_follows_acknowledges_and_reports_through_the_server(
    address: str, token: str, releasing: Team
) -> None:
    first = releasing.release(1)

    with ConfigClient(address, environment=ENVIRONMENT, token=token, last_good=None) as client:
        assert follows(client, first)
        assert (client.get("triage").digest, client.arms("triage")[0].price) == (digest(1), PRICE)
        canary = releasing.release(2, weight_bp=5_000)
        assert follows(client, canary)
        arms = {client.get("triage", str(key)).digest for key in range(100)}
        with client.get("triage", "k").call():
            pass
        assert client.flush()

        assert arms == {digest(1), digest(2)}
        assert eventually(lambda: [each.revision for each in releasing.store.instances()] == [canary])
        assert releasing.store.instances()[0].reloaded
        broken = releasing.release_spelled(b'{"messages": []}', "other")
        assert eventually(lambda: broken in [each.refused for each in releasing.store.instances()])
        assert follows(client, releasing.roll_back())
        assert not client.is_stale

    assert releasing.store.instances() == ()
    assert sum(each.finished for each in releasing.store.tallies("triage", ENVIRONMENT)) >= 1


def test_a_server_refuses_a_token_that_nobody_made(address: str, token: str, releasing: Team) -> None:
    releasing.release(1)
    stranger = token[:-4] + "AAAA"

    with ConfigClient(address, environment=ENVIRONMENT, token=stranger, last_good=None, wait_s=0.5) as client:
        assert "refuses the token (401)" in client.stale_reason
        assert client.names == ()
