"""What a model costs, by its name: from the packaged table, or what the team has declared."""

from __future__ import annotations

from deploy_gates import catalog, clock
from deploy_gates.core.cost import Price
from deploy_gates.core.policy import Policy


class Pricing:
    """Looks each model up once a day."""

    def __init__(self, policy: Policy | None = None) -> None:
        self._policy = policy or Policy()
        self._day = clock.now().date()
        self._known: dict[str, Price | None] = {}

    def __call__(self, model: str) -> Price | None:
        """The price of a model today; `None` if nobody knows it."""
        today = clock.now().date()
        if today != self._day or len(self._known) > 10_000:
            self._day, self._known = today, {}
        if model not in self._known:
            self._known[model] = catalog.price(model, self._policy, today)
        return self._known[model]
