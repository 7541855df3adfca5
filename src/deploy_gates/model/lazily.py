"""Packages that only list what their modules hold are run when something is looked up in them.

`openai.types` is a thousand classes, and half of what importing the official client takes. A call that is
answered in bytes needs none of them.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import sys
import threading
import types
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def packages(below: str) -> Iterator[None]:
    """Within it, the package `below` and those in it are imported, but run when they are needed first."""
    finder = _Finder(below)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, below: str) -> None:
        self.below = below

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.below and not fullname.startswith(f"{self.below}."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None and spec.submodule_search_locations is not None:
            spec.loader = _Later(spec.loader)
        return spec


class _Later(importlib.abc.Loader):
    """Leaves a package as it was made, until something is looked up in it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def exec_module(self, module: types.ModuleType) -> None:
        module.__class__ = _Package
        assert module.__spec__ is not None, "whoever imports has set it"
        module.__spec__.loader = module.__loader__ = self.loader


class _Package(types.ModuleType):
    """A package that was not run yet. Two threads may run it at once: it lists the same twice."""

    def __getattr__(self, name: str) -> object:
        loader = None if self.__spec__ is None else self.__spec__.loader
        running: set[tuple[int, str]] = _running
        me = threading.get_ident(), self.__name__
        if loader is None or me in running:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        running.add(me)
        try:
            loader.exec_module(self)
        finally:
            running.discard(me)
        object.__setattr__(self, "__class__", types.ModuleType)
        return getattr(self, name)


_running: set[tuple[int, str]] = set()
"""Which thread runs which package now: what it imports may look back."""
