"""From the record to the outbox: what has happened becomes events, and these deliveries, one a channel."""

from __future__ import annotations

from datetime import datetime, timedelta

from deploy_gates import clock
from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.delivery import Delivery, Fate
from deploy_gates.core.eliminated import Arrived
from deploy_gates.core.promotion import Event
from deploy_gates.core.release import Act, Promotion
from deploy_gates.notify.events import data_of, kind_of, of_move, of_promotion, time_of
from deploy_gates.notify.settled import Telling
from deploy_gates.store import ROWS_MAX, Store

RELAYED_MAX = 100
"""So many moves, and so many promotions, at a time."""
NEWS_MAX = timedelta(days=1)
"""What is older when it is seen first is history, and told to nobody."""
_SOUGHT_MAX = 100
"""Among so many promotions of a config the one is sought that a move by hand brings back."""


def relay(store: Store, telling: Telling) -> int:
    """Make deliveries of what nobody was told of; how many moves and promotions were gone through.

    Many may do so at once: each delivery is kept once, by its id. Nothing is sent. Without any channel
    nothing happens: a process that has other settings may know some.
    """
    if not telling.channels:
        return 0
    since = clock.now() - NEWS_MAX
    moves = store.outbox(RELAYED_MAX)
    for move in moves:
        store.told(move, _of_move(store, telling, move, since))
    promotions = store.untold(RELAYED_MAX)
    for promotion in promotions:
        events = of_promotion(promotion, source=telling.source, dashboard_url=telling.dashboard_url)
        store.announced(
            promotion,
            [
                each
                for event in events
                if time_of(event) >= since
                for each in _deliveries(telling, event, f"promotion/{promotion.id}")
            ],
        )
    return len(moves) + len(promotions)


def arrived(store: Store, telling: Telling, promotion: Promotion) -> frozenset[Arrived]:
    """The notifications of a promotion that arrived: what `eliminated` wants to know."""
    kinds = {each.name: each.kind for each in telling.channels}
    found = store.deliveries(thread=f"promotion/{promotion.id}", state=Fate.DELIVERED.value, limit=ROWS_MAX)
    return frozenset((kinds[each.channel], kind_of(each.body)) for each in found if each.channel in kinds)


def _of_move(store: Store, telling: Telling, move: Event, since: datetime) -> list[Delivery]:
    """The deliveries of a move by hand; a promotion tells of its own moves itself."""
    if move.at < since or _is_carried(store, move):
        return []
    event = of_move(
        move,
        source=telling.source,
        dashboard_url=telling.dashboard_url,
        commit=_commit(store, move),
    )
    return _deliveries(telling, event, f"deployment/{move.config}/{move.environment}")


def _is_carried(store: Store, move: Event) -> bool:
    """Whether a promotion made this move: its key says so, and there is such a promotion."""
    name, _, act = move.key.partition("/")
    number = name.removeprefix("promotion-")
    if (
        name == number
        or not number.isdecimal()
        or len(number) > 15
        or act not in [each.value for each in Act]
    ):
        return False
    promotion = store.promotion(int(number))
    return promotion is not None and promotion.release.config == move.config


def _commit(store: Store, move: Event) -> str:
    """The commit that what is served now came by, where a promotion knew it."""
    digest = move.candidate or move.baseline
    for each in store.promotions(move.config, limit=_SOUGHT_MAX):
        if each.release.digest == digest and each.release.commit:
            return each.release.commit
    return ""


def _deliveries(telling: Telling, event: JsonObject, thread: str) -> list[Delivery]:
    """One delivery for each channel that wants to hear of it. Their order is that of what happened."""
    assert data_of(event)
    at = time_of(event)
    return [
        Delivery(
            id=f"{event['id']}_{channel.name}",
            thread=thread,
            channel=channel.name,
            body=event,
            created_at=at,
            next_at=at,
        )
        for channel in telling.channels
        if channel.wants(event)
    ]
