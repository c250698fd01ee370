"""Makes checkpoints by hand, sound ones and broken ones, without the package's own writer.

Shapes and names are written out here from the checkpoint format, so that a mistake in the
package's table cannot hide.
"""

import json
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

CONFIG = {
    "model_type": "mamba",
    "architectures": ["MambaForCausalLM"],
    "vocab_size": 11,
    "hidden_size": 6,
    "state_size": 3,
    "num_hidden_layers": 2,
    "conv_kernel": 4,
    "expand": 2,
    "intermediate_size": 12,
    "time_step_rank": 2,
    "use_bias": False,
    "use_conv_bias": True,
    "tie_word_embeddings": True,
}
V, D, N, K, E, R = 11, 6, 3, 4, 12, 2

SHAPES = {
    "backbone.embeddings.weight": (V, D),
    **{
        f"backbone.layers.{i}.{name}": shape
        for i in range(2)
        for name, shape in {
            "norm.weight": (D,),
            "mixer.in_proj.weight": (2 * E, D),
            "mixer.conv1d.weight": (E, 1, K),
            "mixer.conv1d.bias": (E,),
            "mixer.x_proj.weight": (R + 2 * N, E),
            "mixer.dt_proj.weight": (E, R),
            "mixer.dt_proj.bias": (E,),
            "mixer.A_log": (E, N),
            "mixer.D": (E,),
            "mixer.out_proj.weight": (D, E),
        }.items()
    },
    "backbone.norm_f.weight": (D,),
}
HEAD = "lm_head.weight"


def tensors(seed=0, dtype=np.float32, **shapes):
    """Return {name: random array} of the small model; more tensors by name=shape."""
    rng = np.random.default_rng(seed)
    return {k: rng.standard_normal(s).astype(dtype) for k, s in (SHAPES | shapes).items()}


def write_config(folder, **changes):
    """Write config.json of the small model into a folder, creating it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes), "utf-8")
    return folder


def write_model(folder, arrays=None, **changes):
    """Write a model as one safetensors file; ``changes`` are to its configuration."""
    folder = write_config(folder, **changes)
    arrays = tensors() if arrays is None else arrays
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_shards(folder, arrays=None, count=3, **changes):
    """Write a model as ``count`` safetensors files with an index."""
    folder = write_config(folder, **changes)
    arrays = tensors() if arrays is None else arrays
    names, weight_map = list(arrays), {}
    for i in range(count):
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        mine = names[i::count]
        save_file({name: arrays[name] for name in mine}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    write_index(folder, weight_map)
    return folder


def write_index(folder, weight_map, name="model.safetensors.index.json"):
    """Write a shard index."""
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    (folder / name).write_text(text, "utf-8")


# --- safetensors, byte by byte -----------------------------------------------------------------

DTYPE_NAMES = {
    np.dtype(np.float64): "F64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
}


def header_of(arrays):
    """Return (header, numbers) of a sound safetensors file, the header as a dictionary."""
    header, data = {}, b""
    for name, array in arrays.items():
        end = len(data) + array.nbytes
        header[name] = {
            "dtype": DTYPE_NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [len(data), end],
        }
        data += array.tobytes()
    return header, data


def safetensors_bytes(header, data=b"", length=None):
    """Return a file with this header, a dictionary or text; its length may lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


# --- pickles, instruction by instruction (protocol 2) -------------------------------------------


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value):
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tuple_(*items):
    return b"(" + b"".join(items) + b"t"


def name_(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def call(function, *arguments):
    return function + tuple_(*arguments) + b"R"


def dict_(items, start=b"}"):
    return start + b"(" + b"".join(text(k) + v for k, v in items.items()) + b"u"


def program(body):
    return b"\x80\x02" + body + b"."


ORDERED_DICT = name_("collections", "OrderedDict") + b")R"


def pickled_tensor(key, count, shape, *, kind="FloatStorage", start=0, strides=None):
    """Return the instructions for one tensor, as torch.save writes them."""
    if strides is None:
        strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    storage = tuple_(text("storage"), name_("torch", kind), text(key), text("cpu"), number(count))
    return call(
        name_("torch._utils", "_rebuild_tensor_v2"),
        storage + b"Q",
        number(start),
        tuple_(*map(number, shape)),
        tuple_(*map(number, strides)),
        b"\x89",
        ORDERED_DICT,
    )


STORAGE_KINDS = {"F64": "DoubleStorage", "F32": "FloatStorage", "F16": "HalfStorage"} | {
    "BF16": "BFloat16Storage"
}


def torch_parts(arrays):
    """Return ({name: instructions}, {storage key: bytes}) of a checkpoint."""
    items, storages = {}, {}
    for i, (name, array) in enumerate(arrays.items()):
        kind = STORAGE_KINDS[DTYPE_NAMES[array.dtype]]
        items[name] = pickled_tensor(str(i), array.size, array.shape, kind=kind)
        storages[str(i)] = array.tobytes()
    return items, storages


def write_torch(path, pickle, storages, *, root="archive", **options):
    """Write the zip file that torch.save would; ``options`` go to zipfile."""
    members = {"data.pkl": pickle, "byteorder": b"little", "version": b"3\n"}
    members |= {f"data/{key}": data for key, data in storages.items()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(f"{root}/{name}", data)
    return path


def write_torch_model(folder, arrays=None, **changes):
    """Write a model as pytorch_model.bin."""
    folder = write_config(folder, **changes)
    items, storages = torch_parts(tensors() if arrays is None else arrays)
    write_torch(folder / "pytorch_model.bin", program(dict_(items)), storages)
    return folder


# --- memory --------------------------------------------------------------------------------------


def peak_memory():
    """Return the most memory that this process has ever had resident, in bytes.

    Linux counts the parent's memory in a child's ``ru_maxrss``; its /proc file does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
