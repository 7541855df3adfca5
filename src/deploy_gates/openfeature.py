"""A provider for the Python SDK of OpenFeature that answers from memory, in this process.

client = ConfigClient("postgresql://…/gates", environment="production")
openfeature.api.set_provider(DeployGatesProvider(client))

The targeting key of the evaluation context is the key by which a canary is drawn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from deploy_gates import flags
from deploy_gates.client import ConfigClient
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.errors import ConfigUnavailable

try:
    from openfeature.evaluation_context import EvaluationContext
    from openfeature.event import ProviderEventDetails
    from openfeature.exception import FlagNotFoundError, ProviderNotReadyError, TypeMismatchError
    from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
    from openfeature.provider import AbstractProvider, Metadata
except ImportError as error:
    raise ImportError(
        "the SDK of OpenFeature is missing: `pip install pytest-deploy-gates[openfeature]`"
    ) from error

FlagObject = Sequence[FlagValueType] | Mapping[str, FlagValueType]

_T = TypeVar("_T")


class DeployGatesProvider(AbstractProvider):
    """Flags out of the configs of a client, which stays its owner's to close.

    Events: `PROVIDER_CONFIGURATION_CHANGED` names the flags that may have another value now;
    `PROVIDER_STALE` comes when the store is away, and `PROVIDER_READY` when it is back.
    """

    def __init__(self, client: ConfigClient) -> None:
        super().__init__()
        self._client = client
        self._lock = threading.Lock()
        self._unsubscribe: Callable[[], None] | None = None
        self._documents: dict[str, list[JsonObject]] = {}
        """Of every config, those of its arms when a change was told last."""
        self._is_told_ready = False
        self._is_told_stale = False

    def get_metadata(self) -> Metadata:
        return Metadata(name="deploy-gates")

    def initialize(self, evaluation_context: EvaluationContext) -> None:
        """Follow the client. `ProviderNotReadyError` where it has nothing to serve yet; it may have later."""
        with self._lock:
            if self._unsubscribe is None:
                self._documents = {name: self._served(name) for name in self._client.names}
                self._unsubscribe = self._client.on_change(self._changed)
            self._is_told_stale = False
            self._is_told_ready = bool(self._client.names) or not self._client.is_stale
            if not self._is_told_ready:
                raise ProviderNotReadyError(f"nothing could be read from {self._client.url} yet")

    def shutdown(self) -> None:
        """Follow the client no longer; it is not closed."""
        with self._lock:
            unsubscribe, self._unsubscribe = self._unsubscribe, None
        if unsubscribe is not None:
            unsubscribe()

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        return self._resolve(flag_key, evaluation_context, _boolean)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        return self._resolve(flag_key, evaluation_context, _string)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        return self._resolve(flag_key, evaluation_context, _integer)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        return self._resolve(flag_key, evaluation_context, _float)

    def resolve_object_details(
        self, flag_key: str, default_value: FlagObject, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[FlagObject]:
        return self._resolve(flag_key, evaluation_context, _object)

    def _resolve(
        self, flag: str, context: EvaluationContext | None, typed: Callable[[Json], _T]
    ) -> FlagResolutionDetails[_T]:
        try:
            found = flags.evaluate(self._client, flag, context.targeting_key if context else None)
        except flags.FlagNotFound as error:
            raise FlagNotFoundError(error.message) from error
        except ConfigUnavailable as error:
            raise ProviderNotReadyError(error.message) from error
        if (found.reason is flags.Reason.STALE) is not self._is_told_stale:
            self._tell_freshness()
        try:
            value = typed(found.value)
        except TypeError as error:
            raise TypeMismatchError(f"{flag} is {error}") from error
        return FlagResolutionDetails(
            value=value,
            variant=found.variant.value,
            reason=Reason(found.reason.value),
            flag_metadata=found.metadata,
        )

    # --- Events ---------------------------------------------------------------------------------

    def _changed(self, names: frozenset[str]) -> None:
        """In the background: configs have changed, or, if there are no names, the store went or came."""
        changed: list[str] = []
        for name in sorted(names):
            before, after = self._documents.get(name, []), self._served(name)
            self._documents[name] = after
            changed += (
                flags.differing(name, before + after) if before and after else _all(name, before + after)
            )
        self._tell_freshness()
        if changed:
            self.emit_provider_configuration_changed(ProviderEventDetails(flags_changed=changed))

    def _tell_freshness(self) -> None:
        with self._lock:
            is_stale, was_told_stale = self._client.is_stale, self._is_told_stale
            is_ready = self._is_told_ready or bool(self._client.names)
            is_news = is_ready and (is_stale is not was_told_stale or not self._is_told_ready)
            if self._unsubscribe is None or not is_news:
                return
            self._is_told_ready, self._is_told_stale = True, is_stale
        if is_stale:
            self.emit_provider_stale(ProviderEventDetails(message="the store is away"))
        else:
            self.emit_provider_ready(ProviderEventDetails())

    def _served(self, name: str) -> list[JsonObject]:
        try:
            return [each.document for each in self._client.arms(name) if each is not None]
        except ConfigUnavailable:
            return []


def _all(name: str, documents: Sequence[JsonObject]) -> list[str]:
    return sorted(set().union(*(flags.members(name, each) for each in documents)))


def _boolean(value: Json) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{_kind(value)}, not a boolean")
    return value


def _string(value: Json) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{_kind(value)}, not a string")
    return value


def _integer(value: Json) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{_kind(value)}, not a whole number")
    return value


def _float(value: Json) -> float:
    """A number; JSON does not tell 1 from 1.0."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{_kind(value)}, not a number")
    return float(value)


def _object(value: Json) -> FlagObject:
    """A copy: who gets it may change it, and everybody else still gets what was released."""
    if not isinstance(value, dict | list):
        raise TypeError(f"{_kind(value)}, not an object")
    copied: FlagObject = _copied(value)  # type: ignore[assignment]  # the SDK has no word for null
    return copied


def _copied(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _kind(value: Json) -> str:
    kinds = {bool: "a boolean", str: "a string", dict: "an object", list: "a list"}
    return kinds.get(type(value), "a number")
