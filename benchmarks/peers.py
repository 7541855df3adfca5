"""The same work by others: the bare SDK and the limit in this environment, each peer in one of its own.

Every driver is a script of its own, reads the same `work.json` and asks the same endpoint. Peers are
installed from their registries on request only, run with telemetry off, and check what we check: the schema,
and the category.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from whole import Took, run

from deploy_gates.core.canonical import Json, JsonObject

if TYPE_CHECKING:
    from endpoint import Remote

Peer: TypeAlias = "Callable[[Remote, float], Took]"

_COMMON = """
import asyncio, json, os, sys
WORK = json.load(open("work.json"))
SCHEMA, SYSTEM, TICKETS = WORK["schema"], WORK["system"], WORK["tickets"]
URL = os.environ["OPENAI_BASE_URL"]
from jsonschema import Draft202012Validator
VALID = Draft202012Validator(SCHEMA)
FORMAT = {"type": "json_schema", "json_schema": {"name": "output", "strict": True, "schema": SCHEMA}}
def body(text):
    return {"model": "our-7b", "temperature": 0, "max_completion_tokens": 200, "response_format": FORMAT,
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]}
def right(text, category):
    made = json.loads(text)
    return VALID.is_valid(made) and made["category"] == category
async def all_at_once(ask):
    gate = asyncio.Semaphore(100)
    async def one(text, category):
        async with gate:
            return right(await ask(text), category)
    found = await asyncio.gather(*(one(text, category) for text, category in TICKETS))
    print(sum(found), "passed of", len(found))
"""
_BARE: Mapping[str, str] = {
    "limit: aiohttp": """
import aiohttp
async def main():
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100)) as session:
        async def ask(text):
            async with session.post(URL + "/chat/completions", json=body(text)) as response:
                return (await response.json())["choices"][0]["message"]["content"]
        await all_at_once(ask)
asyncio.run(main())
""",
    "bare openai SDK, its default transport": """
import openai
async def main():
    async with openai.AsyncOpenAI() as client:
        async def ask(text):
            return (await client.chat.completions.create(**body(text))).choices[0].message.content
        await all_at_once(ask)
asyncio.run(main())
""",
}
_PIP: Mapping[str, tuple[tuple[str, ...], str]] = {
    "pydantic-evals": (
        ("pydantic-evals", "openai", "jsonschema"),
        """
import openai
from dataclasses import dataclass
from pydantic_evals import Case, Dataset
from pydantic_evals.evaluators import Evaluator, EvaluatorContext
@dataclass
class Right(Evaluator):
    def evaluate(self, ctx: EvaluatorContext) -> bool:
        return right(ctx.output, ctx.expected_output)
async def main():
    async with openai.AsyncOpenAI() as client:
        async def ask(text: str) -> str:
            return (await client.chat.completions.create(**body(text))).choices[0].message.content
        cases = [Case(name=str(at), inputs=text, expected_output=category)
                 for at, (text, category) in enumerate(TICKETS)]
        report = await Dataset(name="triage", cases=cases, evaluators=[Right()]).evaluate(
            ask, max_concurrency=100, progress=False)
        met = sum(all(a.value for a in c.assertions.values()) for c in report.cases)
        print(met, "passed of", len(report.cases))
asyncio.run(main())
""",
    ),
    "deepeval": (
        ("deepeval", "openai", "jsonschema"),
        """
import openai
from deepeval import evaluate
from deepeval.evaluate import AsyncConfig, CacheConfig, DisplayConfig, ErrorConfig
from deepeval.metrics import BaseMetric
from deepeval.test_case import LLMTestCase
class Right(BaseMetric):
    threshold = 1.0
    async_mode = True
    def measure(self, case, *args, **kwargs):
        self.score = float(right(case.actual_output, case.expected_output)); self.success = self.score == 1
        return self.score
    async def a_measure(self, case, *args, **kwargs):
        return self.measure(case)
    def is_successful(self):
        return self.success
    @property
    def __name__(self):
        return "right"
async def answers():
    gate = asyncio.Semaphore(100)
    async with openai.AsyncOpenAI() as client:
        async def ask(text):
            async with gate:
                return (await client.chat.completions.create(**body(text))).choices[0].message.content
        return await asyncio.gather(*(ask(text) for text, _ in TICKETS))
said = asyncio.run(answers())
cases = [LLMTestCase(input=text, actual_output=got, expected_output=category)
         for (text, category), got in zip(TICKETS, said)]
result = evaluate(cases, [Right()], async_config=AsyncConfig(max_concurrent=100),
                  display_config=DisplayConfig(show_indicator=False, print_results=False),
                  cache_config=CacheConfig(write_cache=False), error_config=ErrorConfig())
print(sum(each.success for each in result.test_results), "passed of", len(result.test_results))
""",
    ),
    "inspect-ai": (
        ("inspect-ai", "openai", "jsonschema"),
        """
from inspect_ai import Task, eval as run
from inspect_ai.dataset import Sample
from inspect_ai.model import ResponseSchema
from inspect_ai.scorer import Score, accuracy, scorer
from inspect_ai.solver import generate, system_message
from inspect_ai.util import json_schema, JSONSchema
@scorer(metrics=[accuracy()])
def category():
    async def score(state, target):
        return Score(value=1 if right(state.output.completion, target.text) else 0)
    return score
task = Task(dataset=[Sample(input=text, target=wanted, id=at) for at, (text, wanted) in enumerate(TICKETS)],
            solver=[system_message(SYSTEM), generate()], scorer=category())
schema = ResponseSchema(name="output", strict=True, json_schema=JSONSchema(**{
    k: v for k, v in SCHEMA.items() if k in ("type", "properties", "required", "additionalProperties")}))
log, = run(task, model="openai/our-7b", max_connections=100, max_samples=100, display="none",
           log_realtime=False, model_args={"responses_api": False}, temperature=0, max_tokens=200,
           response_schema=schema)
print(log.status, log.results.scores[0].metrics["accuracy"].value if log.results else log.error)
""",
    ),
}
QUIET = {
    "DEEPEVAL_TELEMETRY_OPT_OUT": "YES",
    "DEEPEVAL_DISABLE_DOTENV": "1",
    "PROMPTFOO_DISABLE_TELEMETRY": "1",
    "PROMPTFOO_DISABLE_UPDATE": "1",
    "PROMPTFOO_DISABLE_REMOTE_GENERATION": "true",
    "INSPECT_DISPLAY": "none",
    "LOGFIRE_IGNORE_NO_CONFIG": "1",
}


def bare(
    folder: Path, schema: JsonObject, system: str, tickets: Sequence[tuple[str, str]]
) -> dict[str, Peer]:
    """The bare SDK loop, and the limit, in this environment."""
    made = {}
    for name, script in _BARE.items():
        where = _work(folder / name.partition(":")[0].replace(" ", "-"), schema, system, tickets, script)
        made[name] = _runs([sys.executable, "driver.py"], where)
    return made


def installed(
    environments: Path, folder: Path, schema: JsonObject, system: str, tickets: Sequence[tuple[str, str]]
) -> dict[str, Peer]:
    """Every peer that can be installed, each in an environment of its own; said which cannot."""
    made: dict[str, Peer] = {}
    for name, (packages, script) in _PIP.items():
        try:
            python = environment(environments / name, packages)
        except subprocess.CalledProcessError as error:
            print(f"{name} is left out: {' '.join(map(str, error.cmd[:4]))} … ended with {error.returncode}")
            continue
        made[name] = _runs([str(python), "driver.py"], _work(folder / name, schema, system, tickets, script))
    try:
        program = _promptfoo(environments / "promptfoo")
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"promptfoo is left out: {error}")
        return made
    where = _work(folder / "promptfoo", schema, system, tickets, "")
    (where / "promptfooconfig.json").write_text(json.dumps(_promptfoo_config(schema, system, tickets)))
    command = [str(program), "eval", "-c", "promptfooconfig.json", "-j", "100", "--no-cache", "--no-table"]
    made["promptfoo"] = _runs([*command, "--no-progress-bar", "--no-write"], where)
    return made


def _work(
    folder: Path, schema: JsonObject, system: str, tickets: Sequence[tuple[str, str]], script: str
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    work = {"schema": schema, "system": system, "tickets": tickets}
    (folder / "work.json").write_text(json.dumps(work))
    (folder / "driver.py").write_text(_COMMON + script)
    return folder


def _runs(command: Sequence[str], where: Path) -> Peer:
    return functools.partial(_run, command, where)


def _run(command: Sequence[str], where: Path, remote: Remote, delay_s: float) -> Took:
    home = {"HOME": str(where), "PROMPTFOO_CONFIG_DIR": str(where / ".promptfoo")}
    took = run(command, cwd=where, remote=remote, environ={**QUIET, **home}, delay_s=delay_s)
    (where / "said.txt").write_text(took.said)
    return took


def environment(folder: Path, packages: Sequence[str]) -> Path:
    """The interpreter of an environment that holds these, made where it is not there yet."""
    python = folder / "bin/python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
        (folder / "ready").touch()
    return python


def _promptfoo(folder: Path) -> Path:
    if not (folder / "ready").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}")
        subprocess.run(
            ["npm", "install", "--silent", "--no-audit", "--no-fund", "promptfoo"], cwd=folder, check=True
        )
        (folder / "ready").touch()
    return folder / "node_modules/.bin/promptfoo"


def _promptfoo_config(schema: JsonObject, system: str, tickets: Sequence[tuple[str, str]]) -> JsonObject:
    shape: JsonObject = {"name": "output", "strict": True, "schema": schema}
    asked: JsonObject = {
        "apiBaseUrl": "{{env.OPENAI_BASE_URL}}",
        "temperature": 0,
        "max_completion_tokens": 200,
        "response_format": {"type": "json_schema", "json_schema": shape},
    }
    prompt = json.dumps([{"role": "system", "content": system}, {"role": "user", "content": "{{body}}"}])
    checks: list[Json] = [
        {"type": "is-json", "value": schema},
        {
            "type": "javascript",
            "value": "(typeof output === 'string' ? JSON.parse(output) : output).category === "
            "context.vars.wanted",
        },
    ]
    tests: list[Json] = [{"vars": {"body": text, "wanted": wanted}} for text, wanted in tickets]
    return {
        "prompts": [prompt],
        "providers": [{"id": "openai:chat:our-7b", "config": asked}],
        "defaultTest": {"assert": checks},
        "tests": tests,
    }
