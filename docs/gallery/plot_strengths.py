"""
What is written, kept and read?
===============================

Three numbers for each token and layer, and which tokens matter later.
"""

import matplotlib.pyplot as plt

from mamba_np import MambaForCausalLM, bundled_model_path, plot

model = MambaForCausalLM.from_pretrained(bundled_model_path())
text = "Once upon a time there was a little girl, and the king said to her: who are you?"
trace = model.trace(text, capture=("delta", "B", "C", "x", "y"))

plot.strengths(trace)
plot.influence(trace)
plt.show()
