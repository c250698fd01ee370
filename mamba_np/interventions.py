"""What if? A model that reads with some of its inner quantities changed: ``model.intervene``.

    with model.intervene(ScaleDelta(0.5, layers=[3]), CutPath(source=4)):
        print(model(ids).logits)

Positions count from the beginning of each text; layers, channels and tokens are lists, slices or
single numbers, and None means all. Changed blocks are computed by the NumPy reference. A change
that changes nothing (a factor of 1, no channels, ...) is left out, and if none is left the model
computes as it always does, to the bit.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import equations as eq
from . import reference
from .cache import MambaCache
from .checks import integer, number, shown
from .config import MambaConfig
from .errors import InputError
from .int8 import refuse
from .params import Layer, Params
from .reference import State


@dataclass(frozen=True, kw_only=True)
class Change:
    """What every change has: where it acts."""

    layers: Any = None
    channels: Any = None

    def neutral(self) -> bool:
        """Whether it changes nothing whatever the text."""
        return False


@dataclass(frozen=True, kw_only=True)
class DeltaChange(Change):
    """A change of step sizes, at some ``tokens``."""

    tokens: Any = None

    def of(self, delta: NDArray, layer: Layer, channels: NDArray) -> NDArray:
        """Return what some step sizes (B, l, c) become."""
        raise NotImplementedError


@dataclass(frozen=True)
class ScaleDelta(DeltaChange):
    """Multiply step sizes: above 1 a token writes more and the state forgets faster."""

    factor: float

    def neutral(self) -> bool:
        """Whether the factor is 1."""
        return self.factor == 1

    def of(self, delta: NDArray, layer: Layer, channels: NDArray) -> NDArray:
        """Return the scaled step sizes."""
        return delta * delta.dtype.type(self.factor)


@dataclass(frozen=True)
class ClampDelta(DeltaChange):
    """Keep step sizes between two bounds."""

    low: float = 0.0
    high: float = np.inf

    def neutral(self) -> bool:
        """Whether no step size is outside."""
        return self.low <= 0 and self.high == np.inf

    def of(self, delta: NDArray, layer: Layer, channels: NDArray) -> NDArray:
        """Return the bounded step sizes."""
        return np.clip(delta, self.low, self.high)


@dataclass(frozen=True)
class FreezeDelta(DeltaChange):
    """Give each channel the same step size at every token: ``value``, a number or one for each
    chosen channel; None: what its bias alone makes, softplus(dt_bias), as if no input were seen.
    """

    value: Any = None

    def of(self, delta: NDArray, layer: Layer, channels: NDArray) -> NDArray:
        """Return the frozen step sizes."""
        steady = eq.softplus(layer.dt_bias[channels]) if self.value is None else self.value
        return np.broadcast_to(np.asarray(steady, delta.dtype), delta.shape)


@dataclass(frozen=True)
class CutPath(Change):
    """Hide from later tokens, ``target`` or all of them, what token ``source`` wrote to the state.

    Its way through the convolution and the residual stays (after arXiv:2404.03646).
    """

    source: int
    target: Any = None


@dataclass(frozen=True)
class SetState(Change):
    """Before token ``at`` is read, put something else in the place of the state h.

    ``state`` is 0, an array (E, N) or (layers, E, N), or the MambaCache of another text, for a
    swap; of a cache the convolution's window is taken, too, unless ``window`` is false.
    """

    state: Any
    at: int
    window: bool = True


@dataclass(frozen=True)
class Ablate(Change):
    """Take the ``channels`` out of what a mixer gives at some ``tokens``; all: the whole mixer."""

    tokens: Any = None


# --- where a change acts -------------------------------------------------------------------------


def places(name: str, chosen: Any, count: int) -> NDArray:
    """Return the indices that a choice means, of ``count``; raises InputError naming it."""
    if chosen is None or isinstance(chosen, slice):
        return np.arange(count)[chosen or slice(None)]
    listed: Any = [chosen] if isinstance(chosen, (int, np.integer)) else chosen
    if not isinstance(listed, (list, tuple, range, np.ndarray)) or np.ndim(listed) != 1:
        raise InputError(f"{name}: expected indices, a slice or None, found {shown(chosen)}")
    low, high = -count, count - 1
    found = [integer(name, i, low=low, high=high, error=InputError) % count for i in listed]
    return np.array(found, np.int64)


def chosen_tokens(chosen: Any, first: int, length: int) -> NDArray:
    """Return which of ``length`` tokens, of which the first is number ``first``, are chosen."""
    if chosen is None:
        return np.arange(length)
    if isinstance(chosen, slice):
        low, high, step = chosen.indices(first + length)
        numbers: Any = range(low, high, step)
    else:
        numbers = [chosen] if isinstance(chosen, (int, np.integer)) else chosen
    found = [n - first for n in numbers if first <= n < first + length]
    return np.array(found, np.int64)


# --- the changed model ---------------------------------------------------------------------------


class Intervention:
    """Runs blocks with changes, and knows how far the present text was read."""

    def __init__(self, changes: tuple[Change, ...], config: MambaConfig):
        self.changes = [c for c in changes if not c.neutral()]
        n, E = config.num_hidden_layers, config.intermediate_size
        self.layers = [places("layers", c.layers, n) for c in self.changes]
        self.channels = [places("channels", c.channels, E) for c in self.changes]
        some = zip(self.changes, self.layers, self.channels, strict=True)
        kept = [i for i, (_, where, e) in enumerate(some) if len(where) and len(e)]
        for name in ("changes", "layers", "channels"):
            setattr(self, name, [getattr(self, name)[i] for i in kept])
        self.read = 0
        self.paths: dict[tuple[int, int], NDArray] = {}

    def run(
        self,
        x: NDArray,
        params: Params,
        config: MambaConfig,
        memory: Any,
        lengths: Any,
        keep_all: bool,
    ) -> list[NDArray]:
        """Do what ``reference.run`` does, with the changes. Raises InputError for padding."""
        if lengths is not None:
            raise InputError("attention_mask: expected texts of one length for interventions")
        conv, ssm = memory
        if not ssm.any() and not conv.any():  # a new text
            self.read = 0
            self.paths.clear()
        states = [
            State(*pair) for pair in zip(conv.swapaxes(2, 3), ssm.swapaxes(2, 3), strict=True)
        ]
        hidden: list[list[NDArray]] = [[] for _ in range(len(states) + 1)]
        for start, stop in self._pieces(x.shape[1]):
            self._set_states(states, len(x))
            piece = x[:, start:stop]
            for i, layer in enumerate(params.layers):
                piece, states[i] = self._block(piece, i, layer, config, states[i])
                hidden[i].append(piece)
            hidden[-1].append(reference.rms_norm(piece, params.norm_f, config.layer_norm_epsilon))
            self.read += stop - start
        for i, (window, h) in enumerate(states):
            conv[i], ssm[i] = window.swapaxes(1, 2), h.swapaxes(1, 2)
        return [np.concatenate(parts, axis=1) for parts in (hidden if keep_all else hidden[-1:])]

    def _pieces(self, length: int) -> Iterator[tuple[int, int]]:
        """Cut where a state is set, and after a number of tokens that bounds the memory."""
        sets = {c.at - self.read for c in self.changes if isinstance(c, SetState)}
        cuts = {*range(0, length, reference.CHUNK), *(at for at in sets if 0 < at < length)}
        ends = [*sorted(cuts), length]
        yield from itertools.pairwise(ends)

    def _set_states(self, states: list[State], rows: int) -> None:
        for change, layers, channels in zip(self.changes, self.layers, self.channels, strict=True):
            if not isinstance(change, SetState) or change.at != self.read:
                continue
            for i in layers:
                window, h = (part.copy() for part in states[i])
                new_window, new_h = _parts_of(change, i, h.shape, rows)
                h[:, channels] = new_h[..., channels, :]
                if new_window is not None:
                    window[:, channels] = new_window[..., channels, :]
                states[i] = State(window, h)

    def _block(self, x: NDArray, i: int, layer: Layer, config: MambaConfig, state: State):
        some = zip(self.changes, self.layers, self.channels, strict=True)
        mine = [(j, c, e) for j, (c, where, e) in enumerate(some) if i in where]
        mine = [one for one in mine if not isinstance(one[1], SetState)]
        if not mine:
            return reference.block(x, layer, config, state)
        u = reference.rms_norm(x, layer.norm, config.layer_norm_epsilon)
        s, after = reference.mixer_steps(u, layer, config, state)
        delta, y, h = self._scan(mine, s, layer, config, state, after)
        for j, change, channels in mine:
            if isinstance(change, CutPath):
                y = y - self._path((j, i), change, channels, s, delta, layer, config)
        gated = eq.output(y, s.x, layer.D, s.z)
        out = self._given(mine, gated, layer)
        return x + out, State(after.window, h)

    def _scan(
        self, mine: Any, s: Any, layer: Layer, config: MambaConfig, state: State, after: State
    ):
        """Return (delta, y, h), anew if step sizes are changed."""
        delta = s.selected.delta
        edits = [(c, e) for _, c, e in mine if isinstance(c, DeltaChange)]
        if not edits:
            return delta, s.y, after.h
        delta = delta.copy()
        for change, channels in edits:
            tokens = chosen_tokens(change.tokens, self.read, delta.shape[1])
            where = np.ix_(np.arange(len(delta)), tokens, channels)
            delta[where] = change.of(delta[where], layer, channels)
        rule, scan = eq.DISCRETISATIONS[config.discretisation], reference.scan_of(config)
        A, (_, B, C, *_) = eq.continuous_A(layer.A_log), s.selected
        y, h = reference.selective_scan(s.x, delta, A, B, C, state.h, discretise=rule, scan=scan)
        return delta, y, h

    def _path(
        self, key: tuple[int, int], change: CutPath, channels: NDArray, s: Any, delta: NDArray,
        layer: Layer, config: MambaConfig,
    ) -> NDArray:  # fmt: skip
        """Return what the target tokens read of the source's write: (B L E)."""
        found = np.zeros_like(delta)
        A = eq.continuous_A(layer.A_log)[channels]
        _, B, C, *_ = s.selected
        for t in range(delta.shape[1]):
            now, step = self.read + t, delta[:, t, channels, None]
            A_bar, B_bar = eq.DISCRETISATIONS[config.discretisation](step, A, B[:, t, None])
            if key in self.paths and now > change.source:
                written = self.paths[key] = self.paths[key] * A_bar
                if change.target is None or len(chosen_tokens(change.target, now, 1)):
                    found[:, t, channels] = np.vecdot(written, C[:, t, None])
            elif now == change.source:
                self.paths[key] = B_bar * s.x[:, t, channels, None]
        return found

    def _given(self, mine: Any, gated: NDArray, layer: Layer) -> NDArray:  # (B L E) -> (B L D)
        """Return what out_proj makes of the gated outputs that are left."""
        whole = np.zeros(gated.shape[1], bool)
        for _, change, channels in mine:
            if isinstance(change, Ablate):
                tokens = chosen_tokens(change.tokens, self.read, gated.shape[1])
                gated[:, tokens[:, None], channels] = 0
                whole[tokens] |= len(channels) == gated.shape[2]
        out = reference.linear(gated, layer.out_proj, layer.out_proj_bias)
        out[:, whole] = 0  # its bias, too
        return out


def _parts_of(change: SetState, i: int, shape: Any, rows: int) -> tuple[NDArray | None, NDArray]:
    """Return the new window, if any, and the new state of layer i; (B or 1, E, N)."""
    state = change.state
    if isinstance(state, MambaCache):
        if state.batch_size not in (1, rows) or state.ssm_states[i].shape[1:] != shape[1:]:
            raise InputError(
                f"state: expected a cache of 1 or {rows} texts with states {shape[1:]}, found "
                f"{state.batch_size} with {state.ssm_states[i].shape[1:]}"
            )
        return (state.conv_states[i] if change.window else None), state.ssm_states[i]
    array = np.asarray(state)
    array = array[i] if array.ndim == 3 else array
    if array.dtype.kind not in "fiu" or array.shape not in ((), shape[1:]):
        raise InputError(f"state: expected 0 or an array {shape[1:]}, found {shown(state)}")
    return None, np.broadcast_to(array, shape)


class InterveneMixin:
    """Gives a causal language model ``intervene``."""

    @contextmanager
    def intervene(self, *changes: Change) -> Iterator[Any]:
        """Change what goes on inside while the block lasts; yields the model itself.

        Calls, ``generate`` and ``stream`` see the changes; texts must have one length (no
        padding). Other threads that use the same model see them, too. Raises InputError naming
        what cannot be changed, or where one intervention stands inside another.
        """
        for change in changes:
            _check(change)
        model: Any = self
        refuse(model.params, "intervene", "load the model in another dtype")
        backbone = model.backbone
        if backbone._intervention is not None:
            raise InputError("intervene: expected all changes in one call, found a second one")
        found = Intervention(changes, model.config)
        backbone._intervention = found if found.changes else None
        try:
            yield self
        finally:
            backbone._intervention = None


def _check(change: Any) -> None:
    """Raise InputError for what is no change, or has values that none can have."""
    if not isinstance(change, Change) or type(change) in (Change, DeltaChange):
        raise InputError(
            f"intervene: expected changes such as ScaleDelta(0.5), found {shown(change)}"
        )
    if isinstance(change, ScaleDelta):
        number("factor", change.factor, low=0, error=InputError)
    if isinstance(change, ClampDelta) and not 0 <= change.low <= change.high:
        raise InputError(f"low: expected 0 <= low <= high, found {change.low} and {change.high}")
    if isinstance(change, CutPath):
        integer("source", change.source, low=0, error=InputError)
    if isinstance(change, SetState):
        integer("at", change.at, low=0, error=InputError)
