# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   lesson:
#     minutes: 50
#     seconds: 120
#     after: [4, 5]
# ---

# %% [markdown]
# # 12 Train it by hand
#
# **How does a mistake at the last token find the step size that caused it, and what does a model
# learn from that?**
#
# No framework computes derivatives for you here. You will derive the gradients of the scan with the
# chain rule, let small nudges judge them, train a model from random numbers until its step sizes
# choose what to remember, and fine-tune a language model by changing two percent of its numbers.

# %%
import io
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import mamba_np as mm
from lesson import check, learning, show
from mamba_np import backward, equations, lora, ops, plot, reference
from mamba_np.training import AdamW, clip_by_global_norm, training_step
from mamba_np.training.tasks import accuracy, induction_heads

plt.style.use(plot.STYLE)
rng = np.random.default_rng(0)

# %% [markdown]
# ## Nudge one input
#
# Take the smallest scan there is, one channel whose state is one number, reading 24 inputs:
#
# $$h_t = \bar A_t\,h_{t-1} + \Delta_t B_t\,x_t, \qquad \bar A_t = e^{\Delta_t A}, \qquad
# y_t = C_t\,h_t$$
#
# with $A = -1$ and $B = C = 1$. (All symbols are those of notebooks 01 and 05.) Make one input a
# millionth larger, then a millionth smaller, and see how far each output moves, divided by two
# millionths. That is a *central difference*: the slope $\partial y_t / \partial x_s$, found by
# trying. To know all slopes, nudge all inputs, one at a time.


# %%
def read(x, delta, A=-1.0):
    """One channel, one number of state: x (L), delta (L) -> y (L)."""
    ones = np.ones((1, len(x), 1))
    arrays = x[None, :, None], delta[None, :, None], A * np.ones((1, 1)), ones, ones
    return reference.selective_scan(*arrays, np.zeros((1, 1, 1)))[0].ravel()


def nudge(f, array, eps=1e-6):
    """Nudge each number of an array, up and down: the slopes of f, with f's axes last."""
    steps = (eps * np.eye(array.size, dtype=array.dtype)).reshape(-1, *array.shape)
    slopes = [(f(array + step) - f(array - step)) / (2 * eps) for step in steps]
    return np.reshape(slopes, array.shape + np.shape(slopes[0]))


even = np.full(24, 0.15)
gate = np.where(np.arange(24) == 14, 4, even)  # one token opens wide
even_slopes, gate_slopes = (nudge(lambda x, d=d: read(x, d), np.ones(24)) for d in (even, gate))
learning.draw_slopes(even_slopes, gate_slopes, source=4, end=23)
plt.show()

# %% [markdown]
# Read forwards (left), a written number fades. Read backwards (right), so does blame. A token whose
# step size is large wipes out what came before, and with it all reason to change what came before.
#
# Training needs the right picture: **one** result, the loss, and its slope with respect to every
# number that might be changed. Nudging costs two runs for each number. The bundled stories model
# has 2,296,896 of them. The backward pass gets all slopes for the price of a few runs. It is the
# chain rule, applied in the right order.

# %%
stories = mm.MambaForCausalLM.from_pretrained(mm.bundled_model_path())
total = stories.num_parameters()
print(f"{total:,} parameters: {2 * total:,} runs by nudging, for one step of training")
assert gate_slopes[:14, 23].max() < 0.001 < even_slopes[0, 23]

# %% [markdown]
# ## The adjoint: the same recurrence, backwards
#
# Call the loss $\mathcal L$ and let $g_t = \partial \mathcal L / \partial h_t$: how much the loss
# would change if somebody changed the state after token $t$, and everything later followed. In code
# `dh`; likewise `dy` is $\partial \mathcal L/\partial y_t$, which comes from the layers above and
# is given.
#
# The state $h_t$ is used in two places: token $t$ reads it, $y_t = C_t h_t$, and token $t+1$ starts
# from it, $h_{t+1} = \bar A_{t+1} h_t + \dots$ A number that is used twice gets blame from both:
#
# $$g_t \;=\; C_t\,\frac{\partial \mathcal L}{\partial y_t} \;+\; \bar A_{t+1}\,g_{t+1}$$
#
# Compare $h_t = \bar A_t h_{t-1} + \bar B_t x_t$. It is the same recurrence, with time running
# backwards, $C_t\,\partial\mathcal L/\partial y_t$ in the place of what a token writes, and the
# decay of the *next* token. So the package's own forward functions can run it. Here with honest
# sizes: B = 1 sequence, L = 12 tokens, E = 3 channels, N = 4 numbers of state each. Everything is
# in float64, because a judge should see more digits than the accused.

# %%
L, E, N = 12, 3, 4
shapes = {"x": (1, L, E), "delta": (1, L, E), "A": (E, N), "B": (1, L, N), "C": (1, L, N)}
shapes["h"] = (1, E, N)  # the state before the first token
inputs = {name: rng.uniform(-1, 1, shape) for name, shape in shapes.items()}
inputs |= {"delta": np.abs(inputs["delta"]), "A": 2 * -np.abs(inputs["A"])}
dy = rng.standard_normal((1, L, E))


def loss(**changed):
    """Return a loss whose gradient with respect to y is dy."""
    return np.sum(dy * reference.selective_scan(**inputs | changed)[0])


def by_nudging(name, eps=1e-6, dtype=np.float64):
    """Return the gradient of the loss with respect to one of the inputs, in its shape."""
    cast = {key: array.astype(dtype) for key, array in inputs.items()}
    return nudge(lambda value: loss(**cast | {name: value}), cast[name], dtype(eps))


# %%
x, delta, A, B, C, h = inputs.values()
A_bar, B_bar = equations.discretise(delta[..., None], A, B[:, :, None])  # (1 L E N) each


def walk(dy, h):
    """Go forwards, then backwards: the states before each step, and dh after it, (1 L E N)."""
    states = reference.recurrence(A_bar, B_bar * x[..., None], h)
    blame = dy[..., None] * C[:, :, None]  # what each token's own output says of its state
    next_A_bar = np.concatenate([A_bar[:, 1:], A_bar[:, :1]], axis=1)  # the last meets zeros
    dh = reference.recurrence(next_A_bar[:, ::-1], blame[:, ::-1], 0 * h)[:, ::-1]
    return np.concatenate([h[:, None], states[:, :-1]], axis=1), dh


before, dh = walk(dy, h)
first = A_bar[:, 0] * dh[:, 0]  # from the state after token 0 to the one before it
print(first.ravel()[:3], "by nudging:", by_nudging("h").ravel()[:3])
np.testing.assert_allclose(first, by_nudging("h"), rtol=1e-7, atol=1e-8)

# %% [markdown]
# `recurrence` is the loop of the forward pass, used twice. So the backward pass of a scan is a
# scan, and all that notebook 04 taught holds for it: it can be done in parallel, and in chunks.
#
# ## One step, and its five inputs
#
# With $g_t$ in hand time is out of the way. What is left is one step, $h = \bar A\,h' + \Delta B x$
# from the state before, $h'$. If the loss feels $h$ with strength $g$, then by the product rule
#
# $$\frac{\partial\mathcal L}{\partial x} = \Delta \sum_n g_n B_n \qquad
# \frac{\partial\mathcal L}{\partial B_n} = g_n\,\Delta\,x \qquad
# \frac{\partial\mathcal L}{\partial C_n} = \frac{\partial\mathcal L}{\partial y}\,h_n$$
#
# A sum stands where one number acts in many places: $x$ goes into all N numbers of the state. The
# decay rate $A_n$ hides inside the exponential, whose derivative is itself times what stands before
# $A$:
#
# $$\frac{\partial\mathcal L}{\partial A_n} = g_n\,\Delta\,\bar A_n\,h'_n$$
#
# and since $A$ is the same at all tokens, its gradient is the sum of this over time.
#
# The step size is left, and it is the interesting one: it is how Mamba chooses.
#
# ### Exercise 12a
# Write `d_delta(dh, h, delta, A, B, x)`: the gradient of one step with respect to $\Delta$, for one
# channel at one token. `dh` (N) is $g$; `h` (N) is the state before the step; `A` and `B` are (N);
# `delta` and `x` are numbers. Return one number. `delta` stands in two places.


# %%
def d_delta(dh, h, delta, A, B, x):
    return ...


check("12a", d_delta)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 12a: open it when you have tried.
def d_step_size(dh, h, delta, A, B, x):
    A_bar = np.exp(delta * A)
    return np.sum(dh * (A * A_bar * h + B * x))


check("12a", d_step_size)

# %% [markdown]
# In words: a larger step forgets more of the old state ($A\bar A\,h'$, and $A$ is negative) and
# writes more of the input ($Bx$). Whether that is good is for $g$ to say. **A step size learns from
# the quarrel between what was there and what is new**: it opens where the new number helps more
# than the old one, and closes where it helps less.
#
# ## The judge
#
# A wrong gradient does not crash. The model learns a little worse, and nobody knows why. So nothing
# here is believed until nudging agrees. How large should a nudge be? Here is the error of the
# slopes by nudging, for all step sizes, against `backward.d_selective_scan`, the package's backward
# pass, which we open below.

# %%
exact = backward.d_selective_scan(dy, **inputs)
sizes = np.logspace(-11, 0, 23)


def errors(dtype):
    return [np.abs(by_nudging("delta", eps, dtype) - exact.delta).max() for eps in sizes]


in_float64, in_float32 = errors(np.float64), errors(np.float32)
learning.draw_errors(sizes, in_float64, in_float32)
plt.show()

# %% [markdown]
# A large nudge sees the bend of the curve: the error falls with the square of its size. A small one
# subtracts two numbers that are nearly the same, and what is left is rounding. In between float64
# leaves nine digits or more. float32 leaves five at best, and two where the nudge is chosen a
# little wrong, which does not convict: a gradient with a small mistake in it passes. This is why
# the judge works in float64. It also shows that the derivation holds: at the best nudge nothing but
# rounding is left.

# %%
assert min(in_float64) < 1e-8 < 1e-6 < min(in_float32)
for name in inputs:
    np.testing.assert_allclose(getattr(exact, name), by_nudging(name), rtol=1e-6, atol=1e-8)

# %% [markdown]
# ### Exercise 12b
# Here is a gradient of $A$ for one channel, written in a hurry. One factor is missing. The first
# line of ratios convicts it, but says little: each ratio mixes twelve tokens. So make the case
# smaller until a ratio is a number that you know. In the second line the state begins empty and
# only the output of token 1 counts. Token 0 then finds an empty state, later tokens have no blame,
# and what is left is token 1 alone. Which quantity of its step do the four ratios show?
#
# Return the right gradient from `repaired(dh, h, delta, A)`: `dh` and `h`, the states *before* each
# step, are (L, N), `delta` is (L) and `A` (N); the result is (N).


# %%
def in_a_hurry(dh, h, delta, A):
    return np.einsum("tn,tn,t->n", dh, h, delta)


def ratio(dy, h):
    right = backward.d_selective_scan(dy, **inputs | {"h": h}).A[0]
    before, dh = walk(dy, h)
    return right / in_a_hurry(dh[0, :, 0], before[0, :, 0], delta[0, :, 0], A[0])


only = dy * (np.arange(L) == 1)[:, None]
print("right / wrong, 12 tokens:", ratio(dy, h).round(3))
print("               1 token:  ", ratio(only, 0 * h).round(3))
print("delta there:", delta[0, 1, 0].round(3), "  A:", A[0].round(3))


# %%
def repaired(dh, h, delta, A):
    return ...


check("12b", repaired)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 12b: open it when you have tried.
def gradient_of_A(dh, h, delta, A):
    A_bar = np.exp(delta[:, None] * A)
    return np.einsum("tn,tn,t,tn->n", dh, h, delta, A_bar)


check("12b", gradient_of_A)
mended = gradient_of_A(dh[0, :, 0], before[0, :, 0], delta[0, :, 0], A[0])
np.testing.assert_allclose(mended, exact.A[0])

# %% [markdown]
# A whole backward pass is searched like this: one gradient at a time, the smallest case that still
# fails, the ratio of right to wrong.
#
# ## Open the package
#
# "Did you have the code of selective_scan_fwd and selective_scan_bwd in Python?" asked a reader of
# the authors' repository ([mamba#131](https://github.com/state-spaces/mamba/issues/131)); they had
# not. Here it is. `_states` walks forwards and `_d_states` backwards, as `walk` did. Your two
# results are in it: `d_exponent` is $g\,\bar A\,h'$, and `d_delta` is what you wrote in 12a.

# %%
show(backward.d_selective_scan)

# %% [markdown]
# What is new is the work with blocks. The gradients need every state, and all states of a long text
# are N times as large as all of its outputs. So none is kept: the forward pass leaves one state for
# each block of tokens, and the backward pass makes those between again, block after block from the
# end. The paper does the same on a GPU (section 3.3, *recomputation*). It computes more, and needs
# so much less memory that it is faster as well.
#
# Under the names and in the layout of the authors' package, (B, E, L), with everything around the
# scan (a bias and a softplus that make $\Delta$, the skip $D$ and the gate $z$ of notebook 05), it
# is `ops.selective_scan_backward`. The judge sees it too.

# %%
shapes = {"u": (2, E, L), "delta": (2, E, L), "A": (E, N), "B": (2, N, L), "C": (2, N, L)}
shapes |= {"D": (E,), "z": (2, E, L), "delta_bias": (E,)}
operands = {name: -rng.uniform(0, 2, shape) for name, shape in shapes.items()}
dy2 = rng.standard_normal((2, E, L))


def loss_with(name, value):
    return np.sum(dy2 * ops.selective_scan(**operands | {name: value}, delta_softplus=True))


for name, found in ops.selective_scan_backward(dy2, **operands, delta_softplus=True).items():
    slope = nudge(lambda value, name=name: loss_with(name, value), operands[name])
    print(f"{name:>10} {found.shape!s:>11}  differs by {np.abs(found - slope).max():.0e}")
    np.testing.assert_allclose(found, slope, rtol=1e-6, atol=1e-7)

# %% [markdown]
# ## Can the state overflow, or turn into NaN?
#
# Readers ask ([mamba#6](https://github.com/state-spaces/mamba/issues/6)), and the formulas answer.
# $A$ is negative and $\Delta$ positive, so every $\bar A$ lies between 0 and 1. A number of the
# state is the sum of what was written, each part shrunk by all later steps:
#
# $$|h_t| \;\le\; \sum_s \Delta_s\, e^{-|A|(\Delta_{s+1} + \dots + \Delta_t)}\,|B_s x_s|
# \;\le\; \Big(\frac{1}{|A|} + \Delta_{\max}\Big)\,\max_s |B_s x_s|$$
#
# (The sum is that of rectangles under the curve $e^{-|A|\tau}$, whose area is $1/|A|$.) There is no
# L in the bound: no text is long enough to overflow the state. On their way back gradients are
# multiplied by the same $\bar A$, which can make them fade, and never grow. Were $A$ positive, both
# would explode; this is why the model learns $A_{\log}$, and $A = -e^{A_{\log}}$.

# %%
ones, steps = np.ones(200_000), rng.uniform(0, 2, 200_000)
for rate in (-0.01, -1.0, 0.01):
    bound = 1 / abs(rate) + steps.max()
    with np.errstate(over="ignore", invalid="ignore"):
        last = read(ones, steps, A=rate)[-1]  # C is 1: the state itself
    print(f"A = {rate:g}: after {len(ones):,} tokens h = {last:.4g}, bound {bound:.4g}")
    assert (last <= bound) == (rate < 0)

# %% [markdown]
# What does go wrong is the arithmetic around it. In mamba#6 the parameters were in bfloat16, and
# the advice was to keep them in float32. A step of training may move a weight by a ten-thousandth,
# and a 16-bit number near 1 has no room for that: the weight stays where it was.

# %%
assert np.float16(1) + np.float16(1e-4) == 1 < np.float32(1) + np.float32(1e-4)

# %% [markdown]
# ## From the scan to the model
#
# The other steps of a block (norm, convolution, projections, gate) have short derivatives, each in
# `mamba_np/backward.py`. Chained from the loss back to the embeddings they are
# `loss_and_gradients(model, input_ids, labels)`: the loss, and the gradient of every parameter by
# its name. The judge looks at one parameter of a small model in float64: the bias that sets the
# step sizes.

# %%
SPECIAL, LENGTH = 7, 32  # eight tokens, 0 to 7


def new_model(selective=("delta", "B", "C"), dtype="float32"):
    """One block of 32 channels with steps that begin wide open, its numbers drawn at random."""
    sizes = {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 1, "conv_kernel": 2}
    start = {"time_step_min": 0.1, "time_step_max": 1.0, "initializer_range": 0.02}
    config = mm.MambaConfig(vocab_size=SPECIAL + 1, selective=selective, **sizes, **start)
    return mm.MambaForCausalLM(config, rng=2, dtype=dtype).make_writeable()


judged = new_model(dtype="float64")
ids, labels = induction_heads(np.random.default_rng(1), batch=4, length=LENGTH, vocab_size=8)
_, gradients = mm.loss_and_gradients(judged, ids, labels)
name = "backbone.layers.0.mixer.dt_proj.bias"
bias = judged.state_dict()[name]


def loss_with_bias(value):
    bias[:] = value
    return judged(ids, labels=labels).loss


slope = nudge(loss_with_bias, bias.copy(), 1e-5)
np.testing.assert_allclose(gradients[name], slope, rtol=1e-5, atol=1e-9)
print(f"{judged.num_parameters():,} gradients in one backward pass, {slope.size} of them judged")

# %% [markdown]
# ## A task that needs selection
#
# The paper's *induction heads* (section 4.1.2), made small: tokens 0 to 6 are noise, and token 7 is
# special. It stands once somewhere, and once more at the end. The model has to say what followed it
# the first time. The length varies from 8 to 32, so that nothing can be learned by counting.

# %%
print(*ids[0, :-1], "-> ", ids[0, -1])
assert ids[0, ids[0].tolist().index(SPECIAL) + 1] == ids[0, -1] == labels[0, -1]

untrained = new_model()
fresh = untrained.trace(ids[0, :-1], capture=("delta", "delta_geometric_mean"))
lives = equations.half_life(fresh.delta_geometric_mean[0, 0], fresh.A[0, 0])
print("half-lives of the eight numbers of a state, in tokens:", lives.round(1))

# %% [markdown]
# Published models begin with step sizes between 0.001 and 0.1; this one with some between 0.1 and
# 1, the same at *every* token. In a typical channel half of what is written is gone after two
# tokens or fewer, and the answer has faded long before it is asked for. To succeed, training has to
# discover two things that nobody tells it: close on noise, and stay open for the one token that
# follows the special one. (A single block can know which that is: its convolution of width 2 shows
# each token its left neighbour.)
#
# The loop of training is four lines. `clip_by_global_norm` shortens a gradient that is too long,
# and `AdamW` makes each number's step about equally large, whatever the size of its gradient. To
# see whether selection does it, a second model learns from the same batches with $\Delta$ held
# fixed: a number that is learned, but the same at all tokens. It still has $B$ and $C$ that follow
# the input.

# %%
examples, answers = induction_heads(np.random.default_rng(99), 256, LENGTH, SPECIAL + 1)


def train(model, steps=150):
    optimiser = AdamW(model.state_dict(), lr=1e-2)
    batches, history = np.random.default_rng(2), []
    for step in range(steps + 1):
        if step % 5 == 0:  # look, with texts that are never trained on
            history.append([step, *learning.look(model, examples, answers, SPECIAL)])
        ids, labels = induction_heads(batches, 32, int(batches.integers(8, 33)), SPECIAL + 1)
        _, gradients = mm.loss_and_gradients(model, ids, labels)
        clip_by_global_norm(gradients, 1.0)
        optimiser.update(gradients)
    return model, np.array(history).T


model, history = train(new_model())
fixed, control = train(new_model(selective=("B", "C")))

# %% tags=["heart"]
learning.draw_training(history, control)
plt.show()

# %% [markdown]
# For thirty steps nothing seems to happen. Then the step sizes part, and *with them* the loss
# falls. On noise they shrink, so the state keeps what it has; at the token after the special one
# they stay open, and that token is written. Nobody asked for this. It is what the gradient of 12a
# adds up to: noise that overwrote the answer was blamed for it, thousands of times. With $\Delta$
# fixed the same batches teach far less.

# %%
assert history[1, -1] < 0.1  # nats
assert control[2, -1] + 0.2 < history[2, -1] > 0.99  # of the answers are right
assert history[4, -1] > 2 * history[5, -1]  # step sizes after the special token, at noise

# %% [markdown]
# Here is one text, before and after. And since what it learned is a rule about tokens and not about
# places, the model can be asked at lengths it has never seen.

# %%
row, capture = examples[0, :-1], ("delta_geometric_mean",)
old, new = (one.trace(row, capture=capture).delta_geometric_mean[0] for one in (untrained, model))
learning.draw_text(row, old, new, SPECIAL)
plt.show()

# %%
for length in (16, 64, 256, 1024):
    ids, labels = induction_heads(np.random.default_rng(length), 64, length, SPECIAL + 1)
    right, control_right = (accuracy(one(ids).logits, labels) for one in (model, fixed))
    print(f"length {length:5,}: {right:4.0%} right; with delta fixed {control_right:4.0%}")
    assert right > 0.95 or length > 64

# %% [markdown]
# ## When a number breaks
#
# In a real run the four lines are `training_step`. It does one thing more: it looks whether loss
# and gradients are finite before it touches a weight. If they are not, you are told where the
# trouble began, and the weights are those of the step before.

# %%
broken = new_model()
broken.state_dict()["backbone.layers.0.mixer.A_log"][0, 0] = np.nan
try:
    training_step(broken, AdamW(broken.state_dict()), [{"input_ids": ids, "labels": labels}])
except mm.MambaError as error:
    print(error)

# %% [markdown]
# ## Fine-tune a language model: LoRA
#
# A trained model can be taught a new habit by changing little. LoRA
# ([Hu et al. 2021](https://arxiv.org/abs/2106.09685)) leaves every matrix $W$ (outputs, inputs)
# as it is and adds a product of two thin ones to it:
#
# $$W' = W + \frac{\alpha}{r}\,B\,A, \qquad B: \text{outputs} \times r, \quad A: r \times
# \text{inputs}$$
#
# (The letters are LoRA's; they are not those of the state.) Only $A$ and $B$ are trained. Their
# gradients are the chain rule again: with $G$ the gradient of $W'$, that of $B$ is
# $\frac{\alpha}{r} G A^T$ and that of $A$ is $\frac{\alpha}{r} B^T G$. At first $B$ is zero, so
# nothing is changed. $\alpha$ is a number that one sets, 8 unless told otherwise. With a rank $r$
# of 4 the stories model has to learn:

# %%
for modules in (["in_proj", "x_proj", "out_proj"], ["in_proj", "out_proj"], ["x_proj"]):
    count = lora.count_trainable(stories.config, mm.LoraConfig(r=4, target_modules=modules))
    print(f"{', '.join(modules):>28} {count:>9,}  {count / total:>5.1%}")

# %% [markdown]
# The names and arguments are those of PEFT and TRL, so a script for them needs another import line.
# The trainer reports on the error stream; here its lines are collected, and the loss printed.

# %%
tokenizer = mm.AutoTokenizer.from_pretrained(mm.bundled_model_path())
tale = "Once upon a time a {} found {}. But the moon said no, and that was that."
people, things = ("king", "fox", "tailor", "witch"), ("a ring", "an egg", "a key")
tales = [{"text": tale.format(who, what)} for who in people for what in things]
folder = tempfile.TemporaryDirectory()
args = mm.SFTConfig(folder.name, max_steps=24, learning_rate=1e-2, logging_steps=4, seed=0)
adapter = mm.LoraConfig(r=4, target_modules=["in_proj", "x_proj", "out_proj"])
trainer = mm.SFTTrainer(stories, args, None, tales, tokenizer=tokenizer, peft_config=adapter)
prompt = tokenizer("Once upon a time", return_tensors="np")["input_ids"]
assert np.array_equal(trainer.model(prompt).logits, stories(prompt).logits)  # B is zero

# %%
with redirect_stderr(io.StringIO()):
    trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print("loss:", np.round(losses, 2))
assert losses[-1] < losses[0] / 4
for one in (stories, trainer.model):
    print(tokenizer.batch_decode(one.generate(prompt, max_new_tokens=24)))

# %% [markdown]
# `save_model` writes the adapter alone, in PEFT's two files. Anybody who has the model can load
# them, here or in PEFT.

# %%
trainer.save_model(folder.name)
print({path.name: path.stat().st_size for path in sorted(Path(folder.name).glob("adapter_*"))})
loaded = mm.PeftModel.from_pretrained(stories, folder.name)
assert np.array_equal(loaded(prompt).logits, trainer.model(prompt).logits)

# %% [markdown]
# ### Exercise 12c
# An adapter costs nothing at run time if it is added to the matrix once and for all. Write
# `merged(W, A, B, alpha)`: the matrix $W'$. The rank is in the shapes. Leave `W` as it is: others
# may be using it.


# %%
def merged(W, A, B, alpha):
    return ...


check("12c", merged)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 12c: open it when you have tried.
def with_adapter(W, A, B, alpha):
    return W + alpha / len(A) * B @ A


check("12c", with_adapter)

# %% [markdown]
# `merge_and_unload` does this for all matrices. The result is a plain model, which answers as the
# adapted one does; and your formula gives its matrices.

# %%
whole = loaded.merge_and_unload()
np.testing.assert_allclose(whole(prompt).logits, loaded(prompt).logits, rtol=1e-4, atol=1e-4)

name, arrays = "backbone.layers.0.mixer.in_proj", loaded.state_dict()
A, B = (arrays[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
W, W_merged = (one.state_dict()[f"{name}.weight"] for one in (stories, whole))
np.testing.assert_allclose(with_adapter(W, A, B, alpha=8), W_merged, atol=1e-6)
strengths = [np.linalg.svd(M, compute_uv=False) for M in (W, W_merged - W)]
learning.draw_singular_values(*strengths)
plt.show()
assert W.shape == (768, 192)
assert strengths[1][4] < 1e-4 * strengths[1][3]
folder.cleanup()

# %% [markdown]
# The change of a matrix of 768 x 192 numbers has four directions and no more. That is why its file
# is small, and why it can teach a habit but not a language.

# %% [markdown]
# ## Read next
#
# - [13 Ask why](13_ask_why.ipynb): the same backward pass, asked about the tokens instead of the
#   weights.
# - `mamba_np/derivatives.py`, then `mamba_np/backward.py`: the whole way back.
#   `mamba_np/kernels/scan_backward.py` is the same scan compiled.
# - [docs/selection.md](../docs/selection.md): the control of this notebook done at full size, for
#   each of $\Delta$, $B$ and $C$.
# - Gu and Dao 2023, sections 3.3 (recomputation) and 4.1 (both tasks).
# - [docs/how-to/fine-tune.md](../docs/how-to/fine-tune.md): adapters for real data; `mamba-np lora`
#   and `mamba-np merge` on [the command line](../docs/cli.md) need no line of Python.
