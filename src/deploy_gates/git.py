"""Reading a git repository through the `git` command: which commit to compare with, and its files."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from deploy_gates.core.errors import SettingsError, WorkspaceError

TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """What is compared with: a commit, and how people call it."""

    commit: str
    name: str
    is_head: bool
    """The base is the commit that is checked out: only uncommitted changes count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Git:
    """The repository around a folder. Paths are relative to that folder."""

    root: Path
    head: str
    """The commit checked out; empty in a repository without commits."""
    is_shallow: bool

    def ask(self, *arguments: str) -> str:
        """What `git` prints. `WorkspaceError` if it fails."""
        done = _run(self.root, arguments)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise WorkspaceError(
                f"`git {' '.join(arguments)}` failed: {said[-1] if said else f'status {done.returncode}'}"
            )
        return done.stdout.decode(errors="surrogateescape")

    def try_(self, *arguments: str) -> str:
        """What `git` prints, stripped; empty if it fails."""
        done = _run(self.root, arguments)
        return done.stdout.decode(errors="surrogateescape").strip() if done.returncode == 0 else ""

    def read(self, commit: str, path: str) -> bytes | None:
        """A file as it was at `commit`; `None` if it was not there."""
        return read(self.root, commit, path)

    def files(self, commit: str) -> tuple[str, ...]:
        """Every file at `commit` below the folder."""
        return tuple(_split(self.ask("ls-tree", "-r", "-z", "--name-only", commit)))

    def changed(self, commit: str) -> frozenset[str]:
        """Files that differ between `commit` and the work tree, untracked ones among them."""
        differing = _split(self.ask("diff", "--name-only", "--relative", "--no-renames", "-z", commit))
        untracked = _split(self.ask("ls-files", "--others", "--exclude-standard", "-z"))
        return frozenset(differing) | frozenset(untracked)

    def commits_of(self, paths: tuple[str, ...], most: int) -> tuple[str, ...]:
        """The commits that touched `paths`, newest first."""
        return tuple(self.ask("log", f"-{most}", "--format=%H", "HEAD", "--", *paths).split())

    def parent(self, commit: str) -> str:
        """The first parent of `commit`; empty if it has none here."""
        return self.try_("rev-parse", "--verify", "--quiet", f"{commit}^")

    def base(self, requested: str, default_branch: str) -> Base:
        """The commit to compare with: the one requested, or where this branch left the default branch."""
        if requested:
            return self._requested(requested)
        branch = self._default_branch(default_branch)
        commit = self.try_("merge-base", branch, "HEAD")
        if not commit:
            why = "this clone is shallow" if self.is_shallow else "they share no history"
            raise WorkspaceError(
                f"there is no commit that both HEAD and {branch} come from: {why}",
                hint="fetch the whole history (`git fetch --unshallow`, or `fetch-depth: 0` in CI), "
                "or name a commit with --gate-base",
            )
        name = branch.removeprefix("refs/heads/").removeprefix("refs/remotes/").removeprefix("origin/")
        return Base(commit=commit, name=name, is_head=commit == self.head)

    def _requested(self, requested: str) -> Base:
        commit = self.try_("rev-parse", "--verify", "--quiet", "--end-of-options", f"{requested}^{{commit}}")
        if not commit:
            raise SettingsError(
                f"the base {requested} names no commit of this repository",
                hint="fetch it first, or name another commit, branch, or tag",
            )
        return Base(commit=commit, name=requested, is_head=commit == self.head)

    def _default_branch(self, settled: str) -> str:
        """The ref of the default branch. `SettingsError` where it cannot be told."""
        wanted = settled or os.environ.get("GITHUB_BASE_REF") or ""
        refs = self.try_("for-each-ref", "--format=%(refname) %(symref)", "refs/remotes/origin", "refs/heads")
        known = dict(line.partition(" ")[::2] for line in refs.splitlines())
        if wanted:
            candidates = [f"refs/remotes/origin/{wanted}", f"refs/heads/{wanted}"]
        else:
            pointed = known.get("refs/remotes/origin/HEAD", "")
            candidates = [pointed] if pointed else []
            candidates += [
                f"refs/{where}/{name}" for where in ("remotes/origin", "heads") for name in ("main", "master")
            ]
        for ref in candidates:
            if ref in known:
                return ref
        heads = [ref for ref in known if ref.startswith("refs/heads/")]
        remotes = [ref for ref in known if ref.startswith("refs/remotes/")]
        if not wanted and len(heads) == 1 and not remotes and not self.is_shallow:
            return heads[0]
        missing = (
            f"the default branch `{wanted}` is not in this clone" if wanted else "git knows no default branch"
        )
        raise SettingsError(
            f"{missing}, so there is nothing to compare with",
            hint="fetch it (`fetch-depth: 0` in CI), set `default_branch` under [tool.deploy_gates], "
            "or name a commit with --gate-base",
        )


def read(root: Path, commit: str, path: str) -> bytes | None:
    """A file below `root` as it was at `commit`; `None` if it was not there."""
    done = _run(root, ("cat-file", "blob", f"{commit}:./{path}"))
    return done.stdout if done.returncode == 0 else None


def find(root: Path) -> Git | None:
    """The repository around `root`; `None` if there is none.

    One that cannot be read is not none: every config would count as new. `WorkspaceError` says so.
    """
    try:
        done = _run(root, ("rev-parse", "--is-shallow-repository", "--is-inside-work-tree"))
    except FileNotFoundError as error:
        if not any((folder / ".git").exists() for folder in (root, *root.parents)):
            return None
        raise WorkspaceError(
            "this is a git repository, and there is no `git` to read it with", hint="install git"
        ) from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        if "not a git repository" in said:
            return None
        why, *advice = said.splitlines() or [f"status {done.returncode}"]
        raise WorkspaceError(
            f"git cannot read this repository: {why.removeprefix('fatal: ')}",
            hint=advice[-1].strip() if advice else "",
        )
    shallow, inside = done.stdout.decode().split()
    if inside != "true":
        return None
    head = _run(root, ("rev-parse", "--verify", "--quiet", "HEAD"))
    return Git(root=root, head=head.stdout.decode().strip(), is_shallow=shallow == "true")


def subject(root: Path, path: str) -> str:
    """The first line of the last commit that touched `path`; empty where there is none, or no `git`."""
    try:
        done = _run(root, ("log", "-1", "--format=%s", "--", path))
    except FileNotFoundError:
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""


def _split(text: str) -> list[str]:
    return [each for each in text.split("\0") if each]


def _run(root: Path, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["git", "-c", "core.quotepath=off", *arguments],
            cwd=root,
            capture_output=True,
            timeout=TIMEOUT_S,
            env={**os.environ, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"},
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise WorkspaceError(f"`git {arguments[0]}` took longer than {TIMEOUT_S:.0f} s") from error
