"""
Who attends to whom?
====================

A scan is a matrix over pairs of tokens: of all channels, of one, and with the rest of the mixer.
"""

import matplotlib.pyplot as plt

from mamba_np import MambaForCausalLM, bundled_model_path, plot

model = MambaForCausalLM.from_pretrained(bundled_model_path())
text = "Once upon a time there was a little girl, and the king said to her: who are you?"
trace = model.trace(text)

plot.hidden_attention(trace, layer=2)
plot.hidden_attention(trace, layer=2, channel=7)
plot.mixer_attention(model, trace.ids, layer=2, channel=7)
plt.show()
