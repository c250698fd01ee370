"""One token of each text through all blocks, in one call: what generating a token costs.

Every rank of a team runs this same function and does its share of each part; between parts they
meet. The weights are read once, where they lie, and nothing is allocated.
"""

from typing import Any, NamedTuple

from .. import equations as eq
from . import vectorised  # noqa: F401
from .barrier import wait
from .lanes import WIDTH, spread
from .linear import ZERO, Matrix, Vectors, multiply, with_bias
from .memory import at, data, fetch, get, load, pointer, set_, store
from .options import inline, kernel
from .packing import FIELDS
from .rows import add_row, norm_row

LATER = 8 * WIDTH
"""How many channels before they are advanced their states are asked for: these lie in many rows,
each of which the processor would have to notice by itself."""

(
    NORM, IN_PROJ, IN_SCALES, IN_BIAS, CONV, CONV_BIAS, X_PROJ, X_SCALES, _, _, DT_GROUPS, DT_BIAS,
    A, D, OUT_PROJ, OUT_SCALES, OUT_BIAS,
) = range(len(FIELDS))  # fmt: skip


class Weights(NamedTuple):
    """Where the parameters lie."""

    addresses: Any  # (layers, FIELDS) int64
    norm_f: Any  # (D_pad)
    like: Any  # empty, of the stored dtype
    floats: Any  # empty, float32
    group: int
    eps: Any  # float32


class Work(NamedTuple):
    """The arrays that a step computes in, float32; ranks share all but the first two."""

    residual: Any  # (team, B, D_pad)
    normed: Any  # (team, B, D_pad)
    inputs: Any  # (B, 2 E_pad): x, then the gate z
    x: Any  # (B, E_pad): after the convolution
    mixed: Any  # (B, M_pad): low rank, B, C
    y: Any  # (B, E_pad)
    out: Any  # (B, D_pad)


class Memory(NamedTuple):
    """The states of all texts, and which of them take part."""

    conv: Any  # pointer to (layers, held, K, E) float32: the windows
    ssm: Any  # pointer to (layers, held, N, E) float32
    held: int  # texts
    texts: Any  # (B) int64


class Team(NamedTuple):
    """Who runs a step."""

    rank: int
    size: int
    meeting: Any  # the barrier's memory


@inline
def _pointers(work):
    return Work(
        data(work.residual),
        data(work.normed),
        data(work.inputs),
        data(work.x),
        data(work.mixed),
        data(work.y),
        data(work.out),
    )


@inline
def _share(team, n):
    """Return (first, last): this rank's part of range(n)."""
    return n * team.rank // team.size, n * (team.rank + 1) // team.size


@inline
def _matrix(w, layer, weights, scales, inputs):
    place = pointer(w.addresses[layer, weights], w.like)
    return Matrix(place, pointer(w.addresses[layer, scales], w.floats), w.group, inputs, None)


@inline
def _floats(w, layer, column):
    return pointer(w.addresses[layer, column], w.floats)


@inline
def _project_in(w, layer, s, work, batch, mine, channels):
    """Make x and z of some channels from the normed input."""
    first, last = channels
    m = with_bias(_matrix(w, layer, IN_PROJ, IN_SCALES, s.D), _floats(w, layer, IN_BIAS))
    normed = Vectors(work.normed, mine, s.D_pad)
    multiply(m, (first, last), normed, Vectors(work.inputs, 0, 2 * s.E_pad), batch)
    # The gate's rows follow those of x in the matrix, and the padding in memory.
    gates = Vectors(work.inputs, s.E_pad - s.E, 2 * s.E_pad)
    multiply(m, (s.E + first, s.E + last), normed, gates, batch)


@inline
def _convolve(w, layer, s, work, memory, batch, channels):
    """Convolve x of some channels, and move their windows on."""
    conv = memory.conv
    weight, bias = _floats(w, layer, CONV), _floats(w, layer, CONV_BIAS)
    for b in range(batch):
        window = (layer * memory.held + memory.texts[b]) * s.K * s.E
        for e in range(channels[0], channels[1], WIDTH):
            count = min(WIDTH, channels[1] - e)
            y = spread(ZERO)
            for k in range(s.K - 1):
                v = get(conv, window + (k + 1) * s.E + e, count)
                set_(conv, window + k * s.E + e, v, count)
                y = y + v * load(weight, k * s.E_pad + e)
            v = load(work.inputs, b * 2 * s.E_pad + e)
            set_(conv, window + (s.K - 1) * s.E + e, v, count)
            y = y + v * load(weight, (s.K - 1) * s.E_pad + e)
            store(work.x, b * s.E_pad + e, eq.silu(y + load(bias, e)))


@inline
def _advance_states(w, layer, s, work, memory, batch, channels):
    """Make the step sizes of some channels, advance their states, and write the gated outputs."""
    dt, dt_bias, ssm = _floats(w, layer, DT_GROUPS), _floats(w, layer, DT_BIAS), memory.ssm
    A_per_octave, skip = _floats(w, layer, A), _floats(w, layer, D)
    for b in range(batch):
        mixed, states = b * s.M_pad, (layer * memory.held + memory.texts[b]) * s.N * s.E
        for e in range(channels[0], channels[1], WIDTH):
            count = min(WIDTH, channels[1] - e)
            delta = spread(ZERO)
            for r in range(s.R):
                delta = delta + load(dt, e * s.R + r * WIDTH) * at(work.mixed, mixed + r)
            delta = eq.softplus(delta + load(dt_bias, e))  # the bias is large: it comes last
            x, y = load(work.x, b * s.E_pad + e), spread(ZERO)
            drive = delta * x
            for n in range(s.N):
                fetch(ssm, states + n * s.E + e + LATER)
                A_bar = eq.decay(delta, load(A_per_octave, e * s.N + n * WIDTH))
                h = get(ssm, states + n * s.E + e, count)
                h = eq.state_update(h, A_bar, drive * at(work.mixed, mixed + s.R + n))
                set_(ssm, states + n * s.E + e, h, count)
                y = y + h * at(work.mixed, mixed + s.R + s.N + n)
            z = load(work.inputs, b * 2 * s.E_pad + s.E_pad + e)
            store(work.y, b * s.E_pad + e, eq.output(y, x, load(skip, e), z))


@inline
def _norm(s, work, weight, eps, batch, mine):
    for b in range(batch):
        place = mine + b * s.D_pad
        norm_row(work.residual, place, weight, s.D, eps, work.normed, place)


@inline
def _mixer(w, layer, s, work, memory, batch, mine, team):
    """Make ``out`` from ``normed``; return False if another rank gave up."""
    # Channels are shared in whole Lanes, so that no two ranks write into the same ones.
    first, last = _share(team, s.E_pad // WIDTH)
    channels = (first * WIDTH, min(s.E, last * WIDTH))
    _project_in(w, layer, s, work, batch, mine, channels)
    _convolve(w, layer, s, work, memory, batch, channels)
    if not wait(team.meeting, team.size):
        return False
    m = _matrix(w, layer, X_PROJ, X_SCALES, s.E)
    x, mixed = Vectors(work.x, 0, s.E_pad), Vectors(work.mixed, 0, s.M_pad)
    multiply(m, _share(team, s.R + 2 * s.N), x, mixed, batch)
    if not wait(team.meeting, team.size):
        return False
    _advance_states(w, layer, s, work, memory, batch, channels)
    if not wait(team.meeting, team.size):
        return False
    m = with_bias(_matrix(w, layer, OUT_PROJ, OUT_SCALES, s.E), _floats(w, layer, OUT_BIAS))
    y, out = Vectors(work.y, 0, s.E_pad), Vectors(work.out, 0, s.D_pad)
    multiply(m, _share(team, s.D), y, out, batch)
    return wait(team.meeting, team.size)


@kernel
def step(w, s, arrays, conv, ssm, texts, x, hidden, team):
    """Advance ``conv`` (layers, B, K, E) and ``ssm`` (layers, B, N, E) by one token of some texts.

    ``texts`` (T) says which of the B; ``x`` (T, D) holds the embeddings of their tokens,
    ``hidden`` (T, D) gets the normed output of the last block. ``arrays`` is Work.
    Returns whether it came to the end: not if another rank gave up.
    """
    work, memory = _pointers(arrays), Memory(data(conv), data(ssm), conv.shape[1], texts)
    batch, embeddings, result = texts.size, data(x), data(hidden)
    mine = team.rank * batch * s.D_pad
    for b in range(batch):
        for d in range(0, s.D, WIDTH):
            v = get(embeddings, b * s.D + d, min(WIDTH, s.D - d))
            store(work.residual, mine + b * s.D_pad + d, v)
    for layer in range(s.layers):
        _norm(s, work, _floats(w, layer, NORM), w.eps, batch, mine)
        if not _mixer(w, layer, s, work, memory, batch, mine, team):
            return False
        for b in range(batch):
            add_row(work.residual, mine + b * s.D_pad, work.out, b * s.D_pad, s.D)
    _norm(s, work, data(w.norm_f), w.eps, batch, mine)
    if team.rank == 0:
        for b in range(batch):
            for d in range(0, s.D, WIDTH):
                v = load(work.normed, mine + b * s.D_pad + d)
                set_(result, b * s.D + d, v, min(WIDTH, s.D - d))
    return True


@kernel
def project(place, like, group, width, x, y, rows):
    """Write y[t, r] = W[r] . x[t] for the tokens t, and r in range(*rows).

    ``place`` has the addresses of the weights (O, ``width``), of the dtype of ``like``, and of
    their scales; ``x`` (T, stride) has rows of whole Lanes.
    """
    m = Matrix(pointer(place[0], like), pointer(place[1], y), group, width, None)
    inputs, outputs = Vectors(data(x), 0, x.shape[1]), Vectors(data(y), 0, y.shape[1])
    multiply(m, rows, inputs, outputs, x.shape[0])
