"""Every screen and every report file of a gate run, as text. Nothing here prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deploy_gates import files
from deploy_gates.core.errors import SettingsError
from deploy_gates.report.comment import markdown
from deploy_gates.report.machine import data, json_report, junit
from deploy_gates.report.page import html
from deploy_gates.report.screen import progress, terminal
from deploy_gates.report.values import GateReport, RunReport

__all__ = [
    "GateReport",
    "RunReport",
    "check",
    "data",
    "html",
    "json_report",
    "junit",
    "markdown",
    "progress",
    "terminal",
    "write",
]

_FORMS: dict[str, Callable[[RunReport], str]] = {
    ".md": markdown,
    ".json": json_report,
    ".html": html,
    ".xml": junit,
}


def check(path: Path) -> None:
    """`SettingsError` if no report can be written to `path`: found out before anything is asked."""
    if path.suffix not in _FORMS:
        raise SettingsError(f"{path.name} is no report: its name has to end in .md, .json, .html, or .xml")
    if path.is_dir():
        raise SettingsError(f"{path} is a folder, and a report is a file")


def write(path: Path, run: RunReport) -> None:
    """Put the report of `run` at `path`, in the form its suffix names, whole or not at all."""
    check(path)
    files.replace(path, _FORMS[path.suffix](run).encode())
