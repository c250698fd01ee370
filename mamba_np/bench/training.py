"""What is measured of training: whole steps of the bundled model, their speed and their memory.

A step is the forward and the backward pass, clipping at a norm of 1, and AdamW's update. Every
program takes the same steps with the same float32 weights and tokens, and ``Alike`` refuses those
that do not come to the same numbers.
"""

import json
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..config import MambaConfig
from . import peers
from .blocks import Absent, Entry, Program
from .timing import Job, ids_of, median_of, peak_megabytes

LEARNING_RATE, WEIGHT_DECAY, MAX_NORM = 1e-3, 0.1, 1.0
"""Of every program; all its parameters decay."""

WAKING = 8
"""Tokens of each text in the first step, which makes moments, compiles and wakes threads."""

ALIKE = 1e-4
"""How far apart two programs' losses, or the norms of their gradients, may be, relatively."""

Step = Callable[[NDArray], tuple[float, float]]
"""Moves the weights once, by tokens (B, L); returns the loss and the norm of the gradients."""


class Trains:
    """Whole steps of training: what is asked of a program, which has ``begin`` of its own."""

    vocabulary: int

    def begin(self, threads: int) -> Step:
        """Return what takes a step, with the weights of the file and no moments yet."""
        raise NotImplementedError

    def train(self, job: Job) -> dict[str, Any]:
        """Return tokens a second of steps of ``batch`` texts of ``length`` tokens.

        With it are the ``loss`` and the ``grad_norm`` of the first of them. The weights have
        moved once by then, so what AdamW does shows in these too.
        """
        step, ids = self._awake(job)
        found: list[tuple[float, float]] = []
        seconds = median_of(lambda: found.append(step(ids)), job)
        return {"value": ids.size / seconds, **_named(found[0])}

    def memory(self, job: Job) -> dict[str, Any]:
        """Return the most MB that the process ever had, after one step, and that step's numbers."""
        step, ids = self._awake(job)
        found = step(ids)
        return {"value": peak_megabytes(), **_named(found)}

    def _awake(self, job: Job) -> tuple[Step, NDArray]:
        step = self.begin(job["threads"])
        ids = ids_of(self.vocabulary, job["batch"], job["length"])
        step(ids[:, :WAKING])
        return step, ids


def _named(found: tuple[float, float]) -> dict[str, float]:
    return dict(zip(("loss", "grad_norm"), found, strict=True))


class Ours(Trains):
    """Ours."""

    def __init__(self, model: str, backend: str):
        self.path, self.backend = model, backend
        self.vocabulary = MambaConfig.from_pretrained(model).vocab_size

    def begin(self, threads: int) -> Step:
        """Return what takes a step."""
        from ..model import MambaForCausalLM  # here: the peers' processes need none of it
        from ..threads import set_num_threads
        from ..training import AdamW, training_step

        set_num_threads(threads)
        model = MambaForCausalLM.from_pretrained(self.path, backend=self.backend).make_writeable()
        parameters = model.state_dict()
        optimiser = AdamW(parameters, LEARNING_RATE, weight_decay=WEIGHT_DECAY, no_decay=())

        def step(ids: NDArray) -> tuple[float, float]:
            batch = {"input_ids": ids, "labels": ids}
            done = training_step(model, optimiser, [batch], max_grad_norm=MAX_NORM)
            return done.loss, done.grad_norm

        return step


class _OnTorch(Trains):
    """What programs on PyTorch have in common; ``fresh`` is each one's own."""

    torch: Any

    def fresh(self) -> tuple[list[Any], Callable[[Any], Any]]:
        """Return the parameters, those of the file, and a function of tokens that is the loss."""
        raise NotImplementedError

    def begin(self, threads: int) -> Step:
        """Return what takes a step."""
        torch = self.torch
        torch.set_num_threads(threads)
        parameters, loss_of = self.fresh()
        optimiser = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=WEIGHT_DECAY)

        def step(ids: NDArray) -> tuple[float, float]:
            tokens = torch.from_numpy(ids)
            optimiser.zero_grad()
            loss = loss_of(tokens)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
            optimiser.step()
            return loss.item(), norm.item()

        return step


class Transformers(_OnTorch, peers.Transformers):
    """transformers on the processor."""

    def __init__(self, model: str):
        super().__init__(model)
        self.path = model
        self.vocabulary = self.model.config.vocab_size

    def fresh(self) -> tuple[list[Any], Callable[[Any], Any]]:
        """Return the parameters and the loss; see ``_OnTorch``."""
        loaded = type(self.model).from_pretrained(self.path, dtype=self.torch.float32)
        self.model = loaded.train()
        return list(loaded.parameters()), lambda tokens: self.model(tokens, labels=tokens).loss


class Mambapy(_OnTorch, peers.Mambapy):
    """mambapy, here with the weights of the file: the names of its blocks' are the same."""

    def __init__(self, model: str):
        super().__init__(model)
        self.path = Path(model)

    def fresh(self) -> tuple[list[Any], Callable[[Any], Any]]:
        """Return the parameters and the loss; see ``_OnTorch``."""
        from safetensors.torch import load_file

        weights = load_file(self.path / "model.safetensors")
        inner = {name.removeprefix("backbone."): one.float() for name, one in weights.items()}
        parts = [(self.embedding, "embeddings.weight"), (self.norm, "norm_f.weight")]
        config = json.loads((self.path / "config.json").read_text("utf-8"))
        if config.get("tie_word_embeddings", True):
            self.head.weight = self.embedding.weight
        else:
            parts.append((self.head, "lm_head.weight"))
        for module, name in parts:
            module.load_state_dict({"weight": inner.pop(name)})
        self.blocks.train().load_state_dict(inner)
        modules = self.blocks, *(module for module, _ in parts)
        return [one for module in modules for one in module.parameters()], self._loss

    def _loss(self, tokens: Any) -> Any:
        scores = self.head(self.norm(self.blocks(self.embedding(tokens))))
        entropy = self.torch.nn.functional.cross_entropy
        return entropy(scores[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


class Alike:
    """A program whose steps count only if another's came to the same loss and gradient norm.

    ``known`` is shared by the programs of one shape: the first that answers leaves its numbers.
    """

    def __init__(self, program: Program, known: dict[str, float]):
        self.program, self.known = program, known

    def prepare(self) -> None:
        """Load what the program needs."""
        self.program.prepare()

    def ask(self, job: Job) -> dict[str, Any]:
        """Do a job. Raises Absent where the numbers are others, NaN included."""
        answer = self.program.ask(job)
        for name, what in (("loss", "a loss"), ("grad_norm", "gradients of norm")):
            expected = self.known.setdefault(name, answer[name])
            if not abs(answer[name] - expected) <= ALIKE * abs(expected):
                found = f"found {answer[name]:.6g}"
                raise Absent(f"not the same step: expected {what} {expected:.6g}, {found}")
        return answer

    def processes(self) -> list[int]:
        """Return the ids of the program's processes."""
        return self.program.processes()

    def close(self) -> None:
        """End the program's processes."""
        self.program.close()


# --- memory --------------------------------------------------------------------------------------


def slopes(entries: Iterable[tuple[int, Entry]], where: str) -> list[Entry]:
    """Return the bytes that each token adds, from each length to the next, as entries.

    ``entries`` are peaks in MB by their lengths, in rising order; ``where`` is the key, with room
    for two lengths. Where a peak is missing there is no slope.
    """
    found = []
    known = [(length, entry.result()) for length, entry in entries]
    for (short, low), (long, high) in pairwise(known):
        entry = Entry(where.format(short, long), "bytes", most=0)
        if low["median"] is None or high["median"] is None:
            entry.absent = low.get("absent") or high.get("absent")
        else:
            entry.values = [1e6 * (high["median"] - low["median"]) / (long - short)]
        found.append(entry)
    return found


def bytes_per_token(config: MambaConfig, threads: int) -> float:
    """Return the bytes that a token adds to a step of ours on compiled kernels, by counting.

    Every block keeps of each token what the way back reads, of width D: what it was given and that
    normed; of width E: x and the gate before and x after the convolution, x after its SiLU, the
    step size and the output; and the low rank with B and C. It keeps the states, N for each of E
    channels, before every STEPS-th token alone. The gradients of the same exist once, for one
    block at a time, with B and C's for each thread. The last are arrays of the moment: the head's
    copies of what it reads and its gradient, or the product of one block.
    """
    from ..kernels.packing import Sizes
    from ..kernels.scan import STEPS

    s = Sizes.of(config)
    block = 2 * s.D_pad + 6 * s.E_pad + s.M_pad + s.N * s.E / STEPS
    once = 5 * s.D_pad + 5 * s.E_pad + threads * s.M_pad
    moment = max(2 * s.D, s.E)
    return 4 * (s.layers * block + once + moment)
