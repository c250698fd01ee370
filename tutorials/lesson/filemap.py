"""A file of weights as a picture: every byte in its place, coloured by what it belongs to."""

import numpy as np
from matplotlib.colors import ListedColormap

ROW, CELL = 2**16, 64
"""Bytes of a row of the picture, and of its smallest part."""

COLOURS = {
    "end": "white",
    "header": "black",
    "few numbers": "#e69f00",
    "embeddings": "#56b4e9",
    "in_proj": "#009e73",
    "out_proj": "#66c2a5",
    "x_proj": "#cc79a7",
    "dt_proj": "#f0a8d0",
}


def draw_file(ax, size, start, header):
    """Draw a safetensors file of ``size`` bytes, whose numbers begin at ``start``, to scale.

    ``header`` is {name: {"dtype", "data_offsets", ...}}; rows of the picture are read like lines of
    a page.
    """
    kinds = list(COLOURS)
    rows = -(-size // ROW)
    cells = np.zeros(rows * ROW // CELL, int)
    cells[: start // CELL] = kinds.index("header")
    for name, tensor in header.items():
        first, last = (start + offset for offset in tensor["data_offsets"])
        part = name.removesuffix(".weight").split(".")[-1]
        kind = part if part in COLOURS and tensor["dtype"] != "F32" else "few numbers"
        cells[first // CELL : last // CELL] = kinds.index(kind)
        if kind != "few numbers" and last - first > ROW:
            middle = (first + last) / 2 / ROW
            ax.text(ROW / 2048, middle, part, ha="center", va="center", fontsize=7)
            if part == "in_proj":
                ax.text(66, middle + 0.7, f"block {name.split('.')[2]}", va="center", fontsize=7)
    picture, cmap = cells.reshape(rows, -1), ListedColormap(list(COLOURS.values()))
    place = {"extent": (0, ROW / 1024, rows, 0), "aspect": "auto", "interpolation": "nearest"}
    ax.imshow(picture, cmap=cmap, vmax=len(kinds) - 1, **place)
    ax.set_xlabel("KiB of a row")
    ax.set_ylabel("MiB from the start of the file")
    ax.set_xticks(range(0, 65, 16))
    ax.set_yticks(range(0, rows, 16), [f"{row * ROW / 2**20:g}" for row in range(0, rows, 16)])
    _notes(ax, start, header, rows)


def _notes(ax, start, header, rows):
    """Name, beside the picture, what is too small to hold its name."""
    narrow = min(t["data_offsets"][0] for t in header.values() if t["dtype"] == "BF16")
    line = {"va": "center", "fontsize": 7, "arrowprops": {"arrowstyle": "-", "lw": 0.6}}
    ax.annotate("the header", (4, 0.5), (66, -1.5), **line)
    ax.annotate("norm, conv, A_log, D ...: F32", (63, 2), (66, 1.2), **line)
    ax.annotate("from here on: BF16", (63, (start + narrow) / ROW + 1), (66, 4), **line)
    colour = COLOURS["x_proj"]
    ax.text(66, rows - 1, "pink: x_proj, dt_proj", color=colour, fontsize=7, va="center")


def draw_layouts(ax, layouts):
    """Draw small files below each other, not to scale.

    Each of ``layouts`` is {what: (end of the header, end of the file, [(first, last), ...])}, the
    places of its tensors counted like the others from the start of the file.
    """
    for row, (what, (header, end, tensors)) in enumerate(layouts.items()):
        ax.text(-1, row, what, ha="right", va="center")
        ax.barh(row, end, height=0.8, color="0.9")
        ax.barh(row, 8, height=0.5, color="0.5")
        ax.barh(row, header - 8, height=0.5, left=8, color="black")
        for (first, last), colour in zip(tensors, ("#56b4e9", "#e69f00"), strict=False):
            ax.barh(row, last - first, height=0.5, left=first, color=colour, alpha=0.75)
    for x, text in ((4, "length"), (22, "header"), (46, "a"), (66, "b")):
        ax.text(x, -0.6, text, ha="center")
    ax.invert_yaxis()
    ax.set_xlim(-1, 110)
    ax.axis("off")
