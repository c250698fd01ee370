"""Which matrices of a model an adapter changes, and what its two factors do to each of them.

An embedding matrix (V, D) has tokens as its inputs: its change is the transpose of B @ A. The
adapter's tensors have PEFT's names, which differ for embeddings as well.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.names import HEAD, LAYER, MODEL, layer_key, shapes
from ..checks import shown
from ..config import MambaConfig
from ..errors import ConfigError
from ..params import Params
from .config import ALL_LINEAR, LoraConfig, unmatched

Arrays = dict[str, NDArray]

PREFIX = "base_model.model."
WEIGHT = ".weight"

EMBEDDING = "embeddings"
LINEAR = ("in_proj", "x_proj", "out_proj")
ADAPTED = (EMBEDDING, *LINEAR, "lm_head")
"""The fields of ``params`` that can be adapted."""

INERT = "dt_proj"
"""What only a file may have an adapter of, and only one that changes nothing.

PEFT's "all-linear" takes dt_proj in, but transformers 5, and 4 on a GPU, use its weight without
calling it: adapters of it neither learn nor count there, until PEFT merges them.
"""
REFUSED = {
    INERT: "transformers uses its weight without calling it: adapters of it do nothing there",
    "conv": "a convolution of single channels is no matrix",
    "norm": "a norm is no matrix",
    "norm_f": "a norm is no matrix",
}
TIED = "it is the embedding matrix (tie_word_embeddings); adapt embeddings"


class Target(NamedTuple):
    """One matrix that is adapted: W' = W + scaling * B @ A, or its transpose for embeddings."""

    module: str  # PEFT's name of it: "backbone.layers.0.mixer.in_proj"
    field: str  # of Layer, or of Params
    layer: int | None
    outputs: int
    inputs: int
    rank: int
    scaling: float

    @property
    def key(self) -> str:
        """The name of the matrix in a checkpoint."""
        return self.module + WEIGHT

    @property
    def names(self) -> tuple[str, str]:
        """The names of A and B in an adapter's file."""
        ending = "lora_embedding_{}" if self.field == EMBEDDING else "lora_{}" + WEIGHT
        a, b = (f"{PREFIX}{self.module}.{ending.format(letter)}" for letter in "AB")
        return a, b

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shapes of A and B by their names."""
        a, b = self.names
        return {a: (self.rank, self.inputs), b: (self.outputs, self.rank)}

    @property
    def copy(self) -> str:
        """The name under which PEFT may store the base's matrix beside A and B."""
        return f"{PREFIX}{self.module}.base_layer{WEIGHT}"

    def matrix(self, params: Params) -> NDArray:
        """Return the matrix of a model, in its own layout."""
        owner = params if self.layer is None else params.layers[self.layer]
        return getattr(owner, self.field)

    def change(self, arrays: Mapping[str, NDArray]) -> NDArray:
        """Return what is added to the matrix, in the matrix's own layout: a new array."""
        a, b = (arrays[name] for name in self.names)
        change = a.T @ b.T if self.field == EMBEDDING else b @ a
        change *= self.scaling
        return change

    def gradients(self, d_matrix: NDArray, arrays: Mapping[str, NDArray]) -> Arrays:
        """Return the gradients of A and B by name, from that of the changed matrix."""
        (name_a, a), (name_b, b) = ((name, arrays[name]) for name in self.names)
        d = d_matrix.T if self.field == EMBEDDING else d_matrix
        return {name_a: self.scaling * (b.T @ d), name_b: self.scaling * (d @ a.T)}

    def initial(self, rng: np.random.Generator, dtype: np.dtype, scheme: bool | str) -> Arrays:
        """Return new factors by ``init_lora_weights``: true and "gaussian" change nothing yet."""
        (name_a, shape_a), (name_b, shape_b) = self.shapes.items()
        if self.field == EMBEDDING:
            b = rng.standard_normal(shape_b)
            a = np.zeros(shape_a) if scheme else rng.standard_normal(shape_a)
        else:
            a = _uniform(rng, shape_a)
            b = np.zeros(shape_b) if scheme else _uniform(rng, shape_b)
            if scheme == "gaussian":
                a = rng.standard_normal(shape_a) / self.rank
        return {name_a: a.astype(dtype), name_b: b.astype(dtype)}


def _uniform(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray:
    """Return what PyTorch draws for a linear layer: U(-1/sqrt(inputs), 1/sqrt(inputs))."""
    bound = 1 / np.sqrt(shape[1])
    return rng.uniform(-bound, bound, shape)


def find_targets(
    config: MambaConfig, lora: LoraConfig, found: Collection[str] | None = None
) -> tuple[Target, ...]:
    """Return the matrices that an adapter of ``lora`` changes in a model of ``config``.

    ``found`` are the modules that a file has tensors for: they stand in for a regular expression,
    since one that comes with a file is never run, and may have one that is ``INERT``. Raises
    ConfigError for a module that cannot be adapted, saying why, and if there is nothing to adapt.
    """
    if lora.target_modules is None:
        raise ConfigError("target_modules: expected the names of modules, found None")
    targets = []
    for module, field, layer in _modules(config):
        if not _chosen(lora, module, field, found):
            continue
        reason = TIED if field == "lm_head" and config.tie_word_embeddings else REFUSED.get(field)
        if reason is not None and not (field == INERT and found is not None):
            raise ConfigError(f"target_modules: {module}: cannot be adapted: {reason}")
        outputs, inputs = shapes(config, MODEL if layer is None else LAYER)[field]
        if field == EMBEDDING:
            outputs, inputs = inputs, outputs
        targets.append(
            Target(module, field, layer, outputs, inputs, lora.rank(module), lora.scaling(module))
        )
    if not targets:
        raise ConfigError(
            f"target_modules: expected some of {', '.join(ADAPTED)}, "
            f"found {shown(lora.target_modules)}, which names no module of the model"
        )
    return tuple(targets)


def check_names(config: MambaConfig, lora: LoraConfig) -> None:
    """Raise ConfigError for a name in ``target_modules`` that no module has: a slip of the pen."""
    missing = unmatched(lora, [module for module, _, _ in _modules(config)])
    if missing:
        raise ConfigError(
            f"target_modules: expected some of {', '.join(ADAPTED)}, found {shown(missing[0])}, "
            "which names no module of the model"
        )


def count_trainable(config: MambaConfig, lora: LoraConfig) -> int:
    """Return how many numbers an adapter of ``lora`` learns in a model of ``config``.

    Nothing is allocated. Raises ConfigError as ``find_targets`` does.
    """
    return sum(t.rank * (t.inputs + t.outputs) for t in find_targets(config, lora))


def _chosen(lora: LoraConfig, module: str, field: str, found: Collection[str] | None) -> bool:
    if lora.target_modules == ALL_LINEAR:
        return field in LINEAR
    if isinstance(lora.target_modules, str) and found is not None:
        return module in found
    return lora.chooses(module)


def _modules(config: MambaConfig) -> Iterator[tuple[str, str, int | None]]:
    """Yield (name, field, layer) of each module with weights, in the model's order."""
    yield MODEL[EMBEDDING].name.removesuffix(WEIGHT), EMBEDDING, None
    inside = [field for field, key in LAYER.items() if key.name.endswith(WEIGHT)]
    for i in range(config.num_hidden_layers):
        for field in inside:
            yield layer_key(i, field).removesuffix(WEIGHT), field, i
    yield MODEL["norm_f"].name.removesuffix(WEIGHT), "norm_f", None
    yield HEAD.removesuffix(WEIGHT), "lm_head", None
