"""The picture of a ladder: what each rung costs, and the limits that no rung can pass."""

GREY, ORANGE, BLUE, GREEN = "#888888", "#D55E00", "#0072B2", "#009E73"
COLORS = {"NumPy": GREY, "compiled": ORANGE, "sixteen": BLUE, "mamba_np": GREEN}
"""By the first word of a rung's name."""


def draw_ladder(ax, ladder, floors):
    """Draw a bar for each rung {name: nanoseconds}, and a line for each floor of the same kind.

    A rung's text says its time, and how many times as fast as the first rung it is.
    """
    first, best = next(iter(ladder.values())), min(*ladder.values(), *floors.values())
    for i, (name, cost) in enumerate(ladder.items()):
        color = COLORS[name.replace(",", " ").replace(".", " ").split()[0]]
        ax.barh(i, cost, color=color, height=0.62)
        ax.text(cost * 1.08, i, f"{cost:.2g} ns, {first / cost:.3g} x", va="center")
    for text, floor in floors.items():
        ax.axvline(floor, color="black", lw=0.9, ls="--", zorder=0)
        ax.text(floor, -0.75, text, fontsize=7.5, ha="center", va="bottom")
    ax.set_yticks(range(len(ladder)), list(ladder))
    ax.set(xscale="log", xlim=(best / 2, max(ladder.values()) * 5), ylim=(len(ladder) - 0.5, -1.6))
    ax.set_xlabel("nanoseconds for each update (t, e, n): shorter is better")
