"""A process that relays and sends, to be killed: `python tests/notify/sender.py STORE RECEIVER CLAIM_S`."""

from __future__ import annotations

import sys
from datetime import timedelta

from telling import telling_to

from deploy_gates import notify
from deploy_gates.store import open_store

if __name__ == "__main__":
    _, store_url, receiver_url, claim_s = sys.argv
    store = open_store(store_url)
    telling = telling_to(receiver_url)
    notify.relay(store, telling)
    notify.deliver(store, telling, claim=timedelta(seconds=float(claim_s)))
    store.close()
