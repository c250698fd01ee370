"""The model classes, with transformers' names, arguments and outputs.

They check what comes in, pack what is masked, carry the cache and leave the arithmetic to a
backend. The steps themselves are in ``reference``.
"""

import contextlib
import os
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from . import backend as backends
from .cache import MambaCache
from .config import MambaConfig
from .errors import FileMissingError
from .generation import GenerationConfig, GenerationMixin
from .init import init_layer
from .inputs import Batch, check_batch, check_labels, check_logits_to_keep
from .outputs import MambaCausalLMOutput, MambaOutput
from .params import Layer, compute_dtype
from .pretrained import PretrainedModel
from .reference import IGNORED_LABEL, State

PREFILL_CHUNK = 512
"""Tokens that go through all blocks together: bounds memory, changes results by rounding only."""


class _OneLayer:
    """A part of the model that can be called by itself: a mixer or a block.

    ``layer`` holds its parameters; without it they are drawn from ``rng`` (see ``init``).
    """

    step = ""  # the backend's function

    def __init__(
        self,
        config: MambaConfig,
        layer_idx: int = 0,
        layer: Layer | None = None,
        *,
        rng: np.random.Generator | int | None = None,
        backend: str = "auto",
    ):
        self.config, self.layer_idx = config, layer_idx
        self.layer = init_layer(config, rng) if layer is None else layer
        self.backend = backends.resolve(backend)

    def __call__(
        self,
        hidden_states: NDArray,
        cache_params: MambaCache | None = None,
        cache_position: Any = None,
        attention_mask: Any = None,
    ) -> NDArray:
        """Return the output (B, L, D) for hidden states (B, L, D).

        ``cache_params`` is a cache of the whole model: the states of this layer are read and
        advanced. ``cache_position`` is accepted for compatibility and not needed. Raises
        InputError or CacheError.
        """
        dtype = compute_dtype(self.layer.in_proj.dtype)
        has_past = cache_params is not None
        batch = check_batch(
            self.config, dtype, None, hidden_states, attention_mask, has_past=has_past
        )
        rows = batch.shape[0]
        cache = MambaCache(self.config, rows, dtype) if cache_params is None else cache_params
        cache.check(self.config, rows, dtype)
        step = getattr(backends.get(self.backend), self.step)
        x, state = batch.pack(cast(NDArray, batch.embeddings)), cache.read()[self.layer_idx]
        y, state = step(x, self.layer, self.config, state, batch.lengths)
        cache.write([state], first=self.layer_idx)
        return batch.unpack(y)

    forward = __call__


class MambaMixer(_OneLayer):
    """The heart of a block: everything between the norm and the residual addition."""

    step = "mixer"


class MambaBlock(_OneLayer):
    """One of the model's layers: norm, mixer, residual addition."""

    step = "block"

    @property
    def mixer(self) -> MambaMixer:
        """The mixer inside this block."""
        return MambaMixer(self.config, self.layer_idx, self.layer, backend=self.backend)


class MambaModel(PretrainedModel):
    """The stack of blocks: ids in, hidden states out."""

    @property
    def layers(self) -> tuple[MambaBlock, ...]:
        """The blocks, each of which can be called by itself."""
        pairs = enumerate(self.params.layers)
        return tuple(MambaBlock(self.config, i, layer, backend=self.backend) for i, layer in pairs)

    @property
    def embeddings(self) -> NDArray:
        """The embedding matrix (V, D)."""
        return self.params.embeddings

    @property
    def norm_f(self) -> NDArray:
        """The scale of the last norm (D)."""
        return self.params.norm_f

    def __call__(
        self,
        input_ids: Any = None,
        inputs_embeds: Any = None,
        cache_params: MambaCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Any = None,
        attention_mask: Any = None,
    ) -> MambaOutput | tuple[Any, ...]:
        """Run the blocks over a piece of a sequence, of any length, from a cache or from nothing.

        Exactly one of ``input_ids`` (B, L) and ``inputs_embeds`` (B, L, D) is needed.
        ``attention_mask`` (B, L) has 0 where a token is to be treated as absent; outputs there
        are zero. ``cache_params`` holds what was read before: it is advanced in place and
        returned, unless ``use_cache=False``, when it is read and left alone.
        ``cache_position`` is accepted for compatibility and not needed.

        Raises InputError or CacheError; the cache is then as it was.
        """
        batch = self._check(input_ids, inputs_embeds, attention_mask, cache_params)
        every = _given(output_hidden_states, self.config.output_hidden_states)
        hidden, cache = self._advance(batch, cache_params, use_cache, every)
        hidden = [batch.unpack(h) for h in hidden]
        output = MambaOutput(hidden[-1], cache, tuple(hidden) if every else None)
        return output if _given(return_dict, self.config.return_dict) else output.to_tuple()

    forward = __call__

    def _check(self, input_ids: Any, inputs_embeds: Any, mask: Any, cache: Any) -> Batch:
        return check_batch(
            self.config,
            self.compute_dtype,
            input_ids,
            inputs_embeds,
            mask,
            has_past=cache is not None,
        )

    def _advance(
        self, batch: Batch, cache: MambaCache | None, use_cache: bool | None, every: bool
    ) -> tuple[list[NDArray], MambaCache | None]:
        """Return the packed hidden states, all of them or the last, and the cache if wanted."""
        rows = batch.shape[0]
        cache = self.new_cache(rows) if cache is None else cache
        cache.check(self.config, rows, self.compute_dtype, self.fingerprint)
        if batch.ids is None:
            x = batch.pack(cast(NDArray, batch.embeddings))
        else:
            ids = batch.pack(batch.ids)
            x = self._engine.embed(ids, self.params.embeddings, self.compute_dtype)
        hidden, states = self._run(x, cache.read(), batch.lengths, every)
        if not _given(use_cache, self.config.use_cache):
            return hidden, None
        cache.write(states)
        cache.fingerprint = self.fingerprint
        return hidden, cache

    def _run(
        self, x: NDArray, states: list[State], lengths: NDArray | None, every: bool
    ) -> tuple[list[NDArray], list[State]]:
        """Run x (B, L, D) through all blocks, a chunk of tokens at a time."""
        hidden = [np.empty_like(x) for _ in range(len(states) + 1 if every else 1)]
        for start in range(0, x.shape[1], PREFILL_CHUNK):
            now = slice(start, start + PREFILL_CHUNK)
            piece = x[:, now]
            ends = None if lengths is None else np.clip(lengths - start, 0, piece.shape[1])
            for i, layer in enumerate(self.params.layers):
                piece, states[i] = self._engine.block(piece, layer, self.config, states[i], ends)
                if every:
                    hidden[i][:, now] = piece
            eps = self.config.layer_norm_epsilon
            hidden[-1][:, now] = self._engine.rms_norm(piece, self.params.norm_f, eps)
        return hidden, states


class MambaForCausalLM(PretrainedModel, GenerationMixin):
    """A language model: MambaModel with a head that scores every next token."""

    has_head = True

    def __init__(self, config: MambaConfig, **options: Any):
        super().__init__(config, **options)
        self.generation_config = GenerationConfig.from_model_config(config)

    @property
    def backbone(self) -> MambaModel:
        """The model without its head; the two share their parameters."""
        backbone = MambaModel(self.config, params=self.params, backend=self.backend)
        backbone._fingerprint = self.fingerprint
        return backbone

    @property
    def lm_head(self) -> NDArray:
        """The matrix (V, D) of the head: the embeddings themselves where they are tied."""
        return cast(NDArray, self.params.lm_head)

    def _after_loading(self, folder: str | os.PathLike[str]) -> None:
        with contextlib.suppress(FileMissingError):  # optional: the configuration has the ids too
            self.generation_config = GenerationConfig.from_pretrained(folder)

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, max_shard_size: int | str = "5GB"
    ) -> None:
        """Write the model as ``PretrainedModel.save_pretrained``, and generation_config.json."""
        super().save_pretrained(folder, max_shard_size=max_shard_size)
        self.generation_config.save_pretrained(folder)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        inputs_embeds: Any = None,
        cache_params: MambaCache | None = None,
        labels: Any = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        use_cache: bool | None = None,
        cache_position: Any = None,
        logits_to_keep: Any = 0,
    ) -> MambaCausalLMOutput | tuple[Any, ...]:
        """Score every next token: logits (B, L, V), in float32 or the model's float64.

        ``labels`` (B, L), usually the ids themselves, are shifted inside: the loss is the mean
        cross entropy in nats of each next label, without those that are -100 and without masked
        positions. ``logits_to_keep=k`` returns the logits of the last k positions alone, an array
        of positions those. The other arguments are MambaModel's.

        Raises InputError or CacheError; the cache is then as it was.
        """
        backbone = self.backbone
        batch = backbone._check(input_ids, inputs_embeds, attention_mask, cache_params)
        keep = check_logits_to_keep(logits_to_keep, batch.shape[1])
        if labels is not None:
            labels = check_labels(labels, batch.shape, self.config.vocab_size)
        every = _given(output_hidden_states, self.config.output_hidden_states)
        hidden, cache = backbone._advance(batch, cache_params, use_cache, every)
        result = MambaCausalLMOutput(cache_params=cache)
        if labels is None:
            result.logits = self._score(batch.unpack(hidden[-1])[:, keep])
        else:  # the loss needs every position; labels shift past masked positions
            logits = self._score(hidden[-1])
            result.loss = self._engine.cross_entropy(logits, batch.pack(labels, IGNORED_LABEL))
            result.logits = batch.unpack(logits)[:, keep]
        if every:
            result.hidden_states = tuple(batch.unpack(h) for h in hidden)
        return result if _given(return_dict, self.config.return_dict) else result.to_tuple()

    forward = __call__

    def _score(self, hidden: NDArray) -> NDArray:  # (B L D) -> (B L V)
        return self._engine.head(hidden, self.lm_head)


def _given(argument: bool | None, default: bool) -> bool:
    return default if argument is None else argument
