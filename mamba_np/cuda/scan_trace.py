"""The scan of some channels, watched: what it computes on its way is written down.

It stands beside the scan, reads the same inputs and the states before them, and advances nothing:
tracing cannot change a result.
"""

from functools import cache

from .dialect import cuda, types
from .formulas import F32
from .registry import F32_POINTER, I32_POINTER, INT, Budget, Kernel
from .scan import parts_of
from .scan_steps import U32, U64, advance, padded_states, state_mover, steps_of

THREADS = 32
"""Of a block: few channels are traced, and each block takes its own processor."""


@cache
def tracing_scan(N: int, gated: bool = True) -> Kernel:
    """Return the kernel that traces some channels, with a thread for each.

    x (T, E_pad), raw (T, E_pad), selected (T, M), A_per_octave (E_pad, N4), dt_bias (E_pad),
    lengths (B), h (B, E_pad, N4), channels (c), delta (T, c), y (T, c), states (B, P, c, N4),
    L, E_pad, M, c, before, every. Blocks: (c / 32, rounded up; B).

    y is C h, ungated. ``before`` steps came before these: the states after ``every``, 2 ``every``
    ... steps of all are kept, P = (before + L) // every - before // every of them. Steps that do
    not count have delta = y = 0. Without ``gated``, raw is the step size itself. Raises InputError
    for a number of states that it cannot do.
    """
    N4 = padded_states(N)
    _, step_size, _, _ = parts_of("float32", gated)
    step, (fetch, keep) = advance(N4, N4), state_mover(N4)

    def kernel(
        x, raw, selected, A_per_octave, dt_bias, lengths, h, channels, delta, y, states,
        L, E_pad, M, c, before, every,
    ):  # fmt: skip
        state, A = cuda.local.array(N4, types.float32), cuda.local.array(N4, types.float32)
        i, text = U32(cuda.blockIdx.x) * U32(THREADS) + U32(cuda.threadIdx.x), U64(cuda.blockIdx.y)
        if i >= U32(c):
            return
        e, E, steps = U64(channels[i]), U64(E_pad), steps_of(lengths, text, U32(0), U32(L))
        fetch(A_per_octave, e * U64(N4), A)
        fetch(h, (text * E + e) * U64(N4), state)
        bias, since = dt_bias[e], U32(before) % U32(every)
        slot = text * U64(U32(U32(since + U32(L)) // U32(every))) * U64(c) + U64(i)
        for t in range(U32(0), U32(L), U32(1)):
            row = text * U64(L) + U64(t)
            delta_now, y_now = F32(0), F32(0)
            if t < steps:
                delta_now = step_size(raw[row * E + e], bias)
                y_now = step(
                    state, A, selected, row * U64(M), delta_now, delta_now * x[row * E + e]
                )
            delta[row * U64(c) + U64(i)], y[row * U64(c) + U64(i)] = delta_now, y_now
            since = U32(since + U32(1))
            if since == U32(every):
                since = U32(0)
                keep(states, slot * U64(N4), state)
                slot += U64(c)

    arguments = (
        *(F32_POINTER,) * 5, I32_POINTER, F32_POINTER, I32_POINTER, *(F32_POINTER,) * 3,
        *(INT,) * 6,
    )  # fmt: skip
    name = f"tracing_scan N={N4}{'' if gated else ' bare'}"
    return Kernel(name, kernel, arguments, THREADS, Budget(128 if N4 <= 16 else 255))
