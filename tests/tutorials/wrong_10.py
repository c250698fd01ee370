"""Answers that readers of notebook 10 may give, and words of the hint that they get."""


def with_loops(order, first=1, backwards=False):
    """Return the recurrence with its three loops in an order such as "ten"."""

    def update(A_bar, drive, states):
        L, E, N = A_bar.shape
        times = range(first, L)
        ranges = {"t": times[::-1] if backwards else times, "e": range(E), "n": range(N)}
        for i in ranges[order[0]]:
            for j in ranges[order[1]]:
                for k in ranges[order[2]]:
                    place = dict(zip(order, (i, j, k), strict=True))
                    t, e, n = (place[letter] for letter in "ten")
                    h = states[t - 1, e, n]
                    states[t, e, n] = A_bar[t, e, n] * h + drive[t, e, n]

    return update


def cut(E, threads, rank):
    return E * rank // threads, E * (rank + 1) // threads


def the_rest_is_the_last_ones(E, threads, rank):
    each = E // 16 // threads * 16
    return each * rank, E if rank == threads - 1 else each * (rank + 1)


WRONG = {
    "10a": [
        (with_loops("ten"), "1.0 times as many bytes"),
        (with_loops("etn"), "times as many bytes"),
        (with_loops("net", backwards=True), "not right any more"),
        (with_loops("net", first=2), "is never written"),
        (lambda A_bar, drive, states: None, "replace the dots"),
    ],
    "10b": [
        (lambda L, E, N: 3 * L * E + 2 * L * N + E * N, "each of them is 4 bytes"),
        (lambda L, E, N: 4 * (2 * L * E + 2 * L * N + E * N), "x, delta and y are three"),
        (lambda L, E, N: 4 * (3 * L * E + 2 * L * N), "leaves out A"),
        (lambda L, E, N: 4 * (3 * L * E + L * N + E * N), "leaves out B or C"),
        (lambda L, E, N: 4 * (3 * L * E + E * N), "leaves out B and C"),
        (lambda L, E, N: 4 * (3 * L * E + 2 * L * N + E * N + L * E * N), "stay in the cache"),
        (lambda L, E, N: 12 * L * E, "should be"),
        (lambda L, E, N: ..., "replace the dots"),
    ],
    "10c": [
        (cut, "is no multiple of 16"),
        (the_rest_is_the_last_ones, "channels, another"),
        (lambda E, threads, rank: (16 * rank, 16 * rank + 16), "from channel 0 to channel"),
        (lambda E, threads, rank: (0, E), "is done twice"),
        (lambda E, threads, rank: (E * rank // threads, E * rank // threads + 16), "nobody's"),
        (lambda E, threads, rank: ..., "should be a pair"),
    ],
}
