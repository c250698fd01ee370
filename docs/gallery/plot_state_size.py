"""
Does the state blow up or collapse?
===================================

Its length and its effective rank while a story of 300 tokens is written, every fifth state kept.
"""

import matplotlib.pyplot as plt

from mamba_np import AutoTokenizer, MambaForCausalLM, bundled_model_path, plot

model = MambaForCausalLM.from_pretrained(bundled_model_path())
inputs = AutoTokenizer.from_pretrained(bundled_model_path())(
    "Once upon a time", return_tensors="np"
)
tracer = model.tracer(capture=("h", "residual_norm"), every=5)
tracer.generate(**inputs, max_new_tokens=300, min_new_tokens=300, do_sample=True, seed=1)

plot.state_size(tracer.trace)
plot.residual_norm(tracer.trace)
plt.show()
