"""What a ledger promises on both engines."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from enum import StrEnum

import pytest

from deploy_gates.core.cost import Price, Usage
from deploy_gates.core.errors import Refused, StoreError
from deploy_gates.core.ledger import (
    MICRO,
    PPM,
    Account,
    Allowance,
    Answer,
    Balance,
    Entry,
    Kind,
    No,
    Terms,
    Transaction,
    Transfer,
    transfers_of,
)
from deploy_gates.store.ledger import Ledger
from deploy_gates.store.ledger_postgres import PostgresLedger
from deploy_gates.store.ledger_rows import ENTRY_COLUMNS, of_entry
from deploy_gates.store.ledger_sqlite import SqliteLedger

USAGE = Usage(input_tokens=900, output_tokens=100)
_ids: Iterator[int] = iter(range(10**9))


def asked(kind: Kind, amount: int = 0, id: str = "", **fields: object) -> Transaction:
    """A transaction of acme."""
    made: dict[str, object] = {
        "organisation": "acme",
        "id": id or f"t{next(_ids)}",
        "kind": kind,
        "amount": amount,
    }
    return Transaction(**(made | fields))  # type: ignore[arg-type]  # a builder for tests takes any field


def done(ledger: Ledger, transaction: Transaction) -> Answer:
    (answer,) = ledger.apply([transaction])
    return answer


def an_organisation(ledger: Ledger, granted: int = 100, **terms: object) -> None:
    """Acme, with that many micro-credits."""
    ledger.add("acme", "Acme", Terms(**terms), "ada")  # type: ignore[arg-type]
    if granted:
        assert done(ledger, asked(Kind.GRANT, granted, actor="ada")).accepted


def balance(ledger: Ledger) -> Balance:
    found = ledger.organisation("acme")
    assert found is not None
    return found.balance


def faults(ledger: Ledger) -> tuple[str, ...]:
    audited = ledger.audit("acme")
    assert audited is not None
    return audited.faults


def raw(ledger: Ledger, statement: str) -> None:
    """SQL that goes around the ledger, as a bug in it would."""
    if isinstance(ledger, SqliteLedger):
        ledger._store.write_all(lambda connection: connection.execute(statement))
    else:
        assert isinstance(ledger, PostgresLedger)
        ledger._store.write_all(lambda connection: connection.execute(statement.encode()))


def put(ledger: Ledger, entry: Entry) -> None:
    """An entry that goes around the ledger."""
    marks = ", ".join("?" * len(ENTRY_COLUMNS))
    if isinstance(ledger, SqliteLedger):
        ledger._store.write_all(
            lambda connection: connection.execute(f"INSERT INTO entry VALUES ({marks})", of_entry(entry))
        )
    else:
        assert isinstance(ledger, PostgresLedger)
        statement = f"INSERT INTO entry VALUES ({marks.replace('?', '%s')})".encode()
        ledger._store.write_all(lambda connection: connection.execute(statement, of_entry(entry)))


# --- Reserve, post, void ------------------------------------------------------------------------


def test_a_call_reserves_its_worst_case_and_pays_what_it_used(ledger: Ledger) -> None:
    an_organisation(ledger, 100)

    held = done(ledger, asked(Kind.RESERVE, 60, "call-1"))
    posted = done(ledger, asked(Kind.POST, 25, reservation="call-1", usage=USAGE))

    assert held.balance == Balance(available=40, reserved=60, issued=-100)
    assert posted.balance == Balance(available=75, spent=25, issued=-100)
    assert posted.entry is not None
    assert transfers_of(posted.entry) == (
        Transfer(debit=Account.RESERVED, credit=Account.SPENT, amount=25),
        Transfer(debit=Account.RESERVED, credit=Account.AVAILABLE, amount=35),
    )
    assert faults(ledger) == ()


def test_a_call_that_failed_costs_nothing(ledger: Ledger) -> None:
    an_organisation(ledger, 100)
    done(ledger, asked(Kind.RESERVE, 60, "call-1"))

    voided = done(ledger, asked(Kind.VOID, reservation="call-1"))

    assert voided.balance == Balance(available=100, issued=-100)
    assert faults(ledger) == ()


def test_what_is_not_there_is_not_reserved(ledger: Ledger) -> None:
    an_organisation(ledger, 100)
    done(ledger, asked(Kind.RESERVE, 60))

    refused = done(ledger, asked(Kind.RESERVE, 41))

    assert (refused.no, refused.balance.available, refused.needed) == (No.BALANCE, 40, 41)
    assert refused.retry_after_s is None
    assert balance(ledger).reserved == 60


def test_a_known_usage_is_paid_at_once(ledger: Ledger) -> None:
    an_organisation(ledger, 100)

    paid = done(ledger, asked(Kind.CONSUME, 30, usage=USAGE))
    refused = done(ledger, asked(Kind.CONSUME, 71, usage=USAGE))

    assert paid.balance == Balance(available=70, spent=30, issued=-100)
    assert refused.no is No.BALANCE


def test_what_a_call_costs_beyond_its_reservation_is_paid_and_said(ledger: Ledger) -> None:
    an_organisation(ledger, 100)
    done(ledger, asked(Kind.RESERVE, 20, "call-1"))

    posted = done(ledger, asked(Kind.POST, 50, reservation="call-1"))

    assert posted.entry is not None
    assert (posted.entry.overrun, posted.entry.lacking) == (30, 0)
    assert posted.balance == Balance(available=50, spent=50, issued=-100)


def test_what_nothing_covers_stays_visible_until_a_grant_pays_it(ledger: Ledger) -> None:
    an_organisation(ledger, 100)
    done(ledger, asked(Kind.RESERVE, 90, "call-1"))

    posted = done(ledger, asked(Kind.POST, 130, reservation="call-1"))
    refused = done(ledger, asked(Kind.RESERVE, 1))
    granted = done(ledger, asked(Kind.GRANT, 50))

    assert posted.entry is not None
    assert (posted.entry.overrun, posted.entry.lacking) == (40, 30)
    assert posted.balance == Balance(available=0, spent=130, issued=-100, uncovered=-30)
    assert refused.no is No.BALANCE
    assert granted.balance == Balance(available=20, spent=130, issued=-150)
    assert faults(ledger) == ()


def test_a_line_of_credit_goes_so_far_and_no_further(ledger: Ledger) -> None:
    an_organisation(ledger, 10, lowest=-50)

    answers = [done(ledger, asked(Kind.CONSUME, amount)) for amount in (60, 1)]

    assert [each.no for each in answers] == [None, No.BALANCE]
    assert balance(ledger).available == -50


def test_a_reservation_is_closed_once(ledger: Ledger) -> None:
    an_organisation(ledger, 100)
    done(ledger, asked(Kind.RESERVE, 20, "call-1"))
    done(ledger, asked(Kind.POST, 10, reservation="call-1"))

    again = [
        done(ledger, asked(Kind.POST, 10, reservation="call-1")).no,
        done(ledger, asked(Kind.VOID, reservation="call-1")).no,
        done(ledger, asked(Kind.VOID, reservation="call-7")).no,
    ]

    assert again == [No.CLOSED, No.CLOSED, No.NO_RESERVATION]
    assert balance(ledger) == Balance(available=90, spent=10, issued=-100)


def test_an_unknown_organisation_is_told_so(ledger: Ledger) -> None:
    assert done(ledger, asked(Kind.CONSUME, 1)).no is No.UNKNOWN


# --- Expiry -------------------------------------------------------------------------------------


def until_expired(ledger: Ledger) -> None:
    """The clock is the database's, so that this really waits: a few milliseconds."""
    (held,) = ledger.reservations("acme")
    while time.time() * 1000 <= held.expires_at_ms + 1:
        time.sleep(0.001)


def test_a_reservation_frees_itself_when_its_time_is_over(ledger: Ledger) -> None:
    an_organisation(ledger, 100)
    done(ledger, asked(Kind.RESERVE, 80, "call-1", hold_s=0.001))
    until_expired(ledger)

    held = done(ledger, asked(Kind.RESERVE, 90))

    assert held.accepted
    assert [each.kind for each in ledger.entries("acme")][-2:] == [Kind.EXPIRE, Kind.RESERVE]
    assert faults(ledger) == ()


def test_reading_a_balance_frees_what_has_expired(ledger: Ledger) -> None:
    an_organisation(ledger, 100)
    done(ledger, asked(Kind.RESERVE, 80, hold_s=0.001))
    until_expired(ledger)

    assert balance(ledger).available == 100
    assert ledger.sweep() == 0


def test_a_list_of_organisations_shows_nothing_as_reserved_that_has_expired(ledger: Ledger) -> None:
    an_organisation(ledger, 100)
    ledger.add("globex", "Globex", Terms(), "ada")
    done(ledger, asked(Kind.RESERVE, 80, hold_s=0.001))
    until_expired(ledger)

    acme, globex = ledger.organisations()

    assert (acme.balance.available, acme.balance.reserved) == (100, 0)
    assert (globex.id, globex.seq) == ("globex", 1)
    assert faults(ledger) == ()


def test_a_look_frees_all_that_has_expired_however_much_it_is(ledger: Ledger) -> None:
    an_organisation(ledger, 2_000)
    for _ in range(5):
        ledger.apply([asked(Kind.RESERVE, 1) for _ in range(250)])
    raw(ledger, "UPDATE reservation SET expires_at_ms = 1")

    assert balance(ledger).available == 2_000
    assert ledger.reservations("acme") == ()
    assert faults(ledger) == ()


def test_a_sweep_frees_what_has_expired_everywhere(ledger: Ledger) -> None:
    an_organisation(ledger, 100)
    done(ledger, asked(Kind.RESERVE, 80, hold_s=0.001))
    until_expired(ledger)

    assert (ledger.sweep(), ledger.sweep()) == (1, 0)


def test_who_posts_late_but_before_anybody_noticed_pays_from_the_reservation(ledger: Ledger) -> None:
    an_organisation(ledger, 100)
    done(ledger, asked(Kind.RESERVE, 80, "call-1", hold_s=0.001))
    until_expired(ledger)

    posted = done(ledger, asked(Kind.POST, 50, reservation="call-1"))

    assert posted.entry is not None
    assert (posted.entry.held, posted.entry.overrun) == (80, 0)


def test_who_posts_after_that_still_pays(ledger: Ledger) -> None:
    an_organisation(ledger, 100)
    done(ledger, asked(Kind.RESERVE, 80, "call-1", hold_s=0.001, model="gpt-4.1"))
    until_expired(ledger)
    ledger.sweep()

    posted = done(ledger, asked(Kind.POST, 50, "late", reservation="call-1"))
    voided = done(ledger, asked(Kind.VOID, reservation="call-1"))

    assert posted.entry is not None
    assert (posted.entry.held, posted.entry.overrun, posted.entry.model) == (0, 50, "gpt-4.1")
    assert voided.no is No.CLOSED
    assert faults(ledger) == ()


# --- Ids ----------------------------------------------------------------------------------------


def test_who_asks_again_gets_the_first_answer(ledger: Ledger) -> None:
    an_organisation(ledger, 100)
    first = done(ledger, asked(Kind.CONSUME, 30, "tx-1"))
    done(ledger, asked(Kind.CONSUME, 30, "tx-2"))

    again = done(ledger, asked(Kind.CONSUME, 30, "tx-1"))

    assert again == replace(first, replayed=True)
    assert balance(ledger).available == 40


def test_an_id_belongs_to_one_transaction(ledger: Ledger) -> None:
    an_organisation(ledger, 100)
    done(ledger, asked(Kind.CONSUME, 30, "tx-1"))

    refused = done(ledger, asked(Kind.CONSUME, 31, "tx-1"))

    assert refused.no is No.ID_TAKEN
    assert balance(ledger).available == 70


def test_a_price_that_changed_meanwhile_makes_no_other_transaction(ledger: Ledger) -> None:
    an_organisation(ledger, 100)
    price = ledger.put_price(Price(input_usd=Decimal(1), output_usd=Decimal(2)))
    first = done(ledger, asked(Kind.CONSUME, 30, "tx-1", usage=USAGE, price=price, model="gpt-4.1"))

    again = done(ledger, asked(Kind.CONSUME, 60, "tx-1", usage=USAGE, price=price, model="gpt-4.1"))

    assert again == replace(first, replayed=True)


def test_what_was_refused_may_be_tried_again(ledger: Ledger) -> None:
    an_organisation(ledger, 10)
    transaction = asked(Kind.CONSUME, 30, "tx-1")
    assert done(ledger, transaction).no is No.BALANCE
    done(ledger, asked(Kind.GRANT, 100))

    assert done(ledger, transaction).accepted


# --- Rates --------------------------------------------------------------------------------------


def limits(**most: int) -> tuple[Allowance, ...]:
    return tuple(Allowance(rate=rate, most=value) for rate, value in most.items())


def test_a_rate_limit_refuses_what_comes_too_soon_and_says_when(ledger: Ledger) -> None:
    an_organisation(ledger, 100, allowances=limits(requests_per_minute=2))

    answers = [done(ledger, asked(Kind.CONSUME, 1)) for _ in range(3)]

    assert [each.no for each in answers] == [None, None, No.REQUESTS_PER_MINUTE]
    assert answers[2].retry_after_s is not None
    assert 20 < answers[2].retry_after_s <= 30
    assert balance(ledger).spent == 2


def test_tokens_that_were_reserved_and_not_used_come_back(ledger: Ledger) -> None:
    an_organisation(ledger, 100, allowances=limits(tokens_per_day=1_500))
    done(ledger, asked(Kind.RESERVE, 1, "call-1", usage=USAGE))

    too_much = done(ledger, asked(Kind.RESERVE, 1, usage=USAGE))
    done(ledger, asked(Kind.POST, 1, reservation="call-1", usage=Usage(input_tokens=100, output_tokens=0)))
    fits = done(ledger, asked(Kind.RESERVE, 1, usage=USAGE))

    assert (too_much.no, fits.no) == (No.TOKENS_PER_DAY, None)


def test_a_model_may_have_limits_of_its_own(ledger: Ledger) -> None:
    own = Allowance(model="gpt-4.1", rate="requests_per_day", most=1)
    an_organisation(ledger, 100, allowances=(*limits(requests_per_day=3), own))

    answers = [
        done(ledger, asked(Kind.CONSUME, 1, model=model))
        for model in ("gpt-4.1", "gpt-4.1", "gpt-4o", "gpt-4o", "gpt-4o")
    ]

    assert [each.no for each in answers] == [None, No.REQUESTS_PER_DAY, None, None, No.REQUESTS_PER_DAY]
    assert [each.limited_model for each in answers if each.no] == ["gpt-4.1", ""]


def test_what_can_never_fit_is_not_told_to_wait(ledger: Ledger) -> None:
    an_organisation(ledger, 100, allowances=limits(tokens_per_minute=999))

    refused = done(ledger, asked(Kind.CONSUME, 1, usage=USAGE))

    assert (refused.no, refused.retry_after_s) == (No.TOKENS_PER_MINUTE, None)


def test_a_refusal_uses_up_no_rate(ledger: Ledger) -> None:
    an_organisation(ledger, 10, allowances=limits(requests_per_minute=1))
    assert done(ledger, asked(Kind.CONSUME, 11)).no is No.BALANCE

    assert done(ledger, asked(Kind.CONSUME, 1)).accepted


# --- Terms and corrections ----------------------------------------------------------------------


def test_a_multiplier_is_applied_to_every_price(ledger: Ledger) -> None:
    an_organisation(ledger, 100, multiplier_ppm=1_250_000)

    paid = done(ledger, asked(Kind.CONSUME, 9))
    granted = done(ledger, asked(Kind.GRANT, 100))

    assert paid.entry is not None
    assert (paid.entry.base, paid.entry.amount, paid.entry.multiplier_ppm) == (9, 12, 1_250_000)
    assert granted.balance.issued == -200
    assert faults(ledger) == ()


def test_new_terms_are_written_down_and_keep_what_was_used(ledger: Ledger) -> None:
    an_organisation(ledger, 100, allowances=limits(requests_per_minute=1))
    done(ledger, asked(Kind.CONSUME, 1))

    changed = ledger.change(
        "acme", lambda terms: replace(terms, multiplier_ppm=2 * PPM), actor="ada", note="twice the price"
    )
    refused = done(ledger, asked(Kind.CONSUME, 1))

    assert changed.terms.multiplier_ppm == 2 * PPM
    assert refused.no is No.REQUESTS_PER_MINUTE
    (last,) = ledger.entries("acme", newest=True, limit=1)
    assert (last.kind, last.actor, last.note) == (Kind.TERMS, "ada", "twice the price")
    assert faults(ledger) == ()


def test_terms_that_are_the_same_are_written_down_once(ledger: Ledger) -> None:
    an_organisation(ledger, allowances=limits(requests_per_day=5, tokens_per_day=9))
    done(ledger, asked(Kind.CONSUME, 1))
    before = ledger.organisation("acme")
    assert before is not None

    same = ledger.change("acme", lambda terms: replace(terms, allowances=terms.allowances[::-1]), actor="ada")

    assert (same.seq, ledger.organisation("acme")) == (before.seq, before)


@pytest.mark.parametrize("id", ["", "team/a", ".", "..", "a\0b", "a\nb", "\ud800", "x" * 201, None])
def test_an_id_that_no_address_can_carry_is_refused(ledger: Ledger, id: str) -> None:
    with pytest.raises(ValueError, match="an organisation is named by 1 to 200 characters, without /"):
        ledger.add(id, "", Terms(), "ada")


def test_a_limit_below_the_balance_is_refused(ledger: Ledger) -> None:
    an_organisation(ledger, 0, lowest=-100)
    done(ledger, asked(Kind.CONSUME, 60))

    with pytest.raises(Refused, match="below that limit already"):
        ledger.change("acme", lambda terms: replace(terms, lowest=-50), actor="ada")


def test_an_organisation_is_added_once(ledger: Ledger) -> None:
    first = ledger.add("acme", "Acme", Terms(), "ada")

    assert ledger.add("acme", "Acme", Terms(), "ada") == first
    with pytest.raises(Refused, match="already"):
        ledger.add("acme", "Another", Terms(), "ada")
    assert [each.id for each in ledger.organisations()] == ["acme"]


def test_a_correction_is_a_new_transfer(ledger: Ledger) -> None:
    an_organisation(ledger, 100)
    done(ledger, asked(Kind.CONSUME, 30))

    given = done(ledger, asked(Kind.CORRECT, 10, note="counted twice"))
    taken = done(ledger, asked(Kind.CORRECT, -5))
    too_much = done(ledger, asked(Kind.CORRECT, 26))

    assert given.balance == Balance(available=80, spent=20, issued=-100)
    assert taken.balance == Balance(available=75, spent=25, issued=-100)
    assert too_much.no is No.AMOUNT
    assert faults(ledger) == ()


def test_a_grant_can_be_taken_back_as_far_as_it_is_there(ledger: Ledger) -> None:
    an_organisation(ledger, 100, lowest=-50)
    done(ledger, asked(Kind.CONSUME, 30))

    answers = [done(ledger, asked(Kind.GRANT, -amount)).no for amount in (71, 70)]

    assert answers == [No.BALANCE, None]
    assert balance(ledger) == Balance(available=0, spent=30, issued=-30)


# --- Batches ------------------------------------------------------------------------------------


def test_a_batch_is_decided_in_its_order(ledger: Ledger) -> None:
    an_organisation(ledger, 100)
    ledger.add("globex", "Globex", Terms(), "ada")
    batch = [
        asked(Kind.RESERVE, 60, "a"),
        asked(Kind.RESERVE, 60, "b"),
        asked(Kind.GRANT, 10, organisation="globex"),
        asked(Kind.CONSUME, 11, organisation="globex"),
        asked(Kind.CONSUME, 40, "c"),
        asked(Kind.CONSUME, 1, organisation="nobody"),
    ]

    answers = ledger.apply(batch)

    assert [each.no for each in answers] == [None, No.BALANCE, None, No.BALANCE, None, No.UNKNOWN]
    assert [each.transaction for each in answers] == [each.id for each in batch]
    assert balance(ledger) == Balance(available=0, reserved=60, spent=40, issued=-100)
    assert faults(ledger) == ()


def test_racers_never_spend_more_than_there_is(ledger: Ledger) -> None:
    an_organisation(ledger, 100)
    spent: list[bool] = []

    def race() -> None:
        spent.extend(done(ledger, asked(Kind.CONSUME, 3)).accepted for _ in range(20))

    racers = [threading.Thread(target=race) for _ in range(8)]
    for each in racers:
        each.start()
    for each in racers:
        each.join()

    assert sum(spent) == 33
    assert balance(ledger) == Balance(available=1, spent=99, issued=-100)
    assert faults(ledger) == ()


# --- What the tables refuse, whoever asks -------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE organisation SET available = available + 10 WHERE id = 'acme'",
        "UPDATE organisation SET available = available + 10, issued = issued - 10 WHERE id = 'acme'",
        "UPDATE organisation SET available = -1, spent = 101 WHERE id = 'acme'",
        "UPDATE organisation SET seq = seq + 1 WHERE id = 'acme'",
        "DELETE FROM organisation WHERE id = 'acme'",
        "UPDATE entry SET amount = 99 WHERE seq = 2",
        "DELETE FROM entry WHERE seq = 2",
        "INSERT INTO organisation (id, name, lowest, multiplier_ppm, available, issued) "
        "VALUES ('globex', '', 0, 1000000, 100, -100)",
        "INSERT INTO entry SELECT organisation, seq + 1, 'forged', kind, reservation, model, input_tokens, "
        "cached_input_tokens, output_tokens, reasoning_tokens, price, base, multiplier_ppm, amount, held, "
        "lacking, expires_at_ms, content, actor, note, at_ms, available + 100, reserved, spent, "
        "issued - 100, uncovered, hash, 'forged' FROM entry WHERE seq = 2",
        "INSERT INTO entry SELECT organisation, seq + 1, 'forged', kind, reservation, model, input_tokens, "
        "cached_input_tokens, output_tokens, reasoning_tokens, price, base, multiplier_ppm, 7, held, "
        "lacking, expires_at_ms, content, actor, note, at_ms, available + 100, reserved, spent, "
        "issued - 100, uncovered, hash, 'forged' FROM entry WHERE seq = 2",
    ],
)
def test_the_tables_refuse_what_no_transaction_does(ledger: Ledger, statement: str) -> None:
    an_organisation(ledger, 100)
    before = ledger.organisation("acme")
    with pytest.raises(StoreError):
        raw(ledger, statement)

    assert ledger.organisation("acme") == before
    assert faults(ledger) == ()


class Odd(StrEnum):
    """A kind that there is not."""

    BRIBE = "bribe"


@pytest.mark.parametrize(
    ("fields", "moved"),
    [
        ({"kind": Odd.BRIBE}, {}),
        ({"kind": Kind.VOID, "held": 7}, {"available": 107, "reserved": -7}),
        ({"kind": Kind.CONSUME, "amount": -7}, {"available": 107, "spent": -7}),
        ({"kind": Kind.GRANT, "amount": -200}, {"available": -100, "issued": 100}),
        ({"kind": Kind.CONSUME, "amount": 101}, {"available": -1, "spent": 101}),
        ({"kind": Kind.CONSUME, "lacking": 5}, {"available": 105, "uncovered": -5}),
        ({"kind": Kind.GRANT, "lacking": -5}, {"available": 95, "uncovered": 5}),
        ({"kind": Kind.TERMS, "id": ""}, {}),
        ({"kind": Kind.TERMS, "base": -1}, {}),
        ({"kind": Kind.TERMS, "organisation": "globex"}, {}),
        ({"kind": Kind.TERMS, "usage": Usage(input_tokens=1, output_tokens=0, cached_input_tokens=2)}, {}),
        ({"kind": Kind.TERMS, "usage": Usage(input_tokens=0, output_tokens=1, reasoning_tokens=2)}, {}),
        ({"kind": Kind.TERMS, "seq": 5}, {}),
        ({"kind": Kind.TERMS, "at_ms": 1}, {}),
        ({"kind": Kind.TERMS, "previous": "0" * 64}, {}),
    ],
)
def test_the_tables_refuse_an_entry_that_is_none_though_its_hash_is_right(
    ledger: Ledger, fields: dict[str, object], moved: dict[str, int]
) -> None:
    an_organisation(ledger, 100)
    before = ledger.organisation("acme")
    assert before is not None
    right = Entry(
        organisation="acme",
        seq=before.seq + 1,
        id="forged",
        kind=Kind.TERMS,
        at_ms=before.changed_at_ms,
        balance=replace(before.balance, **moved),
        previous=before.head,
    )
    forged = replace(right, **fields)  # type: ignore[arg-type]  # any field

    with pytest.raises(StoreError):
        put(ledger, replace(forged, hash=forged.computed()))

    assert ledger.organisation("acme") == before
    put(
        ledger, replace(right, balance=before.balance, hash=replace(right, balance=before.balance).computed())
    )
    after = ledger.organisation("acme")
    assert after is not None
    assert (after.seq, after.balance) == (before.seq + 1, before.balance)
    assert faults(ledger) == ()


@pytest.mark.parametrize(
    "terms", ["id = ''", "lowest = 1", "multiplier_ppm = -1", "multiplier_ppm = 1000000001", "lowest = NULL"]
)
def test_the_tables_refuse_terms_that_are_none(ledger: Ledger, terms: str) -> None:
    an_organisation(ledger, 0)

    with pytest.raises(StoreError):
        raw(ledger, f"UPDATE organisation SET {terms} WHERE id = 'acme'")

    assert faults(ledger) == ()


def test_accounts_and_transfers_can_be_read_as_such(ledger: Ledger) -> None:
    an_organisation(ledger, 100)
    done(ledger, asked(Kind.RESERVE, 90, "call-1"))
    done(ledger, asked(Kind.POST, 130, reservation="call-1"))
    done(ledger, asked(Kind.GRANT, 50))
    statement = "SELECT seq, debit, credit, amount FROM transfer ORDER BY seq, debit, credit, amount"

    if isinstance(ledger, SqliteLedger):
        rows = [tuple(row) for row in ledger._store.read_all(lambda c: c.execute(statement).fetchall())]
    else:
        assert isinstance(ledger, PostgresLedger)
        found = ledger._store.read_all(lambda c: c.execute(statement.encode()).fetchall())
        rows = [tuple(row.values()) for row in found]

    assert sorted(rows) == sorted(
        (entry.seq, each.debit.value, each.credit.value, each.amount)
        for entry in ledger.entries("acme")
        for each in transfers_of(entry)
    )


def test_amounts_are_in_micro_credits() -> None:
    assert MICRO == 1_000_000
