"""The exercises of "Make it fast on a CPU"."""

from itertools import pairwise

import numpy as np

from ..cache import watch
from ..checking import exercise, expect, near

SHAPE = (12, 32, 16)  # (t, e, n): a step is 32 lines of each array, the cache has 64


def plain(A_bar, drive, states):
    """Update the states in the order in which they lie."""
    for place in np.ndindex(states.shape):
        t, e, n = place
        if t > 0:
            states[place] = A_bar[place] * states[t - 1, e, n] + drive[place]


@exercise("10a")
def swapped(answer):
    """The right states, by a way that moves many bytes."""
    rng = np.random.default_rng(0)
    A_bar, drive = rng.uniform(0.2, 1, size=(2, *SHAPE)).astype(np.float32)
    start = np.zeros_like(drive)
    start[0] = drive[0]
    states, expected = start.copy(), start.copy()
    least, _ = watch(plain, A_bar, drive, expected)
    moved, used = watch(answer, A_bar, drive, states)
    expect(used[2], "No state has been written yet: replace the dots.")
    missing = np.argwhere((states == 0) & (expected != 0))
    expect(
        not len(missing),
        f"states[{', '.join(map(str, missing[0])) if len(missing) else ''}] is never written: do "
        "the loops run over all t from 1 on, all e and all n?",
    )
    hint = "a state needs the one before it, so t has to go up for each e and n."
    expect(np.allclose(states, expected, rtol=1e-5), f"The states are not right any more: {hint}")
    expect(
        moved > 8 * least,
        f"It moves {moved / least:.1f} times as many bytes as the loops in memory order. In which "
        "index do two neighbours on a line differ? The innermost loop should not run over it.",
    )


@exercise("10b")
def least_bytes(answer):
    """Bytes of x, delta, y, B, C and A."""
    for L, E, N in ((256, 1536, 16), (7, 32, 4)):
        found, numbers = answer(L, E, N), 3 * L * E + 2 * L * N + E * N
        what = f"least_bytes({L}, {E}, {N})"
        expect(found is not ... and found is not None, f"{what} is nothing yet: replace the dots.")
        hints = {
            numbers: "counts numbers, and each of them is 4 bytes",
            4 * (numbers - L * E): "leaves out an array of (L, E): x, delta and y are three",
            4 * (numbers - E * N): "leaves out A",
            4 * (numbers - L * N): "leaves out B or C",
            4 * (numbers - 2 * L * N): "leaves out B and C",
        }
        expect(found not in hints, f"{what} {hints.get(found)}.")
        expect(
            found < 4 * (numbers + L * E * N),
            f"{what} is as much as an array of (L, E, N): the states stay in the cache.",
        )
        near(found, 4 * numbers, what)


@exercise("10c")
def share(answer):
    """Ranges of channels: all of them, whole lines, as equal as can be."""
    for E, threads in ((1536, 2), (1536, 1), (1536, 7), (48, 2), (40, 3), (32, 5)):
        shares = [answer(E, threads, rank) for rank in range(threads)]
        call = f"share({E}, {threads}, rank)"
        for one in shares:
            expect(
                isinstance(one, tuple) and len(one) == 2,
                f"{call} should be a pair (first, after the last), and is {one!r}.",
            )
        said = f"{call} for all ranks: {', '.join(f'{low}-{high}' for low, high in shares)}"
        for (_, high), (low, _) in pairwise(shares):
            expect(high >= low, f"{said}. The channels {high} to {low - 1} are nobody's.")
            expect(high <= low, f"{said}. Channel {low} is done twice.")
        expect(
            shares[0][0] == 0 and shares[-1][1] == E,
            f"{said}. They should go from channel 0 to channel {E - 1}.",
        )
        odd = [low for low, high in shares if low % 16 and low < high]
        expect(not odd, f"{said}. {odd and odd[0]} is no multiple of 16: a line is cut in two.")
        sizes = [high - low for low, high in shares]
        uneven = max(sizes) - min(sizes) > 16
        expect(not uneven, f"{said}. One has {max(sizes)} channels, another {min(sizes)}.")
