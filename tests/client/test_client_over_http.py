"""The client over HTTP, at a real server that is well, slow, silent, broken, or gone."""

from __future__ import annotations

import ipaddress
import os
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from api_server import ApiServer, serving
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from releases import ENVIRONMENT, PRICE, digest, eventually, follows

from deploy_gates import clock
from deploy_gates.client import ConfigClient, remote
from deploy_gates.core.errors import ConfigUnavailable
from deploy_gates.core.tally import Arm


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with serving() as made:
        yield made


def connect(server: ApiServer, **options: object) -> ConfigClient:
    given = {"token": server.token, "last_good": None} | options
    return ConfigClient(server.url, environment=ENVIRONMENT, **given)  # type: ignore[arg-type]


def test_a_client_serves_what_a_server_says_and_follows_its_stream(server: ApiServer) -> None:
    server.release(1)
    with connect(server) as client:
        assert client.get("triage").digest == digest(1)
        assert client.arms("triage")[0].price == PRICE
        assert eventually(lambda: server.streams == 1)

        begun = time.monotonic()
        assert follows(client, server.release(2))
        took_s = time.monotonic() - begun

        assert client.get("triage").digest == digest(2)
        assert took_s < remote.POLL_S / 2  # the stream, not the polling


def test_a_document_is_fetched_once_and_what_did_not_change_is_not_sent(server: ApiServer) -> None:
    server.release(1)
    with connect(server) as client:
        for version in (2, 1, 2, 1):
            assert follows(client, server.release(version))

        fetched = [path for method, path, _ in server.requests if "/configs/" in path]
        assert sorted(fetched) == sorted(f"/v1/configs/{digest(version)}" for version in (1, 2))

        server.change(is_without_stream=True, status=503)
        assert eventually(lambda: client.is_stale)
        server.change(status=0)
        assert eventually(lambda: not client.is_stale)
        assert server.count("GET", ENVIRONMENT, 304) >= 1


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A certificate for this machine, which this process trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(1)
        .not_valid_before(clock.now() - timedelta(days=1))
        .not_valid_after(clock.now() + timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, secret = tmp_path / "cert.pem", tmp_path / "key.pem"
    pem.write_bytes(made.public_bytes(Encoding.PEM))
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, secret)
    return context


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_client_follows_over_tls_also_in_a_child(tls: ssl.SSLContext) -> None:
    with serving(tls=tls) as server:
        server.release(1)
        with connect(server) as client:
            assert eventually(lambda: server.streams == 1)
            child = os.fork()
            if not child:
                os._exit(0 if follows(client, 2) and client.get("triage").digest == digest(2) else 1)
            assert eventually(lambda: server.streams == 2)
            server.release(2)

            assert follows(client, 2)
            assert os.waitpid(child, 0)[1] == 0
            begun = time.monotonic()
        assert time.monotonic() - begun < 1


def test_a_server_whose_certificate_nobody_trusts_is_not_read(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with serving(tls=tls) as server:
        server.release(1)

        with connect(server, wait_s=0.5) as client, pytest.raises(ConfigUnavailable, match="certificate"):
            client.get("triage")


def test_a_canary_is_served_over_http(server: ApiServer) -> None:
    server.release(2)
    server.release(1, candidate=digest(2), weight_bp=5_000, salt="s")

    with connect(server) as client:
        arms = {client.get("triage", str(key)).arm for key in range(100)}

        assert arms == {Arm.BASELINE, Arm.CANDIDATE}


def test_what_is_served_and_what_came_of_it_is_told(server: ApiServer) -> None:
    revision = server.release(1)
    with connect(server, name="worker 7") as client:
        assert eventually(lambda: server.instances)
        ((instance, told),) = server.instances.items()
        with client.get("triage").call():
            pass
        assert client.flush()

        assert (told["name"], told["environment"]) == ("worker 7", ENVIRONMENT)
        assert [(each["config"], each["revision"], each["refused"]) for each in told["served"]] == [
            ("triage", revision, 0)
        ]
        assert (server.tallies[0]["instance"], server.tallies[0]["first"]) == (
            instance,
            server.tallies[0]["first"],
        )
        assert [each["finished"] for each in server.tallies[0]["tallies"]] == [1]
    assert server.instances == {}


def test_acknowledgements_of_many_changes_are_few(server: ApiServer) -> None:
    server.release(0)
    with connect(server) as client:
        assert eventually(lambda: server.acknowledged)
        begun, before = time.monotonic(), len(server.acknowledged)
        for version in range(1, 101):
            server.release(version % 7)
            assert follows(client, version + 1)
        took_s = time.monotonic() - begun
        last = server.deployments["triage"].revision

        assert eventually(lambda: server.acknowledged[-1]["served"][0]["revision"] == last)
        assert len(server.acknowledged) - before <= (took_s + 0.5) * 20 + 2


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 401},
        {"status": 403},
        {"status": 404},
        {"status": 429},
        {"status": 500},
        {"status": 302},
        {"is_truncating": True},
        {"body": b"<html>"},
        {"body": b"[]"},
        {"body": b'{"deployments": [{"config": 3}], "prices": {}}'},
        {"body": b"[" * 100_000},
    ],
    ids=lambda fault: str(fault)[:40],
)
def test_a_server_that_answers_wrongly_changes_nothing_until_it_is_well(
    server: ApiServer, fault: dict[str, object]
) -> None:
    server.release(1)
    told: list[frozenset[str]] = []
    with connect(server) as client:
        client.on_change(told.append)
        server.change(**fault)
        server.release(2)

        assert eventually(lambda: client.is_stale)
        assert client.get("triage").digest == digest(1)
        assert client.get("triage").is_stale
        assert client.stale_reason.startswith(server.url)

        server.change(**{name: None if name == "body" else 0 for name in fault})
        assert follows(client, 2)
        assert eventually(lambda: len(told) == 3)
        assert not client.is_stale
        assert sorted(told, key=len) == [frozenset(), frozenset(), frozenset({"triage"})]


def test_a_wrong_token_is_named_and_not_shown(server: ApiServer) -> None:
    server.release(1)

    with (
        connect(server, token="dg_2_hidden", wait_s=1) as client,
        pytest.raises(ConfigUnavailable, match="refuses the token") as refused,
    ):
        client.get("triage")

    assert "hidden" not in str(refused.value)


def test_a_server_that_goes_away_and_comes_back_is_followed_again(server: ApiServer) -> None:
    with serving() as first:
        first.release(1)
        client = connect(first)
    with client:
        assert eventually(lambda: client.is_stale)
        assert client.get("triage").digest == digest(1)

        with serving(api=first, port=first.port):
            first.release(2)
            assert follows(client, 2)
            assert eventually(lambda: not client.is_stale)
            assert eventually(lambda: first.streams == 1)
            client.close()


def test_a_server_that_hangs_makes_nobody_wait(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ANSWER_S", 0.4)
    server.release(1)
    with connect(server) as client:
        server.change(is_hanging=True)
        server.release(2)

        assert eventually(lambda: client.is_stale)
        assert client.get("triage").digest == digest(1)

        server.change(is_hanging=False)
        assert follows(client, 2)


def test_closing_ends_the_stream_at_once(server: ApiServer) -> None:
    server.heartbeat_s = 10.0
    server.release(1)
    before = set(threading.enumerate())
    client = connect(server)
    assert eventually(lambda: server.streams == 1)

    begun = time.monotonic()
    client.close()
    took_s = time.monotonic() - begun
    left = [each for each in set(threading.enumerate()) - before if "deploy-gates" in each.name]

    assert left == []
    assert took_s < 0.5


def test_a_client_of_a_hanging_server_starts_and_ends_in_time(server: ApiServer) -> None:
    server.change(is_hanging=True)
    before = set(threading.enumerate())

    begun = time.monotonic()
    client = connect(server, wait_s=0.2)
    started = time.monotonic()
    client.close()
    ended = time.monotonic()

    assert started - begun < 1
    assert ended - started < 1
    assert eventually(lambda: not [each for each in threading.enumerate() if "gates" in each.name])
    assert {each for each in before if "gates" in each.name} == set()


def test_a_stream_that_falls_silent_is_given_up_and_meanwhile_nothing_is_missed(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SILENT_S", 0.3)
    server.release(1)
    with connect(server) as client:
        assert eventually(lambda: server.opened == 1)

        server.change(is_silent=True)
        server.release(2)

        assert follows(client, 2)
        assert eventually(lambda: server.opened > 1)
        assert not client.is_stale


def test_heartbeats_keep_a_stream_open(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SILENT_S", 0.5)
    server.release(1)
    with connect(server) as client:
        assert eventually(lambda: server.streams == 1)

        assert not eventually(lambda: server.opened > 1, timeout_s=1.2)
        assert follows(client, server.release(2))


def test_a_stream_that_names_etags_in_its_own_way_is_not_asked_after_for_ever(server: ApiServer) -> None:
    server.change(is_naming_etags_otherwise=True)
    server.release(1)
    with connect(server) as client:
        assert follows(client, server.release(2))
        assert follows(client, server.release(3))

        assert not eventually(lambda: server.count("GET", ENVIRONMENT, 304) > 5, timeout_s=0.3)


def test_without_a_stream_changes_are_found_by_asking(server: ApiServer) -> None:
    server.change(is_without_stream=True)
    server.release(1)
    with connect(server) as client:
        assert follows(client, server.release(2))
        assert eventually(lambda: server.count("GET", ENVIRONMENT, 304) >= 2)
        assert not client.is_stale


def test_a_document_that_was_altered_on_the_way_is_refused_until_it_comes_whole(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy_gates.client.following.REREAD_S", 0.2)
    server.release(1)
    with connect(server) as client:
        server.altered[digest(2)] = b'{"model": "of somebody else"}'
        broken = server.release(2)
        assert follows(client, server.release(3, "other"), "other")

        assert eventually(lambda: _refused(server) == broken)
        assert client.revision("triage") < broken

        server.altered.clear()
        assert follows(client, broken)
        assert client.get("triage").digest == digest(2)
        assert eventually(lambda: _refused(server) == 0)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"weight_bp": 10_000, "candidate": "a" * 64, "salt": "s"}, "10000 basis points does not exist"),
        ({"candidate": "a" * 64, "salt": "s"}, "belong together"),
        ({"weight_bp": 5, "candidate": "a" * 64}, "without a salt"),
        ({"weight_bp": 5, "candidate": "a" * 64, "salt": "s"}, "the document aaaaaaa did not come with it"),
        ({"baseline": ""}, "no baseline to serve"),
    ],
)
def test_a_deployment_that_makes_no_sense_is_refused(
    server: ApiServer, fields: dict[str, Any], says: str
) -> None:
    server.release(1)
    with connect(server) as client:
        broken = server.release(2, **fields)

        assert eventually(lambda: _refused(server) == broken)
        assert client.get("triage", "k").digest == digest(1)
        (instance,) = server.instances.values()
        assert says in instance["served"][0]["reason"]


def _refused(server: ApiServer) -> int:
    """The revision of `triage` that the only instance refuses."""
    rows = [row for each in server.instances.values() for row in each["served"]]
    return next((int(row["refused"]) for row in rows if row["config"] == "triage"), 0)
