"""A small repository with one config under git, for tests that run pytest in it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from deploy_gates import prompt, workspace
from deploy_gates.core.canonical import Json, JsonObject

MODEL = "our-7b"
CONFIG = """\
model: our-7b
messages:
  - role: system
    content: Sort the ticket.
  - role: user
    content: "{{ body }}"
inputs:
  type: object
  properties: {body: {type: string}}
  required: [body]
  additionalProperties: false
parameters: {temperature: 0, max_completion_tokens: 60}
output: output.schema.json
limits: {cost_per_request: "0.01", context_window: 4096}
environments:
  development: {base_url: "http://127.0.0.1:9/v1", timeout_s: 30}
"""
SCHEMA = {
    "type": "object",
    "properties": {"category": {"type": "string", "enum": ["billing", "refund", "technical"]}},
    "required": ["category"],
    "additionalProperties": False,
}
SETTINGS = """\
[project]
name = "triage"

[tool.pytest.ini_options]
testpaths = ["tests"]

[tool.deploy_gates.golden]
margin_pt = 8.0

[tool.deploy_gates.models.our-7b]
input_usd_per_mtok = "0.10"
output_usd_per_mtok = "0.20"
context_window = 8192
encoding = "o200k_base"
features = ["structured_output", "streaming", "temperature", "seed", "stop"]
"""
CATEGORIES = ("billing", "refund", "technical")


def case(number: int, **fields: Json) -> JsonObject:
    """A case that expects the category its number says."""
    category = CATEGORIES[number % 3]
    tags: list[Json] = [category, "smoke"] if number < 3 else [category]
    made: JsonObject = {
        "id": f"{category}-{number:03}",
        "inputs": {"body": f"ticket {number} about {category}"},
        "expected": {"category": category},
        "tags": tags,
    }
    return made | fields


class Project:
    """The repository: `main` holds the baseline, the work tree the candidate."""

    def __init__(self, root: Path, *, cases: int = 60) -> None:
        self.root = root
        self.folder = root / "golden/triage"
        self.folder.mkdir(parents=True)
        (root / "tests").mkdir()
        self.write("pyproject.toml", SETTINGS)
        self.write("golden/triage/config.yaml", CONFIG)
        self.write("golden/triage/output.schema.json", json.dumps(SCHEMA, indent=1))
        self.cases([case(number) for number in range(cases)])
        self.write(".gitignore", ".deploy-gates/\n__pycache__/\n")
        self.git("init", "-q", "-b", "main")
        self.commit("the baseline")

    def write(self, file: str, text: str) -> None:
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def cases(self, cases: Iterable[JsonObject]) -> None:
        self.write("golden/triage/cases.jsonl", "".join(json.dumps(each) + "\n" for each in cases))

    def edit(self, old: str, new: str, file: str = "golden/triage/config.yaml") -> None:
        """Replace `old`, which has to be there."""
        text = (self.root / file).read_text(encoding="utf-8")
        assert old in text, f"{old!r} is not in {file}"
        self.write(file, text.replace(old, new))

    def git(self, *arguments: str) -> str:
        identity = {
            f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        return subprocess.run(
            ["git", *arguments],
            cwd=self.root,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **identity, "GIT_CONFIG_GLOBAL": os.devnull},
        ).stdout.strip()

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)

    def record(self, answer: Callable[[JsonObject, int], Json] | None = None) -> None:
        """Recorded answers for the config as it is now: those expected, unless `answer` says otherwise."""
        snapshot = workspace.read_snapshot(self.root, "golden/triage/config.yaml")
        assert snapshot.config is not None, snapshot.problems
        lines = []
        for number, each in enumerate(snapshot.cases):
            content = each.expected if answer is None else answer(each.inputs, number)
            lines.append(
                recording(prompt.ask(snapshot.config, each.inputs, label=each.id).key, each.id, content)
            )
        with (self.folder / "recordings.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)


def recording(key: str, case_id: str, content: Json) -> str:
    """One line of recordings.jsonl."""
    return json.dumps(
        {
            "key": key,
            "case": case_id,
            "model": MODEL,
            "asked_at": "2026-11-20T10:00:00Z",
            "latency_s": 0.4,
            "text": content if isinstance(content, str) else json.dumps(content),
            "finish_reason": "stop",
            "usage": {"input_tokens": 30, "output_tokens": 8},
        }
    )
