"""Traces of one reading: every quantity against float64 loops, and that looking changes nothing."""

import gc
import sys
import time
import tracemalloc

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_laws import bytes_of, make_model, situations
from tolerances import assert_close_to_scale, tolerance

import mamba_np
from mamba_np import LoraConfig, MambaConfig, MambaForCausalLM, Trace, get_peft_model
from mamba_np import equations as eq
from mamba_np.errors import CacheError, InputError
from mamba_np.kernels import cpu, observing
from mamba_np.params import convert
from mamba_np.trace import QUANTITIES, reading
from mamba_np.trace.request import SPELT, Request

EVERYTHING = tuple(QUANTITIES)
ENGINES = [("cpu", "float32"), ("numpy", "float32"), ("numpy", "float64")]
ODD = {"vocab_size": 23, "hidden_size": 12, "intermediate_size": 37, "state_size": 5,
       "time_step_rank": 3, "num_hidden_layers": 3, "use_bias": True}  # fmt: skip


def odd_model(engine="cpu", dtype="float32", seed=0, **options):
    model = make_model(MambaConfig(**ODD | options), seed, dtype)
    made = MambaForCausalLM(model.config, params=model.params, backend=engine)
    assert made.backend == engine
    return made


def some_ids(length, seed=0):
    return np.random.default_rng(seed).integers(ODD["vocab_size"], size=length)


@pytest.fixture
def chunks_of_eight(monkeypatch):
    """Let the engines take eight tokens at a time: many borders in a short text."""
    monkeypatch.setattr(cpu, "CHUNK", 8)
    monkeypatch.setattr(reading, "CHUNK", 8)
    monkeypatch.setattr(mamba_np.reference, "CHUNK", 8)


@pytest.fixture
def three_threads():
    yield from _threads(3)


@pytest.fixture
def one_thread():
    """So that memory is measured without what threads keep for later."""
    yield from _threads(1)


def _threads(count):
    before = mamba_np.get_num_threads()
    mamba_np.set_num_threads(count)
    yield
    mamba_np.set_num_threads(before)


def oracle(model, ids):
    """Return every quantity of one text, in float64, from the loops of ``naive``."""
    tensors = {name: a.astype(np.float64) for name, a in model.state_dict().items()}
    c, found = model.config, {name: [] for name in EVERYTHING}
    x = tensors["backbone.embeddings.weight"][ids]
    for layer in naive.layers_of(tensors):
        u = np.array([naive.rms_norm(v, layer["norm.weight"], c.layer_norm_epsilon) for v in x])
        xz = naive.linear(u, layer["in_proj.weight"], layer.get("in_proj.bias"))
        E = xz.shape[1] // 2
        weight = layer["conv1d.weight"].reshape(E, -1)
        inner, _ = naive.causal_conv(xz[:, :E], weight, layer.get("conv1d.bias"))
        inner, z = naive.each(naive.ACTIVATIONS[c.hidden_act], inner), xz[:, E:]
        delta, B, C = naive.select(
            inner, layer["x_proj.weight"], layer["dt_proj.weight"], layer["dt_proj.bias"]
        )
        h, states, y = np.zeros((E, c.state_size)), [], []
        for t in range(len(ids)):
            A_bar, B_bar = naive.discretise(
                c.discretisation, delta[t, :, None], -np.exp(layer["A_log"]), np.stack([B[t]] * E)
            )
            h = A_bar * h + B_bar * inner[t, :, None]
            states.append(h)
            y.append((h * C[t]).sum(axis=1))
        gated = (np.array(y) + layer["D"] * inner) * naive.each(naive.silu, z)
        x = x + naive.linear(gated, layer["out_proj.weight"], layer.get("out_proj.bias"))
        values = {"delta": delta, "B": B, "C": C, "x": inner, "z": z, "y": y, "h": states}
        values |= {"residual": x, "residual_norm": np.sqrt((x * x).sum(axis=1))}
        values |= {"delta_mean": delta.mean(axis=1)}
        values |= {"delta_geometric_mean": np.exp(np.log(delta).mean(axis=1))}
        for name, array in values.items():
            found[name].append(array)
    final = np.array(
        [naive.rms_norm(v, tensors["backbone.norm_f.weight"], c.layer_norm_epsilon) for v in x]
    )
    head = tensors.get("lm_head.weight", tensors["backbone.embeddings.weight"])
    found["logits"] = naive.linear(final, head)
    return {name: np.array(values) for name, values in found.items()}


def assert_agrees(trace, expected, model):
    for name in trace.captured:
        found = getattr(trace, name)
        assert found.dtype == model.compute_dtype
        rtol = tolerance("law", model.compute_dtype)
        for i, (a, b) in enumerate(zip(found, expected[name], strict=True)):
            assert_close_to_scale(a, b, rtol, f"{name}[{i}]")


def assert_same(a, b):
    """Two traces hold the same bits."""
    assert a.captured == b.captured
    for name, array in a.arrays().items():
        np.testing.assert_array_equal(array, b.arrays()[name], err_msg=name)


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("engine", "dtype"), ENGINES)
@pytest.mark.parametrize("length", [1, 2, 30])
@pytest.mark.usefixtures("chunks_of_eight", "three_threads")
def test_every_quantity_is_that_of_the_oracle(engine, dtype, length):
    model, ids = odd_model(engine, dtype), some_ids(length)
    trace = model.trace(ids, capture=EVERYTHING)
    assert trace.captured == EVERYTHING
    assert_agrees(trace, oracle(model, ids), model)
    A = [-np.exp(layer.A_log.astype(np.float64)) for layer in model.params.layers]
    assert_close_to_scale(trace.A, A, tolerance("step", dtype), "A")
    np.testing.assert_array_equal(trace.D, [layer.D for layer in model.params.layers])


@pytest.mark.parametrize(
    "options",
    [
        {"discretisation": "zoh"}, {"discretisation": "bilinear", "use_associative_scan": False},
        {"hidden_act": "relu"}, {"use_bias": False, "use_conv_bias": False}, {"conv_kernel": 1},
    ],
)  # fmt: skip
def test_other_kinds_of_models(options):
    engine = "cpu" if set(options) <= {"use_bias", "use_conv_bias", "conv_kernel"} else "numpy"
    model, ids = odd_model(engine, **options), some_ids(11)
    trace = model.trace(ids, capture=EVERYTHING)
    assert_agrees(trace, oracle(model, ids), model)
    assert trace.discretisation == model.config.discretisation


@pytest.mark.parametrize("engine", ["cpu", "numpy"])
def test_long_texts_agree_with_the_numpy_engine_in_float64(engine):
    ids = some_ids(1200)
    model = odd_model(engine)
    judge = MambaForCausalLM(model.config, params=convert(model.params, "float64"))
    found, expected = (
        m.trace(ids, capture=("delta", "x", "y", "h", "logits"), every=100) for m in (model, judge)
    )
    assert_agrees(found, expected.arrays(), model)


@pytest.mark.parametrize("engine", ["cpu", "numpy"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_stored_weights_of_few_bits(engine, dtype):
    config, ids = MambaConfig(**ODD), some_ids(20)
    model = MambaForCausalLM(config, rng=0, dtype=dtype, backend=engine)
    wide = model.params.layers[1].in_proj.astype(np.float32)
    trace = model.trace(ids, capture=EVERYTHING)
    np.testing.assert_array_equal(trace.logits, model(ids[None]).logits[0])
    other = MambaForCausalLM(config, rng=0, dtype=dtype, backend="numpy")
    assert_agrees(trace, other.trace(ids, capture=EVERYTHING).arrays(), model)
    # z from the weights themselves: 16 bits are not lost twice
    layer = model.params.layers[1]
    normed = mamba_np.reference.rms_norm(trace.residual[0], layer.norm, 1e-5)
    z = normed @ wide[37:].T + layer.in_proj_bias[37:]
    assert_close_to_scale(trace.z[1], z, tolerance("law", "float32"), "z")


def test_parameters_that_were_changed_count():
    model, ids = odd_model().make_writeable(), some_ids(9)
    before = model.trace(ids)
    model.params.layers[1].dt_bias[:] += 3
    model.params.layers[1].A_log[:] += 0.5
    after = model.trace(ids, capture=EVERYTHING)
    np.testing.assert_array_equal(after.delta[0], before.delta[0])
    assert (after.delta[1] > before.delta[1] * 2).all()
    assert_agrees(after, oracle(model, ids), model)


def test_an_adapted_model():
    model, ids = odd_model(), some_ids(9)
    targets = ["x_proj", "in_proj"]
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    adapted = get_peft_model(model, config, rng=0)
    trace = adapted.trace(ids, capture=("delta", "logits"))
    np.testing.assert_array_equal(trace.logits, adapted(ids[None]).logits[0])
    assert not np.allclose(trace.delta, model.trace(ids).delta)


def test_an_adapted_model_has_the_tokenizer_of_its_base(model, tokenizer):
    adapted = get_peft_model(model, LoraConfig(r=1, target_modules=["x_proj"]), rng=0)
    assert "".join(adapted.trace("a king").labels) == "a·king"
    assert adapted.trace([5], tokenizer=tokenizer).labels == model.trace([5]).labels

    class Shouting:
        def convert_ids_to_tokens(self, ids):
            return ["A" for _ in ids]

        def stream_decoder(self):
            return None

    assert adapted.trace([5], tokenizer=Shouting()).labels == ("A",)


# --- looking changes nothing ----------------------------------------------------------------------


@given(situations(max_rows=1), st.data())
def test_logits_and_states_are_those_of_a_call(situation, data):
    model, ids = situation
    capture = data.draw(st.sets(st.sampled_from(EVERYTHING), min_size=1)) | {"logits"}
    layers = data.draw(st.sets(st.integers(0, model.config.num_hidden_layers - 1), min_size=1))
    cut = data.draw(st.integers(0, ids.shape[1] - 1))
    looked, plain = model.new_cache(), model.new_cache()
    for piece in (ids[:, :cut], ids[:, cut:]):
        if piece.size:
            trace = model.trace(piece, sorted(layers), capture=list(capture), cache_params=looked)
            output = model(piece, cache_params=plain)
            assert set(trace.captured) == capture
            np.testing.assert_array_equal(trace.logits, output.logits[0])
    assert bytes_of(looked) == bytes_of(plain)
    assert looked.fingerprint == plain.fingerprint


@pytest.mark.parametrize("engine", ["cpu", "numpy"])
@pytest.mark.parametrize("length", [1, 511, 512, 513, 1100])
@pytest.mark.parametrize("capture", [EVERYTHING, ("logits",), ("delta", "logits")])
def test_logits_of_texts_of_several_chunks(engine, length, capture):
    model, ids = odd_model(engine), some_ids(length)
    trace = model.trace(ids, capture=capture, every=7)
    np.testing.assert_array_equal(trace.logits, model(ids[None]).logits[0])


@pytest.mark.parametrize("engine", ["cpu", "numpy"])
def test_pieces_without_logits_give_what_one_run_gives(engine, monkeypatch):
    monkeypatch.setattr("mamba_np.model.PIECE", 512)
    model, ids = odd_model(engine), some_ids(1700)
    names = ("delta", "h", "residual", "delta_mean")
    cache, plain = model.new_cache(), model.new_cache()
    pieces = model.trace(ids, capture=names, every=50, cache_params=cache)
    model(ids[None], cache_params=plain)
    assert bytes_of(cache) == bytes_of(plain)
    whole = model.trace(ids, capture=(*names, "logits"), every=50)
    np.testing.assert_array_equal(whole.logits, model(ids[None]).logits[0])
    for name in names:
        np.testing.assert_array_equal(getattr(pieces, name), getattr(whole, name))


def test_a_last_piece_that_is_longer_than_the_others(monkeypatch):
    model, ids = odd_model(), some_ids(3 * 16 + 17)
    whole = model.trace(ids, capture=("y", "h", "delta"))
    monkeypatch.setattr("mamba_np.model.PIECE", 16)
    pieces = model.trace(ids, capture=("y", "h", "delta"))
    for name in whole.captured:
        found, expected = getattr(pieces, name), getattr(whole, name)
        assert_close_to_scale(found, expected, tolerance("law", "float32"), name)


@pytest.mark.usefixtures("chunks_of_eight", "three_threads")
def test_no_rank_scans_before_the_others_have_looked(monkeypatch):
    model, ids = odd_model(), some_ids(16)
    expected = model.trace(ids, capture=["x", "z"])
    look = observing.Observer.mixing

    def late(self, member, *arguments):
        time.sleep(0.02 * member.rank)
        look(self, member, *arguments)

    monkeypatch.setattr(observing.Observer, "mixing", late)
    assert_same(model.trace(ids, capture=["x", "z"]), expected)


def test_residuals_are_the_hidden_states_of_a_call():
    model, ids = odd_model(), some_ids(40)
    trace = model.trace(ids, capture=("residual", "residual_norm"))
    hidden = model(ids[None], output_hidden_states=True).hidden_states
    np.testing.assert_array_equal(trace.residual, np.concatenate(hidden[:-1]))
    expected = np.sqrt(np.square(trace.residual, dtype=np.float64).sum(axis=-1))
    assert_close_to_scale(trace.residual_norm, expected, tolerance("step", "float32"))


def test_the_bundled_model(model, tokenizer):
    trace = model.trace("Once upon a time", capture=("logits", "delta"))
    np.testing.assert_array_equal(trace.logits, model(trace.ids[None]).logits[0])
    assert trace.tokens == tuple(tokenizer.tokenize("Once upon a time"))
    assert "".join(trace.labels) == "Once·upon·a·time"
    assert trace.model == model.fingerprint


# --- identities -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("engine", "dtype"), ENGINES)
@pytest.mark.usefixtures("chunks_of_eight")
def test_a_trace_holds_together(engine, dtype):
    model, ids = odd_model(engine, dtype), some_ids(21)
    t = model.trace(ids, capture=EVERYTHING)
    rtol = tolerance("law", dtype)
    y = (t.h * t.C[:, :, None]).sum(axis=-1)
    assert_close_to_scale(t.y, y, rtol, "y = C h")
    A_bar, B_bar = eq.discretise(t.delta[..., None], t.A[:, None], t.B[:, :, None])
    h = A_bar[:, 1:] * t.h[:, :-1] + (B_bar * t.x[..., None])[:, 1:]
    assert_close_to_scale(t.h[:, 1:], h, rtol, "h = A_bar h + B_bar x")
    for i, layer in enumerate(model.params.layers):
        mixed = t.x[i] @ layer.x_proj.T
        raw = mixed[:, :3] @ layer.dt_proj.T + layer.dt_bias
        assert_close_to_scale(t.delta[i], eq.softplus(raw), rtol, "delta")
        if i > 0:
            gated = eq.output(t.y[i], t.x[i], t.D[i], t.z[i])
            out = gated @ layer.out_proj.T + layer.out_proj_bias
            assert_close_to_scale(t.residual[i] - t.residual[i - 1], out, rtol, "out")


@pytest.mark.parametrize(("engine", "dtype"), ENGINES)
@pytest.mark.parametrize("every", [1, 3, 8, 20, 64])
@pytest.mark.usefixtures("chunks_of_eight", "three_threads")
def test_states_are_those_of_the_cache(engine, dtype, every):
    model, ids = odd_model(engine, dtype), some_ids(20)
    cache = model.new_cache()
    trace = model.trace(ids, capture=["h"], every=every, cache_params=cache)
    assert trace.h.shape == (3, 20 // every, 37, 5)
    assert trace.h_positions.tolist() == list(range(every - 1, 20, every))
    for place, position in enumerate(trace.h_positions):
        then = model(ids[None, : position + 1]).cache_params.ssm_states
        expected = np.concatenate(then)
        assert_close_to_scale(trace.h[:, place], expected, tolerance("law", dtype))
    if 20 % every == 0:  # the last one, which the same run has left: the same bits
        np.testing.assert_array_equal(trace.h[:, -1], np.concatenate(cache.ssm_states))


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["cpu", "numpy"])
@pytest.mark.parametrize("length", [1, 30])
@pytest.mark.parametrize("channels", [[3], [36, 0, 17], range(20), slice(5, None, 2), -1, None])
@pytest.mark.parametrize("layers", [[2, 0], None, [-2]])
@pytest.mark.usefixtures("chunks_of_eight", "three_threads")
def test_parts_are_parts_of_the_whole(engine, length, channels, layers):
    model, ids = odd_model(engine), some_ids(length)
    whole = model.trace(ids, capture=EVERYTHING)
    part = model.trace(ids, layers, channels, EVERYTHING)
    rows = np.arange(3)[slice(None) if layers is None else layers]
    columns = np.atleast_1d(np.arange(37)[slice(None) if channels is None else channels])
    np.testing.assert_array_equal(part.layers, rows)
    np.testing.assert_array_equal(part.channels, columns)
    by_channel = {"delta": 2, "x": 2, "z": 2, "y": 2, "h": 2, "A": 1, "D": 1}
    for name, array in part.arrays().items():
        expected = whole.arrays()[name]
        expected = expected if name == "logits" else expected[rows]
        if name in by_channel:
            expected = np.take(expected, columns, axis=by_channel[name])
        if name.startswith("delta_"):
            delta = np.take(whole.delta[rows], columns, axis=2).astype(np.float64)
            log = name == "delta_geometric_mean"
            expected = np.exp(np.log(delta).mean(-1)) if log else delta.mean(-1)
            assert_close_to_scale(array, expected, tolerance("step", "float32"), name)
        else:
            np.testing.assert_array_equal(array, expected, err_msg=name)


@pytest.mark.parametrize("engine", ["cpu", "numpy"])
@pytest.mark.parametrize("name", EVERYTHING)
def test_one_quantity_alone_is_what_it_is_among_all(engine, name):
    model, ids = odd_model(engine), some_ids(13)
    alone = model.trace(ids, capture=[name], every=2)
    whole = model.trace(ids, capture=EVERYTHING, every=2)
    assert alone.captured == (name,)
    constants = {"A", "D"} if name in ("delta", "x", "z", "y", "h") else set()
    assert set(alone.arrays()) == {name} | constants
    np.testing.assert_array_equal(getattr(alone, name), getattr(whole, name))


def test_ids_and_texts_are_taken_in_several_forms(model, tokenizer):
    text = "Once upon a time"
    ids = tokenizer(text)["input_ids"]
    traces = [model.trace(given) for given in (text, ids, [ids], np.array(ids))]
    for trace in traces:
        assert_same(trace, traces[0])
        assert (trace.tokens, trace.labels) == (traces[0].tokens, traces[0].labels)


def test_looking_things_up():
    trace = odd_model().trace(some_ids(6), [2, 0], [5, 1], ("delta", "h"), every=2)
    assert (trace.row(0), trace.column(5), len(trace)) == (1, 0, 6)
    assert trace.need("delta") is trace.delta
    assert trace.need("A").shape == (2, 2, 5)
    assert trace.nbytes == 6 * 8 + 4 * 2 * (6 * 2 + 3 * 2 * 5 + 2 * 5 + 2)
    assert repr(trace) == f"Trace(6 tokens, 2 layers, 2 channels, delta, h, {trace.nbytes} bytes)"
    for wrong, call in {
        r"trace: expected one that holds 'y', found delta, h; trace with capture=\('y', ...\)": (
            lambda: trace.need("y")
        ),
        "layer: expected one of .2, 0., found 1": lambda: trace.row(1),
        "channel: expected one of .5, 1., found 2": lambda: trace.column(2),
        "layer: expected an integer": lambda: trace.row("1"),
        "trace: expected one that holds 'banana', found delta, h$": lambda: trace.need("banana"),
    }.items():
        with pytest.raises(InputError, match=wrong):
            call()
    with pytest.raises(AttributeError):
        trace.delta = None
    with pytest.raises(ValueError, match="read-only"):
        trace.delta[0] = 0
    other = odd_model().trace(some_ids(6), capture=("B", "C"))
    with pytest.raises(InputError, match=r"'A', found B, C; trace with capture=\('delta', ...\)"):
        other.need("A")


# --- size -----------------------------------------------------------------------------------------


@given(
    length=st.integers(0, 10**7),
    capture=st.sets(st.sampled_from(EVERYTHING), min_size=1),
    every=st.integers(1, 50),
    channels=st.none() | st.integers(1, 37).map(range),
    layers=st.none() | st.integers(1, 3).map(range),
)
def test_the_estimate_is_the_size(length, capture, every, channels, layers):
    model = odd_model()
    guess = Trace.estimate(model, length, layers, channels, capture, every=every)
    short = length % 40 + 1
    trace = model.trace(some_ids(short), layers, channels, capture, every=every)
    size = Trace.estimate(model, short, layers, channels, capture, every=every)
    texts = min(short, 23) * sys.getsizeof("22") + 8 * short  # digits, in a tuple that is both
    assert size == trace.nbytes + trace.layers.nbytes + trace.channels.nbytes + texts
    assert guess >= 16 * length


def memory_of(model, ids, capture):
    """Return what memory grows by when a text is traced."""
    tracemalloc.start()
    try:
        model.trace(ids, capture=capture)  # once more: what Python keeps for later is not ours
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        trace = model.trace(ids, capture=capture)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(trace) == len(ids)
    return grown


@pytest.mark.parametrize("spelt", [True, False])
@pytest.mark.parametrize(
    ("capture", "length"), [(("delta", "B"), 2000), (("delta_mean",), 4096), (("logits",), 300)]
)
@pytest.mark.usefixtures("one_thread")
def test_the_estimate_is_what_memory_grows_by(capture, length, spelt, model, rng):
    model = model if spelt else MambaForCausalLM(model.config, params=model.params)
    ids = rng.permutation(4096)[:length]
    guess = Trace.estimate(model, length, capture=capture)
    assert abs(memory_of(model, ids, capture) - guess) <= 0.1 * guess


def held(trace):
    """Return the bytes of what a trace holds: arrays, tuples, and each text once."""
    texts = {id(text): sys.getsizeof(text) for text in (*trace.tokens, *trace.labels)}
    places = {id(t): 8 * len(t) for t in (trace.tokens, trace.labels)}
    arrays = trace.nbytes + trace.layers.nbytes + trace.channels.nbytes
    return arrays + sum(places.values()) + sum(texts.values())


@pytest.mark.parametrize("spelt", [True, False])
@pytest.mark.parametrize("length", [64, 512, 4096])
def test_the_estimate_counts_the_texts_of_tokens_that_differ(length, spelt, model, rng):
    model = model if spelt else MambaForCausalLM(model.config, params=model.params)
    trace = model.trace(rng.permutation(4096)[:length], capture=("delta_mean",))
    guess = Trace.estimate(model, length, capture=("delta_mean",))
    assert abs(held(trace) - guess) <= 0.1 * guess


@pytest.mark.parametrize("spelt", [True, False])
@pytest.mark.parametrize("length", [3000, 6000])
def test_the_estimate_counts_a_token_that_comes_again_as_another_one(length, spelt, model):
    model = model if spelt else MambaForCausalLM(model.config, params=model.params)
    trace = model.trace(some_ids(length), capture=("delta_mean",))
    text = SPELT if spelt else sys.getsizeof("4095")
    too_many = text * (min(length, 4096) - ODD["vocab_size"])  # a vocabulary has no more
    guess = Trace.estimate(model, length, capture=("delta_mean",))
    assert abs(held(trace) - (guess - too_many)) <= 0.02 * guess


def test_the_estimate_and_the_limit_ask_the_tokenizer_given(model, tokenizer):
    plain = MambaForCausalLM(model.config, params=model.params)
    digits, spelt = (Trace.estimate(plain, 100, tokenizer=t) for t in (None, tokenizer))
    assert spelt - digits == 100 * (8 + SPELT - sys.getsizeof("4095"))
    assert spelt == Trace.estimate(model, 100)
    assert len(plain.trace(range(100), tokenizer=tokenizer, limit=spelt)) == 100
    with pytest.raises(InputError, match=f"or allow it with limit={spelt}"):
        plain.trace(range(100), tokenizer=tokenizer, limit=spelt - 1)


def test_means_of_a_long_text_need_little_memory():
    model, length = odd_model(), 100_000
    model.trace(some_ids(5000), capture=("delta_mean",))
    tracemalloc.start()
    try:
        trace = model.trace(some_ids(length), capture=("delta_mean", "delta_geometric_mean"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert trace.delta_mean.shape == (3, length)
    whole = Trace.estimate(model, length, capture=("delta",))
    kept = Trace.estimate(model, length, capture=trace.captured)
    assert peak < 2 * kept + 5 * 2**20 < whole / 2
    short = model.trace(trace.ids[:700], capture=("delta",)).delta.mean(axis=-1)
    assert_close_to_scale(trace.delta_mean[:, :700], short, tolerance("law", "float32"))


def test_a_trace_above_the_limit_is_refused_before_it_begins():
    model, ids = odd_model(), some_ids(1000)
    size = Trace.estimate(model, 1000, capture=("delta", "h"), every=2)
    cache = model.new_cache()
    options = {"capture": ("delta", "h"), "every": 2, "cache_params": cache}
    with pytest.raises(InputError) as error:
        model.trace(ids, limit=size - 1, **options)
    text = str(error.value)
    for part in (
        "limit: expected a trace of at most", "MiB, found", "for 1000 tokens", "of which h takes",
        "leave 'h' out of capture", "choose some layers", "choose some channels", "larger every=",
        f"limit={size}",
    ):  # fmt: skip
        assert part in text
    assert not any(state.any() for state in cache.ssm_states)
    assert len(model.trace(ids, limit=size, **options)) == 1000
    with pytest.raises(InputError, match="'delta_mean' instead"):
        model.trace(ids, limit=1000)
    with pytest.raises(
        InputError, match=r"of which logits takes .*: leave 'logits' out of capture,"
    ):
        model.trace(ids, capture=("logits",), limit=1000)


def test_the_limit_is_a_gibibyte_unless_it_is_raised():
    config = MambaConfig(hidden_size=768, num_hidden_layers=24, vocab_size=8)

    class Shape:  # of mamba-130m, without its weights
        compute_dtype = np.dtype(np.float32)
        _loaded = None

    Shape.config = config
    request = Request.of(Shape, capture=("delta",))
    request.check_size(7000)
    with pytest.raises(InputError, match=r"at most 1,024.0 MiB, found 1,\d\d\d.\d MiB"):
        request.check_size(8000)
    assert Trace.estimate(Shape, 512, capture=("delta",)) // 2**20 == 74  # A and D among them


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_or_ids": [[1, 2], [3, 4]]}, "input_ids: expected one text, found a batch of 2"),
        ({"text_or_ids": []}, "input_ids: expected"),
        ({"text_or_ids": [1, 99]}, "input_ids: expected ids from 0 to 22, found 99"),
        ({"text_or_ids": [1.5]}, "input_ids: expected integers"),
        ({"text_or_ids": "text"}, "expected ids, or a tokenizer for the text, found neither"),
        ({"layers": [3]}, "layers: expected an integer from -3 to 2, found 3"),
        ({"layers": []}, "layers: expected some indices"),
        ({"layers": [0, -3]}, "layers: expected some indices, each once"),
        ({"layers": "0"}, "layers: expected a list of indices, found '0'"),
        ({"channels": [0.5]}, "channels: expected an integer"),
        ({"channels": 37}, "channels: expected an integer from -37 to 36"),
        ({"channels": np.zeros((1, 1), int)}, "channels: expected a list of indices"),
        ({"capture": ()}, "capture: expected a list with some of delta, B"),
        ({"capture": "delta"}, "capture: expected a list"),
        ({"capture": ("delta", "A")}, "capture: expected .*, found 'A'"),
        ({"every": 0}, "every: expected an integer"),
        ({"limit": -1}, "limit: expected an integer"),
        ({"limit": 1.0}, "limit: expected an integer"),
    ],
)
def test_what_cannot_be_traced_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        odd_model().trace(**{"text_or_ids": [1, 2]} | options)


def test_the_cache_of_another_model_is_refused():
    model, other = odd_model(), odd_model(seed=1)
    cache = other(some_ids(3)[None]).cache_params
    with pytest.raises(CacheError, match="another one"):
        model.trace([1, 2], cache_params=cache)
    with pytest.raises(InputError, match="length: expected an integer"):
        Trace.estimate(model, -1)
