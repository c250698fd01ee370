"""Scores, the choice of a token, and noise, executed from the compiled kernels."""

import naive
import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'mamba-np[cuda]'")

from matrices import KINDS, padded, stored
from running import ARCHITECTURES, InPlace, empty, run
from tolerances import assert_close_to_scale, tolerance

from mamba_np import equations as eq
from mamba_np.cuda import head, noise
from mamba_np.cuda.dialect import cuda, types
from mamba_np.cuda.products import width_for
from mamba_np.cuda.registry import F32_POINTER, I32_POINTER, U32_POINTER, Budget, Kernel
from mamba_np.errors import InputError

CLOSE = tolerance("step", "float32")
SEED = np.array([0x12345678, 0x9ABCDEF0], np.uint32)


def up(n, step):
    return -(-n // step) * step


def twin(tokens, count, seed=SEED):
    """Return the noise of some tokens by NumPy: (V,) float32."""
    tokens = np.asarray(tokens, np.uint32)
    zeros = np.zeros_like(tokens)
    words = noise.philox((tokens, zeros + np.uint32(count), zeros, zeros), tuple(seed))
    return eq.gumbel(noise.uniform(words[0]))


class Scores:
    """The score kernel's inputs and results for a vocabulary of random vectors."""

    def __init__(self, dtype, group, D, V, rng=None, temperature=1.0, count=0):
        rng = rng or np.random.default_rng((D, V))
        self.D, self.V, self.kind = D, V, (dtype, group)
        self.D_pad = up(D, 16)
        self.residual, self.scale = (padded(rng.standard_normal(D), self.D_pad) for _ in range(2))
        W = padded(rng.standard_normal((V, D)), V, self.D_pad)
        self.W = stored(W, dtype, group)
        self.temperature, self.count = np.float32([temperature]), np.int32([count])
        self.seed = SEED
        self.logits = empty(V)

    def run(self, blocks=1, sampling=False, **options):
        """Return each block's best, (blocks, 2): rank and id."""
        dtype, group = self.kind
        bests = empty(blocks, 2, dtype=np.int32)
        run(
            head.score(dtype, width_for(self.D_pad), sampling, group), (blocks,), self.residual,
            self.scale, 1e-5, self.D, self.D_pad, self.W.words, self.W.scales, self.V, self.logits,
            bests, self.temperature, self.seed, self.count, **options,
        )  # fmt: skip
        return bests.array

    def exact(self):
        eps = float(np.float32(1e-5))
        normed = naive.rms_norm(self.residual[: self.D], self.scale[: self.D], eps)
        return self.W.exact[:, : self.D] @ normed


def best_of(bests):
    """Return the id of the best (rank, id), the lowest among equals."""
    return -max((int(rank), -int(i)) for rank, i in bests)[1]


def choose(bests, V=64, dtype="float32", group=0, D=16, count=0, room=4, **options):
    """Return what ``pick`` leaves: ids, count, residual; and the embeddings."""
    E = stored(np.random.default_rng(V).standard_normal((V, D)), dtype, group)
    ids, made, residual = np.full(room, -7, np.int32), np.int32([count]), empty(D)
    run(
        head.pick(dtype, group), (1,), np.asarray(bests, np.int32), len(bests), InPlace(ids),
        InPlace(made), E.words, E.scales, residual, D, **options,
    )  # fmt: skip
    return ids, int(made[0]), residual.array, E.exact


# --- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("D", "V", "blocks"), [(10, 1, 1), (72, 37, 2), (200, 37, 5)])
@pytest.mark.parametrize(("dtype", "group"), KINDS)
def test_greedy_scores(dtype, group, D, V, blocks):
    case = Scores(dtype, group, D, V)
    bests, exact = case.run(blocks), case.exact()
    assert_close_to_scale(case.logits.array, exact, CLOSE, f"{dtype} D={D} V={V}")
    assert best_of(bests) == exact.argmax()
    for block, (_, found) in enumerate(bests):  # a block's own rows, whole warps of them
        mine = [v for v in range(V) if v // 8 % blocks == block]
        assert found == (mine[exact[mine].argmax()] if mine else head.NOBODY)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("sampling", [False, True])
def test_scores_on_each_architecture(sampling, arch):
    case = Scores("bfloat16", 0, 72, 37, temperature=0.7, count=3)
    bests, exact = case.run(2, sampling, arch=arch), case.exact()
    assert_close_to_scale(case.logits.array, exact, CLOSE, f"sm_{arch}")
    wanted = exact / 0.7 + twin(np.arange(37), 3) if sampling else exact
    assert best_of(bests) == wanted.argmax()


@pytest.mark.parametrize("blocks", [1, 2, 6])
def test_the_lowest_of_equals_wins(blocks):
    case = Scores("float32", 0, 16, 48)
    W = case.W.words.view(np.float32)
    W[[3, 13, 14, 21, 45]] = 100 * case.residual * case.scale
    assert best_of(case.run(blocks)) == 3
    W[3] = 0
    assert best_of(case.run(blocks)) == 13
    W[:] = 0
    assert best_of(case.run(blocks)) == 0


def test_the_best_may_be_in_every_place():
    case = Scores("float32", 0, 16, 35)
    W = case.W.words.view(np.float32)
    for place in range(35):
        W[:] = 0
        W[place] = case.residual * case.scale
        assert best_of(case.run(2)) == place


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
def test_what_is_no_number_wins_as_in_argmax(value):
    case = Scores("float32", 0, 16, 48)
    case.residual[:] = case.scale[:] = 1
    W = case.W.words.view(np.float32)
    W[:] = np.random.default_rng(0).standard_normal(W.shape)
    W[40] = 1e3
    W[[11, 30], 0] = value
    bests = case.run(3)
    assert best_of(bests) == np.argmax(case.logits.array) == 11
    assert bests[:, 0].max() >= head.INFINITE


def test_scores_of_minus_infinity_lose():
    case = Scores("float32", 0, 16, 48)
    case.residual[:] = case.scale[:] = 1
    W = case.W.words.view(np.float32)
    W[:] = -np.inf
    W[17] = -1e30
    assert best_of(case.run(2)) == 17
    W[17] = -np.inf
    bests = case.run(2)
    assert best_of(bests) == 0
    assert bests[:, 0].max() == -head.INFINITE


def test_ranks_order_numbers_as_they_are():
    def each(x, y):
        i = types.uint32(cuda.threadIdx.x)
        y[i] = head.rank(x[i])

    numbers = np.float32(
        [-np.inf, -3e38, -1.5, -1, -1e-38, -1e-45, 0, 1e-45, 1e-38, 1, 3e38, np.inf]
    )
    special = np.float32([-0.0, np.nan, -np.nan])
    x, y = np.concatenate([numbers, special]), empty(15, dtype=np.int32)
    run(Kernel("each", each, (F32_POINTER, I32_POINTER), 15, Budget(99)), (1,), x, y)
    ranks = y.array[:12]
    assert (np.diff(ranks.astype(np.int64)) > 0).all()
    assert y.array[12] == ranks[6] == 0
    assert (y.array[13:] == 2**31 - 1).all()
    assert ranks[0] == -head.INFINITE
    assert ranks[-1] == head.INFINITE
    assert ranks[0] > head.LOWEST


# --- the choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize("D", [16, 1104])
@pytest.mark.parametrize(("dtype", "group"), KINDS)
def test_the_best_is_noted_and_its_embedding_fetched(dtype, group, D):
    bests = [(5, 3), (-9, 1), (7, 33), (7, 21), (6, 0)]
    ids, made, residual, E = choose(bests, dtype=dtype, group=group, D=D, count=2)
    assert list(ids) == [-7, -7, 21, -7]
    assert made == 3
    np.testing.assert_allclose(residual, E[21], rtol=1e-6)


@pytest.mark.parametrize("place", [0, 31, 32, 255, 256, 600])
def test_the_best_of_many_blocks(place):
    bests = np.stack([np.arange(601) % 50, np.arange(601) % 64], axis=1)
    bests[place] = 60, 41
    ids, made, *_ = choose(bests)
    assert (ids[0], made) == (41, 1)
    bests[:] = 60, 63
    bests[place, 1] = 5
    assert choose(bests)[0][0] == 5


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_choice_on_each_architecture(arch):
    bests = [(head.LOWEST, head.NOBODY), (-5, 7), (-5, 6), (-6, 1)]
    ids, made, residual, E = choose(bests, dtype="bfloat16", arch=arch)
    assert (ids[0], made) == (6, 1)
    np.testing.assert_array_equal(residual, E[6].astype(np.float32))


# --- noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_random_words_are_those_published(counter, key, words):
    """The known answers that come with Random123, the authors' own implementation."""
    found = noise.philox(tuple(map(np.uint32, counter)), tuple(map(np.uint32, key)))
    assert tuple(int(word) for word in found) == words


def test_uniform_numbers_stay_between_their_ends():
    words = np.array([0, 1, 2**31, 2**32 - 129, 2**32 - 128, 2**32 - 1], np.uint32)
    v = noise.uniform(words)
    assert v.dtype == np.float32
    assert v[0] == 2.0**-33
    assert v[1] == 1.5 * 2.0**-32
    assert v[2] == 0.5
    assert list(v[4:]) == [1 - 2.0**-24] * 2
    assert (v[:-1] <= v[1:]).all()
    assert np.isfinite(eq.gumbel(v)).all()


def test_the_devices_noise_is_numpys():
    def each(y, seed, count):
        token = types.uint32(cuda.blockIdx.x) * types.uint32(256) + types.uint32(cuda.threadIdx.x)
        y[token] = head.noise_of(token, count[0], seed)

    kernel = Kernel("each", each, (F32_POINTER, U32_POINTER, I32_POINTER), 256, Budget(99))
    for count in (0, 1, 70000):
        for approximate in (False, True):
            y = empty(4096)
            run(kernel, (16,), y, SEED, np.int32([count]), approximate=approximate)
            expected = twin(np.arange(4096), count)
            np.testing.assert_allclose(y.array, expected, rtol=1e-6, atol=2e-6)


def test_noise_depends_on_everything():
    tokens = np.arange(1000)
    draws = [
        twin(tokens, 0),
        twin(tokens, 1),
        twin(tokens, 0, SEED + np.uint32([1, 0])),
        twin(tokens, 0, SEED + np.uint32([0, 1])),
        twin(tokens + 1000, 0),
    ]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.13  # four standard deviations


def test_the_twins_draws_follow_the_softmax():
    """Pearson's test of 20000 draws among 12 tokens; its bound is passed by chance in 1 of 10^4."""
    logits = np.random.default_rng(3).standard_normal(12) * 2
    expected = 20000 * eq.softmax(logits)
    counts = np.zeros(12)
    for count in range(20000):
        counts[np.argmax(logits + twin(np.arange(12), count))] += 1
    assert ((counts - expected) ** 2 / expected).sum() < 37.4  # 11 degrees of freedom


def test_draws_are_the_twins_and_follow_temperature_count_and_seed():
    case = Scores("float32", 0, 32, 40)
    case.scale /= 4
    exact, found, seen = case.exact(), [], set()
    for k in range(40):
        case.temperature[0], case.count[0] = (0.5, 2.0)[k % 2], k * 1000
        case.seed = SEED + np.uint32([k // 20, 3 * (k // 10)])
        wanted = exact / float(case.temperature[0]) + twin(np.arange(40), k * 1000, case.seed)
        top = np.sort(wanted)[-2:]
        assert top[1] - top[0] > 1e-4, "a tie: take other numbers"
        found.append(best_of(case.run(1 + k % 3, sampling=True)))
        assert found[-1] == wanted.argmax()
        assert_close_to_scale(case.logits.array, exact, CLOSE, "logits")  # without any noise
        seen.add(found[-1])
    assert len(seen) > 5


def test_dtypes_that_are_refused():
    with pytest.raises(InputError, match=r"dtype: expected one of .* found 'float64'"):
        head.score("float64", 1024, False)
    with pytest.raises(InputError, match="group: expected a multiple of 16 for int8 alone"):
        head.pick("int8")
