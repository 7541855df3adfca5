"""Chats and mail, through Apprise: it knows more than a hundred services by their URLs."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from types import ModuleType

from deploy_gates.core.delivery import Delivery
from deploy_gates.notify import words
from deploy_gates.notify.channel import Earlier
from deploy_gates.notify.events import kind_of
from deploy_gates.notify.web import Undelivered

INSTALL = "pip install 'pytest-deploy-gates[notify]'"
_MENTION = re.compile(r"(?<=[@!])(?=\w)")
_TYPES = {
    "promotion.shipped": "success",
    "promotion.rolled-back": "failure",
    "promotion.blocked": "failure",
    "promotion.held": "warning",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Chat:
    """Whoever is behind one URL of Apprise."""

    url: str = field(repr=False)

    def send(self, delivery: Delivery, earlier: Earlier) -> str:
        """Send it once. Apprise tells only whether it arrived."""
        apprise = _apprise()
        to = apprise.Apprise()
        if not to.add(self.url):
            raise Undelivered("Apprise does not know this kind of URL", is_final=True)
        event = delivery.body
        arrived = to.notify(
            title=_unmentioned(words.title(event)),
            body=_unmentioned(words.text(event)),
            notify_type=apprise.NotifyType(_TYPES.get(kind_of(event), "info")),
            body_format=apprise.NotifyFormat.TEXT,
        )
        if not arrived:
            raise Undelivered(f"Apprise could not deliver it to {self._service}")
        return ""

    @property
    def _service(self) -> str:
        """The only part of the URL that is shown."""
        return self.url.partition(":")[0][:20]


def _unmentioned(text: str) -> str:
    """`text` without calling anybody: a zero-width space stands where `@ada` and `<!channel>` would begin."""
    return _MENTION.sub("\u200b", text)


def _apprise() -> ModuleType:
    """The library. What it and its HTTP client log holds URLs with their tokens, so they are kept silent."""
    try:
        import apprise
    except ImportError:
        raise Undelivered(f"Apprise is not installed here: {INSTALL}") from None
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    logging.getLogger("urllib3").setLevel(logging.INFO)
    module: ModuleType = apprise
    return module
