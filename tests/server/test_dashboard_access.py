"""Who may see the dashboard and use its buttons, and what its pages let others do: nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import pytest
from scenes import CONFIG, dead_letter, in_canary
from serving import Answer, Server, a_token, serving

import engines
from deploy_gates.core.promotion import Scope
from deploy_gates.store import Store, open_store

PAGES = (
    "/",
    "/promotions/1",
    f"/configs/{CONFIG}",
    "/log",
    "/deliveries",
    "/eliminated",
    "/credits",
    "/live",
)
BUTTONS = ("/promotions/1/rollback", "/promotions/1/resume", "/deliveries/again")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = open_store(engines.fresh_sqlite(tmp_path))
    made.upgrade()
    in_canary(made)
    yield made
    made.close()


def sent(server: Server, path: str, cookie: str = "", origin: str = "", **fields: str) -> Answer:
    """A form, as a browser sends it."""
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": origin or server.url}
    if cookie:
        headers["Cookie"] = cookie
    return server.ask("POST", path, urlencode(fields).encode(), token="", headers=headers)


def got(server: Server, path: str, cookie: str = "", token: str = "") -> Answer:
    return server.ask("GET", path, token=token, headers={"Cookie": cookie} if cookie else {})


def signed_in(server: Server, token: str) -> tuple[str, str]:
    """The cookie of a session, and what its forms have to send back."""
    answer = sent(server, "/sign-in", token=token, next="/")
    assert answer.status == 303, answer.body
    cookie = answer.headers["set-cookie"].partition(";")[0]
    found = re.search(r'name="csrf" value="([^"]+)"', got(server, "/", cookie).body.decode())
    assert found is not None
    return cookie, found[1]


def serves(store: Store) -> int:
    return store.deployments("production", CONFIG)[0].revision


def test_pages_load_nothing_from_elsewhere_and_run_nothing_inline(server: Server) -> None:
    for path in (*PAGES[:-1], "/sign-in"):
        answer = got(server, path)
        policy, page = answer.headers["content-security-policy"], answer.body.decode()

        assert answer.status == 200, path
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"(src|href|action)=\"(https?:)?//", page), path
        assert not re.search(r"<[^>]*\s(on\w+|style)=", page), path
        assert re.findall(r"<script[^>]*>([^<]*)</script>", page) == [""]


def test_files_are_sent_once(server: Server) -> None:
    for name in ("style.css", "live.js", "icon.svg"):
        first = got(server, f"/static/{name}")
        again = server.ask(
            "GET", f"/static/{name}", token="", headers={"If-None-Match": first.headers["etag"]}
        )

        assert first.status == 200
        assert (again.status, again.body) == (304, b"")
    assert got(server, "/static/..%2f__init__.py").status == 404


def test_where_there_is_no_page_people_get_one_and_programs_get_json(server: Server) -> None:
    people = server.ask("GET", "/nowhere", token="", headers={"Accept": "text/html,*/*;q=0.8"})
    programs = server.ask("GET", "/v1/nowhere", token="", headers={"Accept": "text/html"})

    assert (people.status, people.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "there is no such page" in people.body.decode()
    assert (programs.status, programs.headers["content-type"]) == (404, "application/json")


def test_reading_is_open_until_there_is_a_token_and_then_needs_one(store: Store, server: Server) -> None:
    assert got(server, "/").status == 200

    token = a_token(store, Scope.READ)
    with serving(store.url, "", "--no-carry") as strict:
        for path in PAGES:
            asked = got(strict, path)
            assert asked.status == 303, path
            assert CONFIG.encode() not in asked.body
            assert asked.headers["location"] == f"/sign-in?next={path.replace('/', '%2F')}"
        assert got(strict, "/", token=token).status == 200
        cookie, _ = signed_in(strict, token)
        assert got(strict, "/", cookie).status == 200
        assert got(strict, "/", token=a_token(store, Scope.REPORT)).status == 303


def test_a_session_is_kept_from_scripts_and_from_other_sites(store: Store, server: Server) -> None:
    answer = sent(server, "/sign-in", token=a_token(store, Scope.READ), next="/log")

    assert answer.headers["location"] == "/log"
    flags = answer.headers["set-cookie"].lower()
    assert all(each in flags for each in ("httponly", "samesite=strict", "max-age=28800", "path=/"))
    assert "secure" not in flags  # a browser would not send it back over plain HTTP


@pytest.mark.parametrize("to", ["https://evil.test/", "//evil.test/", "/\\evil.test", "javascript:alert(1)"])
def test_nobody_is_sent_elsewhere_after_signing_in(store: Store, server: Server, to: str) -> None:
    answer = sent(server, "/sign-in", token=a_token(store, Scope.READ), next=to)

    assert (answer.status, answer.headers["location"]) == (303, "/")


def test_a_token_that_nobody_knows_signs_nobody_in(server: Server) -> None:
    answer = sent(server, "/sign-in", token="dg_nobody_knows", next="/")

    assert answer.status == 401
    assert "set-cookie" not in answer.headers
    assert "nobody knows this token" in answer.body.decode()
    assert "dg_nobody_knows" not in answer.body.decode()


def test_a_token_that_is_revoked_ends_its_sessions(store: Store, server: Server) -> None:
    secret = a_token(store, *Scope)
    a_token(store, Scope.READ, name="another")
    cookie, csrf = signed_in(server, secret)
    (token,) = [each for each in store.tokens() if each.name == "ada"]

    store.revoke_token(token.id)

    with serving(store.url, "", "--no-carry") as later:  # sessions are in memory: none survives
        assert got(later, "/", cookie).status == 303
    until_revoked(server, cookie)
    assert sent(server, BUTTONS[0], cookie, csrf=csrf).headers["location"] == "/sign-in"
    assert serves(store) == 2


def until_revoked(server: Server, cookie: str) -> None:
    from test_limits import until

    until(lambda: got(server, "/", cookie).status == 303)


@pytest.mark.parametrize("path", BUTTONS)
def test_buttons_do_nothing_for_whoever_may_not(store: Store, server: Server, path: str) -> None:
    dead_letter(store)
    strong, csrf = signed_in(server, a_token(store, *Scope))
    weak, weak_csrf = signed_in(server, a_token(store, Scope.READ, name="eve"))
    before = serves(store), store.deliveries(), store.promotion(1)

    answers = {
        "nobody": sent(server, path, csrf=csrf),
        "may only read": sent(server, path, weak, csrf=weak_csrf),
        "another's form": sent(server, path, strong, csrf=weak_csrf),
        "no form": sent(server, path, strong),
        "another site": sent(server, path, strong, origin="https://evil.test", csrf=csrf),
        "a sandbox": sent(server, path, strong, origin="null", csrf=csrf),
        "JSON": server.ask("POST", path, {"csrf": csrf}, token="", headers={"Cookie": strong}),
        "a link": got(server, path, strong),
        "bearer": server.ask("POST", path, b"", token=a_token(store, *Scope)),
    }

    statuses = {who: answer.status for who, answer in answers.items()}
    assert statuses.pop("nobody") == 303
    assert statuses.pop("a link") == 405
    assert statuses.pop("JSON") == statuses.pop("bearer") == 415
    assert set(statuses.values()) == {403}
    assert (serves(store), store.deliveries(), store.promotion(1)) == before


def test_what_somebody_may_not_do_is_not_offered(store: Store, server: Server) -> None:
    weak, _ = signed_in(server, a_token(store, Scope.READ, name="eve"))
    strong, _ = signed_in(server, a_token(store, *Scope))

    assert "Roll" not in re.sub("Rolling back and resuming", "", page(server, "/promotions/1", weak))
    assert "End the canary" not in page(server, "/promotions/1", weak)
    assert "End the canary" in page(server, "/promotions/1", strong)


def page(server: Server, path: str, cookie: str) -> str:
    return unescape(got(server, path, cookie).body.decode())


def test_whoever_signs_out_is_out(store: Store, server: Server) -> None:
    cookie, csrf = signed_in(server, a_token(store, *Scope))
    assert sent(server, "/sign-out", cookie, csrf="wrong").status == 403

    assert sent(server, "/sign-out", cookie, csrf=csrf).status == 303

    assert got(server, "/", cookie).status == 303
    assert sent(server, BUTTONS[0], cookie, csrf=csrf).headers["location"] == "/sign-in"
    assert serves(store) == 2


def test_a_form_that_goes_wrong_is_answered_with_a_page(store: Store, server: Server) -> None:
    cookie, csrf = signed_in(server, a_token(store, *Scope))

    lost = sent(server, "/promotions/77/rollback", cookie, csrf=csrf)
    huge = sent(server, BUTTONS[0], cookie, csrf=csrf, reason="a" * 20_000)
    odd = server.ask(
        "POST",
        "/sign-in",
        b"\xff=\xff",
        token="",
        headers={"Content-Type": "application/x-www-form-urlencoded", "Origin": server.url},
    )

    assert [each.status for each in (lost, huge, odd)] == [404, 413, 400]
    assert all(b"That did not work" in each.body for each in (lost, huge, odd))
    assert "there is no promotion 77" in unescape(lost.body.decode())


def test_a_message_comes_from_the_server_and_not_from_a_link(store: Store, server: Server) -> None:
    cookie, csrf = signed_in(server, a_token(store, *Scope))
    assert "production is down" not in page(server, "/?said=production+is+down", cookie)

    answer = sent(server, BUTTONS[0], cookie, csrf=csrf)

    assert "again (r3)" in page(server, answer.headers["location"], cookie)
    assert (
        "again (r3)"
        not in got(server, answer.headers["location"], token=a_token(store, *Scope)).body.decode()
    )
