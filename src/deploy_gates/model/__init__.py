"""Asking a model, many questions at once: checks are driven here with answers, recorded or live.

`engine` drives checks and knows no network; `caller` asks an endpoint, on a thread of its own, and is only
imported with the first question that nobody has recorded. Between them go the values in `values`.
"""

from deploy_gates.model.engine import Engine, Progress, Record, Totals
from deploy_gates.model.values import Batches, Budget, Endpoint, Journal

__all__ = ["Batches", "Budget", "Endpoint", "Engine", "Journal", "Progress", "Record", "Totals"]
