"""The operators alone, with the argument names and layouts of mamba-ssm and causal-conv1d.

Sequences are (B, E, L) here, as in those packages; they may be strided views.
Arithmetic is in float32, or float64 if the first argument is; results have its dtype. Each
function raises InputError naming the argument whose dtype or shape is wrong.
"""

import numpy as np
from numpy.typing import NDArray

from . import backend as backends
from . import backward, reference
from . import derivatives as d
from . import equations as eq
from .errors import InputError
from .inputs import as_array
from .operands import (
    checked,
    d_selected,
    dtype_of,
    of_each_channel,
    require_writeable,
    scan_arguments,
    selected,
    shape_of,
    time_major,
    vector,
)


def selective_scan(
    u: NDArray,
    delta: NDArray,
    A: NDArray,
    B: NDArray,
    C: NDArray,
    D: NDArray | None = None,
    z: NDArray | None = None,
    delta_bias: NDArray | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    initial_state: NDArray | None = None,
    backend: str | None = None,
) -> NDArray | tuple[NDArray, NDArray]:
    """Run the selective state space model over whole sequences (paper, algorithm 2).

    ``u``, ``delta`` and ``z`` are (B, E, L), ``A`` is (E, N), negative; ``B`` and ``C`` are (E, N)
    for fixed dynamics, (B, N, L), or (B, G, N, L) for G groups of E / G channels. ``D`` and
    ``delta_bias`` are (E), ``initial_state`` is (B, E, N).

    Returns y (B, E, L), or (y, last_state (B, E, N)) with ``return_last_state``.
    """
    s = scan_arguments(u, delta, A, B, C, D, z, delta_bias, initial_state)
    engine = backends.get(backends.resolve(backend, dtype=s.x.dtype))
    step = _step_size(s.raw, None, delta_softplus)
    weights = (of_each_channel(M, s.x) for M in (s.B, s.C))
    y, h = engine.selective_scan(s.x, step, s.A, *weights, s.h)
    y = _finish(y, s.x, s.D, s.z).swapaxes(1, 2).astype(as_array("u", u).dtype, copy=False)
    return (y, h.copy()) if return_last_state else y


def selective_scan_backward(
    dy: NDArray,
    u: NDArray,
    delta: NDArray,
    A: NDArray,
    B: NDArray,
    C: NDArray,
    D: NDArray | None = None,
    z: NDArray | None = None,
    delta_bias: NDArray | None = None,
    delta_softplus: bool = False,
    *,
    initial_state: NDArray | None = None,
    d_last_state: NDArray | None = None,
    backend: str | None = None,
) -> dict[str, NDArray]:
    """Return the gradients of ``selective_scan``'s arguments, by name: of those that are given.

    ``dy`` (B, E, L) is the gradient of the loss with respect to y, and ``d_last_state`` (B, E, N)
    that with respect to the last state. Each result has the shape of its argument; all of them are
    in the dtype of the arithmetic: float64 if u is, else float32.

    Kernels compute what is in float32, in memory that does not grow with L * E * N; NumPy what is
    in float64 (BackendError for ``backend="cpu"``), and states that could grow: with a positive
    number in A, or a negative step size.
    """
    s = scan_arguments(u, delta, A, B, C, D, z, delta_bias, initial_state)
    d_y = time_major("dy", dy, s.x.dtype, np.shape(u))
    d_h = np.zeros_like(s.h)
    if d_last_state is not None:
        d_h = checked("d_last_state", d_last_state, s.x.dtype, s.h.shape)
    name = backends.resolve(backend, dtype=s.x.dtype)
    if name == "cpu" and _shrinks(s, delta_softplus):
        from .kernels import scan_gradients  # Numba: only where it is used

        g = scan_gradients.selective_scan_backward(
            d_y, d_h=d_h, softplus=delta_softplus, **s._asdict()
        )
    else:
        g = _backward(d_y, s, d_h, delta_softplus)
    found = {"u": g["x"].swapaxes(1, 2), "delta": g["raw"].swapaxes(1, 2), "A": g["A"]}
    found |= {"B": d_selected(g["B"], np.shape(B)), "C": d_selected(g["C"], np.shape(C))}
    if D is not None:
        found["D"] = g["D"]
    if z is not None:
        found["z"] = g["z"].swapaxes(1, 2)
    if delta_bias is not None:
        found["delta_bias"] = g["raw"].sum(axis=(0, 1))
    if initial_state is not None:
        found["initial_state"] = g["h"].copy()  # without a step, it is the last one's
    return found


def selective_state_update(
    state: NDArray,
    x: NDArray,
    dt: NDArray,
    A: NDArray,
    B: NDArray,
    C: NDArray,
    D: NDArray | None = None,
    z: NDArray | None = None,
    dt_bias: NDArray | None = None,
    dt_softplus: bool = False,
) -> NDArray:
    """Advance ``state`` by one step, in place, and return the output (equations 2a and 2b).

    ``state`` is (B, E, N); ``x``, ``dt`` and ``z`` are (B, E), ``A`` is (E, N), ``B`` and ``C``
    are (B, N) or (B, G, N), ``D`` and ``dt_bias`` are (E). With heads, E is two axes (H, P)
    everywhere, as in mamba-ssm: ``state`` (B, H, P, N), ``x`` (B, H, P) and so on.
    """
    require_writeable("state", state)
    shape_of("state", state, 4 if np.ndim(state) == 4 else 3)
    batch, *channels, N = state.shape
    E = int(np.prod(channels))
    dtype = dtype_of("state", state)
    flat = {"x": x, "dt": dt, "A": A, "D": D, "z": z, "dt_bias": dt_bias}
    wide = {"x": (batch,), "dt": (batch,), "z": (batch,), "A": (), "D": (), "dt_bias": ()}
    for name, value in flat.items():
        if value is not None or name in ("x", "dt", "A"):
            tail = (N,) if name == "A" else ()
            whole = checked(name, value, dtype, (*wide[name], *channels, *tail))
            flat[name] = whole.reshape(*wide[name], E, *tail)
    step = _step_size(flat["dt"], flat["dt_bias"], dt_softplus)
    weights_in, weights_out = (
        selected(name, as_array(name, m)[..., None], dtype, (batch, E, N, 1), allow_fixed=False)
        for name, m in (("B", B), ("C", C))
    )
    h = state.astype(dtype, copy=False).reshape(batch, E, N)
    x_only = flat["x"][:, None]
    weights = (of_each_channel(M, x_only) for M in (weights_in, weights_out))
    sequence = (x_only, step[:, None], flat["A"], *weights)
    y, h = backends.get(backends.resolve(None, dtype=dtype)).selective_scan(*sequence, h)
    state[...] = h.reshape(state.shape)
    y = _finish(y[:, 0], flat["x"], flat["D"], flat["z"])
    x = as_array("x", x)
    return y.reshape(x.shape).astype(x.dtype, copy=False)


def causal_conv1d(
    x: NDArray,
    weight: NDArray,
    bias: NDArray | None = None,
    initial_states: NDArray | None = None,
    return_final_states: bool = False,
    activation: str | None = None,
) -> NDArray | tuple[NDArray, NDArray]:
    """Convolve each channel with its own weights over the present and the past.

    ``x`` is (B, E, L), ``weight`` (E, K), ``bias`` (E), ``initial_states`` (B, E, K-1): the inputs
    before the first, oldest first. ``activation`` is None, "silu" or "swish".

    Returns y (B, E, L), or (y, final_states (B, E, K-1)) with ``return_final_states``.
    """
    x, weight, dtype = as_array("x", x), as_array("weight", weight), dtype_of("x", x)
    batch, E, K = _conv_sizes(x, weight)
    window = np.zeros((batch, E, K), dtype)
    if initial_states is not None:
        past = checked("initial_states", initial_states, dtype, (batch, E, K - 1))
        window[..., 1:] = past
    y, window = _convolve(x, weight, bias, window, activation, dtype)
    return (y, window[..., 1:].astype(x.dtype)) if return_final_states else y


def causal_conv1d_update(
    x: NDArray,
    conv_state: NDArray,
    weight: NDArray,
    bias: NDArray | None = None,
    activation: str | None = None,
) -> NDArray:
    """Convolve the next inputs, and shift them into ``conv_state`` in place.

    ``x`` is (B, E) for one step or (B, E, L) for several; ``conv_state`` (B, E, S) holds the last
    S >= K-1 inputs, oldest first. Returns y, shaped like x.
    """
    require_writeable("conv_state", conv_state)
    x, weight, dtype = as_array("x", x), as_array("weight", weight), dtype_of("x", x)
    if x.ndim == 2:
        return causal_conv1d_update(x[..., None], conv_state, weight, bias, activation)[..., 0]
    batch, E, K = _conv_sizes(x, weight)
    S = shape_of("conv_state", conv_state, 3)[2]
    if S < K - 1:
        raise InputError(f"conv_state: expected at least {K - 1} past inputs, found {S}")
    past = checked("conv_state", conv_state, dtype, (batch, E, S))
    window = np.zeros((batch, E, K), dtype)
    window[..., max(0, K - S) :] = past[..., max(0, S - K) :]
    y, _ = _convolve(x, weight, bias, window, activation, dtype)
    inputs = np.concatenate([conv_state, x], axis=2)
    conv_state[...] = inputs[..., inputs.shape[2] - S :]
    return y


# --- shared parts ------------------------------------------------------------------------------


def _conv_sizes(x, weight):
    """Return the sizes B, E, K of a convolution's input and weight."""
    batch, E, _ = shape_of("x", x, 3)
    K = np.shape(weight)[1] if np.ndim(weight) == 2 else 0
    if np.shape(weight) != (E, K) or K == 0:
        raise InputError(f"weight: expected shape ({E}, K), K > 0, found {np.shape(weight)}")
    return batch, E, K


def _convolve(x, weight, bias, window, activation, dtype):
    """(B E L), (E K), (E), (B E K) -> y (B E L) in x's dtype, window (B E K)."""
    E, K = weight.shape
    x_time_major = time_major("x", x, dtype, (len(x), E, x.shape[2]))
    if activation not in (None, "silu", "swish"):
        raise InputError(f"activation: expected None, 'silu' or 'swish', found {activation!r}")
    weight = checked("weight", weight, dtype, (E, K))
    bias = vector("bias", bias, E, dtype)
    engine = backends.get(backends.resolve(None, dtype=dtype))
    y, window = engine.causal_conv(x_time_major, weight, bias, window)
    y = y if activation is None else eq.silu(y)
    return y.swapaxes(1, 2).astype(x.dtype, copy=False), window


def _finish(y, x, D, z):
    """Add the skip connection and apply the gate, each where it is given."""
    if D is not None and z is not None:
        return eq.output(y, x, D, z)
    y = y if D is None else y + D * x
    return y if z is None else y * eq.silu(z)


def _step_size(delta, bias, softplus):
    delta = delta if bias is None else delta + bias
    return eq.softplus(delta) if softplus else delta


def _shrinks(s, softplus):
    """Whether there is a step, and no state grows from one to the next."""
    return s.x.size and s.A.size and s.A.max() <= 0 and (softplus or s.raw.min() >= 0)


def _backward(d_y, s, d_h, softplus):
    """Return the gradients of the fields of a Scan, by name; B and C as engines take them."""
    B, C = of_each_channel(s.B, s.x), of_each_channel(s.C, s.x)
    scan = (s.x, _step_size(s.raw, None, softplus), s.A, B, C, s.h)
    found = {}
    if s.z is not None:
        y, _ = reference.selective_scan(*scan)
        d_y, found["z"] = d.d_output(d_y, y, s.x, eq.ZERO if s.D is None else s.D, s.z)
    g = backward.d_selective_scan(d_y, *scan, d_h)
    if s.D is not None:
        found["D"] = np.einsum("ble,ble->e", d_y, s.x)
    d_raw = g.delta * d.d_softplus(s.raw) if softplus else g.delta
    d_x = g.x if s.D is None else g.x + d_y * s.D
    return found | {"x": d_x, "raw": d_raw, "A": g.A, "B": g.B, "C": g.C, "h": g.h}
