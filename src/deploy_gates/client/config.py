"""What `get` returns: one arm of one config for one key, ready to be asked with."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy_gates.client.served import Served
from deploy_gates.core.canonical import JsonObject
from deploy_gates.core.errors import PromptError
from deploy_gates.core.tally import Arm

if TYPE_CHECKING:
    from deploy_gates.client.outcomes import Call, Outcomes
    from deploy_gates.client.paying import Paying
    from deploy_gates.core.cost import Usage

SILENT_S = 20.0
"""Who has not heard of the store for so long serves what may be stale, whatever the reason."""


class Freshness:
    """Whether what a client serves is what the store says: the one thing here that changes in place."""

    __slots__ = ("confirmed_at", "fault")

    def __init__(self) -> None:
        self.fault = "the store has not been read yet"
        """Why the store cannot be read; empty: it could, when it was tried last."""
        self.confirmed_at = time.monotonic()
        """When it was read last, on the monotonic clock."""

    @property
    def is_stale(self) -> bool:
        return bool(self.reason)

    @property
    def reason(self) -> str:
        """Why there may be something newer; empty: there is not."""
        silent_s = time.monotonic() - self.confirmed_at
        return self.fault or (f"it has not answered for {silent_s:.0f} s" if silent_s > SILENT_S else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """One arm as a client hands it out, made once per revision."""

    served: Served
    freshness: Freshness
    outcomes: Outcomes
    paying: Paying


class Config:
    """One arm of one config, for one key. It does not change, however long it is kept."""

    __slots__ = ("_offer", "key")

    def __init__(self, offer: Offer, key: str | None) -> None:
        self._offer = offer
        self.key = key
        """Who asks; `None`: nobody in particular, who gets the baseline."""

    @property
    def name(self) -> str:
        return self._offer.served.name

    @property
    def environment(self) -> str:
        return self._offer.served.environment

    @property
    def revision(self) -> int:
        return self._offer.served.revision

    @property
    def arm(self) -> Arm:
        return self._offer.served.arm

    @property
    def digest(self) -> str:
        return self._offer.served.digest

    @property
    def document(self) -> JsonObject:
        """The whole configuration, as it was released. It is shared: do not change it."""
        return self._offer.served.document

    @property
    def base_url(self) -> str:
        """Where this environment asks; empty: where the SDK asks by default."""
        return self._offer.served.endpoint.base_url

    @property
    def api_key_env(self) -> str:
        """The environment variable with the key."""
        return self._offer.served.endpoint.api_key_env

    @property
    def timeout_s(self) -> float:
        return self._offer.served.endpoint.timeout_s

    @property
    def is_stale(self) -> bool:
        """Whether the store is away just now, so that there may be a newer revision."""
        return self._offer.freshness.is_stale

    def request(self, /, **inputs: Any) -> dict[str, Any]:
        """The arguments of `chat.completions.create` or `responses.create`, whichever the config speaks.

        `PromptError` for inputs that are missing or that the config does not declare.
        """
        from deploy_gates import prompt

        config = self._offer.served.config
        declared = config.inputs.get("properties")
        required = config.inputs.get("required")
        names = list(declared) if isinstance(declared, dict) else []
        known = ", ".join(f"`{name}`" for name in names) or "none"
        for name in inputs:
            if name not in names and not config.inputs.get("additionalProperties"):
                raise PromptError(f"{self.name} has no input `{name}`", hint=f"its inputs: {known}")
        for each in required if isinstance(required, list) else []:
            if each not in inputs:
                raise PromptError(f"{self.name} wants an input `{each}`", hint=f"its inputs: {known}")
        return prompt.body(config, inputs)

    def call(self, *, organisation: str = "", worst: Usage | None = None, id: str = "") -> Call:
        """Measures one call with this config: `with config.call() as call: …`, sync or async.

        With credits on, an organisation pays for it: the one named here, or the client's. What it uses at
        worst is the config's `limits.cost_per_request`, its context window, or `worst`; `id` is the id of the
        reservation. Entering it then raises `CreditsRefused` where that cannot be reserved.
        """
        offer = self._offer
        if not (organisation or offer.paying.is_on):
            return offer.outcomes.begin(offer.served, self.key)
        return offer.paying.call(
            offer.outcomes, offer.served, self.key, organisation=organisation, worst=worst, id=id
        )

    def __repr__(self) -> str:
        return (
            f"<Config {self.name} r{self.revision} {self.arm.value} {self.digest[:7]} in {self.environment}>"
        )
