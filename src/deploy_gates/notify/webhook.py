"""CloudEvents over HTTP, signed as the Standard Webhooks specification has it.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from dataclasses import dataclass, field

from deploy_gates import clock
from deploy_gates.core.delivery import Delivery
from deploy_gates.notify.channel import Earlier
from deploy_gates.notify.web import Endpoint, Undelivered

SECRET_PREFIX = "whsec_"
SECRET_BYTES = (24, 64)
"""How long a key of the specification is, from and to."""
GONE = 410
"""The receiver wants no more of this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Webhook:
    """A receiver of every event as it is."""

    endpoint: Endpoint
    key: bytes = field(repr=False)

    def send(self, delivery: Delivery, earlier: Earlier) -> str:
        """Send it once. Whatever is not a 2xx is no receipt, and tried again unless it says never to."""
        body = json.dumps(delivery.body, ensure_ascii=False, separators=(",", ":")).encode()
        sent_at = int(clock.now().timestamp())
        answer = self.endpoint.ask(
            "POST",
            body=body,
            headers={
                "content-type": "application/cloudevents+json; charset=utf-8",
                "webhook-id": delivery.id,
                "webhook-timestamp": str(sent_at),
                "webhook-signature": signature(self.key, delivery.id, sent_at, body),
            },
        )
        try:
            self.endpoint.checked(answer)
        except Undelivered as error:
            is_final = answer.status == GONE or 300 <= answer.status < 400
            raise Undelivered(error.message, retry_after_s=error.retry_after_s, is_final=is_final) from None
        return ""


def signature(key: bytes, id: str, sent_at: int, body: bytes) -> str:
    """The header `webhook-signature`: version 1, HMAC-SHA256."""
    signed = b"%b.%d.%b" % (id.encode(), sent_at, body)
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def key_of(secret: str) -> bytes:
    """The key that a secret spells: `whsec_` and base64. `ValueError`, without the secret, for another."""
    try:
        key = base64.b64decode(secret.strip().removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError(f"is not base64 after {SECRET_PREFIX}") from None
    least, most = SECRET_BYTES
    if not least <= len(key) <= most:
        raise ValueError(f"holds {len(key)} bytes; a key has {least} to {most}")
    return key
