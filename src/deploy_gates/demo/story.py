"""The story of a demo, scene by scene: what is made up, and what the product does with it."""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self, TypeAlias

from deploy_gates import runner
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.eliminated import TOTAL, eliminated
from deploy_gates.core.errors import Refusal, Refused, SettingsError, WorkspaceError
from deploy_gates.core.release import PRODUCTION, Act, Promotion, State
from deploy_gates.core.tally import BIN_MS, Unit
from deploy_gates.demo import model, repository
from deploy_gates.demo.processes import Processes
from deploy_gates.demo.repository import BAD, BLOCKED, CONFIG, FIRST, GOOD, Change, Gated, Repository
from deploy_gates.store import DEFAULT_URL, Store, open_store, without_password

SERVICES = 3
RATE_RPS = 1500
"""Of all services together: what a canary of 5 % needs to be proved within a minute."""
BINS_BEFORE = 2
"""So many bins of traffic there are before a canary: it wants to know what it will see."""
TRAFFIC_MAX_S = 60.0
SERVER_MAX_S = 20.0
SHIP_MAX_S = 400.0
"""So long one release may take: a machine may be too busy for so many users."""
PAUSE_S = 0.1
_ADDRESS = re.compile(r"https?://\S+")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """Everything that the story needs is there."""

    store: str
    dashboard: str
    """Empty: there is none."""
    folder: str
    took_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Began:
    """A change is made."""

    number: int
    change: Change


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """The gates have seen it."""

    change: Change
    gated: Gated
    took_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Waited:
    """There is traffic to compare with."""

    requests: int
    rate_rps: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """It is on the main branch, and `deploy-gates ship` is about to show itself."""

    change: Change


@dataclass(frozen=True, kw_only=True, slots=True)
class Carried:
    """What became of a release."""

    change: Change
    gated: Gated
    promotion: Promotion | None = None
    """`None`: the gates have stopped it, so it was never merged."""
    clients: int = 0
    """So many serve what production is to serve now."""
    followed_s: float | None = None
    """From the decision on record to the last client; `None`: nobody had to follow."""
    took_s: float = 0.0

    @property
    def is_as_told(self) -> bool:
        """Whether it ended as its title promises."""
        if self.promotion is None:
            return self.change is BLOCKED and self.gated.verdict != "pass"
        return self.promotion.state is (State.ROLLED_BACK if self.change is BAD else State.SHIPPED)

    @property
    def steps(self) -> int:
        """How many steps of the old process ran by themselves."""
        return eliminated(self.promotion) if self.promotion is not None else 0

    def to_json(self) -> JsonObject:
        """For `--json`."""
        gates: JsonObject = dict(self.gated.gates)
        promotion: Json = self.promotion.to_json() if self.promotion is not None else None
        return {
            "title": self.change.title,
            "about": self.change.about,
            "digest": self.gated.digest,
            "gates": gates,
            "conclusion": said(self),
            "promotion": promotion,
            "clients": self.clients,
            "decision_to_last_client_s": self.followed_s,
            "took_s": round(self.took_s, 1),
            "steps_without_a_hand": self.steps,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """The whole."""

    carried: tuple[Carried, ...]
    took_s: float
    store: str

    @property
    def is_as_told(self) -> bool:
        """Whether everything ended as its title promises."""
        return all(each.is_as_told for each in self.carried)

    def to_json(self) -> JsonObject:
        """For `--json`."""
        releases: list[Json] = [each.to_json() for each in self.carried]
        return {
            "simulated": ["users", "model"],
            "store": self.store,
            "as_told": self.is_as_told,
            "took_s": round(self.took_s, 1),
            "steps_of_the_old_process": TOTAL,
            "releases": releases,
        }


Scene: TypeAlias = Opened | Began | Judged | Waited | Merged | Carried | Ended


def said(carried: Carried) -> str:
    """Why it ended so, in one sentence."""
    if carried.promotion is None:
        return carried.gated.reasons[0] if carried.gated.reasons else carried.gated.conclusion
    analysis = carried.promotion.outcome(Act.ANALYSIS, PRODUCTION)
    return (analysis.said if analysis is not None else "") or carried.promotion.conclusion


class Stage:
    """A folder, a store, a simulated model, and processes; gone when it is left.

    `kept` keeps the folder. A store that is named is only used: what the demo did stays in it.
    """

    def __init__(self, *, url: str = "", has_server: bool = True, is_kept: bool = False) -> None:
        self._named_url = _absolute(url)
        self._has_server = has_server and all(find_spec(each) for each in ("starlette", "uvicorn"))
        self.is_kept = is_kept

    def __enter__(self) -> Self:
        began = time.monotonic()
        self._before = {each: signal.signal(each, _interrupt) for each in _SIGNALS}
        self.folder = Path(tempfile.mkdtemp(prefix="deploy-gates-demo-"))
        self.processes = Processes(self.folder, {model.KEY_VARIABLE: model.FINGERPRINT})
        self._endpoint: model.Endpoint | None = None
        self._store: Store | None = None
        try:
            _check_extras()
            self._endpoint = model.Endpoint(repository.answers())
            self.repository = Repository(self.folder / "repository", self._endpoint.url)
            self.repository.make()
            self.url = self._named_url or self._default_url()
            self.store = self._store = self._opened()
            self._start_users()
            self.dashboard = self._served() if self._has_server else ""
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.opened = Opened(
            store=without_password(self._named_url) or f"SQLite, in {self.folder}",
            dashboard=self.dashboard,
            folder=str(self.folder),
            took_s=time.monotonic() - began,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # it takes seconds, and leaves nothing behind
        try:
            self.processes.close()
            if self._store is not None:
                self._store.close()
            if self._endpoint is not None:
                self._endpoint.close()
            if not self.is_kept:
                shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            for each, before in self._before.items():
                signal.signal(each, before)

    def ship(self, *, is_shown: bool) -> None:
        """`deploy-gates ship`, as a merge runs it."""
        status, _ = self.processes.run(
            "deploy_gates",
            "ship",
            "--store",
            self.url,
            "--by",
            repository.AUTHOR,
            cwd=self.repository.root,
            is_shown=is_shown,
            timeout_s=SHIP_MAX_S,
        )
        if status not in (0, 1):
            raise WorkspaceError(f"`deploy-gates ship` failed in the demo: {self.processes.talk()}")

    def _default_url(self) -> str:
        """Where commands that are given in the repository look, too."""
        path = self.repository.root / DEFAULT_URL.removeprefix("sqlite:///")
        path.parent.mkdir(exist_ok=True)
        return f"sqlite:///{path}"

    def _opened(self) -> Store:
        store = open_store(self.url)
        try:
            if not self._named_url:
                store.upgrade()
            store.check()
            if any(each.revision for each in store.deployments(config=CONFIG)) or store.promotions(CONFIG):
                raise Refused(
                    Refusal.STATE,
                    f"{without_password(self.url)} knows a config named {CONFIG}, and the demo would move it",
                    hint="name a store without one, or none: the demo makes its own",
                )
        except BaseException:
            store.close()
            raise
        return store

    def _start_users(self) -> None:
        for number in range(1, SERVICES + 1):
            self.processes.start(
                "deploy_gates.demo.users",
                self.url,
                CONFIG,
                f"simulated users {number} (demo)",
                str(RATE_RPS / SERVICES),
            )

    def _served(self) -> str:
        """The address of the dashboard."""
        said = self.folder / "server.txt"
        with said.open("w") as stdout:
            server = self.processes.start(
                "deploy_gates",
                "serve",
                "--port",
                "0",
                "--store",
                self.url,
                cwd=self.repository.root,
                stdout=stdout,
            )
        deadline = time.monotonic() + SERVER_MAX_S
        while time.monotonic() < deadline and server.poll() is None:
            found = _ADDRESS.search(said.read_text())
            if found:
                return found[0]
            time.sleep(PAUSE_S)
        raise WorkspaceError(f"`deploy-gates serve` has not begun: {self.processes.talk()}")


def play(stage: Stage, *, is_shown: bool) -> Iterator[Scene]:
    """Three releases and one change that never becomes one."""
    began = time.monotonic()
    yield stage.opened
    carried = []
    for number, change in enumerate((FIRST, GOOD, BAD, BLOCKED), start=1):
        yield Began(number=number, change=change)
        done = None
        for scene in _released(stage, change, is_shown):
            done = scene if isinstance(scene, Carried) else None
            yield scene
        assert done is not None, change
        carried.append(done)
    yield Ended(
        carried=tuple(carried),
        took_s=time.monotonic() - began + stage.opened.took_s,
        store=stage.opened.store,
    )


def _released(stage: Stage, change: Change, is_shown: bool) -> Iterator[Scene]:
    began = time.monotonic()
    stage.repository.propose(change)
    gated = stage.repository.gate(stage.processes)
    yield Judged(change=change, gated=gated, took_s=time.monotonic() - began)
    if gated.verdict != "pass":
        yield Carried(change=change, gated=gated, took_s=time.monotonic() - began)
        return
    stage.repository.merge(change)
    if change is GOOD:
        yield _traffic(stage.store)
    yield Merged(change=change)
    stage.ship(is_shown=is_shown)
    found = next(
        (each for each in stage.store.promotions(CONFIG) if each.release.digest == gated.digest), None
    )
    if found is None:
        raise WorkspaceError(f"`deploy-gates ship` has proposed nothing: {stage.processes.talk()}")
    if not found.state.is_final:
        raise WorkspaceError(
            f"promotion {found.id} of the demo stands still: {found.held or 'nobody carries it'}"
        )
    yield _followed(
        stage.store,
        Carried(change=change, gated=gated, promotion=found, took_s=time.monotonic() - began),
    )


def _traffic(store: Store) -> Waited:
    """Wait until simulated users have been told of."""
    deadline = time.monotonic() + TRAFFIC_MAX_S
    while time.monotonic() < deadline:
        tallies = [each for each in store.tallies(CONFIG, PRODUCTION) if each.unit is Unit.REQUEST]
        bins = sorted({each.start_ms for each in tallies})
        if len(bins) > BINS_BEFORE:  # the last one may not be over yet
            ended = [each for each in tallies if bins[0] < each.start_ms < bins[-1]]
            requests = sum(each.started for each in ended)
            return Waited(requests=requests, rate_rps=requests * 1000 / (bins[-1] - bins[0] - BIN_MS))
        time.sleep(PAUSE_S)
    raise WorkspaceError(f"the simulated users have not come for {TRAFFIC_MAX_S:g} s")


def _followed(store: Store, carried: Carried) -> Carried:
    """With what its clients did: how soon after the decision the last of them served what it says."""
    assert carried.promotion is not None, carried
    found = store.deployments(PRODUCTION, CONFIG)
    if not found:
        return carried
    standing = runner.followed(store, found[0])
    decided = carried.promotion.outcome(Act.ANALYSIS, PRODUCTION)
    since = [each.serving_since for each in standing.following if each.reloaded]
    followed_s = None
    if decided is not None and since:
        followed_s = max(0.0, (max(since) - decided.at).total_seconds())
    return replace(carried, clients=len(standing.following), followed_s=followed_s)


def _check_extras() -> None:
    for each in ("numpy", "scipy"):
        if find_spec(each) is None:
            raise SettingsError(
                f"the demo needs {each}, which is not installed",
                hint="pip install 'pytest-deploy-gates[canary,server]'",
            )


def _absolute(url: str) -> str:
    """The same store, wherever a process of the demo stands."""
    prefix = "sqlite:///"
    return f"{prefix}{Path.cwd() / url.removeprefix(prefix)}" if url.startswith(prefix) else url


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
