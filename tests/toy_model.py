"""A tiny exact language model for tests of decoding: one state per row, a few lines of NumPy.

Its call and its cache look like MambaForCausalLM's. Everything is float64 and row by row, so a
row's logits do not depend on the batch in the slightest.
"""

from types import SimpleNamespace

import numpy as np

from mamba_np.generation import GenerationConfig, GenerationMixin

D = 6


class ToyCache:
    def __init__(self, state):
        self.state = state

    def select(self, rows):
        return ToyCache(self.state[rows].copy())

    def copy(self):
        return ToyCache(self.state.copy())


class ToyModel(GenerationMixin):
    def __init__(self, vocab_size=7, seed=0, sharpness=2.0, **generation):
        rng = np.random.default_rng(seed)
        self.config = SimpleNamespace(vocab_size=vocab_size)
        self.generation_config = GenerationConfig(**generation)
        self.embeddings = rng.standard_normal((vocab_size, D))
        self.recurrence = rng.standard_normal((D, D)) / np.sqrt(D)
        self.head = rng.standard_normal((vocab_size, D)) * sharpness
        self.calls = []  # (B, L) of each call
        self.edit = lambda logits, call: logits  # changes the logits of a call

    def __call__(
        self,
        input_ids=None,
        attention_mask=None,
        inputs_embeds=None,
        cache_params=None,
        use_cache=None,
        output_hidden_states=None,
        return_dict=None,
        logits_to_keep=0,
    ):
        assert return_dict is True
        x = self.embeddings[input_ids] if inputs_embeds is None else np.asarray(inputs_embeds)
        B, L = x.shape[:2]
        mask = np.ones((B, L), bool) if attention_mask is None else np.asarray(attention_mask) != 0
        assert mask.shape == (B, L)
        h = np.zeros((B, D)) if cache_params is None else cache_params.state.copy()
        logits = np.zeros((B, L, self.config.vocab_size))
        for row in range(B):
            for t in range(L):
                if mask[row, t]:
                    h[row] = np.tanh(self.recurrence @ h[row] + x[row, t])
                    logits[row, t] = self.head @ h[row]
        if use_cache and cache_params is not None:
            cache_params.state = h  # advanced in place, as MambaCache is
        self.calls.append((B, L))
        return SimpleNamespace(
            logits=self.edit(logits[:, -logits_to_keep:], len(self.calls)),
            cache_params=(cache_params or ToyCache(h)) if use_cache else None,
            hidden_states=(h[:, None], x) if output_hidden_states else None,
        )

    def log_probs(self, ids):
        """Log-probabilities of every next token after each prefix of one row: (L, V)."""
        logits = self(input_ids=np.array([ids]), return_dict=True).logits[0]
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
