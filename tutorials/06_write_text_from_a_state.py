# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   lesson:
#     minutes: 30
#     seconds: 30
#     after: [5]
# ---

# %% [markdown]
# # 06 Write text from a state
#
# **How can a model write a text of any length if all that it remembers has a fixed size?**
#
# A Transformer keeps something of every token that it has read, and looks through all of it for
# each new one. Mamba keeps a state, and throws the text away. Here you write text in five lines,
# measure what a token costs after 16 tokens and after 32,768, save a state to a file and go on from
# it in two ways, and see how scores become a word: temperature, top-k, top-p.

# %%
import tempfile
import timeit
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import mamba_np
from lesson import check, show
from mamba_np import MambaCache, MambaForCausalLM, analysis, bundled_model_path, plot, sampling
from mamba_np import equations as eq
from mamba_np.blas import single_threaded_blas

plt.style.use(plot.STYLE)
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.45"
tokenizer = mamba_np.AutoTokenizer.from_pretrained(bundled_model_path())
model = MambaForCausalLM.from_pretrained(bundled_model_path())


def read(text):
    """Return the ids (1, L) of a text."""
    return tokenizer(text, return_tensors="np")["input_ids"]


# %% [markdown]
# ## A text appears
#
# The model that comes with the package has read old children's stories. A `TextStreamer` prints
# each token as soon as it is chosen.

# %%
start = read("Once upon a time")
options = {"do_sample": True, "temperature": 0.7, "seed": 17}
streamer = mamba_np.TextStreamer(tokenizer)
told = model.generate(start, max_new_tokens=60, streamer=streamer, **options)

# %% [markdown]
# It loses the thread quickly: it is a toy. But it keeps to the words and the grammar of what came
# before, so between two tokens it must keep *something*. What?
#
# ## What is kept between two tokens
#
# A model of $n$ blocks keeps two arrays for each block (notebook 05 went through a block):
#
# - the **window**, the last $K$ inputs of the convolution, for each of $E$ channels;
# - the **state** $h$, $N$ numbers for each channel.
#
# Together they are the *cache*. A call returns it, and takes it to go on from there.

# %%
ids = read("Once upon a time there was a little")
output = model(ids)
cache = output.cache_params
print(cache)
print(f"window (B, E, K) = {cache.conv_states[0].shape}, h (B, E, N) = {cache.ssm_states[0].shape}")
print(f"{cache.nbytes:,} bytes after {ids.shape[1]} tokens")

c = model.config
n, E, N, K = c.num_hidden_layers, c.intermediate_size, c.state_size, c.conv_kernel
assert cache.nbytes == n * E * (N + K) * 4  # float32: four bytes a number

# %% [markdown]
# To read the next token, each channel does one step of the recurrence. With the step size
# $\Delta$, the decay rates $A$ (fixed, negative), and $B$ and $C$, the ways in and out. $\Delta$,
# $B$ and $C$ are made from this very token. Products are element by element over the $N$ numbers,
# but for $C h$, a sum:
#
# $$h \leftarrow \bar A\,h + \bar B\,x, \qquad y = C\,h,
# \qquad \bar A = e^{\Delta A},\quad \bar B = \Delta B.$$

# %%
show(eq.discretise, eq.state_update)

# %% [markdown]
# The old $h$ is on the right, the new one on the left, and the text is nowhere. So two ways of
# reading must give the same: all tokens in one call (the **prefill**, which works on many tokens at
# once), or one after another (the **step**).

# %%
stepped = MambaCache(model.config)  # a new cache: nothing has been read
for token in ids[0]:
    logits = model([[token]], cache_params=stepped).logits

np.testing.assert_allclose(logits[0, -1], output.logits[0, -1], atol=1e-4)
assert stepped.nbytes == cache.nbytes

# %% [markdown]
# ## Writing, in five lines
#
# The last position's scores, the *logits*, rank all 4,096 tokens as the next one. Take the best,
# read it, and so on. This is all that `generate` does if nothing else is asked for.

# %%
written = []
scores, state = output.logits[0, -1], cache.copy()
for _ in range(60):
    written.append(int(scores.argmax()))
    scores = model([[written[-1]]], cache_params=state).logits[0, -1]

assert written == model.generate(ids, max_new_tokens=60)[0, ids.shape[1] :].tolist()
print(tokenizer.decode(ids[0]) + tokenizer.decode(written))

# %% [markdown]
# (It runs in a circle: the likeliest token each time is not the best text. We come back to that.)
#
# ## What a token costs
#
# Attention answers the same question, "what has been said?", with a list. Each token leaves a key
# and a value of $D$ numbers, the **KV cache**. To write the token at position $t$, a layer compares
# its query with all $t$ keys and averages the $t$ values. Here is such a layer, as wide as our
# model, with random weights: the time is what counts.

# %%
D, HEADS, LONGEST = c.hidden_size, 3, 2**15
rng = np.random.default_rng(0)
W_qkv, W_out = (rng.standard_normal((rows, D), np.float32) / D**0.5 for rows in (3 * D, D))
keys, values = rng.standard_normal((2, HEADS, LONGEST, D // HEADS), np.float32)


def attend(x, t):
    """Return what one attention layer makes of the token x (D) at position t, from its KV cache."""
    q, keys[:, t], values[:, t] = (W_qkv @ x).reshape(3, HEADS, -1)
    closeness = keys[:, : t + 1] @ q[:, :, None] / np.sqrt(D // HEADS, dtype=np.float32)
    shares = eq.softmax(closeness[..., 0])  # (heads, t + 1)
    return W_out @ (shares[:, None] @ values[:, : t + 1]).ravel()


# %% [markdown]
# Against it one block of the model, also in NumPy (`backend="numpy"`), both on one thread. The
# block reads random vectors, further and further; at each power of two the clock runs for some
# steps of both. Other programs disturb a clock, and that only ever makes a step longer: so the
# shortest time counts.

# %%
block = mamba_np.MambaBlock(c, 2, model.params.layers[2], backend="numpy")
reader = mamba_np.MambaBlock(c, 2, model.params.layers[2])  # the same, compiled
x, cache = rng.standard_normal((1, LONGEST, D), np.float32), MambaCache(c)
positions, costs, kB = 2 ** np.arange(4, 16), [], []
clock = partial(timeit.repeat, number=1, repeat=25, globals=globals())
for before, t in zip([0, *positions[:-1]], positions, strict=True):
    reader(x[:, before:t], cache)
    here = cache.copy()
    with single_threaded_blas():
        times = clock("block(x[:, :1], here)"), clock("attend(x[0, 0], t - 1)")
    costs.append([1e3 * min(one) for one in times])
    kB.append([here.nbytes / n / 1e3, 2 * D * t * 4 / 1e3])
costs, kB = np.array(costs), np.array(kB)
assert (kB[:, 0] == kB[0, 0]).all()  # after 16 tokens as after 32,768

# %% tags=["heart"]
fig, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
titles = "time of one step, ms", "memory of the past, kB"
for ax, curves, title in zip(axes, (costs, kB), titles, strict=True):
    for curve, colour in zip(curves.T, (BLUE, ORANGE), strict=True):
        ax.loglog(positions, curve, "o-", color=colour, markersize=3)
    ax.set(title=f"{title} (log)", xlabel="position of the token (log)", ylim=curves.min() * 0.4)
    ax.set_xticks(positions[::2], [f"{t:,}" for t in positions[::2]])
    ax.yaxis.set_major_formatter("{x:,g}")
    ax.minorticks_off()
words = {"weight": "bold", "va": "center"}
axes[0].text(16, 2 * costs[0, 0], "Mamba: the same step everywhere", color=BLUE, **words)
axes[0].text(900, costs[2, 1], "attention: each step\nmeets all tokens", color=ORANGE, **words)
axes[1].text(400, kB[0, 0] / 1.8, f"Mamba: {kB[0, 0]:.0f} kB for any text", color=BLUE, **words)
axes[1].text(16, kB[8, 1], "attention: each token\nadds a key and a value", color=ORANGE, **words)
plt.show()

# %% [markdown]
# Mamba's lines are flat: a step does the same work on the same 31 kB, wherever in the text it is.
# Attention is the quicker one at first, as its list is short and it has less else to do. Then its
# cost grows with what has been read, and so does its memory, without an end.
#
# Where do the two memories cross? A block keeps $E (N + K)$ numbers and $E = 2D$; a token leaves
# $2D$ numbers in a KV cache. So the width cancels, and the block's memory is worth $N + K = 20$
# tokens, in models of any size. (A Transformer's layer has an MLP too and stands for two blocks of
# Mamba: 40 tokens then.)

# %%
assert E * (N + K) / (2 * D) == N + K == 20
large = mamba_np.MambaConfig(hidden_size=2560, num_hidden_layers=64)  # the shape of mamba-2.8b
state_MB = MambaCache(large).nbytes / 1e6
kv_MB = 32 * 2 * 2560 * 2048 * 4 / 1e6  # 32 layers, 2,048 tokens
print(f"mamba-2.8b: {state_MB:.0f} MB; KV cache of a Transformer that large: {kv_MB:,.0f} MB")

# %% [markdown]
# The catch: a list forgets nothing, and 20 tokens' worth of numbers cannot hold 32,768 tokens. A
# state must choose what to keep. [Notebook 09](09_push_the_memory.ipynb) asks how far that goes.
#
# ## Why does the state begin at zero?
#
# `MambaCache(config)` is all zeros, and every text begins there. Why zero, and not something
# learned, or random? ([mamba-minimal #19](https://github.com/johnma2006/mamba-minimal/issues/19)
# asks that.) Unroll the recurrence from a start $h_0$:
#
# $$h_t = \underbrace{\bar A_t \cdots \bar A_1\,h_0}_{\text{of the start}}
#  + \sum_{s \le t} \underbrace{\bar A_t \cdots \bar A_{s+1}\,\bar B_s x_s}_{\text{of token } s}$$
#
# With $h_0 = 0$ everything in the state was written by some token: zero is the state of somebody
# who has read nothing. Add up the tokens' parts in one channel to see that nothing else is there.

# %%
tale = read(
    "Once upon a time there was a poor woodcutter who lived with his wife and his three daughters "
    "in a little hut on the edge of a lonely forest. One morning, as he was going to his work, he "
    "said to his wife: Let our eldest daughter bring me my dinner into the wood; and so that she "
    "shall find her way, I will take some millet with me, and sprinkle it on the path."
)
trace = model.trace(tale, capture=("delta", "B", "x", "h"))
parts = analysis.state_parts(trace, layer=0, channel=7)  # (tokens, N)
np.testing.assert_allclose(parts.sum(axis=0), trace.h[0, -1, 7], atol=1e-5)

# %% [markdown]
# Now begin elsewhere: with the state that *another* story left behind. In the first block $\Delta$
# comes from the tokens alone, so the foreign part of its state must fade exactly as the formula
# says: $\bar A_t \cdots \bar A_1 = e^{A\,(\Delta_1 + \dots + \Delta_t)}$. Is that so? And does the
# model notice? Its predictions $p$ from zero and $q$ from the foreign state differ by
# $\sum_i p_i \log_2 (p_i / q_i)$ bits (the Kullback-Leibler divergence; 0 where they are the same).

# %%
other = read("The ship went down with all the gold, and the captain swam to an island of giants.")
foreign = MambaCache(c)
for mine, theirs in zip(foreign.ssm_states, model(other).cache_params.ssm_states, strict=True):
    mine[...] = theirs  # h alone: the window stays empty
h_0 = np.array(foreign.ssm_states)[:, 0]  # (n, E, N)

left, formula, logits = [], [], []
for t, token in enumerate(tale[0]):
    logits.append(model([[token]], cache_params=foreign).logits[0, -1])
    rest = np.array(foreign.ssm_states)[:, 0] - trace.h[:, t]  # what zero would not have
    left.append(np.linalg.norm(rest, axis=(1, 2)) / np.linalg.norm(h_0, axis=(1, 2)))
    time_passed = trace.delta[0, : t + 1].sum(axis=0)[:, None]  # (E, 1)
    expected = eq.exp(time_passed * trace.A[0]) * h_0[0]
    np.testing.assert_allclose(rest[0], expected, atol=1e-5)
    formula.append(np.linalg.norm(expected) / np.linalg.norm(h_0[0]))
left, formula = np.array(left), np.array(formula)  # (tokens, n), (tokens)

# %%
right, wrong = (eq.log_softmax(np.float64(s)) for s in (model(tale).logits[0], np.array(logits)))
bits = (np.exp(right) * (right - wrong)).sum(axis=1) / np.log(2)

counted = np.arange(1, len(left) + 1)
fig, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharex=True)
axes[0].set_prop_cycle(color=plt.get_cmap("viridis")(np.linspace(0, 0.88, n)))
axes[0].plot(counted, 100 * left)
axes[0].plot(counted[::6], 100 * formula[::6], "o", color="black", markersize=3)
axes[0].text(14, 66, "dots: the formula, for block 0")
axes[0].text(counted[-1] + 1, 100 * left[-1, 0], "block 0", va="center")
axes[0].text(counted[-1] + 1, 100 * left[-1, 5], "block 5", va="center")
axes[0].set(title="left of the foreign state, %", xlabel="tokens read", ylim=(0, 100))
axes[1].bar(counted, bits, color=ORANGE)
axes[1].set(title="how far predictions are off, bits", xlabel="tokens read", xlim=(0, 106))
plt.show()
assert bits[-20:].max() < bits[:20].max() / 4

# %% [markdown]
# A foreign start is a past that this text never had. It bends the first predictions, fades as
# tokens are written over it, and lingers in channels that forget slowly. Zero bends nothing, and it
# is where every text began in training, so it is the start that the weights are made for.
#
# Nothing forbids another start. You choose one whenever you pass a cache: a prompt is nothing but a
# chosen $h_0$ for the text that follows. (A learned $h_0$ would be a prompt that every text gets.)
# That is what makes the next thing so cheap.
#
# ## One beginning, several endings
#
# A state can be copied. The beginning is read once, and each copy goes on by itself.

# %%
beginning = model(read("The wolf knocked at the door of the little house, and")).cache_params
options = {"max_new_tokens": 24, "do_sample": True, "temperature": 0.7}
for seed in (2, 9, 10):
    ending = model.generate(read(" said"), cache_params=beginning.copy(), seed=seed, **options)
    print(f"{seed}:{tokenizer.decode(ending[0])!r}")

# %% [markdown]
# ### Exercise 06a: save a state, and go on two ways
#
# A state can also be saved: `cache.save(path)` writes it, `MambaCache.load(path)` reads it. Write
# `two_ways(model, path, first, second)`. A state was saved at `path`. Return two arrays of scores
# `(V,)`, for the next token: those after the ids `first` `(1, L)` were read from that state, and
# those after `second` was read from *the same* state. The file stays as it is.


# %%
def two_ways(model, path, first, second): ...


check("06a", two_ways)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 06a: open it when you have tried.
def both_ways(model, path, first, second):
    saved = MambaCache.load(path)
    after_first = model(first, cache_params=saved.copy()).logits[0, -1]
    after_second = model(second, cache_params=saved).logits[0, -1]
    return after_first, after_second


check("06a", both_ways)

# %% [markdown]
# A call advances the cache that it is given, in place. Without the copy the second text would go on
# from the end of the first. Does the file lose anything on the way? No: it holds the numbers
# themselves, and the text that follows is the same to the last bit.

# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "wolf.safetensors"
    beginning.save(file)
    restored, _ = both_ways(model, file, read(" said"), read(" the wolf"))
unsaved = model(read(" said"), cache_params=beginning.copy()).logits[0, -1]
np.testing.assert_array_equal(restored, unsaved)

# %% [markdown]
# ## From scores to one word
#
# Greedy writing ran in a circle. People do not always say the likeliest word, so let us *draw* the
# next token instead: with probabilities $p_i = e^{s_i} / \sum_j e^{s_j}$ of the scores $s$ (the
# softmax). Three knobs change them first:
#
# - **temperature** $T$ divides the scores. Then $p_i / p_j$ becomes $(p_i / p_j)^{1/T}$: below 1
#   likely tokens get likelier still, above 1 all become more alike.
# - **top-k** keeps the $k$ best tokens, and forbids the others with a score of $-\infty$.
# - **top-p** keeps the fewest tokens, from the best on, that together have probability $p$.

# %%
show(sampling.temperature, sampling.top_k)

# %%
scores = model(read("The king said to his"), logits_to_keep=1).logits[0].astype(float)  # (1, V)
kinds = {
    "as they come": scores,
    "temperature 0.5": sampling.temperature(scores, 0.5),
    "temperature 2": sampling.temperature(scores, 2.0),
    "top-k, k = 4": sampling.top_k(scores, 4),
    "top-p, p = 0.6": sampling.top_p(scores, 0.6),
}
p = {name: eq.softmax(s)[0] for name, s in kinds.items()}
best = scores[0].argsort()[::-1][:12]

i, j = best[0], best[3]  # any two tokens
ratio = p["as they come"][i] / p["as they come"][j]
np.testing.assert_allclose(p["temperature 0.5"][i] / p["temperature 0.5"][j], ratio**2)
assert (p["top-k, k = 4"] > 0).sum() == 4

# %% [markdown]
# The outlines are the probabilities as they come, the bars what each knob makes of them:

# %%
fig, axes = plt.subplots(1, 5, figsize=(9, 3), layout="constrained", sharey=True)
for ax, (name, share) in zip(axes, p.items(), strict=True):
    ax.barh(range(12), 100 * share[best], color=np.where(share[best] > 0, BLUE, "none"))
    ax.barh(range(12), 100 * p["as they come"][best], color="none", edgecolor=GREY, linewidth=0.7)
    ax.set(title=name, xlim=(0, 66), xlabel="probability, %", ylim=(11.6, -0.6))
    ax.text(65, 11, f"all others: {100 * (1 - share[best].sum()):.0f} %", ha="right")
axes[0].set_yticks(range(12), [tokenizer.decode([k]) for k in best])
axes[0].set_ylabel("The king said to his ...")
plt.show()

# %% [markdown]
# Why cut anything off? Each of the 4,084 tokens outside the picture is unlikely, but all together
# they come almost as often as the twelve in it ("all others"). Many are good words. The last
# thousands are not, and once one of them is drawn the model has to go on from nonsense. A high
# temperature lifts just this tail; top-k and top-p take it away.
#
# The draw itself is one uniform number, held against the cumulated probabilities. Ten thousand
# draws show that tokens come as often as they should.

# %%
show(sampling.draw)
four = np.repeat(kinds["top-k, k = 4"][:, best[:4]], 10_000, axis=0)  # (10000, 4)
shares = np.bincount(sampling.draw(four, [rng] * 10_000)) / 10_000
assert abs(shares - p["top-k, k = 4"][best[:4]]).max() < 0.02

# %% [markdown]
# ### How many words could come next?
#
# Top-k keeps equally many everywhere. Is that sensible? Count how many tokens top-p keeps, at each
# place of our tale.

# %%
tokens_kept = np.isfinite(sampling.top_p(model(tale).logits[0], 0.9)).sum(axis=1)
shown = 36
fig, ax = plt.subplots(figsize=(8, 3), layout="constrained")
ax.bar(range(shown), tokens_kept[:shown], color=BLUE, width=0.8)
ax.set(yscale="log", ylabel="tokens that make up 90 %", ylim=(0.8, 2000), xlim=(-0.6, shown + 3))
plot.token_axis(ax.xaxis, trace.labels[:shown], name="after token")
ax.hlines(50, -0.6, shown - 0.4, color=ORANGE, linestyle="--")
ax.text(shown - 0.2, 50, "top-k:\nk = 50\neverywhere", color=ORANGE, va="center")
plt.show()
print({label: int(count) for label, count in zip(trace.labels[:7], tokens_kept, strict=False)})
assert tokens_kept[1] == 1

# %% [markdown]
# (A dot stands for a space.) After "Once upon" there is one way to go on, and after "there was a"
# there are hundreds. A fixed $k$ lets rubbish in at the first place and forbids good words at the
# second. This is the case for top-p, "nucleus sampling"
# ([Holtzman and others, 2020](https://arxiv.org/abs/1904.09751)).
#
# ### Exercise 06b: top-p by hand
#
# Write `nucleus(probabilities, p)`: for the probabilities `(V,)` of all tokens return a boolean
# mask `(V,)`, true for the fewest tokens, from the likeliest on, whose probabilities sum to at
# least `p`.


# %%
def nucleus(probabilities, p): ...


check("06b", nucleus)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 06b: open it when you have tried.
def fewest(probabilities, p):
    order = np.argsort(probabilities)[::-1]  # the likeliest first
    before = np.cumsum(probabilities[order]) - probabilities[order]  # the sum of those before each
    mask = np.zeros(len(probabilities), bool)
    mask[order[before < p]] = True  # as long as the others do not suffice
    return mask


check("06b", fewest)

# %% [markdown]
# The package's own function gives the same mask at every place of the tale:

# %%
for s in model(tale).logits[0].astype(float):
    theirs = np.isfinite(sampling.top_p(s[None], 0.9))[0]
    np.testing.assert_array_equal(fewest(eq.softmax(s), 0.9), theirs)

# %% [markdown]
# ## All of it, by hand
#
# Prefill, scores, temperature, top-p, draw, step. With the random numbers of the same seed this is
# `generate`, token for token. (`top_k=0` asks for no top-k: as in transformers it is 50 unless said
# otherwise.)

# %%
(generator,) = sampling.row_generators(seed=0, rows=1)
state = MambaCache(c)
scores, text = model(start, cache_params=state).logits[:, -1], []
for _ in range(80):
    warped = sampling.top_p(sampling.temperature(scores.astype(float), 0.8), 0.9)
    text += sampling.draw(warped, [generator]).tolist()
    scores = model([text[-1:]], cache_params=state).logits[:, -1]

options = {"do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 0.9, "seed": 0}
assert text == model.generate(start, max_new_tokens=80, **options)[0, start.shape[1] :].tolist()
print(tokenizer.decode(start[0]) + tokenizer.decode(text))

# %% [markdown]
# And temperature once more, on whole texts and without any cut. Too cold is dull and runs in
# circles, too hot is the tail.

# %%
for temperature in (0.3, 0.8, 1.6):
    options = {"do_sample": True, "temperature": temperature, "top_k": 0, "seed": 4}
    ids = model.generate(start, max_new_tokens=35, **options)
    print(f"temperature {temperature}: {tokenizer.decode(ids[0])!r}\n")

# %% [markdown]
# ## Read next
#
# - [09 Push the memory](09_push_the_memory.ipynb): what a state of a fixed size can keep, up to a
#   million tokens.
# - Section 4.5 of [the paper](https://arxiv.org/abs/2312.00752): what it means for speed that there
#   is no KV cache.
# - `mamba_np/sampling.py` and `mamba_np/generation.py`: everything here and the rest (penalties,
#   min-p, beams), in NumPy; [differences](../docs/differences.md) says where they depart from
#   transformers.
# - [The command line](../docs/cli.md): `mamba-np generate` has the same knobs.
