"""What a trace says: half-lives, hidden attention, contributions, relevance, and their checks.

Pure functions of a ``Trace`` (``model.trace``), or of a model and ids where weights are needed.
``identities`` has, under the name of each, what must be true of it.
"""

from . import identities
from .attention import (
    ReceptiveField,
    hidden_attention,
    mean_hidden_attention,
    receptive_field,
)
from .memory import (
    Strengths,
    half_life,
    influence,
    state_parts,
    state_shares,
    steady_half_life,
    strengths,
    survival,
)
from .mixer import Contributions, contribution_norms, contributions, mixer_attention
from .predictions import Lens, Relevance, logit_lens, relevance
from .states import StateSize, effective_rank, similarity, state_size

__all__ = [
    "Contributions",
    "Lens",
    "ReceptiveField",
    "Relevance",
    "StateSize",
    "Strengths",
    "contribution_norms",
    "contributions",
    "effective_rank",
    "half_life",
    "hidden_attention",
    "identities",
    "influence",
    "logit_lens",
    "mean_hidden_attention",
    "mixer_attention",
    "receptive_field",
    "relevance",
    "similarity",
    "state_parts",
    "state_shares",
    "state_size",
    "steady_half_life",
    "strengths",
    "survival",
]
