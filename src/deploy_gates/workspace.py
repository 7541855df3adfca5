"""The user's repository: its configs, and what changed in them since the base."""

from __future__ import annotations

import fnmatch
import glob
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deploy_gates import difference, documents, git, settings
from deploy_gates.core.config import ConfigChange, FieldChange, ModelConfig, Snapshot
from deploy_gates.core.errors import DeployGatesError, Problem, SettingsError
from deploy_gates.git import Base, Git
from deploy_gates.settings import Settings
from deploy_gates.snapshot import Reading, snapshot

STATE_FOLDER = ".deploy-gates"
RECORDINGS = "recordings.jsonl"
HISTORY_MAX = 20
"""So far back is the version before the last change looked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """Which configs are to be gated, and which are not."""

    changed: tuple[ConfigChange, ...] = ()
    unchanged: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    base: str = ""
    """What was compared with, for people."""
    commit: str = ""
    """The commit checked out."""
    is_dirty: bool = False
    notes: tuple[str, ...] = ()


def find_root(start: Path) -> Path:
    """The nearest folder at or above `start` with a pyproject.toml; `start` itself if there is none."""
    start = start.resolve()
    for folder in (start, *start.parents):
        if (folder / settings.FILE).exists():
            return folder
    return start


def read_snapshot(root: Path, config_file: str) -> Snapshot:
    """The config in `config_file` as it is in the work tree."""
    return snapshot(config_file, lambda file, most: documents.read(root / file, file, most))


def config_files(root: Path, settled: Settings) -> tuple[str, ...]:
    """Every config in the work tree, broken links among them: not to be read is not to be missing."""
    found: set[str] = set()
    for pattern in settled.configs:
        found |= {Path(each).as_posix() for each in glob.glob(pattern, root_dir=root, recursive=True)}
    return tuple(sorted(found))


def changes(
    root: Path, settled: Settings, *, base: str = "", names: Sequence[str] = (), gate_all: bool = False
) -> Changes:
    """What changed since `base`, or since this branch left the default branch."""
    here = config_files(root, settled)
    _check_names(here, names)
    repository = git.find(root)
    if repository is None or not repository.head:
        _check_any(here, settled)
        if base:
            raise SettingsError(f"the base {base} needs a git repository with a commit, and here is none")
        why = "no git repository" if repository is None else "a git repository without commits"
        new = tuple(_new(read_snapshot(root, file)) for file in _chosen(here, names))
        return Changes(changed=new, base="nothing", notes=(f"this is {why}: every config counts as new",))
    compared = repository.base(base, settled.default_branch)
    return _Comparing(root, settled, repository, compared, here, gate_all or settled.gate_all).changes(names)


def changes_since(
    root: Path,
    settled: Settings,
    served: Mapping[str, ModelConfig],
    *,
    base: str,
    names: Sequence[str] = (),
    gate_all: bool = False,
) -> Changes:
    """What differs from the configs in `served`, which are known by their names; `base` says where."""
    here = config_files(root, settled)
    _check_names(here, names)
    _check_any((*here, *served), settled)
    repository = git.find(root)
    head = repository.head if repository else ""
    changed: list[ConfigChange] = []
    unchanged: list[str] = []
    for file in _chosen(here, names):
        candidate = read_snapshot(root, file)
        config = served.get(candidate.name)
        if config is None:
            changed.append(replace(_new(candidate), base=base))
        elif not gate_all and candidate.config is not None and candidate.config.digest == config.digest:
            unchanged.append(candidate.name)
        else:
            # What is served brings no golden cases: the candidate's judge both.
            changed.append(
                _change(replace(candidate, config=config, problems=(), texts={}), candidate, base, head)
            )
    here_names = {_name(file) for file in here}
    return Changes(
        changed=tuple(changed),
        unchanged=tuple(unchanged),
        deleted=tuple(sorted(set(served) - here_names)),
        base=base,
        commit=head,
        is_dirty=bool(repository and repository.changed(head)) if head else False,
    )


class _Comparing:
    """One comparison of the work tree with a commit."""

    def __init__(
        self,
        root: Path,
        settled: Settings,
        repository: Git,
        base: Base,
        here: tuple[str, ...],
        gate_all: bool,
    ) -> None:
        self.root = root
        self.git = repository
        self.base = base
        self.here = here
        self.gate_all = gate_all
        self.differing = repository.changed(base.commit)
        self.there = _matching(repository.files(base.commit), settled.configs)
        _check_any((*here, *self.there), settled)
        self.is_new_policy = self._is_new_policy(settled)

    def changes(self, names: Sequence[str]) -> Changes:
        gone = [file for file in self.there if file not in self.here]
        changed: list[ConfigChange] = []
        unchanged: list[str] = []
        for file in _chosen(self.here, names):
            if file not in self.there:
                changed.append(self._appeared(file, gone))
            elif self._may_differ(file) and (change := self._changed(file)) is not None:
                changed.append(change)
            elif self.gate_all:
                changed.append(self._since_last_change(file))
            else:
                unchanged.append(_name(file))
        notes: tuple[str, ...] = ()
        if self.is_new_policy:
            notes = (f"the policy in {settings.FILE} changed: every config is gated",)
        return Changes(
            changed=tuple(changed),
            unchanged=tuple(unchanged),
            deleted=tuple(_name(file) for file in gone),
            base=self.base.name,
            commit=self.git.head,
            is_dirty=bool(self.git.changed(self.git.head)) if not self.base.is_head else bool(self.differing),
            notes=notes,
        )

    def _is_new_policy(self, settled: Settings) -> bool:
        if settings.FILE not in self.differing:
            return False
        text, problem = self._reading(self.base.commit)(settings.FILE, documents.CONFIG_MAX_BYTES)
        if problem is not None:
            return False
        try:
            return settings.parse(text).policy.digest != settled.policy.digest
        except DeployGatesError:
            return True

    def _may_differ(self, file: str) -> bool:
        """A cheap no: parsing every config of a large repository would take seconds."""
        if self.is_new_policy:
            return True
        folder = posixpath.dirname(file) + "/"
        if any(each.startswith(folder) for each in self.differing):
            return True
        elsewhere = {posixpath.basename(each) for each in self.differing}
        text, problem = documents.read(self.root / file, file, documents.CONFIG_MAX_BYTES)
        return problem is not None or any(name in text for name in elsewhere)

    def _changed(self, file: str) -> ConfigChange | None:
        baseline, candidate = snapshot(file, self._reading(self.base.commit)), read_snapshot(self.root, file)
        if baseline.texts == candidate.texts and not candidate.problems and not self.is_new_policy:
            return None
        return _change(baseline, candidate, self.base.name, self.base.commit)

    def _appeared(self, file: str, gone: list[str]) -> ConfigChange:
        """A config that is not in the base: new, or renamed from one that is gone."""
        candidate = read_snapshot(self.root, file)
        for each in gone:
            baseline = snapshot(each, self._reading(self.base.commit))
            if _is_renamed(baseline, candidate):
                gone.remove(each)
                change = _change(baseline, candidate, self.base.name, self.base.commit)
                return replace(change, renamed_from=baseline.name)
        return replace(_new(candidate), base=self.base.name)

    def _since_last_change(self, file: str) -> ConfigChange:
        """An unchanged config against its version before the last change that made it another."""
        candidate = read_snapshot(self.root, file)
        digest = candidate.config.digest if candidate.config else ""
        touched = tuple(path for path in candidate.texts if path != candidate.cases_file) or (file,)
        for commit in self.git.commits_of(touched, HISTORY_MAX):
            before = self.git.parent(commit)
            if not before and self.git.is_shallow:
                # What came before is not in this clone: compared with itself, it is at least no worse.
                baseline = snapshot(file, self._reading(self.base.commit))
                return _change(baseline, candidate, self.base.name, self.base.commit)
            if not before:
                break
            baseline = snapshot(file, self._reading(before))
            if baseline.config is not None and baseline.config.digest != digest:
                return _change(baseline, candidate, before[:7], before)
        return replace(_new(candidate), base="nothing before it in this clone")

    def _reading(self, commit: str) -> Reading:
        def read(file: str, max_bytes: int) -> tuple[str, Problem | None]:
            raw = self.git.read(commit, file)
            if raw is None:
                return "", Problem(message="does not exist in the baseline", file=file)
            return documents.decode(raw, file, max_bytes)

        return read


def baseline_recordings(root: Path, change: ConfigChange) -> bytes:
    """The baseline's own recordings, as they were with it: the work tree may have dropped them."""
    if change.baseline is None or not change.base_commit:
        return b""
    return git.read(root, change.base_commit, posixpath.join(change.baseline.folder, RECORDINGS)) or b""


def _check_names(files: Iterable[str], names: Sequence[str]) -> None:
    known = sorted({_name(file) for file in files})
    for name in names:
        if name not in known:
            hint = documents.nearest(name, known) or "look under `configs` in [tool.deploy_gates]"
            raise SettingsError(f"there is no config `{name}` in this repository", hint=hint)


def _check_any(files: Sequence[str], settled: Settings) -> None:
    """Gates that look in the wrong place would find nothing to object to, for ever."""
    if not files:
        raise SettingsError(
            f"there is no config to gate: nothing matches {', '.join(settled.configs) or 'an empty list'}",
            hint="`configs` in [tool.deploy_gates] says where they lie; "
            "`deploy-gates init` makes a first one",
        )


def _chosen(files: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(file for file in files if not names or _name(file) in names)


def _matching(files: Iterable[str], patterns: Sequence[str]) -> tuple[str, ...]:
    """The files that a glob would find; `*` stays within one folder, `**` does not."""
    return tuple(file for file in files if any(_matches(file, pattern) for pattern in patterns))


def _matches(file: str, pattern: str) -> bool:
    parts, wanted = file.split("/"), posixpath.normpath(pattern).split("/")

    def match(at: int, want: int) -> bool:
        if want == len(wanted):
            return at == len(parts)
        if wanted[want] == "**":
            return any(match(skip, want + 1) for skip in range(at, len(parts) + 1))
        return at < len(parts) and fnmatch.fnmatchcase(parts[at], wanted[want]) and match(at + 1, want + 1)

    return match(0, 0)


def _name(config_file: str) -> str:
    return posixpath.basename(posixpath.dirname(config_file))


def _new(candidate: Snapshot) -> ConfigChange:
    return ConfigChange(name=candidate.name, baseline=None, candidate=candidate, base="nothing")


def _change(baseline: Snapshot, candidate: Snapshot, base: str, commit: str) -> ConfigChange:
    told: tuple[FieldChange, ...] = ()
    if baseline.config is not None and candidate.config is not None:
        told = difference.fields(baseline.config, candidate.config)
    return ConfigChange(
        name=candidate.name,
        baseline=baseline,
        candidate=candidate,
        fields=told,
        base=base,
        base_commit=commit,
    )


def _is_renamed(baseline: Snapshot, candidate: Snapshot) -> bool:
    """The same config, or mostly the same cases, under another name."""
    if baseline.config and candidate.config and baseline.config.digest == candidate.config.digest:
        return True
    before, after = {case.id for case in baseline.cases}, {case.id for case in candidate.cases}
    return bool(before) and len(before & after) * 2 >= len(before | after)
