"""Settings and environment variables become channels; what is missing is said, and stops nobody."""

from __future__ import annotations

import pytest

from deploy_gates import settings
from deploy_gates.core.errors import SettingsError
from deploy_gates.notify import Telling
from deploy_gates.notify.github import GitHub
from deploy_gates.notify.jira import Jira
from deploy_gates.notify.webhook import Webhook

SETTLED = """
[tool.deploy_gates.notify]
source = "https://github.com/acme/triage"
dashboard_url = "https://gates.acme.dev"

[tool.deploy_gates.notify.channels.hook]
kind = "webhook"
url = "https://hooks.acme.dev/deploys"
secret_env = "HOOK_SECRET"

[tool.deploy_gates.notify.channels.team]
kind = "apprise"
url_env = "TEAM_URL"
events = ["promotion.rolled-back"]
environments = ["production"]

[tool.deploy_gates.notify.channels.repository]
kind = "github"

[tool.deploy_gates.notify.channels.page]
kind = "statuspage"
page = "abc"
component = "def"

[tool.deploy_gates.notify.channels.desk]
kind = "jira"
url = "https://acme.atlassian.net/"
project = "OPS"

[tool.deploy_gates.notify.channels.issues]
kind = "github-issues"
labels = []
"""
ENVIRON = {
    "HOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "TEAM_URL": "slack://T1/B2/s3cr3t",
    "GITHUB_TOKEN": "ghs_s3cr3t",
    "GITHUB_REPOSITORY": "acme/triage",
    "GITHUB_API_URL": "https://ghe.acme.dev/api/v3",
    "STATUSPAGE_API_KEY": "sp_s3cr3t",
    "JIRA_USER": "ada@acme.dev",
    "JIRA_API_TOKEN": "j_s3cr3t",
}


def telling(environ: dict[str, str]) -> Telling:
    return Telling.of(settings.parse(SETTLED).notify, environ)


def test_every_kind_of_channel_is_made_of_settings_and_variables() -> None:
    made = telling(ENVIRON)

    assert [each.lacks for each in made.channels] == [""] * 6
    senders = [each.sender for each in made.channels]
    assert isinstance(senders[0], Webhook)
    assert isinstance(senders[2], GitHub)
    assert senders[2].repository == "acme/triage"
    assert senders[2].endpoint.url == "https://ghe.acme.dev/api/v3"
    assert isinstance(senders[4], Jira)
    assert senders[4].endpoint.url == "https://acme.atlassian.net"
    assert (made.source, made.attempts) == ("https://github.com/acme/triage", 10)


def test_no_secret_is_shown_by_what_is_made() -> None:
    shown = repr(telling(ENVIRON))

    assert "s3cr3t" not in shown
    assert ENVIRON["HOOK_SECRET"].removeprefix("whsec_") not in shown


@pytest.mark.parametrize(
    ("channel", "variable", "lacks"),
    [
        ("hook", "HOOK_SECRET", "$HOOK_SECRET is not set here"),
        ("team", "TEAM_URL", "$TEAM_URL is not set here"),
        ("repository", "GITHUB_TOKEN", "$GITHUB_TOKEN is not set here"),
        (
            "repository",
            "GITHUB_REPOSITORY",
            "neither `repository` nor $GITHUB_REPOSITORY says which repository",
        ),
        ("page", "STATUSPAGE_API_KEY", "$STATUSPAGE_API_KEY is not set here"),
        ("desk", "JIRA_API_TOKEN", "$JIRA_API_TOKEN is not set here"),
    ],
)
def test_what_is_missing_here_is_named_and_concerns_that_channel_alone(
    channel: str, variable: str, lacks: str
) -> None:
    made = telling({name: value for name, value in ENVIRON.items() if name != variable})

    found = made.channel(channel)
    assert found is not None
    assert found.sender is None
    assert found.lacks == lacks
    hook = made.channel("hook" if channel != "hook" else "team")
    assert hook is not None
    assert hook.sender is not None


def test_a_secret_that_is_no_key_is_missing_too() -> None:
    made = telling(ENVIRON | {"HOOK_SECRET": "hunter2"})

    found = made.channel("hook")
    assert found is not None
    assert found.lacks == "$HOOK_SECRET is not base64 after whsec_"


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ('kind = "webhook"\nurl = "https://x.dev"', "lacks `secret_env`"),
        ('kind = "webhook"\nurl = "https://u:p@x.dev"\nsecret_env = "X"', "does not match"),
        ('kind = "webhook"\nurl = "https://x.dev"\nsecret_env = "X"\nsecret = "s"', "is not known here"),
        ('kind = "slack"', 'must be one of "webhook"'),
        ('kind = "jira"\nurl = "https://x.dev"', "lacks `project`"),
        ('kind = "apprise"\nurl_env = "X"\nevents = ["shipped"]', "promotion.shipped"),
    ],
)
def test_what_no_channel_can_be_made_of_is_said_with_its_line(table: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.parse(f"[tool.deploy_gates.notify.channels.team]\n{table}")

    assert sentence in caught.value.message
    assert "tool.deploy_gates.notify.channels.team" in caught.value.message
