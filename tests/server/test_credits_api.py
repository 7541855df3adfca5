"""Credits over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving import Answer, Server, a_token, serving

from deploy_gates.core.promotion import Scope
from deploy_gates.store import Store

USAGE = {"input_tokens": 1_000, "cached_input_tokens": 400, "output_tokens": 200, "reasoning_tokens": 150}
COST = 600_000
"""Of gpt-4.1-mini, in micro-credits."""
TRANSACTIONS = "/v1/credits/transactions"


@pytest.fixture
def server(store: Store) -> Iterator[Server]:
    with serving(store.url, a_token(store, *Scope), "--no-carry") as made:
        made.ask("POST", "/v1/credits/organisations", {"organisation": "acme", "name": "Acme"})
        granted = ask(made, "grant", id="grant", amount=1_000_000)
        assert granted.status == 200, granted.body
        yield made


def ask(server: Server, kind: str, **fields: object) -> Answer:
    token = fields.pop("token", None)
    sent = {"organisation": "acme", "id": "call-1", "kind": kind} | fields
    return server.ask("POST", TRANSACTIONS, sent, token=token)  # type: ignore[arg-type]


def test_a_call_is_reserved_and_posted(server: Server) -> None:
    reserved = ask(server, "reserve", model="gpt-4.1-mini", usage=USAGE)
    used = USAGE | {"output_tokens": 150}
    posted = ask(server, "post", id="post-1", reservation="call-1", model="gpt-4.1-mini", usage=used)
    again = ask(server, "post", id="post-1", reservation="call-1", model="gpt-4.1-mini", usage=used)

    assert (reserved.status, posted.status, again.status) == (200, 200, 200)
    assert reserved.json["balance"]["reserved"] == COST
    assert posted.json["entry"]["amount"] == COST - 80_000
    assert posted.json["balance"]["available"] == 1_000_000 - COST + 80_000
    assert (again.json["replayed"], again.json["entry"]) == (True, posted.json["entry"])


def test_each_refusal_has_its_status_and_says_when_to_come_back(server: Server) -> None:
    limits = {"limits": [{"rate": "requests_per_minute", "most": 2}]}
    changed = server.ask("PUT", "/v1/credits/organisations/acme/terms", limits)
    too_much = ask(server, "consume", id="a", amount=1_000_001)
    fine = [ask(server, "consume", id=each, amount=1).status for each in ("b", "c")]
    too_soon = ask(server, "consume", id="d", amount=1)

    assert (changed.status, too_much.status, fine, too_soon.status) == (200, 402, [200, 200], 429)
    assert too_much.json["refused"] == "balance"
    assert too_much.json["error"] == "acme has 1 credits available and 0 reserved, and this takes 1.000001"
    assert 20 <= int(too_soon.headers["retry-after"]) <= 30
    assert too_soon.json["refused"] == "requests per minute"
    assert ask(server, "consume", organisation="nobody", amount=1).status == 404
    assert ask(server, "void", id="e", reservation="nothing").status == 404
    assert ask(server, "consume", id="b", amount=2).status == 409
    assert ask(server, "consume", id="f", model="nobody-knows-me", usage=USAGE).status == 422
    assert ask(server, "correct", id="g", amount=10**9).status == 422


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "expire"},
        {"kind": "steal"},
        {"amount": "1"},
        {"amount": 1.5},
        {"amount": -1},
        {"amount": 10**16},
        {"id": ""},
        {"id": 1},
        {"usage": {"input_tokens": -1}},
        {"usage": {"tokens": 1}},
        {"hold_s": -5},
        {"organisation": "team/a"},
        {"organisation": ".."},
        {"amount": None},
        {"hold_s": "long"},
        {"price": {"input_usd": "cheap"}},
        {"price": {"input_usd": "1", "output_usd": "NaN"}},
        {"price": {"input_usd": "1", "output_usd": "1", "source": {}}},
        {"price": {"input_usd": "1", "output_usd": "1", "tiers": [1]}},
    ],
)
def test_what_cannot_be_read_is_told(server: Server, fields: dict[str, object]) -> None:
    sent = {"organisation": "acme", "id": "call-1", "kind": "consume", "amount": 1} | fields

    assert server.ask("POST", TRANSACTIONS, sent).status == 400


def test_what_nobody_would_read_is_refused_by_name(server: Server) -> None:
    misspelt = ask(server, "reserve", amount=1, expires_s=-5)
    usage = ask(server, "consume", model="gpt-4.1-mini", usage={"tokens": 1})
    terms = server.ask("PUT", "/v1/credits/organisations/acme/terms", {"limit": []})
    added = server.ask("POST", "/v1/credits/organisations", {"organisation": "b", "multiplier": 2})

    assert [each.status for each in (misspelt, usage, terms, added)] == [400] * 4
    assert misspelt.json["error"] == "the body has `expires_s`, which is not known here"
    assert "hold_s" in misspelt.json["hint"]
    assert usage.json["error"].startswith("`usage` has no tokens: it has input_tokens, ")
    assert terms.json["hint"] == "known are limits, lowest, multiplier_ppm, note"
    assert "`multiplier`" in added.json["error"]


def test_an_organisation_has_a_name_that_an_address_can_carry(server: Server) -> None:
    refused = [
        server.ask("POST", "/v1/credits/organisations", {"organisation": each})
        for each in ("team/a", ".", "..", "", "a\nb", "x" * 201)
    ]
    fine = server.ask("POST", "/v1/credits/organisations", {"organisation": "Größe & Co. KG"})

    assert [each.status for each in refused] == [400] * 6
    assert "an organisation is named by 1 to 200 characters, without /" in refused[0].json["error"]
    assert fine.status == 200


def test_terms_that_change_nothing_are_written_down_once(server: Server) -> None:
    terms = {"limits": [{"rate": "requests_per_day", "most": 5}]}

    entries = [
        server.ask("PUT", "/v1/credits/organisations/acme/terms", each).json["entries"]
        for each in ({}, terms, terms, {"multiplier_ppm": 1_000_000}, {"multiplier_ppm": 2_000_000})
    ]

    assert entries == [2, 3, 3, 3, 4]


def test_who_asks_for_a_model_without_a_price_hears_the_true_balance(server: Server) -> None:
    unpriced = ask(server, "consume", model="nobody-knows-me", usage=USAGE)
    nobody = ask(server, "consume", organisation="nobody", model="nobody-knows-me", usage=USAGE)

    assert (unpriced.status, unpriced.json["balance"]["available"]) == (422, 1_000_000)
    assert nobody.status == 404


def test_a_token_that_may_only_read_hears_what_it_lacks(server: Server, store: Store) -> None:
    refused = ask(server, "consume", amount=1, token=a_token(store, Scope.READ))

    assert (refused.status, refused.json["error"]) == (
        403,
        "this token is for neither `spend` nor `grant`",
    )


def test_limits_that_are_none_are_told(server: Server) -> None:
    for limits in ("all", [1], [{"rate": {}, "most": 1}], [{"rate": "requests_per_day", "most": 0}]):
        sent = {"limits": limits}
        assert server.ask("PUT", "/v1/credits/organisations/acme/terms", sent).status == 400


def test_spending_and_granting_take_tokens_of_their_own(server: Server, store: Store) -> None:
    spender, granter = a_token(store, Scope.SPEND), a_token(store, Scope.GRANT)
    reader = a_token(store, Scope.READ, Scope.REPORT, Scope.PROMOTE)

    statuses = {
        name: [
            ask(server, "consume", id=f"{name}-1", amount=1, token=token).status,
            ask(server, "grant", id=f"{name}-2", amount=1, token=token).status,
            server.ask("GET", "/v1/credits/organisations/acme", token=token).status,
        ]
        for name, token in {"spender": spender, "granter": granter, "reader": reader, "nobody": ""}.items()
    }

    assert statuses == {
        "spender": [200, 403, 403],
        "granter": [403, 200, 403],
        "reader": [403, 403, 200],
        "nobody": [401, 401, 401],
    }


def test_a_server_without_tokens_lets_nobody_spend(store: Store) -> None:
    with serving(store.url, "", "--no-carry") as server:
        assert ask(server, "consume", amount=1).status == 401
        assert server.ask("GET", "/v1/credits/organisations").status == 200


def test_ledgers_can_be_read_and_verified(server: Server) -> None:
    ask(server, "consume", amount=5)

    listed = server.ask("GET", "/v1/credits/organisations").json["organisations"]
    entries = server.ask("GET", "/v1/credits/organisations/acme/statement?after=1&limit=5").json["entries"]
    verified = server.ask("GET", "/v1/credits/organisations/acme/verify").json

    assert [(each["organisation"], each["balance"]["spent"]) for each in listed] == [("acme", 5)]
    assert [(each["kind"], each["actor"]) for each in entries] == [("grant", "ada"), ("consume", "ada")]
    assert (verified["entries"], verified["head"], verified["faults"]) == (3, entries[-1]["hash"], [])
    assert server.ask("GET", "/v1/credits/organisations/nobody").status == 404


# --- Pages --------------------------------------------------------------------------------------


def test_the_dashboard_shows_what_organisations_have(server: Server) -> None:
    ask(server, "reserve", amount=600_000)
    ask(server, "post", id="b", reservation="call-1", amount=1_700_000, model="gpt-4.1-mini", usage=USAGE)

    every = server.ask("GET", "/credits")
    one = server.ask("GET", "/credits/acme?verify=1")

    assert (every.status, one.status) == (200, 200)
    assert '<a href="/credits/acme">acme</a>' in every.body.decode()
    page = one.body.decode()
    assert "4 entries: every hash, transfer, price and balance is as it should be." in page
    assert "overrun 1.1" in page
    assert "uncovered 0.7" in page
    assert "gpt-4.1-mini" in page
    assert server.ask("GET", "/credits/nobody").status == 404
    assert server.ask("GET", "/credits", token="").status == 303
