"""
What does it do while it writes?
================================

The step sizes of the latest tokens, in a strip that is drawn anew whenever a token comes.
"""

import matplotlib.pyplot as plt

from mamba_np import AutoTokenizer, MambaForCausalLM, bundled_model_path, plot

model = MambaForCausalLM.from_pretrained(bundled_model_path())
tokenizer = AutoTokenizer.from_pretrained(bundled_model_path())
ids = tokenizer("Once upon a time", return_tensors="np")["input_ids"]
tracer = model.tracer(capture=("delta_geometric_mean",))

ax = None
for _ in tracer.stream(ids, max_new_tokens=30, do_sample=True, seed=1):
    ax = plot.latest(tracer.trace, ax=ax)  # to watch it in a window, add plt.pause(0.01)
plt.show()
