"""Random parameters: the distribution of each, in each scheme, by Kolmogorov-Smirnov distances.

Seeds are fixed, so a pass stays a pass. What such a test can see is tested first: with 2,000
samples, scales that are 20 % wrong and wrong families.
"""

import math

import numpy as np
import pytest

from mamba_np.checkpoint import state_dict
from mamba_np.config import MambaConfig
from mamba_np.errors import InputError
from mamba_np.init import SCHEMES, init_params
from mamba_np.params import convert

SIZES = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 80,
    "state_size": 9,
    "conv_kernel": 6,
    "time_step_rank": 7,
    "num_hidden_layers": 16,
}
MODERN = "transformers-5"

KS_LIMIT = 1.95
"""Kolmogorov-Smirnov at p = 0.001: the largest distance between the empirical and the wanted
distribution function exceeds c / sqrt(n) with probability 2 exp(-2 c**2) if the samples are right.
Between two samples of n each the limit is c sqrt(2 / n)."""

# What the scheme of transformers 5 does not draw.
CONSTANTS = {
    "backbone.norm_f.weight", "norm.weight", "mixer.A_log", "mixer.D", "mixer.conv1d.bias",
    "mixer.in_proj.bias", "mixer.out_proj.bias",
}  # fmt: skip


def uniform(bound):
    return lambda x: np.clip((x + bound) / (2 * bound), 0, 1)


def normal(std):
    return lambda x: np.array([0.5 * math.erfc(-v / (std * math.sqrt(2))) for v in x])


def ks_distance(samples, cdf):
    x = np.sort(np.asarray(samples, np.float64).ravel())
    n, p = len(x), cdf(x)
    return max(np.max(np.arange(1, n + 1) / n - p), np.max(p - np.arange(n) / n))


def assert_distributed(samples, cdf, name):
    n = np.size(samples)
    assert n >= 1000, f"{name}: {n} samples prove little"
    distance, limit = ks_distance(samples, cdf), KS_LIMIT / math.sqrt(n)
    assert distance < limit, f"{name}: distance {distance:.4f}, allowed {limit:.4f}"


def all_layers(params, field):
    return np.stack([getattr(layer, field) for layer in params.layers])


def make(scheme, seed=7, dtype="float64", **options):
    return init_params(MambaConfig(**(SIZES | options)), seed, scheme=scheme, dtype=dtype)


@pytest.fixture(params=SCHEMES, scope="module")
def scheme(request):
    return request.param


@pytest.fixture(scope="module")
def params(scheme):
    return make(scheme, use_bias=True, tie_word_embeddings=False)


def test_the_test_has_power(rng):
    samples = {"uniform": rng.uniform(-1, 1, 2000), "normal": rng.normal(size=2000)}
    assert_distributed(samples["uniform"], uniform(1), "right")
    assert_distributed(samples["normal"], normal(1), "right")
    for wrong in (uniform(1.2), uniform(0.8), normal(math.sqrt(1 / 3))):
        with pytest.raises(AssertionError, match="distance"):
            assert_distributed(samples["uniform"], wrong, "wrong")
    for wrong in (normal(1.2), normal(0.8), uniform(math.sqrt(3))):
        with pytest.raises(AssertionError, match="distance"):
            assert_distributed(samples["normal"], wrong, "wrong")


def test_the_three_schemes():
    assert set(SCHEMES) == {"transformers-4.53", MODERN, "mamba-ssm"}


# --- what all schemes share ----------------------------------------------------------------------


def test_norms_D_and_A(params):
    assert (params.norm_f == 1).all()
    assert (all_layers(params, "norm") == 1).all()
    assert (all_layers(params, "D") == 1).all()
    A = -np.exp(all_layers(params, "A_log"))
    expected = -np.arange(1.0, 10)
    assert np.abs(A / expected - 1).max() < 1e-15


def test_dt_proj(params, scheme):
    assert_distributed(all_layers(params, "dt_proj"), uniform(7**-0.5), "dt_proj")
    scaled = all_layers(make(scheme, time_step_scale=2.5), "dt_proj")
    assert_distributed(scaled, uniform(2.5 * 7**-0.5), "scaled dt_proj")
    constant = all_layers(make(scheme, time_step_init_scheme="constant"), "dt_proj")
    assert constant == pytest.approx(np.full(constant.shape, 7**-0.5), rel=1e-15)


def steps(params):
    """Return softplus(dt_bias): the step sizes of a token that says nothing."""
    return np.log1p(np.exp(all_layers(params, "dt_bias")))


def log_uniform(low, high):
    return lambda x: np.clip(np.log(x / low) / math.log(high / low), 0, 1)


def test_steps_are_log_uniform(params, scheme):
    found = steps(params)
    assert found.min() >= 0.001 * (1 - 1e-12)
    assert found.max() <= 0.1 * (1 + 1e-12)
    assert_distributed(found, log_uniform(0.001, 0.1), "steps")
    other = steps(make(scheme, time_step_min=0.02, time_step_max=0.5))
    assert_distributed(other, log_uniform(0.02, 0.5), "other steps")


def test_steps_have_a_floor(scheme):
    found = steps(make(scheme, time_step_floor=0.01, num_hidden_layers=32))
    assert found.min() == pytest.approx(0.01, rel=1e-12)
    share = np.mean(found < 0.010001)
    assert share == pytest.approx(0.5, abs=0.05)  # half of [0.001, 0.1] on a log scale
    assert_distributed(found[found > 0.010001], log_uniform(0.01, 0.1), "steps above the floor")
    tiny = steps(make(scheme, time_step_min=1e-6))
    assert tiny.min() == pytest.approx(1e-4, rel=1e-9)  # the default floor


def test_dt_bias_at_the_defaults(scheme):
    bias = all_layers(make(scheme), "dt_bias")
    assert -6.91 < bias.min() < -6.8  # softplus(-6.9073) = 0.001
    assert -2.3 < bias.max() < -2.25  # softplus(-2.2522) = 0.1


def test_convolution_weights(params):
    assert_distributed(all_layers(params, "conv"), uniform(6**-0.5), "conv")


# --- where they differ ---------------------------------------------------------------------------


def test_projections(params, scheme):
    by_fan_in = scheme != MODERN
    for name, inputs in (("in_proj", 48), ("x_proj", 80)):
        cdf = uniform(inputs**-0.5) if by_fan_in else normal(0.1)
        assert_distributed(all_layers(params, name), cdf, name)


@pytest.mark.parametrize("rescale", [False, True])
def test_out_proj_and_the_rescaled_residual(scheme, rescale):
    found = all_layers(make(scheme, rescale_prenorm_residual=rescale), "out_proj")
    divided = rescale or scheme == "mamba-ssm"  # by sqrt(16 layers)
    assert_distributed(found, uniform(80**-0.5 / (4 if divided else 1)), "out_proj")


def test_embeddings(params, scheme):
    std = 0.02 if scheme == "mamba-ssm" else 0.1
    assert_distributed(params.embeddings, normal(std), "embeddings")


def test_initializer_range(scheme):
    params = make(scheme, initializer_range=0.3)
    expected = {"transformers-4.53": 0.3, MODERN: 0.3, "mamba-ssm": 0.02}[scheme]
    assert_distributed(params.embeddings, normal(expected), "embeddings")
    if scheme == MODERN:
        assert_distributed(all_layers(params, "x_proj"), normal(0.3), "x_proj")


def test_an_untied_head_is_a_linear_layer(params, scheme):
    assert not params.tied
    assert params.lm_head.shape == params.embeddings.shape
    found = {name: ks_distance(params.lm_head, cdf) for name, cdf in (
        ("uniform", uniform(48**-0.5)), ("normal", normal(0.1)))}  # fmt: skip
    expected = "normal" if scheme == MODERN else "uniform"
    assert min(found, key=found.get) == expected, found


def test_biases(params, scheme):
    # Linear biases start at zero in all three: torch's own random ones are overwritten.
    assert not all_layers(params, "in_proj_bias").any()
    assert not all_layers(params, "out_proj_bias").any()
    conv_bias = all_layers(params, "conv_bias")
    if scheme == MODERN:
        assert not conv_bias.any()
    else:
        assert_distributed(conv_bias, uniform(6**-0.5), "conv_bias")


def test_biases_that_the_configuration_leaves_out(scheme):
    layer = make(scheme, use_bias=False, use_conv_bias=False).layers[0]
    assert layer.in_proj_bias is layer.out_proj_bias is layer.conv_bias is None
    assert layer.dt_bias is not None


def test_the_modern_scheme_is_the_installed_transformers():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("transformers 4 has another scheme")
    options = {"use_bias": True, "tie_word_embeddings": False, "rescale_prenorm_residual": True}
    ours = state_dict(make(MODERN, **options))
    torch.manual_seed(0)
    theirs = transformers.MambaForCausalLM(transformers.MambaConfig(**(SIZES | options)))
    theirs = {name: array.detach().numpy() for name, array in theirs.state_dict().items()}
    pool = lambda arrays, end: np.concatenate(  # noqa: E731
        [a.ravel() for name, a in arrays.items() if name.endswith(end)]
    )
    ends = {name.split(".", 3)[-1] if "layers" in name else name for name in ours}
    assert len(ends) == 15
    assert ends >= CONSTANTS
    for end in sorted(ends):
        a, b = np.sort(pool(ours, end)), np.sort(pool(theirs, end))
        assert len(a) == len(b), end
        if end in CONSTANTS:  # ours are float64, theirs float32
            np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=end)
            continue
        both = np.concatenate([a, b])
        gap = np.searchsorted(a, both, "right") - np.searchsorted(b, both, "right")
        distance, limit = np.abs(gap).max() / len(a), KS_LIMIT * math.sqrt(2 / len(a))
        assert distance < limit, f"{end}: distance {distance:.4f}, allowed {limit:.4f}"


# --- shapes, dtypes, seeds -----------------------------------------------------------------------


def test_shapes(params):
    V, D, E, N, K, R = 300, 48, 80, 9, 6, 7
    assert params.embeddings.shape == (V, D)
    assert params.norm_f.shape == (D,)
    assert len(params.layers) == 16
    shapes = {
        "norm": (D,),
        "in_proj": (2 * E, D),
        "in_proj_bias": (2 * E,),
        "conv": (E, K),
        "conv_bias": (E,),
        "x_proj": (R + 2 * N, E),
        "dt_proj": (E, R),
        "dt_bias": (E,),
        "A_log": (E, N),
        "D": (E,),
        "out_proj": (D, E),
        "out_proj_bias": (D,),
    }
    assert {f: getattr(params.layers[3], f).shape for f in shapes} == shapes


def test_ties(scheme):
    assert make(scheme).tied
    config = MambaConfig(**SIZES)
    assert init_params(config, 0, scheme=scheme, head=False).lm_head is None


def arrays(params):
    flat = [params.embeddings, params.norm_f, params.lm_head]
    return flat + [a for layer in params.layers for a in vars(layer).values() if a is not None]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_dtypes(scheme, dtype):
    params = make(scheme, dtype=dtype)
    assert params.embeddings.dtype.name == dtype
    assert params.layers[0].in_proj.dtype.name == dtype
    small = "float64" if dtype == "float64" else "float32"
    assert params.layers[0].A_log.dtype.name == params.layers[0].dt_bias.dtype.name == small
    wide = convert(make(scheme, dtype="float32"), dtype)
    if dtype != "float64":  # narrow parameters are the float32 ones, rounded
        assert all(map(np.array_equal, arrays(params), arrays(wide)))


def test_a_seed_gives_the_same_numbers_again(scheme):
    first, second = arrays(make(scheme, seed=3)), arrays(make(scheme, seed=3))
    assert all(map(np.array_equal, first, second))
    by_generator = init_params(
        MambaConfig(**SIZES), np.random.default_rng(3), scheme=scheme, dtype="float64"
    )
    assert all(map(np.array_equal, first, arrays(by_generator)))
    other = make(scheme, seed=4)
    assert not np.array_equal(first[0], other.embeddings)


def test_a_generator_goes_on(scheme):
    rng, config = np.random.default_rng(3), MambaConfig(**SIZES)
    first, second = (init_params(config, rng, scheme=scheme) for _ in range(2))
    assert not np.array_equal(first.embeddings, second.embeddings)


def test_layers_differ(params):
    assert not np.array_equal(params.layers[0].in_proj, params.layers[1].in_proj)
    assert not np.array_equal(params.layers[0].dt_bias, params.layers[1].dt_bias)


def test_the_default_scheme_is_the_oldest():
    config = MambaConfig(**SIZES)
    default = init_params(config, 5)
    named = init_params(config, 5, scheme="transformers-4.53")
    assert all(map(np.array_equal, arrays(default), arrays(named)))


@pytest.mark.parametrize("wrong", ["", "transformers", "kaiming", None, 4.53])
def test_unknown_schemes(wrong):
    with pytest.raises(InputError, match=r"scheme: expected one of .*found"):
        init_params(MambaConfig(**SIZES), scheme=wrong)


def test_unknown_dtypes():
    with pytest.raises(InputError, match=r"dtype: expected one of .*found 'int8'"):
        init_params(MambaConfig(**SIZES), dtype="int8")
