# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   lesson:
#     minutes: 40
#     seconds: 20
#     after: [1, 3]
# ---

# %% [markdown]
# # 05 Read the block line by line
#
# **What does one Mamba block do to a sentence, array by array?**
#
# A Mamba model is an embedding, a stack of equal blocks and a head: who has read one block has read
# the model. A trained model reads a sentence here. Then you do the same by hand, one short function
# after the other, and hold every array against the model's own. On the way: what is `A_log`, what
# is `dt_rank`, why does the cache keep K inputs? At the end you break the block on purpose, and
# nothing complains.

# %%
import dataclasses

import matplotlib.pyplot as plt
import numpy as np

from lesson import check, show
from lesson.exercises.e05 import SIZES
from lesson.flow import draw_block, norm, same
from mamba_np import AutoTokenizer, MambaConfig, MambaForCausalLM, bundled_model_path, plot
from mamba_np import equations as eq
from mamba_np import reference as ref

plt.style.use(plot.STYLE)

# %% [markdown]
# ## A sentence goes in
#
# A small model that was trained on fairy tales comes with the package. `model.trace` lets it read a
# text and keeps what it computes on the way. (The very first call compiles the fast engine, which
# takes some seconds, once on each machine.)

# %%
folder = bundled_model_path()
model, tokenizer = MambaForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
wanted = "delta", "B", "C", "x", "z", "y", "h", "residual", "logits"
trace = model.trace("Once upon a time, there was a king who had a golden", capture=wanted)


def best(scores, count=4):  # (V)
    """Return the tokens with the highest scores, and their probabilities."""
    p = eq.softmax(scores)
    return ", ".join(f"{tokenizer.decode([i])} {p[i]:.0%}" for i in np.argsort(-p)[:count])


print("read:", *trace.labels)
print("next:", best(trace.logits[-1]))

# %% [markdown]
# The model has an idea of how the sentence goes on. To see where it comes from, seven sizes are all
# we need to name. Each letter means the same in the code, in the formulas and in the pictures:
#
# | letter | what it counts | letter | what it counts |
# |---|---|---|---|
# | L | tokens of the text | N | numbers that each channel remembers |
# | D | numbers that stand for one token | K | inputs that the convolution looks at |
# | E | channels inside a block, here 2 D | R | `dt_rank`: step 6 says what that is |
# | V | tokens in the vocabulary | | |

# %%
config, layer = model.config, model.params.layers[0]
L, V, D, E = len(trace), config.vocab_size, config.hidden_size, config.intermediate_size
N, R, K = config.state_size, config.time_step_rank, config.conv_kernel
print(f"{L=} {D=} {E=} {V=} {N=} {K=} {R=}, and {len(model.params.layers)} blocks")
for field in dataclasses.fields(layer):  # all that one block has learnt
    array = getattr(layer, field.name)
    print(f"{field.name:>14}", "none in this model" if array is None else array.shape)

# %% [markdown]
# ## The map
#
# Before we read the first block line by line, here is all of it at once. `ref` is
# `mamba_np/reference.py`, the forward pass in plain NumPy. Its arrays begin with the axes (1, L):
# one text, L tokens. What a block remembers, a `State`, is all zeros before the first token. That
# is no trick: a state is a sum of what was written into it, and a sum of nothing is zero.

# %%
nothing = ref.State(window=np.zeros((1, E, K), np.float32), h=np.zeros((1, E, N), np.float32))
residual = ref.embed(trace.ids[None], model.params.embeddings, np.float32)  # (1 L D)
u = ref.rms_norm(residual, layer.norm, config.layer_norm_epsilon)  # (1 L D)
steps, after = ref.mixer_steps(u, layer, config, nothing)
out = ref.linear(steps.gated, layer.out_proj)  # (1 L D)

# %% tags=["heart"]
s = steps.selected
arrays = {"residual": residual, "u": u, "inputs": steps.inputs, "z": steps.z, "conv": steps.conv}
arrays |= {"x": steps.x, "r": s.low_rank, "B": s.B, "C": s.C, "delta": s.delta}
arrays |= {"h": trace.h[:1], "y": steps.y, "gated": steps.gated}
arrays |= {"out": out, "residual + out, for the next block": residual + out}
fig, ax = plt.subplots(figsize=(7.6, 9.8), layout="constrained")
draw_block(ax, arrays)
plt.show()

# %% [markdown]
# Every letter of the alphabet of Mamba is on it. The norm under each name is the length of the
# vector that stands for one token, averaged over the tokens. Some things can be seen before any
# formula: the step size delta is always positive and differs more between channels than between
# tokens; the state h fills up from the first token (top row) to the last; after the gate few
# numbers stand out; and this first block writes far more than it was given.
#
# Now line by line. The trace was made by compiled kernels and the arrays on the map by NumPy: two
# programs that have their formulas in common, and little else. Wherever they agree, up to rounding,
# we have understood the step.


# %%
show(norm, same)

# %% [markdown]
# ## 1 embed: a token is a row of a table
#
# The vocabulary has V tokens, and the matrix of embeddings one row of D numbers for each. There is
# no arithmetic here.

# %%
show(ref.embed)
assert np.array_equal(residual[0, 3], model.params.embeddings[trace.ids[3]])
print(f"{trace.labels[3]!r} is token {trace.ids[3]}, whose row begins", residual[0, 3, :3])

# %% [markdown]
# ## 2 rms_norm: every token at the same volume
#
# $$u = \frac{x}{\sqrt{\frac1D \sum_d x_d^2 + \varepsilon}} \cdot \text{weight}$$
#
# The residual grows from block to block (you will see by how much). The norm makes the block deaf
# to that: a token ten times as loud gives the same u. Only $\varepsilon$, which is there against a
# division by zero, makes a small difference.

# %%
show(ref.rms_norm)
louder = ref.rms_norm(10 * residual, layer.norm, config.layer_norm_epsilon)
np.testing.assert_allclose(louder, u, rtol=5e-3)
print(f"norm before: {norm(residual):.2f}, after: {norm(u):.2f}")

# %% [markdown]
# ## 3 in_proj: two copies, one to remember and one to judge
#
# One matrix of 2E rows makes E numbers that go on to the memory, `inputs`, and E others that will
# decide at the end how much of what comes out of it is let through: the gate z. Which rows are
# which is nothing but a convention: **the first E make the inputs, the last E make z**. Remember
# it; we come back to break it. (The trace does not keep u, but z is made of it: if z is right, so
# is u.)

# %%
both = ref.linear(u, layer.in_proj)  # (1 L 2E)
inputs, z = both[..., :E], both[..., E:]  # (1 L E) each
same(z, trace.z[:1])

# %% [markdown]
# ## 4 causal_conv: a look at the last K inputs
#
# Each channel c has K weights of its own, and slides them along the sentence:
#
# $$\mathrm{conv}_{t,c} = \mathrm{bias}_c +
# \sum_{k=0}^{K-1} w_{c,k}\; \mathrm{inputs}_{t-K+1+k,\,c}$$
#
# The last weight, k = K-1, meets the token t itself, the one before it the previous token, and so
# on; nothing comes from the future, hence *causal*. What would lie before the first token comes
# from the window, here zeros.

# %%
show(ref.causal_conv)
conv, window = ref.causal_conv(inputs, layer.conv, layer.conv_bias, nothing.window)
by_hand = layer.conv_bias + sum(inputs[:, 9 - K + 1 + k] * layer.conv[:, k] for k in range(K))
np.testing.assert_allclose(conv[:, 9], by_hand, atol=1e-5)  # the tenth token

# %%
fig, ax = plt.subplots(figsize=(5, 2.4), layout="constrained")
for one in model.params.layers:
    size = np.sqrt((one.conv**2).mean(axis=0))  # (K)
    ax.plot(size, "o-", color="0.6" if one is not layer else "#d55e00")
    assert size.argmax() == K - 2
ax.text(0, 0.25, "every block looks hardest\nat the token before", va="top")
ax.text(1.12, 0.065, "this block", color="#d55e00")
ax.set_xticks(range(K), [f"{back} back" for back in range(K - 1, 0, -1)] + ["the token itself"])
ax.set(ylabel="weights (root mean square)", ylim=0)
plt.show()

# %% [markdown]
# The gray lines are the model's other blocks. In each of them it is the *previous* token that
# weighs most: training found a use for pairs of neighbours before any memory comes into play.
#
# **Why does the cache keep K inputs?** When the model writes, tokens come one at a time, and those
# before are gone. So the block keeps a window with the last K inputs. It is exactly what the K
# weights meet at the latest token: the convolution there is one product and one sum.

# %%
assert np.array_equal(window[0], inputs[0, -K:].T)  # (E K), oldest first
np.testing.assert_allclose((window * layer.conv).sum(-1) + layer.conv_bias, conv[:, -1], atol=1e-5)

# %% [markdown]
# Does it need all K? The next token pushes the oldest input out of sight: whatever is put in its
# place changes nothing. K-1 would do, and some programs keep K-1. transformers and the authors'
# code keep K, so that one step is: shift, put the new input last, multiply, sum.

# %%
spoilt = np.concatenate([np.full((1, E, 1), 1e6, np.float32), window[..., 1:]], axis=2)
following = inputs[:, :1]  # any input will do
next_conv = [ref.causal_conv(following, layer.conv, None, w)[0] for w in (window, spoilt)]
assert np.array_equal(*next_conv)

# %% [markdown]
# ## 5 silu: what is below zero is almost forgotten
#
# $\mathrm{silu}(v) = v / (1 + e^{-v})$ is v where v is large, and close to 0 where v is negative.
# This is the x of the state space model: what the scan will read. Without this bend, in_proj and
# the convolution together would be one linear map.

# %%
show(eq.silu)
x = eq.silu(conv)
same(x, trace.x[:1])
print(f"{(conv < 0).mean():.0%} of the numbers were negative")

# %% [markdown]
# ## 6 select: the token chooses its own step size, B and C
#
# This is the selection of notebook 03, and what sets Mamba apart from the models before it. One
# matrix makes R + 2N numbers from the E of each token: R for the step sizes, N for B (what goes
# into the state), N for C (what is read from it). B and C are shared by all channels. The step size
# delta is not: each channel gets its own, positive thanks to softplus.
#
# $$\Delta = \mathrm{softplus}(W_{dt}\, r + b_{dt}), \qquad \mathrm{softplus}(v) = \log(1 + e^v)$$

# %%
show(ref.select)
selected = ref.select(x, layer.x_proj, layer.dt_proj, layer.dt_bias)
delta, B, C = selected.delta, selected.B, selected.C  # (1 L E), (1 L N), (1 L N)
for name in ("delta", "B", "C"):
    same(getattr(selected, name), getattr(trace, name)[:1])

# %% [markdown]
# **What is `dt_rank`?** To make E step sizes from E numbers takes a matrix of E x E. Mamba takes a
# product of two thin ones instead, through R numbers $r$ in the middle: a matrix whose rank is at
# most R. Published models have R = D / 16, rounded up. (The paper tried ranks from 1 to 64: a rank
# of 1 already helps, and more helps slowly.)

# %%
square = layer.dt_proj @ layer.x_proj[:R]  # (E E)
same(ref.linear(x, square, layer.dt_bias), selected.raw)
assert np.linalg.matrix_rank(square) == R
print(f"{square.size:,} numbers as one matrix, {layer.dt_proj.size + R * E:,} as two of rank {R}")

# %% [markdown]
# ## 7 A: sixteen clocks in each channel
#
# A channel remembers N numbers h. Left alone, the n-th of them shrinks at the rate A: $h' = A h$,
# so that a step of size delta leaves a share $\bar A = e^{\Delta A}$ of it.

# %%
show(eq.continuous_A, eq.discretise)
A = eq.continuous_A(layer.A_log)  # (E N)
assert (A < 0).all()

# %% [markdown]
# **Why negative?** Then $\bar A$ lies between 0 and 1, and memories fade. Were A positive, each
# step would multiply the state by more than 1. Let us try: this is the largest number in the state
# after the same sentence.

# %%
wide = [array.astype(np.float64) for array in (x, delta, A, B, C, nothing.h)]
_, fading = ref.selective_scan(*wide)
_, growing = ref.selective_scan(*wide[:2], -wide[2], *wide[3:])
print(f"with A: {np.abs(fading).max():.2g}   with -A: {np.abs(growing).max():.2g}")
assert np.abs(growing).max() > 1e9 * np.abs(fading).max()

# %% [markdown]
# **What is `A_log`, then?** Training nudges each parameter up or down, and nothing tells it to stop
# at zero. So what is learnt is `A_log`, which may be any number, and what the model uses is A,
# minus e to the power of it: negative whatever training does.
#
# **Why E x N?** Each of the E channels has N numbers of state, and each of these its own rate: some
# keep what was said long ago, others the last word. Models start with the rates 1, 2 ... N in every
# channel, and here training has left them near that. A does not depend on the token, and need not:
# it only ever occurs as $\Delta A$, and delta does.

# %%
print("|A| of the middle channel:", np.median(-A, axis=0).round(1))
channel = np.argsort(np.median(delta[0], axis=0))[E // 2]  # one with a middling step size
A_bar, _ = eq.discretise(np.median(delta[0, :, channel]), A[channel], 0.0)  # (N)
half_life = np.log(0.5) / np.log(A_bar)  # in tokens
later = np.arange(41)
fig, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
for n in range(N):
    ax.plot(later, A_bar[n] ** later, color=plt.cm.cividis(n / N))
ax.text(11.5, 0.78, f"n = 1, the slowest: half is left after {half_life.max():.0f} tokens")
fastest = f"n = {N}, the fastest: after {half_life.min():.1f}"
ax.annotate(fastest, (2.3, A_bar.min() ** 2.3), (24, 0.62), arrowprops={"arrowstyle": "->"})
ax.set(xlabel="tokens later", ylabel=f"share left in channel {channel}", xlim=(0, 40), ylim=(0, 1))
plt.show()

# %% [markdown]
# ## 8 scan: the long memory
#
# Now everything is there. For each token, in order, each channel lets its state fade, adds what the
# token writes, and reads:
#
# $$h_t = \bar A_t\, h_{t-1} + \bar B_t\, x_t, \qquad y_t = \sum_{n} C_{t,n}\, h_{t,n}, \qquad
# \bar A_t = e^{\Delta_t A}, \quad \bar B_t = \Delta_t B_t$$
#
# ### Exercise 05a: one step
#
# Write what a block does with one token, for all channels at once. Given are h (E, N), x (E), delta
# (E), A (E, N), B (N) and C (N); return y (E) and the new h (E, N). `eq.discretise` and
# `eq.state_update` may help.


# %%
def one_step(h, x, delta, A, B, C):
    """Return y (E) and h (E, N) after one more token."""
    ...


check("05a", one_step)

# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 05a: open it when you have tried.


def one_token(h, x, delta, A, B, C):  # (E N), (E), (E), (E N), (N), (N) -> (E), (E N)
    A_bar, B_bar = eq.discretise(delta[:, None], A, B)
    h = eq.state_update(h, A_bar, B_bar * x[:, None])
    return h @ C, h


check("05a", one_token)

# %% [markdown]
# Called once for each token, from a state of nothing, this is the whole scan. All states and all y
# are those of the model:

# %%
h, y = np.zeros((L, E, N), np.float32), np.zeros((1, L, E), np.float32)
for t in range(L):
    before = h[t - 1] if t else nothing.h[0]
    y[0, t], h[t] = one_token(before, x[0, t], delta[0, t], A, B[0, t], C[0, t])
same(h, trace.h[0])
same(y, trace.y[:1])

# %% [markdown]
# ## 9 gate: a way past the memory, and a valve
#
# $$\mathrm{gated} = (y + D\,x) \cdot \mathrm{silu}(z)$$
#
# D is one number for each channel (not the size D; the paper uses the letter twice, too). It lets
# the token itself pass by the memory. The gate z, made from the same token, then scales each
# channel: near zero or below, it shuts.

# %%
show(eq.output)
gated = eq.output(y, x, layer.D, z)
same(gated, steps.gated)
small = np.abs(gated) < 0.1 * np.abs(gated).max(axis=-1, keepdims=True)
print(f"norm of y: {norm(y):.1f}, of D x: {norm(layer.D * x):.1f}")
print(f"{small.mean():.0%} of the gated numbers are below a tenth of their token's largest")

# %% [markdown]
# ## 10 out_proj and the residual: back to D numbers, and add
#
# A last matrix makes D numbers of E, and the block adds them to what it was given.

# %%
show(ref.mixer, ref.block)
same(residual + ref.linear(gated, layer.out_proj), trace.residual[:1])
same(model.backbone.layers[0](residual), trace.residual[:1])  # the block as one call

# %% [markdown]
# That was a block. What it remembers for the next token is a `State`, the window and h, and nothing
# else, however long the text was. It is what the model's cache holds for each block:

# %%
cache = model(trace.ids[None]).cache_params
same(window, cache.conv_states[0])
same(h[-1:], cache.ssm_states[0])
print(f"E (K + N) = {E * (K + N):,} numbers for each block")

# %% [markdown]
# ## All blocks
#
# The other blocks do the same with other numbers. After the last come one more norm and the head,
# which scores each token of the vocabulary by the product with that token's embedding (the head
# *is* the embeddings here: it is tied). We can ask the same question early, after each block: what
# would come next if the model stopped here?

# %%
norms, written, guesses = [], [], []
for i, one in enumerate(model.params.layers):
    before, (residual, _) = residual, ref.block(residual, one, config, nothing)
    same(residual, trace.residual[i : i + 1])
    final = ref.rms_norm(residual, model.params.norm_f, config.layer_norm_epsilon)
    scores = ref.head(final, model.lm_head)  # (1 L V)
    norms.append(norm(residual))
    written.append(norm(residual - before))
    guesses.append(best(scores[0, -1], 1))
same(scores[0], trace.logits)
assert guesses[3].startswith("-")
assert guesses[4].startswith(" crown")

# %%
fig, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
ax.bar(range(6), norms, color="0.8")
ax.bar(range(6), written, width=0.35, color="#0072b2")
for i, guess in enumerate(guesses):
    ax.text(i, norms[i] + 1, guess.strip(), ha="center", family="monospace")
ax.text(-0.4, 42, "gray: the residual after the block", color="0.4")
ax.text(-0.4, 38, "blue: what the block wrote into it", color="#0072b2")
ax.text(-0.4, 34, "above: the best guess so far", family="monospace")
ax.set(xlabel="block", ylabel="norm", ylim=(0, 54))
plt.show()

# %% [markdown]
# Up to block 3 the best guess is a hyphen, as in "golden-haired"; the crown comes up in block 4.
# Each block writes about as much as the others, into a residual that grows: what was written first
# is not overwritten, it is outweighed. That is why the norm of step 2 has to be there.
#
# ## How many numbers is that?
#
# You have seen every array of a block now, and with the embeddings and the last norm all of a
# model.
#
# ### Exercise 05b: predict the size of published models
#
# Write a function that returns the number of learnt numbers of a model from its configuration
# alone. The head is tied, `use_bias` is False and `use_conv_bias` is True, as in all published
# models. The list of arrays at the top may help. Before you count: which array is the largest?


# %%
def parameters(config):
    """Return the number of learnt numbers."""
    ...


check("05b", parameters)

# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 05b: open it when you have tried.


def block_sizes(config):
    D, E, N = config.hidden_size, config.intermediate_size, config.state_size
    R, K = config.time_step_rank, config.conv_kernel
    return {
        "in_proj": 2 * E * D, "out_proj": D * E, "x_proj": (R + 2 * N) * E, "dt_proj": E * R + E,
        "A_log": E * N, "conv": E * K + E, "D and norm": E + D,
    }  # fmt: skip


def count(config):
    ends = config.vocab_size * config.hidden_size + config.hidden_size
    return ends + config.num_hidden_layers * sum(block_sizes(config).values())


check("05b", count)

# %% [markdown]
# The released models differ in two numbers of their configuration, D and how many blocks. These are
# their published sizes, and the formula gives them to the last digit:

# %%
assert count(config) == model.num_parameters()
for name, (width, blocks, published) in SIZES.items():
    one = MambaConfig(hidden_size=width, num_hidden_layers=blocks)
    assert count(one) == published
    print(f"{name} {published:>13,}")
sizes = block_sizes(one)
print("share of a block:", {k: f"{v / sum(sizes.values()):.1%}" for k, v in sizes.items()})

# %% [markdown]
# The two projections at the ends of a block are nearly all of it. What makes it Mamba, the
# selection, A and the convolution, is a few numbers in a hundred.
#
# ## What breaks when x and z are swapped?
#
# Step 3 said that the first E rows of `in_proj` make the inputs, the last E rows z. It is a
# convention. Suppose that someone who carries a model to another program takes it the other way
# round.
#
# ### Exercise 05c: swap them
#
# Write a function that returns a new `Layer` in which the two halves of `in_proj` have changed
# places, all else being equal. `dataclasses.replace` makes a copy with one field changed. Before
# you go on, guess: what will complain?


# %%
def swap(layer):
    """Return a layer that takes z for x and x for z."""
    ...


check("05c", swap)

# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 05c: open it when you have tried.


def swapped(layer):
    x_rows, z_rows = np.split(layer.in_proj, 2)
    return dataclasses.replace(layer, in_proj=np.concatenate([z_rows, x_rows]))


check("05c", swapped)

# %% [markdown]
# Nothing complains. Shapes and dtypes fit, `inputs` and z have nearly the same norm (look at the
# map), no number is out of range. Only the text knows. Below is what the model writes after "Once
# upon a time" when one block is swapped, or all are, and the loss: how badly it predicts the next
# tokens of a tale, on average.

# %%
text = (
    "Once upon a time there was a king who had three daughters. The youngest was so beautiful "
    "that the sun wondered every time he looked at her. One day she went into the forest."
)
tale = tokenizer(text, return_tensors="np")["input_ids"]
losses = {}
cases = {"as trained": []} | {f"block {i}": [i] for i in range(6)} | {"all blocks": range(6)}
for name, which in cases.items():
    layers = (swapped(one) if i in which else one for i, one in enumerate(model.params.layers))
    params = dataclasses.replace(model.params, layers=tuple(layers))
    broken = MambaForCausalLM(config, params=params)
    losses[name] = broken(tale, labels=tale).loss
    written = tokenizer.decode(broken.generate(tale[:, :4], max_new_tokens=14)[0])
    print(f"{name:>10}: {written!r}")
assert losses["block 0"] > 2 * losses["as trained"]

# %%
fig, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
bars = ax.barh(list(losses), losses.values(), color=["0.6"] + ["#d55e00"] * 7)
ax.bar_label(bars, fmt="%.2f", padding=3)
ax.axvline(np.log(V), color="black", ls=":")
ax.text(np.log(V) - 0.1, 3, "as bad as\nknowing nothing", ha="right", va="center")
ax.set(xlabel="loss, nats a token", xlim=(0, 9))
ax.invert_yaxis()
plt.show()

# %% [markdown]
# The first block breaks everything: all later ones read what it wrote. With any other block swapped
# the model still writes sentences, and one might take it for a model that is just a little weak.
# This is how a port fails: silently. So compare numbers, step by step, with a program that is known
# to be right. It is what you did here, and what the tests of this package do.

# %% [markdown]
# ## Read next
#
# - [08 See what delta sees](08_see_what_delta_sees.ipynb): a trace again, asked what the words do
#   to step sizes and states.
# - [06 Write text from a state](06_write_text_from_a_state.ipynb): what the cache is for.
# - `mamba_np/reference.py`, from top to bottom: you know nearly every function in it now.
# - The paper, [Gu and Dao 2023](https://arxiv.org/abs/2312.00752): section 3.4 and figure 3 are
#   this notebook's map; section 3.5.2 says what A, B, C and delta mean.
# - [docs/notation.md](../docs/notation.md): which letter is what, here, in the paper and in other
#   programs.
