"""
What does the state do?
=======================

Sixteen numbers of one channel over a text, and what moves them: the input x and the step size Δ.
"""

import matplotlib.pyplot as plt

from mamba_np import MambaForCausalLM, bundled_model_path, plot

model = MambaForCausalLM.from_pretrained(bundled_model_path())
text = "Once upon a time there was a little girl, and the king said to her: who are you?"
trace = model.trace(text, layers=[2], channels=[7], capture=("h", "x", "delta", "y"))

plot.state(trace, layer=2, channel=7)
plt.show()
