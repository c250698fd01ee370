"""What if? A model that reads with some of its inner quantities changed: ``model.intervene``.

    with model.intervene(ScaleDelta(0.5, layers=[3]), CutPath(source=4)):
        print(model(ids).logits)

Positions count from the beginning of each text; layers, channels and tokens are lists, slices or
single numbers, and None means all. Changed blocks are computed by the NumPy reference. A change
that changes nothing (a factor of 1, no channels, ...) is left out, and if none is left the model
computes as it always does, to the bit.
"""

from .changes import Ablate, Change, ClampDelta, CutPath, FreezeDelta, ScaleDelta, SetState
from .run import InterveneMixin, Intervention

__all__ = [
    "Ablate",
    "Change",
    "ClampDelta",
    "CutPath",
    "FreezeDelta",
    "InterveneMixin",
    "Intervention",
    "ScaleDelta",
    "SetState",
]
