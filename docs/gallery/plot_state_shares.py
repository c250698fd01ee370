"""
Who still lives in the state?
=============================

The geology of a state: what each token wrote, from its first moment until it is forgotten.
"""

import matplotlib.pyplot as plt

from mamba_np import MambaForCausalLM, bundled_model_path, plot

model = MambaForCausalLM.from_pretrained(bundled_model_path())
text = "Once upon a time there was a little girl, and the king said to her: who are you?"
trace = model.trace(text, capture=("delta", "B", "x"))

plot.state_shares(trace, layer=2)
plt.show()
