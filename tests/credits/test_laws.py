"""The laws of a ledger, whatever is asked in whatever order: both engines do what `core/ledger.py` says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import engines
from deploy_gates.core import ledger as core
from deploy_gates.core.cost import Usage
from deploy_gates.core.ledger import (
    CLOSING,
    Allowance,
    Answer,
    Balance,
    Decided,
    Entry,
    Kind,
    Known,
    No,
    Organisation,
    Reservation,
    Terms,
    Transaction,
)
from deploy_gates.store import open_store
from deploy_gates.store.ledger import Ledger, ledger_of

IDS = [f"t{number}" for number in range(12)]
ASKED = [Kind.GRANT, Kind.CORRECT, Kind.RESERVE, Kind.POST, Kind.VOID, Kind.CONSUME]
AMOUNTS = [0, 1, 10, 40, 50, 60, 100, 150, -1, -10, -50, -100]
"""Few and round, so that sums come to limits exactly."""
LIMITS = (
    Allowance(rate="requests_per_day", most=40),
    Allowance(rate="tokens_per_day", most=9_000),
    Allowance(model="small", rate="tokens_per_day", most=2_000),
)
_names: Iterator[int] = itertools.count()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """One ledger for all examples: each is about an organisation of its own."""
    if request.param == "sqlite":
        url = engines.fresh_sqlite(Path(tmp_path_factory.mktemp("laws")))
    else:
        url = engines.fresh_postgres(request.getfixturevalue("postgres"))
    store = open_store(url, durable=False)
    store.upgrade()
    yield ledger_of(store)
    store.close()


class Model:
    """A ledger in memory, by `decide` alone."""

    def __init__(self, organisation: Organisation) -> None:
        self.organisation = organisation
        self.entries: dict[str, Entry] = {}
        self.open: dict[str, Reservation] = {}

    def ask(self, asked: Transaction, now_ms: int) -> Answer:
        closed = {
            each.kind
            for each in self.entries.values()
            if each.reservation and each.reservation == asked.reservation
        }
        reserved = self.entries.get(asked.reservation)
        known = Known(
            organisation=self.organisation,
            made=self.entries.get(asked.id),
            open=self.open.get(asked.reservation),
            reserved=reserved if reserved is not None and reserved.kind is Kind.RESERVE else None,
            closed_by=frozenset(closed),
        )
        return self._kept(core.decide(asked, known, now_ms))

    def _kept(self, decided: Decided) -> Answer:
        answer, self.organisation = decided.answer, decided.organisation
        if answer.entry is not None and not answer.replayed:
            entry = answer.entry
            self.entries[entry.id] = entry
            if entry.kind is Kind.RESERVE:
                tokens = entry.usage.input_tokens + entry.usage.output_tokens
                self.open[entry.id] = Reservation(
                    id=entry.id,
                    model=entry.model,
                    amount=entry.amount,
                    tokens=tokens,
                    expires_at_ms=entry.expires_at_ms,
                )
            elif entry.kind in CLOSING:
                self.open.pop(entry.reservation, None)
        return answer


def machine(ledger: Ledger) -> type[RuleBasedStateMachine]:
    """What is asked of the ledger and of the model alike."""

    class Asking(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            number = next(_names)
            multiplier_ppm = (1_000_000, 1_300_000)[number % 2]
            self.models = {
                name: Model(
                    ledger.add(
                        name, "", Terms(lowest=-50, multiplier_ppm=multiplier_ppm, allowances=limits), "ada"
                    )
                )
                for name, limits in (  # which no two languages sort alike
                    (f"org-{number}", LIMITS),
                    (f"Org-{number}é", ()),
                    (f"ørg-{number}", LIMITS[1:]),
                )
            }
            self.names = (*self.models, f"nobody-{number}")

        @rule(
            batch=st.lists(
                st.tuples(
                    st.sampled_from([0, 0, 0, 1, 2, 2, 3]),
                    st.sampled_from(
                        [Kind.GRANT, Kind.CORRECT, Kind.RESERVE, Kind.POST, Kind.VOID, Kind.CONSUME]
                    ),
                    st.sampled_from(AMOUNTS),
                    st.sampled_from([0, 3, 450, 900]),
                    st.sampled_from(IDS),
                    st.sampled_from(IDS),
                    st.sampled_from(["", "small", "large"]),
                ),
                min_size=1,
                max_size=8,
            )
        )
        def ask(self, batch: list[tuple[int, Kind, int, int, str, str, str]]) -> None:
            asked: list[Transaction] = []
            keys: set[tuple[int, str]] = set()
            for whose, kind, amount, tokens, own, other, model in batch:
                made = self.transaction(self.names[whose], kind, amount, tokens, own, other, model)
                own_keys = {(whose, key) for key in (made.id, made.reservation) if key}
                if not keys & own_keys:  # as the batcher sees to
                    keys |= own_keys
                    asked.append(made)
            answers = ledger.apply(asked)
            for transaction, answer in zip(asked, answers, strict=True):
                self.compare(transaction, answer)

        def transaction(
            self, name: str, kind: Kind, amount: int, tokens: int, own: str, other: str, model: str
        ) -> Transaction:
            is_free = kind in (Kind.GRANT, Kind.CORRECT)
            return Transaction(
                organisation=name,
                id=own,
                kind=kind,
                amount=(amount or 1) if is_free else 0 if kind is Kind.VOID else abs(amount),
                usage=Usage(input_tokens=tokens, output_tokens=tokens // 3) if not is_free else core.NO_USAGE,
                reservation=other if kind in (Kind.POST, Kind.VOID) else "",
                model="" if is_free else model,
            )

        def compare(self, transaction: Transaction, answer: Answer) -> None:
            now_ms = answer.entry.at_ms if answer.entry else core.moment_ms(clock_now())
            model = self.models.get(transaction.organisation)
            if model is None:
                assert answer == Answer(
                    transaction=transaction.id, organisation=transaction.organisation, no=core.No.UNKNOWN
                )
                return
            expected = model.ask(transaction, now_ms)
            if answer.no in core.LIMITED:
                assert expected.no is answer.no
                assert expected.limited_model == answer.limited_model
                assert (expected.retry_after_s is None) == (answer.retry_after_s is None)
                return
            assert answer == expected

        @invariant()
        def accounts_sum_to_zero_and_keep_their_limits(self) -> None:
            for model in self.models.values():
                balance = model.organisation.balance
                assert balance.total == 0
                assert balance.available >= -50
                assert balance.reserved == sum(each.amount for each in model.open.values())
                assert balance.uncovered <= 0

        def teardown(self) -> None:
            for name, model in self.models.items():
                assert ledger.organisation(name) == model.organisation
                assert {each.id: each for each in ledger.reservations(name)} == model.open
                audited = ledger.audit(name)
                assert audited is not None
                assert audited.faults == ()

    return Asking


def clock_now() -> object:
    from deploy_gates import clock

    return clock.now()


def test_both_engines_decide_as_the_core_does(shared: Ledger) -> None:
    run_state_machine_as_test(
        machine(shared),
        settings=settings(
            max_examples=60,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


# --- In plain values ----------------------------------------------------------------------------


def test_transfers_of_every_kind_sum_to_zero() -> None:
    entry = Entry(
        organisation="acme",
        seq=1,
        id="t",
        kind=Kind.POST,
        amount=120,
        held=50,
        lacking=30,
        at_ms=1,
        balance=Balance(),
        previous="",
    )

    balance = Balance().after(core.transfers_of(entry))

    assert balance == Balance(available=-40, reserved=-50, spent=120, uncovered=-30)
    assert all(
        Balance().after(core.transfers_of(replace(entry, kind=kind, lacking=0))).total == 0 for kind in Kind
    )


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("5000", 5_000_000_000),
        ("1,250.5", 1_250_500_000),
        ("-0.000001", -1),
        (".5", 500_000),
        ("7.", 7_000_000),
    ],
)
def test_amounts_are_read_and_written(text: str, amount: int) -> None:
    assert core.parsed_credits(text) == amount
    assert core.parsed_credits(core.written(amount)) == amount


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        ".",
        "1.0000001",
        "1e3",
        "lots",
        "１",
        "1 2",
        "1,5",
        "1,00,0",
        "1,0000",
        ",100",
        "1_000",
        "1.0_0",
    ],
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        core.parsed_credits(text)


def test_what_is_too_much_is_refused_for_its_size() -> None:
    for text in ("1000000000.000001", "-9999999999999", "9" * 5_000):
        with pytest.raises(ValueError, match="is too much: one amount is at most 1,000,000,000 credits"):
            core.parsed_credits(text)
    assert core.parsed_credits("1,000,000,000") == core.AMOUNT_MAX


@pytest.mark.parametrize(("text", "ppm"), [("1", 1_000_000), ("1.25", 1_250_000), (".5", 500_000), ("0", 0)])
def test_multipliers_are_read(text: str, ppm: int) -> None:
    assert core.parsed_multiplier(text) == ppm


@pytest.mark.parametrize("text", ["", ".", "nan", "inf", "-1", "1e2", "1_0", "1,000", "1.0000001", "a lot"])
def test_what_is_no_multiplier_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no multiplier: a number from 0 to 1000"):
        core.parsed_multiplier(text)


def test_a_micro_credit_is_a_nano_dollar() -> None:
    assert core.microcredits(421_000) == 421_000
    assert core.microcredits(10**9) == core.CREDITS_PER_USD * core.MICRO


def test_a_limit_comes_back_evenly() -> None:
    limit = Allowance(rate="requests_per_minute", most=60)
    used = limit
    for _ in range(60):
        used = used.used(0, 1)

    assert used.wait_us(0) == 0
    assert used.used(0, 1).wait_us(0) == 1_000_000
    assert [used.left(seconds * 1_000_000) for seconds in (0, 1, 30, 60)] == [0, 1, 30, 60]


def test_every_refusal_has_its_sentence() -> None:
    for no in No:
        answer = Answer(transaction="t", organisation="acme", no=no)
        assert "acme" in answer.reason or no is No.UNPRICED
