"""Signed CloudEvents over real sockets, to receivers that are well, slow, large, or elsewhere."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import journeys
import pytest
import standardwebhooks
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from outside import Asked, Service, listening

from deploy_gates.core.delivery import Delivery
from deploy_gates.notify import events, web
from deploy_gates.notify.web import Endpoint, Undelivered
from deploy_gates.notify.webhook import Webhook, key_of, signature

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
"""The one of the published vector."""
EVENTFUL = journeys.shipped(reason="Größe → Preis")


@pytest.fixture
def receiver() -> Iterator[Service]:
    with listening(Service()) as service:
        yield service


def a_webhook(url: str) -> Webhook:
    return Webhook(endpoint=Endpoint(url=url, secrets=(SECRET, url)), key=key_of(SECRET))


def a_delivery() -> Delivery:
    event = events.of_promotion(EVENTFUL, source="/t")[-1]
    return journeys.a_delivery(event)


def send(service: Service, path: str = "/hook") -> Asked:
    a_webhook(service.url + path).send(a_delivery(), list)
    return service.asked[-1]


def refused(url: str) -> Undelivered:
    with pytest.raises(Undelivered) as caught:
        a_webhook(url).send(a_delivery(), list)
    return caught.value


def test_the_published_vector_is_signed_as_published() -> None:
    signed = signature(key_of(SECRET), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')

    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_reference_library_verifies_what_is_sent(receiver: Service) -> None:
    asked = send(receiver, "/hook?team=triage")

    verified = standardwebhooks.Webhook(SECRET).verify(asked.body, dict(asked.headers))
    assert verified == a_delivery().body
    assert asked.path == "/hook"
    assert asked.query == {"team": "triage"}
    assert asked.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert asked.headers["webhook-id"] == a_delivery().id


def test_the_library_of_cloud_events_reads_what_is_sent(receiver: Service) -> None:
    asked = send(receiver)

    event = from_http_event(HTTPMessage(headers=dict(asked.headers), body=asked.body))

    assert event.get_type() == "io.deploy-gates.promotion.shipped"
    assert (event.get_source(), event.get_subject()) == ("/t", "ticket-triage/118")
    assert event.get_time() == events.time_of(a_delivery().body)
    assert event.get_data() == a_delivery().body["data"]


def test_a_body_that_was_changed_is_not_verified(receiver: Service) -> None:
    asked = send(receiver)

    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(SECRET).verify(asked.body + b" ", dict(asked.headers))


@pytest.mark.parametrize("secret", ["whsec_no base64", "whsec_c2hvcnQ=", "whsec_" + "A" * 100])
def test_a_secret_that_is_no_key_is_refused_without_being_shown(secret: str) -> None:
    with pytest.raises(ValueError) as caught:
        key_of(secret)

    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "headers", "is_final", "retry_after_s"),
    [
        (500, {}, False, 0),
        (503, {"retry-after": "120"}, False, 120),
        (429, {"retry-after": "99999999"}, False, web.RETRY_AFTER_MAX_S),
        (429, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, False, 1),
        (403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "9999999999"}, False, 3_600),
        (404, {}, False, 0),
        (410, {}, True, 0),
        (302, {"location": "http://127.0.0.1:9/elsewhere"}, True, 0),
    ],
)
def test_whatever_is_no_receipt_is_tried_again_unless_the_receiver_is_gone(
    receiver: Service, status: int, headers: dict[str, str], is_final: bool, retry_after_s: float
) -> None:
    receiver.failing.append((status, headers, {"message": f"no, {SECRET}"}))

    error = refused(receiver.url + "/hook")

    assert (error.is_final, error.retry_after_s) == (is_final, retry_after_s)
    assert SECRET not in error.message
    assert len(receiver.asked) == 1  # no redirect was followed


def test_an_answer_without_an_end_is_not_read_to_its_end(receiver: Service) -> None:
    receiver.failing.append((200, {}, b"x" * (web.ANSWER_MAX_BYTES + 1)))

    error = refused(receiver.url)

    assert "more than 1 MiB" in error.message


def test_nobody_there_is_said_without_the_url() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

    error = refused(f"http://127.0.0.1:{port}/services/T000/secret-path")

    assert error.message == "127.0.0.1 cannot be reached: nobody listens there"


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "http://u:p@127.0.0.1/x", "nonsense", "http://h:bad/"])
def test_a_url_that_cannot_be_asked_is_refused_without_being_shown(url: str) -> None:
    error = refused(url)

    assert error.is_final
    assert url not in error.message


@pytest.mark.parametrize("drips", [b"", b"HTTP/1.1 200 OK\r\nx: "], ids=["silent", "dripping"])
def test_a_receiver_that_never_comes_to_an_end_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, drips: bytes
) -> None:
    monkeypatch.setattr(web, "SEND_S", 0.4)
    done = threading.Event()

    def serve(listener: socket.socket) -> None:
        talking, _ = listener.accept()
        with talking:
            try:
                talking.sendall(drips)
                while not done.wait(0.05):
                    talking.sendall(b"x" if drips else b"")
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        began = time.monotonic()
        error = refused(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        took_s = time.monotonic() - began
        done.set()
        thread.join()

    assert "did not answer within" in error.message
    assert took_s < 2


def test_https_is_asked_only_where_the_certificate_is_trusted(receiver: Service) -> None:
    error = refused(receiver.url.replace("http://", "https://"))

    assert "does not speak TLS" in error.message


def test_a_proxy_of_the_environment_is_gone_through(
    receiver: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", receiver.url)
    monkeypatch.setenv("no_proxy", "")

    a_webhook("http://hooks.invalid/x").send(a_delivery(), list)

    assert receiver.asked[-1].headers["host"] == "hooks.invalid"
    assert receiver.asked[-1].path == "/x"


def test_nothing_that_is_logged_names_the_secret(receiver: Service, caplog: Any) -> None:
    caplog.set_level(0)

    send(receiver, "/secret-path")

    assert "secret-path" not in caplog.text
    assert SECRET not in caplog.text
    assert SECRET not in repr(a_webhook(receiver.url + "/secret-path"))
    assert "secret-path" not in repr(a_webhook(receiver.url + "/secret-path"))
