"""Credits: what an organisation may spend, and the decision on every transaction. Double entry, in integers.

An organisation has five accounts whose balances always sum to zero; a transaction is one to three transfers
between them. Money is reserved before a call, and posted or voided after it: `transfers_of` is the table of
what each kind does, `decide` the only place that says yes or no. PostgreSQL decides by the same rules in one
round trip, in `schema/postgres/0003.sql`; the tests hold both to one another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import sha256

from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.cost import Price, Usage

MICRO = 1_000_000
"""Micro-credits in a credit."""
CREDITS_PER_USD = 1_000
"""So a micro-credit is a nano-dollar: what is deducted is what gates and canaries measure, to the digit."""
PPM = 1_000_000
"""A multiplier of one, in parts per million."""
MULTIPLIER_MAX_PPM = 1_000 * PPM
AMOUNT_MAX = 10**15
"""The largest transaction, in micro-credits: a million dollars."""
ISSUED_MAX = 4 * 10**18
"""What one organisation can be granted in all, in micro-credits: half of what an integer of 64 bits holds."""
TOKENS_MAX = 100_000_000
"""In one transaction."""
RATE_MAX = 10**12
ID_MAX_CHARS = 200
NOTE_MAX_CHARS = 1_000
NO_USAGE = Usage(input_tokens=0, output_tokens=0)
HOLD = timedelta(minutes=10)
"""How long a reservation holds unless its caller says otherwise."""
HOLD_MAX = timedelta(days=7)
OWN_ID, TERMS_ID = "expired:", "terms:"
"""How ids begin that the ledger gives itself; nobody else's may."""


def microcredits(nanousd: int) -> int:
    """Nano-dollars as micro-credits: the one place where money becomes credits."""
    return nanousd * CREDITS_PER_USD * MICRO // 10**9


class Account(StrEnum):
    """Whose balance goes up when it is credited, and down when it is debited."""

    AVAILABLE = "available"
    """What may be spent."""
    RESERVED = "reserved"
    """What calls that run may cost at worst."""
    SPENT = "spent"
    """What calls have cost."""
    ISSUED = "issued"
    """Where grants come from: minus all that was granted."""
    UNCOVERED = "uncovered"
    """Minus what calls have cost beyond the balance's limit, and no grant has paid for yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """An amount from one account to another."""

    debit: Account
    credit: Account
    amount: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """The five accounts of an organisation, in micro-credits. They sum to zero."""

    available: int = 0
    reserved: int = 0
    spent: int = 0
    issued: int = 0
    uncovered: int = 0

    def of(self, account: Account) -> int:
        """The balance of one account."""
        value: int = getattr(self, account.value)
        return value

    @property
    def total(self) -> int:
        return self.available + self.reserved + self.spent + self.issued + self.uncovered

    def after(self, transfers: Iterable[Transfer]) -> Balance:
        """The balances once these have happened."""
        moved = {account: self.of(account) for account in Account}
        for each in transfers:
            moved[each.debit] -= each.amount
            moved[each.credit] += each.amount
        return Balance(**{account.value: amount for account, amount in moved.items()})


class Kind(StrEnum):
    """What a transaction does."""

    GRANT = "grant"
    """Gives credits, or takes back what was not spent."""
    CORRECT = "correct"
    """Gives back what was spent, or charges what was not."""
    RESERVE = "reserve"
    """Holds what a call costs at worst."""
    POST = "post"
    """Spends what the call did cost, and frees the rest."""
    VOID = "void"
    """Frees all of it: there was no answer to pay for."""
    EXPIRE = "expire"
    """Frees what nobody has posted or voided in time."""
    CONSUME = "consume"
    """Reserves and posts at once, for a caller that knows the usage."""
    TERMS = "terms"
    """Moves nothing: says what limits and multiplier are from here on."""


CLOSING = frozenset({Kind.POST, Kind.VOID, Kind.EXPIRE})
METERED = frozenset({Kind.RESERVE, Kind.CONSUME})
"""What the rate limits are asked about."""
SPENDING = frozenset({Kind.RESERVE, Kind.CONSUME, Kind.POST})
"""What is priced, and multiplied."""


class No(StrEnum):
    """Why a transaction was not made."""

    UNKNOWN = "unknown organisation"
    BALANCE = "balance"
    REQUESTS_PER_MINUTE = "requests per minute"
    TOKENS_PER_MINUTE = "tokens per minute"
    REQUESTS_PER_DAY = "requests per day"
    TOKENS_PER_DAY = "tokens per day"
    ID_TAKEN = "id taken"
    """Another transaction has this id."""
    NO_RESERVATION = "no reservation"
    CLOSED = "closed"
    """The reservation was posted or voided before, or has expired and there is nothing to void."""
    AMOUNT = "amount"
    """More is given back than was spent, or more granted than an account can hold."""
    UNPRICED = "unpriced"
    """Nobody knows what the model costs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """What is counted, and over which time it comes back."""

    no: No
    per: str
    period_us: int
    of_tokens: bool

    def cost_us(self, tokens: int, most: int) -> int:
        """For how long a transaction uses the rate, where `most` may be used in a period."""
        return -(-(tokens if self.of_tokens else 1) * self.period_us // most)


MINUTE_US, DAY_US = 60_000_000, 86_400_000_000
RATES: Mapping[str, Rate] = {
    "requests_per_minute": Rate(
        no=No.REQUESTS_PER_MINUTE, per="minute", period_us=MINUTE_US, of_tokens=False
    ),
    "tokens_per_minute": Rate(no=No.TOKENS_PER_MINUTE, per="minute", period_us=MINUTE_US, of_tokens=True),
    "requests_per_day": Rate(no=No.REQUESTS_PER_DAY, per="day", period_us=DAY_US, of_tokens=False),
    "tokens_per_day": Rate(no=No.TOKENS_PER_DAY, per="day", period_us=DAY_US, of_tokens=True),
}
LIMITED = frozenset(rate.no for rate in RATES.values())
"""Refusals that time heals."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Allowance:
    """One rate limit of an organisation, and where its use stands: by GCRA, so that one number is all.

    The whole of it may be used at once, and comes back evenly.
    """

    model: str = ""
    """Empty: all models together."""
    rate: str
    most: int
    full_at_us: int = 0
    """When all of it is there again: the theoretical arrival time."""

    def applies_to(self, model: str) -> bool:
        return self.model in ("", model)

    def used(self, now_us: int, tokens: int) -> Allowance:
        """The same, after a transaction of so many tokens."""
        cost_us = RATES[self.rate].cost_us(tokens, self.most)
        return replace(self, full_at_us=max(now_us, self.full_at_us) + cost_us)

    def wait_us(self, now_us: int) -> int:
        """How long this is overdrawn, once it is used: how much later it might have been."""
        return self.full_at_us - RATES[self.rate].period_us - now_us

    def settled(self, held_tokens: int, tokens: int) -> Allowance:
        """The same, where `tokens` were used of the `held_tokens` that it counted."""
        rate = RATES[self.rate]
        if not rate.of_tokens:
            return self
        used_us = min(rate.cost_us(tokens, self.most), rate.period_us)
        return replace(self, full_at_us=self.full_at_us + used_us - rate.cost_us(held_tokens, self.most))

    def left(self, now_us: int) -> int:
        """How much of it may be used now."""
        rate = RATES[self.rate]
        free_us = max(0, min(rate.period_us, rate.period_us + now_us - self.full_at_us))
        return free_us * self.most // rate.period_us


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What an organisation may do."""

    lowest: int = 0
    """How far its available balance may go down, in micro-credits; below zero it is a line of credit."""
    multiplier_ppm: int = PPM
    """What it pays of the list price, in parts per million."""
    allowances: tuple[Allowance, ...] = ()

    def __post_init__(self) -> None:
        if not -AMOUNT_MAX <= self.lowest <= 0:
            raise ValueError(f"the lowest balance is between -{AMOUNT_MAX} micro-credits and 0")
        if not 0 <= self.multiplier_ppm <= MULTIPLIER_MAX_PPM:
            raise ValueError("a multiplier is between 0 and 1000")
        for each in self.allowances:
            if each.rate not in RATES:
                raise ValueError(f"there is no limit {each.rate!r}: there is {', '.join(RATES)}")
            if not 1 <= each.most <= RATE_MAX:
                raise ValueError(f"a limit of {each.rate} is between 1 and {RATE_MAX}")
            if len(each.model) > ID_MAX_CHARS or "\0" in each.model:
                raise ValueError(f"the name of a model has at most {ID_MAX_CHARS} characters")

    def limits_json(self) -> list[JsonObject]:
        """The limits, as they are written down and shown."""
        return [{"model": each.model, "rate": each.rate, "most": each.most} for each in self.allowances]


@dataclass(frozen=True, kw_only=True, slots=True)
class Organisation:
    """An organisation as it stands."""

    id: str
    name: str = ""
    terms: Terms = Terms()
    balance: Balance = Balance()
    seq: int = 0
    """How many transactions its ledger has."""
    head: str = ""
    """The hash of the last one."""
    changed_at_ms: int = 0

    @property
    def spendable(self) -> int:
        """What may still be reserved: what is uncovered comes first."""
        return self.balance.available - self.terms.lowest + self.balance.uncovered


_TYPES = ({str}, {int})
"""Of what a transaction is made: texts, and counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transaction:
    """What somebody wants done, under an id of their own: asked for twice, it is done once."""

    organisation: str
    id: str
    kind: Kind
    amount: int = 0
    """Micro-credits: of a grant or a correction as they are, of a call at list price."""
    reservation: str = ""
    """The id of the transaction that reserved what this one posts or voids."""
    model: str = ""
    usage: Usage = NO_USAGE
    price: str = ""
    """The digest of the price that `amount` was calculated with; empty: somebody named the amount."""
    hold_s: float = 0.0
    """How long a reservation holds; 0: as long as usual."""
    actor: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        fault = self._fault_of_types() or next(self._faults(), "")
        if fault:
            raise ValueError(fault)

    def _fault_of_types(self) -> str:
        """Callers without a type checker hear it here, and not in the middle of a batch."""
        usage, texts = self.usage, (self.id, self.organisation, self.reservation, self.model, self.actor)
        if not isinstance(usage, Usage):
            return "`usage` is no Usage"
        counts = (
            self.amount,
            usage.input_tokens,
            usage.output_tokens,
            usage.cached_input_tokens,
            usage.reasoning_tokens,
        )
        kinds = {*map(type, texts), type(self.note)}, set(map(type, counts))
        if kinds == _TYPES and type(self.kind) is Kind and type(self.hold_s) in (float, int):
            return ""
        return self._told_types()

    def _told_types(self) -> str:
        for name in ("id", "organisation", "reservation", "model", "actor", "note"):
            if not isinstance(getattr(self, name), str):
                return f"`{name}` is no text"
        if not isinstance(self.kind, Kind):
            return "`kind` is no Kind"
        if type(self.amount) is not int:
            return "`amount` is no whole number of micro-credits"
        if type(self.hold_s) not in (float, int):
            return "`hold_s` is no number of seconds"
        for name in ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens"):
            if type(getattr(self.usage, name)) is not int:
                return f"`{name}` of the usage is no whole number"
        return ""

    def _faults(self) -> Iterator[str]:
        for name, value, at_least in (
            ("id", self.id, 1),
            ("organisation", self.organisation, 1),
            ("reservation", self.reservation, self.kind in (Kind.POST, Kind.VOID)),
            ("model", self.model, 0),
            ("actor", self.actor, 0),
        ):
            if not at_least <= len(value) <= ID_MAX_CHARS or not is_text(value):
                least = "1 to" if at_least else "at most"
                yield f"`{name}` has {least} {ID_MAX_CHARS} characters"
        if len(self.note) > NOTE_MAX_CHARS or not is_text(self.note):
            yield f"`note` has at most {NOTE_MAX_CHARS} characters"
        if self.id.startswith((OWN_ID, TERMS_ID)):
            yield f"an id that begins with {OWN_ID!r} or {TERMS_ID!r} is the ledger's own"
        if self.kind in (Kind.EXPIRE, Kind.TERMS):
            yield f"nobody asks for {self.kind}: the ledger writes that down itself"
        if self.reservation and self.kind not in (Kind.POST, Kind.VOID):
            yield f"a {self.kind} has no reservation"
        if abs(self.amount) > AMOUNT_MAX:
            yield f"one transaction moves at most {AMOUNT_MAX} micro-credits"
        if self.amount < 0 and self.kind in SPENDING:
            yield f"a {self.kind} cannot be of less than nothing"
        if self.amount == 0 and self.kind in (Kind.GRANT, Kind.CORRECT):
            yield f"a {self.kind} of nothing changes nothing"
        yield from self._faults_of_usage()

    def _faults_of_usage(self) -> Iterator[str]:
        usage = self.usage
        counts = (
            usage.input_tokens,
            usage.output_tokens,
            usage.cached_input_tokens,
            usage.reasoning_tokens,
        )
        if min(counts) < 0 or usage.input_tokens + usage.output_tokens > TOKENS_MAX:
            yield f"one transaction is of 0 to {TOKENS_MAX} tokens"
        if usage.cached_input_tokens > usage.input_tokens or usage.reasoning_tokens > usage.output_tokens:
            yield "cached tokens are part of the input, and reasoning tokens of the output"
        if not 0 <= self.hold_s <= HOLD_MAX.total_seconds():
            yield f"a reservation holds from 0 seconds to {HOLD_MAX.days} days"

    @property
    def tokens(self) -> int:
        return self.usage.input_tokens + self.usage.output_tokens

    @property
    def hold_ms(self) -> int:
        seconds = self.hold_s or HOLD.total_seconds()
        return round(seconds * 1000) if self.kind is Kind.RESERVE else 0

    @property
    def content(self) -> str:
        """The digest of what is asked for: who asks again with the same id asks for the same.

        Not of what it costs, unless its caller has said so: prices change between two tries.
        """
        usage = self.usage
        return sha256(
            spelled(
                "",
                (
                    0 if self.price else self.amount,
                    usage.input_tokens,
                    usage.cached_input_tokens,
                    usage.output_tokens,
                    usage.reasoning_tokens,
                    self.hold_ms,
                ),
                (self.kind.value, self.reservation, self.model),
            )
        ).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Reservation:
    """What is held for a call that runs."""

    id: str
    model: str
    amount: int
    tokens: int
    expires_at_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A transaction as it was made: a link in the chain of its organisation."""

    organisation: str
    seq: int
    id: str
    kind: Kind
    reservation: str = ""
    model: str = ""
    usage: Usage = NO_USAGE
    price: str = ""
    base: int = 0
    """What it costs at list price."""
    multiplier_ppm: int = PPM
    amount: int = 0
    """What it was granted, held, or charged."""
    held: int = 0
    """What was reserved for it, and is freed."""
    lacking: int = 0
    """What of it nothing covers; below zero: what of it pays for what nothing had covered."""
    expires_at_ms: int = 0
    content: str = ""
    actor: str = ""
    note: str = ""
    at_ms: int
    balance: Balance
    """Afterwards."""
    previous: str
    hash: str = ""

    @property
    def overrun(self) -> int:
        """What it cost beyond what was reserved for it."""
        return max(0, self.amount - self.held) if self.kind is Kind.POST else 0

    def computed(self) -> str:
        """The hash that belongs to it."""
        usage, balance = self.usage, self.balance
        numbers = (
            self.seq,
            self.at_ms,
            usage.input_tokens,
            usage.cached_input_tokens,
            usage.output_tokens,
            usage.reasoning_tokens,
            self.base,
            self.multiplier_ppm,
            self.amount,
            self.held,
            self.lacking,
            self.expires_at_ms,
            balance.available,
            balance.reserved,
            balance.spent,
            balance.issued,
            balance.uncovered,
        )
        texts = (
            self.organisation,
            self.id,
            self.kind.value,
            self.reservation,
            self.model,
            self.price,
            self.content,
            self.actor,
            self.note,
        )
        return sha256(spelled(self.previous, numbers, texts)).hexdigest()


def spelled(previous: str, numbers: Iterable[int], texts: Iterable[str]) -> bytes:
    """What is hashed: the numbers with commas, each text with its length in bytes before it."""
    head = ",".join((previous, *map(str, numbers)))
    return head.encode() + b"".join(b"%d:%b" % (len(each), each) for each in (t.encode() for t in texts))


def checked_name(id: str) -> str:
    """The id of an organisation to be, which any address can carry. `ValueError`."""
    if not isinstance(id, str) or id in (".", "..") or not _NAME.fullmatch(id):
        raise ValueError(
            f"an organisation is named by 1 to {ID_MAX_CHARS} characters, without / or control characters, "
            "and not by . or .."
        )
    return id


_NAME = re.compile(rf"[^\x00-\x1f/\ud800-\udfff]{{1,{ID_MAX_CHARS}}}")


def is_text(value: str) -> bool:
    """Whether both engines can keep it."""
    if value.isascii():  # as nearly all are: this is asked several times a transaction
        return "\0" not in value
    return "\0" not in value and not any("\ud800" <= each <= "\udfff" for each in value)


def transfers_of(entry: Entry) -> tuple[Transfer, ...]:
    """What an entry moved, from which account to which."""
    moves: list[tuple[Account, Account, int]]
    match entry.kind:
        case Kind.GRANT:
            moves = [
                (Account.ISSUED, Account.AVAILABLE, entry.amount),
                (Account.AVAILABLE, Account.UNCOVERED, -entry.lacking),
            ]
        case Kind.CORRECT:
            moves = [
                (Account.SPENT, Account.AVAILABLE, entry.amount),
                (Account.AVAILABLE, Account.UNCOVERED, -entry.lacking),
            ]
        case Kind.RESERVE:
            moves = [(Account.AVAILABLE, Account.RESERVED, entry.amount)]
        case Kind.CONSUME:
            moves = [(Account.AVAILABLE, Account.SPENT, entry.amount)]
        case Kind.VOID | Kind.EXPIRE:
            moves = [(Account.RESERVED, Account.AVAILABLE, entry.held)]
        case Kind.POST:
            moves = [
                (Account.RESERVED, Account.SPENT, min(entry.amount, entry.held)),
                (Account.RESERVED, Account.AVAILABLE, max(0, entry.held - entry.amount)),
                (Account.AVAILABLE, Account.SPENT, entry.overrun - entry.lacking),
                (Account.UNCOVERED, Account.SPENT, entry.lacking),
            ]
        case Kind.TERMS:
            moves = []
    return tuple(
        Transfer(debit=debit, credit=credit, amount=amount)
        if amount > 0
        else Transfer(debit=credit, credit=debit, amount=-amount)
        for debit, credit, amount in moves
        if amount
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What became of a transaction. A refusal is an answer as well: nothing was changed."""

    transaction: str
    organisation: str
    entry: Entry | None = None
    no: No | None = None
    balance: Balance = Balance()
    """Right after it, or of the organisation that was refused."""
    needed: int = 0
    """What a refusal for the balance would have needed."""
    retry_after_s: float | None = None
    """`None`: waiting changes nothing."""
    replayed: bool = False
    """It had been made before; this is how it was."""
    limited_model: str = ""
    """Whose rate limit it was; empty: that of all models."""

    @property
    def accepted(self) -> bool:
        return self.no is None

    @property
    def reason(self) -> str:
        """Why not, in a sentence; empty where it was made."""
        if self.no is None:
            return ""
        text = _REASONS[self.no].format(
            id=self.transaction,
            organisation=self.organisation,
            rate=self.no.value,
            of=f" of {self.limited_model}" if self.limited_model else "",
            needed=written(self.needed),
            available=written(self.balance.available),
            reserved=written(self.balance.reserved),
        )
        if self.no in LIMITED:
            wait = self.retry_after_s
            text += "; it never fits" if wait is None else f"; there is room in {wait:.3g} s"
        return text


_REASONS: dict[No, str] = {
    No.UNKNOWN: "there is no organisation {organisation}",
    No.BALANCE: "{organisation} has {available} credits available and {reserved} reserved, "
    "and this takes {needed}",
    No.ID_TAKEN: "the id {id} belongs to another transaction of {organisation}",
    No.NO_RESERVATION: "{organisation} has reserved nothing under that id",
    No.CLOSED: "that reservation of {organisation} was closed before",
    No.AMOUNT: "that is more than {organisation} has spent, or can be granted",
    No.UNPRICED: "nobody knows what that model costs",
    **dict.fromkeys(LIMITED, "{organisation} has used up its {rate}{of}"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What the store knows that bears on a transaction."""

    organisation: Organisation
    made: Entry | None = None
    """What has its id."""
    open: Reservation | None = None
    """The reservation that it closes, where it is still open."""
    reserved: Entry | None = None
    """The entry that made that reservation, where it is not."""
    closed_by: frozenset[Kind] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Decided:
    """An answer, and the organisation as it is then."""

    answer: Answer
    organisation: Organisation


def decide(asked: Transaction, known: Known, now_ms: int) -> Decided:
    """The answer to a transaction. Where it is yes and not a replay, its entry has to be kept."""
    organisation = known.organisation
    if known.made is not None:
        made = known.made
        if made.content != asked.content:
            return _refused(asked, organisation, No.ID_TAKEN)
        answer = Answer(
            transaction=asked.id,
            organisation=organisation.id,
            entry=made,
            balance=made.balance,
            replayed=True,
        )
        return Decided(answer=answer, organisation=organisation)
    if asked.kind in CLOSING and known.open is None:
        if known.reserved is None:
            return _refused(asked, organisation, No.NO_RESERVATION)
        if asked.kind is Kind.VOID or known.closed_by != {Kind.EXPIRE}:
            return _refused(asked, organisation, No.CLOSED)
    if asked.kind in METERED:
        return _metered(asked, organisation, now_ms)
    if asked.kind in CLOSING:
        return _closing(asked, known, now_ms)
    return _granting(asked, organisation, now_ms)


def expired(organisation: Organisation, reservation: Reservation, now_ms: int) -> Decided:
    """What becomes of a reservation that nobody has closed in time."""
    entry = Entry(
        organisation=organisation.id,
        seq=0,
        id=OWN_ID + reservation.id,
        kind=Kind.EXPIRE,
        reservation=reservation.id,
        model=reservation.model,
        multiplier_ppm=organisation.terms.multiplier_ppm,
        held=reservation.amount,
        actor="ledger",
        at_ms=now_ms,
        balance=organisation.balance,
        previous="",
    )
    settled = _settled(organisation.terms.allowances, reservation.model, reservation.tokens, 0)
    return _accepted(organisation, entry, settled)


def on_terms(organisation: Organisation, terms: Terms, *, actor: str, note: str, now_ms: int) -> Decided:
    """New terms, written down in the ledger. The use of a limit that stays a limit goes on."""
    before = {(each.model, each.rate): each.full_at_us for each in organisation.terms.allowances}
    allowances = tuple(
        replace(each, full_at_us=before.get((each.model, each.rate), 0)) for each in terms.allowances
    )
    entry = Entry(
        organisation=organisation.id,
        seq=0,
        id=f"{TERMS_ID}{organisation.seq + 1}",
        kind=Kind.TERMS,
        multiplier_ppm=terms.multiplier_ppm,
        actor=actor,
        note=note,
        at_ms=now_ms,
        balance=organisation.balance,
        previous="",
    )
    return _accepted(replace(organisation, terms=terms), entry, allowances)


def charged(base: int, multiplier_ppm: int) -> int:
    """What an organisation pays of a list price: rounded up once more, where there is a multiplier."""
    return base if multiplier_ppm == PPM else -(-base * multiplier_ppm // PPM)


def _metered(asked: Transaction, organisation: Organisation, now_ms: int) -> Decided:
    amount = charged(asked.amount, organisation.terms.multiplier_ppm)
    if amount > organisation.spendable:
        return _refused(asked, organisation, No.BALANCE, needed=amount)
    now_us = now_ms * 1000
    allowances, waits = [], []
    for each in organisation.terms.allowances:
        if each.applies_to(asked.model):
            used = each.used(now_us, asked.tokens)
            waits.append((used.wait_us(now_us), used))
            allowances.append(used)
        else:
            allowances.append(each)
    wait_us, tightest = max(waits, key=lambda each: each[0], default=(0, None))
    if tightest is not None and wait_us > 0:
        rate = RATES[tightest.rate]
        fits = rate.cost_us(asked.tokens, tightest.most) <= rate.period_us
        return _refused(
            asked,
            organisation,
            rate.no,
            retry_after_s=wait_us / 1e6 if fits else None,
            limited_model=tightest.model,
        )
    expires_at_ms = now_ms + asked.hold_ms if asked.kind is Kind.RESERVE else 0
    entry = replace(_entry(asked, organisation, now_ms), amount=amount, expires_at_ms=expires_at_ms)
    return _accepted(organisation, entry, tuple(allowances))


def _closing(asked: Transaction, known: Known, now_ms: int) -> Decided:
    organisation, held = known.organisation, known.open
    model = held.model if held else known.reserved.model if known.reserved else ""
    amount = charged(asked.amount, organisation.terms.multiplier_ppm) if asked.kind is Kind.POST else 0
    held_amount = held.amount if held else 0
    spendable = max(0, organisation.balance.available - organisation.terms.lowest)
    entry = replace(
        _entry(asked, organisation, now_ms),
        model=asked.model or model,
        amount=amount,
        held=held_amount,
        lacking=max(0, amount - held_amount - spendable),
    )
    settled = _settled(
        organisation.terms.allowances,
        model,
        held.tokens if held else 0,
        asked.tokens if asked.kind is Kind.POST else 0,
    )
    return _accepted(organisation, entry, settled)


def _granting(asked: Transaction, organisation: Organisation, now_ms: int) -> Decided:
    balance, terms = organisation.balance, organisation.terms
    is_grant = asked.kind is Kind.GRANT
    lowest = 0 if is_grant else terms.lowest
    if asked.amount < 0 and balance.available + asked.amount < lowest:
        return _refused(asked, organisation, No.BALANCE, needed=-asked.amount)
    if is_grant and asked.amount - balance.issued > ISSUED_MAX:
        return _refused(asked, organisation, No.AMOUNT)
    if not is_grant and asked.amount > balance.spent:
        return _refused(asked, organisation, No.AMOUNT)
    pays = min(max(0, asked.amount), -balance.uncovered)
    entry = replace(_entry(asked, organisation, now_ms), amount=asked.amount, lacking=-pays)
    return _accepted(organisation, entry, terms.allowances)


def _settled(
    allowances: tuple[Allowance, ...], model: str, held_tokens: int, tokens: int
) -> tuple[Allowance, ...]:
    return tuple(each.settled(held_tokens, tokens) if each.applies_to(model) else each for each in allowances)


def _entry(asked: Transaction, organisation: Organisation, now_ms: int) -> Entry:
    return Entry(
        organisation=organisation.id,
        seq=0,
        id=asked.id,
        kind=asked.kind,
        reservation=asked.reservation,
        model=asked.model,
        usage=asked.usage,
        price=asked.price,
        base=asked.amount if asked.kind in SPENDING else 0,
        multiplier_ppm=organisation.terms.multiplier_ppm,
        content=asked.content,
        actor=asked.actor,
        note=asked.note,
        at_ms=now_ms,
        balance=organisation.balance,
        previous="",
    )


def _accepted(organisation: Organisation, entry: Entry, allowances: tuple[Allowance, ...]) -> Decided:
    linked = replace(
        entry,
        seq=organisation.seq + 1,
        at_ms=max(entry.at_ms, organisation.changed_at_ms),
        balance=organisation.balance.after(transfers_of(entry)),
        previous=organisation.head,
    )
    linked = replace(linked, hash=linked.computed())
    after = replace(
        organisation,
        balance=linked.balance,
        seq=linked.seq,
        head=linked.hash,
        changed_at_ms=linked.at_ms,
        terms=replace(organisation.terms, allowances=allowances),
    )
    answer = Answer(transaction=entry.id, organisation=organisation.id, entry=linked, balance=linked.balance)
    return Decided(answer=answer, organisation=after)


def _refused(
    asked: Transaction,
    organisation: Organisation,
    no: No,
    *,
    needed: int = 0,
    retry_after_s: float | None = None,
    limited_model: str = "",
) -> Decided:
    answer = Answer(
        transaction=asked.id,
        organisation=organisation.id,
        no=no,
        balance=organisation.balance,
        needed=needed,
        retry_after_s=retry_after_s,
        limited_model=limited_model,
    )
    return Decided(answer=answer, organisation=organisation)


# --- Looking back -------------------------------------------------------------------------------


@dataclass
class Audit:
    """Reads a ledger from its first entry on, and finds everything that is wrong with it."""

    organisation: Organisation
    prices: Mapping[str, Price]
    open: Mapping[str, Reservation]
    """What is kept as reserved now."""
    entries: int = 0
    _before: Balance = field(default_factory=Balance)
    _hash: str = ""
    _at_ms: int = 0
    _held: dict[str, int] = field(default_factory=dict)

    def faults(self, entries: Iterable[Entry]) -> Iterator[str]:
        """Everything that is wrong, entry by entry, and at the end of the whole."""
        for entry in entries:
            name = f"{entry.organisation} entry {entry.seq}"
            yield from (f"{name} {fault}" for fault in self._faults_of(entry))
            self.entries += 1
            self._before, self._hash, self._at_ms = entry.balance, entry.hash, entry.at_ms
        yield from self._faults_at_the_end()

    def _faults_of(self, entry: Entry) -> Iterator[str]:
        if entry.seq != self.entries + 1:
            yield f"comes where entry {self.entries + 1} should"
        if entry.previous != self._hash:
            yield "does not follow on the one before"
        if entry.hash != entry.computed():
            yield "was changed: its hash is another"
        if entry.at_ms < self._at_ms:
            yield "is older than the one before"
        if entry.balance.total:
            yield f"has accounts that sum to {entry.balance.total}, not to 0"
        if entry.balance != self._before.after(transfers_of(entry)):
            yield "ends with other balances than its transfers make"
        yield from self._faults_of_money(entry)
        yield from self._faults_of_holding(entry)

    def _faults_of_money(self, entry: Entry) -> Iterator[str]:
        if entry.kind in SPENDING and entry.amount != charged(entry.base, entry.multiplier_ppm):
            yield "charges another amount than its price and multiplier make"
        if entry.price:
            price = self.prices.get(entry.price)
            if price is None:
                yield "was priced by a table that is not kept"
            elif microcredits(price.cost_nanousd(entry.usage)) != entry.base:
                yield "costs another amount than its tokens make"

    def _faults_of_holding(self, entry: Entry) -> Iterator[str]:
        if entry.kind is Kind.RESERVE:
            self._held[entry.id] = entry.amount
        elif entry.kind in CLOSING:
            held = self._held.pop(entry.reservation, 0)
            if held != entry.held:
                yield f"frees {entry.held} where {held} was held"

    def _faults_at_the_end(self) -> Iterator[str]:
        at = self.organisation
        if self.entries != at.seq or self._hash != at.head or self._before != at.balance:
            yield f"{at.id} stands otherwise than its {self.entries} entries make"
        if at.balance.available < at.terms.lowest:
            yield f"{at.id} is below its limit"
        if self._held != {each.id: each.amount for each in self.open.values()}:
            yield f"{at.id} holds other reservations than its entries make"


def written(amount: int) -> str:
    """Micro-credits as people read them: `1,250` or `0.0461`, never rounded."""
    whole, rest = divmod(abs(amount), MICRO)
    return f"{'-' if amount < 0 else ''}{whole:,}" + (f".{rest:06d}".rstrip("0") if rest else "")


def parsed_credits(text: str) -> int:
    """Micro-credits of an amount that somebody wrote. `ValueError` if it is none."""
    found = _CREDITS.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            f"{text!r} is no amount of credits: a number with at most six decimals, "
            "and with no comma but between thousands"
        )
    whole, rest = found["whole"].replace(",", "").lstrip("0"), found["rest"] or ""
    if len(whole) > len(str(AMOUNT_MAX)) or (amount := _micro(whole, rest)) > AMOUNT_MAX:
        raise ValueError(f"{text!r} is too much: one amount is at most {written(AMOUNT_MAX)} credits")
    return -amount if found["sign"] else amount


def parsed_multiplier(text: str) -> int:
    """Parts per million of a multiplier that somebody wrote. `ValueError` if it is none."""
    found = _MULTIPLIER.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no multiplier: a number from 0 to 1000 with at most six decimals")
    return _micro(found["whole"], found["rest"] or "")


_CREDITS = re.compile(
    r"(?P<sign>-?)(?=\.?[0-9])(?P<whole>[0-9]*|[0-9]{1,3}(,[0-9]{3})+)(\.(?P<rest>[0-9]{0,6}))?"
)
_MULTIPLIER = re.compile(r"(?=\.?[0-9])(?P<whole>[0-9]{0,4})(\.(?P<rest>[0-9]{0,6}))?")


def _micro(whole: str, rest: str) -> int:
    return int(whole or "0") * MICRO + int(rest.ljust(6, "0"))


def moment_ms(moment: datetime) -> int:
    """A moment as the ledger keeps it."""
    return round(moment.timestamp() * 1000)
