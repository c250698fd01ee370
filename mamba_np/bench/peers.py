"""The peers that live in Python: transformers and mambapy, whole models and their scans alone.

They answer the same jobs as ``ours``. Their settings are their defaults, but for inference mode
and the number of threads.
"""

import json
from pathlib import Path
from typing import Any

from .timing import PROMPT, Job, ids_of, median_of, scan_arrays


class _OnTorch:
    """What programs on PyTorch have in common."""

    def __init__(self):
        import torch

        self.torch = torch

    def _median(self, call: Any, job: Job) -> float:
        """Return the median seconds of a call without gradients, on the job's threads."""
        self.torch.set_num_threads(job["threads"])
        with self.torch.inference_mode():
            return median_of(call, job)

    def _ids(self, vocabulary: int, batch: int, length: int) -> Any:
        return self.torch.from_numpy(ids_of(vocabulary, batch, length))


class Transformers(_OnTorch):
    """transformers on the processor, float32, with the same weights as ours."""

    def __init__(self, model: str):
        super().__init__()
        from transformers import MambaForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        loaded: Any = MambaForCausalLM.from_pretrained(model, dtype=self.torch.float32)
        self.model = loaded.eval()

    def prefill(self, job: Job) -> float:
        """Return tokens a second of reading ``length`` tokens; the last position's logits."""
        ids = self._ids(self.model.config.vocab_size, 1, job["length"])
        return job["length"] / self._median(lambda: self.model(ids, logits_to_keep=1), job)

    def decode(self, job: Job) -> float:
        """Return tokens a second, one of each of ``batch`` texts a call, with its cache."""
        ids = self._ids(self.model.config.vocab_size, job["batch"], PROMPT)
        with self.torch.inference_mode():
            cache = self.model(ids, use_cache=True, logits_to_keep=1).cache_params
        token = ids[:, :1].contiguous()

        def step() -> None:
            self.model(token, cache_params=cache, use_cache=True, logits_to_keep=1)

        return job["batch"] / self._median(step, job)


class Mambapy(_OnTorch):
    """mambapy, float32, of the same shape; its weights are random, which changes no speed.

    Its class of language models needs a package that needs CUDA, so the embedding, the last norm
    and the head are put around its blocks here, as that class does it.
    """

    def __init__(self, model: str):
        super().__init__()
        from mambapy.mamba import Mamba, MambaConfig, RMSNorm  # pyright: ignore[reportMissingImports]

        config = json.loads((Path(model) / "config.json").read_text("utf-8"))
        D, V = config["hidden_size"], config["vocab_size"]
        self.config = MambaConfig(
            d_model=D,
            n_layers=config["num_hidden_layers"],
            dt_rank=config["time_step_rank"],
            d_state=config["state_size"],
            d_conv=config["conv_kernel"],
        )
        self.vocabulary = V
        self.blocks = Mamba(self.config).eval()
        self.norm = RMSNorm(D, self.config.rms_norm_eps)
        self.embedding = self.torch.nn.Embedding(V, D)
        self.head = self.torch.nn.Linear(D, V, bias=False)

    def prefill(self, job: Job) -> float:
        """Return tokens a second of reading ``length`` tokens; the last position's logits."""
        ids = self._ids(self.vocabulary, 1, job["length"])

        def read() -> None:
            self.head(self.norm(self.blocks(self.embedding(ids))[:, -1]))

        return job["length"] / self._median(read, job)

    def decode(self, job: Job) -> float:
        """Return tokens a second, one of each of ``batch`` texts a call, with its cache."""
        c, batch = self.config, job["batch"]
        window = self.torch.zeros(batch, c.d_inner, c.d_conv - 1)
        caches = [(None, window.clone()) for _ in range(c.n_layers)]
        token = self._ids(self.vocabulary, batch, 1)[:, 0]

        def step() -> None:
            nonlocal caches
            x, caches = self.blocks.step(self.embedding(token), caches)
            self.head(self.norm(x))

        return batch / self._median(step, job)


class TorchScan(_OnTorch):
    """The scans alone: transformers' loop, as it runs without CUDA, and mambapy's parallel one.

    Both begin with the step sizes and end with y; the skip connection and the gate are left out.
    """

    def __init__(self, L: int, E: int, N: int):
        super().__init__()
        self.arrays = [self.torch.from_numpy(array) for array in scan_arrays(L, E, N)]

    def scan(self, job: Job) -> float:
        """Return milliseconds of the exponentials of the whole tensor and a loop over steps."""
        return 1e3 * self._median(self.loop, job)

    def loop(self) -> Any:
        """Return y (1 E L), as transformers computes it."""
        torch = self.torch
        x, delta, A, B, C = self.arrays
        x, delta, B = x.T[None], delta.T[None], B[None]
        A_bar = torch.exp(A[None, :, None] * delta[..., None])  # (1 E L N)
        drive = delta[..., None] * B[:, None] * x[..., None]
        h = torch.zeros(1, *A.shape)
        outputs = []
        for t in range(x.shape[2]):
            h = A_bar[:, :, t] * h + drive[:, :, t]
            outputs.append(torch.matmul(h, C[None, t, :, None])[..., 0])
        return torch.stack(outputs, -1)

    def pscan(self, job: Job) -> float:
        """Return milliseconds of mambapy's parallel scan of the same numbers."""
        return 1e3 * self._median(self.parallel, job)

    def parallel(self) -> Any:
        """Return y (1 L E), as mambapy computes it."""
        try:
            from mambapy.pscan import pscan  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise NotImplementedError("not installed: mambapy") from error
        x, delta, A, B, C = self.arrays
        A_bar = self.torch.exp(delta[None, ..., None] * A)  # (1 L E N)
        drive = delta[None, ..., None] * B[None, :, None] * x[None, ..., None]
        return (pscan(A_bar, drive) @ C[None, ..., None])[..., 0]
