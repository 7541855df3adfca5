"""The command that shows everything at once, with simulated users."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from typing import TYPE_CHECKING

from deploy_gates.cli.frame import DONE, REFUSED, Commands, command, print_json, terminal

if TYPE_CHECKING:
    from deploy_gates.demo.story import Ended, Stage

INTERRUPTED = 130


def add(commands: Commands) -> None:
    """Add this command to the parser."""
    demo = command(
        commands,
        "demo",
        _demo,
        "show a good change shipped and a bad one rolled back, with simulated users, in two minutes",
    )
    demo.add_argument(
        "--store", default="", metavar="URL", help="a database without `hello` (default: a temporary one)"
    )
    demo.add_argument("--keep", action="store_true", help="leave the folder, and say where it is")
    demo.add_argument(
        "--serve",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="serve the dashboard on loopback meanwhile (default: where the server is installed)",
    )
    demo.add_argument("--stay", action="store_true", help="go on until ctrl-c, once the story is told")


def _demo(asked: argparse.Namespace) -> int:
    from deploy_gates.demo.story import Stage

    stage = Stage(url=asked.store, has_server=asked.serve, is_kept=asked.keep)
    try:
        with stage:
            ended = _played(stage, asked.json)
            if asked.stay:
                _stay(asked.json)
    except KeyboardInterrupt:
        _left(stage, asked.store, asked.json)
        return INTERRUPTED
    if asked.keep and not asked.json:
        print(f"  kept: cd {stage.repository.root} && deploy-gates log hello")
    return DONE if ended.is_as_told else REFUSED


def _played(stage: Stage, as_json: bool) -> Ended:
    from deploy_gates.demo import screen, story

    shown = terminal()
    for scene in story.play(stage, is_shown=not as_json):
        if not as_json:
            sys.stdout.write("".join(f"{each}\n" for each in screen.lines(scene, shown)))
            sys.stdout.flush()  # the next lines may be those of another process
        if isinstance(scene, story.Ended):
            if as_json:
                print_json(scene.to_json())
            return scene
    raise AssertionError("a story has an end")


def _stay(as_json: bool) -> None:
    if not as_json:
        print("\n  the simulated users keep coming; ctrl-c ends it", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            signal.pause()


def _left(stage: Stage, url: str, as_json: bool) -> None:
    if as_json:
        return
    where = f"; kept: {stage.folder}" if stage.is_kept else ""
    print(f"\ndeploy-gates: the demo is over before its end; nothing is left running{where}", file=sys.stderr)
    if url:
        print(
            "what it began in the store is left as it is: clients end a canary by themselves, and "
            "`deploy-gates rollback hello` does at once",
            file=sys.stderr,
        )
