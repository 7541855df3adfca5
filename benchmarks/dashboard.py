"""How long the dashboard takes to be seen, with a store of 100 configs and 10,000 promotions, on loopback.

    python benchmarks/dashboard.py

A real server answers a real browser without a window. The browser tells by its own clock when it painted for
the first time after it was asked to go to the page; each page is opened in a window without a cache.
"""

from __future__ import annotations

import argparse
import http.client
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from deploy_gates import envelope, runner
from deploy_gates.core.canonical import spelled
from deploy_gates.core.config import ENVIRONMENTS
from deploy_gates.core.policy import Policy
from deploy_gates.core.promotion import Acknowledgement
from deploy_gates.core.release import Act, Release, State, Status, Terms
from deploy_gates.store import Store, open_store
from deploy_gates.testing import POLICY, a_document
from sealed import an_evidence
from server.browser import Window, browsing, window

MUST_MS, STRETCH_MS = 300, 100
PAINTED = """() => new Promise(told => {
    const found = () => performance.getEntriesByName('first-contentful-paint')[0];
    const wait = () => found() ? told(found().startTime) : setTimeout(wait, 5);
    wait();
})"""
_STEPS = (
    (Act.ADMIT, "", "five gates pass, signed by ci, 4 min old"),
    (Act.PROMOTE, "development", "r18 → r19"),
    (Act.SMOKE, "development", "5 of 5 smoke cases"),
    (Act.PROMOTE, "staging", "r17 → r18"),
    (Act.SMOKE, "staging", "5 of 5 smoke cases"),
    (Act.CANARY, "production", "r42 sends 5 % to 8a41d07"),
    (Act.ANALYSIS, "production", "four metrics safe after 1 412 requests"),
    (Act.PROMOTE, "production", "r42 5 % → r43 100 %"),
)


def fill(store: Store, configs: int, promotions: int) -> None:
    """Every promotion with the journal of a whole way; the last of some configs are under way."""
    digests = {}
    for number in range(configs):
        name = f"config-{number:03}"
        for version in (1, 2):
            digest = runner.keep(store, name, spelled(a_document(2 * number + version)))
            evidence = an_evidence(digest, config=name)
            runner.admit(store, envelope.enclose(evidence), policy=replace(Policy(), digest=POLICY))
            digests[name, version] = digest
        for environment in ENVIRONMENTS:
            runner.promote(
                store,
                config=name,
                environment=environment,
                digest=digests[name, 1],
                policy=POLICY,
                actor="ada",
                reason="calmer tone",
            )
    for number in range(promotions):
        _promotion(store, f"config-{number % configs:03}", digests, is_open=number >= promotions - 12)


def follow(store: Store, configs: int, clients: int) -> None:
    """Clients of production that follow every config; they have to say so every 30 s."""
    served = [Acknowledgement(config=f"config-{each:03}", revision=1, age_ms=38) for each in range(configs)]
    for number in range(clients):
        store.acknowledge(f"client-{number}", f"triage-{number}", "production", served)


def _promotion(store: Store, name: str, digests: dict[tuple[str, int], str], *, is_open: bool) -> None:
    release = Release(
        config=name, digest=digests[name, 2], actor="lin", reason="shorter answers", commit="93aa05f"
    )
    found = store.propose(release, until="production", policy=POLICY, terms=Terms())
    found = store.take(found.id, "ship@ci:1:1", timedelta(minutes=9))
    for act, environment, said in _STEPS[: 6 if is_open else None]:
        found = store.write(found, act, environment, Status.BEGUN, {})
        found = store.write(found, act, environment, Status.DONE, {"said": said})
    if not is_open:
        store.conclude(found, State.SHIPPED, "production serves 8a41d07")


@contextmanager
def served(url: str) -> Iterator[str]:
    """`deploy-gates serve` on the store; its address."""
    process = subprocess.Popen(
        [*(sys.executable, "-m", "deploy_gates", "serve", "--no-carry", "--port=0"), *("--store", url)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()


def answered(base: str, path: str) -> bytes:
    """The server's answer, over a new connection."""
    parts = urlsplit(base)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 200, response.status
        return response.read()
    finally:
        connection.close()


def answer_ms(base: str, path: str) -> float:
    """The time of the server's answer alone."""
    began = time.perf_counter()
    answered(base, path)
    return (time.perf_counter() - began) * 1000


def until_counted(base: str) -> float:
    """How many seconds it took until the page did not say any more that it is still counting."""
    began = time.perf_counter()
    while b"still counting" in answered(base, "/"):
        time.sleep(0.1)
    return time.perf_counter() - began


def painted_ms(shown: Window, path: str) -> float:
    """From when the browser was told to go there until it first painted something of it."""
    shown.go(path)
    found: float = shown.page.evaluate(PAINTED)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", type=int, default=100)
    parser.add_argument("--promotions", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=50, help="that follow production")
    parser.add_argument("--times", type=int, default=15)
    parser.add_argument("--store", default="", help="a store to use; one that is empty is filled")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = arguments.store or f"sqlite:///{folder}/store.db"
        store = open_store(url, durable=False)
        store.upgrade()
        if not store.promotions(limit=1):
            began = time.perf_counter()
            fill(store, arguments.configs, arguments.promotions)
            print(f"filled in {time.perf_counter() - began:.0f} s")
        newest = store.promotions(limit=1)[0].id
        pages = {
            "environments": "/",
            "a promotion": f"/promotions/{newest}",
            "a config": "/configs/config-000",
            "log": "/log",
            "notifications": "/deliveries",
            "119 steps": "/eliminated",
        }
        with served(url) as base, browsing() as browser:
            follow(store, arguments.configs, arguments.clients)
            first = answer_ms(base, "/")
            print(f"the very first answer, with every promotion still to be counted: {first:.0f} ms")
            counted = until_counted(base)
            print(f"every promotion was counted {counted:.1f} s later")
            print(f"{'':14}{'answer':>9}{'paint':>9}{'slowest':>9}   ms, medians of {arguments.times}")
            for name, path in pages.items():
                follow(store, arguments.configs, arguments.clients)
                answers = [answer_ms(base, path) for _ in range(arguments.times)]
                paints = []
                for _ in range(arguments.times):
                    with window(browser, base) as shown:
                        paints.append(painted_ms(shown, path))
                paint = statistics.median(paints)
                said = "stretch" if paint <= STRETCH_MS else "reached" if paint <= MUST_MS else "MISSED"
                print(
                    f"{name:14}{statistics.median(answers):9.0f}{paint:9.0f}{max(paints):9.0f}   {said}",
                    flush=True,
                )
        store.close()


if __name__ == "__main__":
    main()
