"""What `deploy-gates init` puts into a repository. Nothing that is there already is touched."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from deploy_gates import files
from deploy_gates.core.errors import WorkspaceError

TEMPLATES = (
    ("hello/config.yaml", "golden/hello/config.yaml", "a model, its parameters, its messages"),
    ("hello/output.schema.json", "golden/hello/output.schema.json", "the shape of every answer"),
    ("hello/cases.jsonl", "golden/hello/cases.jsonl", "20 golden cases: inputs, and what must come back"),
    ("hello/recordings.jsonl", "golden/hello/recordings.jsonl", "recorded answers: no API key is needed yet"),
    (
        "deploy-gates.yml",
        ".github/workflows/deploy-gates.yml",
        "gates on pull requests, report as comment",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """One file, and what was done to it: created, changed, or kept."""

    action: str
    file: str
    about: str


def scaffold(root: Path) -> tuple[Made, ...]:
    """Put a first config, its cases, settings, and a workflow into the repository at `root`."""
    if not root.is_dir():
        raise WorkspaceError(f"{root} is no folder")
    settings = _with_settings(root / "pyproject.toml")
    ignored = _with_ignored(root / ".gitignore")
    made = []
    for template, file, about in TEMPLATES:
        if (root / file).exists():
            made.append(Made(action="kept", file=file, about="is there already"))
            continue
        files.replace(root / file, _template(template))
        made.append(Made(action="created", file=file, about=about))
    for file, text, about in (
        ("pyproject.toml", settings, "[tool.deploy_gates]"),
        (".gitignore", ignored, ".deploy-gates/"),
    ):
        if text is None:
            made.append(Made(action="kept", file=file, about=f"has {about} already"))
            continue
        action = "changed" if (root / file).exists() else "created"
        files.replace(root / file, text.encode())
        made.append(Made(action=action, file=file, about=about))
    return tuple(made)


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
