"""
Why this token?
===============

The logit of the likeliest next token, shared out among the tokens read.
"""

import matplotlib.pyplot as plt

from mamba_np import AutoTokenizer, MambaForCausalLM, bundled_model_path, plot

model = MambaForCausalLM.from_pretrained(bundled_model_path())
tokenizer = AutoTokenizer.from_pretrained(bundled_model_path())
ids = tokenizer("Once upon a time there was a little girl, and the king said:")["input_ids"]

plot.relevance(model, ids)
plt.show()
