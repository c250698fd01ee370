"""Pictures of what goes on inside: one function for each question, with matplotlib.

A function takes a trace (``model.trace``), or a model and ids, and returns the Axes that it drew
on: those passed as ``ax``, or those of a new figure. The ones with several panels take and return
a Figure. None shows, saves or closes anything, nor changes a setting. ``STYLE`` names a style
sheet for documents.
"""

from .attention import (
    contributions,
    hidden_attention,
    mixer_attention,
    receptive_field,
    similarity,
)
from .figures import STYLE, MissingPackageError
from .memory import delta, half_life, influence, latest, state_shares, strengths, survival
from .overview import dashboard
from .predictions import logit_lens, relevance, what_if
from .states import residual_norm, state, state_size
from .tokens import token_axis

__all__ = [
    "STYLE",
    "MissingPackageError",
    "contributions",
    "dashboard",
    "delta",
    "half_life",
    "hidden_attention",
    "influence",
    "latest",
    "logit_lens",
    "mixer_attention",
    "receptive_field",
    "relevance",
    "residual_norm",
    "similarity",
    "state",
    "state_shares",
    "state_size",
    "strengths",
    "survival",
    "token_axis",
    "what_if",
]
