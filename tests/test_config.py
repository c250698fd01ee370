"""MambaConfig: transformers' fields and defaults, both dialects, refusals, round trips."""

import inspect
import json
import pickle
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_np.config import MambaConfig
from mamba_np.errors import ConfigError, FileMissingError, UnsupportedModelError
from mamba_np.generation_config import GenerationConfig

DEFAULTS = {  # as the documentation of transformers' Mamba lists them
    "vocab_size": 50280,
    "hidden_size": 768,
    "state_size": 16,
    "num_hidden_layers": 32,
    "layer_norm_epsilon": 1e-5,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "expand": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
    "initializer_range": 0.1,
    "residual_in_fp32": True,
    "time_step_rank": 48,  # "auto" = ceil(hidden_size / 16), filled in
    "time_step_scale": 1.0,
    "time_step_min": 0.001,
    "time_step_max": 0.1,
    "time_step_init_scheme": "random",
    "time_step_floor": 1e-4,
    "rescale_prenorm_residual": False,
    "use_cache": True,
    "use_mambapy": False,
}


@pytest.mark.parametrize(("name", "value"), DEFAULTS.items())
def test_defaults_of_the_documentation(name, value):
    found = getattr(MambaConfig(), name)
    assert found == value
    assert type(found) is type(value)


def test_defaults_of_transformers():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.MambaConfig().to_dict()
    ours = MambaConfig().to_dict()
    own_fields = set(transformers.MambaConfig.__annotations__) | {"intermediate_size"}
    assert own_fields >= set(DEFAULTS)
    for name in own_fields & set(theirs):
        assert ours[name] == theirs[name], name


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_size": 40},
        {"hidden_size": 40, "time_step_rank": 7, "expand": 3},
        {"hidden_size": 33, "expand": 1.5, "state_size": 5, "eos_token_id": [1, 2]},
    ],
)
def test_derived_sizes_are_those_of_transformers(options):
    transformers = pytest.importorskip("transformers")
    ours = MambaConfig(**options)
    if isinstance(options.get("expand"), float):  # 5.x wants an integer; 4.x computed this
        assert ours.intermediate_size == int(1.5 * 33)
        return
    theirs = transformers.MambaConfig(**options)
    assert ours.intermediate_size == theirs.intermediate_size
    assert ours.time_step_rank == theirs.time_step_rank
    assert ours.eos_token_id == theirs.eos_token_id


def test_intermediate_size_overrides_expand():
    assert MambaConfig(hidden_size=10, expand=16, intermediate_size=24).intermediate_size == 24
    assert MambaConfig(hidden_size=10, expand=3).intermediate_size == 30
    assert MambaConfig(hidden_size=10, expand=1.55).intermediate_size == 15


@pytest.mark.parametrize(("hidden", "rank"), [(1, 1), (16, 1), (17, 2), (768, 48), (2560, 160)])
def test_automatic_rank(hidden, rank):
    assert MambaConfig(hidden_size=hidden).time_step_rank == rank
    assert MambaConfig(hidden_size=hidden, time_step_rank=5).time_step_rank == 5


# --- dialects ------------------------------------------------------------------------------------


def test_hidden_size_counts_where_a_file_has_both_dialects():
    both = {"hidden_size": 1536, "d_model": 2048, "num_hidden_layers": 32, "n_layer": 48}
    config = MambaConfig.from_dict(both)
    assert (config.hidden_size, config.num_hidden_layers) == (1536, 32)
    assert (config.d_model, config.n_layer) == (2048, 48)  # kept, as any unknown key


def test_the_dialect_of_mamba_ssm():
    config = MambaConfig.from_dict(
        {
            "d_model": 48,
            "n_layer": 2,
            "vocab_size": 61,
            "ssm_cfg": {"d_state": 5, "d_conv": 3, "expand": 3, "dt_rank": 7, "bias": True}
            | {"conv_bias": False, "dt_min": 0.01, "dt_max": 0.2, "dt_init": "constant"}
            | {"dt_scale": 0.5, "dt_init_floor": 0.001},
            "rms_norm": True,
            "pad_vocab_size_multiple": 16,
            "tie_embeddings": False,
        }
    )
    expected = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "vocab_size": 64,
        "state_size": 5,
        "conv_kernel": 3,
        "expand": 3,
        "intermediate_size": 144,
        "time_step_rank": 7,
        "use_bias": True,
        "use_conv_bias": False,
        "time_step_min": 0.01,
        "time_step_max": 0.2,
        "time_step_init_scheme": "constant",
        "time_step_scale": 0.5,
        "time_step_floor": 0.001,
        "tie_word_embeddings": False,
    }
    assert {name: getattr(config, name) for name in expected} == expected


def test_the_defaults_of_mamba_ssm():
    config = MambaConfig.from_dict({"d_model": 768, "n_layer": 24, "vocab_size": 50277})
    assert config.vocab_size == 50280
    assert (config.state_size, config.conv_kernel, config.intermediate_size) == (16, 4, 1536)
    assert config.time_step_rank == 48
    assert config.tie_word_embeddings is True


@pytest.mark.parametrize(
    ("vocab", "multiple", "padded"), [(50277, 8, 50280), (64, 8, 64), (61, 1, 61), (61, 16, 64)]
)
def test_the_padded_vocabulary(vocab, multiple, padded):
    values = {"d_model": 8, "vocab_size": vocab, "pad_vocab_size_multiple": multiple}
    assert MambaConfig.from_dict(values).vocab_size == padded


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "mamba2", "hidden_size": 8},
        {"model_type": "falcon_mamba", "hidden_size": 8},
        {"model_type": "llama", "hidden_size": 8},
        {"architectures": ["LlamaForCausalLM"], "hidden_size": 8},
        {"architectures": [None], "hidden_size": 8},
        {"model_type": "mamba"},
        {},
        {"d_model": 8, "ssm_cfg": {"layer": "Mamba2"}},
        {"d_model": 8, "attn_layer_idx": [1]},
        {"d_model": 8, "d_intermediate": 16},
        {"d_model": 8, "rms_norm": False},
    ],
)
def test_other_architectures_are_refused(values):
    with pytest.raises(UnsupportedModelError, match=r"expected .*found"):
        MambaConfig.from_dict(values)


# --- refusals ------------------------------------------------------------------------------------

BAD = [
    ("vocab_size", 0),
    ("vocab_size", -5),
    ("vocab_size", 10**12),
    ("vocab_size", 50280.0),
    ("vocab_size", "50280"),
    ("vocab_size", None),
    ("vocab_size", True),
    ("hidden_size", 0),
    ("hidden_size", [768]),
    ("hidden_size", float("nan")),
    ("state_size", 0),
    ("state_size", 2**31),
    ("num_hidden_layers", -1),
    ("num_hidden_layers", 1.5),
    ("conv_kernel", 0),
    ("conv_kernel", {}),
    ("expand", 0),
    ("expand", -2),
    ("expand", float("inf")),
    ("expand", "2"),
    ("intermediate_size", 0),
    ("intermediate_size", "auto"),
    ("intermediate_size", 2.0),
    ("time_step_rank", 0),
    ("time_step_rank", "automatic"),
    ("time_step_rank", None),
    ("layer_norm_epsilon", 0),
    ("layer_norm_epsilon", -1e-5),
    ("layer_norm_epsilon", float("nan")),
    ("layer_norm_epsilon", "1e-5"),
    ("time_step_min", 0),
    ("time_step_min", 0.5),
    ("time_step_max", -0.1),
    ("time_step_max", float("inf")),
    ("time_step_floor", -1),
    ("time_step_scale", float("nan")),
    ("time_step_init_scheme", "zero"),
    ("time_step_init_scheme", None),
    ("initializer_range", -0.1),
    ("use_bias", 1),
    ("use_bias", "false"),
    ("use_conv_bias", None),
    ("tie_word_embeddings", "yes"),
    ("use_cache", 0),
    ("hidden_act", "sigmoidal"),
    ("hidden_act", "__import__('os').system('true')"),
    ("hidden_act", None),
    ("hidden_act", ["silu"]),
    ("pad_token_id", -1),
    ("bos_token_id", "0"),
    ("bos_token_id", 1.0),
    ("eos_token_id", [0, -1]),
    ("eos_token_id", [[0]]),
    ("eos_token_id", True),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_values_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"^{name}: expected .*found ") as info:
        MambaConfig(**{name: value})
    assert isinstance(info.value, ValueError)


@pytest.mark.parametrize(("name", "value"), BAD[:12])
def test_a_file_with_a_bad_value_is_named(name, value, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"hidden_size": 8, "model_type": "mamba"} | {name: value}))
    with pytest.raises(ConfigError) as info:
        MambaConfig.from_file(path)
    assert str(path) in str(info.value)
    assert name in str(info.value)


def test_an_expansion_to_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"expand|intermediate_size"):
        MambaConfig(hidden_size=10, expand=0.05)


@pytest.mark.parametrize("ssm_cfg", [["d_state"], "x", 3])
def test_a_bad_ssm_cfg(ssm_cfg):
    with pytest.raises(ConfigError, match="ssm_cfg: expected an object"):
        MambaConfig.from_dict({"d_model": 8, "ssm_cfg": ssm_cfg})


@pytest.mark.parametrize("name", ["d_model", "n_layer", "vocab_size", "pad_vocab_size_multiple"])
@pytest.mark.parametrize("value", [0, -1, "8", 1.5, None, True])
def test_bad_values_in_the_dialect_of_mamba_ssm(name, value):
    with pytest.raises(ConfigError, match=r"expected .*found"):
        MambaConfig.from_dict({"d_model": 8, "n_layer": 1, "vocab_size": 8} | {name: value})


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"hidden_size": NaN}', "\x00\xff"])
def test_files_that_hold_no_configuration(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError) as info:
        MambaConfig.from_file(path)
    assert str(path) in str(info.value)


def test_a_missing_folder_or_file(tmp_path):
    with pytest.raises(FileMissingError, match=r"config\.json"):
        MambaConfig.from_pretrained(tmp_path)


# --- unknown keys and round trips ----------------------------------------------------------------


def test_unknown_keys_are_kept_and_read_as_attributes(tmp_path):
    config = MambaConfig(hidden_size=8, torch_dtype="bfloat16", nested={"a": [1, None]})
    assert config.torch_dtype == "bfloat16"
    assert config.extra == {"torch_dtype": "bfloat16", "nested": {"a": [1, None]}}
    config.save_pretrained(tmp_path)
    assert MambaConfig.from_pretrained(tmp_path).nested == {"a": [1, None]}
    written = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert written["torch_dtype"] == "bfloat16"
    assert written["model_type"] == "mamba"
    assert "extra" not in written


def test_unknown_attributes_are_missing():
    with pytest.raises(AttributeError, match="no_such_field"):
        _ = MambaConfig().no_such_field
    assert not hasattr(MambaConfig(), "no_such_field")
    assert pickle.loads(pickle.dumps(MambaConfig(note=1))).note == 1


def test_what_is_selective_is_written_where_it_is_not_all(tmp_path):
    assert "selective" not in MambaConfig().to_dict()
    config = MambaConfig(selective=["C", "delta", "C"])
    assert config.selective == ("delta", "C")
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["selective"] == ["delta", "C"]
    assert MambaConfig.from_pretrained(tmp_path).selective == ("delta", "C")


@pytest.mark.parametrize("names", ["delta", ["A"], None, [1], ("delta", "b")])
def test_unknown_names_of_what_is_selective_are_refused(names):
    with pytest.raises(ConfigError, match=r"^selective: expected a list with some of 'delta'"):
        MambaConfig(selective=names)


def test_overrides_while_reading(tmp_path):
    MambaConfig(hidden_size=8).save_pretrained(tmp_path / "new" / "folder")
    config = MambaConfig.from_pretrained(tmp_path / "new" / "folder", use_mambapy=True)
    assert (config.hidden_size, config.use_mambapy) == (8, True)


def test_equality():
    assert MambaConfig(hidden_size=8) == MambaConfig(hidden_size=8)
    assert MambaConfig(hidden_size=8) != MambaConfig(hidden_size=9)
    assert MambaConfig(note=1) != MambaConfig()
    assert MambaConfig() != MambaConfig().to_dict()


sizes = st.integers(1, 2**20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    known=st.fixed_dictionaries(
        {},
        optional={
            "vocab_size": sizes,
            "hidden_size": sizes,
            "state_size": sizes,
            "num_hidden_layers": sizes,
            "conv_kernel": sizes,
            "intermediate_size": sizes,
            "time_step_rank": sizes | st.just("auto"),
            "expand": st.integers(1, 8) | st.floats(1, 8),
            "layer_norm_epsilon": st.floats(1e-12, 1),
            "eos_token_id": st.none() | st.lists(st.integers(0, 99), min_size=1, max_size=3),
            "use_bias": st.booleans(),
            "tie_word_embeddings": st.booleans(),
            "hidden_act": st.sampled_from(["silu", "gelu", "relu"]),
            "time_step_init_scheme": st.sampled_from(["random", "constant"]),
        },
    ),
    unknown=st.dictionaries(st.text(min_size=1).map("x_{}".format), json_values, max_size=3),
)
def test_round_trip(known, unknown, tmp_path_factory):
    config = MambaConfig(**known, **unknown)
    assert MambaConfig(**config.to_dict()) == config
    folder = tmp_path_factory.mktemp("config")
    config.save_pretrained(folder)
    again = MambaConfig.from_pretrained(folder)
    assert again == config
    assert again.extra == unknown


def test_transformers_reads_what_we_write(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = MambaConfig(hidden_size=24, intermediate_size=40, use_bias=True, note="kept")
    config.save_pretrained(tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "MambaConfig"
    for name, value in config.to_dict().items():
        assert getattr(theirs, name) == value, name


@pytest.mark.parametrize("cls", [MambaConfig, GenerationConfig])
def test_the_signature_shows_every_field_with_its_default(cls):
    shown = inspect.signature(cls).parameters
    for f in fields(cls):
        if f.name != "extra":
            assert shown[f.name].default == f.default
    assert shown["options"].kind is inspect.Parameter.VAR_KEYWORD


def test_what_follows_from_an_override_follows_anew(tmp_path):
    MambaConfig(hidden_size=32).save_pretrained(tmp_path)
    assert MambaConfig.from_pretrained(tmp_path, expand=4).intermediate_size == 128
    wide = MambaConfig.from_pretrained(tmp_path, hidden_size=160)
    assert (wide.intermediate_size, wide.time_step_rank) == (320, 10)
    given = MambaConfig.from_pretrained(tmp_path, expand=4, intermediate_size=40)
    assert given.intermediate_size == 40


@pytest.mark.parametrize("name", ["layer_norm_epsilon", "expand", "time_step_min"])
def test_an_integer_beyond_every_float_is_refused(name):
    with pytest.raises(ConfigError, match=rf"{name}: expected a finite number.*an integer of"):
        MambaConfig(**{name: 10**400})


def test_messages_stay_short():
    for value in ("x" * 10**6, list(range(10**5)), 10**4000, {"a": ["b" * 1000] * 50}):
        with pytest.raises(ConfigError) as caught:
            MambaConfig(hidden_size=value)
        assert len(str(caught.value)) < 300


def test_unknown_keys_of_ssm_cfg_are_kept():
    values = {"d_model": 8, "n_layer": 1, "ssm_cfg": {"d_state": 4, "use_fast_path": False}}
    config = MambaConfig.from_dict(values)
    assert config.state_size == 4
    assert config.ssm_cfg == {"use_fast_path": False}
    assert MambaConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("values", [[1], "ab", {"hidden_size": 4, 5: 6}, None])
def test_what_is_no_dictionary_is_refused(values):
    with pytest.raises(ConfigError, match="expected a dictionary"):
        MambaConfig.from_dict(values)


def test_numpy_integers_are_integers():
    config = MambaConfig(hidden_size=np.int64(16), use_bias=np.True_)
    assert type(config.hidden_size) is int
    json.dumps(config.to_dict())
