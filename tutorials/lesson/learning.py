"""What a model has learned, and pictures of it: for the notebook that trains one by hand."""

import matplotlib.pyplot as plt
import numpy as np

from mamba_np.training.tasks import accuracy

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"


def look(model, ids, labels, special, traced=20):
    """Return the loss, the share of right answers, and the step sizes at three kinds of token.

    ``ids`` and ``labels`` (B, L) are those of ``tasks.induction_heads``. The kinds are the special
    token at its first place, the token after it, and noise; sizes are geometric means over
    channels, and means over the first ``traced`` texts.
    """
    out = model(ids, labels=labels)
    sizes = [_sizes(model, row[:-1], special) for row in ids[:traced]]
    return [out.loss, accuracy(out.logits, labels), *np.mean(sizes, axis=0)]


def _sizes(model, row, special):
    delta = model.trace(row, capture=("delta_geometric_mean",)).delta_geometric_mean[0, :-1]
    place = row.tolist().index(special)
    noise = np.delete(delta, [place, place + 1])
    return delta[place], delta[place + 1], np.exp(np.log(noise).mean())


def draw_slopes(even, gate, source, end):
    """Draw dy_t/dx_s, (s, t) each: with the same step size at all tokens, and one wide open.

    Left from the input ``source`` to all outputs, right from all inputs to the output ``end``.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), sharey=True, layout="constrained")
    for slopes, color, marker in ((even, BLUE, "o-"), (gate, ORANGE, "s-")):
        later = np.arange(source, len(slopes))
        left.semilogy(later, slopes[source, source:], marker, color=color, ms=3)
        right.semilogy(slopes[:, end], marker, color=color, ms=3)
    left.set(
        title=f"what input {source} does to each output",
        xlabel="output t",
        ylabel="slope $dy_t/dx_s$",
    )
    left.set_xticks(range(5, len(even), 5))
    right.set(title=f"what each input does to output {end}", xlabel="input s", ylim=(3e-5, 3))
    left.text(13, 0.06, "all step sizes 0.15", color=BLUE)
    left.text(13.3, 3e-3, "token 14 opens wide\nand overwrites", color=ORANGE, ha="right")
    right.text(0, 6e-4, "what it overwrote\nmatters no more", color=ORANGE)
    right.text(13.4, 0.8, "it matters itself", color=ORANGE, ha="right")
    return fig


def draw_errors(sizes, in_float64, in_float32):
    """Draw how wrong slopes by nudging are, for each size of a nudge."""
    fig, ax = plt.subplots(figsize=(6, 2.9), layout="constrained")
    for errors, color in ((in_float64, BLUE), (in_float32, ORANGE)):
        ax.loglog(sizes, errors, "o-", ms=3, color=color)
    ax.text(2e-10, 4e-6, "float64", color=BLUE)
    ax.text(3e-7, 4, "float32", color=ORANGE)
    ax.text(3e-2, 2e-6, "too large:\nthe curve bends", color=GREY)
    ax.text(1e-11, 2e-11, "too small: the two losses agree\nin nearly all their digits", color=GREY)
    ax.set(xlabel="size of the nudge", ylabel="largest error", ylim=(1e-11, 1e2))
    return fig


def draw_training(history, control):
    """Draw rows of step, loss, share of right answers, and step sizes at three kinds of token."""
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(8, 3), layout="constrained")
    for (step, nats, share, *_), color in ((control, GREY), (history, BLUE)):
        left.plot(step, nats, color=color)
        middle.plot(step, 100 * share, color=color)
    left.axhline(np.log(7), color=GREY, ls=":", lw=0.8)
    last = history[0, -1]
    left.text(last, 2.08, "guessing, ln 7", color=GREY, ha="right")
    left.text(62, 0.6, "$\\Delta$ follows\nthe input", color=BLUE)
    left.text(105, 1.5, "$\\Delta$ fixed", color=GREY, ha="right")
    left.set(title="loss of the answer, nats", xlabel="step of training", ylim=(0, 2.3))
    middle.set(title="right answers, %", xlabel="step of training", ylim=(0, 105))
    kinds = (
        ("special token", 0.15, GREEN),
        ("the token after it\nstays open", 0.39, ORANGE),
        ("noise: closes", 0.072, BLUE),
    )
    for sizes, (name, height, color) in zip(history[3:], kinds, strict=True):
        right.semilogy(history[0], sizes, color=color)
        right.text(last, height, name, color=color, ha="right")
    right.set(title="step size $\\Delta$", xlabel="step of training", ylim=(0.05, 0.6))
    right.set_yticks([0.05, 0.1, 0.2, 0.4], ["0.05", "0.1", "0.2", "0.4"])
    right.minorticks_off()
    return fig


def draw_text(row, before, after, special):
    """Draw the step sizes (L) at the tokens of a text (L), before and after training."""
    fig, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
    keep = row.tolist().index(special) + 1
    colors = np.where(row == special, GREEN, BLUE)
    colors[keep] = ORANGE
    ax.bar(range(len(row)), after, color=colors)
    ax.step(range(len(row)), before, where="mid", color=GREY)
    ax.text(len(row) - 0.3, before[-1], "before", color=GREY, va="center")
    ax.text(keep - 0.6, 0.9 * after[keep], "to be remembered", color=ORANGE, ha="right")
    ax.set_xticks(range(len(row)), row)
    ax.set(xlabel="token", ylabel="step size $\\Delta$")
    return fig


def draw_singular_values(matrix, change):
    """Draw the singular values of a matrix, and of what an adapter adds to it."""
    fig, ax = plt.subplots(figsize=(6, 2.7), layout="constrained")
    for values, color in ((matrix, GREY), (change, ORANGE)):
        ax.semilogy(np.arange(1, len(values) + 1), values, ".", color=color)
    ax.text(100, 1.5 * matrix[100], "the matrix", color=GREY, va="bottom")
    ax.text(8, 0.15, "its change: four directions", color=ORANGE)
    ax.text(60, 5 * change[60], "rounding of float32", color=ORANGE)
    ax.set(xlabel="singular values, from the largest", ylabel="size", ylim=(None, 60))
    return fig
