"""What the ticket desk reads: the answer, as its service parses it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Ticket(BaseModel):
    """One sorted ticket."""

    model_config = ConfigDict(extra="forbid")

    reason: str
    category: Literal["billing", "refund", "technical", "account", "shipping", "other"]
    priority: Literal["low", "normal", "high", "urgent"]
    sentiment: Literal["negative", "neutral", "positive"]
