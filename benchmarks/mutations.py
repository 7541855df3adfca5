"""Edits that people make to model configs, one at a time: are the harmful ones stopped, and no others?

Each edit is applied to a copy of the example in a git repository of its own, whose only commit is the
baseline, and `pytest --deploy-gates` judges it offline. A harmful edit must be stopped by the gate that is
meant for it; a harmless one must pass.

    python benchmarks/mutations.py                  one table of all; status 1 if one is judged wrongly
    python benchmarks/mutations.py --only timeout-too-short --keep
    python benchmarks/mutations.py --record         have the local model answer what the golden edits ask

Recorded answers lie in `mutations.recordings.jsonl`; to make them anew, delete it and record.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

from ruamel.yaml import YAML

HERE = Path(__file__).resolve().parent
RECORDED = HERE / "mutations.recordings.jsonl"

EXAMPLE = "ticket-triage"
FOLDER = f"golden/{EXAMPLE}"
NOWHERE = "http://127.0.0.1:1/v1"
"""No service listens on port 1, and nothing leaves this machine to find out."""
CONFIG = f"{FOLDER}/config.yaml"
SCHEMA = f"{FOLDER}/output.schema.json"
CONSUMER = f"{FOLDER}/consumer.py"
CASES = f"{FOLDER}/cases.jsonl"
RECORDINGS = f"{FOLDER}/recordings.jsonl"
SETTINGS = "pyproject.toml"
REPORT = "out.json"

TYPE, UNIT, INTEGRATION, GOLDEN, COST = "type", "unit", "integration", "golden", "cost"
HARMLESS = ""
REFUSED = "settings"
"""No gate: settings that cannot be used end the run before it begins."""

FAILS = ("fail",)
STOPS = ("fail", "inconclusive")
"""For what nobody can know offline: not knowing stops a change as well."""
TIMEOUT_S = 300.0
RECORDING_TIMEOUT_S = 7200.0
"""A small model on two cores takes a second or two for each answer."""
PROCESSES = 2


Case: TypeAlias = dict[str, Any]
Cases: TypeAlias = list[Case]
Action: TypeAlias = Callable[["Copy"], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """A working copy of the example, to be edited."""

    root: Path

    def read(self, file: str) -> str:
        return (self.root / file).read_bytes().decode()

    def write(self, file: str, text: str) -> None:
        (self.root / file).write_bytes(text.encode())

    def load(self, file: str) -> Any:
        """The document in a YAML or JSON file; YAML keeps its comments and quotes when it is saved."""
        text = self.read(file)
        return json.loads(text) if file.endswith(".json") else _yaml().load(text)

    def save(self, file: str, document: Any) -> None:
        if file.endswith(".json"):
            self.write(file, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
            return
        text = StringIO()
        _yaml().dump(document, text)
        self.write(file, text.getvalue())

    def cases(self) -> Cases:
        return [json.loads(line) for line in self.read(CASES).splitlines()]

    def save_cases(self, cases: Cases) -> None:
        self.write(CASES, "".join(json.dumps(case, ensure_ascii=False) + "\n" for case in cases))

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=ada", "-c", "user.email=ada@example.com", *arguments],
            cwd=self.root,
            env=_environ(),
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout


def _yaml() -> YAML:
    yaml = YAML(typ="rt", pure=True)
    yaml.preserve_quotes = True
    yaml.width = 1 << 20
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


class Stale(Exception):
    """An edit finds nothing to edit: the example has changed since it was written."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One thing that somebody does to a config, and who is to stop it."""

    name: str
    gate: str
    """The gate meant for it; empty for a harmless edit."""
    apply: Action
    verdicts: tuple[str, ...] = FAILS
    """What that gate may say."""
    asks: bool = False
    """The edited config asks what the example's recordings do not answer; `--record` has it answered."""
    arguments: tuple[str, ...] = ()
    environ: tuple[tuple[str, str], ...] = ()


# --- Ways to edit -------------------------------------------------------------------------------


def sets(key: str, value: Any, file: str = CONFIG) -> Action:
    """Give `parameters.temperature` or `messages[0].role` a value, whether it had one or not."""

    def apply(at: Copy) -> None:
        document = at.load(file)
        holder, last = _place(document, key)
        holder[last] = copy.deepcopy(value)
        at.save(file, document)

    return apply


def changes(key: str, change: Callable[[Any], Any], file: str = CONFIG) -> Action:
    """Put what `change` makes of the value at `key` in its place."""

    def apply(at: Copy) -> None:
        document = at.load(file)
        holder, last = _place(document, key)
        holder[last] = change(_found(holder, last, key))
        at.save(file, document)

    return apply


def removes(key: str, file: str = CONFIG) -> Action:
    def apply(at: Copy) -> None:
        document = at.load(file)
        holder, last = _place(document, key)
        _found(holder, last, key)
        del holder[last]
        at.save(file, document)

    return apply


def renames(key: str, name: str) -> Action:
    def apply(at: Copy) -> None:
        document = at.load(CONFIG)
        holder, last = _place(document, key)
        holder[name] = _found(holder, last, key)
        del holder[last]
        at.save(CONFIG, document)

    return apply


def replaces(old: str, new: str, file: str = CONFIG) -> Action:
    """Edit the text itself: every `old` becomes `new`."""
    return substitutes(re.escape(old), lambda _: new, file)


def substitutes(pattern: str, new: str | Callable[[re.Match[str]], str], file: str = CONFIG) -> Action:
    def apply(at: Copy) -> None:
        text, times = re.subn(pattern, new, at.read(file), flags=re.MULTILINE)
        if not times:
            raise Stale(f"{file} holds no {pattern}")
        at.write(file, text)

    return apply


def adds(text: str, file: str = CONFIG) -> Action:
    return lambda at: at.write(file, at.read(file) + text)


def deletes(file: str) -> Action:
    return lambda at: (at.root / file).unlink()


def to_text(change: Callable[[str], str], *files: str) -> Action:
    def apply(at: Copy) -> None:
        for file in files:
            at.write(file, change(at.read(file)))

    return apply


def to_cases(change: Callable[[Cases], Cases]) -> Action:
    return lambda at: at.save_cases(change(at.cases()))


def to_case(change: Callable[[Case], None]) -> Action:
    """Edit the first case that expects something."""

    def first(cases: Cases) -> Cases:
        change(next(case for case in cases if "expected" in case))
        return cases

    return to_cases(first)


def to_environments(**fields: Any) -> Action:
    """Set these in every environment of the config."""

    def apply(at: Copy) -> None:
        document = at.load(CONFIG)
        environments = document.setdefault("environments", {"development": {}})
        for environment in environments.values():
            environment.update(fields)
        at.save(CONFIG, document)

    return apply


def every(*actions: Action) -> Action:
    def apply(at: Copy) -> None:
        for action in actions:
            action(at)

    return apply


def _place(document: Any, key: str) -> tuple[Any, str | int]:
    """What holds the value at `key`, and under which name or number; missing mappings are made."""
    *above, last = [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", key)]
    for part in above:
        document = document[part] if isinstance(part, int) else document.setdefault(part, {})
    return document, last


def _found(holder: Any, last: str | int, key: str) -> Any:
    try:
        return holder[last]
    except (KeyError, IndexError) as error:
        raise Stale(f"there is no {key}") from error


# --- What the edits write -----------------------------------------------------------------------

KEY = "sk-proj-" + hashlib.sha256(b"a benchmark, and no key").hexdigest()[:48]
"""Looks like a key and opens nothing."""

BOILERPLATE = (
    "Our company has been committed to outstanding customer experiences across all channels since 1987, and "
    "every member of the support organisation is expected to live these values in each single interaction. "
)
TOOL = {
    "type": "function",
    "function": {"name": "find_order", "parameters": {"type": "objekt", "properties": {"id": "string"}}},
}


def words(count: int) -> str:
    """So many words that say nothing."""
    each = BOILERPLATE.split()
    return " ".join((each * (count // len(each) + 1))[:count])


def system(change: Callable[[str], str]) -> Action:
    """Rewrite the instructions."""
    return changes("messages[0].content", change)


def first_answer(change: Callable[[str], str]) -> Action:
    """Rewrite the answer of the first few-shot example."""

    def edit(messages: Any) -> Any:
        answers = _few_shot_answers(messages)
        answers[0]["content"] = change(answers[0]["content"])
        return messages

    return changes("messages", edit)


def without(name: str) -> Callable[[list[str]], list[str]]:
    return lambda names: [each for each in names if each != name]


def with_category(category: str) -> Callable[[str], str]:
    return lambda answer: json.dumps(json.loads(answer) | {"category": category})


def expects_category(category: str) -> Callable[[Case], None]:
    return lambda case: case["expected"].update(category=category)


def cannot_fail(case: Case) -> None:
    del case["expected"]
    case["checks"] = [{"kind": "regex", "pattern": ".*"}]


def three_times_the_examples(messages: Any) -> Any:
    start, end = _few_shot_span(messages)
    return messages[:start] + copy.deepcopy(messages[start:end]) * 3 + messages[end:]


def no_examples(messages: Any) -> Any:
    start, end = _few_shot_span(messages)
    return messages[:start] + messages[end:]


def wrong_labels(messages: Any) -> Any:
    """Each example gets the answer of the next one."""
    answers = _few_shot_answers(messages)
    contents = [answer["content"] for answer in answers]
    for answer, content in zip(answers, contents[1:] + contents[:1], strict=True):
        answer["content"] = content
    return messages


def _few_shot_span(messages: Any) -> tuple[int, int]:
    """From the turn after the instructions to the last turn, which asks."""
    if len(messages) < 4 or messages[0]["role"] not in ("system", "developer"):
        raise Stale("there are no few-shot examples between instructions and question")
    return 1, len(messages) - 1


def _few_shot_answers(messages: Any) -> list[Any]:
    answers = [message for message in messages if message["role"] == "assistant"]
    if len(answers) < 2:
        raise Stale("there are no two few-shot examples")
    return answers


def nothing_expected_of(count: int) -> Callable[[Cases], Cases]:
    """Drop `expected` of so many cases, leaving what any well-formed answer fulfils."""

    def edit(cases: Cases) -> Cases:
        expecting = [case for case in cases if "expected" in case][:count]
        if len(expecting) < count:
            raise Stale(f"not {count} cases expect something")
        for case in expecting:
            del case["expected"]
            case.setdefault("checks", [{"kind": "schema"}])
        return cases

    return edit


def no_checks(cases: Cases) -> Cases:
    checked = [case for case in cases if "checks" in case]
    if not checked:
        raise Stale("no case has checks")
    for case in checked:
        del case["checks"]
        if "expected" not in case:
            case["checks"] = [{"kind": "schema"}]
    return cases


def shuffled(cases: Cases) -> Cases:
    return random.Random(7).sample(cases, len(cases))


def tagged(cases: Cases) -> Cases:
    return [case | {"tags": [*case.get("tags", []), "2026"]} for case in cases]


def noted(cases: Cases) -> Cases:
    return [case | {"note": "From the archive of 2025."} for case in cases]


def in_clusters(cases: Cases) -> Cases:
    """Two cases each that belong together."""
    return [case | {"cluster": f"thread {at // 2}"} for at, case in enumerate(cases)]


def reversed_keys(at: Copy) -> None:
    document = at.load(CONFIG)
    at.save(CONFIG, {key: document[key] for key in reversed(list(document))})


def as_flow(at: Copy) -> None:
    """All of the config in braces: JSON is YAML too."""
    at.write(CONFIG, json.dumps(at.load(CONFIG), indent=1) + "\n")


def with_anchor(at: Copy) -> None:
    document = at.load(CONFIG)
    limits = _found(document, "limits", "limits")
    limits.yaml_set_anchor("limits", always_dump=True)
    document.insert(0, "x-limits", limits)
    at.save(CONFIG, document)


def as_escapes(at: Copy) -> None:
    """What a script writes that knows ASCII only."""
    at.write(CASES, "".join(json.dumps(case) + "\n" for case in at.cases()))


def longer_timeouts(at: Copy) -> None:
    document = at.load(CONFIG)
    for environment in document["environments"].values():
        environment["timeout_s"] = environment.get("timeout_s", 60) * 2
    at.save(CONFIG, document)


def times(factor: str) -> Callable[[Any], Any]:
    """An amount in the form it was written in, times `factor`."""

    def scale(amount: Any) -> Any:
        product = Decimal(str(amount)) * Decimal(factor)
        return f"{product:f}" if isinstance(amount, str) else type(amount)(product)

    return scale


# --- The edits ----------------------------------------------------------------------------------

EDITS = (
    # What the type gate is for.
    Edit("misspelt-section", TYPE, renames("limits", "limit")),
    Edit("misspelt-parameter", TYPE, renames("parameters.temperature", "temprature")),
    Edit("word-for-a-number", TYPE, sets("parameters.temperature", "hot")),
    Edit("share-in-percent", TYPE, sets("traffic.cached_input_share", 50)),
    Edit("misspelt-role", TYPE, sets("messages[0].role", "sytem")),
    Edit("not-yaml", TYPE, adds("traffic: [1, 2\n")),
    Edit("merge-conflict", TYPE, to_text(lambda text: f"<<<<<<< HEAD\n{text}=======\n", CONFIG)),
    Edit("same-key-twice", TYPE, adds("model: gpt-4.1-mini\n")),
    Edit("misspelt-variable", TYPE, replaces("{{ body }}", "{{ boddy }}")),
    Edit("unclosed-template", TYPE, replaces("{{ body }}", "{{ body }")),
    Edit("unknown-filter", TYPE, replaces("{{ body }}", "{{ body | shorten }}")),
    Edit("new-required-input", TYPE, changes("inputs.required", lambda names: [*names, "locale"])),
    Edit(
        "answer-lost-a-field",
        TYPE,
        every(
            removes("properties.sentiment", SCHEMA),
            changes("required", without("sentiment"), SCHEMA),
        ),
    ),
    Edit(
        "answer-field-optional",
        TYPE,
        changes("required", without("reason"), SCHEMA),
    ),
    Edit("answer-field-retyped", TYPE, sets("properties.reason", {"type": "integer"}, SCHEMA)),
    Edit("enum-narrowed", TYPE, changes("properties.category.enum", lambda values: values[:-1], SCHEMA)),
    Edit("enum-widened", TYPE, changes("properties.category.enum", lambda values: [*values, "spam"], SCHEMA)),
    Edit(
        "schema-oneof",
        TYPE,
        changes("properties.reason", lambda was: {"oneOf": [was, {"type": "null"}]}, SCHEMA),
    ),
    Edit("schema-allof", TYPE, changes("properties.reason", lambda was: {"allOf": [was]}, SCHEMA)),
    Edit("schema-dependent", TYPE, sets("dependentRequired", {"category": ["reason"]}, SCHEMA)),
    Edit("schema-open", TYPE, sets("additionalProperties", True, SCHEMA)),
    Edit("schema-file-gone", TYPE, deletes(SCHEMA)),
    Edit("schema-not-json", TYPE, to_text(lambda text: text.rstrip().rstrip("}"), SCHEMA)),
    Edit("answer-of-any-shape", TYPE, removes("output")),
    Edit("consumer-narrowed", TYPE, substitutes(r"^(\s+priority: ).+$", r"\g<1>int", CONSUMER)),
    Edit("consumer-gone", TYPE, deletes(CONSUMER)),
    Edit("secret-in-metadata", TYPE, sets("metadata.notes", KEY)),
    Edit("secret-in-comment", TYPE, adds(f"# works with {KEY}\n")),
    Edit("secret-for-its-name", TYPE, to_environments(api_key_env=KEY)),
    Edit("secret-in-case", TYPE, to_case(lambda case: case["inputs"].update(body=f"My key is {KEY}"))),
    Edit("retired-model", TYPE, sets("model", "gpt-4-32k")),
    Edit("unknown-model", TYPE, sets("model", "gpt-4.1-minni"), STOPS),
    Edit("parameter-of-other-api", TYPE, sets("parameters.truncation", "auto")),
    Edit("broken-tool", TYPE, sets("tools", [TOOL])),
    Edit("same-case-twice", TYPE, to_cases(lambda cases: [*cases, cases[0]])),
    Edit("case-cut-off", TYPE, to_text(lambda text: text.rstrip()[:-20], CASES)),
    Edit("case-misspelt-key", TYPE, to_case(lambda case: case.update(expcted=case.pop("expected")))),
    Edit("case-expects-impossible", TYPE, to_case(expects_category("reimbursement"))),
    Edit(
        "case-cannot-fail",
        TYPE,
        to_case(cannot_fail),
    ),
    # What the unit gate is for.
    Edit("example-breaks-schema", UNIT, first_answer(with_category("reimbursement"))),
    Edit("example-not-json", UNIT, first_answer(lambda _: "This is a billing question of high priority.")),
    Edit("window-too-small", UNIT, sets("limits.context_window", 300)),
    Edit("policy-pasted", UNIT, system(lambda text: f"{text}\n{words(30_000)}\n")),
    Edit(
        "divides-by-zero", UNIT, system(lambda text: text + "\nUrgency: {{ 100 / (subject | length * 0) }}")
    ),
    Edit("filter-fails", UNIT, replaces("{{ subject }}", "{{ subject | truncate(length='80') }}")),
    Edit("template-wants-a-colon", UNIT, replaces("{{ subject }}", "{{ subject.split(': ')[1] }}")),
    Edit("answer-cannot-end", UNIT, sets("parameters.max_completion_tokens", 5)),
    # What the integration gate is for.
    Edit("stops-at-brace", INTEGRATION, sets("parameters.stop", ["}"])),
    Edit("stops-at-key", INTEGRATION, sets("parameters.stop", ['"priority"'])),
    Edit("timeout-too-short", INTEGRATION, to_environments(timeout_s=0.001)),
    Edit("answers-cut-off", INTEGRATION, sets("parameters.max_completion_tokens", 15)),
    Edit("never-streamed", INTEGRATION, sets("parameters.stream", True), STOPS),
    Edit(
        "endpoint-gone",
        INTEGRATION,
        every(
            to_environments(base_url=NOWHERE, api_key_env="OPENAI_API_KEY"), sets("parameters.seed", 20261123)
        ),
        STOPS,
        arguments=("--gate-record=new",),
        environ=(("OPENAI_API_KEY", "test"),),
    ),
    # What the golden gate is for.
    Edit("no-cases", GOLDEN, to_cases(lambda cases: []), STOPS),
    Edit("half-the-cases", GOLDEN, to_cases(lambda cases: cases[::2])),
    Edit("nothing-expected", GOLDEN, to_cases(nothing_expected_of(40))),
    Edit("no-checks", GOLDEN, to_cases(no_checks)),
    Edit("comparison-loosened", TYPE, sets("golden.exclude_paths", ["root['category']"])),
    Edit("never-asked", GOLDEN, sets("parameters.seed", 20261123), STOPS),
    Edit("examples-removed", GOLDEN, changes("messages", no_examples), asks=True),
    Edit("examples-mislabelled", GOLDEN, changes("messages", wrong_labels), asks=True),
    Edit("temperature-2", GOLDEN, sets("parameters.temperature", 2), asks=True),
    # What the cost gate is for.
    Edit("examples-tripled", COST, changes("messages", three_times_the_examples)),
    Edit("instructions-padded", COST, system(lambda text: f"{text}\n{words(1_500)}\n")),
    Edit("pricier-model", COST, sets("model", "gpt-4.1")),
    Edit("answers-unbounded", COST, sets("parameters.max_completion_tokens", 100_000)),
    Edit("traffic-times-20", COST, changes("traffic.requests_per_month", times("20"))),
    Edit("limit-below-cost", COST, sets("limits.cost_per_request", "0.000000001")),
    Edit("budget-below-cost", COST, changes("limits.monthly_budget", times("0.000001"))),
    Edit("price-undeclared", COST, substitutes(r"^\w*(in|out)put_usd_per_mtok.*\n", "", SETTINGS)),
    # What ends before any gate.
    Edit("misspelt-setting", REFUSED, adds("\n[tool.deploy_gates.goldn]\nmargin_pt = 5.0\n", SETTINGS)),
    # What must pass.
    Edit("comment", HARMLESS, adds("# Reviewed by the support team.\n")),
    Edit("blank-lines", HARMLESS, adds("\n\n")),
    Edit(
        "windows-line-ends", HARMLESS, to_text(lambda text: text.replace("\n", "\r\n"), CONFIG, SCHEMA, CASES)
    ),
    Edit("byte-order-mark", HARMLESS, to_text(lambda text: f"\ufeff{text}", CONFIG, SCHEMA, CASES)),
    Edit("keys-reordered", HARMLESS, reversed_keys),
    Edit("written-as-json", HARMLESS, as_flow),
    Edit("quoted-strings", HARMLESS, substitutes(r"^(model: )([\w.-]+)", r'\g<1>"\g<2>"')),
    Edit(
        "number-respelt",
        HARMLESS,
        substitutes(r"^( +temperature: [\d.]+)", lambda found: found[1] + ("0" if "." in found[1] else ".0")),
    ),
    Edit("anchor", HARMLESS, with_anchor),
    Edit("more-metadata", HARMLESS, sets("metadata.reviewed_by", "the support team")),
    Edit("higher-budget", HARMLESS, changes("limits.monthly_budget", times("2"))),
    Edit("longer-timeout", HARMLESS, longer_timeouts),
    Edit(
        "other-environment",
        HARMLESS,
        sets(
            "environments.staging",
            {"base_url": "https://staging.example.com/v1", "api_key_env": "STAGING_KEY"},
        ),
    ),
    Edit("cases-tagged", HARMLESS, to_cases(tagged)),
    Edit("cases-noted", HARMLESS, to_cases(noted)),
    Edit("cases-shuffled", HARMLESS, to_cases(shuffled)),
    Edit("cases-clustered", HARMLESS, to_cases(in_clusters)),
    Edit("cases-in-ascii", HARMLESS, as_escapes),
    Edit("readme-beside", HARMLESS, lambda at: at.write(f"{FOLDER}/README.md", "# Triage\n")),
    Edit("consumer-comment", HARMLESS, adds("\n# Read by the inbox.\n", CONSUMER)),
    Edit("cheaper-wording", HARMLESS, system(lambda text: text.replace("Please ", "").rstrip()), asks=True),
)


# --- One run of the gates -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What became of one edit."""

    edit: str
    is_harmful: bool
    meant: str
    """The gate that is to stop it; empty where none is."""
    blocking: tuple[str, ...]
    """`golden inconclusive`: every gate that blocks, and how."""
    reason: str
    """The first reason of the gate that is meant, or of the first that blocks."""
    status: int
    word: str
    """`ok`, `MISS`, or `STALE` for an edit that no longer applies."""
    took_s: float


def make_baseline(root: Path, at: Path) -> Copy:
    """The example of the project at `root` in a repository whose only commit is the baseline."""
    baseline = Copy(root=at)
    for folder in ("golden", "tests/triage"):
        shutil.copytree(root / folder, at / folder, ignore=shutil.ignore_patterns("__pycache__"))
    baseline.write(SETTINGS, _gate_settings((root / SETTINGS).read_text("utf-8")))
    baseline.write(".gitignore", f".deploy-gates/\n__pycache__/\n/{REPORT}\n")
    baseline.git("init", "--quiet", "--initial-branch=main")
    baseline.git("add", "--all")
    baseline.git("commit", "--quiet", "--message=Baseline")
    return baseline


def _gate_settings(text: str) -> str:
    """The tables of [tool.deploy_gates], but for unchanged configs: what is not edited is not gated."""
    kept, is_ours = ["[tool.pytest.ini_options]\n\n"], False
    for line in text.splitlines(keepends=True):
        if line.startswith("["):
            is_ours = line.startswith(("[tool.deploy_gates]", "[tool.deploy_gates."))
        if is_ours and not line.startswith("gate_all"):
            kept.append(line)
    return "".join(kept)


def try_out(edit: Edit, baseline: Copy, at: Path) -> Row:
    """Apply one edit to a copy of the baseline at `at`, and have it judged."""
    started = time.monotonic()
    shutil.copytree(baseline.root, at)
    mutant = Copy(root=at)
    if problem := _apply(edit, mutant):
        return _row(edit, "STALE", reason=problem, took_s=time.monotonic() - started)
    try:
        done = run_gates(mutant, edit.arguments, dict(edit.environ))
    except subprocess.TimeoutExpired:
        return _row(edit, "MISS", reason=f"not judged after {TIMEOUT_S:.0f} s", took_s=TIMEOUT_S)
    report = _report(mutant)
    gates = _gates(report)
    verdicts = {gate["gate"]: gate["verdict"] for gate in gates}
    reasons = {gate["gate"]: next(iter(gate["reasons"]), "") for gate in gates}
    blocking = [gate for gate, verdict in verdicts.items() if verdict in STOPS]
    said = reasons.get(edit.gate) or next((reasons[gate] for gate in blocking if reasons[gate]), "")
    return _row(
        edit,
        "ok" if _is_right(edit, done.returncode, verdicts, is_reported=bool(report)) else "MISS",
        blocking=tuple(gate if verdicts[gate] == "fail" else f"{gate} {verdicts[gate]}" for gate in blocking),
        reason=said or ("" if gates else report.get("conclusion") or _last_words(done)),
        status=done.returncode,
        took_s=time.monotonic() - started,
    )


def _apply(edit: Edit, mutant: Copy) -> str:
    """Why the edit cannot be applied; empty if it was."""
    try:
        edit.apply(mutant)
    except (Stale, LookupError, StopIteration, AttributeError, TypeError, ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    if not mutant.git("status", "--porcelain"):
        return "it changes nothing"
    if edit.asks and RECORDED.exists():
        adds(RECORDED.read_text("utf-8"), RECORDINGS)(mutant)
    return ""


def run_gates(
    mutant: Copy, arguments: Sequence[str], environ: dict[str, str], *, timeout_s: float = TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "--deploy-gates", f"--gate-report={REPORT}", "-q"]
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", *arguments],
        cwd=mutant.root,
        env=_environ() | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def _environ() -> dict[str, str]:
    """Nothing of this shell that would let the gates ask a model, or choose another base."""
    ours = re.compile(r"OPENAI_|DEPLOY_GATES_|PYTEST_|GITHUB_|GIT_|.*_proxy$", re.IGNORECASE)
    kept = {name: value for name, value in os.environ.items() if not ours.match(name)}
    return kept | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def _report(mutant: Copy) -> dict[str, Any]:
    """What the run reported; nothing where it came to no end."""
    path = mutant.root / REPORT
    report: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return report


def _gates(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What each gate said of the example; nothing where it was not gated."""
    for config in report.get("configs", []):
        if config["name"] == EXAMPLE:
            gates: list[dict[str, Any]] = config["gates"]
            return gates
    return []


def _is_right(edit: Edit, status: int, verdicts: dict[str, str], *, is_reported: bool) -> bool:
    if edit.gate == HARMLESS:
        return status == 0 and is_reported
    if edit.gate == REFUSED:
        return status == 4
    return status == 1 and verdicts.get(edit.gate) in edit.verdicts


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _row(
    edit: Edit,
    word: str,
    *,
    took_s: float,
    reason: str = "",
    blocking: tuple[str, ...] = (),
    status: int = -1,
) -> Row:
    return Row(
        edit=edit.name,
        is_harmful=edit.gate != HARMLESS,
        meant=edit.gate,
        blocking=blocking,
        reason=" ".join(reason.split()),
        status=status,
        word=word,
        took_s=round(took_s, 2),
    )


# --- Recording ----------------------------------------------------------------------------------


def record(edits: Sequence[Edit], baseline: Copy, folder: Path) -> None:
    """Have the local model answer what the edited configs ask, and keep its answers."""
    import local_model

    with local_model.serve(threads=1) as base_url:
        environ = {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "local"}
        for edit in edits:
            at = folder / f"record-{edit.name}"
            shutil.copytree(baseline.root, at)
            mutant = Copy(root=at)
            if problem := _apply(edit, mutant):
                raise Stale(f"{edit.name}: {problem}")
            known = set(mutant.read(RECORDINGS).splitlines())
            done = run_gates(mutant, ("--gate-record=new",), environ, timeout_s=RECORDING_TIMEOUT_S)
            new = [line for line in mutant.read(RECORDINGS).splitlines() if line not in known]
            with RECORDED.open("a", encoding="utf-8", newline="\n") as recorded:
                recorded.writelines(f"{line}\n" for line in new)
            print(f"{edit.name}: {len(new)} answers recorded, status {done.returncode}", file=sys.stderr)


# --- The table ----------------------------------------------------------------------------------

COLUMNS = (("edit", 24), ("harmful", 7), ("meant", 11), ("blocking", 40), ("first reason", 70), ("", 5))


def table_line(cells: Iterable[str]) -> str:
    clipped = (
        cell if len(cell) <= width else f"{cell[: width - 1]}…"
        for cell, (_, width) in zip(cells, COLUMNS, strict=True)
    )
    return "  ".join(f"{cell:{width}}" for cell, (_, width) in zip(clipped, COLUMNS, strict=True)).rstrip()


def row_line(row: Row) -> str:
    harmful = "yes" if row.is_harmful else "no"
    return table_line(
        (row.edit, harmful, row.meant or "-", ", ".join(row.blocking) or "-", row.reason, row.word)
    )


def totals(rows: Sequence[Row]) -> list[str]:
    """`type 38 of 38`, and so on for each gate, the harmless edits, and all."""
    made = []
    for meant in dict.fromkeys(row.meant for row in rows):
        judged = [row.word for row in rows if row.meant == meant]
        made.append(f"{meant or 'harmless'} {judged.count('ok')} of {len(judged)}")
    right = sum(row.word == "ok" for row in rows)
    took = sum(row.took_s for row in rows)
    return [", ".join(made), f"{right} of {len(rows)} judged rightly, {took / max(len(rows), 1):.1f} s each"]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    edits = [edit for edit in EDITS if not options.only or edit.name in options.only]
    folder = Path(tempfile.mkdtemp(prefix="mutations-"))
    try:
        baseline = make_baseline(options.root, folder / "baseline")
        if options.record:
            record([edit for edit in edits if edit.asks], baseline, folder)
        return _judge_all(edits, baseline, folder, as_json=options.json)
    finally:
        if options.keep:
            print(f"kept in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)


def _judge_all(edits: Sequence[Edit], baseline: Copy, folder: Path, *, as_json: bool) -> int:
    rows: list[Row] = []
    if not as_json:
        print(table_line(name for name, _ in COLUMNS))
    with ThreadPoolExecutor(PROCESSES) as pool:
        for row in pool.map(lambda edit: try_out(edit, baseline, folder / edit.name), edits):
            rows.append(row)
            if not as_json:
                print(row_line(row), flush=True)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))
    else:
        print("", *totals(rows), sep="\n")
    return 0 if all(row.word == "ok" for row in rows) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--only", action="append", choices=[edit.name for edit in EDITS], metavar="NAME", help="repeatable"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--keep", action="store_true", help="leave the edited repositories for a look")
    parser.add_argument("--record", action="store_true", help="ask the local model what is not recorded yet")
    parser.add_argument("--root", type=Path, default=HERE.parent, help="the project whose golden/ is edited")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
