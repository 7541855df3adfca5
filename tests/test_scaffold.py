"""What `deploy-gates init` writes is run: the workflow's steps, the hook, and the recipes of docs/ci.md."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy_gates import clock
from deploy_gates.report.comment import MARKER
from deploy_gates.store import Store, open_store
from jobs import TOKEN, Ran, Reviews, Runner, end, finished, reviews, yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ".github/workflows/deploy-gates.yml"
HOOKS = ".pre-commit-config.yaml"
ACTION = ROOT / ".github/actions/gates/action.yml"
DOCS = ROOT / "docs/ci.md"
CONFIG = "golden/hello/config.yaml"
DEADLINE_S = 30.0


class Repository:
    """A checkout with a remote, as `deploy-gates init` and a first merge leave it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"

    @classmethod
    def made(cls, folder: Path) -> Repository:
        made = cls(folder)
        made.root.mkdir()
        made.git("init", "-q", "-b", "main")
        assert deploy_gates("init", at=made.root).returncode == 0
        made.record_today()
        made.commit("deploy gates")
        made.git("clone", "-q", "--bare", ".", "../remote.git")
        made.git("remote", "add", "origin", "../remote.git")
        made.git("fetch", "-q", "origin")
        return made

    def git(self, *arguments: str) -> str:
        identity = {
            f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.root,
            env={**os.environ, **identity, "GIT_CONFIG_GLOBAL": os.devnull, "PATH": _path()},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def commit(self, message: str) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        return self.git("rev-parse", "HEAD")

    def merge(self, message: str) -> None:
        """As if a pull request were merged."""
        self.commit(message)
        self.git("push", "-q", "origin", "main")

    def edit(self, old: str, new: str, file: str = CONFIG) -> None:
        text = (self.root / file).read_text()
        assert old in text, f"{old!r} is not in {file}"
        (self.root / file).write_text(text.replace(old, new))

    def steps(self, job: str) -> list[dict[str, Any]]:
        workflow = yaml((self.root / WORKFLOW).read_text())
        return list(workflow["jobs"][job]["steps"])

    def record_today(self) -> None:
        """Answers that are old do not open production, whatever the day."""
        path = self.root / "golden/hello/recordings.jsonl"
        now = clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        path.write_text(re.sub(r'"asked_at": "[^"]+"', f'"asked_at": "{now}"', path.read_text()))


def deploy_gates(*arguments: str, at: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy_gates", *arguments],
        cwd=at,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


def _path() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def until(holds: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository.made(tmp_path_factory.mktemp("fresh"))


@pytest.fixture
def repository(fresh: Repository, tmp_path: Path) -> Repository:
    """One that the test may change."""
    shutil.copytree(fresh.root.parent, tmp_path, dirs_exist_ok=True)
    return Repository(tmp_path)


@pytest.fixture
def github() -> Iterator[Reviews]:
    with reviews() as kept:
        yield kept


def pull_request(repository: Repository, github: Reviews) -> Ran:
    """The job `gates` of the workflow."""
    runner = Runner(root=repository.root, reviews_url=github.url)
    return runner.job(repository.steps("gates"), "pull_request")


def push(repository: Repository, github: Reviews, *, before: str = "", has_store: bool = True) -> Ran:
    """The job `ship` of the workflow."""
    secrets = {"DEPLOY_GATES_STORE": made_store(repository)} if has_store else {}
    runner = Runner(root=repository.root, reviews_url=github.url, secrets=secrets)
    return runner.job(repository.steps("ship"), "push", {"github.event.before": before})


def store_of(repository: Repository) -> str:
    return f"sqlite:///{repository.root.parent}/store.db"


@contextmanager
def opened(repository: Repository) -> Iterator[Store]:
    store = open_store(store_of(repository), root=repository.root)
    try:
        yield store
    finally:
        store.close()


def made_store(repository: Repository) -> str:
    with opened(repository) as store:
        store.upgrade()
    return store_of(repository)


def served(repository: Repository) -> dict[str, str]:
    """The digest of the config in each environment."""
    with opened(repository) as store:
        return {each.environment: each.baseline for each in store.deployments() if each.baseline}


# --- What init writes ---------------------------------------------------------------------------


def test_init_fills_an_empty_repository_that_passes_at_once(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=tmp_path, check=True)

    made = deploy_gates("init", at=tmp_path)
    gated = subprocess.run(
        [sys.executable, "-m", "pytest", "--deploy-gates"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert made.returncode == 0, made.stderr
    assert "created  golden/hello/config.yaml" in made.stdout
    assert f"created  {WORKFLOW}" in made.stdout
    assert f"created  {HOOKS}" in made.stdout
    assert gated.returncode == 0, gated.stdout
    assert "PASS" in gated.stdout


def test_init_overwrites_nothing_and_a_second_time_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "ours"\n')
    (tmp_path / "golden/hello").mkdir(parents=True)
    (tmp_path / CONFIG).write_text("ours: true\n")

    first = deploy_gates("init", at=tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    second = deploy_gates("init", "--json", at=tmp_path)

    assert first.returncode == 0, first.stderr
    assert "kept     golden/hello/config.yaml" in first.stdout
    assert 'name = "ours"' in (tmp_path / "pyproject.toml").read_text()
    assert {each["action"] for each in json.loads(second.stdout)} == {"kept"}
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_init_appends_to_files_that_end_without_a_line_break(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "ours"')
    (tmp_path / ".gitignore").write_text("build/")

    done = deploy_gates("init", at=tmp_path)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".gitignore").read_text() == "build/\n.deploy-gates/\n"
    assert (tmp_path / "pyproject.toml").read_text().startswith('[project]\nname = "ours"\n\n[tool.deploy')


@pytest.mark.parametrize(
    ("text", "fault"), [("[project\n", "is not TOML"), ("tool = 1\n", "no room for [tool.deploy_gates]")]
)
def test_init_leaves_a_pyproject_that_it_cannot_add_to_alone(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)

    done = deploy_gates("init", at=tmp_path)

    assert done.returncode == 2
    assert fault in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]
    assert (tmp_path / "pyproject.toml").read_text() == text


def test_the_workflow_ships_from_the_default_branch_and_installs_what_is_there(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", "-b", "trunk"], cwd=tmp_path, check=True)
    (tmp_path / "pyproject.toml").write_text('[build-system]\nrequires = ["hatchling"]\n')
    (tmp_path / "requirements.txt").write_text("pydantic\n")

    deploy_gates("init", at=tmp_path)

    workflow = yaml((tmp_path / WORKFLOW).read_text())
    installs = [
        step["run"]
        for job in workflow["jobs"].values()
        for step in job["steps"]
        if step.get("name") == "install"
    ]
    assert workflow["on"]["push"] == {"branches": ["trunk"]}
    assert installs == [
        "pip install pytest-deploy-gates -e . -r requirements.txt",
        'pip install "pytest-deploy-gates[all]" -e . -r requirements.txt',
    ]


# --- Pull requests ------------------------------------------------------------------------------


def test_a_pull_request_has_one_comment_that_follows_its_pushes(
    repository: Repository, github: Reviews
) -> None:
    github.add("Looks fine to me.")
    repository.git("switch", "-q", "-c", "cheaper")
    repository.edit("max_completion_tokens: 20", "max_completion_tokens: 19")
    repository.commit("a change of which nothing is recorded")

    first = pull_request(repository, github)
    repository.edit("temperature: 0\n", "temperature: 0\n  top_k: 3\n")
    repository.commit("and one that is wrong")
    second = pull_request(repository, github)

    assert [each.is_green for each in (first, second)] == [False, False]
    assert first.steps == {"install": 0, "gates": 1, "summary": 0, "comment": 0}
    (comment,) = github.ours
    assert comment == second.summary != first.summary
    assert comment.startswith(MARKER)
    assert "BLOCK" in comment
    assert [each.partition(" ")[0] for each in github.requests] == ["GET", "POST", "GET", "PATCH"]


def test_a_pull_request_that_passes_is_green_and_says_so(repository: Repository, github: Reviews) -> None:
    repository.git("switch", "-q", "-c", "stricter")
    repository.edit('cost_per_request: "0.001"', 'cost_per_request: "0.0009"')
    repository.commit("a stricter limit")

    ran = pull_request(repository, github)

    assert ran.is_green, ran.log
    assert "PASS" in github.ours[0]
    assert ran.summary == github.ours[0]
    assert list((repository.root / ".deploy-gates/evidence").glob("hello-*.json"))


def test_a_pull_request_from_a_fork_gets_the_summary_only(repository: Repository, github: Reviews) -> None:
    github.may_write = False
    repository.git("switch", "-q", "-c", "stricter")
    repository.edit('cost_per_request: "0.001"', 'cost_per_request: "0.0009"')
    repository.commit("a stricter limit")

    ran = pull_request(repository, github)

    assert ran.is_green
    assert ran.steps["comment"] == 0
    assert "may not write to pull request 7" in ran.log
    assert "PASS" in ran.summary
    assert github.ours == []


def test_a_pull_request_without_a_changed_config_gets_no_comment(
    repository: Repository, github: Reviews
) -> None:
    repository.git("switch", "-q", "-c", "docs")
    (repository.root / "README.md").write_text("hello\n")
    repository.commit("docs")

    ran = pull_request(repository, github)

    assert ran.is_green
    assert "no config changed" in ran.summary
    assert github.comments == []


def test_where_the_gates_come_to_no_report_an_older_verdict_does_not_stay(
    repository: Repository, github: Reviews
) -> None:
    repository.git("switch", "-q", "-c", "broken")
    github.add(f"{MARKER}\n## PASS", by="robot", robot=True)
    repository.edit("margin_pt = 2.0", "margin_pt = [", "pyproject.toml")
    repository.commit("settings that are no TOML")

    ran = pull_request(repository, github)

    assert not ran.is_green
    assert ran.steps["gates"] == 4
    (comment,) = github.ours
    assert "no verdict" in comment
    assert "PASS" not in comment
    assert "https://github.com/ada/triage/actions/runs/99" in comment
    assert "no report" in ran.summary


def test_a_comment_that_cannot_be_written_turns_no_verdict(repository: Repository, github: Reviews) -> None:
    github.outages = 3
    repository.git("switch", "-q", "-c", "docs")
    (repository.root / "README.md").write_text("hello\n")
    repository.commit("docs")

    ran = pull_request(repository, github)

    assert ran.is_green
    assert ran.steps["comment"] == 3
    assert "did not get to pull request 7" in ran.log


# --- The comment --------------------------------------------------------------------------------


def comment(github: Reviews, at: Path, report: str, **env: str) -> subprocess.CompletedProcess[str]:
    (at / "report.md").write_text(f"{MARKER}\n## {report}\n")
    (at / "event.json").write_text('{"pull_request": {"number": 7}}')
    ours = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_API_URL": github.url,
        "GITHUB_EVENT_PATH": str(at / "event.json"),
        "GITHUB_REPOSITORY": "ada/triage",
        "GITHUB_TOKEN": TOKEN,
    }
    return deploy_gates("comment", "report.md", at=at, **{**ours, **env})


def test_a_stranger_who_copies_the_mark_is_not_written_over(tmp_path: Path, github: Reviews) -> None:
    theirs = f"{MARKER}\n## PASS, says the stranger"
    github.add(theirs)

    done = comment(github, tmp_path, "BLOCK")

    assert done.returncode == 0, done.stderr
    assert [each["body"] for each in github.comments] == [theirs, f"{MARKER}\n## BLOCK\n"]


def test_our_comment_is_found_behind_hundreds_of_others(tmp_path: Path, github: Reviews) -> None:
    for number in range(250):
        github.add(f"remark {number}")
    github.add(f"{MARKER}\n## PASS\n", by="robot", robot=True)

    done = comment(github, tmp_path, "BLOCK")

    assert done.stdout == "the comment on pull request 7: changed\n"
    assert github.ours == [f"{MARKER}\n## BLOCK\n"]


def test_the_same_report_is_not_written_again(tmp_path: Path, github: Reviews) -> None:
    comment(github, tmp_path, "BLOCK")

    again = comment(github, tmp_path, "BLOCK")

    assert again.stdout == "the comment on pull request 7: kept\n"
    assert [each.partition(" ")[0] for each in github.requests] == ["GET", "POST", "GET"]


def test_a_server_that_stumbles_is_asked_again(tmp_path: Path, github: Reviews) -> None:
    github.outages = 1

    done = comment(github, tmp_path, "BLOCK")

    assert done.returncode == 0, done.stderr
    assert len(github.ours) == 1


@pytest.mark.parametrize(
    ("env", "status", "said"),
    [
        ({"GITHUB_ACTIONS": ""}, 2, "neither GitHub Actions nor GitLab CI"),
        ({"GITHUB_TOKEN": ""}, 2, "$GITHUB_TOKEN is not set"),
        ({"GITHUB_TOKEN": "wrong"}, 3, "answers 404: Not Found"),
        ({"GITHUB_API_URL": "ftp://example.org"}, 3, "none of http or https"),
        ({"GITHUB_EVENT_PATH": "no-such-file"}, 2, "GITHUB_EVENT_PATH"),
        ({"GITHUB_EVENT_PATH": ""}, 0, "no pull request"),
    ],
)
def test_what_keeps_a_comment_back_is_said(
    tmp_path: Path, github: Reviews, env: dict[str, str], status: int, said: str
) -> None:
    done = comment(github, tmp_path, "BLOCK", **env)

    assert done.returncode == status
    assert said in done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert github.comments == []


# --- Merges -------------------------------------------------------------------------------------


def test_a_merge_ships_what_passes_and_a_second_run_has_nothing_to_do(
    repository: Repository, github: Reviews
) -> None:
    first = push(repository, github)
    again = push(repository, github, before=repository.git("rev-parse", "HEAD"))

    assert first.is_green, first.log
    assert set(served(repository)) == {"development", "staging", "production"}
    assert len(set(served(repository).values())) == 1
    assert "### deploy-gates ship" in first.summary
    assert "shipped" in first.summary.lower()
    assert again.is_green, again.log
    assert "nothing to ship" in again.summary


def test_a_merge_that_a_gate_blocks_ships_nothing_and_says_why(
    repository: Repository, github: Reviews
) -> None:
    push(repository, github)
    was, before = served(repository), repository.git("rev-parse", "HEAD")
    repository.edit("{{ review }}", "{{ revue }}")
    repository.merge("around the gates")

    ran = push(repository, github, before=before)

    assert not ran.is_green
    assert ran.steps == {"install": 0, "evidence": 0, "ship": 1, "summary": 0}
    assert served(repository) == was
    assert "BLOCK" in ran.summary


def test_a_push_whose_run_was_overtaken_is_made_up_for_by_the_next(
    repository: Repository, github: Reviews
) -> None:
    before = repository.git("rev-parse", "HEAD")
    (repository.root / "README.md").write_text("hello\n")
    repository.merge("the config came with the push before, which nobody shipped")

    ran = push(repository, github, before=before)

    assert ran.is_green, ran.log
    assert set(served(repository)) == {"development", "staging", "production"}


def test_a_job_that_is_cancelled_leaves_its_canary_and_says_how_it_goes_on(
    repository: Repository, github: Reviews
) -> None:
    with (repository.root / "pyproject.toml").open("a") as file:
        file.write("\n[tool.deploy_gates.ship]\nlow_traffic = true\n")
    repository.merge("nobody uses it yet")
    push(repository, github)
    repository.edit('cost_per_request: "0.001"', 'cost_per_request: "0.0009"')
    repository.merge("a stricter limit")
    *before, ship, summary, _ = repository.steps("ship")
    runner = Runner(
        root=repository.root, reviews_url=github.url, secrets={"DEPLOY_GATES_STORE": store_of(repository)}
    )
    runner.job(before, "push")
    told = repository.root / ".deploy-gates/ship.txt"

    with runner.start(ship, "push") as step:
        try:
            until(lambda: told.exists() and "sends 5 %" in told.read_text())
            step.send_signal(signal.SIGINT)
            said, _ = step.communicate(timeout=DEADLINE_S)
        finally:
            end(step)
    shown = runner.job([summary], "push").summary

    assert step.returncode == 130, said
    assert "left as it is: `deploy-gates ship hello` goes on" in shown
    with opened(repository) as store:
        (production,) = store.deployments("production", "hello")
    assert production.candidate, "the canary goes on"


def test_without_a_store_nothing_is_shipped_and_the_job_is_red(
    repository: Repository, github: Reviews
) -> None:
    ran = push(repository, github, has_store=False)

    assert not ran.is_green
    assert ran.steps["ship"] == 2
    assert "DEPLOY_GATES_STORE is not set" in ran.log
    assert "Nothing was shipped" in ran.summary
    assert not (repository.root / ".deploy-gates/store.db").exists()


def test_gates_that_cannot_run_ship_nothing(repository: Repository, github: Reviews) -> None:
    repository.edit("margin_pt = 2.0", "margin_pt = [", "pyproject.toml")
    repository.merge("settings that are no TOML")

    ran = push(repository, github)

    assert not ran.is_green
    assert "ship" not in ran.steps
    assert "Nothing was shipped" in ran.summary


# --- Promises of the files ----------------------------------------------------------------------


def recipe(name: str) -> str:
    """A block of docs/ci.md."""
    found = re.search(rf"<!-- recipe: {name} -->\n```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found, name
    return found[1]


@pytest.mark.parametrize(
    ("schema", "name"),
    [("github-workflows", WORKFLOW), ("github-actions", "action.yml"), ("gitlab-ci", ".gitlab-ci.yml")],
)
def test_every_file_for_ci_keeps_to_the_published_schema(
    repository: Repository, tmp_path: Path, schema: str, name: str
) -> None:
    texts = {
        WORKFLOW: (repository.root / WORKFLOW).read_text(),
        "action.yml": ACTION.read_text(),
        ".gitlab-ci.yml": recipe("gitlab"),
    }
    path = tmp_path / Path(name).name
    path.write_text(texts[name])

    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", path],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_an_auditor_of_workflows_finds_nothing(repository: Repository, tmp_path: Path) -> None:
    settings = tmp_path / "zizmor.yml"
    settings.write_text('rules: {unpinned-uses: {config: {policies: {"actions/*": ref-pin}}}}\n')

    done = subprocess.run(
        [
            Path(sys.executable).parent / "zizmor",
            "--offline",
            "--no-progress",
            "--config",
            settings,
            WORKFLOW,
            ACTION,
        ],
        cwd=repository.root,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_who_ships_is_never_cancelled_and_ships_nothing_outdated(repository: Repository) -> None:
    job = yaml((repository.root / WORKFLOW).read_text())["jobs"]["ship"]

    assert job["concurrency"] == {"group": "deploy-gates-production", "cancel-in-progress": False}
    assert job["steps"][0]["with"]["ref"] == "${{ github.ref_name }}"
    assert job["timeout-minutes"] == 60


def test_the_action_says_the_same_and_fails_where_a_gate_blocks(
    repository: Repository, github: Reviews
) -> None:
    repository.git("switch", "-q", "-c", "broken")
    repository.edit("{{ review }}", "{{ revue }}")
    repository.commit("a variable that nobody declares")
    install, *steps = yaml(ACTION.read_text())["runs"]["steps"]
    runner = Runner(root=repository.root, reviews_url=github.url)

    ran = runner.job(
        steps,
        "pull_request",
        {"inputs.arguments": "--gate=type", "inputs.token": TOKEN, "inputs.install": ""},
    )

    assert ran.steps == {"gates": 1, "summary": 0, "comment": 0}
    assert not ran.is_green
    assert "BLOCK" in github.ours[0]
    assert github.ours[0] == ran.summary
    assert '"$GITHUB_ACTION_PATH/../../.."' in install["run"]
    assert "pytest-deploy-gates" in (ACTION.parent / "../../../pyproject.toml").read_text()


# --- GitLab -------------------------------------------------------------------------------------


def gitlab(repository: Repository, gitlab: Reviews, job: str, **env: str) -> tuple[int, str]:
    """Run the script of a job of the recipe, then its after_script; the status of the first, and the log."""
    declared = yaml(recipe("gitlab"))[job]
    runner = Runner(root=repository.root, reviews_url=gitlab.url)
    told = {
        "GITLAB_CI": "true",
        "CI_API_V4_URL": gitlab.url,
        "CI_COMMIT_BRANCH": "main",
        "CI_COMMIT_BEFORE_SHA": "0" * 40,
        "CI_JOB_URL": "https://gitlab.com/ada/triage/-/jobs/5",
        "GITLAB_USER_LOGIN": "ada",
        **env,
    }
    said, status = finished(runner.shell("\n".join(declared["script"]), told))
    after = declared.get("after_script", ["true"])
    more, _ = finished(runner.shell("\n".join(after), {**told, "CI_JOB_STATUS": "failed"}))
    return status, said + more


def test_on_gitlab_one_note_follows_the_merge_request(repository: Repository, github: Reviews) -> None:
    github.add(f"{MARKER}\n## PASS, says the stranger", role="OWNER")
    base = repository.git("rev-parse", "HEAD")
    told = {
        "CI_MERGE_REQUEST_DIFF_BASE_SHA": base,
        "CI_MERGE_REQUEST_IID": "7",
        "CI_MERGE_REQUEST_PROJECT_ID": "42",
        "DEPLOY_GATES_GITLAB_TOKEN": TOKEN,
    }
    repository.git("switch", "-q", "-c", "broken")
    repository.edit("{{ review }}", "{{ revue }}")
    repository.commit("a variable that nobody declares")

    blocked, log = gitlab(repository, github, "gates", **told)
    repository.edit("{{ revue }}", "{{ review }}")
    repository.edit('cost_per_request: "0.001"', 'cost_per_request: "0.0009"')
    repository.commit("corrected")
    passed, _ = gitlab(repository, github, "gates", **told)

    assert blocked == 1
    assert "the comment on merge request 7: created" in log
    assert passed == 0
    (note,) = github.ours
    assert "PASS" in note
    assert github.requests[-1].startswith("PUT /projects/42/merge_requests/7/notes/")


def test_on_gitlab_a_merge_is_shipped(repository: Repository, github: Reviews) -> None:
    status, log = gitlab(repository, github, "ship", DEPLOY_GATES_STORE=made_store(repository))

    assert status == 0, log
    assert set(served(repository)) == {"development", "staging", "production"}


# --- pre-commit ---------------------------------------------------------------------------------


def pre_commit(*arguments: str, at: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pre_commit", *arguments],
        cwd=at,
        env={**os.environ, "PATH": _path(), "PRE_COMMIT_HOME": str(at.parent / "pre-commit")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_hook_keeps_a_broken_config_out_of_a_commit(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRE_COMMIT_HOME", str(repository.root.parent / "pre-commit"))
    repository.git("switch", "-q", "-c", "change")
    installed = pre_commit("install", at=repository.root)
    head = repository.git("rev-parse", "HEAD")

    repository.edit("{{ review }}", "{{ revue }}")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        repository.commit("a variable that nobody declares")
    repository.edit("{{ revue }}", "{{ review }}")
    repository.edit('cost_per_request: "0.001"', 'cost_per_request: "0.0009"')
    repository.commit("a stricter limit")

    assert installed.returncode == 0, installed.stdout
    assert "revue" in refused.value.stderr + refused.value.stdout
    assert repository.git("log", "--format=%s", f"{head}..") == "a stricter limit"


def test_the_hook_does_nothing_for_commits_that_touch_no_config(repository: Repository) -> None:
    (repository.root / "README.md").write_text("hello\n")
    repository.git("add", "README.md")

    done = pre_commit("run", at=repository.root)

    assert done.returncode == 0, done.stdout
    assert "no files to check" in done.stdout


def test_the_hook_of_this_repository_is_the_one_that_init_writes(repository: Repository) -> None:
    (declared,) = yaml((ROOT / ".pre-commit-hooks.yaml").read_text())
    ((written,),) = [each["hooks"] for each in yaml((repository.root / HOOKS).read_text())["repos"]]

    valid = pre_commit("validate-manifest", str(ROOT / ".pre-commit-hooks.yaml"), at=repository.root)

    assert valid.returncode == 0, valid.stdout
    assert {key: value for key, value in declared.items() if key != "description"} == written
    assert yaml(recipe("pre-commit")) == yaml((repository.root / HOOKS).read_text())


@pytest.mark.parametrize(
    "text",
    [
        "repos:\n  - repo: meta\n    hooks:\n      - id: identity\n",
        "# ours\nrepos:\n- repo: meta\n  hooks:\n  - id: identity",
        "fail_fast: true\nrepos: # all of them\n  - repo: meta\n    hooks:\n      - id: identity\n\n",
    ],
)
def test_the_hook_is_added_behind_those_that_are_there(tmp_path: Path, text: str) -> None:
    (tmp_path / HOOKS).write_text(text)

    done = deploy_gates("init", at=tmp_path)

    after = (tmp_path / HOOKS).read_text()
    assert done.returncode == 0, done.stderr
    assert f"changed  {HOOKS}" in done.stdout
    assert after.startswith(text)
    assert [each["hooks"][0]["id"] for each in yaml(after)["repos"]] == ["identity", "deploy-gates"]
    assert pre_commit("validate-config", HOOKS, at=tmp_path).returncode == 0


@pytest.mark.parametrize(
    "text",
    [
        "repos: [{repo: meta, hooks: [{id: identity}]}]\n",
        "repos:\n  - repo: meta\n    hooks:\n      - id: identity\nfail_fast: true\n",
        "repos: []\n",
        "repos:\n  - repo: meta\n    hooks:\n      - id: identity\n        name: |\n          identity\n  \t",
        "nothing: [\n",
        "- a list\n",
    ],
)
def test_hooks_that_cannot_be_added_to_stay_as_they_are_and_the_lines_are_told(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / HOOKS).write_text(text)

    done = deploy_gates("init", at=tmp_path)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / HOOKS).read_text() == text
    assert f"kept     {HOOKS}" in done.stdout
    assert "      - id: deploy-gates\n" in done.stdout
    assert "entry: pytest --deploy-gates --gate=type,unit,cost --gate-record=none" in done.stdout
