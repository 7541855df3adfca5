"""`deploy-gates credits`, as a process, on both engines."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy_gates.core.ledger import Kind, Transaction
from deploy_gates.store import open_store
from deploy_gates.store.ledger import ledger_of

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(store_url: str, tmp_path: Path) -> Command:
    """The command on a store with tables."""
    store = open_store(store_url)
    store.upgrade()
    store.close()

    def asked(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "deploy_gates", "credits", *arguments],
            cwd=tmp_path,
            env={**os.environ, "DEPLOY_GATES_STORE": store_url, "DEPLOY_GATES_ACTOR": "ada"},
            capture_output=True,
            text=True,
            check=False,
        )

    return asked


def test_an_organisation_gets_credits_and_terms_and_can_be_looked_at(run: Command, store_url: str) -> None:
    added = run("org", "add", "acme", "--name", "Acme Ltd", "--multiplier", "1.25")
    granted = run("grant", "acme", "5000", "--note", "invoice 118", "--key", "invoice-118")
    again = run("grant", "acme", "5000", "--note", "invoice 118", "--key", "invoice-118", "--json")
    limited = run("limits", "acme", "--requests-per-minute", "600", "--json")
    ledger = ledger_of(open_store(store_url))
    call = Transaction(organisation="acme", id="call-1", kind=Kind.CONSUME, amount=4_000_000, model="gpt-4.1")
    assert ledger.apply([call])[0].accepted
    ledger.close()

    assert (added.returncode, granted.returncode, again.returncode) == (0, 0, 0), added.stderr
    assert granted.stdout == "5,000 credits granted: acme has 5,000 available\n"
    assert json.loads(again.stdout)["replayed"] is True
    assert json.loads(limited.stdout)["limits"] == [
        {"model": "", "rate": "requests_per_minute", "most": 600, "left": 600}
    ]
    shown = run("balance", "acme").stdout
    assert "acme              4,995         0      5    5,000          0" in shown
    assert "4 entries, list prices × 1.25" in shown
    listed = run("org", "list")
    assert "organisation  available  reserved  spent  granted  uncovered" in listed.stdout
    assert [each["organisation"] for each in json.loads(run("balance", "--json").stdout)] == ["acme"]


def test_a_statement_is_a_table_a_list_or_a_spreadsheet(run: Command) -> None:
    run("org", "add", "acme")
    run("grant", "acme", "5000", "--note", "=1+1")
    run("correct", "acme", "-12.5", "--note", "forgotten")

    table = run("statement", "acme").stdout.splitlines()
    rows = list(csv.DictReader(io.StringIO(run("statement", "acme", "--csv").stdout)))
    listed = json.loads(run("statement", "acme", "--json", "--last", "1").stdout)

    assert table[1].split() == ["seq", "at", "kind", "id", "of", "change", "available"]
    assert table[-2].split()[-2:] == ["-12.5", "4,987.5"]
    assert max(map(len, table)) <= 96
    assert [(row["kind"], row["amount"], row["note"]) for row in rows[1:]] == [
        ("grant", "5000000000", "'=1+1"),
        ("correct", "-12500000", "forgotten"),
    ]
    assert [each["transfers"] for each in listed] == [
        [{"debit": "available", "credit": "spent", "amount": 12_500_000}]
    ]


def test_a_ledger_is_verified_and_a_forged_one_found(run: Command, store_url: str) -> None:
    run("org", "add", "acme")
    run("grant", "acme", "5000")
    honest = run("verify")
    forge(store_url)

    forged = run("verify", "acme")
    as_json = json.loads(run("verify", "--json").stdout)

    assert honest.stdout == (
        "1 ledger with 2 entries: every hash, transfer, price and balance is as it should be\n"
    )
    assert (honest.returncode, forged.returncode) == (0, 1)
    assert "acme entry 2 was changed: its hash is another" in forged.stdout
    assert as_json["faults"]


def forge(store_url: str) -> None:
    """Rewrite an entry, as somebody with the rights of the database's owner could."""
    if store_url.startswith("sqlite"):
        import sqlite3

        with sqlite3.connect(store_url.removeprefix("sqlite:///")) as file:
            file.execute("DROP TRIGGER entry_stays")
            file.execute("UPDATE entry SET note = 'nothing to see here' WHERE seq = 2")
        file.close()
        return
    import psycopg

    with psycopg.connect(store_url, autocommit=True) as connection:
        connection.execute("DROP TRIGGER entry_stays ON entry")
        connection.execute("UPDATE entry SET note = 'nothing to see here' WHERE seq = 2")


def test_what_cannot_be_done_is_said_in_a_sentence_and_by_the_status(run: Command, tmp_path: Path) -> None:
    run("org", "add", "acme")

    unknown = run("balance", "nobody")
    refused = run("grant", "acme", "-1")
    no_number = run("grant", "acme", "lots")
    too_fine = run("grant", "acme", "0.0000001")
    no_name = run("org", "add", "ac me/..")
    other_terms = run("org", "add", "acme", "--multiplier", "2")
    away = run("balance", "--store", f"sqlite:///{tmp_path}/none.db")

    statuses = [
        each.returncode for each in (unknown, refused, no_number, too_fine, no_name, other_terms, away)
    ]
    assert statuses == [1, 1, 2, 2, 2, 1, 3]
    assert "an organisation is named by 1 to 200 characters, without /" in no_name.stderr
    assert "there is no organisation nobody" in unknown.stderr
    assert "acme has 0 credits available and 0 reserved, and this takes 1" in refused.stdout
    assert "'lots' is no amount of credits" in no_number.stderr


def test_numbers_are_what_people_mean_by_them(run: Command) -> None:
    run("org", "add", "acme")

    asked = [
        ("grant", "acme", "1,5"),
        ("grant", "acme", "1_000"),
        ("grant", "acme", "9999999999999"),
        ("limits", "acme", "--lowest", "-1,5"),
        ("limits", "acme", "--multiplier", "nan"),
        ("limits", "acme", "--requests-per-minute", "1_000"),
        ("statement", "acme", "--after", "1_0"),
    ]
    refused = [run(*each) for each in asked]

    assert [each.returncode for each in refused] == [2] * len(asked)
    said = [each.stderr for each in refused]
    assert "'1,5' is no amount of credits: a number with at most six decimals, and with no comma" in said[0]
    assert "is too much: one amount is at most 1,000,000,000 credits" in said[2]
    assert "'nan' is no multiplier" in said[4]
    assert "1_000 is not a whole number from 0 on" in said[5]
    assert run("grant", "acme", "1,000").stdout == "1,000 credits granted: acme has 1,000 available\n"


def test_every_command_has_an_example(run: Command) -> None:
    names = ["org add", "org list", "grant", "correct", "limits", "balance", "statement", "verify", "sweep"]

    helps = [run(*name.split(), "--help").stdout for name in names]

    assert all(
        f"example: deploy-gates credits {name}" in text for name, text in zip(names, helps, strict=True)
    )
    assert all("--json" in text for text in helps)


def test_a_limit_of_nothing_is_taken_away(run: Command) -> None:
    run("org", "add", "acme", "--requests-per-day", "10", "--tokens-per-day", "1000")

    left = run("limits", "acme", "--requests-per-day", "0", "--json")

    assert [each["rate"] for each in json.loads(left.stdout)["limits"]] == ["tokens_per_day"]
    assert "limits" not in run("sweep", "--json").stdout


def test_what_is_taken_back_is_said_so(run: Command) -> None:
    run("org", "add", "acme")
    run("grant", "acme", "5000")

    taken = run("grant", "acme", "-1000")

    assert taken.stdout == "1,000 credits taken back: acme has 4,000 available\n"
    assert "terms:1 " in run("statement", "acme").stdout
