"""Tracer: a model that keeps what goes on inside while it reads; and ``model.trace``."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import backend as backends
from .. import equations as eq
from ..cache import MambaCache
from ..errors import InputError
from ..generation import GenerationMixin
from ..inputs import as_array, check_logits_to_keep
from ..outputs import MambaCausalLMOutput
from .labels import texts_of, tokenizer_of
from .record import Record, observer
from .request import DEFAULT, LIMIT, Request
from .result import Trace


class Tracer(GenerationMixin):
    """Stands for a MambaForCausalLM, and traces the one text that it reads; see ``model.tracer``.

    Calls, ``generate`` and ``stream`` have the model's arguments and give the very numbers that
    the model gives. Each call adds its tokens to the trace: first a prompt, then one token after
    the other. The last token of a generated text is chosen but never read, so it is not there.
    """

    def __init__(self, model: Any, request: Request, tokenizer: Any = None):
        self.model, self.request, self.tokenizer = model, request, tokenizer
        self._ids: list[NDArray] = []
        self._records: list[dict[str, NDArray]] = []

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    @property
    def generation_config(self) -> Any:
        """The model's defaults for ``generate``."""
        return self.model.generation_config

    def find_non_finite(self) -> str | None:
        """Return the name of the model's first parameter that holds NaN or infinity, if any."""
        return self.model.find_non_finite()

    def __len__(self) -> int:
        return sum(map(len, self._ids))

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        inputs_embeds: Any = None,
        cache_params: MambaCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: Any = 0,
    ) -> MambaCausalLMOutput:
        """Do what the model does with the next ids (1, L) of the text, and add them to the trace.

        After the first call ``cache_params`` has to be what the call before returned. Raises
        InputError for a batch, a mask that hides tokens, embeddings and hidden states (capture
        "residual"), or where the trace would exceed its limit; CacheError as the model does.
        """
        for name, value in (
            ("inputs_embeds", inputs_embeds), ("output_hidden_states", output_hidden_states),
        ):  # fmt: skip
            if value is not None and value is not False:
                raise InputError(f"{name}: expected none in a trace, which is of ids; found some")
        ids = one_text(input_ids)
        if attention_mask is not None and not as_array("attention_mask", attention_mask).all():
            raise InputError(
                "attention_mask: expected no masked token in a trace, found some; leave them out"
            )
        if self._ids and cache_params is None:
            raise InputError(
                f"cache_params: expected the state after the {len(self)} tokens traced so far, "
                "found None; a tracer follows one text, so make another one for another text"
            )
        keep = check_logits_to_keep(logits_to_keep, ids.shape[1])
        last = -keep.start if isinstance(keep, slice) and keep.start else None
        hidden, cache = self.read(ids, cache_params, use_cache, last)
        logits = self.model._score(hidden[:, keep])
        return self.model._returned(MambaCausalLMOutput(None, logits, cache), return_dict)

    def read(
        self, ids: NDArray, cache: MambaCache | None, use_cache: bool | None, last: int | None
    ) -> tuple[NDArray, MambaCache | None]:
        """Read ids (1, L) and add them to the trace; return the hidden states (1, l, D) and cache.

        Of the hidden states only the ``last`` so many are promised, if not None.
        """
        model, before = self.model, len(self)
        backbone = model.backbone
        batch = backbone._check(ids, None, None, cache)
        length = batch.shape[1]
        self.request.check_size(before + length)
        record = Record(self.request, length, before)
        backend = backends.resolve(model.backend, model.config, model.compute_dtype)
        scored = "logits" in self.request.capture
        (hidden,), cache = backbone._advance(
            batch, cache, use_cache, False, None if scored else last, observer(backend, record)
        )
        if scored:
            record.arrays["logits"] = model._score(hidden)[0]
        self._ids.append(batch.ids[0])
        self._records.append(record.arrays)
        return hidden, cache

    # --- what it has seen -------------------------------------------------------------------------

    @property
    def trace(self) -> Trace:
        """The trace of all that was read so far; raises InputError if that is nothing."""
        return self._trace(0)

    @property
    def last(self) -> Trace:
        """The trace of the latest call alone: while a text is generated, of its latest token."""
        return self._trace(len(self._ids) - 1)

    def _trace(self, first: int) -> Trace:
        if not self._ids:
            raise InputError("trace: expected a tracer that has read something, found a new one")
        ids, request = np.concatenate(self._ids[first:]), self.request
        tokens, labels = texts_of(ids, self.tokenizer)
        records = self._records[first:]
        arrays = {
            name: _joined([record[name] for record in records], axis=0 if name == "logits" else 1)
            for name in request.capture
        }
        if request.constants:
            layers = [self.model.params.layers[layer] for layer in request.layers]
            A = [eq.continuous_A(layer.A_log[request.channels]) for layer in layers]
            arrays["A"] = np.array(A, request.dtype)
            arrays["D"] = np.array([layer.D[request.channels] for layer in layers], request.dtype)
        return Trace(
            ids, tokens, labels, request.layers.copy(), request.channels.copy(), request.every,
            sum(map(len, self._ids[:first])), self.model.fingerprint, self.config.discretisation,
            **arrays,
        )  # fmt: skip


def _joined(parts: list[NDArray], axis: int) -> NDArray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)


class TracingMixin:
    """Gives a causal language model ``trace`` and ``tracer``."""

    def trace(
        self,
        text_or_ids: Any,
        layers: Any = None,
        channels: Any = None,
        capture: Any = DEFAULT,
        *,
        every: int = 1,
        tokenizer: Any = None,
        cache_params: MambaCache | None = None,
        limit: int = LIMIT,
    ) -> Trace:
        """Read one text and return what goes on inside: see ``Trace`` for the arrays.

        ``text_or_ids`` is a text, or ids (L) or (1, L) without padding. ``layers`` and
        ``channels`` are lists of indices, or None for all of them. ``capture`` names the
        quantities to keep: delta, B, C, x, z, y, h, residual, residual_norm, logits, and
        delta_mean and delta_geometric_mean, one number per token and layer. Of the states h those
        after each ``every`` tokens are kept. ``tokenizer`` makes ids of text, and labels; without
        it, that of the folder or repository that the model was loaded from, if it is on this
        machine. ``cache_params`` holds what was read before, and is advanced in place.

        Looking changes nothing: logits are those of the model's own call, to the bit. What is not
        captured is computed a chunk of tokens at a time and forgotten.

        Raises InputError naming the argument: also where the trace would have more than ``limit``
        bytes (``Trace.estimate``), before anything is computed; CacheError as a call does.
        """
        tracer = self.tracer(
            layers, channels, capture, every=every, tokenizer=tokenizer, limit=limit
        )
        if isinstance(text_or_ids, str):
            text_or_ids = _ids_of(text_or_ids, tracer.tokenizer)
        tracer.read(one_text(text_or_ids), cache_params, cache_params is not None, 1)
        return tracer.trace

    def tracer(
        self,
        layers: Any = None,
        channels: Any = None,
        capture: Any = DEFAULT,
        *,
        every: int = 1,
        tokenizer: Any = None,
        limit: int = LIMIT,
    ) -> Tracer:
        """Return a Tracer, to trace a text that comes in parts, or while it is generated.

        Call it, or its ``generate`` or ``stream``, as you would the model; its ``trace`` is then
        the trace of all that was read. Arguments and errors are those of ``trace``.
        """
        tokenizer = tokenizer_of(self) if tokenizer is None else tokenizer
        request = Request.of(self, layers, channels, capture, every, limit, tokenizer is not None)
        return Tracer(self, request, tokenizer)


# --- text -----------------------------------------------------------------------------------------


def one_text(ids: Any) -> NDArray:  # (L) or (1 L) -> (1 L)
    """Return the ids of one text as a row; raises InputError for a batch."""
    ids = as_array("input_ids", ids)
    if ids.ndim == 2 and len(ids) > 1:
        raise InputError(
            f"input_ids: expected one text, found a batch of {len(ids)}; trace each by itself, "
            "without its padding"
        )
    return ids[None] if ids.ndim == 1 else ids


def _ids_of(text: str, tokenizer: Any) -> Any:
    if tokenizer is None:
        raise InputError(
            "text_or_ids: expected ids, or a tokenizer for the text, found neither; pass tokenizer="
        )
    return tokenizer(text)["input_ids"]
