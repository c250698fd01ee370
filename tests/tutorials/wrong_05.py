"""Answers that readers of notebook 05 may give, and words of the hint that they get."""

import dataclasses

import numpy as np


def step(decay=np.exp, write=lambda delta, B: delta * B, read_first=False):
    def answer(h, x, delta, A, B, C):
        before = h
        h = decay(delta[:, None] * A) * h + write(delta[:, None], B) * x[:, None]
        return (before if read_first else h) @ C, h

    return answer


def zero_order_hold(h, x, delta, A, B, C):
    step = delta[:, None]
    h = np.exp(step * A) * h + np.expm1(step * A) / A * B * x[:, None]
    return h @ C, h


def without_delta(h, x, delta, A, B, C):
    h = np.exp(A) * h + delta[:, None] * B * x[:, None]
    return h @ C, h


def rate_for_share(h, x, delta, A, B, C):
    h = A * h + delta[:, None] * B * x[:, None]
    return h @ C, h


def without_x(h, x, delta, A, B, C):
    h = np.exp(delta[:, None] * A) * h + delta[:, None] * B
    return h @ C, h


def in_place(h, x, delta, A, B, C):
    h *= np.exp(delta[:, None] * A)
    h += delta[:, None] * B * x[:, None]
    return h @ C, h


def count(block=0, model=0):
    """Return a count that is wrong by what these two, functions of (V, D, E, N, R, K), give."""

    def answer(c):
        V, D, E = c.vocab_size, c.hidden_size, c.intermediate_size
        N, R, K = c.state_size, c.time_step_rank, c.conv_kernel
        right = 3 * E * D + (K + R + R + 3 * N + 3) * E + D
        wrong = block(V, D, E, N, R, K) if block else 0
        end = model(V, D, E, N, R, K) if model else 0
        return V * D + D + c.num_hidden_layers * (right + wrong) + end

    return answer


def swap(rows):
    return lambda layer: dataclasses.replace(layer, in_proj=rows(layer.in_proj))


def swap_in_place(layer):
    layer.in_proj[:] = np.roll(layer.in_proj, len(layer.in_proj) // 2, axis=0)
    return layer


WRONG = {
    "05a": [
        (lambda h, x, delta, A, B, C: None, "replace the dots"),
        (lambda h, x, delta, A, B, C: h @ C, "Return two things"),
        (step(write=lambda delta, B: B), "without its step size"),
        (step(decay=np.ones_like), "does not fade"),
        (step(read_first=True), "before this token is written"),
        (zero_order_hold, "exact zero-order hold"),
        (without_delta, "leaves out delta"),
        (rate_for_share, "A is multiplied by h"),
        (without_x, "The input x is missing"),
        (in_place, "changes the h"),
        (lambda h, x, delta, A, B, C: (h @ C, h.T), "should have the shape"),
        (lambda *given: (2 * step()(*given)[0], step()(*given)[1]), "your y[0] should be"),
    ],
    "05b": [
        (lambda c: None, "replace the dots"),
        (count(block=lambda V, D, E, N, R, K: -E), "one vector of E"),
        (count(block=lambda V, D, E, N, R, K: -2 * E), "two vectors of E"),
        (count(block=lambda V, D, E, N, R, K: -3 * E), "three vectors of E"),
        (count(block=lambda V, D, E, N, R, K: -N * E), "is it A"),
        (count(block=lambda V, D, E, N, R, K: -R * E), "take two matrices"),
        (count(block=lambda V, D, E, N, R, K: 2 * E), "in_proj has no bias here"),
        (count(block=lambda V, D, E, N, R, K: -D), "one vector of D"),
        (count(block=lambda V, D, E, N, R, K: -E * D), "What does in_proj make"),
        (count(block=lambda V, D, E, N, R, K: 2 * E + D), "no bias here"),
        (count(block=lambda V, D, E, N, R, K: E * E - 2 * R * E), "one matrix E x E"),
        (count(block=lambda V, D, E, N, R, K: (E - 1) * E * K), "each has K weights"),
        (count(model=lambda V, D, E, N, R, K: -D), "follows the last block"),
        (count(model=lambda V, D, E, N, R, K: V * D), "The head is tied"),
        (count(model=lambda V, D, E, N, R, K: -V * D), "tokens' vectors"),
        (count(model=lambda V, D, E, N, R, K: 1), "made-up model should be"),
        (lambda c: count()(c) if c.hidden_size < 768 else 130_000_000, "for 130m"),
    ],
    "05c": [
        (lambda layer: None, "replace the dots"),
        (lambda layer: layer, "as it was"),
        (lambda layer: layer.in_proj, "Return a Layer"),
        (swap_in_place, "changes the layer"),
        (swap(lambda rows: rows[::-1]), "in reverse"),
        (swap(lambda rows: np.roll(rows, rows.shape[1] // 2, axis=1)), "Those are the columns"),
        (swap(lambda rows: rows[: len(rows) // 2]), "keep its shape"),
        (swap(lambda rows: np.roll(rows, 1, axis=0)), "the first half"),
    ],
}
