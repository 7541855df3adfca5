"""`credits`: organisations, what they may spend, and the ledger of it."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from deploy_gates.cli.frame import (
    DONE,
    REFUSED,
    Commands,
    actor,
    group,
    opened,
    positive,
    print_json,
    stored,
    terminal,
    whole,
)
from deploy_gates.core.errors import Refusal, Refused, SettingsError

if TYPE_CHECKING:
    from deploy_gates.core.canonical import Json
    from deploy_gates.core.ledger import Allowance, Entry, Kind, Organisation, Terms
    from deploy_gates.store.ledger import Ledger

RATES = ("requests-per-minute", "tokens-per-minute", "requests-per-day", "tokens-per-day")


def add(commands: Commands) -> None:
    of_credits = group(
        commands,
        "credits",
        "what organisations may spend, and the ledger of it",
        "deploy-gates credits grant acme 5000",
    )
    _add_organisations(of_credits)
    _add_moving(of_credits)
    limits = stored(
        of_credits,
        "limits",
        _limits,
        "show the terms of an organisation, or change them; a limit of 0 is taken away",
        "deploy-gates credits limits acme --requests-per-minute 600 --tokens-per-day 5000000",
    )
    limits.add_argument("organisation", metavar="ORG")
    limits.add_argument("--model", default="", help="the limits are those of one model (default: of all)")
    _add_terms(limits)
    _says_who(limits)
    balance = stored(
        of_credits,
        "balance",
        _balance,
        "show what an organisation has, or what all have",
        "deploy-gates credits balance acme",
    )
    balance.add_argument("organisation", metavar="ORG", nargs="?", default="")
    statement = stored(
        of_credits,
        "statement",
        _statement,
        "list transactions, the newest last",
        "deploy-gates credits statement acme --csv --last 10000 > acme.csv",
    )
    statement.add_argument("organisation", metavar="ORG")
    statement.add_argument("--last", type=positive, default=50, metavar="N", help="how many (default: 50)")
    statement.add_argument("--after", type=whole, default=0, metavar="SEQ", help="only those after this one")
    statement.add_argument("--csv", action="store_true", help="print everything about each, for spreadsheets")
    verify = stored(
        of_credits,
        "verify",
        _verify,
        "read ledgers from their beginning: hashes, transfers, prices, balances",
        "deploy-gates credits verify",
    )
    verify.add_argument("organisation", metavar="ORG", nargs="?", default="")
    stored(
        of_credits,
        "sweep",
        _sweep,
        "free reservations that have expired (the next transaction does so as well)",
        "deploy-gates credits sweep",
    )


def _add_organisations(of_credits: Commands) -> None:
    organisations = group(
        of_credits, "org", "organisations", "deploy-gates credits org add acme --multiplier 1.2"
    )
    new = stored(
        organisations,
        "add",
        _add,
        "add an organisation, without credits",
        "deploy-gates credits org add acme --name 'Acme Ltd' --multiplier 1.2",
    )
    new.add_argument("organisation", metavar="ORG")
    new.add_argument("--name", default="", help="as people call it")
    _add_terms(new)
    new.set_defaults(model="", note="")
    new.add_argument("--by", default="", metavar="NAME", help="who does it (default: the user)")
    stored(organisations, "list", _list, "list organisations", "deploy-gates credits org list")


def _add_moving(of_credits: Commands) -> None:
    for name, run, says, example in (
        (
            "grant",
            _grant,
            "give credits; less than nothing takes back what was not spent",
            "deploy-gates credits grant acme 5000 --note 'invoice 118'",
        ),
        (
            "correct",
            _correct,
            "give back what was spent wrongly; less than nothing charges what was forgotten",
            "deploy-gates credits correct acme 12.5 --note 'charged twice: req-118'",
        ),
    ):
        moving = stored(of_credits, name, run, says, example)
        moving.add_argument("organisation", metavar="ORG")
        moving.add_argument("amount", metavar="CREDITS", help="1,000 credits are a dollar")
        moving.add_argument("--key", default="", help="an idempotency key: the same transaction is made once")
        _says_who(moving)


def _add_terms(parser: argparse.ArgumentParser) -> None:
    for rate in RATES:
        parser.add_argument(f"--{rate}", type=whole, metavar="N", help=f"{rate.replace('-', ' ')}")
    parser.add_argument("--lowest", metavar="CREDITS", help="how far the balance may go down (default: 0)")
    parser.add_argument("--multiplier", metavar="X", help="what it pays of list prices (default: 1)")


def _says_who(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--note", default="", help="why, for the ledger")
    parser.add_argument("--by", default="", metavar="NAME", help="who does it (default: the user)")


@contextlib.contextmanager
def _ledger(asked: argparse.Namespace, *, makes: bool = False) -> Iterator[Ledger]:
    from deploy_gates.store.ledger import ledger_of

    with opened(asked, makes=makes) as store:
        yield ledger_of(store)


# --- Organisations ------------------------------------------------------------------------------


def _add(asked: argparse.Namespace) -> int:
    from deploy_gates.core.ledger import Terms, checked_name

    terms = _terms(asked, Terms())
    try:
        checked_name(asked.organisation)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    with _ledger(asked, makes=True) as ledger:
        made = ledger.add(asked.organisation, asked.name, terms, asked.by or actor())
    return _show(asked, made)


def _list(asked: argparse.Namespace) -> int:
    from deploy_gates.report import credits as screens

    with _ledger(asked) as ledger:
        found = list(_every(ledger))
    if asked.json:
        print_json([_as_json(each) for each in found])
    else:
        print("\n".join(screens.organisations(found, terminal())))
    return DONE


def _limits(asked: argparse.Namespace) -> int:
    changes = [asked.lowest, asked.multiplier, *(_asked_rate(asked, rate) for rate in RATES)]
    with _ledger(asked) as ledger:
        if all(each is None for each in changes):
            return _show(asked, _found(ledger, asked.organisation))
        changed = ledger.change(
            asked.organisation,
            lambda terms: _terms(asked, terms),
            actor=asked.by or actor(),
            note=asked.note or _told_changes(asked),
        )
    return _show(asked, changed)


def _balance(asked: argparse.Namespace) -> int:
    if not asked.organisation:
        return _list(asked)
    with _ledger(asked) as ledger:
        return _show(asked, _found(ledger, asked.organisation))


def _terms(asked: argparse.Namespace, before: Terms) -> Terms:
    """The terms with what the options change of them. `SettingsError` for what cannot be."""
    from deploy_gates.core.ledger import Allowance, parsed_credits, parsed_multiplier

    kept: dict[tuple[str, str], Allowance] = {(each.model, each.rate): each for each in before.allowances}
    try:
        for option in RATES:
            most, place = _asked_rate(asked, option), (asked.model, option.replace("-", "_"))
            if most == 0:
                kept.pop(place, None)
            elif most is not None:
                kept[place] = Allowance(model=place[0], rate=place[1], most=most)
        lowest = before.lowest if asked.lowest is None else parsed_credits(asked.lowest)
        ppm = before.multiplier_ppm if asked.multiplier is None else parsed_multiplier(asked.multiplier)
        return replace(before, lowest=lowest, multiplier_ppm=ppm, allowances=tuple(kept.values()))
    except ValueError as error:
        raise SettingsError(f"these terms cannot be: {error}") from error


def _asked_rate(asked: argparse.Namespace, option: str) -> int | None:
    value: int | None = getattr(asked, option.replace("-", "_"))
    return value


def _told_changes(asked: argparse.Namespace) -> str:
    """What was changed, for the ledger."""
    of = f" of {asked.model}" if asked.model else ""
    told = [f"{option}{of} {most}" for option in RATES if (most := _asked_rate(asked, option)) is not None]
    told += [f"lowest {asked.lowest}"] if asked.lowest is not None else []
    told += [f"multiplier {asked.multiplier}"] if asked.multiplier is not None else []
    return ", ".join(told)[:1_000]


# --- Moving -------------------------------------------------------------------------------------


def _grant(asked: argparse.Namespace) -> int:
    from deploy_gates.core.ledger import Kind

    return _move(asked, Kind.GRANT)


def _correct(asked: argparse.Namespace) -> int:
    from deploy_gates.core.ledger import Kind

    return _move(asked, Kind.CORRECT)


def _move(asked: argparse.Namespace, kind: Kind) -> int:
    import secrets

    from deploy_gates.core.ledger import Transaction, parsed_credits
    from deploy_gates.core.receipts import answer_json
    from deploy_gates.report import credits as screens

    try:
        transaction = Transaction(
            organisation=asked.organisation,
            id=asked.key or f"{kind}-{secrets.token_hex(8)}",
            kind=kind,
            amount=parsed_credits(asked.amount),
            actor=asked.by or actor(),
            note=asked.note,
        )
    except ValueError as error:
        raise SettingsError(f"this cannot be asked for: {error}") from error
    with _ledger(asked) as ledger:
        (answer,) = ledger.apply([transaction])
    if asked.json:
        print_json(answer_json(answer))
    else:
        print("\n".join(screens.done(answer, terminal())))
    return DONE if answer.accepted else REFUSED


# --- Looking back -------------------------------------------------------------------------------


def _statement(asked: argparse.Namespace) -> int:
    from deploy_gates.core.receipts import entry_json
    from deploy_gates.report import credits as screens

    with _ledger(asked) as ledger:
        found = _found(ledger, asked.organisation)
        first = max(asked.after, found.seq - asked.last)
        entries = _entries(ledger, found, first)
        if asked.csv:
            for line in screens.statement_csv(entries):
                print(line)
        elif asked.json:
            print_json([entry_json(each) for each in entries])
        else:
            print("\n".join(screens.statement(entries, terminal())))
    return DONE


def _entries(ledger: Ledger, found: Organisation, after: int) -> Iterator[Entry]:
    while after < found.seq:
        page = ledger.entries(found.id, after=after, before=found.seq + 1)
        if not page:
            return
        yield from page
        after = page[-1].seq


def _verify(asked: argparse.Namespace) -> int:
    from deploy_gates.report import credits as screens

    with _ledger(asked) as ledger:
        chosen = [_found(ledger, asked.organisation)] if asked.organisation else list(_every(ledger))
        audits = [audited for each in chosen if (audited := ledger.audit(each.id)) is not None]
    faults = [fault for each in audits for fault in each.faults]
    entries = sum(each.organisation.seq for each in audits)
    if asked.json:
        heads: Json = {each.organisation.id: each.organisation.head for each in audits}
        print_json({"ledgers": len(audits), "entries": entries, "heads": heads, "faults": list(faults)})
    else:
        print("\n".join(screens.verified(len(audits), entries, faults, terminal())))
    return REFUSED if faults else DONE


def _sweep(asked: argparse.Namespace) -> int:
    with _ledger(asked) as ledger:
        freed = ledger.sweep()
    if asked.json:
        print_json({"freed": freed})
    else:
        print(f"{freed} expired reservations were freed")
    return DONE


# --- What they share ----------------------------------------------------------------------------


def _every(ledger: Ledger) -> Iterator[Organisation]:
    after = ""
    while page := ledger.organisations(after):
        yield from page
        after = page[-1].id


def _found(ledger: Ledger, id: str) -> Organisation:
    found = ledger.organisation(id)
    if found is None:
        raise Refused(Refusal.UNKNOWN, f"there is no organisation {id}", hint="deploy-gates credits org list")
    return found


def _show(asked: argparse.Namespace, found: Organisation) -> int:
    from deploy_gates.report import credits as screens

    if asked.json:
        print_json(_as_json(found))
    else:
        print("\n".join(screens.organisation(found, terminal(), _now_ms())))
    return DONE


def _as_json(found: Organisation) -> Json:
    from deploy_gates.core.receipts import organisation_json

    return organisation_json(found, _now_ms())


def _now_ms() -> int:
    from deploy_gates import clock
    from deploy_gates.core.ledger import moment_ms

    return moment_ms(clock.now())
