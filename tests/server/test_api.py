"""The HTTP API, asked over real sockets: what it answers, whom it refuses, and what it survives."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import Server, a_token, promoted, serving

import engines
from deploy_gates.core.canonical import spelled
from deploy_gates.core.promotion import Scope
from deploy_gates.core.release import Act, Release, Status, Terms
from deploy_gates.core.tally import BIN_MS, Arm, Histogram, Tally
from deploy_gates.server.description import openapi
from deploy_gates.store import Store, open_store
from deploy_gates.store.sqlite import SqliteStore
from deploy_gates.testing import POLICY, a_document, a_record, a_release

ENVIRONMENT = "/v1/environments/development"
DEPLOYMENT = "/v1/deployments/ticket-triage/development"
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


# --- Reading ------------------------------------------------------------------------------------


def test_what_is_served_is_told_once_and_again_when_it_changes(store: Store, server: Server) -> None:
    first, second = a_release(store, 1), a_release(store, 2)
    promoted(store, first)
    until(lambda: server.ask("GET", ENVIRONMENT).json["deployments"])

    told = server.ask("GET", ENVIRONMENT)
    again = server.ask("GET", ENVIRONMENT, headers={"If-None-Match": told.headers["etag"]})
    promoted(store, second, weight_bp=500)
    until(
        lambda: server.ask("GET", ENVIRONMENT, headers={"If-None-Match": told.headers["etag"]}).status == 200
    )
    changed = server.ask("GET", ENVIRONMENT)

    (row,) = changed.json["deployments"]
    assert (told.status, again.status, again.body) == (200, 304, b"")
    assert (row["baseline"], row["candidate"], row["weight_bp"]) == (first, second, 500)


def test_a_config_comes_as_it_was_spelled(store: Store, server: Server) -> None:
    digest = a_release(store)

    found = server.ask("GET", f"/v1/configs/{digest}")

    assert found.body == spelled(a_document())
    assert found.headers["deploy-gates-config"] == "ticket-triage"
    assert "immutable" in found.headers["cache-control"]
    assert server.ask("GET", f"/v1/configs/{'a' * 64}").status == 404


def test_a_stream_tells_of_each_change(store: Store, server: Server) -> None:
    first, second = a_release(store, 1), a_release(store, 2)
    promoted(store, first)
    until(lambda: server.ask("GET", ENVIRONMENT).json["deployments"])

    with Stream(server) as stream:
        one = stream.etag()
        promoted(store, second)
        other = stream.etag()

    assert one != other == server.ask("GET", ENVIRONMENT).headers["etag"]


class Stream:
    """A stream of events, over a plain socket."""

    def __init__(self, server: Server) -> None:
        self._socket = socket.create_connection(server.address, timeout=30)
        self._socket.sendall(
            f"GET {ENVIRONMENT}/stream HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {server.token}\r\n\r\n".encode()
        )
        self._file = self._socket.makefile("rb")

    def etag(self) -> str:
        while line := self._file.readline():
            if line.startswith(b"data: "):
                etag: str = json.loads(line.removeprefix(b"data: "))["etag"]
                return etag
        raise AssertionError("the stream has ended")

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()


def test_two_hundred_streams_hear_of_one_promotion_and_end_with_the_server(
    store: Store, server: Server
) -> None:
    first, second = a_release(store, 1), a_release(store, 2)
    promoted(store, first)
    until(lambda: server.ask("GET", ENVIRONMENT).json["deployments"])
    streams = [Stream(server) for _ in range(200)]
    before = {each.etag() for each in streams}

    promoted(store, second)
    after = {each.etag() for each in streams}
    open_ = server.ask("GET", "/metrics").body.decode()
    for each in streams[:100]:
        each.__exit__()
    until(
        lambda: (
            'deploy_gates_streams{environment="development"} 100'
            in server.ask("GET", "/metrics").body.decode()
        )
    )
    server.process.terminate()
    server.process.wait(20)
    for each in streams[100:]:
        each.__exit__()

    assert len(before) == len(after) == 1
    assert before != after
    assert 'deploy_gates_streams{environment="development"} 200' in open_


def test_status_log_and_metrics_tell_the_same(store: Store, server: Server) -> None:
    digest = a_release(store)
    promoted(store, digest)

    status = server.ask("GET", "/v1/status?config=ticket-triage").json["standings"]
    log = server.ask("GET", "/v1/log?config=ticket-triage&environment=development").json["events"]
    metrics = server.ask("GET", "/metrics").body.decode()

    assert [each["deployment"]["baseline"] for each in status] == [digest]
    assert [(each["actor"], each["reason"], each["baseline"]) for each in log] == [
        ("ada", "calmer tone", digest)
    ]
    assert {each.name for each in text_string_to_metric_families(metrics)} >= {
        "deploy_gates_revision",
        "deploy_gates_serving_info",
        "deploy_gates_clients",
        "deploy_gates_is_stale",
        "deploy_gates_requests",
    }
    assert 'deploy_gates_revision{config="ticket-triage",environment="development"} 1' in metrics
    assert 'deploy_gates_requests_total{method="GET",route="/v1/log",status="200"} 1' in metrics


# --- Reporting ----------------------------------------------------------------------------------


def test_clients_report_what_they_serve_and_what_came_of_it(store: Store, server: Server) -> None:
    promoted(store, a_release(store))
    served = [{"config": "ticket-triage", "revision": 1, "age_ms": 20, "reloaded": True}]
    tally = Tally(
        config="ticket-triage",
        environment="development",
        revision=1,
        arm=Arm.BASELINE,
        start_ms=BIN_MS * 360_000_000,
        started=2,
        latency_s=Histogram.of([0.5, 0.7]),
    )

    statuses = [
        server.ask(
            "PUT", "/v1/instances/a1", {"name": "web:1", "environment": "development", "served": served}
        ).status,
        server.ask(
            "POST", "/v1/tallies", {"instance": "a1", "first": 0, "tallies": [tally.to_json()]}
        ).status,
        server.ask(
            "POST", "/v1/tallies", {"instance": "a1", "first": 0, "tallies": [tally.to_json()]}
        ).status,
    ]
    (instance,) = store.instances()
    left = server.ask("DELETE", "/v1/instances/a1").status

    assert statuses == [204, 204, 204]
    assert (instance.name, instance.revision, instance.reloaded) == ("web:1", 1, True)
    assert list(store.tallies("ticket-triage", "development")) == [tally]
    assert (left, store.instances()) == (204, ())


# --- Moving -------------------------------------------------------------------------------------


def test_a_config_is_kept_promoted_and_rolled_back_in_the_name_of_the_token(
    store: Store, server: Server
) -> None:
    digests = [
        server.ask(
            "PUT", "/v1/configs", {"name": "ticket-triage", "spelling": spelled(a_document(each)).decode()}
        ).json["digest"]
        for each in (1, 2)
    ]
    refused = server.ask(
        "POST", f"{DEPLOYMENT}/promote", {"digest": digests[0], "policy": POLICY, "reason": ""}
    )
    for digest in digests:
        store.put_evidence(a_record(digest))
    asked = {"policy": POLICY, "reason": "calmer tone"}

    made = [server.ask("POST", f"{DEPLOYMENT}/promote", {"digest": each, **asked}) for each in digests]
    again = server.ask("POST", f"{DEPLOYMENT}/promote", {"digest": digests[0], "expected": 1, **asked})
    back = server.ask("POST", f"{DEPLOYMENT}/rollback", {"reason": "refunds"})

    assert (refused.status, refused.json["refusal"]) == (409, "evidence")
    assert [each.status for each in made] == [200, 200]
    assert (again.status, again.json["refusal"]) == (409, "revision")
    assert (back.status, back.json["deployment"]["baseline"]) == (200, digests[0])
    assert [each.actor for each in store.history("ticket-triage", "development")] == ["ada"] * 3


def test_evidence_that_cannot_be_trusted_is_not_kept(server: Server) -> None:
    said = server.ask("POST", "/v1/evidence", {"payloadType": "text/plain"})

    assert said.status == 422
    assert "payloadType" in said.json["error"]


# --- Who may ------------------------------------------------------------------------------------

READ, REPORT, PROMOTE, SPEND, GRANT = (
    {each} for each in (Scope.READ, Scope.REPORT, Scope.PROMOTE, Scope.SPEND, Scope.GRANT)
)
EVERYTHING = {
    ("GET", "/readyz"): READ,
    ("GET", "/metrics"): READ,
    ("GET", "/openapi.json"): READ,
    ("GET", "/v1/environments/{environment}"): READ,
    ("GET", "/v1/environments/{environment}/stream"): READ,
    ("GET", "/v1/configs/{digest}"): READ,
    ("GET", "/v1/status"): READ,
    ("GET", "/v1/log"): READ,
    ("GET", "/v1/promotions"): READ,
    ("GET", "/v1/promotions/{id}"): READ,
    ("POST", "/ofrep/v1/evaluate/flags"): READ,
    ("POST", "/ofrep/v1/evaluate/flags/{flag}"): READ,
    ("PUT", "/v1/instances/{instance}"): READ | REPORT,
    ("DELETE", "/v1/instances/{instance}"): READ | REPORT,
    ("POST", "/v1/tallies"): REPORT,
    ("PUT", "/v1/configs"): PROMOTE,
    ("POST", "/v1/evidence"): PROMOTE,
    ("POST", "/v1/deployments/{config}/{environment}/promote"): PROMOTE,
    ("POST", "/v1/deployments/{config}/{environment}/rollback"): PROMOTE,
    ("GET", "/v1/credits/organisations"): READ,
    ("POST", "/v1/credits/organisations"): GRANT,
    ("GET", "/v1/credits/organisations/{organisation}"): READ,
    ("PUT", "/v1/credits/organisations/{organisation}/terms"): GRANT,
    ("GET", "/v1/credits/organisations/{organisation}/statement"): READ,
    ("GET", "/v1/credits/organisations/{organisation}/verify"): READ,
    ("POST", "/v1/credits/transactions"): SPEND | GRANT,
}
"""Any of these scopes suffices."""


def statuses(
    server: Server, token: str, asked: Iterable[tuple[str, str]] = tuple(EVERYTHING)
) -> dict[tuple[str, str], int]:
    """What is answered to whoever has this token; a stream that opens has no end."""
    place = {
        "environment": "development",
        "digest": "a" * 64,
        "id": "1",
        "flag": "ticket-triage",
        "instance": "a1",
        "config": "ticket-triage",
        "organisation": "acme",
    }
    return {
        (method, path): server.ask(method, path.format(**place), {}, token=token).status
        for method, path in asked
    }


def test_whatever_is_described_has_its_scope_here() -> None:
    paths = openapi()["paths"]
    assert isinstance(paths, dict)
    described = {
        (method.upper(), path)
        for path, methods in paths.items()
        if isinstance(methods, dict)
        for method in methods
    }

    assert described - {("GET", "/healthz")} == set(EVERYTHING)


def test_nothing_but_health_is_open_once_there_is_a_token(store: Store, server: Server) -> None:
    without, unknown = statuses(server, ""), statuses(server, "dg_0_x")
    wrong = {}
    for scopes in (READ, READ | REPORT, REPORT, PROMOTE, GRANT, SPEND | GRANT):
        asked = [each for each, enough in EVERYTHING.items() if enough == scopes]
        wrong |= statuses(server, a_token(store, *(set(Scope) - scopes)), asked)

    assert server.ask("GET", "/healthz", token="").status == 200
    assert set(without.values()) == {401}, without
    assert set(unknown.values()) == {401}, unknown
    assert set(wrong.values()) == {403}, wrong
    assert set(wrong) == set(EVERYTHING)


@pytest.mark.parametrize(
    "token",
    ["", "dg", "dg_", "dg__", "dg_{id}_", "dg_{id}_wrong", "{id}", "dg_{id}_{secret}x", "é", "x" * 5_000],
)
def test_a_token_that_is_nearly_right_is_wrong(server: Server, token: str) -> None:
    _, identity, secret = server.token.split("_", 2)
    sent = token.format(id=identity, secret=secret).encode("utf-8").decode("latin-1")

    said = server.ask("GET", "/v1/status", token="", headers={"Authorization": f"Bearer {sent}"})

    assert said.status in (401, 400)


def test_a_revoked_token_is_refused_within_seconds(store: Store, server: Server) -> None:
    before = server.ask("GET", "/v1/status").status

    store.revoke_token(server.token.split("_")[1])
    until(lambda: server.ask("GET", "/v1/status").status == 401)

    assert before == 200


def test_on_loopback_reading_is_open_until_there_is_a_token(store: Store) -> None:
    promoted(store, a_release(store))
    with serving(store.url) as server:
        opened = statuses(server, "", [each for each in EVERYTHING if "/stream" not in each[1]])
        a_token(store, Scope.READ)
        until(lambda: server.ask("GET", "/v1/status").status == 401)

    assert {each for each, status in opened.items() if status == 401} == {
        each for each, scopes in EVERYTHING.items() if not scopes & (READ | REPORT)
    }


def test_beyond_loopback_nothing_is_open(store: Store) -> None:
    with serving(store.url, "", "--host=0.0.0.0") as server:
        port = server.address[1]
        local = Server(url=f"http://127.0.0.1:{port}", token="", process=server.process)

        assert local.ask("GET", "/healthz").status == 200
        assert set(statuses(local, "").values()) == {401}


# --- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("GET", "/v1/environments/moon", None, 404, "no environment 'moon'"),
        ("GET", "/nowhere", None, 404, "Not Found"),
        ("DELETE", "/v1/status", None, 405, "Method Not Allowed"),
        ("POST", "/v1/tallies", b"{", 400, "no JSON"),
        ("POST", "/v1/tallies", b"[" * 100_000, 400, "no JSON"),
        ("POST", "/v1/tallies", b"\xff\xfe", 400, "no JSON"),
        ("POST", "/v1/tallies", b'{"a": NaN}', 400, "NaN is no JSON"),
        ("POST", "/v1/tallies", [], 400, "no JSON object"),
        ("POST", "/v1/tallies", {"instance": "a", "first": -1, "tallies": []}, 400, "`first`"),
        ("POST", "/v1/tallies", {"instance": "a/b", "first": 0, "tallies": []}, 404, "no name"),
        (
            "POST",
            "/v1/tallies",
            {"instance": "a", "first": 0, "tallies": [{}]},
            400,
            "a tally cannot be read",
        ),
        ("POST", "/v1/tallies", b"x" * (1 << 21), 413, "longer than"),
        ("PUT", "/v1/configs", {"name": "x", "spelling": "{}"}, 400, "no `model`"),
        ("PUT", "/v1/configs", {"name": "\ud800", "spelling": "{}"}, 400, "is no text"),
        ("POST", f"{DEPLOYMENT}/promote", {"digest": "abc", "policy": "", "reason": ""}, 400, "`digest`"),
        ("POST", f"{DEPLOYMENT}/promote", {"digest": "a" * 64, "policy": ""}, 400, "`reason` is missing"),
        (
            "POST",
            f"{DEPLOYMENT}/promote",
            {"digest": "a" * 64, "policy": "", "reason": "", "weight_pct": 100},
            400,
            "`weight_pct`",
        ),
        ("POST", "/v1/deployments/x/moon/rollback", {"reason": ""}, 404, "no environment 'moon'"),
        ("POST", f"{DEPLOYMENT}/rollback", {"reason": "\0"}, 400, "`reason`"),
        ("POST", f"{DEPLOYMENT}/rollback", {"reason": ""}, 404, "nothing was ever promoted"),
        ("GET", "/v1/log?config=c&environment=development&limit=x", None, 400, "`limit`"),
        ("GET", "/v1/log", None, 400, "whose log"),
    ],
)
def test_bad_input_gets_one_sentence(
    server: Server, method: str, path: str, body: object, status: int, said: str
) -> None:
    answer = server.ask(method, path, body)

    assert answer.status == status, answer.body
    assert said in answer.json["error"]
    assert b"Traceback" not in answer.body


def test_garbage_and_slow_clients_leave_the_server_as_it_was(server: Server) -> None:
    with socket.create_connection(server.address, timeout=10) as garbage:
        garbage.sendall(b"\x16\x03\x01 not http at all\r\n\r\n")
        answered = garbage.recv(100)
    half = [socket.create_connection(server.address, timeout=10) for _ in range(50)]
    for each in half:
        each.sendall(b"POST /v1/tallies HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    healthy = server.ask("GET", "/healthz").status
    for each in half:
        each.close()

    assert answered.startswith(b"HTTP/1.1 400")
    assert healthy == server.ask("GET", "/healthz").status == 200


def test_what_goes_wrong_within_is_told_to_the_log_and_to_nobody_else(store: Store, server: Server) -> None:
    assert isinstance(store, SqliteStore)
    other = a_token(store, Scope.READ)
    store._run("UPDATE token SET scopes = 'everything' WHERE id = :id", {"id": other.split("_")[1]})

    said = server.ask("GET", "/v1/status", token=other)
    healthy = server.ask("GET", "/v1/status").status
    server.process.terminate()
    _, log = server.process.communicate(timeout=20)

    assert (said.status, healthy) == (500, 200)
    assert said.json == {"error": "the server could not do that; its log says why", "hint": ""}
    assert "'everything' is not a valid Scope" in log


# --- Survival -----------------------------------------------------------------------------------


def test_reads_go_on_from_memory_while_the_database_is_away() -> None:
    with engines.own_server() as database:
        url = engines.fresh_postgres(database.url)
        store = open_store(url)
        store.upgrade()
        promoted(store, a_release(store))
        with serving(url, a_token(store, *Scope)) as server:
            until(lambda: server.ask("GET", ENVIRONMENT).json["deployments"])
            database.kill()
            until(lambda: server.ask("GET", ENVIRONMENT).headers.get("deploy-gates-stale"))
            until(lambda: server.ask("POST", FLAG, {}).json["metadata"].get("stale"))  # follows by itself
            reading = server.ask("GET", ENVIRONMENT)
            flag = server.ask("POST", FLAG, {})
            writing = server.ask("POST", f"{DEPLOYMENT}/rollback", {"reason": ""})
            ready = server.ask("GET", "/readyz")
            database.start()
            until(lambda: "deploy-gates-stale" not in server.ask("GET", ENVIRONMENT).headers)
        store.close()

    assert (reading.status, flag.status) == (200, 200)
    assert flag.json["metadata"]["stale"] is True
    assert (writing.status, ready.status) == (503, 503)
    assert "retry-after" in writing.headers


def test_a_server_that_was_killed_starts_again_on_the_same_port(store: Store) -> None:
    promoted(store, a_release(store))
    token = a_token(store, *Scope)
    with serving(store.url, token) as server:
        port = server.address[1]
        server.kill()
    with serving(store.url, token, port=port) as again:
        until(lambda: again.ask("GET", ENVIRONMENT).json["deployments"])

        assert again.address[1] == port


def test_a_port_that_is_taken_is_named(store: Store) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(AssertionError, match=f"nobody can listen on 127.0.0.1:{port}"),
            serving(store.url, port=port),
        ):
            pass


def test_promotions_are_read_with_their_journals(store: Store, server: Server) -> None:
    digest = a_release(store, 1)
    release = Release(config="ticket-triage", digest=digest, actor="ada", reason="calmer tone")
    proposed = store.propose(release, until="production", policy="1" * 64, terms=Terms())
    taken = store.take(proposed.id, "ada@desk")
    store.write(taken, Act.ADMIT, "", Status.DONE, {"said": "five gates pass"})

    one = server.ask("GET", f"/v1/promotions/{proposed.id}").json
    listed = server.ask("GET", "/v1/promotions?open=1&config=ticket-triage").json["promotions"]
    ended = server.ask("GET", "/v1/promotions?open=1&config=another").json["promotions"]
    nobody = server.ask("GET", "/v1/promotions/99")
    wrong = server.ask("GET", "/v1/promotions?before=x")

    assert (one["digest"], one["state"], one["journal"][0]["data"]) == (
        digest,
        "running",
        {"said": "five gates pass"},
    )
    assert listed == [one]
    assert ended == []
    assert (nobody.status, wrong.status) == (404, 400)
