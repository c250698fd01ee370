"""
What does the memory do at each token?
======================================

Five pictures over one text: step sizes, half-life, what is written, and who reads it. Of one
channel that opens for the animals and for nothing else; then of all channels of its layer.
"""

import matplotlib.pyplot as plt

from mamba_np import MambaForCausalLM, bundled_model_path, plot

model = MambaForCausalLM.from_pretrained(bundled_model_path())
text = 'The wolf met the fox in the forest. "Good day," said the wolf. "Good day," said the'
trace = model.trace(text, capture=("delta", "B", "C", "x", "y"))

plot.dashboard(trace, 5, channel=297)
plot.dashboard(trace, 5)
plt.show()
