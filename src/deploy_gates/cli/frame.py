"""What all commands have in common: how they are declared, what they return, how they print data."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TypeAlias

from deploy_gates.core.canonical import Json

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DONE, REFUSED, USAGE, UNAVAILABLE = 0, 1, 2, 3
"""Exit statuses."""


def command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    help: str,
    example: str = "",
) -> argparse.ArgumentParser:
    """Declare a command, with an example that can be copied, and `--json`."""
    parser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example: {example or f'deploy-gates {name}'}",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # an example that is wrapped cannot be copied
    )
    parser.add_argument("--json", action="store_true", help="print data for machines")
    parser.set_defaults(run=run)
    return parser


def group(commands: Commands, name: str, help: str, example: str) -> Commands:
    """Declare a command that has commands of its own."""
    parser = commands.add_parser(name, help=help, epilog=f"example: {example}")
    return parser.add_subparsers(title="commands", required=True, metavar="COMMAND")


def print_json(value: Json) -> None:
    """Print `value` as people can read it, too."""
    print(json.dumps(value, ensure_ascii=False, indent=2))
