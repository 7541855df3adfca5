"""What a team demands: the settings, past parsing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from deploy_gates.core.cost import Price
from deploy_gates.core.gate import GateName
from deploy_gates.core.past import Past


@dataclass(frozen=True, kw_only=True, slots=True)
class DeclaredModel:
    """What a team says of a model that the catalog does not know, or knows otherwise."""

    price: Price | None = None
    context_window: int | None = None
    max_output_tokens: int | None = None
    encoding: str = ""
    """A tiktoken encoding whose counts come near: `o200k_base`."""
    features: frozenset[str] | None = None
    served_as: tuple[str, ...] = ()
    """Names under which the endpoint says that this model answered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenPolicy:
    """How much worse still counts as no worse, and how sure one must be."""

    margin_pt: float = 2.0
    confidence: float = 0.95
    min_cases: int = 10
    min_pass_rate: float = 0.8
    """For a config that is new: it has no baseline to be no worse than."""
    samples: int = 1
    """How often each case is asked."""
    unstable_samples: int = 5
    """How often one is that its history calls unstable."""
    baseline_samples: int = 0
    """How often the baseline is, at least: its answers are kept and serve every change to come."""
    early_stop: bool = True
    """Whether asking stops as soon as the verdict is certain."""
    tags: tuple[str, ...] = ()
    """Tags that block where their own cases are proved worse."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CostPolicy:
    """By how much a change may raise what a request costs."""

    max_increase_pct: float = 25.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """All that decides a verdict and is not the config: its digest is part of the evidence."""

    golden: GoldenPolicy = GoldenPolicy()
    cost: CostPolicy = CostPolicy()
    optional: frozenset[GateName] = frozenset()
    """Gates that may execute no check and not block."""
    type_command: str = ""
    """A static type checker to run: `mypy src`."""
    type_command_timeout_s: float = 300.0
    models: Mapping[str, DeclaredModel] = field(default_factory=dict)
    digest: str = ""


def _nobody_counts(encoding: str, text: str) -> int:
    raise AssertionError("this Context was made without `count_tokens`: give it a `tokens.Tokenizer`")


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a gate is told besides the change."""

    policy: Policy
    now: datetime
    root: str
    """The repository's root on this machine; only checks of consumers and commands look."""
    live: bool = False
    """Whether questions that are not recorded can be asked."""
    budget_usd: Decimal | None = None
    count_tokens: Callable[[str, str], int] = _nobody_counts
    """An encoding and a text, to how many tokens it has."""
    history: Mapping[str, Mapping[str, Past]] = field(default_factory=dict)
    """By config and case: how earlier answers fared."""
