"""A whole model on the GPU's engine, its compiled kernels executed by the emulator.

Trained checkpoints against float64 references, and the laws: any split, padding, batch, storage.
"""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import naive
import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'mamba-np[cuda]'")

from conftest import FIXTURES, MODELS
from emulated import Counting, EmulatedDevice
from test_fixtures import expected_array, results_of, unmasked
from test_head import twin
from test_laws import make_model, oracle
from tolerances import assert_close_to_scale, tolerance

from mamba_np import MambaBlock, MambaConfig, MambaForCausalLM, MambaMixer, MambaModel, backend
from mamba_np.cuda import driver, engine, scan
from mamba_np.errors import BackendError, NonFiniteError
from mamba_np.int8 import quantised
from mamba_np.params import convert, map_arrays
from mamba_np.sampling import row_generators

SMALL = MambaConfig(
    vocab_size=37, hidden_size=20, intermediate_size=36, state_size=5, num_hidden_layers=2,
    conv_kernel=3, time_step_max=0.7, use_bias=True,
)  # fmt: skip
IDS = np.random.default_rng(5).integers(37, size=(2, 9))


@cache
def device(real):
    """Return the one device of all tests, whose compiled kernels are kept between them."""
    return Counting(driver.gpu()) if real else EmulatedDevice()


@pytest.fixture
def gpu(monkeypatch, request):
    found = device(request.config.getoption("--gpu"))
    monkeypatch.setattr(engine, "device", lambda: found)
    monkeypatch.setattr(found, "launches", {})
    return found


def small_models(dtype="float32", config=SMALL):
    """Return a model on the GPU, and the same numbers in float64."""
    params = convert(make_model(config).params, "float32")
    stored = quantised(params) if dtype == "int8" else convert(params, dtype)
    on_gpu = MambaForCausalLM(config, params=stored, backend="cuda")
    wide = map_arrays(lambda _, a: a.astype(np.float64), stored)
    if dtype == "int8":
        widened = {n: np.asarray(a.astype(np.float64)) for n, a in on_gpu.state_dict().items()}
        return on_gpu, lambda *a, **o: naive.forward(widened, config.to_dict(), *a, **o)
    exact = MambaForCausalLM(config, params=wide)
    return on_gpu, lambda *a, **o: oracle(exact, *a, **o)


def close(found, expected, dtype="float32", name=""):
    assert np.asarray(found).dtype == np.float32
    assert_close_to_scale(found, expected, tolerance("gpu model", dtype), name)


def same_states(cache, expected, dtype="float32"):
    for kind in ("conv_states", "ssm_states"):
        pairs = zip(getattr(cache, kind), getattr(expected, kind), strict=True)
        for i, (found, wanted) in enumerate(pairs):
            close(found, wanted, dtype, f"{kind} {i}")


# --- trained checkpoints --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_array_of_a_trained_checkpoint(gpu, name):
    folder = FIXTURES / "models" / name
    model = MambaForCausalLM.from_pretrained(folder, dtype="float32", backend="cuda")
    assert model.backend == "cuda"
    found = results_of(model, name, "float32")
    assert len(found) > 30
    for key, array in found.items():
        pair = unmasked(name, key, np.asarray(array), expected_array(name, key))
        assert_close_to_scale(*pair, tolerance("gpu model", "float32"), key)
    assert gpu.launches


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_prompts_and_tokens_of_each_storage(gpu, dtype):
    model, exact = small_models(dtype)
    out, expected = model(IDS[:1]), exact(IDS[:1])
    close(out.logits, expected.logits, dtype)
    same_states(out.cache_params, expected, dtype)
    cache = None
    for t in range(4):
        one = model(IDS[:1, t : t + 1], cache_params=cache)
        cache = one.cache_params
    last = exact(IDS[:1, :4])
    close(one.logits[:, 0], last.logits[:, 3], dtype if dtype == "bfloat16" else "float32")
    same_states(cache, last, "float32")  # one token is computed in float32 throughout


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_any_split_gives_what_one_pass_gives(gpu, cut):
    model, exact = small_models()
    first = model(IDS[:, :cut])
    second = model(IDS[:, cut:], cache_params=first.cache_params)
    expected = exact(IDS)
    close(np.concatenate([first.logits, second.logits], axis=1), expected.logits)
    same_states(second.cache_params, expected)


def test_chunks_are_carried_over(gpu, monkeypatch):
    monkeypatch.setattr(engine, "CHUNK", 6)
    model, exact = small_models()
    out, expected = model(IDS, output_hidden_states=True), exact(IDS)
    close(out.logits, expected.logits)
    same_states(out.cache_params, expected)
    for found, wanted in zip(out.hidden_states, expected.hidden_states, strict=True):
        close(found, wanted)


def test_masked_tokens_are_as_if_absent(gpu):
    model, exact = small_models()
    mask = np.ones_like(IDS)
    mask[0, :5], mask[1, [2, 8]] = 0, 0
    out = model(IDS, attention_mask=mask)
    for row in range(2):
        real = mask[row] == 1
        alone = exact(IDS[row : row + 1, real])
        close(out.logits[row, real], alone.logits[0])
        for i, h in enumerate(alone.ssm_states):
            close(out.cache_params.ssm_states[i][row], h[0])


@pytest.mark.parametrize(
    ("form", "processors"), [("channels", 1), ("lanes", 4), ("chunks", 400)]
)  # fmt: skip
def test_each_form_of_the_scan(gpu, monkeypatch, form, processors):
    monkeypatch.setattr(gpu, "processors", processors)
    monkeypatch.setattr(scan, "SHORTEST_CHUNK", 8)
    ids = np.random.default_rng(2).integers(37, size=(1, 70))
    assert scan.choose(1, 70, 128, processors).form == form
    model, exact = small_models()
    out, expected = model(ids), exact(ids)
    close(out.logits, expected.logits)
    same_states(out.cache_params, expected)


def test_many_states(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "processors", 1)
    model, exact = small_models(config=MambaConfig(**SMALL.to_dict() | {"state_size": 40}))
    out, expected = model(IDS), exact(IDS)
    close(out.logits, expected.logits)
    same_states(out.cache_params, expected)
    assert any(name.startswith("lane_scan") for name in gpu.launches)


def test_the_loss_and_hidden_states(gpu):
    model, exact = small_models()
    out = model(IDS, labels=IDS, output_hidden_states=True)
    expected = exact(IDS)
    loss = naive.cross_entropy(expected.logits, IDS)
    assert float(out.loss) == pytest.approx(float(loss), rel=1e-6)
    kept = model(IDS, logits_to_keep=2)
    close(kept.logits, expected.logits[:, -2:])
    headless = MambaModel(SMALL, params=model.params, backend="cuda")(IDS)
    assert isinstance(headless.last_hidden_state, np.ndarray)
    close(headless.last_hidden_state, expected.hidden_states[-1])


@pytest.mark.parametrize("cls", [MambaBlock, MambaMixer])
def test_a_layer_alone(gpu, cls, rng):
    model, _ = small_models()
    x = rng.standard_normal((2, 5, 20)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    layer = model.params.layers[1]
    ours, reference = (cls(SMALL, 1, layer, backend=name) for name in ("cuda", "numpy"))
    caches = [model.new_cache(2) for _ in range(2)]
    pair = [f(x, c, attention_mask=mask) for f, c in zip((ours, reference), caches, strict=True)]
    close(*pair)
    same_states(*caches)


# --- states that live on the device ---------------------------------------------------------------


def test_states_stay_on_the_device_until_somebody_looks(gpu, monkeypatch):
    model, _ = small_models()
    cache = model(IDS[:1]).cache_params
    there = cache.away
    model(IDS[:1, :1], cache_params=cache)
    assert cache.away is there is not None
    twin = copy.deepcopy(cache)  # brings them home
    assert cache.away is None
    assert twin.away is None
    a, b = (model(IDS[:1, 1:2], cache_params=c).logits for c in (cache, twin))
    np.testing.assert_array_equal(a, b)
    assert cache.away is not None
    kept = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(kept.ssm_states[0], cache.ssm_states[0])


def test_states_can_be_edited_and_go_on_elsewhere(gpu):
    model, _ = small_models()
    cache = model(IDS[:1]).cache_params
    cache.ssm_states[0][...] = 0
    again = cache.copy()
    on_cpu = MambaForCausalLM(SMALL, params=model.params, backend="numpy")
    a, b = (m(IDS[:1, :2], cache_params=c).logits for m, c in ((model, cache), (on_cpu, again)))
    close(a, b)


def test_a_cache_that_is_only_read_stays(gpu):
    model, _ = small_models()
    cache = model(IDS).cache_params
    before = [s.copy() for s in cache.ssm_states]
    model(IDS, cache_params=cache, use_cache=False)
    for was, now in zip(before, cache.ssm_states, strict=True):
        np.testing.assert_array_equal(was, now)
    cache.reset()
    np.testing.assert_array_equal(cache.ssm_states[0], 0)


def test_threads_share_a_model(gpu):
    model, _ = small_models()
    texts = [IDS[:1], IDS[1:]] * 2
    alone = [model.generate(t, max_new_tokens=3, do_sample=False, eos_token_id=None) for t in texts]
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(
            lambda t: model.generate(t, max_new_tokens=3, do_sample=False, eos_token_id=None), texts
        )
    np.testing.assert_array_equal(np.array(list(together)), np.array(alone))


def test_vectors_are_looked_up_and_rounded_on_the_device(gpu):
    model, _ = small_models("bfloat16")
    model(IDS)
    assert gpu.launches["embed bfloat16"] == 1
    assert gpu.launches["rms_norm bfloat16"] == 2  # what in_proj meets; the last norm is float32
    assert gpu.launches["narrow"] == 2 * 2 + 1  # x and dt of each layer, and what the head meets
    gpu.launches.clear()
    model(inputs_embeds=np.zeros((1, 2, 20), np.float32))
    assert not any(name.startswith("embed") for name in gpu.launches)


def test_changed_weights_are_sent_again(gpu):
    model, _ = small_models()
    before = model(IDS).logits
    model.params.layers[0].D[:] += 1
    exact = MambaForCausalLM(SMALL, params=convert(model.params, "float64"))
    after = model(IDS).logits
    assert np.abs(after - before).max() > 1e-3
    close(after, oracle(exact, IDS).logits)


# --- text -----------------------------------------------------------------------------------------


def test_greedy_text_is_chosen_on_the_device(gpu):
    model, _ = small_models()
    on_cpu = MambaForCausalLM(SMALL, params=model.params, backend="numpy")
    options = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": None}
    ours, theirs = (m.generate(IDS[:1], **options) for m in (model, on_cpu))
    np.testing.assert_array_equal(ours, theirs)
    assert gpu.launches["score greedy float32 width=1024"] == 6
    gpu.launches.clear()
    watched = model.generate(IDS[:1], return_dict_in_generate=True, output_scores=True, **options)
    np.testing.assert_array_equal(watched.sequences, theirs)
    assert "score greedy float32 width=1024" not in gpu.launches
    both = model.generate(IDS, **options)
    np.testing.assert_array_equal(both, on_cpu.generate(IDS, **options))


def test_text_is_drawn_on_the_device(gpu):
    """Each token is the best of logits / temperature + Gumbel noise, as float64 makes both."""
    model, exact = small_models()
    options = {"max_new_tokens": 8, "do_sample": True, "top_k": 0, "eos_token_id": None}
    text = model.generate(IDS[:1], temperature=1.5, seed=7, **options)[0]
    assert gpu.launches["score sampling float32 width=1024"] == 7
    again, other = (model.generate(IDS[:1], temperature=1.5, seed=s, **options)[0] for s in (7, 8))
    np.testing.assert_array_equal(text, again)
    assert not np.array_equal(text, other)
    (generator,) = row_generators(7, 1)
    generator.random()  # the first token's, which is drawn from the prompt's scores
    seed = int(generator.integers(2**63))
    words = np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)
    logits = exact(text[None])[0][0]
    for k in range(7):
        scores = logits[9 + k] / 1.5 + twin(np.arange(37), k, words)
        assert scores.argmax() == text[10 + k]


@pytest.mark.parametrize("choice", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_a_narrowed_draw_is_the_same_on_every_engine(gpu, choice):
    model, _ = small_models()
    on_cpu = MambaForCausalLM(SMALL, params=model.params, backend="numpy")
    options = {"max_new_tokens": 5, "do_sample": True, "eos_token_id": None, "top_k": 0} | choice
    ours, theirs = (m.generate(IDS[:1], seed=3, **options) for m in (model, on_cpu))
    np.testing.assert_array_equal(ours, theirs)
    assert "score sampling float32 width=1024" not in gpu.launches


def test_greedy_text_ends_as_anywhere(gpu):
    model, _ = small_models()
    whole = model.generate(IDS[:1], max_new_tokens=6, do_sample=False, eos_token_id=None)[0, 9:]
    end = int(whole[3])
    first = int(np.flatnonzero(whole == end)[0])
    cache = model.new_cache()
    stream = model.stream(
        IDS[:1], max_new_tokens=6, do_sample=False, eos_token_id=end, cache_params=cache
    )
    assert [int(t[0]) for t in stream] == whole[: first + 1].tolist()
    assert stream.finish_reasons == ["eos"]
    # The state has read everything but the last token.
    text = np.concatenate([IDS[:1], whole[None, :first]], axis=1)
    same_states(stream.cache_params, model(text).cache_params)


def test_scores_that_are_no_numbers_are_an_error_on_the_device(gpu):
    model, _ = small_models()
    sound = model.generate(IDS[:1], max_new_tokens=3, do_sample=False, eos_token_id=None)[0, 9:]
    model.params.embeddings[sound[0]] = np.inf  # met by the token after the first
    with pytest.raises(NonFiniteError, match=r"^backbone.embed.*: expected finite weights"):
        model.generate(IDS[:1], max_new_tokens=3, do_sample=False, eos_token_id=None)


def test_drawn_text_follows_the_seed(gpu):
    model, _ = small_models()
    on_cpu = MambaForCausalLM(SMALL, params=model.params, backend="numpy")
    a, b = (
        m.generate(IDS[:1], max_new_tokens=5, do_sample=True, seed=3, eos_token_id=None)
        for m in (model, on_cpu)
    )
    np.testing.assert_array_equal(a, b)


# --- where to compute ---


def test_devices_by_name(gpu, tmp_path):
    model = MambaForCausalLM(SMALL, rng=0, device="cuda")
    assert model.backend == model.backbone.backend == "cuda"
    on_gpu = model(IDS).logits
    assert model.to("cpu") is model
    assert model.backend == model.backbone.backend == "cpu"
    close(on_gpu, model(IDS).logits)
    assert model.to("cuda:0").backbone.backend == "cuda"
    model.save_pretrained(tmp_path)
    loaded = MambaForCausalLM.from_pretrained(tmp_path, device="cuda")
    np.testing.assert_array_equal(loaded(IDS).logits, on_gpu)


# --- what it cannot do ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [{"hidden_act": "gelu"}, {"state_size": 65}, {"conv_kernel": 17}, {"discretisation": "zoh"}],
)
def test_models_without_kernels_are_refused(gpu, fields):
    config = MambaConfig(**SMALL.to_dict() | fields)
    with pytest.raises(BackendError, match=next(iter(fields))):
        MambaModel(config, backend="cuda")


def test_float64_is_refused(gpu):
    with pytest.raises(BackendError, match="computing in float64"):
        MambaModel(SMALL, dtype="float64", backend="cuda")


def test_too_little_memory_is_said_before_anything_is_sent(gpu, monkeypatch):
    model, _ = small_models()
    monkeypatch.setattr(gpu, "free_bytes", lambda: 1000)
    blocks = len(gpu.blocks)
    with pytest.raises(BackendError, match=r"expected [\d,]+ bytes .* for the\s+model's weights"):
        model(IDS)
    assert len(gpu.blocks) <= blocks + 2  # the states alone


def test_a_gpu_is_used_only_where_it_is_asked_for(gpu):
    assert backend.available() == ("cuda", "cpu", "numpy")
    assert MambaModel(SMALL).backend == "cpu"
    assert backend.resolve("cuda") == "cuda"
