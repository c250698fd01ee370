"""The scores of the vocabulary."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..threads import Member, run_team
from .decode import DECODE_TEXTS, threads_for
from .packing import aligned, padded, stored
from .products import product
from .step import project


def head(x: NDArray, lm_head: Any) -> NDArray:  # (B L D), (V D) -> (B L V)
    """Return one score for each token of the vocabulary."""
    *outer, D = x.shape
    tokens = int(np.prod(outer))
    matrix = stored(lm_head)
    V = len(matrix.values)
    scores = np.empty((tokens, V), np.float32)
    size = threads_for(matrix.values.nbytes)
    if tokens > DECODE_TEXTS:
        rows = np.ascontiguousarray(x.reshape(tokens, D))
        run_team(lambda member: product(member, rows, matrix, 0, scores), size)
    elif tokens:
        rows = aligned((tokens, padded(D)))
        rows[:, :D] = x.reshape(tokens, D)
        place, like = matrix.place, matrix.like

        def forward(member: Member) -> None:
            project(place, like, matrix.group, D, rows, scores, member.share(V))

        run_team(forward, size, blas=False)
    return scores.reshape(*outer, V)
