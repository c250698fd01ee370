"""The NumPy engine, observed: ``reference`` computes each step, and a record keeps what is wanted.

The loops are those of ``reference.run`` and ``reference.block``, with every step in sight.
"""

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from .. import reference
from ..config import MambaConfig
from ..params import Layer, Params
from ..reference import CHUNK, State, Steps
from .record import Record


class Reading:
    """Runs a model of any kind and keeps a record of it; one text at a time."""

    def __init__(self, record: Record):
        self.record = record
        self.channels = record.request.channels

    def run(
        self, x: NDArray, params: Params, config: MambaConfig, memory: tuple[NDArray, NDArray]
    ) -> list[NDArray]:
        """Do what ``reference.run`` does: (1 L D) -> [(1 L D)]; ``memory`` is advanced."""
        conv, ssm = memory
        pairs = zip(conv.swapaxes(2, 3), ssm.swapaxes(2, 3), strict=True)
        states = [State(*pair) for pair in pairs]
        hidden = np.empty_like(x)
        for start in range(0, x.shape[1], CHUNK):
            piece = x[:, start : start + CHUNK]
            self.record.begin(piece.shape[1])
            for i, layer in enumerate(params.layers):
                piece, states[i] = self._block(i, piece, layer, config, states[i])
                self.record.put_residual(i, piece[0])
            normed = reference.rms_norm(piece, params.norm_f, config.layer_norm_epsilon)
            hidden[:, start : start + CHUNK] = normed
        for i, (window, h) in enumerate(states):
            conv[i], ssm[i] = window.swapaxes(1, 2), h.swapaxes(1, 2)
        return [hidden]

    def _block(self, i: int, x: NDArray, layer: Layer, config: MambaConfig, state: State):
        """(1 L D) -> (1 L D), State."""
        u = reference.rms_norm(x, layer.norm, config.layer_norm_epsilon)
        steps, after = reference.mixer_steps(u, layer, config, state)
        if i in self.record.rows:
            self._keep(i, steps)
            if self.record.wants("h"):
                self._keep_states(i, steps, layer, config, state)
        return x + reference.linear(steps.gated, layer.out_proj, layer.out_proj_bias), after

    def _keep(self, i: int, steps: Steps) -> None:
        delta, B, C, *_ = steps.selected
        for name, values in (("B", B), ("C", C)):
            self.record.put(name, i, values[0])
        for name, values in (("delta", delta), ("x", steps.x), ("z", steps.z), ("y", steps.y)):
            if self.record.wants(name):
                self.record.put(name, i, values[0][:, self.channels])
        if self.record.wants("delta_mean", "delta_geometric_mean"):
            self.record.put_means(i, delta[0][:, self.channels])

    def _keep_states(self, i, steps: Steps, layer: Layer, config: MambaConfig, state: State):
        """Run the scan once more, in the same blocks, and keep the states that it makes."""
        to, scan = self.record.states(i), reference.scan_of(config)
        wanted, done = self.record.kept(), 0

        def keeping(A_bar, drive, h):  # (1 L E N), (1 L E N), (1 E N) -> (1 L E N)
            nonlocal done
            states = scan(A_bar, drive, h)
            here = (wanted >= done) & (wanted < done + states.shape[1])
            to[here] = states[0, wanted[here] - done][:, self.channels]
            done += states.shape[1]
            return states

        delta, B, C, *_ = steps.selected
        A, discretise = eq.continuous_A(layer.A_log), eq.DISCRETISATIONS[config.discretisation]
        reference.selective_scan(
            steps.x, delta, A, B, C, state.h, discretise=discretise, scan=keeping
        )
