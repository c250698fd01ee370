"""DataCollatorForLanguageModeling: from examples with ids to a batch, as transformers calls it."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..checks import shown
from ..errors import InputError
from .data import Batch, collate, given_row


class DataCollatorForLanguageModeling:
    """Makes a batch of dicts with ``input_ids`` and, where they differ, ``labels``.

    Rows are filled at their right with ``tokenizer.pad_token_id``, which nobody reads; labels are
    -100 there. Raises InputError for ``mlm=True``: a model that reads forward predicts the next
    token. A call raises it for an example without ids, or with others than fit together.
    """

    def __init__(self, tokenizer: Any = None, mlm: bool = False):
        if mlm:
            raise InputError(f"mlm: expected False for a causal model, found {shown(mlm)}")
        self.tokenizer, self.mlm = tokenizer, False

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> Batch:
        """Return ``input_ids``, ``labels`` and, if rows were filled, ``attention_mask``: (B, L)."""
        for i, one in enumerate(features):
            if "input_ids" not in one:
                raise InputError(f"features[{i}]: expected input_ids, found {shown(one)}")
        rows = [given_row(f"features[{i}]", dict(one)) for i, one in enumerate(features)]
        return collate(rows, getattr(self.tokenizer, "pad_token_id", None) or 0)
