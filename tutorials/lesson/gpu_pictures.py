"""Who reads what: pictures of a watched kernel, threads against places in memory."""

import matplotlib.pyplot as plt
import numpy as np

from .gpu_kernels import CHUNK
from .gpu_watch import Run, Score

BLOCKS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Colours of blocks, which colour-blind readers tell apart."""


def threads_and_cells(run: Run, array: str):
    """Draw threads above the numbers of an array, and a line for every read; return the Axes."""
    _, ax = plt.subplots(figsize=(7, 2.2), layout="constrained")
    blocks = 1 + max(a.block for a in run.log)
    busy = {a.block * run.threads + a.thread for a in run.log}
    for thread in range(blocks * run.threads):
        colour = BLOCKS[thread // run.threads]
        filled = colour if thread in busy else "none"
        ax.scatter(thread, 1, s=180, color=colour, facecolor=filled, zorder=3)
        text = f"{thread % run.threads}"
        inside = "white" if thread in busy else colour
        ax.text(thread, 1, text, ha="center", va="center", color=inside, zorder=4)
    for block in range(blocks):
        middle = block * run.threads + (run.threads - 1) / 2
        ax.text(middle, 1.35, f"block {block}", ha="center", color=BLOCKS[block])
    for place, value in np.ndenumerate(run[array]):
        label = f"{array}[{place[0]}]\n{value:.2g}"
        ax.text(place[0], -0.02, label, ha="center", va="top", fontsize=7)
    for a in run.reads(array):
        ax.plot([a.block * run.threads + a.thread, a.place[0]], [0.9, 0.03], color=BLOCKS[a.block])
    ax.set(xlim=(-0.8, blocks * run.threads - 0.2), ylim=(-0.45, 1.6))
    ax.axis("off")
    return ax


def who_reads(*panels: tuple[Run, str, str]) -> None:
    """Draw runs side by side, in the same colours: a run, an array of it, and the title of each."""
    widths = [3] + [1.6] * (len(panels) - 1)
    size, columns = (7 + len(panels) // 2, 2.5), len(panels)
    fig, axes = plt.subplots(
        1, columns, figsize=size, layout="constrained", squeeze=False, width_ratios=widths
    )
    for ax, (run, array, title) in zip(axes[0], panels, strict=True):
        image = reads(ax, run, array)
        ax.set_title(title, loc="left")
    fig.colorbar(image, label="when: accesses before it")


def naive_and_chunked(naive: Run, chunked: Run, L: int) -> None:
    """Draw who reads B and C where each thread reads all, and where blocks share their chunks."""
    fig, axes = plt.subplots(2, 2, figsize=(9, 5.4), layout="constrained", width_ratios=(1.2, 1))
    latest, last = (max(a.order for a in run.log) for run in (naive, chunked))
    groups = ["0 to 3", "4 to 7"]
    both = [f"chunk {k}, {group}" for k in range(L // CHUNK) for group in groups]
    reads(axes[0, 0], naive, "selected", latest, [f"channels\n{group}" for group in groups])
    reads(axes[0, 1], chunked, "selected", latest, both)
    image = reads(axes[1, 1], chunked, "shared", latest, both)
    few, near = len(chunked.reads("selected")), len(chunked.reads("shared"))
    title = f"Naive: {len(naive.reads('selected'))} reads, each number by every thread"
    axes[0, 0].set_title(title, loc="left")
    axes[0, 1].set_title(f"In chunks: {few} reads, each number once a block", loc="left")
    axes[1, 1].set_title(f"and {near} reads of what the block has brought", loc="left")
    words = (
        "A row is a thread, a column a number of B or C.\n"
        "Colour: when it is read, dark early, bright late.\n\n"
        f"Naive, a thread makes {latest + 1} accesses in a row.\n"
        f"With its chunk alone it makes {last + 1}, most of them\n"
        "to memory that is near, and all chunks go at once."
    )
    axes[1, 0].axis("off")
    axes[1, 0].text(0, 0.5, words, va="center", fontsize=10, linespacing=1.6)
    fig.colorbar(image, ax=axes[:, 1], label="accesses of the thread before")


def reads(ax, run: Run, array: str, latest: int | None = None, names=None):
    """Draw which thread reads which numbers of an array, and when; return the image.

    Colours count the accesses of a thread before its first read of a number, up to ``latest``.
    ``names`` are those of the blocks.
    """
    log = run.reads(array)
    shape = tuple(1 + max(a.place[k] for a in log) for k in range(len(log[0].place)))
    blocks = 1 + max(a.block for a in run.log)
    when = np.full((blocks * run.threads, int(np.prod(shape))), np.nan)
    for a in reversed(log):  # the first one stays
        when[a.block * run.threads + a.thread, np.ravel_multi_index(a.place, shape)] = a.order
    latest = max(a.order for a in run.log) if latest is None else latest
    image = ax.imshow(when, aspect="auto", vmin=0, vmax=latest, interpolation="nearest")
    ax.set_facecolor("0.93")
    for row in range(1, len(when)):
        edge = row % run.threads == 0
        ax.axhline(row - 0.5, color="white", linewidth=3 if edge else 0.5)
    for row in range(shape[-1], when.shape[1], shape[-1]):
        ax.axvline(row - 0.5, color="white", linewidth=0.8)
    ax.set_yticks(
        [(block + 0.5) * run.threads - 0.5 for block in range(blocks)],
        [f"block {block}" for block in range(blocks)] if names is None else names,
    )
    ax.tick_params(length=0)
    memory = "the block's shared memory" if array == "shared" else f"{array}, in global memory"
    ax.set_xlabel(f"{memory}: {when.shape[1]} numbers, in their order")
    return image


def score_bars(scores: dict[str, Score]) -> None:
    """Draw the reads for each number of the result: of global memory, then of shared memory."""
    _, ax = plt.subplots(figsize=(7, 2.2), layout="constrained")
    names = list(scores)[::-1]
    near = [scores[name].shared_reads for name in names]
    far = [scores[name].global_reads for name in names]
    ax.barh(names, far, color="#D55E00")
    ax.barh(names, near, left=far, color="#56B4E9")
    for row, (a, b) in enumerate(zip(far, near, strict=True)):
        ax.text(a / 2, row, f"{a:.3g}", ha="center", va="center", color="white")
        if b:
            ax.text(a + b / 2, row, f"{b:.3g}", ha="center", va="center")
    ax.text(far[-1] + 0.3, len(names) - 1, "from global memory", color="#D55E00", va="center")
    end = far[-2] + near[-2]
    ax.text(end + 0.3, len(names) - 2, "from shared memory", color="#0072B2", va="center")
    ax.set_xlabel("reads for each output")
