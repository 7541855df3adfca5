"""What a server bounds before it knows who asks, and what it remembers while its store is away."""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving import Server, a_token, promoted, serving

import engines
from deploy_gates.core.promotion import Scope
from deploy_gates.server.access import REMEMBERED_S
from deploy_gates.server.connection import HEADERS_MAX_BYTES, HEADERS_S
from deploy_gates.store import Store, open_store
from deploy_gates.testing import a_release

ENVIRONMENT = "/v1/environments/development"
FLAG = "/ofrep/v1/evaluate/flags/ticket-triage.model"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = open_store(engines.fresh_sqlite(tmp_path))
    made.upgrade()
    yield made
    made.close()


@pytest.fixture
def server(store: Store) -> Iterator[Server]:
    with serving(store.url, a_token(store, *Scope)) as made:
        yield made


def until(holds: Callable[[], object], deadline_s: float = 20.0) -> None:
    end = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def answered(connection: socket.socket) -> tuple[int, bytes]:
    """The next answer on a plain connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


def pushed(connection: socket.socket, most: int) -> int:
    """How many bytes go into a connection until it is cut off."""
    sent = 0
    with contextlib.suppress(OSError):
        while sent < most:
            connection.sendall(b"a" * HEADERS_MAX_BYTES)
            sent += HEADERS_MAX_BYTES
    return sent


def resident_kb(server: Server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def test_headers_without_an_end_are_cut_off(server: Server) -> None:
    before = resident_kb(server)

    with socket.create_connection(server.address, timeout=10) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: ")
        sent = pushed(connection, 100 << 20)

    assert sent < 32 << 20  # what the sockets hold on the way
    assert resident_kb(server) - before < 16 << 10
    assert server.ask("GET", "/healthz").status == 200


def test_headers_a_little_too_long_are_told_so_and_those_of_many_requests_are_not_added_up(
    server: Server,
) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: "

    with socket.create_connection(server.address, timeout=10) as connection:
        statuses = []
        for _ in range(5):
            connection.sendall(head + b"a" * (HEADERS_MAX_BYTES // 2) + b"\r\n\r\n")
            statuses.append(answered(connection)[0])
    with socket.create_connection(server.address, timeout=10) as connection:
        connection.sendall(head + b"a" * HEADERS_MAX_BYTES)
        status, said = answered(connection)

    assert statuses == [200] * 5
    assert status == 431
    assert b"the headers are longer than" in said


def test_whoever_connects_and_says_too_little_is_let_go(server: Server) -> None:
    beginnings = {
        "nothing": b"",
        "half a line": b"GET /hea",
        "no end": b"GET /healthz HTTP/1.1\r\nHost: x\r\n",
    }
    begun = time.monotonic()
    held = {
        name: socket.create_connection(server.address, timeout=3 * HEADERS_S)
        for name in [*beginnings, "after"]
    }
    for name, beginning in beginnings.items():
        held[name].sendall(beginning)
    held["after"].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    first = answered(held["after"])[0]
    held["after"].sendall(b"\r\n")

    statuses = {name: answered(each)[0] for name, each in held.items()}
    took_s = time.monotonic() - begun
    for each in held.values():
        each.close()

    assert first == 200
    assert statuses == dict.fromkeys(held, 408)
    assert HEADERS_S * 0.9 < took_s < 2.5 * HEADERS_S


def test_another_site_reads_nothing_through_a_browser_on_this_machine(store: Store) -> None:
    promoted(store, a_release(store))
    with serving(store.url) as server:
        port = server.address[1]
        asked = [
            {},
            {"Origin": f"http://localhost:{port}"},
            {"Origin": "https://elsewhere.example"},
            {"Origin": "null"},
            {"Host": f"elsewhere.example:{port}"},
            {"Host": "127.0.0.1.elsewhere.example"},
        ]

        statuses = [server.ask("GET", "/v1/status", headers=each).status for each in asked]

    assert statuses == [200, 200, 401, 401, 401, 401]


def test_while_the_store_is_away_a_token_is_good_for_what_is_in_memory() -> None:
    with engines.own_server() as database:
        url = engines.fresh_postgres(database.url)
        store = open_store(url)
        store.upgrade()
        promoted(store, a_release(store))
        with serving(url, a_token(store, *Scope)) as server:
            until(lambda: server.ask("GET", ENVIRONMENT).json["deployments"])
            known = server.ask("POST", FLAG, {}).status
            database.kill()
            away = time.monotonic()
            seen = set()
            while time.monotonic() < away + 2 * REMEMBERED_S + 1:
                seen |= {server.ask("GET", ENVIRONMENT).status, server.ask("POST", FLAG, {}).status}
                time.sleep(0.1)
            wrong = server.ask("POST", FLAG, {}, token=server.token + "x").status
            stranger = server.ask("POST", FLAG, {}, token="dg_0_x")
            database.start()
            until(lambda: "deploy-gates-stale" not in server.ask("GET", ENVIRONMENT).headers)
            store.revoke_token(server.token.split("_")[1])
            until(lambda: server.ask("GET", ENVIRONMENT).status == 401)
        store.close()

    assert known == 200
    assert seen == {200}
    assert wrong == 401
    assert stranger.status == 503
    assert "retry-after" in stranger.headers
    assert b"postgresql" not in stranger.body, "strangers are not told where the store is"
    assert set(stranger.json) == {"errorDetails"}
