# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   lesson:
#     minutes: 35
#     seconds: 20
#     after: [5]
# ---

# %% [markdown]
# # 07 Open the file
#
# **What is in a file of weights, and do its bytes give the same logits as in transformers?**
#
# A model travels as a file. Between its bytes and a prediction stand a few conventions: where each
# number lies, how many bits it has, what it is called. Here you read such a file with nothing but
# `np.frombuffer`, build a model from it, and compare its predictions with those of transformers.
# Then you learn to tell a file that is damaged, or made to harm.

# %%
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import ml_dtypes
import numpy as np

import lesson
from lesson import check, show
from lesson.filemap import draw_file, draw_layouts
from mamba_np import MambaConfig, MambaError, MambaForCausalLM, bundled_model_path, checkpoint, plot
from mamba_np.checkpoint import names
from mamba_np.params import Layer, Params

plt.style.use(plot.STYLE)

# %% [markdown]
# ## The first bytes
#
# The model of notebook 05 lies in a folder. Its weights are in the file `model.safetensors`, a
# format that Hugging Face made because the older one, a Python pickle, is a program that can do
# anything on your machine when it is opened.

# %%
folder = Path(bundled_model_path())
data = (folder / "model.safetensors").read_bytes()
print(f"{len(data):,} bytes")
for first in range(0, 64, 16):
    piece = data[first : first + 16]
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
    print(f"{first:4}  {piece.hex(' ')}  {text}")

# %% [markdown]
# The format is small. Eight bytes say how long the header is, lowest byte first ("little-endian").
# The header is JSON: for each tensor its name, its dtype, its shape, and where it begins and ends,
# counted from the end of the header. Then come the numbers, one tensor behind the other. That is
# all.

# %%
length = int.from_bytes(data[:8], "little")
header = json.loads(data[8 : 8 + length])
about = header.pop("__metadata__")
start = 8 + length  # of the numbers
print(f"a header of {length:,} bytes, about {about}, names {len(header)} tensors; among them")
for name in list(header)[:4]:
    print(" ", name, header[name])

# %% [markdown]
# ## The map, and where it leads
#
# On the left is the file, every byte in its place: read it like lines of a page. On the right is
# what a model made of these bytes computes, held against transformers. For 16 tokens it scores each
# of 4,096 next tokens; transformers did the same once, in float32 as it comes and in float64, and
# the results are kept with the tests of this package.

# %%
fixtures = Path(lesson.__file__).resolve().parents[2] / "tests" / "fixtures"
kept = np.load(fixtures / "refs" / "stories.npz")
ids, exact = kept["0.input_ids"], kept["0.logits_f64"]
model = MambaForCausalLM.from_pretrained(folder)
wide = MambaForCausalLM.from_pretrained(folder, dtype="float64")
away = {
    "transformers in float32": np.abs(kept["0.logits_transformers_f32"] - exact),
    "here in float32": np.abs(model(ids).logits - exact),
    "here in float64": np.abs(wide(ids).logits - exact),
}
largest = np.abs(exact).max()
print(f"{exact.size:,} scores, the largest {largest:.1f}")

# %% tags=["heart"]
fig, (left, right) = plt.subplots(1, 2, figsize=(7.8, 4.6), layout="constrained")
draw_file(left, len(data), start, header)
left.set_title(f"the file: {len(data):,} bytes, to scale", loc="left")
places = (5e-6, 9000, "left"), (1e-8, 6500, "right"), (1e-13, 12500, "left")
colours = "0.45", "#d55e00", "#0072b2"
for who, colour, (x, y, side) in zip(away, colours, places, strict=True):
    bins = np.logspace(-16, 2, 91)
    right.hist(away[who].ravel(), bins, histtype="step", color=colour, lw=1.5)
    right.text(x, y, who.replace(" in ", "\nin "), color=colour, ha=side, va="center")
right.axvline(largest, color="black", ls=":")
right.text(8, 3000, "the largest logit", rotation=90, ha="right", va="center")
right.set(xscale="log", xlabel="|logit - transformers' logit in float64|", yticks=[])
right.set_xticks([1e-15, 1e-10, 1e-5, 1])
right.set_title("the same logits, up to rounding", loc="left")
right.spines.left.set_visible(False)
plt.show()

# %% [markdown]
# So the answer is yes, as far as float32 goes: it carries about seven digits, and all differences
# are below a millionth of the largest logit. transformers' own float32 is no nearer to its float64.
# And in float64 the difference shrinks to the fifteenth digit: what is computed is the same, only
# the rounding is not.

# %%
for who, difference in away.items():
    print(f"{who:>24}: half below {np.median(difference):.1e}, all below {difference.max():.1e}")
assert away["here in float32"].max() < 1e-6 * largest
assert away["here in float64"].max() < 1e-14 * largest
assert np.median(away["here in float32"]) < np.median(away["transformers in float32"])

# %% [markdown]
# The rest of this notebook goes from left to right, by hand.
#
# ## One tensor
#
# A tensor in F32 is a run of four-byte numbers, which NumPy can read as they lie there: `<f4` is a
# float of four bytes, lowest byte first. Rows come one after the other, as in NumPy.

# %%
first, last = header["backbone.layers.0.mixer.D"]["data_offsets"]
D = np.frombuffer(data, "<f4", count=(last - first) // 4, offset=start + first)
assert np.array_equal(D, model.params.layers[0].D)
print(D[:5])

# %% [markdown]
# Why are these before the others, and in F32? `from_pretrained` does not read at all what it can
# use as it is: it maps the file into memory, and pages come from the disk when they are needed. A
# number of four bytes is read fastest from an address that four divides, which behind an odd number
# of 16-bit numbers it would not be. And F32 because they are few, while a state carries what went
# wrong from token to token: the authors warn that state space models are sensitive there.

# %%
assert start % 64 == 0  # the header ends with spaces, where needed
assert all(tensor["data_offsets"][0] % 4 == 0 for tensor in header.values())
assert not model.params.layers[0].D.flags.owndata  # it lies in the mapped file
for dtype in ("F32", "BF16"):
    count = sum(np.prod(one["shape"]) for one in header.values() if one["dtype"] == dtype)
    print(f"{dtype}: {count:,} numbers")

# %% [markdown]
# ## bfloat16: half a float32
#
# The large matrices have two bytes for each number. NumPy knows a two-byte float, but not this one.
# A float is a sign, an exponent (which power of two) and a fraction (where between that power and
# the next). Here is one number in three formats, bit by bit:

# %%
fig, ax = plt.subplots(figsize=(7.4, 1.9), layout="constrained")
formats = (np.float32, 8), (ml_dtypes.bfloat16, 8), (np.float16, 5)
for row, (dtype, exponent) in enumerate(formats):
    value = np.array(0.1, dtype)
    bits = np.unpackbits(np.frombuffer(value.tobytes()[::-1], np.uint8))
    parts = np.repeat(["#d55e00", "#56b4e9", "0.85"], [1, exponent, len(bits) - 1 - exponent])
    ax.bar(range(len(bits)), 0.8, 0.94, row - 0.4, color=parts)
    for i, bit in enumerate(bits):
        ax.text(i, row, bit, ha="center", va="center", fontsize=7)
    ax.text(-1, row, value.dtype.name, ha="right", va="center")
    ax.text(len(bits), row, f"= {float(value):.10g}", va="center")
for x, text in ((0, "sign"), (4.5, "exponent"), (20, "fraction")):
    ax.text(x, -0.7, text, ha="center")
ax.set(xlim=(-6, 40), ylim=(2.5, -1))
ax.axis("off")
plt.show()

# %% [markdown]
# bfloat16 is the upper half of a float32: the same range, fewer digits. So the way back is exact:
# put sixteen zero bits behind it.
#
# ### Exercise 07a: read bfloat16
#
# Write a function that takes the bytes of a bfloat16 tensor, lowest byte first, and its shape, and
# returns a float32 array. Use `np.frombuffer` and no other package. (An integer can be shifted, and
# an array can be looked at as another dtype, with `.view`.)


# %%
def read_bf16(raw, shape):
    """Return the float32 array that the bytes of a bfloat16 tensor hold."""
    ...


check("07a", read_bf16)

# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 07a: open it when you have tried.


def bf16(raw, shape):
    upper = np.frombuffer(raw, "<u2").astype(np.uint32)  # wide enough before the shift
    return (upper << 16).view(np.float32).reshape(shape)


check("07a", bf16)

# %% [markdown]
# ## All tensors: a model
#
# `names` in `mamba_np/checkpoint` is the table of what each array of a block is called in a file,
# and of its shape. With it and the two ways of reading, nothing is missing. Only the convolution
# has an axis too many in the file, as PyTorch wants it, and the head is not there: it is the
# embeddings.


# %%
for field in ("in_proj", "conv", "A_log"):
    print(f"{field:>8}", names.LAYER[field])


def tensor(name):
    """Return the array that has this name in the file."""
    about = header[name]
    first, last = (start + offset for offset in about["data_offsets"])
    if about["dtype"] == "F32":
        return np.frombuffer(data[first:last], "<f4").reshape(about["shape"])
    return bf16(data[first:last], about["shape"])


def layer(i):
    """Return the arrays of a block; a bias that is not in the file is None."""
    keys = {field: names.layer_key(i, field) for field in names.LAYER}
    arrays = {field: tensor(key) if key in header else None for field, key in keys.items()}
    return Layer(**arrays | {"conv": arrays["conv"][:, 0]})


config = MambaConfig.from_file(folder / "config.json")
embeddings = tensor("backbone.embeddings.weight")
layers = tuple(layer(i) for i in range(config.num_hidden_layers))
params = Params(embeddings, layers, tensor("backbone.norm_f.weight"), lm_head=embeddings)
by_hand = MambaForCausalLM(config, params=params)
assert np.array_equal(by_hand(ids).logits, model(ids).logits)  # to the last bit

# %% [markdown]
# ## The same numbers in other wrappings
#
# Three more small models are kept with the tests, as three worlds write them: one file as
# transformers writes it, shards (several files and an index, as for large models), and the authors'
# own `pytorch_model.bin`, a zip with a pickle in it. The package reads the pickle without running
# it. All give the logits of transformers, in float64 to 14 digits:


# %%
def distance(name, dtype):
    """Return how far the logits of a kept model are from those of transformers in float64."""
    kept = np.load(fixtures / "refs" / f"{name}.npz")
    model = MambaForCausalLM.from_pretrained(fixtures / "models" / name, dtype=dtype)
    return np.abs(model(kept["in.input_ids"]).logits - kept["f64.logits"])


for name in ("base_silu", "sharded_bf16", "original_bin"):
    files = sorted({t.file.name for t in checkpoint.headers(fixtures / "models" / name).values()})
    most = distance(name, "float64").max()
    print(f"{name:>13}: {most:.0e}   {files[0]}, {len(files)} in all")
    assert most < 1e-13
print("references:", json.loads((fixtures / "manifest.json").read_text())["versions"])

# %% [markdown]
# **Are the names the same?** The authors' package, mamba-ssm, and transformers differ in one
# letter. (The authors also store the head when it is the embeddings; and the files of a model that
# was saved without its head leave out `backbone.`, which `canonical` knows, too.)

# %%
show(names.canonical)
original = fixtures / "models" / "original_bin"
renamed = {t.name: key for key, t in checkpoint.headers(original).items() if t.name != key}
print(renamed)
assert list(renamed) == ["backbone.embedding.weight"]  # one s

# %% [markdown]
# The configuration differs more: the authors' `config.json` names few sizes, and leaves the rest to
# defaults. This is what is in it, and what it means. Note the vocabulary: it is rounded up to a
# multiple of 8, and so are the rows of the embeddings.

# %%
print(json.loads((original / "config.json").read_text()))
meant = MambaConfig.from_file(original / "config.json")
sizes = "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "time_step_rank"
print({size: getattr(meant, size) for size in sizes})
assert meant.vocab_size == 64

# %% [markdown]
# ## What does a narrower dtype cost?
#
# The first of these models was trained in float32. `from_pretrained(..., dtype=...)` says how its
# matrices are stored. With 16 or 8 bits they are fewer digits, but arithmetic stays in float32: all
# of the difference comes from the weights.

# %%
fig, ax = plt.subplots(figsize=(6.5, 2.4), layout="constrained")
costs = {}
for dtype in ("float64", "float32", "float16", "bfloat16", "int8"):
    difference = costs[dtype] = distance("base_silu", dtype)
    middle, most = np.median(difference), difference.max()
    ax.plot([middle, most], [dtype] * 2, color="0.7", lw=4, solid_capstyle="round")
    ax.plot(middle, dtype, "o", color="#0072b2")
    ax.text(most * 2, dtype, f"{most:.0e}", va="center")
ax.text(2e-15, 0.75, "dot: half of the logits are nearer\nend of the line: all are", va="top")
ax.set(xscale="log", xlim=(1e-16, 10), xlabel="|logit - transformers' logit in float64|")
ax.invert_yaxis()
plt.show()
half = {dtype: np.median(difference) for dtype, difference in costs.items()}
assert half["float32"] < half["float16"] < half["bfloat16"] < half["int8"]
assert 5 < half["bfloat16"] / half["float16"] < 15

# %% [markdown]
# float16 has three bits of fraction more than bfloat16, and its error is nearly ten times smaller.
# What bfloat16 has instead is range, which weights rarely need and gradients do. int8 has whole
# numbers from -127 to 127, and a scale for each group of neighbours. None of this happened to the
# model on the map: its weights were rounded to bfloat16 when it was saved, and its reference was
# made from the rounded ones.
#
# ## Files that are not what they say
#
# A download stops halfway. A disk loses a sector. Or someone wants you to open a file that makes
# your program reserve all memory, or read what is none of its business. The header is the place to
# look. Light gray is the file as it is; the colours are what its first bytes and its header say:

# %%
layouts = {
    "sound": (36, 76, [(36, 56), (56, 76)]),
    "cut short": (36, 66, [(36, 56), (56, 76)]),
    "length too large": (100, 76, []),
    "two tensors in one place": (36, 76, [(36, 60), (52, 76)]),
    "bytes that belong to nobody": (36, 86, [(36, 56), (66, 86)]),
}
fig, ax = plt.subplots(figsize=(7.4, 2.2), layout="constrained")
draw_layouts(ax, layouts)
plt.show()

# %% [markdown]
# ### Exercise 07b: refuse a bad header
#
# Write a function that takes the bytes of a whole file and returns its header as a dictionary,
# without `__metadata__`. It raises `ValueError` unless
#
# 1. there are eight bytes, and the header that they announce ends inside the file;
# 2. each tensor has as many bytes as its shape and dtype ask for (F32: 4 for each number, BF16: 2);
# 3. the tensors, in the order of their offsets, follow each other from the first byte after the
#    header to the last of the file, with no gap and no overlap.
#
# (`json.loads` raises a ValueError by itself.)


# %%
def read_header(data):
    """Return {name: {"dtype", "shape", "data_offsets"}} of a sound safetensors file."""
    ...


check("07b", read_header)

# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true}
# Solution of 07b: open it when you have tried.


def checked_header(data):
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError(f"expected a header inside {len(data)} bytes, found a length of {length}")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    end = 0
    for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = tensor["data_offsets"]
        size = int(np.prod(tensor["shape"])) * {"F32": 4, "BF16": 2}[tensor["dtype"]]
        if first != end or last - first != size:
            raise ValueError(f"{name}: expected {size} bytes at {end}, found {first} to {last}")
        end = last
    if 8 + length + end != len(data):
        raise ValueError(f"expected the end at {8 + length + end}, found it at {len(data)}")
    return header


check("07b", checked_header)

# %% [markdown]
# With rule 3 there is nothing left to lie about: names, dtypes and shapes in their order say where
# every number is. But would you trust this function with any file? Even `shape` may hold a negative
# number. That is why the package leaves the decision to the parser of the safetensors library
# itself: **two programs that understand a file differently are how crafted files slip through**.
# What it adds are a limit and words that help. Here are copies of the file with something wrong:


# %%
def complaint(contents):
    """Return what the package says of a file with these contents."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.safetensors"
        file.write_bytes(contents)
        try:
            checkpoint.headers(place)
        except MambaError as error:
            return str(error).replace(str(file), file.name)


twice = data[8:start].replace(b'"data_offsets":[768,6912]', b'"data_offsets":[700,6844]')
assert complaint(data) is None
for what in (
    data[:-1000],
    (2**60).to_bytes(8, "little") + data[8:],
    data[:8] + twice + data[start:],
):
    print("-", complaint(what))
print("-", complaint(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146"))

# %% [markdown]
# ## Read next
#
# - [06 Write text from a state](06_write_text_from_a_state.ipynb): the state of a model is saved in
#   the same format.
# - `mamba_np/checkpoint/safetensors_file.py` and `torch_pickle.py`: how files are read here, the
#   second without running a pickle.
# - [docs/notation.md](../docs/notation.md#checkpoints): all names, shapes and the keys of both
#   kinds of `config.json`.
# - [docs/accuracy.md](../docs/accuracy.md): what was measured, on which checkpoints, with which
#   command.
# - [docs/differences.md](../docs/differences.md): where transformers contradicts itself, and what
#   happens here.
