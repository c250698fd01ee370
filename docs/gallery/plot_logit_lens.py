"""
When does it know?
==================

What each layer would say, were it the last, in a cell for each token.
"""

import matplotlib.pyplot as plt

from mamba_np import MambaForCausalLM, bundled_model_path, plot

model = MambaForCausalLM.from_pretrained(bundled_model_path())
trace = model.trace("Once upon a time there was a little girl, and", capture=("residual",))

plot.logit_lens(model, trace)
plt.show()
