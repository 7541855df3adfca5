"""Telling others: what the record says has happened, over the channels that the settings name.

Nobody sends inside the step of a promotion. `relay` makes deliveries of what is new and has the store keep
them, `deliver` sends what is due, and a `Notifier` does both in the background of a process that runs anyway.
A channel that fails stops no other one, no promotion, and no rollback.
"""

from __future__ import annotations

from deploy_gates.notify.background import Notifier
from deploy_gates.notify.relaying import arrived, relay
from deploy_gates.notify.sending import DEAD_MAX, again, deliver
from deploy_gates.notify.settled import Telling

__all__ = ["DEAD_MAX", "Notifier", "Telling", "again", "arrived", "deliver", "relay"]
