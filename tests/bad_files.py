"""Bad models: every case damages a sound one in one way, and says how it must be refused.

``CASES`` maps a name to (function that makes the folder, class of the error, parts of its text).
A case that gets code to run creates the file ``CANARY`` beside its folder.
"""

import contextlib
import json
import os
import pickle
import shutil
import struct
import zipfile

import forge
import numpy as np

from mamba_np.errors import (
    CheckpointError,
    ConfigError,
    FileMissingError,
    NonFiniteError,
    UnsafeFileError,
    UnsupportedModelError,
)

CASES = {}
CANARY = "executed"
WEIGHTS, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
SHARD = "model-00002-of-00003.safetensors"
A_LOG = "backbone.layers.1.mixer.A_log"
IN_PROJ = "backbone.layers.0.mixer.in_proj.weight"


def bad(kind, *parts, **rows):
    """Register a function of a folder as a case; with rows {name: arguments}, once for each.

    Every error must be of this kind and hold these parts.
    """

    def register(make):
        for row, arguments in rows.items() or [("", ())]:
            name = f"{make.__name__}:{row}" if row else make.__name__
            assert name not in CASES
            values = arguments if isinstance(arguments, tuple) else (arguments,)
            CASES[name] = (lambda folder, values=values: make(folder, *values), kind, parts)
        return make

    return register


# --- safetensors: the container -----------------------------------------------------------------


def sound():
    """Return (header, numbers) of a sound file."""
    return forge.header_of(forge.tensors())


def write(folder, data, name=WEIGHTS):
    (forge.write_config(folder) / name).write_bytes(data)


@bad(
    CheckpointError,
    WEIGHTS,
    "damaged or only partly downloaded",
    empty=0,
    half_a_length=5,
    length_alone=8,
    half_a_header=300,
    header_alone=None,
    last_byte_missing=-1,
)
def truncated(folder, size):
    header, numbers = sound()
    data = forge.safetensors_bytes(header, numbers)
    write(folder, data[: len(data) - len(numbers) if size is None else size])


@bad(CheckpointError, WEIGHTS)
def trailing_bytes(folder):
    write(folder, forge.safetensors_bytes(*sound()) + b"more")


@bad(CheckpointError, WEIGHTS, zero=0, one_less=-1, one_more=1, huge=2**40, all_ones=2**64 - 1)
def lying_length(folder, length):
    header, numbers = sound()
    length += len(json.dumps(header).encode()) if abs(length) == 1 else 0
    write(folder, forge.safetensors_bytes(header, numbers, length))


@bad(
    CheckpointError,
    WEIGHTS,
    overlap=("data_offsets", lambda v: [v[0] - 4, v[1] - 4]),
    hole=("data_offsets", lambda v: [v[0] + 4, v[1] + 4]),
    out_of_range=("data_offsets", lambda v: [v[0] + 2**30, v[1] + 2**30]),
    end_before_start=("data_offsets", lambda v: v[::-1]),
    negative_offset=("data_offsets", lambda v: [-4, v[1]]),
    huge_offset=("data_offsets", lambda v: [v[0], 2**64]),
    one_offset=("data_offsets", lambda v: v[:1]),
    float_offset=("data_offsets", lambda v: [float(v[0]), v[1]]),
    negative_shape=("shape", lambda v: [-v[0], -v[1]]),
    overflowing_shape=("shape", lambda v: [2**32, 2**32, 2**32]),
    huge_shape=("shape", lambda v: [2**62, 1]),
    text_in_shape=("shape", lambda v: [str(n) for n in v]),
    unknown_dtype=("dtype", lambda v: "Q4"),
    longer_dtype=("dtype", lambda v: "F64"),
    dtype_not_text=("dtype", lambda v: 4),
    dtype_absent=("dtype", None),
)
def header_entry(folder, field, change):
    header, numbers = sound()
    old = header[A_LOG].pop(field)
    if change is not None:
        header[A_LOG][field] = change(old)
    write(folder, forge.safetensors_bytes(header, numbers))


@bad(CheckpointError, WEIGHTS)
def duplicate_key_in_the_header(folder):
    header, numbers = sound()
    again = f', "{A_LOG}": {json.dumps(header[IN_PROJ])}}}'.encode()
    write(folder, forge.safetensors_bytes(json.dumps(header).encode()[:-1] + again, numbers))


@bad(
    CheckpointError,
    WEIGHTS,
    not_json=b"{'single': quotes}",
    a_list=b"[1, 2, 3]",
    deep=b'{"a":' + b"[" * 10**6,
    deep_objects=b'{"a":' * 10**5,
    not_utf8=b'{"\xff\xfe": 1}',
    null=b"null",
    nan=b'{"a": NaN}',
    metadata_not_text=b'{"__metadata__": {"format": 1}}',
    blanks=b" " * 2**20,
)
def header_text(folder, text):
    write(folder, forge.safetensors_bytes(text))


@bad(CheckpointError, WEIGHTS, "at most")
def header_of_100_megabytes(folder):
    write(folder, struct.pack("<Q", 99 * 10**6))
    os.truncate(folder / WEIGHTS, 10**8)


@bad(CheckpointError, "num_hidden_layers", few=0, many=100_000)
def entries_of_no_model(folder, count):
    header = {
        f"layer.{i}": {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]}
        for i in range(count)
    }
    write(folder, forge.safetensors_bytes(header, bytes(4 * count)))


@bad(CheckpointError, WEIGHTS, "Git LFS")
def git_lfs_pointer(folder):
    write(folder, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


@bad(CheckpointError, WEIGHTS, "web page")
def saved_web_page(folder):
    write(folder, b"<!DOCTYPE html><html><body>Not found</body></html>")


@bad(CheckpointError, WEIGHTS, "zip")
def pickle_under_another_name(folder):
    forge.write_torch_model(folder)
    (folder / PICKLE).rename(folder / WEIGHTS)


# --- files that are no files --------------------------------------------------------------------


@bad(FileMissingError, "a folder", weights=WEIGHTS, config="config.json")
def a_folder(folder, name):
    forge.write_model(folder)
    (folder / name).unlink()
    (folder / name).mkdir()


def pipe(folder, name):
    forge.write_model(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)


def link(folder, name, target):
    forge.write_model(folder)
    (folder / name).unlink()
    (folder / name).symlink_to(target)


def link_out(folder, name):
    (forge.write_model if name == WEIGHTS else forge.write_shards)(folder)
    outside = folder.parent / f"{folder.name}-outside"
    outside.mkdir()
    shutil.move(folder / name, outside / name)
    (folder / name).symlink_to(outside / name)


if os.name == "posix":  # elsewhere there are no pipes, and links need privileges
    for name in (WEIGHTS, "config.json"):
        targets = {"dangling": (name, "absent"), "looping": (name, name)}
        rows = {f"{row}:{name}": arguments for row, arguments in targets.items()}
        bad(FileMissingError, name, "cannot be opened", **rows)(link)
        bad(FileMissingError, name, "not a regular", **{f"device:{name}": (name, "/dev/zero")})(
            link
        )
        bad(FileMissingError, name, "not a regular file", **{name: name})(pipe)
    bad(UnsafeFileError, "found a link to", weights=WEIGHTS, shard=SHARD)(link_out)


# --- shard indexes ------------------------------------------------------------------------------


@bad(
    UnsafeFileError,
    INDEX,
    "backbone.embeddings.weight",
    parent="../outside.safetensors",
    parent_with_backslash="..\\outside.safetensors",
    through_a_folder="a/../../outside.safetensors",
    absolute="/outside.safetensors",
    drive="C:outside.safetensors",
    home="~/outside.safetensors",
    home_of="~root.safetensors",
    address="https://example.com/outside.safetensors",
    address_of_a_file="file:outside.safetensors",
    zero_byte="out\0side.safetensors",
    subfolder="sub/outside.safetensors",
    pattern="*.safetensors",
    empty="",
    hidden=".safetensors",
    pickle="outside.bin",
    no_ending="outside",
)
def shard_name(folder, name):
    forge.write_model(folder / "sub")
    forge.write_model(folder.parent / f"{folder.name}-outside")
    forge.write_shards(folder)
    forge.write_index(folder, dict.fromkeys(forge.SHAPES, name))


@bad(
    CheckpointError,
    INDEX,
    no_map={"metadata": {}},
    empty_map={"weight_map": {}},
    list_map={"weight_map": [["a", "b"]]},
    number={"weight_map": {A_LOG: 3}},
    nothing={"weight_map": {A_LOG: None}},
    a_list=[],
)
def index_content(folder, value):
    forge.write_shards(folder)
    (folder / INDEX).write_text(json.dumps(value))


@bad(
    CheckpointError,
    INDEX,
    not_json=b"{",
    deep=b'{"weight_map":' + b"[" * 10**6,
    not_utf8=b"\xff\xfe{}",
    empty=b"",
    lists=b"[" + b"[]," * 2_500_000 + b"0]",
    large=b"[" + b"[]," * 3_000_000 + b"0]",
)
def index_text(folder, data):
    forge.write_shards(folder)
    (folder / INDEX).write_bytes(data)


@bad(FileMissingError, SHARD)
def missing_shard(folder):
    forge.write_shards(folder)
    (folder / SHARD).unlink()


@bad(CheckpointError, SHARD)
def damaged_shard(folder):
    forge.write_shards(folder)
    (folder / SHARD).write_bytes(b"abc")


@bad(CheckpointError, INDEX, "absent.tensor", "found none")
def tensor_in_no_shard(folder):
    forge.write_shards(folder)
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    forge.write_index(folder, weight_map | {"absent.tensor": SHARD})


@bad(CheckpointError, INDEX, A_LOG, SHARD, "found it in")
def tensor_in_another_shard(folder):
    forge.write_shards(folder)
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    weight_map[A_LOG] = {SHARD: SHARD.replace("2", "1", 1)}.get(weight_map[A_LOG], SHARD)
    forge.write_index(folder, weight_map)


@bad(CheckpointError, SHARD, "backbone.embeddings.weight", "in one shard")
def tensor_in_two_shards(folder):
    forge.write_shards(folder)
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder / SHARD)


# --- tensors that do not fit --------------------------------------------------------------------


@bad(
    CheckpointError,
    "tensor 'backbone.",
    "expected shape",
    "found no such tensor",
    norm="backbone.norm_f.weight",
    embeddings="backbone.embeddings.weight",
    A_log=A_LOG,
    bias="backbone.layers.0.mixer.conv1d.bias",
)
def missing_tensor(folder, name):
    arrays = forge.tensors()
    del arrays[name]
    forge.write_model(folder, arrays)


@bad(CheckpointError, "backbone.layers.1.norm.weight", "num_hidden_layers", "found 1")
def missing_layer(folder):
    arrays = {k: v for k, v in forge.tensors().items() if ".layers.1." not in k}
    forge.write_model(folder, arrays)


@bad(
    CheckpointError,
    "num_hidden_layers",
    "is missing",
    prefix=("backbone.", "model."),
    leading_zero=(".layers.0.", ".layers.00."),
    later=(".layers.0.", ".layers.7."),
    negative=(".layers.0.", ".layers.-1."),
    digits_of_another_script=(".layers.1.", ".layers.\u0661."),
)
def other_names(folder, old, new):
    forge.write_model(folder, {k.replace(old, new): v for k, v in forge.tensors().items()})


@bad(
    CheckpointError,
    f"{WEIGHTS}: tensor 'backbone.",
    "expected shape (",
    transposed=(IN_PROJ, lambda a: np.ascontiguousarray(a.T)),
    too_short=(IN_PROJ, lambda a: a[:-1]),
    more_axes=(A_LOG, lambda a: a[None]),
    fewer_axes=(A_LOG, lambda a: a.reshape(-1)),
    scalar=("backbone.layers.1.mixer.D", lambda a: np.array(a[0])),
    no_numbers=("backbone.norm_f.weight", lambda a: a[:0]),
    flat_convolution=("backbone.layers.0.mixer.conv1d.weight", lambda a: a[:, 0]),
    many_axes=("backbone.norm_f.weight", lambda a: a.reshape((1,) * 31 + (-1,))),
)
def shape(folder, name, change):
    arrays = forge.tensors()
    arrays[name] = change(arrays[name])
    forge.write_model(folder, arrays)


@bad(
    CheckpointError,
    f"{WEIGHTS}: tensor 'backbone.",
    "F64, F32, F16, BF16, found",
    long=(A_LOG, np.int64),
    byte=(IN_PROJ, np.uint8),
    bool=("backbone.layers.1.mixer.D", np.bool_),
    complex=(IN_PROJ, np.complex64),
)
def dtype(folder, name, kind):
    arrays = forge.tensors()
    arrays[name] = arrays[name].astype(kind)
    forge.write_model(folder, arrays)


@bad(
    CheckpointError,
    f"{WEIGHTS}: tensor 'backbone.norm_f.weight'",
    "F64, F32, F16, BF16, found F",
    fp8=("F8_E4M3", 1),
    other_fp8=("F8_E5M2", 1),
    fp4=("F4", 0.5),
)
def small_dtype(folder, kind, itemsize):
    header, numbers = sound()
    last = header["backbone.norm_f.weight"]
    start = last["data_offsets"][0]
    end = start + int(forge.D * itemsize)
    last |= {"dtype": kind, "data_offsets": [start, end]}
    write(folder, forge.safetensors_bytes(header, numbers[:end]))


@bad(CheckpointError, "lm_head.weight", "tie_word_embeddings", "no such tensor")
def untied_without_a_head(folder):
    forge.write_model(folder, tie_word_embeddings=False)


@bad(CheckpointError, "lm_head.weight", "tie_word_embeddings", "found others")
def tied_with_another_head(folder):
    forge.write_model(folder, forge.tensors(**{forge.HEAD: (forge.V, forge.D)}))


@bad(CheckpointError, "norm_f.weight", "found also as")
def two_dialects_at_once(folder):
    arrays = forge.tensors()
    forge.write_model(folder, arrays | {"norm_f.weight": arrays["backbone.norm_f.weight"]})


@bad(
    NonFiniteError,
    f"{WEIGHTS}: tensor 'backbone.",
    "expected finite numbers",
    A_log=(A_LOG, np.nan),
    D=("backbone.layers.0.mixer.D", np.inf),
    norm=("backbone.norm_f.weight", np.nan),
    bias=("backbone.layers.1.mixer.dt_proj.bias", -np.inf),
    convolution=("backbone.layers.1.mixer.conv1d.weight", np.nan),
)
def not_finite(folder, name, value):
    arrays = forge.tensors()
    arrays[name].flat[0] = value
    forge.write_model(folder, arrays)


# --- config.json --------------------------------------------------------------------------------


@bad(
    ConfigError,
    "config.json",
    "expected",
    vocabulary=("vocab_size", 10**12),
    state=("state_size", 2**63),
    negative=("hidden_size", -6),
    zero=("conv_kernel", 0),
    text=("state_size", "3"),
    boolean=("num_hidden_layers", True),
    a_list=("hidden_size", [6]),
    an_object=("conv_kernel", {"a": 1}),
    nothing=("vocab_size", None),
    fraction=("time_step_rank", 2.0),
    nan=("layer_norm_epsilon", float("nan")),
    infinity=("time_step_max", float("inf")),
    negative_epsilon=("layer_norm_epsilon", -1e-5),
    text_for_a_switch=("use_bias", "False"),
    number_for_a_switch=("tie_word_embeddings", 1),
    code=("hidden_act", "__import__('os').system('echo')"),
    list_for_a_name=("hidden_act", ["silu"]),
    token=("eos_token_id", "0"),
    endless_expand=("expand", 1e308),
    other_architecture=("model_type", "gpt2"),
    mamba2=("model_type", "mamba2"),
    falcon=("model_type", "falcon_mamba"),
    no_type=("model_type", None),
    list_for_a_type=("model_type", ["mamba"]),
    other_class=("architectures", ["GPT2LMHeadModel"]),
    text_for_classes=("architectures", "GPT2LMHeadModel"),
    number_for_classes=("architectures", 7),
)
def config_value(folder, field, value):
    unset = {"intermediate_size": None} if field == "expand" else {}
    forge.write_model(folder, **unset, **{field: value})


@bad(CheckpointError, "num_hidden_layers", "found 2", absurd=10**9, one_more=3)
def config_layers(folder, value):
    forge.write_model(folder, num_hidden_layers=value)


@bad(
    CheckpointError,
    f"{WEIGHTS}: tensor 'backbone.",
    "expected shape (",
    vocabulary=("vocab_size", 2**31 - 1),
    hidden=("hidden_size", 2**31 - 1),
    inner=("intermediate_size", 2**31 - 1),
    state=("state_size", 4),
    kernel=("conv_kernel", 5),
    rank=("time_step_rank", 10**9),
)
def config_size(folder, field, value):
    forge.write_model(folder, **{field: value})


@bad(
    UnsupportedModelError,
    "config.json",
    "expected",
    layer_norm={"d_model": 6, "rms_norm": False},
    mamba2={"d_model": 6, "ssm_cfg": {"layer": "Mamba2"}},
    attention={"d_model": 6, "attn_layer_idx": [1]},
    no_sizes={},
)
def other_mamba_ssm(folder, changes):
    forge.write_model(folder)
    config = {k: v for k, v in (forge.CONFIG | changes).items() if k != "hidden_size"}
    (folder / "config.json").write_text(json.dumps(config))


@bad(
    ConfigError,
    "config.json",
    not_json=b"hidden_size: 6",
    empty=b"",
    a_list=b"[]",
    text=b'"mamba"',
    deep=b'{"a":' + b"[" * 10**6,
    not_utf8=b'{"model_type": "mamb\xe9"}',
    utf16='{"model_type": "mamba"}'.encode("utf-16"),
    many_digits=b'{"hidden_size": ' + b"9" * 10**6 + b"}",
    web_page=b"<!DOCTYPE html>",
)
def config_text(folder, data):
    forge.write_model(folder)
    (folder / "config.json").write_bytes(data)


@bad(ConfigError, "config.json", "at most")
def config_of_a_gigabyte(folder):
    forge.write_model(folder)
    os.truncate(folder / "config.json", 2**30)


@bad(ConfigError, "config.json", "at most")
def config_of_ten_million_lists(folder):
    forge.write_model(folder)
    (folder / "config.json").write_bytes(b"[" + b"[]," * 10**7 + b"0]")


@bad(FileMissingError, "config.json")
def no_config(folder):
    forge.write_model(folder)
    (folder / "config.json").unlink()


@bad(FileMissingError, "config.json")
def an_empty_folder(folder):
    folder.mkdir()


@bad(FileMissingError, "model.safetensors", "found config.json")
def no_weights(folder):
    forge.write_config(folder)


# --- pickles: instructions ----------------------------------------------------------------------


class Attack:
    """An object whose pickle calls a function when Python's own machine reads it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def pickled(folder, data, storages=None, **options):
    forge.write_config(folder)
    forge.write_torch(folder / PICKLE, data, storages or {}, **options)


def touch(folder):
    """Return the command that an attack runs."""
    return f"touch '{folder.parent / CANARY}'"


@bad(CheckpointError, f"{PICKLE}: data.pkl", **{f"protocol_{n}": n for n in range(6)})
def call_of_a_shell(folder, protocol):
    pickled(folder, pickle.dumps({"a": Attack(os.system, touch(folder))}, protocol))


@bad(UnsafeFileError, f"{PICKLE}: data.pkl", "'builtins eval'")
def call_of_python(folder):
    source = forge.text(f"open({str(folder.parent / CANARY)!r}, 'w').close()")
    pickled(folder, forge.program(forge.call(forge.name_("builtins", "eval"), source)))


def calling(module, attribute):
    """Return the program that calls a function with the command."""
    return lambda command: forge.call(forge.name_(module, attribute), forge.text(command))


@bad(
    UnsafeFileError,
    f"{PICKLE}: data.pkl",
    "needs no",
    shell=calling("os", "system"),
    shell_by_its_module=calling("posix", "system"),
    through_torch=calling("torch", "os.system"),
    other_of_torch=calling("torch.serialization", "load"),
    older_tensor=calling("torch._utils", "_rebuild_tensor"),
    other_storage=calling("torch", "LongStorage"),
    blank_in_a_name=calling("collections OrderedDict", ""),
    call_of_a_dictionary=lambda command: b"}" + forge.tuple_(forge.text(command)) + b"R",
    call_of_text=lambda command: forge.text("os.system") + forge.tuple_(forge.text(command)) + b"R",
    call_without_a_tuple=lambda command: forge.name_("collections", "OrderedDict") + b"}R",
    stack_global=lambda command: forge.text("os") + forge.text("system") + b"\x93",
    instance=lambda command: b"(" + forge.text(command) + b"ios\nsystem\n",
    an_object=lambda command: b"(" + forge.name_("os", "system") + forge.text(command) + b"o",
    new_object=lambda command: forge.name_("collections", "OrderedDict") + b")\x81",
    extension=lambda command: b"\x82\1",
    persistent_text=lambda command: b"Pstorage\n",
    state_of_a_tensor=lambda command: forge.pickled_tensor("0", 1, (1,)) + b"}b",
    state_of_a_name=lambda command: forge.name_("torch", "FloatStorage") + b"}b",
)
def pickle_program(folder, program):
    pickled(folder, forge.program(program(touch(folder))))


@bad(
    CheckpointError,
    f"{PICKLE}: data.pkl",
    "expected",
    empty=b"",
    stop_alone=b"\x80\2.",
    no_stop=b"\x80\2}",
    cut_in_text=b"\x80\2X\xff\xff\0\0abc",
    unknown_instruction=b"\x80\2\xff.",
    no_mark=b"\x80\2t.",
    empty_stack=b"\x80\2R.",
    empty_slot=b"\x80\2h\5.",
    odd_items=b"\x80\2}(" + forge.text("a") + b"u.",
    a_list=b"\x80\2].",
    a_number=b"\x80\2K\1.",
    number_for_a_key=b"\x80\2}K\1}s.",
    number_for_a_tensor=b"\x80\2}" + forge.text("a") + b"K\1s.",
    nested_dictionary=b"\x80\2}" + forge.text("state_dict") + b"}s.",
    same_key_twice=b"\x80\2}" + 2 * (forge.text("a") + b"Ns") + b".",
    name_for_a_dictionary=b"\x80\2" + forge.name_("collections", "OrderedDict") + b".",
    protocol_4=b"\x80\4}.",
    text_for_a_storage=forge.program(b"}" + forge.text("a") + forge.text("0") + b"Qs"),
    huge_slot=b"\x80\2}r\xff\xff\xff\x7f" + b"r\xff\xff\xff\xff" + b"0.",
    tuple_in_tuples=b"\x80\2)" + b"q\0h\0\x86" * 100 + b"Ns.",
    key_of_tuples=b"\x80\2}q\1)" + b"q\0h\0\x86" * 100 + b"q\2h\1h\2Ns.",
    endless_tuple=b"\x80\2)" + b"\x85" * 10**6 + b".",
    marks=b"\x80\2" + b"(" * 10**6 + b".",
    dictionaries=b"\x80\2" + b"}" * 10**6 + b"\x85.",
    large_number=b"\x80\2\x8b" + struct.pack("<i", 10**6) + b"\1" * 10**6 + b".",
    above_the_limit=b"\x80\2" + b"N" * 2**21 + b".",
    strange_escape=b"\x80\2S'\\A'\n.",
)
def pickle_bytes(folder, data):
    pickled(folder, data)


# --- pickles: lies about storages ---------------------------------------------------------------


@bad(
    CheckpointError,
    PICKLE,
    "expected",
    more_numbers={"count": 10**9},
    fewer_numbers={"count": 5},
    no_numbers={"count": 0},
    negative_count={"count": -6},
    longer_shape={"shape": (7,)},
    huge_shape={"shape": (2**40,)},
    overflowing_shape={"shape": (2**62, 2**62), "strides": (0, 0)},
    negative_shape={"shape": (-6,)},
    many_axes={"shape": (1,) * 100},
    start_inside={"start": 3},
    start_beyond={"start": 2**62},
    negative_start={"start": -1},
    stride_of_nothing={"strides": (0,)},
    wide_stride={"strides": (2,)},
    negative_stride={"strides": (-1,)},
    stride_beyond={"strides": (2**62,)},
    no_strides={"strides": ()},
    more_strides={"strides": (1, 1)},
    wider_numbers={"kind": "DoubleStorage"},
    narrower_numbers={"kind": "HalfStorage"},
    other_member={"key": "77"},
    member_by_a_path={"key": "../data.pkl"},
    absolute_member={"key": "/etc/passwd"},
    member_of_zero_bytes={"key": "\0"},
    digits_of_another_script={"key": "\u0661"},
)
def storage(folder, lie):
    items, storages = forge.torch_parts(forge.tensors())
    last = len(items) - 1
    truth = {"key": str(last), "count": forge.D, "shape": (forge.D,)}
    items["backbone.norm_f.weight"] = forge.pickled_tensor(**truth | lie)
    pickled(folder, forge.program(forge.dict_(items)), storages)


@bad(UnsafeFileError, PICKLE, "share the same numbers")
def one_storage_for_every_layer(folder):
    arrays = {f"backbone.layers.{i}.mixer.D": np.zeros(10**5, np.float32) for i in range(300)}
    view = forge.pickled_tensor("0", 10**5, (10**5,))
    program = forge.program(forge.dict_(dict.fromkeys(arrays, view)))
    pickled(folder, program, {"0": bytes(4 * 10**5)})


@bad(CheckpointError, f"{PICKLE}: tensor 'backbone.norm_f.weight'", "found (1, 6)")
def transposed_strides(folder):
    items, storages = forge.torch_parts(forge.tensors())
    items["backbone.norm_f.weight"] = forge.pickled_tensor("0", 66, (6, 11), strides=(1, 6))
    pickled(folder, forge.program(forge.dict_(items)), storages)


# --- pickles: the zip around them ---------------------------------------------------------------


def parts_of_a_model():
    items, storages = forge.torch_parts(forge.tensors())
    return forge.program(forge.dict_(items)), storages


@bad(UnsafeFileError, PICKLE, "compressed")
def compressed_members(folder):
    pickled(folder, *parts_of_a_model(), compression=zipfile.ZIP_DEFLATED)


@bad(UnsafeFileError, PICKLE, "compressed")
def compressed_bomb(folder):
    storages = {"0": bytes(10**8)}
    view = forge.pickled_tensor("0", 25 * 10**6, (25 * 10**6,))
    program = forge.program(forge.dict_({"backbone.norm_f.weight": view}))
    forge.write_config(folder)
    forge.write_torch(folder / PICKLE, program, {})
    with zipfile.ZipFile(folder / PICKLE, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", storages["0"])


@bad(
    CheckpointError,
    PICKLE,
    "expected",
    no_pickle=("data.pkl", None),
    no_storage=("data/3", None),
    no_checksum=("data.pkl", b"\x80\2}."),
    big_endian=("byteorder", b"big"),
)
def member(folder, name, content):
    forge.write_torch_model(folder)
    with zipfile.ZipFile(folder / PICKLE) as archive:
        members = {one.filename: archive.read(one) for one in archive.infolist()}
    old = members.pop(f"archive/{name}")
    with zipfile.ZipFile(folder / PICKLE, "w") as archive:
        for one, data in members.items():
            archive.writestr(one, data)
        if name == "data.pkl" and content is not None:
            archive.writestr(f"archive/{name}", old)
        elif content is not None:
            archive.writestr(f"archive/{name}", content)
    if name == "data.pkl" and content is not None:  # one character of a name, behind the checksum
        data = (folder / PICKLE).read_bytes()
        (folder / PICKLE).write_bytes(data.replace(b"norm_f.weightc", b"norm_g.weightc", 1))


@bad(
    CheckpointError,
    PICKLE,
    "expected",
    parent="archive/../../outside",
    absolute="/outside",
    other_root="other/data/0",
    second_pickle="other/data.pkl",
)
def extra_member(folder, name):
    forge.write_torch_model(folder)
    with zipfile.ZipFile(folder / PICKLE, "a") as archive:
        archive.writestr(name, b"extra")


@bad(CheckpointError, PICKLE, "two members of one name")
def member_twice(folder):
    forge.write_torch_model(folder)
    with contextlib.suppress(UserWarning), zipfile.ZipFile(folder / PICKLE, "a") as archive:
        archive.writestr("archive/data/X", b"first")
        archive.writestr("archive/data/Y", b"second")
    data = (folder / PICKLE).read_bytes()
    (folder / PICKLE).write_bytes(data.replace(b"archive/data/Y", b"archive/data/X"))


@bad(
    CheckpointError,
    PICKLE,
    "expected PyTorch's zip format",
    empty=lambda data: b"",
    half=lambda data: data[: len(data) // 2],
    no_directory=lambda data: data[:-22],
    web_page=lambda data: b"<!DOCTYPE html>",
    older_format=lambda data: b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
    plain_pickle=lambda data: pickle.dumps({}),
    damaged_directory=lambda data: data.replace(b"PK\1\2", b"PK\1\3"),
    huge_directory=lambda data: data[:-10] + struct.pack("<II", 2**31, 0) + data[-2:],
    newer_zip=lambda data: data.replace(b"PK\1\2\x14\3\x14", b"PK\1\2\x14\3\xff"),
)
def zip_file(folder, change):
    forge.write_torch_model(folder)
    (folder / PICKLE).write_bytes(change((folder / PICKLE).read_bytes()))


@bad(CheckpointError, PICKLE, "expected a zip member, found other bytes")
def damaged_members(folder):
    forge.write_torch_model(folder)
    data = (folder / PICKLE).read_bytes()
    (folder / PICKLE).write_bytes(data.replace(b"PK\3\4", b"PK\3\5"))


@bad(CheckpointError, PICKLE, "a directory of")
def large_directory(folder):
    forge.write_config(folder)
    with zipfile.ZipFile(folder / PICKLE, "w") as archive:
        for i in range(80):
            archive.writestr(f"archive/data/{i:060000}", b"")
