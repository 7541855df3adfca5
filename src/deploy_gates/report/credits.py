"""What organisations may spend, and every transaction: the screens of `credits`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from deploy_gates.core.ledger import (
    PPM,
    RATES,
    Account,
    Answer,
    Entry,
    Kind,
    Organisation,
    transfers_of,
    written,
)
from deploy_gates.core.receipts import moment
from deploy_gates.report.record import Terminal
from deploy_gates.report.text import clip, counted, pad

_RED, _DIM = "31", "2"
NAME_MAX = 24
COLUMNS = (
    "seq",
    "at",
    "kind",
    "id",
    "model",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "amount",
    "held",
    "overrun",
    "lacking",
    "multiplier_ppm",
    "available",
    "reserved",
    "spent",
    "uncovered",
    "reservation",
    "actor",
    "note",
    "hash",
)
"""Of a statement as CSV; amounts are micro-credits."""


def organisations(found: Sequence[Organisation], terminal: Terminal) -> list[str]:
    """Every organisation with its accounts, in credits."""
    if not found:
        return ["there are no organisations yet"]
    heads = ("organisation", "available", "reserved", "spent", "granted", "uncovered")
    rows = [
        (
            clip(terminal.said(each.id), NAME_MAX),
            *(
                written(amount)
                for amount in (
                    each.balance.available,
                    each.balance.reserved,
                    each.balance.spent,
                    -each.balance.issued,
                    -each.balance.uncovered,
                )
            ),
        )
        for each in found
    ]
    return _table(heads, rows, terminal, left=1)


def organisation(found: Organisation, terminal: Terminal, now_ms: int) -> list[str]:
    """One organisation: what it has, on which terms, and what is left of its limits."""
    terms = found.terms
    lines = organisations([found], terminal)
    multiplier = f"{terms.multiplier_ppm / PPM:g}"
    lines += [f"  {_entries(found.seq)}, list prices × {multiplier}"]
    lines[-1] += f", down to {written(terms.lowest)} credits" if terms.lowest else ""
    lines.append("")
    if terms.allowances:
        heads = ("limit", "model", "most", "left now")
        rows = [
            (
                each.rate.replace("_", " "),
                clip(terminal.said(each.model or "all"), NAME_MAX),
                f"{each.most:,}",
                f"{each.left(now_ms * 1000):,}",
            )
            for each in terms.allowances
        ]
        lines += _table(heads, rows, terminal, left=2)[1:]
    return lines


def statement(entries: Iterable[Entry], terminal: Terminal) -> list[str]:
    """A line for each transaction: what it did to what may be spent, and what that is then."""
    rows = []
    for each in entries:
        what = each.model or each.note or each.reservation
        rows.append(
            (
                f"{each.seq}",
                moment(each.at_ms)[:19].replace("T", " "),
                each.kind.value,
                clip(terminal.said(each.id), 18),
                clip(terminal.said(what), 16),
                _signed(effect(each)),
                written(each.balance.available),
            )
        )
    if not rows:
        return ["there are no transactions yet"]
    return _table(("seq", "at", "kind", "id", "of", "change", "available"), rows, terminal, left=5)


def statement_csv(entries: Iterable[Entry]) -> Iterator[str]:
    """The same for spreadsheets, with everything in it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in entries:
        usage, balance = each.usage, each.balance
        writer.writerow(
            _inert(value)
            for value in (
                each.seq,
                moment(each.at_ms),
                each.kind.value,
                each.id,
                each.model,
                usage.input_tokens,
                usage.cached_input_tokens,
                usage.output_tokens,
                usage.reasoning_tokens,
                each.amount,
                each.held,
                each.overrun,
                each.lacking,
                each.multiplier_ppm,
                balance.available,
                balance.reserved,
                balance.spent,
                balance.uncovered,
                each.reservation,
                each.actor,
                each.note,
                each.hash,
            )
        )
        yield out.getvalue().rstrip("\n")
        out.seek(0)
        out.truncate()


def done(answer: Answer, terminal: Terminal) -> list[str]:
    """What came of a transaction by hand."""
    entry = answer.entry
    if entry is None:
        return [terminal.ink(terminal.said(f"refused: {answer.reason}, and nothing was changed"), _RED)]
    before = ", as it was before" if answer.replayed else ""
    given, taken = {Kind.GRANT: ("granted", "taken back"), Kind.CORRECT: ("given back", "charged")}.get(
        entry.kind, (entry.kind.value, entry.kind.value)
    )
    verb = given if entry.amount >= 0 else taken
    amount, available = written(abs(entry.amount)), written(answer.balance.available)
    text = f"{amount} credits {verb}{before}: {answer.organisation} has {available} available"
    return [terminal.said(text)]


def verified(checked: int, entries: int, faults: Sequence[str], terminal: Terminal) -> list[str]:
    """Whether the ledgers are whole, and what is wrong with them."""
    of = f"{counted(checked, 'ledger')} with {_entries(entries)}"
    if not faults:
        return [f"{of}: every hash, transfer, price and balance is as it should be"]
    told = [terminal.ink(f"{of}: {counted(len(faults), 'fault')}", _RED)]
    return told + [f"  {terminal.said(each)}" for each in faults]


def effect(entry: Entry) -> int:
    """What a transaction did to what may be spent."""
    transfers = transfers_of(entry)
    gained = sum(each.amount for each in transfers if each.credit is Account.AVAILABLE)
    return gained - sum(each.amount for each in transfers if each.debit is Account.AVAILABLE)


def limit_names() -> list[str]:
    """The limits there are, as options spell them."""
    return [rate.replace("_", "-") for rate in RATES]


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count:,} entries"


def _signed(amount: int) -> str:
    return f"+{written(amount)}" if amount > 0 else written(amount)


def _inert(value: object) -> object:
    """A text that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], terminal: Terminal, *, left: int
) -> list[str]:
    widths = [max(len(head), *(len(row[at]) for row in rows)) for at, head in enumerate(heads)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            pad(cell, width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return ("  " + "  ".join(padded)).rstrip()

    return ["", terminal.ink(line(heads), _DIM), *(line(row) for row in rows), ""]
