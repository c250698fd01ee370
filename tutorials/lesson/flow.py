"""A map of a block, every array drawn to scale, and what tells whether two arrays are the same."""

import numpy as np

ALONE, MIXES = "0.4", "#d55e00"  # steps that see one token alone, and steps that look at others

PLACES = {
    "residual": (0, 96),
    "u": (1, 96),
    "inputs": (2, 0),
    "z": (2, 470),
    "conv": (3, 0),
    "x": (4, 0),
    "r": (5, 184),
    "B": (5, 444),
    "C": (5, 648),
    "delta": (6, 0),
    "h": (7, 0),
    "y": (8, 0),
    "gated": (9, 0),
    "out": (10, 96),
    "residual + out, for the next block": (11, 96),
}
"""Row and column of each array."""

STEPS = (
    ("rms_norm", ALONE),
    ("in_proj", ALONE),
    ("causal_conv: meets 4 tokens", MIXES),
    ("silu", ALONE),
    ("x_proj", ALONE),
    ("dt_proj, softplus", ALONE),
    ("scan: meets all before", MIXES),
    ("times C, summed over N", ALONE),
    ("+ D x, times silu(z)", ALONE),
    ("out_proj", ALONE),
    ("+", ALONE),
)
"""What leads from one row to the next."""

ASIDE = (
    ("in_proj", ALONE, (290, 1.2), (662, 1.2), (662, 1.84)),
    ("x_proj", ALONE, (190, 4.6), (656, 4.6), (656, 4.84)),
    ("x_proj", ALONE, (190, 4.6), (452, 4.6), (452, 4.84)),
    ("", MIXES, (452, 5.5), (452, 7.2), (386, 7.2)),  # B
    ("", ALONE, (656, 5.5), (656, 8.2), (386, 8.2)),  # C
    ("", ALONE, (842, 2.5), (842, 9.2), (386, 9.2)),  # z
    ("", ALONE, (-2, 4.2), (-25, 4.2), (-25, 9.2), (-2, 9.2)),  # D x
    ("", MIXES, (-25, 7.0), (-25, 7.2), (-2, 7.2)),  # x
    ("", ALONE, (94, 0.2), (-50, 0.2), (-50, 11.2), (94, 11.2)),  # the residual
)
"""Ways that pass by other steps: points (column, row)."""


def norm(array):  # (1 L ...) -> ()
    """Return the length of all numbers of a token, averaged over the tokens."""
    return np.sqrt((array[0] ** 2).reshape(array.shape[1], -1).sum(axis=1)).mean()


def same(ours, models):
    """Assert that two arrays are equal, up to rounding in float32."""
    error = np.abs(ours - models).max() / np.abs(models).max()
    assert ours.shape == models.shape
    assert error < 1e-5, error
    print(f"{ours.shape}: equal, to {error:.0e} of the largest number")


def draw_block(ax, arrays):
    """Draw the arrays of a block by name, those of ``PLACES``, each (1, L, channels, ...).

    Rows of a strip are tokens, columns channels: red above zero, blue below. A bar shows the norm.
    """
    for name, (row, left) in PLACES.items():
        _strip(ax, row, left, name, arrays[name])
    for row, (name, colour) in enumerate(STEPS, start=1):
        _arrow(ax, name, colour, (190, row - 0.48), (190, row - 0.16))
    for way in ASIDE:
        _arrow(ax, *way)
    tokens = len(arrays["u"][0])
    about = f"One row for each of the {tokens} tokens,\none column for each channel.\n"
    ax.text(480, 0.5, about + "Black bars: the length of a token's vector.", va="center")
    ax.text(-70, 5.7, "the residual: a block adds, it never replaces", rotation=90, va="center")
    point = "Only the two orange steps look at other tokens.\nAll else sees one token alone."
    ax.text(410, 10.5, point, color=MIXES, fontsize=11, va="center")
    ax.set(xlim=(-85, 870), ylim=(11.6, -0.25))
    ax.axis("off")


def _strip(ax, row, left, name, array):
    values, length = array[0], norm(array)
    flat = values if values.ndim == 2 else np.sqrt((values**2).sum(axis=2))
    bound, width = np.quantile(np.abs(flat), 0.98), flat.shape[1]
    place = (left, left + width, row + 0.4, row)
    ax.imshow(flat, cmap="RdBu_r", vmin=-bound, vmax=bound, extent=place, aspect="auto")
    ax.plot([left, left + 12 * length], [row + 0.47] * 2, "k", lw=2.5, solid_capstyle="butt")
    shape = " x ".join(map(str, values.shape))
    ax.text(left, row - 0.04, f"{name}   {shape}   norm {length:.2g}", fontsize=7.5, weight="bold")


def _arrow(ax, text, colour, *points):
    ax.plot(*zip(*points, strict=True), color=colour, lw=1.2)
    style = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", points[-1], points[-2], arrowprops=style)
    x, row = points[-1]
    ax.text(x + 8, row - 0.09, text, color=colour, fontsize=8)
