"""Python code of the team, loaded by name: `package.module:Name`, or `file.py:Name` beside the config."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType


class NotLoaded(Exception):
    """The code is not there, or raises as it is imported; its text is one sentence."""


def load(name: str, *, folder: Path, root: Path) -> object:
    """What `name` names. Importing it may print, warn, and raise anything: only the last is told."""
    where, _, attributes = name.rpartition(":")
    try:
        with _quiet(root):
            module = _of_file(folder / where) if where.endswith(".py") else importlib.import_module(where)
    except (Exception, SystemExit) as error:  # the team's code may raise anything
        raise NotLoaded(f"cannot be imported: {told(error)}") from error
    try:
        found: object = functools.reduce(getattr, attributes.split("."), module)
    except AttributeError as error:
        raise NotLoaded(f"is not there: {where} has no `{attributes}`") from error
    return found


def told(error: BaseException) -> str:
    """An exception in one line."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:200]}" if said else type(error).__name__


@contextlib.contextmanager
def _quiet(root: Path) -> Iterator[None]:
    """The team's packages can be found; what they print and warn of is nobody's concern here."""
    places = [each for each in (str(root), str(root / "src")) if each not in sys.path]
    sys.path += places
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for each in places:
            sys.path.remove(each)


def _of_file(path: Path) -> ModuleType:
    name = f"deploy_gates {path.resolve()}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "the name ends with .py"
    assert spec.loader is not None, "and so there is a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pydantic look for it
    spec.loader.exec_module(module)
    return module
