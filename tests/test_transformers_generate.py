"""generate beside transformers' generate, on the same checkpoints and options.

Sampling is compared as a distribution elsewhere; everything here is deterministic.
"""

import numpy as np
import pytest
from tolerances import assert_close_to_scale, tolerance

from mamba_np.model import MambaForCausalLM

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# Its own loading bars and advice would only clutter the tests' output.
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

MODELS = ("base_silu", "sharded_bf16")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """On models this small, PyTorch's threads only wait for one another (25 times slower)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=MODELS)
def pair(request, model_path):
    """Our model and transformers', float32, of the same files."""
    path = model_path(request.param)
    peer = transformers.MambaForCausalLM.from_pretrained(path, dtype=torch.float32)
    return MambaForCausalLM.from_pretrained(path), peer.eval()


def prompts(vocab_size, rows=3, length=10, seed=0):
    return np.random.default_rng(seed).integers(1, vocab_size, (rows, length))


def theirs(peer, ids, **options):
    options.setdefault("attention_mask", np.ones_like(ids))
    tensors = {
        name: torch.from_numpy(np.asarray(value)) if name == "attention_mask" else value
        for name, value in options.items()
    }
    with torch.no_grad():
        return peer.generate(torch.from_numpy(ids), **tensors)


def assert_same(pair, seed=0, rows=3, **options):
    ours, peer = pair
    ids = prompts(ours.config.vocab_size, rows=rows, seed=seed)
    options = {"max_new_tokens": 25, "pad_token_id": 3, **options}
    expected = theirs(peer, ids, **options).numpy()
    np.testing.assert_array_equal(ours.generate(ids, **options), expected)
    return expected


GREEDY = [
    {"eos_token_id": None},
    {"eos_token_id": None, "repetition_penalty": 1.3},
    {"eos_token_id": None, "repetition_penalty": 0.8},
    {"eos_token_id": None, "no_repeat_ngram_size": 1},
    {"eos_token_id": None, "no_repeat_ngram_size": 2},
    {"eos_token_id": None, "no_repeat_ngram_size": 3, "repetition_penalty": 1.1},
    {"max_new_tokens": None, "max_length": 19, "eos_token_id": None},
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", GREEDY, ids=str)
def test_greedy_texts_are_the_same(pair, options, seed):
    text = assert_same(pair, seed, **options)
    assert text.shape == (3, 35 if options.get("max_new_tokens", 25) else 19)


@pytest.mark.parametrize("minimum", [None, 0, 1, 6, 20])
@pytest.mark.parametrize("beams", [1, 3])
def test_texts_end_at_the_same_tokens(pair, minimum, beams):
    ours, _ = pair
    ids = prompts(ours.config.vocab_size)
    free = ours.generate(ids, max_new_tokens=25, eos_token_id=None)[:, 10:]
    ends = [int(free[0, 3]), int(free[1, 7]), int(free[2, 20])]
    for eos in (ends[0], ends):
        text = assert_same(
            pair,
            eos_token_id=eos,
            min_new_tokens=minimum,
            num_beams=beams,
            num_return_sequences=beams,
        )
        if not minimum and beams == 1:
            assert text[0, 14:].tolist() == [3] * (text.shape[1] - 14)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("beams", [2, 4])
def test_beams_are_the_same(pair, beams, penalty, early_stopping):
    ours, peer = pair
    ids = prompts(ours.config.vocab_size, seed=beams)
    likely = ours.generate(ids, max_new_tokens=8, eos_token_id=None)[:, 10:]
    options = {
        "num_beams": beams, "num_return_sequences": beams, "length_penalty": penalty,
        "early_stopping": early_stopping, "max_new_tokens": 15, "pad_token_id": 3,
        "eos_token_id": [int(likely[0, 4]), int(likely[1, 6])], "return_dict_in_generate": True,
        "output_scores": True, "output_logits": True,
    }  # fmt: skip
    expected, found = theirs(peer, ids, **options), ours.generate(ids, **options)
    np.testing.assert_array_equal(found.sequences, expected.sequences.numpy())
    np.testing.assert_array_equal(found.beam_indices, expected.beam_indices.numpy())
    scores = expected.sequences_scores.numpy()
    # float32 on both sides, summed in different orders: the case of the laws.
    assert_close_to_scale(found.sequences_scores, scores, tolerance("law", "float32"))
    assert len(found.scores) >= found.beam_indices.shape[1]


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2, "num_return_sequences": 2},
    ],
    ids=str,
)
def test_beams_with_processors_are_the_same(pair, options):
    assert_same(pair, num_beams=3, eos_token_id=None, **options)


@pytest.mark.parametrize("beams", [1, 3])
def test_left_padding_gives_the_same_texts(pair, beams):
    ours, peer = pair
    ids = prompts(ours.config.vocab_size)
    mask = (np.arange(10) >= np.array([[0], [4], [9]])).astype(int)
    ids = np.where(mask == 1, ids, 3)
    options = {
        "attention_mask": mask, "max_new_tokens": 20, "eos_token_id": None, "num_beams": beams,
        "repetition_penalty": 1.2, "pad_token_id": 3,
    }  # fmt: skip
    expected = theirs(peer, ids, **options).numpy()
    np.testing.assert_array_equal(ours.generate(ids, **options), expected)


def test_scores_and_logits_are_the_same(pair):
    ours, peer = pair
    ids = prompts(ours.config.vocab_size)
    options = {
        "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 3, "repetition_penalty": 1.3,
        "return_dict_in_generate": True, "output_scores": True, "output_logits": True,
        "output_hidden_states": True,
    }  # fmt: skip
    expected, found = theirs(peer, ids, **options), ours.generate(ids, **options)
    for name in ("scores", "logits"):
        for a, b in zip(getattr(found, name), getattr(expected, name), strict=True):
            assert_close_to_scale(a, b.numpy(), tolerance("model", "float32"), name)
    for a, b in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert [h.shape for h in a] == [tuple(h.shape) for h in b]
        assert_close_to_scale(a[-1], b[-1].numpy(), tolerance("model", "float32"), "hidden states")


def test_sampling_one_candidate_is_the_same(pair):
    for options in ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}):
        assert_same(pair, do_sample=True, eos_token_id=None, **options)


def test_embeddings_give_the_same_new_tokens(pair):
    ours, peer = pair
    ids = prompts(ours.config.vocab_size)
    embeds = ours.state_dict()["backbone.embeddings.weight"].astype(np.float32)[ids]
    options = {"max_new_tokens": 12, "eos_token_id": None}
    with torch.no_grad():
        expected = peer.generate(
            inputs_embeds=torch.from_numpy(embeds),
            attention_mask=torch.ones(ids.shape, dtype=torch.long),
            **options,
        )
    np.testing.assert_array_equal(ours.generate(inputs_embeds=embeds, **options), expected.numpy())


def test_no_prompt_starts_from_bos(pair):
    ours, peer = pair
    options = {"bos_token_id": 5, "max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 3}
    with torch.no_grad():
        expected = peer.generate(**options).numpy()
    np.testing.assert_array_equal(ours.generate(**options), expected)


@pytest.mark.parametrize("prompt", ["state space model", "Hey how are you", "selective scan delta"])
def test_stop_strings_end_at_the_same_tokens(model_path, prompt):
    path = model_path("base_silu")
    ours = MambaForCausalLM.from_pretrained(path)
    peer = transformers.MambaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(path)
    ids = np.array([tokenizer(prompt)["input_ids"]])
    free = ours.generate(ids, max_new_tokens=30, eos_token_id=None)[0, ids.shape[1] :]
    text = tokenizer.decode(free)
    # Half characters decode to U+FFFD, which is text to us and bytes to transformers: left out.
    found_in_text = {text[i : i + n] for n in (1, 2, 5) for i in range(3, len(text) - n)}
    strings = sorted(s for s in found_in_text if s.isascii())[::4]
    assert len(strings) >= 3
    lengths = set()
    for stop in (*strings, ["no such text", strings[0]]):
        options = {"max_new_tokens": 30, "eos_token_id": None, "tokenizer": tokenizer}
        expected = theirs(peer, ids, stop_strings=stop, **options).numpy()
        ended = ours.generate(ids, stop_strings=stop, **options)
        np.testing.assert_array_equal(ended, expected)
        lengths.add(ended.shape[1] - ids.shape[1])
    assert len(lengths) >= 2
    assert min(lengths) < 30


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": None, "max_length": 10},
        {"num_return_sequences": 2},
        {"num_beams": 2, "num_return_sequences": 3},
        {"do_sample": True, "temperature": 0.0},
        {"do_sample": True, "top_p": -0.5},
        {"do_sample": True, "min_p": -0.5},
        {"no_repeat_ngram_size": 2.5},
        {"repetition_penalty": 0.0},
        {"stop_strings": "a"},
        {"max_new_token": 5},
    ],
    ids=str,
)
def test_what_they_refuse_we_refuse(pair, options):
    ours, peer = pair
    ids, options = prompts(ours.config.vocab_size), {"max_new_tokens": 5, **options}
    with pytest.raises((ValueError, TypeError)):
        theirs(peer, ids, **options)
    with pytest.raises((ValueError, TypeError)):
        ours.generate(ids, **options)
