"""The model classes, with transformers' names, arguments and outputs.

They check what comes in, pack what is masked, carry the cache and leave the arithmetic to a
backend. The steps themselves are in ``reference``.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from . import backend as backends
from .cache import MambaCache, check_cache
from .checks import integer
from .config import MambaConfig
from .errors import InputError
from .generation import GenerationConfig, GenerationMixin
from .hub import GENERATION_FILES
from .init import init_layer
from .inputs import Batch, check_batch, check_embeddings, check_labels, check_logits_to_keep
from .interventions import InterveneMixin, Intervention
from .outputs import MambaCausalLMOutput, MambaOutput
from .params import Layer, compute_dtype
from .pretrained import PretrainedModel, require_config
from .reference import IGNORED_LABEL
from .trace import TracingMixin


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
        require_config(config)
        last = config.num_hidden_layers - 1
        self.layer_idx = integer("layer_idx", layer_idx, low=0, high=last, error=InputError)
        self.config = config
        self.layer = init_layer(config, rng) if layer is None else layer
        dtype = compute_dtype(self.layer.in_proj.dtype)
        self.backend = backends.resolve(backend, config, dtype)

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
        x = check_embeddings("hidden_states", hidden_states, self.config.hidden_size, dtype)
        batch = check_batch(
            self.config, dtype, None, x, attention_mask, has_past=cache_params is not None
        )
        rows = batch.shape[0]
        cache = MambaCache(self.config, rows, dtype) if cache_params is None else cache_params
        check_cache(cache, self.config, rows, dtype)
        step = getattr(backends.get(self.backend), self.step)
        state = cache.read()[self.layer_idx]
        y, state = step(batch.pack(x), self.layer, self.config, state, batch.lengths)
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

    _intervention: Intervention | None = None

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
    ) -> MambaOutput:
        """Run the blocks over a piece of a sequence, of any length, from a cache or from nothing.

        Exactly one of ``input_ids`` (B, L) and ``inputs_embeds`` (B, L, D) is needed.
        ``attention_mask`` (B, L) has 0 where a token is to be treated as absent; outputs there
        are zero. ``cache_params`` holds what was read before: it is advanced in place and
        returned, unless ``use_cache=False``, when it is read and left alone.
        ``cache_position`` is accepted for compatibility and not needed. ``return_dict=False``
        returns the output's tuple.

        Raises InputError or CacheError; the cache is then as it was.
        """
        batch = self._check(input_ids, inputs_embeds, attention_mask, cache_params)
        keep_all = _or_default(output_hidden_states, self.config.output_hidden_states)
        hidden, cache = self._advance(batch, cache_params, use_cache, keep_all)
        hidden = [batch.unpack(np.asarray(h)) for h in hidden]
        output = MambaOutput(hidden[-1], cache, tuple(hidden) if keep_all else None)
        return self._returned(output, return_dict)

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
        self,
        batch: Batch,
        cache: MambaCache | None,
        use_cache: bool | None,
        keep_all: bool,
        last: int | None = None,
        observer: Any = None,
    ) -> tuple[list[NDArray], MambaCache | None]:
        """Return the packed hidden states, all of them or the last, and the cache if wanted.

        If only the ``last`` so many positions are wanted, the result may begin later than the
        batch, and memory does not grow with its length. ``observer`` runs the blocks of one text
        in the engine's place (see ``trace``).
        """
        rows, given = batch.shape[0], cache is not None
        cache = self.new_cache(rows) if cache is None else cache
        check_cache(cache, self.config, rows, self.compute_dtype, self.fingerprint)
        keep_cache = _or_default(use_cache, self.config.use_cache)
        if given and not keep_cache:
            cache = cache.copy()  # the caller's stays as it is
        whole = batch.ids is None or batch.lengths is not None or keep_all or last is None
        *before, final = [batch] if whole else _pieces(batch, cast(int, last))
        if before:
            work = cache.copy()  # all or nothing
            for piece in before:
                self._run(piece, work.memory, False, observer)
            hidden = self._run(final, work.memory, False, observer)
            for part, advanced in zip(cache.memory, work.memory, strict=True):
                part[:] = advanced
        else:
            seen = observer is not None or self._intervention is not None
            memory = cache.memory if seen else self._engine.memory_of(cache)
            hidden = self._run(final, memory, keep_all, observer)
        if not keep_cache:
            return hidden, None
        cache.fingerprint = self.fingerprint
        return hidden, cache

    def _run(
        self, batch: Batch, memory: tuple[NDArray, NDArray], keep_all: bool, observer: Any
    ) -> list[NDArray]:
        if batch.ids is None:
            x = batch.pack(cast(NDArray, batch.embeddings))
        else:
            ids = batch.pack(batch.ids)
            x = self._engine.embed(ids, self.params.embeddings, self.compute_dtype)
        if self._intervention is not None:
            if observer is not None:
                raise InputError("trace: expected no intervention at the same time, found one")
            changed = self._intervention.run
            x = np.asarray(x)  # an engine may have left the looking up for later
            return changed(x, self.params, self.config, memory, batch.lengths, keep_all)
        if observer is not None:
            return observer.run(x, self.params, self.config, memory)
        return self._engine.run(x, self.params, self.config, memory, batch.lengths, keep_all)


PIECE = 4096
"""Positions of all texts together whose outputs are computed, and forgotten, at once."""


def _pieces(batch: Batch, last: int) -> Iterator[Batch]:
    """Yield a batch of ids in pieces, of which the final one holds the ``last`` positions."""
    ids, (rows, L) = cast(NDArray, batch.ids), batch.shape
    length = max(1, PIECE // max(1, rows))
    start = 0
    while L - start > length + last:
        yield batch._replace(shape=(rows, length), ids=ids[:, start : start + length])
        start += length
    yield batch._replace(shape=(rows, L - start), ids=ids[:, start:])


class MambaForCausalLM(PretrainedModel, GenerationMixin, TracingMixin, InterveneMixin):
    """A language model: MambaModel with a head that scores every next token."""

    has_head = True
    _shared: MambaModel | None = None  # the latest backbone, made anew when parameters are

    def __init__(self, config: MambaConfig, **options: Any):
        super().__init__(config, **options)
        self.generation_config = GenerationConfig.from_model_config(config)

    @property
    def backbone(self) -> MambaModel:
        """The model without its head; the two share their parameters."""
        now = self._shared
        same = now is not None and now.params is self.params and now.config is self.config
        if now is None or not same or now.backend != self.backend:
            now = MambaModel(self.config, params=self.params, backend=self.backend)
            now._fingerprint = self.fingerprint
            self._shared = now
        return now

    @property
    def lm_head(self) -> NDArray:
        """The matrix (V, D) of the head: the embeddings themselves where they are tied."""
        return cast(NDArray, self.params.lm_head)

    def _after_loading(self, folder: str | os.PathLike[str]) -> None:
        if os.path.lexists(Path(folder) / GENERATION_FILES[0]):  # if not, config.json has the ids
            self.generation_config = GenerationConfig.from_pretrained(folder)

    def _json_files(self) -> dict[str, dict[str, Any]]:
        return {**super()._json_files(), GENERATION_FILES[0]: self.generation_config.to_dict()}

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
    ) -> MambaCausalLMOutput:
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
        keep_all = _or_default(output_hidden_states, self.config.output_hidden_states)
        last = -keep.start if labels is None and isinstance(keep, slice) and keep.start else None
        hidden, cache = backbone._advance(batch, cache_params, use_cache, keep_all, last)
        loss = None
        if labels is None:
            logits = self._score(batch.unpack(hidden[-1])[:, keep])
        else:  # the loss needs every position; labels shift past masked positions
            logits = self._score(hidden[-1])
            loss = self._engine.cross_entropy(logits, batch.pack(labels, IGNORED_LABEL))
            logits = batch.unpack(logits)[:, keep]
        states = tuple(batch.unpack(h) for h in hidden) if keep_all else None
        result = MambaCausalLMOutput(loss, logits, cache, states)
        return self._returned(result, return_dict)

    forward = __call__

    def _writer(
        self, cache: MambaCache, token: int, most: int, temperature: float = 0.0, seed: int = 0
    ) -> Any:
        """Return an iterator of the tokens after ``token``, at most so many.

        Temperature 0 takes the best ones, else they are drawn by the seed. It yields (id, None), or
        (id, scores (1, V)) where the highest score is not finite, and advances the cache. None for
        an engine that chooses no tokens itself.
        """
        make = getattr(self._engine, "writer", None)
        if make is None or self.backbone._intervention is not None:
            return None
        return make(self.params, self.config, cache, token, most, (temperature, seed))

    def _score(self, hidden: NDArray) -> NDArray:  # (B L D) -> (B L V)
        return self._engine.head(hidden, self.lm_head)


def _or_default(argument: bool | None, default: bool) -> bool:
    return default if argument is None else argument
