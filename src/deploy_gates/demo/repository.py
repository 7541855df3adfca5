"""The repository of a demo: what `deploy-gates init` makes, more cases, and the changes made to it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from deploy_gates import files, scaffold
from deploy_gates.core.canonical import Json
from deploy_gates.core.errors import WorkspaceError
from deploy_gates.demo import model
from deploy_gates.demo.processes import Processes

CONFIG = "hello"
FILE = f"golden/{CONFIG}/config.yaml"
AUTHOR = "demo"
MAIN = "main"
GIT_TIMEOUT_S = 30.0
REPORT = ".deploy-gates/demo.json"
WARM_UP_S = 5
"""Instead of 30 s: the services of a demo have nothing to warm up."""

_SETTINGS = f"""
[tool.deploy_gates.canary]
unit = "request"                        # every simulated user asks once
warm_up_s = {WARM_UP_S}                           # a demo is short; the default is 30
"""
_PRICES = {
    'input_usd_per_mtok = "0" ': 'input_usd_per_mtok = "0.05" ',
    'output_usd_per_mtok = "0"': 'output_usd_per_mtok = "0.40"',
}
"""Made up, so that there is a cost to compare."""
_THINGS = (
    "lamp", "kettle", "tent", "rucksack", "keyboard", "bottle", "chair", "clock", "blanket", "razor", "torch",
    "scale",
)  # fmt: skip
_SAYINGS = {
    "positive": (
        "I love this {}.",
        "The {} works perfectly.",
        "A great {} for the price.",
        "Very happy with the {}.",
        "The best {} I have had.",
        "This {} is beautiful.",
        "My friends want such a {}, too.",
    ),
    "negative": (
        "I hate this {}.",
        "The {} broke at once.",
        "A waste of money, this {}.",
        "Very disappointed by the {}.",
        "The worst {} I have had.",
        "This {} is ugly and loud.",
        "I sent the {} back.",
    ),
}
"""Reviews that nobody wrote: 20 cases could not tell a loss of 2 points from none."""
_ENVIRONMENT = '  {name}: {{base_url: "{url}", api_key_env: {key}, timeout_s: 30}}'


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One change of the config, as somebody makes it."""

    title: str
    subject: str
    """Of its commit: why."""
    about: str
    """What is to be seen, in one sentence."""
    edits: tuple[tuple[str, str], ...] = ()


FIRST = Change(
    title="the first release",
    subject="Sort reviews into positive and negative (demo: users are simulated)",
    about="there is nothing to compare it with, so everybody gets it at once",
)
GOOD = Change(
    title="a good change",
    subject="Two examples are enough: shorter prompt (demo: users are simulated)",
    about="two of four examples taken out of the prompt: users notice nothing, and it costs less",
    edits=(
        ('  - {role: user, content: "Review: It works well and looks good."}\n', ""),
        ('  - {role: user, content: "Review: It does not work and looks cheap."}\n', ""),
        (
            '  - {role: assistant, content: \'{"sentiment": "positive"}\'}\n'
            '  - {role: assistant, content: \'{"sentiment": "negative"}\'}\n',
            "",
        ),
    ),
)
BAD = Change(
    title="a bad change",
    subject="Answers are short anyway: at most 10 tokens (demo: users are simulated)",
    about="at most 10 tokens an answer: every golden case fits, one user in sixteen gets half an answer",
    edits=(("max_completion_tokens: 20", "max_completion_tokens: 10"),),
)
BLOCKED = Change(
    title="a change that goes nowhere",
    subject="Say it in other words (demo)",
    about="a template with a typo: {{ reveiw }}",
    edits=(("{{ review }}", "{{ reveiw }}"),),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gated:
    """What the gates said of a change."""

    verdict: str
    gates: tuple[tuple[str, str], ...]
    """Name and verdict of each."""
    reasons: tuple[str, ...]
    """Of the gates that do not pass."""
    conclusion: str
    digest: str


class Repository:
    """A git repository with one config, in a folder of its own."""

    def __init__(self, root: Path, endpoint_url: str) -> None:
        self.root = root
        self._endpoint_url = endpoint_url

    def make(self) -> None:
        """The files of `deploy-gates init`, with three environments, prices, and the plan of the canary."""
        self.root.mkdir()
        self._git("init", "--quiet", f"--initial-branch={MAIN}")
        files.replace(self.root / "README.md", b"A demo: its users and its model are simulated.\n")
        self._commit("Nothing yet (demo)")
        scaffold.scaffold(self.root)
        environments = [
            _ENVIRONMENT.format(name=name, url=self._endpoint_url, key=model.KEY_VARIABLE)
            for name in ("development", "staging", "production")
        ]
        config = self.root / FILE
        text = re.sub(r"(?s)\nenvironments:.*", "\nenvironments:\n", config.read_text("utf-8"))
        files.replace(config, (text + "\n".join(environments) + "\n").encode())
        self._add_cases()
        settings = self.root / "pyproject.toml"
        files.replace(settings, (_edited(settings, tuple(_PRICES.items())) + _SETTINGS).encode())

    def propose(self, change: Change) -> None:
        """Make the change in the work tree."""
        if change.edits:
            files.replace(self.root / FILE, _edited(self.root / FILE, change.edits).encode())

    def gate(self, processes: Processes) -> Gated:
        """`pytest --deploy-gates`, which asks the simulated model for what it was not asked yet."""
        report = self.root / REPORT
        report.unlink(missing_ok=True)
        status, said = processes.run(
            "pytest",
            "--deploy-gates",
            "--gate-record=new",
            f"--gate-report={report}",
            "-p",
            "no:cacheprovider",
            cwd=self.root,
        )
        if not report.exists():
            last = said.strip().splitlines()[-1:] or [processes.talk()]
            raise WorkspaceError(f"the gates of the demo did not run (status {status}): {last[0]}")
        return _gated(json.loads(report.read_text("utf-8")))

    def merge(self, change: Change) -> None:
        """The change and its recorded answers are on the main branch."""
        self._commit(change.subject)

    def _add_cases(self) -> None:
        folder = self.root / "golden" / CONFIG
        made = [json.dumps(each) for each in _made_up()]
        cases = folder / "cases.jsonl"
        files.replace(cases, ("\n".join((cases.read_text("utf-8").rstrip(), *made)) + "\n").encode())
        (folder / "recordings.jsonl").unlink()  # production wants answers that are younger

    def _commit(self, subject: str) -> None:
        self._git("add", "--all")
        self._git("commit", "--quiet", "--allow-empty", f"--message={subject}")

    def _git(self, *arguments: str) -> None:
        """Run git with nobody's settings: neither hooks nor signatures are asked for."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        names = {
            f"GIT_{who}_{what}": value
            for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", AUTHOR), ("EMAIL", "demo@example.invalid"))
        }
        nobody = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        try:
            done = subprocess.run(
                ["git", *arguments],
                cwd=self.root,
                env={**own, **names, **nobody},
                capture_output=True,
                text=True,
                timeout=GIT_TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError as error:
            raise WorkspaceError("the demo needs git, which is not installed") from error
        except subprocess.TimeoutExpired as error:
            raise WorkspaceError(f"`git {arguments[0]}` has not ended for {GIT_TIMEOUT_S:g} s") from error
        if done.returncode != 0:
            raise WorkspaceError(f"`git {arguments[0]}` failed in the demo: {done.stderr.strip()}")


def answers() -> dict[str, str]:
    """What the simulated model says to each review: as recorded, and right of those that are made up."""
    folder = resources.files("deploy_gates").joinpath("templates", CONFIG)
    reviews = {
        case["id"]: case["inputs"]["review"]
        for case in map(json.loads, folder.joinpath("cases.jsonl").read_text("utf-8").splitlines())
    }
    kept = map(json.loads, folder.joinpath("recordings.jsonl").read_text("utf-8").splitlines())
    recorded = {reviews[each["case"]]: str(each["text"]) for each in kept if each["case"] in reviews}
    return recorded | {each["inputs"]["review"]: json.dumps(each["expected"]) for each in _made_up()}


def _made_up() -> Iterator[dict[str, Any]]:
    for sentiment, sayings in _SAYINGS.items():
        for number, saying in enumerate(sayings, start=1):
            for thing in _THINGS:
                yield {
                    "id": f"demo-{sentiment}-{number}-{thing}",
                    "inputs": {"review": saying.format(thing)},
                    "expected": {"sentiment": sentiment},
                    "tags": [sentiment, "demo"],
                }


def _edited(path: Path, edits: tuple[tuple[str, str], ...]) -> str:
    text = path.read_text("utf-8")
    for before, after in edits:
        assert before in text, (path.name, before)
        text = text.replace(before, after)
    return text


def _gated(report: dict[str, Json]) -> Gated:
    """What a report of one changed config says."""
    configs = report["configs"]
    assert isinstance(configs, list), report
    assert len(configs) == 1, report
    (found,) = configs
    assert isinstance(found, dict), found
    gates = [each for each in _list(found["gates"]) if isinstance(each, dict)]
    return Gated(
        verdict=str(found["verdict"]),
        gates=tuple((str(each["gate"]), str(each["verdict"])) for each in gates),
        reasons=tuple(
            str(why)
            for each in gates
            if each["verdict"] in ("fail", "inconclusive")
            for why in _list(each["reasons"])
        ),
        conclusion=str(found["conclusion"]),
        digest=str(found["candidate"] or ""),
    )


def _list(value: Json) -> list[Json]:
    assert isinstance(value, list), value
    return value
