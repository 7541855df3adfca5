"""pytest: the options, the mark, and the fixtures. All else waits for `--deploy-gates`.

This module is imported at every start of pytest, so it imports nothing that pytest does not.
"""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deploy_gates.core.canonical import JsonObject
    from deploy_gates.core.config import ConfigChange, ModelConfig
    from deploy_gates.core.question import Answer

RUN = "deploy-gates-run"
"""Under this name the running gates are registered with pytest."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("deploy-gates", "quality gates for changes to AI model configs")
    group.addoption(
        "--deploy-gates", action="store_true", help="Gate every model config that changed since the base."
    )
    group.addoption(
        "--gate", metavar="NAMES", help="Run only these gates, e.g. type,cost; the others are skipped."
    )
    group.addoption(
        "--gate-base", metavar="REF", help="Compare with this commit; default: where HEAD left main."
    )
    group.addoption(
        "--gate-config",
        metavar="NAME",
        action="append",
        default=[],
        help="Gate only this config; repeatable.",
    )
    group.addoption(
        "--gate-all", action="store_true", help="Gate unchanged configs too, against their last change."
    )
    group.addoption(
        "--gate-record",
        choices=["none", "new", "all"],
        help="Replay only (none), ask for what is missing (new), or ask for everything (all). "
        "Default: new where the endpoint's key is set, none otherwise.",
    )
    group.addoption(
        "--gate-budget", metavar="USD", help="Stop asking before the run has cost more than this."
    )
    group.addoption(
        "--gate-batch",
        action="store_true",
        help="Ask golden cases by the Batch API: at half the price, within a day. Run again to collect.",
    )
    group.addoption(
        "--gate-batch-wait",
        metavar="MINUTES",
        help="Wait no longer for a batch; 0 submits and leaves it. Default: a day.",
    )
    group.addoption(
        "--gate-report",
        metavar="PATH",
        action="append",
        default=[],
        help="Write a report: .md, .json, .html, or .xml; repeatable.",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "gate(name, config=None): this test is part of a deploy gate: unit or integration."
    )
    if config.getoption("deploy_gates"):
        with _nothing_collected():
            from deploy_gates.gating import Gating

            config.pluginmanager.register(Gating(config), RUN)


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """What is imported and read here stays, and looking for garbage in it would take a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _skip_without_gates(request: pytest.FixtureRequest) -> None:
    if not request.config.pluginmanager.has_plugin(RUN):
        pytest.skip("belongs to a deploy gate: run it with --deploy-gates")


@pytest.fixture
def change(request: pytest.FixtureRequest) -> ConfigChange:
    """The change under test; a test that uses it runs once for each changed config."""
    _skip_without_gates(request)
    asked: ConfigChange = request.param
    return asked


@pytest.fixture
def candidate(change: ConfigChange) -> ModelConfig:
    """The config as it would be deployed."""
    if change.candidate.config is None:
        pytest.fail(f"{change.candidate.config_file} cannot be read: see the type gate", pytrace=False)
    return change.candidate.config


@pytest.fixture
def baseline(change: ConfigChange) -> ModelConfig | None:
    """The config that is deployed now; `None` if this one is new."""
    return change.baseline.config if change.baseline else None


@pytest.fixture
def ask(request: pytest.FixtureRequest, change: ConfigChange) -> Callable[[JsonObject], Answer]:
    """Asks the candidate with these inputs: recorded answers are replayed, as in every gate."""
    run = request.config.pluginmanager.get_plugin(RUN)
    assert run is not None, "`change` has skipped without it"
    answer: Callable[[JsonObject], Answer] = run.asker(change)
    return answer
