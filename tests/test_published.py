"""Values that others published for the released checkpoints. Opt in with ``--hub``.

The first test downloads 0.5 GB, the others up to 11 GB. Logits and texts are those in the tests
and the documentation of transformers.
"""

import numpy as np
import pytest
from tolerances import assert_close_to_scale, tolerance

from mamba_np import AutoTokenizer, MambaForCausalLM

pytestmark = pytest.mark.hub

SMALLEST = "state-spaces/mamba-130m-hf"
LOGITS = [  # of "Hey how are you doing?": position 0, tokens 0 to 39, float32
    -55.6909, -69.7903, -49.8981, -51.7581, -57.6544, -57.9368, -56.9591, -57.9033,
    -54.6787, -55.9261, -55.3011, -58.0765, -60.5642, -47.0176, -52.0344, -49.7836,
    -55.9463, -57.8957, -56.7627, -57.1080, -57.3434, -58.3015, -57.7875, -58.7760,
    -59.6037, -59.0665, -58.7087, -52.9293, -53.4654, -57.3466, -56.9294, -55.7314,
    -53.3141, -55.8171, -56.9879, -56.9121, -56.2139, -54.7198, -56.4134, -57.4825,
]  # fmt: skip
TEXTS = {  # greedy continuations of "Hello my name is" by float16 checkpoints
    "state-spaces/mamba-130m-hf": (10, " John and I am a newbie to the world"),
    "state-spaces/mamba-790m-hf": (10, "\n\nI am a\n\nI am a"),
    "state-spaces/mamba-1.4b-hf": (
        20,
        " John and I am a\n\nI am a single father of a beautiful daughter. I am a",
    ),
    "state-spaces/mamba-2.8b-hf": (
        30,
        " John and I am a new member of this forum. I am a retired Marine and I am a member of "
        "the Marine Corps League. I am a",
    ),
}


def test_the_example_of_the_documentation():
    tokenizer = AutoTokenizer.from_pretrained(SMALLEST)
    model = MambaForCausalLM.from_pretrained(SMALLEST)
    ids = tokenizer("Hey how are you doing?", return_tensors="np")["input_ids"]
    logits = model(ids).logits[0, 0, :40]
    assert_close_to_scale(logits, np.array(LOGITS), tolerance("published", "float32"), "logits")
    out = model.generate(ids, max_new_tokens=10, do_sample=False)
    expected = "Hey how are you doing?\n\nI'm so glad you're here."
    assert tokenizer.batch_decode(out) == [expected]


def test_the_original_repository_gives_the_same_logits():
    tokenizer = AutoTokenizer.from_pretrained(SMALLEST)
    ids = tokenizer("Hey how are you doing?", return_tensors="np")["input_ids"]
    original = MambaForCausalLM.from_pretrained("state-spaces/mamba-130m")
    logits = original(ids).logits[0, 0, :40]
    assert_close_to_scale(logits, np.array(LOGITS), tolerance("published", "float32"), "logits")


@pytest.mark.parametrize("name", TEXTS)
def test_greedy_texts(name):
    new_tokens, text = TEXTS[name]
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = MambaForCausalLM.from_pretrained(name, dtype="float16")
    ids = tokenizer("Hello my name is", return_tensors="np")["input_ids"]
    out = model.generate(ids, max_new_tokens=new_tokens, do_sample=False)
    assert tokenizer.decode(out[0], skip_special_tokens=True) == "Hello my name is" + text
