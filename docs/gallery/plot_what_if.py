"""
What if it forgot a token?
==========================

What becomes of predictions where later tokens cannot read what one token wrote to the state.
"""

import matplotlib.pyplot as plt

from mamba_np import AutoTokenizer, MambaForCausalLM, bundled_model_path, plot
from mamba_np.interventions import CutPath

model = MambaForCausalLM.from_pretrained(bundled_model_path())
tokenizer = AutoTokenizer.from_pretrained(bundled_model_path())
ids = tokenizer("Once upon a time there was a little girl, and the king said:")["input_ids"]
cut = CutPath(source=8)  # girl

plot.what_if(model, ids, cut)
plot.what_if(model, ids[:11], cut, at=-1)
plt.show()
