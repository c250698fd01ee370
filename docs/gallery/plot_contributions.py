"""
Which token moved the output?
=============================

A mixer's output is a sum of one part for each token before it: how long these parts are.
"""

import matplotlib.pyplot as plt

from mamba_np import AutoTokenizer, MambaForCausalLM, bundled_model_path, plot

model = MambaForCausalLM.from_pretrained(bundled_model_path())
tokenizer = AutoTokenizer.from_pretrained(bundled_model_path())
ids = tokenizer("Once upon a time there was a little girl, and the king said:")["input_ids"]

plot.contributions(model, ids, layer=2)
plot.contributions(model, ids, layer=2, at=-1)
plt.show()
