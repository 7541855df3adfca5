"""Promoters that are killed at bad moments: a process that forks them, kills them, and tells what it saw.

    python tests/store/killing.py kill URL TIMES SEED
    python tests/store/killing.py race URL REVISIONS

Prints one JSON object. It runs by itself, since only a process with one thread may be forked freely.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from datetime import timedelta
from itertools import count

from deploy_gates import runner
from deploy_gates.core.errors import Refusal, Refused
from deploy_gates.core.promotion import Deployment, Kind, Move
from deploy_gates.store import Store, open_store
from deploy_gates.testing import POLICY, a_release

CONFIG, ENVIRONMENT = "ticket-triage", "development"
STEPS = ("acquire", "move", "release")


def kill(url: str, times: int, seed: int) -> dict[str, object]:
    """Kill a promoter `times` times, each at a random moment of each step in turn, and look at the store."""
    random.seed(seed)
    store = open_store(url)
    digests = [a_release(store, number) for number in (1, 2)]
    killed_in = dict.fromkeys(STEPS, 0)
    moved, seen = 0, 0
    problems: list[str] = []
    for at in range(times):
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(told)
            _promote_for_ever(url, digests, tell)
        os.close(tell)
        heard = b""
        while STEPS[at % len(STEPS)].encode() not in heard:
            heard += os.read(told, 1 << 16)
        time.sleep(random.uniform(0, 0.002))  # the moment itself, not a wait for anything
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        words = (heard + os.read(told, 1 << 16)).decode().split()
        os.close(told)
        killed_in[words[-1]] += 1
        found, wrong = _looked_at(store)
        problems += wrong
        acknowledged = max((int(each) for each in words if each.isdigit()), default=0)
        if found.revision < max(seen, acknowledged):
            problems.append(
                f"r{max(seen, acknowledged)} was acknowledged, and the store is at r{found.revision}"
            )
        moved += found.revision - seen
        seen = found.revision
    store.close()
    return {"moved": moved, "killed_in": killed_in, "problems": problems}


def _looked_at(store: Store) -> tuple[Deployment, list[str]]:
    """What the store holds and what is wrong with it: a server may still make what a killed client sent."""
    found = _found(store)
    while True:
        wrong = list(runner.problems(store, found))
        before, found = found, _found(store)
        if found.revision == before.revision:
            return found, wrong


def _promote_for_ever(url: str, digests: list[str], tell: int) -> None:
    store = open_store(url)
    _found(store)  # to connect is not what is looked at here
    for round_ in count():
        os.write(tell, b"acquire ")
        lease = store.acquire(CONFIG, ENVIRONMENT, "promoter", timedelta(milliseconds=500))
        found = _found(store)
        os.write(tell, b"move ")
        digest = digests[found.baseline == digests[0]]
        made = store.move(_move(digest, lease.revision, lease.fence, f"{os.getpid()}-{round_}"))
        os.write(tell, f"{made.deployment.revision} release ".encode())
        store.release(lease)


def _found(store: Store) -> Deployment:
    found = store.deployments(ENVIRONMENT, CONFIG)
    return found[0] if found else Deployment(config=CONFIG, environment=ENVIRONMENT)


def race(url: str, revisions: int) -> dict[str, object]:
    """Two promoters under one fence want every revision; tells how many each of them won."""
    store = open_store(url)
    digests = [a_release(store, number) for number in (1, 2)]
    lease = store.acquire(CONFIG, ENVIRONMENT, "both", timedelta(minutes=10))
    store.close()
    pipes = []
    for _ in range(2):
        told, tell = os.pipe()
        if os.fork() == 0:
            won, lost = _race(url, digests, lease.fence, revisions)
            os.write(tell, json.dumps([won, lost]).encode())
            os._exit(0)
        os.close(tell)
        pipes.append(told)
    results = [json.loads(os.read(told, 1 << 20)) for told in pipes]
    for told in pipes:
        os.close(told)
        os.wait()
    store = open_store(url)
    found = _found(store)
    problems = list(runner.problems(store, found))
    store.close()
    return {
        "revision": found.revision,
        "won": [each[0] for each in results],
        "lost": [each[1] for each in results],
        "problems": problems,
    }


def _race(url: str, digests: list[str], fence: int, revisions: int) -> tuple[int, int]:
    store: Store = open_store(url)
    won = lost = 0
    while True:
        found = _found(store)
        if found.revision >= revisions:
            store.close()
            return won, lost
        digest = digests[found.baseline == digests[0]]
        try:
            store.move(_move(digest, found.revision, fence, f"{os.getpid()}-{found.revision}"))
            won += 1
        except Refused as refused:
            if refused.refusal is not Refusal.REVISION:
                raise
            lost += 1


def _move(digest: str, expected: int, fence: int, key: str) -> Move:
    return Move(
        config=CONFIG,
        environment=ENVIRONMENT,
        kind=Kind.PROMOTE,
        digest=digest,
        expected=expected,
        fence=fence,
        policy=POLICY,
        actor="ada",
        reason="",
        key=key,
    )


if __name__ == "__main__":
    what, where, times, *rest = sys.argv[1:]
    made = kill(where, int(times), int(rest[0])) if what == "kill" else race(where, int(times))
    sys.stdout.write(json.dumps(made))
