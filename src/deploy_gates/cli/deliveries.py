"""What was told to others, what could not be, and how to tell it again."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from deploy_gates.cli.frame import DONE, REFUSED, Commands, opened, positive, print_json, stored, terminal

if TYPE_CHECKING:
    from deploy_gates.core.delivery import Delivery
    from deploy_gates.report.record import Terminal

SEND_S = 30.0
"""So long `--retry` waits for what it sends."""


def add(commands: Commands) -> None:
    """Add these commands to the parser."""
    deliveries = stored(
        commands,
        "deliveries",
        _deliveries,
        "tell who was told of what, and what could not be delivered",
        "deploy-gates deliveries --dead",
    )
    deliveries.add_argument("--dead", action="store_true", help="only what was given up")
    deliveries.add_argument("--channel", default="", metavar="NAME", help="only over this channel")
    deliveries.add_argument("--promotion", type=positive, metavar="ID", help="only of this promotion")
    deliveries.add_argument("--limit", type=positive, default=20, help="so many at most (default 20)")
    deliveries.add_argument(
        "--retry",
        action="append",
        default=[],
        metavar="ID",
        help="send what was given up once more; repeatable, and `all` for all of them",
    )


def _deliveries(asked: argparse.Namespace) -> int:
    from deploy_gates.core.delivery import Fate

    if asked.retry:
        return _retry(asked)
    with opened(asked) as store:
        found = store.deliveries(
            thread=f"promotion/{asked.promotion}" if asked.promotion else "",
            channel=asked.channel,
            state=Fate.DEAD.value if asked.dead else "",
            limit=asked.limit,
        )
    return _show(found, asked)


def _retry(asked: argparse.Namespace) -> int:
    """Make dead letters due again, and send what is due."""
    from deploy_gates import notify, settings, workspace
    from deploy_gates.core.delivery import Fate

    telling = notify.Telling.of(settings.load(workspace.find_root(Path.cwd())).notify, os.environ)
    with opened(asked) as store:
        dead = store.deliveries(state=Fate.DEAD.value, limit=notify.DEAD_MAX)
        ids = [each.id for each in dead] if "all" in asked.retry else list(dict.fromkeys(asked.retry))
        known = {each.id for each in dead}
        for id in ids:  # noqa: A001
            notify.again(store, id)
        notify.deliver(store, telling, timeout_s=SEND_S)
        after = {each.id: each for each in store.deliveries(limit=notify.DEAD_MAX)}
    found = tuple(after[each] for each in ids if each in known and each in after)
    status = _show(found, asked)
    unknown = [each for each in ids if each not in known]
    if unknown and not asked.json:
        print(f"nothing of that id was given up: {', '.join(unknown)}")
    arrived = all(each.state is Fate.DELIVERED for each in found)
    return status if arrived and not unknown else REFUSED


def _show(found: tuple[Delivery, ...], asked: argparse.Namespace) -> int:
    if asked.json:
        print_json([each.to_json() for each in found])
        return DONE
    for line in _lines(found, terminal()):
        print(line)
    return DONE


def _lines(found: tuple[Delivery, ...], screen: Terminal) -> list[str]:
    """A screen: one delivery on two lines, the reason of a failure below it."""
    from deploy_gates.core.delivery import Fate
    from deploy_gates.report.text import ascii_only, visible

    if not found:
        return ["nothing was to be delivered"]
    marks = {Fate.DELIVERED: "✓", Fate.DEAD: "✗", Fate.DUE: "…"}
    lines = []
    for each in found:
        kind = str(each.body.get("type", "")).removeprefix("io.deploy-gates.")
        tries = f"{each.attempts} {'try' if each.attempts == 1 else 'tries'}"
        lines.append(
            f"  {marks[each.state]} {each.created_at:%Y-%m-%d %H:%M:%S}  {each.channel:<14} "
            f"{kind:<24} {each.state.value}, {tries}"
        )
        lines.append(f"      {each.id}")
        if each.error:
            lines.append(f"      {visible(each.error)}")
    if any(each.state is Fate.DEAD for each in found):
        lines += ["", "next: deploy-gates deliveries --retry ID sends a dead one again"]
    return lines if screen.unicode else [ascii_only(each) for each in lines]
