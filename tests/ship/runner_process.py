"""Runners as processes that are killed or stopped: a process that forks them, and whoever asks it to.

    python tests/ship/runner_process.py URL

Reads one JSON object a line: what a runner is to do, or `{"ended": true}` for those that have ended since.
It runs by itself, since only a process with one thread may be forked freely.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

ENDS_WITHIN_S = 40.0
REFUSED, AWAY, BROKEN = 3, 4, 5
"""How a runner ends that was refused, that has left a store that is away, or that has a fault."""


class Runners:
    """The process that forks them, seen from whoever starts them. For one thread."""

    def __init__(self, url: str, *, errors: int | None = None) -> None:
        self._ended: dict[int, int] = {}
        self._stopped: set[int] = set()
        self._process = subprocess.Popen(
            [sys.executable, __file__, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        )

    def start(self, id: int, **task: Any) -> int:
        """Have a promotion carried by a new process; its pid.

        `place` with `signal` is where it sends that signal to itself; `told` is the file to which it says
        what was acknowledged; `root` the repository it has; `road` the simulated users it has, and their
        clock, as `road_of` says them.
        """
        pid = self._asked({"id": id, **task})
        assert isinstance(pid, int), pid
        return pid

    def ended(self) -> dict[int, int]:
        """How every runner that has ended did, by pid: an exit status, or minus the signal."""
        found = self._asked({"ended": True})
        assert isinstance(found, dict), found
        self._ended |= {int(pid): status for pid, status in found["ended"]}
        self._stopped |= set(found["stopped"])
        return self._ended

    def wait(self, pid: int) -> int:
        """How one runner ended."""
        deadline = time.monotonic() + ENDS_WITHIN_S
        while pid not in self.ended():
            assert time.monotonic() < deadline, f"runner {pid} does not end"
            time.sleep(0.01)
        return self._ended[pid]

    def wait_until_stopped(self, pid: int) -> None:
        """Until it has stopped itself."""
        deadline = time.monotonic() + ENDS_WITHIN_S
        while pid not in self._stopped:
            assert pid not in self.ended(), f"runner {pid} has ended: {self._ended[pid]}"
            assert time.monotonic() < deadline, f"runner {pid} does not stop"
            time.sleep(0.01)

    def _asked(self, task: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()  # it ends what it has started


def road_of(road: Any) -> dict[str, Any]:
    """What a runner has to know to see the same users at the same time."""
    return {
        "at": road.at.isoformat(),
        "failing": road.failing,
        "slower": road.slower,
        "told": road.told_ms,
        "first": road.first_ms,
    }


# --- In the process -----------------------------------------------------------------------------


def main(url: str) -> None:
    """Fork runners until there is nothing more to read."""
    _import()
    alive: set[int] = set()
    for line in sys.stdin:
        task = json.loads(line)
        said: object
        if "ended" in task:
            said = _ended(alive)
        else:
            said = os.fork()
            if said == 0:
                _run(url, task)
            alive.add(said)
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _import() -> None:
    """What every runner needs, once for all of them."""
    import psycopg  # noqa: F401

    import deploy_gates.canary.watching
    import deploy_gates.ship.carrying
    import deploy_gates.ship.judging
    import deploy_gates.store.postgres
    import deploy_gates.store.sqlite  # noqa: F401


def _ended(alive: set[int]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {"ended": [], "stopped": []}
    for pid in list(alive):
        which, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if which and os.WIFSTOPPED(status):
            found["stopped"].append(pid)
        elif which:
            alive.discard(pid)
            found["ended"].append((pid, os.waitstatus_to_exitcode(status)))
    return found


def _run(url: str, task: dict[str, Any]) -> NoReturn:
    from deploy_gates.core.errors import Refused, StoreUnavailable

    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    status = 0
    try:
        _carry(url, task)
    except Refused:
        status = REFUSED
    except StoreUnavailable:
        status = AWAY
    except BaseException:  # noqa: BLE001  # told by the exit status
        traceback.print_exc()
        sys.stderr.flush()
        status = BROKEN
    os._exit(status)


def _carry(url: str, task: dict[str, Any]) -> None:
    from deploy_gates import runner, settings
    from deploy_gates.ship.carrying import Carrier
    from deploy_gates.ship.checkout import Checkout
    from deploy_gates.store import open_store

    store = open_store(url)
    place, sent = task.get("place", ""), task.get("signal", signal.SIGKILL)
    told = os.open(task["told"], os.O_WRONLY | os.O_APPEND | os.O_CREAT) if "told" in task else -1
    root = Path(task["root"]) if "root" in task else None
    more: dict[str, Any] = {}
    if "road" in task:
        from road import Road

        given = task["road"]
        road = Road(
            store=store,
            at=datetime.fromisoformat(given["at"]),
            failing=given["failing"],
            slower=given["slower"],
            sent=time.time_ns() // 1_000,  # numbers that none of these users has used before
        )
        road.told_ms, road.first_ms = given["told"], given["first"]
        more = {"now": road.now, "wait": road.wait}

    def crosses(where: str) -> None:
        nonlocal place
        if where == place:
            place = ""  # once: a runner that was stopped goes on
            os.kill(os.getpid(), sent)

    carrier = Carrier(
        store=store,
        owner=runner.owner("runner"),
        checkout=Checkout(root=root, settled=settings.load(root)) if root else None,
        ttl=timedelta(seconds=task.get("ttl_s", 1.0)),
        crosses=crosses,
        **more,
    )
    for each in carrier.ship(task["id"]):
        if told >= 0:
            rows = [
                [entry.number, entry.act, entry.environment, entry.status, entry.data.get("to")]
                for entry in each.promotion.journal
            ]
            os.write(told, (json.dumps([each.promotion.id, each.promotion.state, rows]) + "\n").encode())
    store.close()


if __name__ == "__main__":
    main(sys.argv[1])
