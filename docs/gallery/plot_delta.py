"""
Which tokens open the gate?
===========================

The step size Δ says how much of each token goes into the state, and how much of the rest it leaves.
"""

import matplotlib.pyplot as plt

from mamba_np import MambaForCausalLM, bundled_model_path, plot

model = MambaForCausalLM.from_pretrained(bundled_model_path())
text = "Once upon a time there was a little girl, and the king said to her: who are you?"
trace = model.trace(text, capture=("delta",))

plot.delta(trace)
plot.delta(trace, layer=2)
plt.show()
