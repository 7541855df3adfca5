"""The command `deploy-gates`: one function a subcommand. Data goes to stdout, talk to stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from deploy_gates import __version__
from deploy_gates.cli import canary, deliveries, demo, golden, record, repository, ship
from deploy_gates.cli import credits as ledger
from deploy_gates.cli.frame import DONE, REFUSED, UNAVAILABLE, USAGE, Commands, print_json
from deploy_gates.core.errors import DeployGatesError, EnvelopeError, Refused, StoreError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    0 done, 1 refused, 2 usage, 3 the store or the network cannot be used.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        asked = _parser().parse_args(given)
    except _Misused as error:
        return error.tell(as_json="--json" in given)
    run: Callable[[argparse.Namespace], int] = asked.run
    try:
        return run(asked)
    except (EnvelopeError, Refused) as error:
        return _refuse(error, asked.json, REFUSED)
    except StoreError as error:
        return _refuse(error, asked.json, UNAVAILABLE)
    except DeployGatesError as error:
        return _refuse(error, asked.json, USAGE)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _refuse(error: DeployGatesError, as_json: bool, status: int) -> int:
    if as_json:
        why = {"refusal": error.refusal.value} if isinstance(error, Refused) else {}
        print_json({"error": error.message, "hint": error.hint, **why})
    else:
        print(f"deploy-gates: {error}", file=sys.stderr)
    return status


class _Misused(Exception):
    """A command was given what it does not take."""

    def __init__(self, parser: argparse.ArgumentParser, message: str) -> None:
        super().__init__(message)
        self.parser = parser

    def tell(self, *, as_json: bool) -> int:
        """As argparse does, or as data for who asked for data; the exit status."""
        if as_json:
            print_json({"error": f"{self.parser.prog}: {self}", "hint": f"{self.parser.prog} --help"})
        else:
            self.parser.print_usage(sys.stderr)
            print(f"{self.parser.prog}: error: {self}", file=sys.stderr)
        return USAGE


class _Parser(argparse.ArgumentParser):
    """An argument parser, of commands too, that leaves it to `main` how an error is told."""

    def error(self, message: str) -> NoReturn:
        raise _Misused(self, message)


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="deploy-gates",
        description="Quality gates for changes to AI model configs, and their way to production.",
        epilog="The gates themselves run under pytest: pytest --deploy-gates",
    )
    parser.add_argument("--version", action="version", version=f"deploy-gates {__version__}")
    commands: Commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    repository.add(commands)
    ship.add(commands)
    golden.add(commands)
    record.add(commands)
    canary.add(commands)
    ledger.add(commands)
    deliveries.add(commands)
    demo.add(commands)
    return parser
