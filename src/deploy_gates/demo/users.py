"""Simulated users of one service: a process with a client, as the services of a team have one.

`python -m deploy_gates.demo.users STORE CONFIG NAME RATE`: every user asks once. What an answer takes and
whether it fails is drawn by the simulated model; it is waited for, and reported by the client, as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import time
from collections.abc import Iterator

from deploy_gates.client import ConfigClient
from deploy_gates.core.errors import ConfigUnavailable
from deploy_gates.core.release import PRODUCTION
from deploy_gates.demo.model import Manner

BEHIND_MAX_S = 0.5
"""Users that should have come longer ago do not come any more: a machine may be too busy for them."""
WAITING_MAX = 5_000
"""So many users wait for an answer at a time."""


def main(url: str, config: str, name: str, rate: str) -> None:
    """Let users come, so many a second, until told to end."""
    with ConfigClient(url, environment=PRODUCTION, name=name, last_good=None) as client:
        asyncio.run(_come(client, config, name, float(rate)))


async def _come(client: ConfigClient, config: str, name: str, rate_rps: float) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    chance = random.Random(name)
    waiting: set[asyncio.Task[None]] = set()
    users = _users(name)
    manners: dict[str, Manner] = {}

    async def ask(user: str) -> None:
        try:
            served = client.get(config, key=user)
        except ConfigUnavailable:
            return  # nothing has been released yet
        manner = manners.get(served.digest)
        if manner is None:
            manner = manners[served.digest] = Manner.of(served.document)
        answered = manner.answer(chance)
        async with served.call() as call:
            await asyncio.sleep(answered.latency_s)
            call.record({"prompt_tokens": answered.input_tokens, "completion_tokens": answered.output_tokens})
            if answered.fault:
                call.fail(answered.fault)

    next_s = time.monotonic()
    while not ended.is_set():
        now_s = time.monotonic()
        next_s = max(next_s, now_s - BEHIND_MAX_S)
        while next_s <= now_s:
            next_s += chance.expovariate(rate_rps)
            if len(waiting) < WAITING_MAX:
                task = asyncio.create_task(ask(next(users)))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), max(0.005, next_s - time.monotonic()))


def _users(name: str) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"{name}, user {number}"


if __name__ == "__main__":
    main(*sys.argv[1:])
