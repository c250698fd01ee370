# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   lesson:
#     minutes: 30
#     seconds: 20
#     after: []
# ---

# %% [markdown]
# # 01 Keep a number in mind
#
# **How does one number remember a signal, and what does a step size do?**
#
# Everything that Mamba remembers of a text stands in numbers that each follow one rule: lose a
# share of yourself, take in a share of what comes. Here you meet one such number, turn its
# equation into steps in four ways, see which of them Mamba takes and why, and end by making the
# number hold on to one value among noise. NumPy is all it takes.

# %%
import matplotlib.pyplot as plt
import numpy as np

import mamba_np.equations as eq
from lesson import check, show
from mamba_np import plot

plt.style.use(plot.STYLE)
BLUE, ORANGE, GREEN, PINK, GRAY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "0.5"

# %% [markdown]
# ## A bucket with a hole
#
# Pour water into a bucket that has a hole. The fuller it is, the faster it leaks. With $h$ for the
# height of the water and $x$ for what is poured in,
#
# $$h'(t) = A\,h(t) + B\,x(t), \qquad A < 0 .$$
#
# $A$ is the leak: a negative number, in shares per second. $B$ says how much of the input lands
# in the bucket. An electrical engineer sees a capacitor that is charged through a resistor, a
# doctor sees a drug in the blood. It is the smallest **state space model**: $h$ is the *state*,
# and whoever knows it needs to know nothing else of the past.
#
# While $x$ stays the same the equation can be solved with pencil and paper:
#
# $$h(t) = e^{At}\,h(0) + \frac{e^{At} - 1}{A}\,B\,x .$$
#
# Below, somebody pours between second 1 and second 3.


# %%
def bucket(t, h0, x, A=-1.0, B=1.0):
    """Return the height after t seconds of a constant input x."""
    return np.exp(A * t) * h0 + (np.exp(A * t) - 1) / A * B * x


t = np.linspace(0, 8, 801)
pouring = ((t >= 1) & (t < 3)).astype(float)
height = np.zeros_like(t)
height[t >= 1] = bucket(t[t >= 1] - 1, 0, 1)
height[t >= 3] = bucket(t[t >= 3] - 3, bucket(2, 0, 1), 0)

fig, ax = plt.subplots(figsize=(7, 2.4), layout="constrained")
ax.fill_between(t, pouring, color="0.88", lw=0)
ax.plot(t, height, color=BLUE)
ax.text(2, 1.03, "input x", ha="center", color=GRAY)
ax.text(3.15, 0.86, "state h: it lags behind, and forgets", color=BLUE)
gone = 3 + np.log(2)
ax.plot([3, gone], [height.max(), height.max() / 2], "o", color=BLUE, ms=4)
ax.annotate(
    "half is left after ln 2 / |A| = 0.69 s",
    (gone, height.max() / 2),
    (4.4, 0.55),
    arrowprops={"arrowstyle": "-", "color": GRAY},
)
ax.set(xlabel="time in seconds", ylabel="height", ylim=(0, 1.15))
plt.show()

# %% [markdown]
# The state is a memory of one number with a **half-life**: without input, half of what is there
# is gone after $\ln 2 / |A|$ seconds, whatever that was.
#
# ## From a flow to steps
#
# Text does not flow: it comes token by token. Give each token a duration, the **step size**
# $\Delta$ (`delta`), and ask for the height at the end of each step. The answer has always the
# same form,
#
# $$h_t = \bar A\, h_{t-1} + \bar B\, x_t ,$$
#
# with a share $\bar A$ of the old that stays and a share $\bar B$ of the new that enters. How to
# make $(\bar A, \bar B)$ of $(\Delta, A, B)$ is called **discretisation**. Four ways are in use:
#
# * *Euler*: go along the slope at the start of the step, $h_t = h_{t-1} + \Delta\,(A h_{t-1} +
#   B x_t)$.
# * *Bilinear*: take the mean of the slopes at both ends of the step. S4 did that.
# * *Zero-order hold* (ZOH): hold $x_t$ during the step and solve exactly, as with the bucket.
# * *Mamba*: $\bar A$ from the zero-order hold, $\bar B$ from Euler.
#
# They are in the package, and short ("the paper" is Gu and Dao's of 2023, linked at the end):

# %%
show(eq.discretise_euler, eq.discretise_bilinear, eq.discretise_zoh, eq.discretise)

# %% [markdown]
# One step is one line too. Every engine of this package, for the CPU and for the GPU, computes
# states with it:

# %%
show(eq.state_update)


# %%
def states(x, delta, rule, A=-1.0, B=1.0):  # (L), number or (L) -> (L)
    """Return the state after each input, from h = 0."""
    A_bar, B_bar = (np.broadcast_to(v, x.shape) for v in rule(delta, A, B))
    h, seen = 0.0, []
    for t in range(len(x)):
        h = eq.state_update(h, A_bar[t], B_bar[t] * x[t])
        seen.append(h)
    return np.array(seen)


steps = 16
by_zoh = states(np.ones(steps), 0.25, eq.discretise_zoh)
assert np.allclose(by_zoh, bucket(0.25 * np.arange(1, steps + 1), 0, 1), rtol=1e-14)

# %% [markdown]
# The zero-order hold is exact, as long as the input really is constant during each step.
#
# *Is it $x_t$ or $x_{t-1}$?* You will see both. In Mamba today's token enters today's state:
# $h_t$ holds $x_t$ already. Books on control have $x_{t-1}$, because there an input takes a step
# to arrive.
#
# ### Exercise 01a
#
# Write $\bar B$ of the exact rule yourself. Hold $x = 1$ for a time $\Delta$ and begin with
# $h(0) = 0$: how high is the water then? It is the integral
# $\int_0^\Delta e^{A s} B\, ds$.


# %%
def exact_input(A, B, delta):
    return ...  # your formula, with np.exp


check("01a", exact_input)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 01a: open it when you have tried.
def integrated(A, B, delta):
    return (np.exp(A * delta) - 1) / A * B


check("01a", integrated)

# %% [markdown]
# ## Four rules, one bucket
#
# Now give the bucket one gulp: input 1 in the first step, nothing afterwards. What comes out, the
# **impulse response**, tells everything about such a system: any input is a sum of gulps. And
# because it is the step size that matters, halve it again and again, and look at the height at
# one moment, $t = 2$, after pouring all the time.

# %%
RULES = {
    "Euler": (eq.discretise_euler, ORANGE),
    "bilinear": (eq.discretise_bilinear, GREEN),
    "zero-order hold": (eq.discretise_zoh, BLUE),
    "Mamba": (eq.discretise, PINK),
}
deltas = 2.0 ** -np.arange(0, 11)
error = {
    name: [abs(states(np.ones(int(2 / d)), d, rule)[-1] - bucket(2, 0, 1)) for d in deltas]
    for name, (rule, _) in RULES.items()
}


def slope(name):
    """Return by which power of the step size the error shrinks."""
    return np.polyfit(np.log(deltas[4:]), np.log(error[name][4:]), 1)[0]


assert abs(slope("Euler") - 1) < 0.05
assert abs(slope("bilinear") - 2) < 0.05
assert abs(slope("Mamba") - 1) < 0.05
assert max(error["zero-order hold"]) < 1e-14

# %% tags=["heart"]
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(9.5, 3.2), layout="constrained")
delta, count = 1.5, 6
fine = np.linspace(0, (count - 1) * delta, 200)
left.plot(fine, -np.expm1(-delta) * np.exp(-fine), color="0.8", lw=4, zorder=0)
gulp = np.eye(count)[0]
for (rule, colour), marker in zip(RULES.values(), "sv.x", strict=True):
    left.plot(delta * np.arange(count), states(gulp, delta, rule), marker, color=colour, ms=6)
left.text(1.7, 0.87, "Euler falls below zero", color=ORANGE, fontsize=7)
left.text(0.25, 1.43, "Mamba: same decay, larger gulp", color=PINK, fontsize=7)
left.text(0.45, 0.5, "exact, and\nzero-order hold", color=BLUE, fontsize=7)
left.set(title="one gulp, steps of 1.5 s", xlabel="time in seconds", ylabel="state h")

size = np.linspace(0.01, 4, 200)
middle.axhspan(-3, -1, color="0.92", lw=0)
middle.text(0.15, -2.2, "unstable: each step\nmultiplies the state", color=GRAY, fontsize=7)
for rule, colour in list(RULES.values())[:3]:
    middle.plot(size, rule(size, -1.0, 1.0)[0], color=colour)
middle.text(2.1, -1.7, "Euler", color=ORANGE)
middle.text(2.9, -0.62, "bilinear", color=GREEN)
middle.text(1.5, 0.32, "zero-order hold, Mamba", color=BLUE)
middle.axhline(0, color=GRAY, lw=0.5)
middle.set(title="what stays after one step", xlabel="Δ |A|", ylabel="A_bar", ylim=(-3, 1.1))

for name in ("Euler", "bilinear", "Mamba"):
    right.loglog(deltas, error[name], "o-", color=RULES[name][1], ms=2.5)
right.text(1e-3, 4e-2, "Mamba and\nEuler: error ∝ Δ", color=PINK, fontsize=7)
right.text(3e-2, 3e-6, "bilinear:\nerror ∝ Δ²", color=GREEN, fontsize=7)
right.text(2e-2, 2e-8, "zero-order hold: none", color=BLUE, fontsize=7)
right.set(title="pouring: error at t = 2 s", xlabel="step size Δ in seconds", ylabel="|error|")
right.set_ylim(1e-8, 2)
plt.show()

# %% [markdown]
# Three pictures, three lessons.
#
# * **Left.** With large steps Euler overshoots and swings below zero. Mamba decays exactly as the
#   true curve does; its gulp is too large by a factor, the same at all times.
# * **Middle.** For Euler $\bar A = 1 + \Delta A$ leaves the band between -1 and 1 when
#   $\Delta |A| > 2$: from there on each step multiplies the state. The bilinear rule stays
#   inside, but below zero: it flips the sign at each step. $e^{\Delta A}$ is between 0 and 1 for
#   *every* step size. Mamba's step sizes follow from the text and may come out large, so it needs
#   just that.
# * **Right.** Halve the step, and Euler's and Mamba's error halve, the bilinear one becomes a
#   quarter.
#
# ## Why does Mamba take $\Delta B$ when the exact rule is that short?
#
# Readers of the paper ask this more often than anything else: its equation 4 is the exact rule,
# its code is not. Look at the factor between the two:
#
# $$\frac{\bar B_\text{Mamba}}{\bar B_\text{ZOH}} = \frac{\Delta A}{e^{\Delta A} - 1} .$$

# %%
size = np.geomspace(1e-3, 10, 200)
factor = eq.discretise(size, -1.0, 1.0)[1] / eq.discretise_zoh(size, -1.0, 1.0)[1]
assert np.allclose(factor, -size / np.expm1(-size))
assert np.allclose(factor[size < 0.1], 1 + size[size < 0.1] / 2, rtol=1e-3)

fig, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
ax.semilogx(size, factor, color=PINK)
ax.axhline(1, color=BLUE, lw=0.8)
ax.text(1.2e-3, 1.25, "small steps: both rules agree", color=GRAY)
ax.text(
    0.006, 5.5, "large steps: the exact rule takes at\nmost x / |A|, Mamba takes Δ x", color=GRAY
)
ax.set(xlabel="Δ |A|", ylabel="Mamba's B_bar / exact B_bar")
plt.show()

# %% [markdown]
# The factor scales what enters, by little where steps are small, and depends on $\Delta A$ alone.
# A model makes $\Delta$ and $B$ from the text with matrices that it learns, so it learns them
# *with* the factor: what enters is only counted differently. The authors call it "a mix of ZOH
# for A and Euler discretization for B"
# ([mamba#114](https://github.com/state-spaces/mamba/issues/114)). What training could not mend is
# an $\bar A$ outside of 0 to 1, and that one is exact. A trained model must keep the rule that it
# was trained with; [the notation](../docs/notation.md) says how to load one with another rule
# and see what happens.
#
# ### Exercise 01b
#
# At which step size is $\Delta B$ one per cent larger than the exact $\bar B$, for $A = -1$?
# Find a number with an error of less than one in fifty: by trying, by the picture, or by the
# factor's series $1 + \Delta |A| / 2 + \dots$

# %%
my_delta = ...  # a number

check("01b", my_delta)

# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 01b: open it when you have tried.
candidates = np.linspace(1e-4, 0.1, 10_000)
excess = candidates / -np.expm1(-candidates) - 1
first_above = candidates[np.argmax(excess > 0.01)]

check("01b", first_above)

# %% [markdown]
# ## The step size is a gate
#
# So far $\Delta$ was the distance of two samples. Now forget the clock: let $\Delta$ be
# *different at each step*, chosen by somebody. Half of the state is left after
# $\ln 2 / (\Delta |A|)$ steps:

# %%
show(eq.half_life)
for delta in (0.001, 0.1, 5.0):
    A_bar, B_bar = eq.discretise_zoh(delta, -1.0, 1.0)
    life = float(eq.half_life(delta, -1.0))
    assert np.isclose(A_bar**life, 0.5)
    print(
        f"delta = {delta:<5g} keeps {A_bar:.3f}, takes in {B_bar:.3f}: half-life {life:.3g} steps"
    )

raw = np.linspace(-8, 8, 33)  # any numbers: a step size is made positive by softplus
assert np.allclose(eq.discretise_zoh(eq.softplus(raw), -1.0, 1.0)[1], eq.sigmoid(raw))

# %% [markdown]
# A small step size says *nothing happens here: keep what you have, do not look*. A large one says
# *forget, and take this*. With $A = -1$ and the exact rule it is a mixture whose shares add up to
# one, $h_t = (1 - g)\,h_{t-1} + g\,x_t$ with $g = 1 - e^{-\Delta}$. Models make step sizes
# positive with softplus, and then $g$ is the sigmoid, the gate of a recurrent network: the
# paper's theorem 1, and the `assert` above. So this is how to keep a number in mind.

# %%
rng = np.random.default_rng(0)
x = rng.normal(0, 1, 60)
x[12] = 3.0
always = np.full(60, 0.1)
chosen = np.full(60, 0.001)
chosen[12] = 6.0

fig, (top, bottom) = plt.subplots(
    2, 1, figsize=(7, 3.6), layout="constrained", sharex=True, height_ratios=(3, 1)
)
top.stem(x, linefmt="0.8", markerfmt=".", basefmt=" ")
top.plot(states(x, always, eq.discretise_zoh), color=ORANGE)
top.plot(states(x, chosen, eq.discretise_zoh), color=BLUE)
top.annotate("the number to keep: 3", (12, 3), (14.5, 3.3), color=GRAY)
top.text(35, 2.35, "Δ opens once, and stays shut: 3 is kept", color=BLUE)
top.text(14.5, -2.3, "the same Δ at each step: noise comes and goes, 3 is lost", color=ORANGE)
top.set(ylabel="input x, state h", ylim=(-2.8, 4))
bottom.semilogy(chosen, color=BLUE, drawstyle="steps-mid")
bottom.semilogy(always, color=ORANGE)
bottom.set(xlabel="step", ylabel="Δ")
plt.show()

kept = states(x, chosen, eq.discretise_zoh)[-1]
assert abs(kept - 3) < 0.3, "47 steps of noise later"

# %% [markdown]
# Nothing but $\Delta$ was changed. A model that *computes* $\Delta$ from what it reads can decide
# token by token what to keep: this is the selection in "selective state space model".
#
# ### Exercise 01c
#
# Numbers are shown at steps 5, 20 and 40 of 60; everything else is noise. Give 60 step sizes so
# that the state at the end is the number shown at step **20**, to 2 %. (The exact rule is used,
# with $A = -1$. The check tries several inputs: you do not know the numbers.)

# %%
my_deltas = ...  # an array of 60 positive numbers

check("01c", my_deltas)

# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 01c: open it when you have tried.
shut_but_at_20 = np.full(60, 1e-5)
shut_but_at_20[20] = 10.0

check("01c", shut_but_at_20)

# %% [markdown]
# ## Two numbers swing, sixteen remember better
#
# One real number can only fade. A weight on a spring swings, and needs two: where it is and how
# fast it moves. Their equation has a matrix for $A$, whose eigenvalues are a pair of complex
# numbers; seen along its eigenvectors the two become one *complex* number that fades and turns,
# and the same functions step it: $A = -0.1 + 2i$ is a spring that swings twice in about six
# seconds.

# %%
A_spring, delta = -0.1 + 2j, 0.2
push = np.eye(60)[0]
turned = {
    name: states(push, delta, rule, A=A_spring).real
    for name, (rule, _) in RULES.items()
    if name != "Mamba"
}
clock = delta * np.arange(60)
B_bar = eq.discretise_zoh(delta, A_spring, 1.0)[1]
assert np.allclose(turned["zero-order hold"], (B_bar * np.exp(A_spring * clock)).real)
grows = abs(eq.discretise_euler(delta, A_spring, 1.0)[0])
assert grows > 1 > abs(eq.discretise_bilinear(delta, A_spring, 1.0)[0])

fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 2.8), layout="constrained")
for name, values in turned.items():
    left.plot(clock, values, color=RULES[name][1])
left.set(
    title="a spring after a push", xlabel="time in seconds", ylabel="position", ylim=(-1, 1.25)
)
left.text(0.3, 1.08, f"Euler: × {grows:.3f} at each step", color=ORANGE, fontsize=7)
left.text(
    0.3, -0.9, "zero-order hold, and nearly\nbilinear: it comes to rest", color=BLUE, fontsize=7
)

N, lag = 16, np.arange(200)
A_bank = eq.continuous_A(np.log(np.arange(1, N + 1)))  # -1, -2, ..., -N
fades = eq.discretise(0.02, A_bank[:, None], 1.0)[0] ** lag
right.plot(lag, fades.T, color=BLUE, alpha=0.5, lw=0.8)
line = {"arrowstyle": "-", "color": GRAY}
right.annotate("A = -1: half-life 35 steps", (35, 0.5), (60, 0.62), color=BLUE, arrowprops=line)
right.annotate("A = -16: half-life 2 steps", (2.2, 0.5), (60, 0.85), color=BLUE, arrowprops=line)
right.set(title="a channel of Mamba: 16 memories", xlabel="steps ago", ylabel="what is left")
plt.show()

assert np.array_equal(A_bank.round(12), -np.arange(1.0, N + 1))
assert [round(float(eq.half_life(0.02, A))) for A in (-1, -16)] == [35, 2]

# %% [markdown]
# S4 worked with complex states; Mamba found that for text real ones do. Each of its channels
# has `N = 16` numbers with the leaks $A = -1, -2, \dots, -16$ when training begins: sixteen
# memories, some long and some short, of one and the same input. A channel's output is a weighted
# sum of them, $y_t = C\,h_t$, and these weights too are made from the text. $A$ is stored as
# `A_log`, with $A = -e^{\text{A\_log}}$: no training step can make it positive, so no state can
# blow up.
#
# To take with you:
#
# | | says |
# |---|---|
# | $A < 0$ | how fast this number forgets, per unit of step size |
# | $\Delta > 0$ | how much happens at this step: forget and take (large), or keep (small) |
# | $\bar A = e^{\Delta A}$ | the share of the old that stays, always between 0 and 1 |
# | $\bar B = \Delta B$ | how the new enters |

# %% [markdown]
# ## Read next
#
# * [02 Run one model three ways](02_run_one_model_three_ways.ipynb): when $\Delta$ is the same at
#   each step the whole history is a convolution, which is what made S4 fast, and what Mamba gave
#   up.
# * [The notation](../docs/notation.md): every symbol here, in the paper, in transformers and in
#   checkpoints.
# * The paper, [Gu and Dao 2023](https://arxiv.org/abs/2312.00752), sections 2 and 3.5.1 (the gate);
#   for S4's rules [Gu, Goel and Ré 2021](https://arxiv.org/abs/2111.00396).
# * `mamba_np/equations.py`: all formulas of the model, one short function each.
