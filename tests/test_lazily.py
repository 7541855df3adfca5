"""Packages that are run when something is looked up in them, and the official client imported so."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

LIST = "from shelf.books.novel import Novel as Novel\nfrom shelf.books.atlas import Atlas as Atlas\n"


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A package `shelf.books` that lists what two modules hold, and says when it is run."""
    books = tmp_path / "shelf" / "books"
    books.mkdir(parents=True)
    (tmp_path / "shelf" / "__init__.py").write_text("from shelf import books\n")
    (books / "__init__.py").write_text(f"print('run')\n{LIST}__all__ = ['Novel', 'Atlas']\n")
    (books / "novel.py").write_text("import shelf.books\nclass Novel: pages = 300\n")
    (books / "atlas.py").write_text("class Atlas: pages = 80\n")
    return tmp_path


def said(program: str, cwd: Path) -> list[str]:
    """What a fresh interpreter prints that imports the shelf lazily before it runs `program`."""
    begin = "from deploy_gates.model import lazily\nwith lazily.packages('shelf.books'):\n    import shelf\n"
    done = subprocess.run(
        [sys.executable, "-c", begin + textwrap.dedent(program)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


def test_a_package_is_run_when_something_is_looked_up_in_it_and_once(shelf: Path) -> None:
    program = """
        print("imported")
        print(shelf.books.Atlas.pages, shelf.books.Novel.pages)
    """

    assert said(program, shelf) == ["imported", "run", "80 300"]


def test_a_module_of_the_package_is_imported_without_running_the_package(shelf: Path) -> None:
    program = """
        from shelf.books.atlas import Atlas
        print(Atlas.pages)
    """

    assert said(program, shelf) == ["80"]


def test_everything_is_imported_from_the_package_as_from_any_other(shelf: Path) -> None:
    program = """
        from shelf.books import *
        print(Novel.pages, Atlas is shelf.books.atlas.Atlas, type(shelf.books).__name__)
    """

    assert said(program, shelf) == ["run", "300 True module"]


def test_what_the_package_does_not_hold_is_no_attribute_of_it(shelf: Path) -> None:
    program = """
        for _ in range(2):
            try:
                shelf.books.Comic
            except AttributeError as error:
                print(error)
    """

    assert said(program, shelf) == ["run", *["module 'shelf.books' has no attribute 'Comic'"] * 2]


def test_a_package_that_fails_to_run_fails_whoever_looks_into_it(shelf: Path) -> None:
    (shelf / "shelf/books/atlas.py").write_text("raise ImportError('the atlas is lost')\n")

    program = """
        for _ in range(2):
            try:
                shelf.books.Atlas
            except ImportError as error:
                print(error)
    """

    assert said(program, shelf) == ["run", "the atlas is lost"] * 2


def test_threads_that_look_into_a_package_at_once_all_find_what_it_holds(shelf: Path) -> None:
    program = """
        import threading
        ready, found = threading.Barrier(8), []

        def look():
            ready.wait()
            found.append((shelf.books.Novel.pages, shelf.books.Atlas.pages))

        threads = [threading.Thread(target=look) for _ in range(8)]
        for each in threads: each.start()
        for each in threads: each.join()
        print(set(found), len(found))
    """

    assert said(program, shelf)[-1] == "{(300, 80)} 8"


def test_the_official_client_is_imported_without_its_types_and_has_them_all(tmp_path: Path) -> None:
    count = "len([name for name in sys.modules if name.startswith('openai.types')])"
    listed = "sorted(name for name in dir(openai.types) if not name.startswith('__'))"
    program = f"""
        import json, sys
        LAZY and __import__("deploy_gates.model.line")
        import openai
        few = {count}
        openai.types.Batch, openai.types.responses.Response
        from openai.types.chat import ChatCompletion
        made = ChatCompletion.model_json_schema()
        print(json.dumps([few, {count}, {listed}, made]))
    """
    lazy, plain = (
        json.loads(
            subprocess.run(
                [sys.executable, "-c", f"LAZY = {is_lazy}\n" + textwrap.dedent(program)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for is_lazy in (True, False)
    )

    assert lazy[0] < plain[0] / 2
    assert lazy[2:] == plain[2:]
