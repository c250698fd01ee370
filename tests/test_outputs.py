"""Model outputs read as an object, a tuple and a dictionary."""

import numpy as np
import pytest

from mamba_np import MambaCausalLMOutput, MambaOutput

LOGITS = np.zeros((1, 2, 3))


def test_fields_that_are_none_are_left_out():
    output = MambaCausalLMOutput(logits=LOGITS)
    assert output.keys() == ("logits",)
    assert output.to_tuple() == (LOGITS,)
    assert len(output) == 1
    assert "loss" not in output


def test_the_loss_comes_first():
    loss, logits = MambaCausalLMOutput(logits=LOGITS, loss=1.5)
    assert loss == 1.5
    assert logits is LOGITS


def test_three_ways_to_read_a_field():
    output = MambaOutput(last_hidden_state=LOGITS)
    assert output.last_hidden_state is output["last_hidden_state"] is output[0]
    assert output[:1] == (LOGITS,)


@pytest.mark.parametrize("key", ["loss", "nothing", "keys"])
def test_a_key_without_value_is_a_key_error(key):
    with pytest.raises(KeyError, match=key):
        MambaCausalLMOutput(logits=LOGITS)[key]
