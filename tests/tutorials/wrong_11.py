"""Answers that readers of notebook 11 may give, and words of the hint that they get."""

from lesson.gpu import cuda, decay, float32, softplus, state_update
from lesson.gpu_kernels import CHUNK, LANES, WIDTH, N


@cuda.jit
def nothing(raw, delta): ...


@cuda.jit
def dots(raw, delta):
    i = cuda.grid(1)
    delta[i] = softplus(...)


@cuda.jit
def no_guard(raw, delta):
    i = cuda.grid(1)
    delta[i] = softplus(raw[i])


@cuda.jit
def guard_too_late(raw, delta):
    i = cuda.grid(1)
    if i <= raw.size:
        delta[i] = softplus(raw[i])


@cuda.jit
def guard_too_early(raw, delta):
    i = cuda.grid(1)
    if i < raw.size - 1:
        delta[i] = softplus(raw[i])


@cuda.jit
def place_in_the_block(raw, delta):
    i = cuda.threadIdx.x
    delta[i] = softplus(raw[i])


@cuda.jit
def no_softplus(raw, delta):
    i = cuda.grid(1)
    if i < raw.size:
        delta[i] = raw[i]


def channel(step):
    """A scan with one state: ``step`` returns the next state and y."""
    step = cuda.jit(device=True)(step)

    @cuda.jit
    def kernel(x, delta, A_per_octave, B, C, y):
        e = cuda.grid(1)
        if e < x.shape[1]:
            h = float32(0)
            for t in range(x.shape[0]):
                keep = decay(delta[t, e], A_per_octave[e])
                h, y[t, e] = step(h, keep, delta[t, e], B[t] * x[t, e], C[t])

    return kernel


def forgotten(h, keep, delta, drive, C):
    return delta * drive, C * delta * drive


def read_too_early(h, keep, delta, drive, C):
    return state_update(h, keep, delta * drive), C * h


def no_step_size(h, keep, delta, drive, C):
    h = state_update(h, keep, drive)
    return h, C * h


def decayed_input(h, keep, delta, drive, C):
    h = state_update(delta * drive, keep, h)
    return h, C * h


@cuda.jit
def no_guard_for_channels(x, delta, A_per_octave, B, C, y):
    e = cuda.grid(1)
    for t in range(x.shape[0]):
        y[t, e] = 0


def advance(B, C, adds=True, places=True):
    """A step of states that finds B and C at these places of a row."""

    @cuda.jit(device=True)
    def step(h, rates, row, first, delta, x):
        y = float32(0)
        first = first if places else 0
        for n in range(h.size):
            h[n] = state_update(h[n], decay(delta, rates[n]), delta * row[B + first + n] * x)
            y = (y if adds else 0) + row[C + first + n] * h[n]
        return y

    return step


@cuda.jit(device=True)
def no_return(h, rates, row, first, delta, x):
    for n in range(h.size):
        h[n] = state_update(h[n], decay(delta, rates[n]), delta * row[first + n] * x)


def bring(before=True, after=True, offset=True):
    """What brings a tile, with the barriers before and after it, or without."""

    @cuda.jit(device=True)
    def load(tile, selected, first):
        if before:
            cuda.syncthreads()
        for i in range(cuda.threadIdx.x, CHUNK * WIDTH, cuda.blockDim.x):
            row = i // WIDTH
            tile[row, i % WIDTH] = selected[(first if offset else 0) + row, i % WIDTH]
        if after:
            cuda.syncthreads()

    return load


@cuda.jit(device=True)
def one_number_a_thread(tile, selected, first):
    i = cuda.threadIdx.x
    cuda.syncthreads()
    tile[0, i] = selected[first, i]
    cuda.syncthreads()


@cuda.jit(device=True)
def everybody_brings_all(tile, selected, first):
    cuda.syncthreads()
    for i in range(CHUNK * WIDTH):
        tile[i // WIDTH, i % WIDTH] = selected[first + i // WIDTH, i % WIDTH]
    cuda.syncthreads()


@cuda.jit(device=True)
def barrier_for_some(tile, selected, first):
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        for i in range(CHUNK * WIDTH):
            tile[i // WIDTH, i % WIDTH] = selected[first + i // WIDTH, i % WIDTH]
        cuda.syncthreads()


def lanes(before=True, between=True, count=LANES):
    """What adds up the parts of ``count`` lanes, with its barriers or without."""

    @cuda.jit(device=True)
    def add(parts, i, mine):
        if before:
            cuda.syncthreads()
        parts[i] = mine
        if between:
            cuda.syncthreads()
        total = float32(0)
        for k in range(count):
            total += parts[i - i % LANES + k]
        return total

    return add


def carry(step):
    """A carry of states: ``step`` returns what a chunk begins with, and the next state."""
    step = cuda.jit(device=True)(step)

    @cuda.jit
    def kernel(ends, sums, A_per_octave, starts):
        e, n = cuda.grid(2)
        h = float32(0)
        for chunk in range(ends.shape[0]):
            keep = decay(sums[chunk, e], A_per_octave[e, n])
            starts[chunk, e, n], h = step(h, keep, ends[chunk, e, n])

    return kernel


def off_by_one(h, keep, end):
    h = state_update(h, keep, end)
    return h, h


WRONG = {
    "11a": [
        (nothing, "Nothing is written to delta yet"),
        (dots, "replace the dots"),
        (no_guard, "Thread 2 of block 2 reads raw[10]"),
        (guard_too_late, "Which threads have nothing to do?"),
        (guard_too_early, "delta[9] is not written"),
        (place_in_the_block, "thread 0 of block 1 writes it with no barrier"),
        (no_softplus, "should be"),
    ],
    "11b": [
        (no_guard_for_channels, "Which threads have nothing to do?"),
        (channel(forgotten), "h has to stay"),
        (channel(read_too_early), "before the step"),
        (channel(no_step_size), "delta * B"),
        (channel(decayed_input), "h is what decays"),
        (no_softplus, "should take 6 arrays"),
    ],
    "11c": [
        (no_return, "becomes None"),
        (advance(0, 0), "y reads with B"),
        (advance(N, 0), "changed places"),
        (advance(0, N, adds=False), "last state's part alone"),
        (advance(0, N, places=False), "start at `first`"),
    ],
    "11d": [
        (nothing, "TypeError"),
        (bring(before=False), "with no barrier between"),
        (bring(after=False), "with no barrier between"),
        (bring(offset=False), "first steps"),
        (one_number_a_thread, "nobody has written"),
        (everybody_brings_all, "writes it with no barrier between"),
        (barrier_for_some, "waits at a barrier that thread 1 never reaches"),
    ],
    "11e": [
        (lanes(before=False), "with no barrier between"),
        (lanes(between=False), "with no barrier between"),
        (lanes(count=1), "add the others'"),
        (lanes(count=LANES + 1), "reads shared[4], which has the shape (4,)"),
    ],
    "11f": [
        (carry(off_by_one), "after each chunk"),
        (carry(lambda h, keep, end: (h, state_update(end, keep, h))), "what decays"),
        (carry(lambda h, keep, end: (h, h + end)), "lets decay"),
        (carry(lambda h, keep, end: (h, end)), "only what it wrote"),
        (carry(lambda h, keep, end: (h, state_update(h, keep, end + 1))), "should be"),
    ],
}
