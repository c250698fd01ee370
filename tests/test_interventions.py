"""Interventions: what changes nothing changes no bit, and each change against another way to it."""

import itertools
from dataclasses import replace

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_laws import configs, make_model, oracle, seeds
from tolerances import assert_close_to_scale, tolerance

from mamba_np import MambaConfig, MambaForCausalLM, reference
from mamba_np.errors import InputError
from mamba_np.interventions import (
    Ablate,
    ClampDelta,
    CutPath,
    FreezeDelta,
    ScaleDelta,
    SetState,
)
from mamba_np.params import convert

SIZES = {
    "vocab_size": 17, "hidden_size": 10, "intermediate_size": 18, "state_size": 3,
    "num_hidden_layers": 3, "time_step_max": 0.7, "use_bias": True,
}  # fmt: skip
CONFIG = MambaConfig(**SIZES)
IDS = np.random.default_rng(5).integers(17, size=(2, 11))
NEUTRAL = [
    ScaleDelta(1), ScaleDelta(1.0, layers=[1]), ClampDelta(), FreezeDelta(layers=[]),
    Ablate(channels=[]), CutPath(3, layers=()), SetState(0, at=2, channels=[]),
]  # fmt: skip
IDLE = [
    ScaleDelta(3, tokens=[99]), ClampDelta(0, 1e9), FreezeDelta(tokens=slice(50, None)),
    CutPath(10), CutPath(2, target=[1, 2]), SetState(0, at=0),
    SetState(0, at=11), Ablate(tokens=[]),
]  # fmt: skip


@pytest.fixture
def model():
    return make_model(CONFIG)


def close(found, expected, step="law"):
    assert_close_to_scale(found, expected, tolerance(step, "float64"), "logits")


def changed(model, *changes, ids=IDS):
    with model.intervene(*changes):
        return model(ids).logits


# --- nothing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("change", NEUTRAL, ids=str)
def test_the_neutral_value_changes_no_bit(change, dtype):
    model = MambaForCausalLM(CONFIG, params=convert(make_model(CONFIG).params, dtype))
    assert changed(model, change).tobytes() == model(IDS).logits.tobytes()
    assert changed(model, *NEUTRAL).tobytes() == model(IDS).logits.tobytes()


@pytest.mark.parametrize("change", IDLE, ids=str)
def test_a_change_that_meets_nothing_changes_no_bit_of_the_reference(change, model):
    assert model.backend == "numpy"
    assert changed(model, change).tobytes() == model(IDS).logits.tobytes()


def test_the_model_is_itself_afterwards(model):
    before = model(IDS).logits
    assert not np.array_equal(changed(model, ScaleDelta(2)), before)
    assert np.array_equal(model(IDS).logits, before)
    with pytest.raises(RuntimeError), model.intervene(ScaleDelta(2)):
        raise RuntimeError
    assert np.array_equal(model(IDS).logits, before)


# --- step sizes ----------------------------------------------------------------------------------


def by_oracle(model, change, monkeypatch):
    """Return the oracle's logits where ``change(delta)`` is what the second block's scan meets."""
    whole, calls = naive.select, iter(range(10**6))

    def select(x, *weights):
        delta, B, C = whole(x, *weights)
        layer = next(calls) % 3
        return (change(delta) if layer == 1 else delta), B, C

    monkeypatch.setattr(naive, "select", select)
    return oracle(model, IDS).logits


def factor(delta):
    out = np.array(delta)
    out[3:7, [2, 5]] *= 2.5
    return out


def held(delta):
    return np.full_like(delta, 0.3)


CASES = [
    (ScaleDelta(2.5, layers=1, channels=[2, 5], tokens=slice(3, 7)), factor),
    (ClampDelta(0.2, 0.5, layers=[1]), lambda delta: np.clip(delta, 0.2, 0.5)),
    (FreezeDelta(0.3, layers=[-2]), held),
]


@pytest.mark.parametrize(("change", "function"), CASES)
def test_step_sizes_by_the_oracle(model, change, function, monkeypatch):
    found = changed(model, change)
    assert not np.allclose(found, model(IDS).logits)
    close(found, by_oracle(model, function, monkeypatch))


def test_frozen_step_sizes_are_those_of_a_model_that_makes_none_of_its_input(model):
    def without(layer):
        x_proj = layer.x_proj.copy()
        x_proj[: CONFIG.time_step_rank] = 0
        return replace(layer, x_proj=x_proj)

    layers = tuple(without(layer) for layer in model.params.layers)
    deaf = MambaForCausalLM(CONFIG, params=replace(model.params, layers=layers))
    close(changed(model, FreezeDelta()), deaf(IDS).logits)


# --- the state -----------------------------------------------------------------------------------


def test_cutting_every_path_is_a_state_that_forgets_all(model):
    cuts = [CutPath(source, layers=[0, 2]) for source in range(11)]
    layers = list(model.params.layers)
    for i in (0, 2):
        layers[i] = replace(layers[i], A_log=np.full_like(layers[i].A_log, 79.0))
    forgetful = MambaForCausalLM(CONFIG, params=replace(model.params, layers=tuple(layers)))
    close(changed(model, *cuts), forgetful(IDS).logits)


@given(configs, seeds, st.data())
def test_a_cut_takes_away_alpha_times_x(config, seed, data):
    """The last block's: nothing after it mixes tokens, so that each is a plain difference."""
    model, ids = make_model(config, seed), np.random.default_rng(seed).integers(2, size=(1, 9))
    last = config.num_hidden_layers - 1
    source, target = data.draw(st.integers(0, 7)), data.draw(st.integers(1, 8))
    channel = data.draw(st.integers(0, config.intermediate_size - 1))
    from mamba_np import analysis

    trace = model.trace(
        ids[0], layers=[last], channels=[channel], capture=("delta", "B", "C", "x", "z", "residual")
    )
    alpha = analysis.hidden_attention(trace, last, channel)
    lost = alpha[target, source] * trace.x[0, source, 0] if target > source else 0.0
    z = trace.z[0, target, 0]
    residual = trace.residual[0, target] - model.params.layers[last].out_proj[:, channel] * (
        lost * z / (1 + np.exp(-z))
    )
    final = reference.rms_norm(residual[None, None], model.params.norm_f, config.layer_norm_epsilon)
    expected = reference.head(final, model.lm_head)[0, 0]
    cut = CutPath(source, target, layers=[last], channels=[channel])
    found = changed(model, cut, ids=ids)
    close(found[0, target], expected)
    others = np.arange(9) != target
    assert np.array_equal(found[0, others], model(ids).logits[0, others])


def test_a_state_that_is_set_to_nothing_is_a_cache_that_was_emptied(model):
    first = model(IDS[:, :4])
    for states in first.cache_params.ssm_states:
        states[...] = 0
    rest = model(IDS[:, 4:], cache_params=first.cache_params).logits
    found = changed(model, SetState(0, at=4))
    close(found[:, 4:], rest)
    close(found[:, :4], first.logits)


def test_a_swapped_state_is_another_text_that_was_read_before(model):
    other = np.random.default_rng(1).integers(17, size=(1, 6))
    cache = model(other).cache_params
    kept = cache.copy()
    found = changed(model, SetState(cache, at=4), ids=IDS[:1])
    close(found[:, 4:], model(IDS[:1, 4:], cache_params=kept.copy()).logits)
    assert np.array_equal(cache.ssm_states[1], kept.ssm_states[1])
    only_h = changed(model, SetState(cache, at=4, window=False), ids=IDS[:1])
    assert not np.allclose(only_h[:, 4], found[:, 4])


def test_an_array_takes_the_place_of_some_channels_of_a_state(model):
    first = model(IDS[:, :4])
    value = np.random.default_rng(2).normal(size=(18, 3))
    first.cache_params.ssm_states[1][:, [0, 7]] = value[[0, 7]]
    rest = model(IDS[:, 4:], cache_params=first.cache_params).logits
    found = changed(model, SetState(value, at=4, layers=[1], channels=[0, 7]))
    close(found[:, 4:], rest)


# --- ablation ------------------------------------------------------------------------------------


def test_a_layer_that_is_ablated_is_a_layer_less(model):
    layers = (model.params.layers[0], model.params.layers[2])
    config = MambaConfig(**SIZES | {"num_hidden_layers": 2})
    short = MambaForCausalLM(config, params=replace(model.params, layers=layers))
    close(changed(model, Ablate(layers=1)), short(IDS).logits)


def test_channels_that_are_ablated_have_no_column_in_out_proj(model):
    def without(layer):
        out_proj = layer.out_proj.copy()
        out_proj[:, [3, 17]] = 0
        return replace(layer, out_proj=out_proj)

    layers = tuple(without(layer) for layer in model.params.layers)
    expected = MambaForCausalLM(CONFIG, params=replace(model.params, layers=layers))(IDS).logits
    close(changed(model, Ablate(channels=[3, -1])), expected)


def test_tokens_before_an_ablated_one_see_nothing_of_it(model):
    found, whole = changed(model, Ablate(tokens=6)), model(IDS).logits
    assert np.array_equal(found[:, :6], whole[:, :6])
    assert (np.abs(found[:, 6:] - whole[:, 6:]).max(axis=(0, 2)) > 1e-6).all()


# --- in pieces -----------------------------------------------------------------------------------

SEVERAL = (
    ScaleDelta(1.7, tokens=slice(2, 8), layers=[0]), CutPath(3), SetState(0, at=6, layers=[1]),
    Ablate(channels=[4]),
)  # fmt: skip


@given(st.sets(st.integers(1, 10)))
def test_pieces_give_what_one_pass_gives(cuts):
    model, ends = make_model(CONFIG), [0, *sorted(cuts), 11]
    with model.intervene(*SEVERAL):
        whole, cache, parts = model(IDS).logits, None, []
        for start, stop in itertools.pairwise(ends):
            out = model(IDS[:, start:stop], cache_params=cache)
            cache = out.cache_params
            parts.append(out.logits)
        close(np.concatenate(parts, axis=1), whole)
        close(model(IDS).logits, whole)  # positions begin anew with a new text


def test_chunks_give_what_one_pass_gives(model, monkeypatch):
    whole = changed(model, *SEVERAL)
    monkeypatch.setattr(reference, "CHUNK", 3)
    close(changed(model, *SEVERAL), whole)


def test_generation_goes_on_with_the_changes(model):
    with model.intervene(*SEVERAL):
        ids = model.generate(IDS[:1], max_new_tokens=5, eos_token_id=None)
        scores = model(ids).logits
    assert np.array_equal(scores[0, 10:-1].argmax(axis=-1), ids[0, 11:])


def test_hidden_states_are_those_of_the_changed_model(model):
    with model.intervene(Ablate(layers=1)):
        states = model(IDS, output_hidden_states=True).hidden_states
    assert len(states) == 4
    assert np.array_equal(states[0], states[1])


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("delta", "^intervene: expected changes such as"),
        (ScaleDelta(-1), "^factor: expected"),
        (ScaleDelta(float("nan")), "^factor: expected"),
        (ClampDelta(2, 1), "^low: expected 0 <= low <= high"),
        (CutPath(-1), "^source: expected"),
        (SetState(0, at=-1), "^at: expected"),
        (Ablate(layers=[3]), "^layers: expected"),
        (Ablate(channels=[18]), "^channels: expected"),
        (Ablate(channels="all"), "^channels: expected a list of indices"),
    ],
)
def test_bad_changes_are_named(model, change, text):
    with pytest.raises(InputError, match=text), model.intervene(change):
        pass


@pytest.mark.parametrize("value", ["x", np.ones(3), [[1.0]]])
def test_bad_frozen_values_are_named(model, value):
    with pytest.raises(InputError, match=r"^value: expected a number, or 18 of them"):
        changed(model, FreezeDelta(value))


def test_frozen_values_of_each_channel(model):
    values = np.linspace(0.1, 0.5, 2)
    both = changed(model, FreezeDelta(values, channels=[3, 8]))
    one_by_one = FreezeDelta(0.1, channels=3), FreezeDelta(0.5, channels=8)
    close(both, changed(model, *one_by_one))


@pytest.mark.parametrize("tokens", ["all", 1.5, [[1]]])
def test_bad_tokens_are_named(model, tokens):
    with pytest.raises(InputError, match=r"^tokens: expected a list of positions"):
        changed(model, Ablate(tokens=tokens))


@pytest.mark.parametrize("state", ["x", np.zeros((2, 2)), None])
def test_bad_states_are_named(model, state):
    with pytest.raises(InputError, match=r"^state: expected"):
        changed(model, SetState(state, at=1))


def test_caches_of_other_sizes_are_refused(model):
    other = make_model(MambaConfig(**SIZES | {"state_size": 4}))(IDS).cache_params
    with pytest.raises(InputError, match=r"^state: expected a cache of"):
        changed(model, SetState(other, at=1))


def test_padding_traces_and_nesting_are_refused(model):
    mask = np.ones_like(IDS)
    mask[0, :3] = 0
    with model.intervene(ScaleDelta(2)):
        with pytest.raises(InputError, match=r"^attention_mask: expected texts of one length"):
            model(IDS, mask)
        with pytest.raises(InputError, match=r"^trace: expected no intervention"):
            model.trace(IDS[0])
        with (
            pytest.raises(InputError, match=r"^intervene: expected all changes"),
            model.intervene(),
        ):
            pass


def test_int8_weights_are_refused():
    config = MambaConfig(vocab_size=17, hidden_size=16, num_hidden_layers=1)
    model = MambaForCausalLM(config, dtype="int8")
    with pytest.raises(InputError, match="intervene"), model.intervene(ScaleDelta(2)):
        pass
