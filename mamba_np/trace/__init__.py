"""Traces of a model's inner quantities while it reads: ``model.trace`` and ``model.tracer``."""

from .request import DEFAULT, LIMIT, QUANTITIES
from .result import Trace
from .tracer import Tracer, TracingMixin

__all__ = ["DEFAULT", "LIMIT", "QUANTITIES", "Trace", "Tracer", "TracingMixin"]
