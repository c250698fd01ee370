"""Pictures of scans as rounds of merges: who reads whom, and what everybody holds."""

BLUE, GREY = "#0072B2", "#888888"


def draw_rounds(ax, rounds, L, held=None):
    """Draw the merges (i, j) of each round, time running down.

    ``held``, if given, has the pair (a, b) of arrays before the first round and after each: then
    a box says what its position holds, and is blue once that reaches back to position 0.
    """
    first, row = list(range(L)), [0] * L  # how far back a position knows, and where it was drawn
    for level, merges in enumerate([[], *rounds]):
        before = list(first)
        for i, j in merges:
            first[j] = before[i]
            color = BLUE if first[j] == 0 else GREY
            ax.plot([i, i, j], [row[i], level - 0.75, level], color=color, lw=1, zorder=1)
            ax.plot([j, j], [row[j], level], color=GREY, lw=0.6, zorder=0)
        for j in [j for _, j in merges] or range(L):
            row[j] = level
            if held is None:
                color = BLUE if first[j] == 0 else GREY
                face = BLUE if first[j] == 0 else "white"
                ax.plot(j, level, "o", ms=3.5, mfc=face, mec=color)
            else:
                _box(ax, j, level, first[j] == 0, *(values[j] for values in held[level]))
    ax.set(xlim=(-0.7, L - 0.3), ylim=(len(rounds) + 0.5, -0.5), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if held is not None:
        ax.set_xticks(range(L), [f"entry\n{t}" for t in range(L)])
        ax.set_yticks(
            range(len(rounds) + 1), ["given", *(f"round {k}" for k, _ in enumerate(rounds, 1))]
        )
        ax.tick_params(length=0, labeltop=True, labelbottom=False)


def _box(ax, x, y, finished, a, b):
    text = f"{b:g}" if finished else f"\N{MULTIPLICATION SIGN}{a:g}\n+{b:g}"
    box = {"boxstyle": "round,pad=0.25", "ec": GREY, "lw": 0.6, "fc": "white"}
    style = {"fontsize": 6.5, "ha": "center", "va": "center"}
    if finished:
        box["fc"] = BLUE
        style |= {"color": "white", "weight": "bold"}
    ax.text(x, y, text, bbox=box, **style)
