"""GitHub, Statuspage, Jira, and chats, each over a real socket."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import journeys
import pytest
from outside import GitHub, Jira, Service, Statuspage, listening

from deploy_gates.core.delivery import Delivery, Fate
from deploy_gates.core.release import Promotion, State
from deploy_gates.notify import events, github, jira, statuspage
from deploy_gates.notify.channel import Sender
from deploy_gates.notify.chat import INSTALL, Chat
from deploy_gates.notify.web import Endpoint, Undelivered

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # Apprise's own
URL = "https://gates.acme.dev"


def deliveries(promotion: Promotion) -> list[Delivery]:
    return [
        journeys.a_delivery(each)
        for each in events.of_promotion(promotion, source="/triage", dashboard_url=URL)
    ]


def send(sender: Sender, thread: list[Delivery], *, only: tuple[str, ...] = (), twice: bool = False) -> None:
    """Send a thread in order, as the store hands it out; `twice`: as after a crash."""
    thread = [each for each in thread if not only or events.kind_of(each.body) in only]
    for at, each in enumerate(thread):
        for _ in range(2 if twice else 1):
            found = sender.send(each, lambda: list(thread))
        thread[at] = replace(each, state=Fate.DELIVERED, external_id=found)


# --- GitHub -------------------------------------------------------------------------------------


@pytest.fixture
def hub() -> Iterator[GitHub]:
    with listening(GitHub(pulls={journeys.COMMIT: [7]})) as service:
        yield service
    assert service.problems == []


def a_repository(hub: GitHub, **fields: Any) -> github.GitHub:
    endpoint = Endpoint(url=hub.url, headers=github.headers(hub.token), secrets=(hub.token,))
    return github.GitHub(endpoint=endpoint, repository="acme/triage", **fields)


def states(hub: GitHub) -> dict[str, list[str]]:
    """The states that each environment's deployment went through."""
    return {
        each["environment"]: [status["state"] for status in hub.statuses[each["id"]]]
        for each in hub.deployments
    }


@pytest.mark.parametrize("twice", [False, True], ids=["once", "everything twice"])
def test_a_release_that_ships_leaves_a_deployment_an_environment(hub: GitHub, twice: bool) -> None:
    send(a_repository(hub), deliveries(journeys.shipped()), twice=twice)

    assert states(hub) == {"staging": ["in_progress", "success"], "production": ["in_progress", "success"]}
    production = hub.deployments[-1]
    assert (production["ref"], production["production_environment"]) == (journeys.COMMIT, True)
    assert hub.statuses[production["id"]][-1]["log_url"] == f"{URL}/promotions/118"


@pytest.mark.parametrize("twice", [False, True], ids=["once", "everything twice"])
def test_a_pull_request_has_one_comment_that_grows(hub: GitHub, twice: bool) -> None:
    hub.comments += [{"id": at + 1, "issue": 7, "body": f"{at}"} for at in range(130)]

    send(a_repository(hub), deliveries(journeys.shipped()), twice=twice)

    (comment,) = [each["body"] for each in hub.comments if "deploy-gates" in each["body"]]
    assert "### ✓ ticket-triage 8a41d07 shipped to production" in comment
    assert comment.count("\n| ") == 9  # two of the head, seven events
    assert "- latency: baseline 0.793, candidate 0.984, harmful" in comment


def test_the_commit_is_pending_until_the_promotion_has_ended(hub: GitHub) -> None:
    send(a_repository(hub), deliveries(journeys.rolled_back()))

    said = hub.commits[journeys.COMMIT]
    assert [each["state"] for each in said] == ["pending"] * 6 + ["failure"]
    assert {each["context"] for each in said} == {"deploy-gates/ticket-triage"}
    assert states(hub)["production"] == ["in_progress", "failure"]


def test_what_was_under_way_when_it_was_called_off_is_inactive(hub: GitHub) -> None:
    aborted = journeys.promotion(
        journeys.ADMIT,
        *journeys.STAGING,
        journeys.CANARY,
        state=State.ABORTED,
        conclusion="grace has moved production meanwhile",
    )

    send(a_repository(hub), deliveries(aborted))

    assert states(hub) == {"staging": ["in_progress", "success"], "production": ["in_progress", "inactive"]}


def test_what_was_served_before_of_the_same_config_is_inactive(hub: GitHub) -> None:
    sender = a_repository(hub)
    first, second = journeys.shipped(), journeys.shipped(id=119)
    another = replace(first, id=120, release=replace(first.release, config="invoice-match"))

    for each in (first, another, second):
        send(sender, deliveries(each))

    last = [[status["state"] for status in hub.statuses[each["id"]]][-1] for each in hub.deployments]
    assert last == ["inactive", "inactive", "success", "success", "success", "success"]


def test_a_dead_letter_that_comes_late_turns_nothing_back(hub: GitHub) -> None:
    thread = deliveries(journeys.shipped())
    sender = a_repository(hub)
    send(sender, [each for each in thread if each is not thread[3]])
    before = states(hub)
    delivered = [replace(each, state=Fate.DELIVERED) for each in thread]

    sender.send(thread[3], lambda: [*delivered[:3], thread[3], *delivered[4:]])

    assert states(hub) == before
    assert hub.commits[journeys.COMMIT][-1]["state"] == "success"
    assert "shipped to production" in hub.comments[-1]["body"]


def test_without_a_commit_or_a_pull_request_there_is_nothing_to_write_to(hub: GitHub) -> None:
    hub.pulls.clear()

    send(a_repository(hub), deliveries(journeys.shipped(commit="")))
    assert hub.asked == []
    send(a_repository(hub), deliveries(journeys.shipped()))

    assert hub.comments == []
    assert len(hub.deployments) == 2


def test_only_what_is_wanted_is_written(hub: GitHub) -> None:
    send(a_repository(hub, writes=("status",)), deliveries(journeys.shipped()))

    assert {path.split("/")[4] for _, path in hub.writes()} == {"statuses"}


def test_a_token_that_is_refused_is_not_tried_again_and_not_shown(hub: GitHub) -> None:
    sender = a_repository(hub)
    hub.token = "another"

    with pytest.raises(Undelivered) as caught:
        sender.send(deliveries(journeys.shipped())[1], list)

    assert caught.value.message == "127.0.0.1 answers 401: Bad credentials"
    assert caught.value.is_final


@pytest.mark.parametrize("twice", [False, True], ids=["once", "everything twice"])
@pytest.mark.parametrize(
    ("promotion", "reason"), [(journeys.shipped(), "completed"), (journeys.rolled_back(), "not_planned")]
)
def test_an_issue_is_opened_and_closed_with_the_outcome(
    hub: GitHub, promotion: Promotion, reason: str, twice: bool
) -> None:
    endpoint = Endpoint(url=hub.url, headers=github.headers(hub.token))
    sender = github.GitHubIssues(endpoint=endpoint, repository="acme/triage")
    only = ("promotion.proposed", "promotion.shipped", "promotion.rolled-back")

    send(sender, deliveries(promotion), only=only, twice=twice)

    (issue,) = hub.issues
    assert (issue["state"], issue["state_reason"], issue["labels"]) == ("closed", reason, ["deploy"])
    (comment,) = hub.comments
    assert promotion.conclusion in comment["body"]


# --- Statuspage ---------------------------------------------------------------------------------


@pytest.fixture
def page() -> Iterator[Statuspage]:
    with listening(Statuspage()) as service:
        yield service


def a_page(service: Statuspage, **fields: Any) -> statuspage.Statuspage:
    endpoint = Endpoint(url=service.url, headers=statuspage.headers("sp_secret"))
    return statuspage.Statuspage(endpoint=endpoint, page="abc", component="def", **fields)


@pytest.mark.parametrize("twice", [False, True], ids=["once", "everything twice"])
def test_the_page_shows_a_canary_and_a_rollback(page: Statuspage, twice: bool) -> None:
    send(a_page(page), deliveries(journeys.rolled_back()), twice=twice)

    assert page.turned == ["under_maintenance", "operational"]
    (incident,) = page.incidents
    assert incident["status"] == "resolved"
    assert incident["name"] == "ticket-triage 8a41d07 rolled back in production"


def test_what_ships_leaves_no_incident(page: Statuspage) -> None:
    send(a_page(page), deliveries(journeys.shipped()))

    assert page.turned == ["under_maintenance", "operational"]
    assert page.incidents == []


def test_an_outage_that_somebody_else_reports_stays(page: Statuspage) -> None:
    page.status = "major_outage"

    send(a_page(page, incident=False), deliveries(journeys.rolled_back()))

    assert page.status == "major_outage"
    assert page.writes() == []


def test_a_release_that_never_reached_production_is_none_of_the_page(page: Statuspage) -> None:
    blocked = journeys.promotion(journeys.ADMIT, state=State.BLOCKED, conclusion="golden fails")

    send(a_page(page), deliveries(blocked))

    assert page.asked == []


# --- Jira ---------------------------------------------------------------------------------------


@pytest.fixture
def desk() -> Iterator[Jira]:
    with listening(Jira()) as service:
        yield service


def a_project(desk: Jira, **fields: Any) -> jira.Jira:
    endpoint = Endpoint(url=desk.url, headers=jira.headers("ada@acme.dev", "j_token"), secrets=("j_token",))
    return jira.Jira(endpoint=endpoint, project="OPS", **fields)


TICKET = ("promotion.proposed", "promotion.shipped")


@pytest.mark.parametrize("twice", [False, True], ids=["once", "everything twice"])
@pytest.mark.parametrize("done", ["", "Done", "Resolve"])
def test_a_ticket_is_opened_and_closed_with_the_figures(desk: Jira, done: str, twice: bool) -> None:
    send(a_project(desk, done=done), deliveries(journeys.shipped()), only=TICKET, twice=twice)

    (ticket,) = desk.issues.values()
    assert ticket["status"] == "done"
    assert ticket["summary"] == "ticket-triage 8a41d07 is on its way to production"
    (comment,) = ticket["comments"]
    assert "latency: baseline 0.793, candidate 0.984, harmful" in json.dumps(comment)


def test_a_ticket_whose_opening_was_given_up_is_opened_when_it_is_closed(desk: Jira) -> None:
    *_, shipped = deliveries(journeys.shipped())

    key = a_project(desk).send(shipped, lambda: [shipped])

    assert key == "OPS-1"
    assert desk.issues[key]["status"] == "done"


def test_a_workflow_without_that_status_wants_a_person(desk: Jira) -> None:
    with pytest.raises(Undelivered, match="no transition to Closed") as caught:
        send(a_project(desk, done="Closed"), deliveries(journeys.shipped()), only=TICKET)

    assert caught.value.is_final


# --- Chats --------------------------------------------------------------------------------------


@pytest.fixture
def chat() -> Iterator[Service]:
    with listening(Service()) as service:
        yield service


def test_a_chat_hears_a_title_and_a_text_through_apprise(chat: Service, caplog: Any) -> None:
    caplog.set_level(0)
    sender = Chat(url=chat.url.replace("http://", "json://") + "/secret-path")

    sender.send(deliveries(journeys.rolled_back())[-1], list)

    (asked,) = chat.asked
    assert asked.path == "/secret-path"
    assert asked.json["title"] == "ticket-triage 8a41d07 rolled back in production"
    assert asked.json["message"].startswith("latency rose 28 %\n")
    assert asked.json["type"] == "failure"
    assert "secret-path" not in caplog.text


def test_a_chat_is_never_made_to_call_everybody(chat: Service) -> None:
    sender = Chat(url=chat.url.replace("http://", "json://"))

    sender.send(deliveries(journeys.shipped(reason="<!channel> @here: all green"))[-1], list)

    (asked,) = chat.asked
    assert "<!\u200bchannel> @\u200bhere: all green" in asked.json["message"]


def test_a_chat_that_says_no_is_named_by_its_service_alone(chat: Service) -> None:
    chat.failing.append((500, {}, {}))
    sender = Chat(url=chat.url.replace("http://", "json://") + "/secret-path")

    with pytest.raises(Undelivered) as caught:
        sender.send(deliveries(journeys.shipped())[-1], list)

    assert caught.value.message == "Apprise could not deliver it to json"
    assert not caught.value.is_final


def test_a_url_that_apprise_does_not_know_is_not_tried_again() -> None:
    with pytest.raises(Undelivered) as caught:
        Chat(url="carrier-pigeon://secret").send(deliveries(journeys.shipped())[0], list)

    assert caught.value.is_final
    assert "secret" not in caught.value.message


def test_without_apprise_the_line_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "apprise":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)

    with pytest.raises(Undelivered) as caught:
        Chat(url="json://127.0.0.1").send(deliveries(journeys.shipped())[0], list)

    assert INSTALL in caught.value.message
