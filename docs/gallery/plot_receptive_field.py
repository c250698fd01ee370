"""
How far back does it look?
==========================

The mean distance of the hidden attention in each layer, and what B and C have in common.
"""

import matplotlib.pyplot as plt

from mamba_np import MambaForCausalLM, bundled_model_path, plot

model = MambaForCausalLM.from_pretrained(bundled_model_path())
text = "Once upon a time there was a little girl, and the king said to her: who are you?"
trace = model.trace(text)

plot.receptive_field(trace)
plot.receptive_field(trace, layer=2)
plot.similarity(trace, layer=2)
plt.show()
