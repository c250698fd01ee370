"""The operators alone, with the argument names and layouts of mamba-ssm and causal-conv1d.

Sequences are (B, E, L) here, as in those packages; they may be strided views.
Arithmetic is in float32, or float64 if the first argument is; results have its dtype. Each
function raises InputError naming the argument whose dtype or shape is wrong.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import backend as backends
from . import backward, reference
from . import derivatives as d
from . import equations as eq
from .checks import shown
from .errors import InputError
from .inputs import as_array
from .params import DTYPES, compute_dtype


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
    s = _scan_arguments(u, delta, A, B, C, D, z, delta_bias, initial_state)
    engine = backends.get(backends.resolve(backend, dtype=s.x.dtype))
    step = _step_size(s.raw, None, delta_softplus)
    y, h = engine.selective_scan(s.x, step, s.A, s.B, s.C, s.h)
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
) -> dict[str, NDArray]:
    """Return the gradients of ``selective_scan``'s arguments, by name: of those that are given.

    ``dy`` (B, E, L) is the gradient of the loss with respect to y, and ``d_last_state`` (B, E, N)
    that with respect to the last state. Each result has the shape of its argument; all of them are
    in the dtype of the arithmetic: float64 if u is, else float32.
    """
    s = _scan_arguments(u, delta, A, B, C, D, z, delta_bias, initial_state)
    d_y = _time_major("dy", dy, s.x.dtype, np.shape(u))
    if d_last_state is not None:
        d_last_state = _array("d_last_state", d_last_state, s.x.dtype, s.h.shape)
    scan = (s.x, _step_size(s.raw, None, delta_softplus), s.A, s.B, s.C, s.h)
    found: dict[str, NDArray] = {}
    if s.z is not None:
        y, _ = reference.selective_scan(*scan)
        d_y, d_z = d.d_output(d_y, y, s.x, eq.ZERO if s.D is None else s.D, s.z)
        found["z"] = d_z.swapaxes(1, 2)
    g = backward.d_selective_scan(d_y, *scan, d_last_state)
    d_raw = g.delta * d.d_softplus(s.raw) if delta_softplus else g.delta
    found["u"] = (g.x if s.D is None else g.x + d_y * s.D).swapaxes(1, 2)
    found |= {"delta": d_raw.swapaxes(1, 2), "A": g.A}
    found |= {"B": _d_selected(g.B, np.shape(B)), "C": _d_selected(g.C, np.shape(C))}
    if D is not None:
        found["D"] = np.einsum("ble,ble->e", d_y, s.x)
    if delta_bias is not None:
        found["delta_bias"] = d_raw.sum(axis=(0, 1))
    if initial_state is not None:
        found["initial_state"] = g.h.copy()  # without a step, it is the last one's
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
    _require_writeable("state", state)
    _shape("state", state, 4 if np.ndim(state) == 4 else 3)
    batch, *channels, N = state.shape
    E = int(np.prod(channels))
    dtype = _dtype("state", state)
    flat = {"x": x, "dt": dt, "A": A, "D": D, "z": z, "dt_bias": dt_bias}
    wide = {"x": (batch,), "dt": (batch,), "z": (batch,), "A": (), "D": (), "dt_bias": ()}
    for name, value in flat.items():
        if value is not None or name in ("x", "dt", "A"):
            tail = (N,) if name == "A" else ()
            whole = _array(name, value, dtype, (*wide[name], *channels, *tail))
            flat[name] = whole.reshape(*wide[name], E, *tail)
    step = _step_size(flat["dt"], flat["dt_bias"], dt_softplus)
    weights_in, weights_out = (
        _selected(name, as_array(name, m)[..., None], dtype, (batch, E, N, 1), allow_fixed=False)
        for name, m in (("B", B), ("C", C))
    )
    h = state.astype(dtype, copy=False).reshape(batch, E, N)
    sequence = (flat["x"][:, None], step[:, None], flat["A"], weights_in, weights_out)
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
    x, weight, dtype = as_array("x", x), as_array("weight", weight), _dtype("x", x)
    batch, E, K = _conv_sizes(x, weight)
    window = np.zeros((batch, E, K), dtype)
    if initial_states is not None:
        past = _array("initial_states", initial_states, dtype, (batch, E, K - 1))
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
    _require_writeable("conv_state", conv_state)
    x, weight, dtype = as_array("x", x), as_array("weight", weight), _dtype("x", x)
    if x.ndim == 2:
        return causal_conv1d_update(x[..., None], conv_state, weight, bias, activation)[..., 0]
    batch, E, K = _conv_sizes(x, weight)
    S = _shape("conv_state", conv_state, 3)[2]
    if S < K - 1:
        raise InputError(f"conv_state: expected at least {K - 1} past inputs, found {S}")
    past = _array("conv_state", conv_state, dtype, (batch, E, S))
    window = np.zeros((batch, E, K), dtype)
    window[..., max(0, K - S) :] = past[..., max(0, S - K) :]
    y, _ = _convolve(x, weight, bias, window, activation, dtype)
    inputs = np.concatenate([conv_state, x], axis=2)
    conv_state[...] = inputs[..., inputs.shape[2] - S :]
    return y


# --- shared parts ------------------------------------------------------------------------------


class _Scan(NamedTuple):
    """The arguments of a scan as an engine takes them: time-major, in the dtype of arithmetic."""

    x: NDArray  # (B, L, E)
    raw: NDArray  # (B, L, E): the step sizes before softplus
    A: NDArray  # (E, N)
    B: NDArray  # (B, L, N), or (B, L, E, N)
    C: NDArray  # (B, L, N), or (B, L, E, N)
    D: NDArray | None  # (E)
    z: NDArray | None  # (B, L, E)
    h: NDArray  # (B, E, N): the state before the first step


def _scan_arguments(u, delta, A, B, C, D, z, delta_bias, initial_state) -> _Scan:
    """Check the arguments of ``selective_scan``."""
    dtype = _dtype("u", u)
    (batch, E, L), N = _shape("u", u, 3), _shape("A", A, 2)[1]
    x, raw = (_time_major(*m, dtype, (batch, E, L)) for m in (("u", u), ("delta", delta)))
    raw = _step_size(raw, _vector("delta_bias", delta_bias, E, dtype), False)
    A = _array("A", A, dtype, (E, N))
    h = np.zeros((batch, E, N), dtype)
    if initial_state is not None:
        h = _array("initial_state", initial_state, dtype, (batch, E, N))
    B, C = (_selected(*m, dtype, (batch, E, N, L)) for m in (("B", B), ("C", C)))
    D = _vector("D", D, E, dtype)
    z = None if z is None else _time_major("z", z, dtype, (batch, E, L))
    return _Scan(x, raw, A, B, C, D, z, h)


def _conv_sizes(x, weight):
    """Return the sizes B, E, K of a convolution's input and weight."""
    batch, E, _ = _shape("x", x, 3)
    K = np.shape(weight)[1] if np.ndim(weight) == 2 else 0
    if np.shape(weight) != (E, K) or K == 0:
        raise InputError(f"weight: expected shape ({E}, K), K > 0, found {np.shape(weight)}")
    return batch, E, K


def _convolve(x, weight, bias, window, activation, dtype):
    """(B E L), (E K), (E), (B E K) -> y (B E L) in x's dtype, window (B E K)."""
    E, K = weight.shape
    x_time_major = _time_major("x", x, dtype, (len(x), E, x.shape[2]))
    if activation not in (None, "silu", "swish"):
        raise InputError(f"activation: expected None, 'silu' or 'swish', found {activation!r}")
    weight = _array("weight", weight, dtype, (E, K))
    bias = _vector("bias", bias, E, dtype)
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


def _selected(name, values, dtype, sizes, allow_fixed=True):
    """Return B or C time-major: (B L N) if all channels share it, else (B L E N)."""
    batch, E, N, L = sizes
    values = as_array(name, values)
    if values.ndim == 2 and allow_fixed:
        fixed = _array(name, values, dtype, (E, N))
        return np.broadcast_to(fixed, (batch, L, E, N))
    if values.ndim == 3:
        return _array(name, values, dtype, (batch, N, L)).swapaxes(1, 2)
    groups = values.shape[1] if values.ndim == 4 else 1
    values = _array(name, values, dtype, (batch, groups, N, L))
    if groups == 0 or E % groups:
        raise InputError(f"{name}: expected a number of groups that divides {E}, found {groups}")
    return np.repeat(values.transpose(0, 3, 1, 2), E // groups, axis=2)


def _d_selected(gradient, shape):
    """Return the gradient of what ``_selected`` made time-major, in the layout that it had."""
    if len(shape) == 2:  # (E N): the same everywhere
        return gradient.sum(axis=(0, 1))
    if len(shape) == 3:
        return gradient.swapaxes(1, 2)
    batch, L, E, N = gradient.shape
    groups = gradient.reshape(batch, L, shape[1], E // shape[1], N).sum(axis=3)
    return groups.transpose(0, 2, 3, 1)


def _time_major(name, values, dtype, shape):  # (B E L) -> (B L E)
    return np.ascontiguousarray(_array(name, values, dtype, shape).swapaxes(1, 2))


def _vector(name, values, size, dtype):
    return None if values is None else _array(name, values, dtype, (size,))


def _array(name: str, values: Any, dtype: np.dtype, shape: tuple[int, ...]) -> NDArray:
    _dtype(name, values)
    if np.shape(values) != shape:
        raise InputError(f"{name}: expected shape {shape}, found {np.shape(values)}")
    return np.asarray(values).astype(dtype, copy=False)


def _dtype(name: str, values: Any) -> np.dtype:
    """Return the dtype to compute in for ``values``."""
    found = as_array(name, values).dtype
    if found.name not in DTYPES:
        raise InputError(
            f"{name}: expected real floating-point numbers of up to 64 bits, found {found}"
        )
    return compute_dtype(DTYPES[found.name])  # in native byte order


def _require_writeable(name: str, values: Any) -> None:
    """Refuse, before any work is done, what cannot be changed in place."""
    if not isinstance(values, np.ndarray) or not values.flags.writeable:
        found = "a read-only one" if isinstance(values, np.ndarray) else shown(values)
        raise InputError(f"{name}: expected a NumPy array to change in place, found {found}")


def _shape(name: str, values: Any, ndim: int) -> tuple[int, ...]:
    shape = as_array(name, values).shape
    if len(shape) != ndim or 0 in shape[:2]:
        raise InputError(
            f"{name}: expected {ndim} dimensions, the first two above 0, found shape {shape}"
        )
    return shape
