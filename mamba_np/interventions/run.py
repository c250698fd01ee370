"""The blocks of a model with changes, by the reference's own functions; and ``model.intervene``."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from .. import reference
from ..checks import shown
from ..config import MambaConfig
from ..errors import InputError
from ..inputs import chosen_indices
from ..int8 import refuse
from ..params import Layer, Params
from ..reference import State, Steps
from .changes import Ablate, Change, CutPath, DeltaChange, SetState


class Placed(NamedTuple):
    """A change, and the indices of the layers and channels that it acts on."""

    change: Any
    layers: NDArray
    channels: NDArray


def chosen_tokens(chosen: Any, first: int, length: int) -> NDArray:
    """Return the places of chosen tokens among ``length``, of which the first is number ``first``.

    None means all. Raises InputError for what chooses no tokens.
    """
    if chosen is None:
        return np.arange(length)
    if isinstance(chosen, slice):
        numbers: Any = range(*chosen.indices(first + length))
    else:
        numbers = [chosen] if isinstance(chosen, (int, np.integer)) else chosen
        if not isinstance(numbers, (list, tuple, range, np.ndarray)) or np.ndim(numbers) != 1:
            raise InputError(f"tokens: expected a list of positions, found {shown(chosen)}")
    return np.array([n - first for n in numbers if first <= n < first + length], np.int64)


class Intervention:
    """Runs blocks with changes, and knows how far the present text was read."""

    def __init__(self, changes: tuple[Change, ...], config: MambaConfig):
        n, E = config.num_hidden_layers, config.intermediate_size
        placed = [
            Placed(
                c, chosen_indices("layers", c.layers, n), chosen_indices("channels", c.channels, E)
            )
            for c in changes
        ]
        self.placed = [
            p for p in placed if len(p.layers) and len(p.channels) and not p.change.neutral()
        ]
        self.read = 0
        self.written: dict[tuple[int, int], NDArray] = {}
        """Of each CutPath's place and layer, what is left of its source's write: (B, c, N)."""

    def run(
        self,
        x: NDArray,
        params: Params,
        config: MambaConfig,
        memory: tuple[NDArray, NDArray],
        lengths: NDArray | None,
        keep_all: bool,
    ) -> list[NDArray]:
        """Do what ``reference.run`` does, with the changes: (B L D) -> list of (B L D).

        A memory of zeros begins a new text. Raises InputError for padding.
        """
        if lengths is not None:
            raise InputError("attention_mask: expected texts of one length for interventions")
        conv, ssm = memory
        if not ssm.any() and not conv.any():
            self.read = 0
            self.written.clear()
        pairs = zip(conv.swapaxes(2, 3), ssm.swapaxes(2, 3), strict=True)
        states = [State(*pair) for pair in pairs]
        hidden: list[list[NDArray]] = [[] for _ in range(len(states) + 1)]
        for start, stop in self._pieces(x.shape[1]):
            self._set_states(states)
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
        sets = {c.at - self.read for c, *_ in self.placed if isinstance(c, SetState)}
        cuts = {*range(0, length, reference.CHUNK), *(at for at in sets if 0 < at < length)}
        return itertools.pairwise([*sorted(cuts), length])

    def _set_states(self, states: list[State]) -> None:
        for change, layers, channels in self.placed:
            if not isinstance(change, SetState) or change.at != self.read:
                continue
            for i in layers:
                window, h = (part.copy() for part in states[i])
                new_window, new_h = change.parts(i, h.shape)
                h[:, channels] = new_h[:, channels]
                if new_window is not None:
                    window[:, channels] = new_window[:, channels]
                states[i] = State(window, h)

    def _block(self, x: NDArray, i: int, layer: Layer, config: MambaConfig, state: State):
        """Do what ``reference.block`` does: (B L D) -> (B L D), State."""
        mine = {j: p for j, p in enumerate(self.placed) if i in p.layers}
        if all(isinstance(p.change, SetState) for p in mine.values()):
            return reference.block(x, layer, config, state)
        u = reference.rms_norm(x, layer.norm, config.layer_norm_epsilon)
        s, after = reference.mixer_steps(u, layer, config, state)
        if any(isinstance(p.change, DeltaChange) for p in mine.values()):
            s, h = self._rescanned(mine.values(), s, layer, config, state)
            after = State(after.window, h)
        y = s.y
        for j, p in mine.items():
            if isinstance(p.change, CutPath):
                y = y - self._path((j, i), p, s, layer, config)
        gated = eq.output(y, s.x, layer.D, s.z)
        return x + self._given(mine.values(), gated, layer), after

    def _rescanned(
        self, mine: Any, s: Steps, layer: Layer, config: MambaConfig, state: State
    ) -> tuple[Steps, NDArray]:
        """Return the steps of a mixer whose step sizes are changed, and the last state (B E N)."""
        delta = s.selected.delta.copy()
        for change, _, channels in mine:
            if isinstance(change, DeltaChange):
                tokens = chosen_tokens(change.tokens, self.read, delta.shape[1])
                where = np.ix_(np.arange(len(delta)), tokens, channels)
                delta[where] = change.of(delta[where], layer, channels)
        A, selected = eq.continuous_A(layer.A_log), s.selected._replace(delta=delta)
        y, h = reference.selective_scan(
            s.x, delta, A, selected.B, selected.C, state.h,
            discretise=eq.DISCRETISATIONS[config.discretisation], scan=reference.scan_of(config),
        )  # fmt: skip
        return s._replace(selected=selected, y=y), h

    def _path(
        self, key: tuple[int, int], p: Placed, s: Steps, layer: Layer, config: MambaConfig
    ) -> NDArray:
        """Return what the target tokens read of the source's write: (B L E)."""
        change, channels, found = p.change, p.channels, np.zeros_like(s.y)
        discretise = eq.DISCRETISATIONS[config.discretisation]
        A, (delta, B, C, *_) = eq.continuous_A(layer.A_log)[channels], s.selected
        targets = chosen_tokens(change.target, self.read, delta.shape[1])
        for t in range(delta.shape[1]):
            A_bar, B_bar = discretise(delta[:, t, channels, None], A, B[:, t, None])
            if self.read + t == change.source:
                self.written[key] = B_bar * s.x[:, t, channels, None]
            elif key in self.written:
                self.written[key] = self.written[key] * A_bar
                if t in targets:
                    found[:, t, channels] = np.vecdot(self.written[key], C[:, t, None])
        return found

    def _given(self, mine: Any, gated: NDArray, layer: Layer) -> NDArray:  # (B L E) -> (B L D)
        """Return what out_proj makes of the gated outputs that are left."""
        length, E = gated.shape[1:]
        whole = np.zeros(length, bool)
        for change, _, channels in mine:
            if isinstance(change, Ablate):
                tokens = chosen_tokens(change.tokens, self.read, length)
                gated[:, tokens[:, None], channels] = 0
                whole[tokens] |= len(channels) == E
        out = reference.linear(gated, layer.out_proj, layer.out_proj_bias)
        out[:, whole] = 0  # its bias, too
        return out


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
            if not isinstance(change, Change) or type(change) in (Change, DeltaChange):
                raise InputError(
                    f"intervene: expected changes such as ScaleDelta(0.5), found {shown(change)}"
                )
            change.check()
        model: Any = self
        refuse(model.params, "intervene", "load the model in another dtype")
        backbone = model.backbone
        if backbone._intervention is not None:
            raise InputError("intervene: expected all changes in one call, found a second one")
        found = Intervention(changes, model.config)
        backbone._intervention = found if found.placed else None
        try:
            yield self
        finally:
            backbone._intervention = None
