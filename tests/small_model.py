"""A small random model for tests of what goes on inside, and one of its layers and channels."""

from test_laws import make_model

from mamba_np import MambaConfig, MambaForCausalLM
from mamba_np.params import convert

SMALL = MambaConfig(
    vocab_size=17, hidden_size=10, intermediate_size=18, state_size=3, num_hidden_layers=3,
    time_step_max=0.7, use_bias=True,
)  # fmt: skip
LAYER, CHANNEL = 1, 5


def small_model(dtype="float64"):
    """Return it, in either dtype with the same numbers."""
    return MambaForCausalLM(SMALL, params=convert(make_model(SMALL).params, dtype))
