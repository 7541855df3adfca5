"""What changed is found in every state a repository can be in."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from deploy_gates import workspace
from deploy_gates.core.errors import SettingsError, WorkspaceError
from deploy_gates.settings import Settings
from deploy_gates.workspace import Changes

CONFIG = """\
model: gpt-4.1-mini
messages: [{role: user, content: "{{ q }}"}]
inputs: {type: object, properties: {q: {type: string}}, required: [q]}
parameters: {temperature: 0}
"""
CASES = "".join(f'{{"id": "{name}", "inputs": {{"q": "{name}"}}, "expected": "x"}}\n' for name in "abcd")


@pytest.fixture(autouse=True)
def _no_ci_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_BASE_REF", raising=False)


class Repository:
    """A real git repository with one config, committed on main."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")
        self.write("golden/hello/config.yaml", CONFIG)
        self.write("golden/hello/cases.jsonl", CASES)
        self.commit("one")

    def git(self, *arguments: str, at: Path | None = None) -> str:
        identity = {
            f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        return subprocess.run(
            ["git", *arguments],
            cwd=at or self.root,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **identity, "GIT_CONFIG_GLOBAL": os.devnull},
        ).stdout.strip()

    def write(self, file: str, text: str) -> None:
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def commit(self, message: str) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        return self.git("rev-parse", "HEAD")

    def changes(self, **asked: object) -> Changes:
        return workspace.changes(self.root, Settings(), **asked)  # type: ignore[arg-type]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def told(changes: Changes) -> list[str]:
    return [
        f"{field.key}: {field.baseline} > {field.candidate}"
        for each in changes.changed
        for field in each.fields
    ]


def test_a_clean_tree_on_the_default_branch_has_no_change(repository: Repository) -> None:
    changes = repository.changes()

    assert (changes.changed, changes.unchanged, changes.base) == ((), ("hello",), "main")


def test_a_dirty_tree_is_compared_with_head(repository: Repository) -> None:
    repository.write("golden/hello/config.yaml", CONFIG.replace("temperature: 0", "temperature: 1"))

    changes = repository.changes()

    assert told(changes) == ["parameters.temperature: 0 > 1"]
    assert changes.is_dirty


def test_a_branch_is_compared_with_where_it_left_the_default_branch(repository: Repository) -> None:
    repository.git("checkout", "-q", "-b", "calmer")
    repository.write("golden/hello/config.yaml", CONFIG.replace("temperature: 0", "temperature: 1"))
    repository.commit("calmer")
    repository.git("checkout", "-q", "main")
    repository.write("golden/hello/config.yaml", CONFIG.replace("gpt-4.1-mini", "gpt-4.1"))
    repository.commit("meanwhile on main")
    repository.git("checkout", "-q", "calmer")

    assert told(repository.changes()) == ["parameters.temperature: 0 > 1"]


def test_a_detached_head_is_compared_with_the_default_branch(repository: Repository) -> None:
    repository.write("golden/hello/config.yaml", CONFIG.replace("temperature: 0", "temperature: 1"))
    repository.git("checkout", "-q", "--detach")
    repository.commit("detached")

    assert told(repository.changes()) == ["parameters.temperature: 0 > 1"]


def test_a_new_config_has_no_baseline(repository: Repository) -> None:
    repository.write("golden/fresh/config.yaml", CONFIG)

    changes = repository.changes()

    assert [(each.name, each.baseline) for each in changes.changed] == [("fresh", None)]


def test_a_renamed_config_keeps_its_baseline(repository: Repository) -> None:
    repository.git("mv", "golden/hello", "golden/greeting")
    repository.write("golden/greeting/config.yaml", CONFIG.replace("temperature: 0", "temperature: 1"))

    changes = repository.changes()

    assert [(each.name, each.renamed_from) for each in changes.changed] == [("greeting", "hello")]
    assert told(changes) == ["parameters.temperature: 0 > 1"]
    assert changes.deleted == ()


def test_a_deleted_config_is_told_and_not_gated(repository: Repository) -> None:
    repository.git("rm", "-q", "-r", "golden/hello")

    changes = repository.changes()

    assert (changes.changed, changes.deleted) == ((), ("hello",))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("golden/hello/config.yaml", CONFIG + "# a comment\n"),
        ("golden/hello/cases.jsonl", CASES + '{"id": "e", "inputs": {"q": "e"}}\n'),
    ],
)
def test_any_byte_of_a_config_or_its_cases_is_a_change(repository: Repository, file: str, text: str) -> None:
    repository.write(file, text)

    assert [each.name for each in repository.changes().changed] == ["hello"]


def test_a_change_of_a_file_outside_that_the_config_names_is_a_change(repository: Repository) -> None:
    config = CONFIG.replace('content: "{{ q }}"', "content: {file: ../../prompts/polite.md}")
    repository.write("golden/hello/config.yaml", config)
    repository.write("prompts/polite.md", "Be polite. {{ q }}")
    repository.commit("a prompt of its own")

    repository.write("prompts/polite.md", "Be rude. {{ q }}")

    assert [each.name for each in repository.changes().changed] == ["hello"]


def test_recordings_alone_are_no_change(repository: Repository) -> None:
    repository.write("golden/hello/recordings.jsonl", "{}\n")

    assert repository.changes().unchanged == ("hello",)


def test_a_changed_policy_has_every_config_gated(repository: Repository) -> None:
    repository.write("pyproject.toml", "[tool.deploy_gates.golden]\nmargin_pt = 9\n")
    repository.commit("a policy")
    repository.write("pyproject.toml", "[tool.deploy_gates.golden]\nmargin_pt = 30\n")

    changes = workspace.changes(repository.root, workspace.settings.load(repository.root))

    assert [each.name for each in changes.changed] == ["hello"]
    assert "the policy in pyproject.toml changed" in changes.notes[0]


def test_gating_all_compares_with_the_version_before_the_last_change(repository: Repository) -> None:
    repository.write("golden/hello/config.yaml", CONFIG.replace("temperature: 0", "temperature: 1"))
    repository.commit("two")
    repository.write(
        "golden/hello/config.yaml", CONFIG.replace("temperature: 0", "temperature: 1") + "# why\n"
    )
    repository.commit("only a comment")

    assert told(repository.changes(gate_all=True)) == ["parameters.temperature: 0 > 1"]


def test_a_requested_base_is_compared_with_as_it_is(repository: Repository) -> None:
    first = repository.git("rev-parse", "HEAD")
    repository.write("golden/hello/config.yaml", CONFIG.replace("temperature: 0", "temperature: 1"))
    repository.commit("two")

    assert told(repository.changes(base=first)) == ["parameters.temperature: 0 > 1"]


@pytest.mark.parametrize("base", ["no-such-branch", "--output=/tmp/x"])
def test_a_base_that_names_no_commit_is_refused(repository: Repository, base: str) -> None:
    with pytest.raises(SettingsError, match="names no commit"):
        repository.changes(base=base)


def test_a_config_that_does_not_exist_is_refused_with_the_nearest_name(repository: Repository) -> None:
    with pytest.raises(SettingsError, match="did you mean `hello`"):
        repository.changes(names=["helo"])


def test_a_shallow_clone_of_a_branch_says_how_to_fetch_the_rest(
    repository: Repository, tmp_path: Path
) -> None:
    repository.git("checkout", "-q", "-b", "calmer")
    repository.write("golden/hello/config.yaml", CONFIG.replace("temperature: 0", "temperature: 1"))
    repository.commit("calmer")
    repository.git("checkout", "-q", "main")
    clone = tmp_path / "clone"
    repository.git(
        "clone", "-q", "--depth=1", "--branch=calmer", f"file://{repository.root}", str(clone), at=tmp_path
    )

    with pytest.raises((SettingsError, WorkspaceError), match="fetch-depth: 0"):
        workspace.changes(clone, Settings())


def test_without_git_every_config_counts_as_new(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    (folder / "golden/hello").mkdir(parents=True)
    (folder / "golden/hello/config.yaml").write_text(CONFIG)

    changes = workspace.changes(folder, Settings())

    assert [(each.name, each.baseline) for each in changes.changed] == [("hello", None)]
    assert "every config counts as new" in changes.notes[0]


def test_a_repository_that_git_cannot_read_is_not_taken_for_none(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository.root / ".git/config").write_text("[core\n")

    with pytest.raises(WorkspaceError, match=r"git cannot read this repository: .*bad config"):
        workspace.changes(repository.root, Settings())

    monkeypatch.setenv("PATH", "")
    with pytest.raises(WorkspaceError, match="there is no `git` to read it with"):
        workspace.changes(repository.root, Settings())


def test_what_appears_in_a_config_is_counted_in_words(repository: Repository) -> None:
    judged = CONFIG + f"golden: {{judge: {{model: {'long' * 20}}}}}\n"
    repository.write("golden/hello/config.yaml", judged)

    (change,) = repository.changes().changed

    assert [(each.baseline, each.candidate) for each in change.fields] == [("", "added: 1 key (judge)")]


def test_settings_under_which_there_is_no_config_at_all_are_refused(
    repository: Repository, tmp_path: Path
) -> None:
    elsewhere = Settings(configs=("elsewhere/*/config.yaml",))

    with pytest.raises(SettingsError, match=r"nothing matches elsewhere/\*/config.yaml"):
        workspace.changes(repository.root, elsewhere)
    with pytest.raises(SettingsError, match="no config to gate"):
        workspace.changes_since(repository.root, elsewhere, {}, base="production")
    with pytest.raises(SettingsError, match="no config to gate"):
        workspace.changes(tmp_path, Settings())


def test_a_config_that_is_a_broken_link_is_a_config_with_a_problem(repository: Repository) -> None:
    loop = repository.root / "golden/loop"
    loop.mkdir()
    (loop / "config.yaml").symlink_to("config.yaml")

    changes = repository.changes()

    assert [each.name for each in changes.changed] == ["loop"]
    assert "Too many levels of symbolic links" in str(changes.changed[0].candidate.problems[0])


def test_a_folder_below_the_top_of_the_repository_is_a_root_of_its_own(tmp_path: Path) -> None:
    outer = Repository(tmp_path / "mono")
    outer.write("services/triage/golden/sort/config.yaml", CONFIG)
    outer.commit("a service")
    inner = outer.root / "services/triage"

    (inner / "golden/sort/config.yaml").write_text(CONFIG.replace("temperature: 0", "temperature: 1"))

    assert told(workspace.changes(inner, Settings())) == ["parameters.temperature: 0 > 1"]
