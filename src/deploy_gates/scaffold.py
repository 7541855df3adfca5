"""What `deploy-gates init` puts into a repository. Nothing that is there already is touched."""

from __future__ import annotations

import json
import textwrap
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from deploy_gates import documents, files, git
from deploy_gates.core.canonical import Json
from deploy_gates.core.errors import WorkspaceError

TEMPLATES = (
    ("hello/config.yaml", "golden/hello/config.yaml", "a model, its parameters, its messages"),
    ("hello/output.schema.json", "golden/hello/output.schema.json", "the shape of every answer"),
    ("hello/cases.jsonl", "golden/hello/cases.jsonl", "20 golden cases: inputs, and what must come back"),
    ("hello/recordings.jsonl", "golden/hello/recordings.jsonl", "recorded answers: no API key is needed yet"),
    ("deploy-gates.yml", ".github/workflows/deploy-gates.yml", "gates on pull requests, ship on merges"),
)
HOOKS = ".pre-commit-config.yaml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """One file, and what was done to it: created, changed, or kept."""

    action: str
    file: str
    about: str
    lines: str = ""
    """What the user is to add by hand, where adding it here could break the file."""


def scaffold(root: Path) -> tuple[Made, ...]:
    """Put a first config, its cases, settings, a workflow, and a hook into the repository at `root`."""
    if not root.is_dir():
        raise WorkspaceError(f"{root} is no folder")
    settings = _with_settings(root / "pyproject.toml")
    ignored = _with_ignored(root / ".gitignore")
    hooks, by_hand = _with_hook(root / HOOKS)
    made = []
    for template, file, about in TEMPLATES:
        if (root / file).exists():
            made.append(Made(action="kept", file=file, about="is there already"))
            continue
        raw = _template(template)
        files.replace(root / file, _fitted(raw, root) if file.startswith(".github/") else raw)
        made.append(Made(action="created", file=file, about=about))
    for file, text, about in (
        (HOOKS, hooks, "the hook deploy-gates"),
        ("pyproject.toml", settings, "[tool.deploy_gates]"),
        (".gitignore", ignored, ".deploy-gates/"),
    ):
        if text is None:
            lines = by_hand if file == HOOKS else ""
            said = "has no hook of ours yet: see below" if lines else f"has {about} already"
            made.append(Made(action="kept", file=file, about=said, lines=lines))
            continue
        action = "changed" if (root / file).exists() else "created"
        files.replace(root / file, text.encode())
        made.append(Made(action=action, file=file, about=about))
    return tuple(made)


# --- The workflow -------------------------------------------------------------------------------

_BRANCH = "branches: [main]\n"
_INSTALL = "run: pip install pytest-deploy-gates\n"
_INSTALL_ALL = 'run: pip install "pytest-deploy-gates[all]"\n'


def _fitted(workflow: bytes, root: Path) -> bytes:
    """The workflow for this repository: its default branch, and what its own code needs to be imported."""
    text = workflow.decode()
    more = "".join(f" {each}" for each in _installed_with(root))
    for known, fitting in (
        (_BRANCH, f"branches: {json.dumps([_default_branch(root)])}\n"),
        (_INSTALL, _INSTALL.replace("\n", f"{more}\n")),
        (_INSTALL_ALL, _INSTALL_ALL.replace("\n", f"{more}\n")),
    ):
        assert known in text, known
        text = text.replace(known, fitting)
    return text.encode()


def _default_branch(root: Path) -> str:
    """As git knows it; `main` where it does not."""
    repository = git.find(root)
    if repository is None:
        return "main"
    pointed = repository.try_("symbolic-ref", "--short", "refs/remotes/origin/HEAD").removeprefix("origin/")
    heads = repository.try_("for-each-ref", "--format=%(refname:short)", "refs/heads").split()
    usual = next((each for each in ("main", "master") if each in heads), "")
    return pointed or usual or repository.try_("symbolic-ref", "--short", "HEAD") or "main"


def _installed_with(root: Path) -> tuple[str, ...]:
    """What pip is to install beside us: the gates import who reads the answers, and the team's tests."""
    more = []
    if "build-system" in _parse(_read(root / "pyproject.toml"), "pyproject.toml is not TOML"):
        more.append("-e .")
    if (root / "requirements.txt").is_file():
        more.append("-r requirements.txt")
    return tuple(more)


# --- The hook -----------------------------------------------------------------------------------


def _with_hook(path: Path) -> tuple[str | None, str]:
    """The text of the configuration of pre-commit with our hook; or `None`, and what to add by hand.

    Text is only appended, and only where the result then says what it said before, and our hook.
    """
    ours = _template("pre-commit.yaml").decode()
    text = _read(path)
    if not text.strip():
        return ours, ""
    if "pytest --deploy-gates" in text or "id: deploy-gates" in text:
        return None, ""
    entry = textwrap.dedent(ours.partition("repos:\n")[2])
    both = _joined(_yaml(text), _yaml(ours))
    for indent in ("  ", ""):
        made = _appended(text, textwrap.indent(entry, indent), gap="")
        if both is not None and _yaml(made) == both:
            return made, ""
    return None, textwrap.indent(entry, "  ")


def _joined(before: Json, hook: Json) -> Json:
    """What both say together; `None` where they cannot be joined."""
    if not isinstance(before, dict) or not isinstance(hook, dict):
        return None
    there, more = before.get("repos"), hook["repos"]
    return (
        {**before, "repos": [*there, *more]} if isinstance(there, list) and isinstance(more, list) else None
    )


def _yaml(text: str) -> Json:
    """What the text says; `None` if it is no YAML."""
    document = documents.parse_yaml(text, HOOKS)
    return document.value if not document.problems else None


# --- Files that are added to --------------------------------------------------------------------


def _template(name: str) -> bytes:
    return resources.files("deploy_gates").joinpath("templates", *name.split("/")).read_bytes()


def _with_settings(path: Path) -> str | None:
    """The text of pyproject.toml with our table at its end; `None` if it has one."""
    text = _read(path)
    tool = _parse(text, f"{path} is not TOML").get("tool")
    if isinstance(tool, dict) and "deploy_gates" in tool:
        return None
    made = _appended(text, _template("settings.toml").decode())
    _parse(made, f"{path} has no room for [tool.deploy_gates]")
    return made


def _parse(text: str, fault: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise WorkspaceError(f"{fault}: {error}; nothing was changed") from error


def _with_ignored(path: Path) -> str | None:
    text = _read(path)
    if any(line.strip().rstrip("/") in (".deploy-gates", "/.deploy-gates") for line in text.splitlines()):
        return None
    return _appended(text, ".deploy-gates/\n", gap="")


def _appended(text: str, more: str, gap: str = "\n") -> str:
    if not text:
        return more
    return text + ("" if text.endswith("\n") else "\n") + gap + more


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise WorkspaceError(f"{path} cannot be read: {error}; nothing was changed") from error
