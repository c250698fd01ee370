"""
How long does it remember?
==========================

Half-lives of everything that a layer holds, and what is left of the first token at the end.
"""

import matplotlib.pyplot as plt

from mamba_np import MambaForCausalLM, bundled_model_path, plot

model = MambaForCausalLM.from_pretrained(bundled_model_path())
text = "Once upon a time there was a little girl, and the king said to her: who are you?"
trace = model.trace(text, capture=("delta", "B"))

plot.half_life(trace)
plot.survival(trace)
plt.show()
