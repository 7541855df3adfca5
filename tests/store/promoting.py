"""Runners of promotions that race, claim, and die: a process that forks them, and tells what it saw.

    python tests/store/promoting.py race URL RUNNERS ROUNDS
    python tests/store/promoting.py claim URL
    python tests/store/promoting.py kill URL TIMES SEED

Prints one JSON object. It runs by itself, since only a process with one thread may be forked freely.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count

from deploy_gates.core.delivery import Fate
from deploy_gates.core.errors import Refused
from deploy_gates.core.release import Act, Promotion, Release, State, Status, Terms
from deploy_gates.store import Store, open_store
from deploy_gates.testing import POLICY, a_release

CONFIG = "ticket-triage"
ACTS = (Act.ADMIT, Act.PROMOTE, Act.SMOKE)
CALLS = ("propose", "take", "write", "conclude")


def proposed(store: Store, digest: str) -> Promotion:
    release = Release(config=CONFIG, digest=digest, actor="ada")
    return store.propose(release, until="production", policy=POLICY, terms=Terms())


def race(url: str, runners: int, rounds: int) -> dict[str, object]:
    """Several runners want each promotion; tells who got it, round by round, and why the others did not."""
    store = open_store(url)
    digests = [a_release(store, number) for number in (1, 2)]
    winners, reasons = [], set()
    for at in range(rounds):
        promotion = proposed(store, digests[at % 2])

        def take(owner: str, id: int = promotion.id) -> list[str]:
            own = open_store(url)
            try:
                own.take(id, owner)
            except Refused as refused:
                return ["lost", refused.refusal.value]
            finally:
                own.close()
            return ["won", owner]

        answers = _together(runners, take)
        winners.append([each[1] for each in answers if each[0] == "won"])
        reasons |= {each[1] for each in answers if each[0] == "lost"}
        store.conclude(store.take(promotion.id, winners[-1][0]), State.ABORTED, "the next one")
    store.close()
    return {"winners": winners, "reasons": sorted(reasons)}


def claim(url: str) -> dict[str, object]:
    """Two senders take and send what is due until nothing is; tells what each of them sent, in order."""

    def send(owner: str) -> list[str]:
        store, sent = open_store(url), []
        while found := store.due(limit=7):
            for each in found:
                sent.append(each.id)
                store.settle(replace(each, state=Fate.DELIVERED, attempts=1, external_id=owner))
        store.close()
        return sent

    return {"sent": _together(2, send)}


def _together(number: int, work: Callable[[str], list[str]]) -> list[list[str]]:
    """What that many processes make of it, all let go at once."""
    ready, go = os.pipe()
    pipes = []
    for at in range(number):
        told, tell = os.pipe()
        if os.fork() == 0:
            os.close(go)
            os.read(ready, 1)  # ends when the parent lets go
            os.write(tell, json.dumps(work(f"runner-{at}")).encode())
            os._exit(0)
        os.close(tell)
        pipes.append(told)
    os.close(ready)
    os.close(go)
    answers = []
    for told in pipes:
        with open(told, "rb") as pipe:
            answers.append(json.loads(pipe.read()))
        os.wait()
    return answers


def kill(url: str, times: int, seed: int) -> dict[str, object]:
    """Kill a runner `times` times, at a random moment of each call in turn, and look at what it wrote."""
    random.seed(seed)
    store = open_store(url)
    digests = [a_release(store, number) for number in range(1, 9)]
    killed_in = dict.fromkeys(CALLS, 0)
    problems: list[str] = []
    for at in range(times):
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(told)
            _carry_for_ever(url, digests, at, tell)
        os.close(tell)
        heard = b""
        while CALLS[at % len(CALLS)].encode() not in heard:
            part = os.read(told, 1 << 16)
            assert part, f"the runner ended by itself after {heard!r}"
            heard += part
        time.sleep(random.uniform(0, 0.003))  # the moment itself, not a wait for anything
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with open(told, "rb") as pipe:
            words = (heard + pipe.read()).decode().split()
        doing = [each for each in words if each.isalpha()]
        killed_in[doing[-1]] += 1
        problems += _problems(store, [each for each in words if not each.isalpha()])
    made = store.promotions(limit=10_000)
    store.close()
    return {"promotions": len(made), "killed_in": killed_in, "problems": problems}


def _carry_for_ever(url: str, digests: list[str], at: int, tell: int) -> None:
    store, owner = open_store(url), f"runner-{at}"
    store.promotions(limit=1)  # to connect is not what is looked at here
    for round_ in count(at):
        os.write(tell, b"propose ")
        promotion = proposed(store, digests[round_ % len(digests)])
        os.write(tell, b"take ")
        try:
            promotion = store.take(promotion.id, owner)
        except Refused:
            (front,) = (each for each in store.promotions(is_open=True) if each.state is State.RUNNING)
            promotion = store.take(
                front.id, front.owner
            )  # as the one that was killed, whose lease still runs
        for act in ACTS:
            os.write(tell, b"write ")
            promotion = store.write(promotion, act, "", Status.DONE, {"said": act.value, "round": round_})
            os.write(tell, f"{promotion.id}:{len(promotion.journal)}:running ".encode())
        os.write(tell, b"conclude ")
        store.conclude(promotion, State.SHIPPED, "done")
        os.write(tell, f"{promotion.id}:{len(promotion.journal)}:shipped ".encode())


def _problems(store: Store, acknowledged: list[str]) -> list[str]:
    """What was acknowledged and is not there, and what is there in part."""
    wrong = []
    for each in acknowledged:
        promotion, lines, state = each.split(":")
        found = store.promotion(int(promotion))
        if found is None or len(found.journal) < int(lines) or (state == "shipped" and found.state != state):
            wrong.append(f"{each} was acknowledged, and the store has {found}")
    kept = store.promotions(limit=20)
    for found in kept:
        if [line.number for line in found.journal] != list(range(1, len(found.journal) + 1)):
            wrong.append(f"the journal of {found.id} has gaps")
        if found.state.is_final != (found.concluded_at is not None) or found.state.is_final != bool(
            found.conclusion
        ):
            wrong.append(f"promotion {found.id} has ended in part")
    under_way = store.promotions(is_open=True)
    running = [each.id for each in under_way if each.state is State.RUNNING]
    queued = [each.id for each in under_way if each.state is State.QUEUED]
    if len(running) > 1 or len(queued) > 1 or (queued and not running):
        wrong.append(f"{running} run and {queued} are queued")
    for _ in range(3):  # a server may still make what a killed client sent
        for found in store.untold():
            store.announced(found)
    wrong += [f"{each.id} counts more than it holds" for each in store.untold()]
    return wrong


if __name__ == "__main__":
    what, where, *numbers = sys.argv[1:]
    commands: dict[str, Callable[..., dict[str, object]]] = {"race": race, "claim": claim, "kill": kill}
    sys.stdout.write(json.dumps(commands[what](where, *map(int, numbers))))
