"""What all commands have in common: how they are declared, what they return, how they print data."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from deploy_gates.core.canonical import Json
from deploy_gates.core.errors import SettingsError, StoreUnavailable
from deploy_gates.store import STORE_VARIABLE

if TYPE_CHECKING:
    from deploy_gates.report.record import Terminal
    from deploy_gates.store import Store

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DONE, REFUSED, USAGE, UNAVAILABLE = 0, 1, 2, 3
"""Exit statuses."""
ACTOR_VARIABLES = ("DEPLOY_GATES_ACTOR", "GITHUB_ACTOR", "GITLAB_USER_LOGIN")


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


def stored(*arguments: object) -> argparse.ArgumentParser:
    """Declare a command that looks at the store, or moves it."""
    parser = command(*arguments)  # type: ignore[arg-type]  # the same as those of `command`
    parser.add_argument(
        "--store",
        default="",
        metavar="URL",
        help=f"the database (default: ${STORE_VARIABLE}, or the settings)",
    )
    return parser


@contextlib.contextmanager
def opened(asked: argparse.Namespace, *, makes: bool = False) -> Iterator[Store]:
    """The store named by the option, the variable, the settings, or the default; its tables are there.

    The default store needs no ceremony: a command that `makes` it does so. Looking makes nothing.
    """
    from deploy_gates import workspace
    from deploy_gates.store import DEFAULT_URL, open_store

    root = workspace.find_root(Path.cwd())
    url = store_url(asked, root)
    store = open_store(url, root=root)
    is_default = url == DEFAULT_URL
    try:
        if is_default and (makes or (root / DEFAULT_URL.removeprefix("sqlite:///")).exists()):
            store.upgrade()
        elif is_default:
            raise StoreUnavailable(
                f"there is no store in {root} yet",
                hint="`deploy-gates promote` makes one; --store or DEPLOY_GATES_STORE name another",
            )
        store.check()
        yield store
    finally:
        store.close()


def store_url(asked: argparse.Namespace, root: Path) -> str:
    """Which store the option, the variable, the settings, or nobody names."""
    from deploy_gates import settings
    from deploy_gates.store import DEFAULT_URL

    return asked.store or os.environ.get(STORE_VARIABLE, "") or settings.load(root).store or DEFAULT_URL


def terminal() -> Terminal:
    """What the screen that data goes to can show."""
    from deploy_gates.report.record import WIDTH_MIN, Terminal

    is_terminal = sys.stdout.isatty()
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    width = os.get_terminal_size().columns if is_terminal else 96
    return Terminal(
        width=min(max(width, WIDTH_MIN), 120),
        color=is_terminal and not os.environ.get("NO_COLOR"),
        unicode=encoding.startswith("utf"),
    )


def existing(text: str) -> Path:
    """The file of that name, for argparse."""
    path = Path(text)
    if not path.exists() or path.is_dir():  # a pipe is as good
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return path


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    return _whole(text, 1)


def whole(text: str) -> int:
    """A whole number from 0 on, for argparse."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    """Python takes `1_000` for a number, and people do not; sixteen digits are more than anybody means."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 16 or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from {least} on")
    return int(text)


def decimal(text: str) -> Decimal | None:
    """The finite number that is written so, in digits and without grouping; `None` if it is none."""
    return Decimal(text) if re.fullmatch(r"-?(?=\.?[0-9])[0-9]{0,16}(\.[0-9]{0,16})?", text) else None


def weight(text: str) -> int | None:
    """A share in percent as basis points; `None` where none is given. `SettingsError`."""
    if not text:
        return None
    weight_bp = (decimal(text.removesuffix("%").strip()) or Decimal(0)) * 100
    if weight_bp != weight_bp.to_integral_value() or not 0 < weight_bp < 10_000:
        raise SettingsError(
            f"--weight {text!r} is no share: more than 0 and less than 100 percent, in steps of 0.01"
        )
    return int(weight_bp)


def actor() -> str:
    """Who runs this: as a CI says it, or the user. `SettingsError` where nobody knows."""
    named = next((os.environ[each] for each in ACTOR_VARIABLES if os.environ.get(each)), "")
    if named:
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:  # a container without a user of its own
        raise SettingsError("nobody knows who does this", hint="say it: --by NAME") from error
