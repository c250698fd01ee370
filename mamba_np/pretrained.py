"""What every model class shares: where its parameters come from and go to."""

import dataclasses
import hashlib
import os
from types import ModuleType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from . import backend as backends
from .cache import MambaCache
from .checkpoint import (
    check_params,
    locate_model,
    read_params,
    save_params,
    state_dict,
    stored_dtype,
)
from .checks import integer, shown
from .config import CONFIG_NAME, MambaConfig
from .errors import CheckpointError, InputError
from .files import json_text, make_folder, own_file, replacing
from .hub import HubOptions, split_hub_options
from .init import init_params
from .int8 import is_int8, quantised, refuse
from .params import DTYPES, Params, as_dtype, compute_dtype, map_arrays


@dataclasses.dataclass(frozen=True)
class Source:
    """The files that a model came from, enough to load it again in another process."""

    name_or_path: str
    dtype: str
    backend: str
    hub: HubOptions


class PretrainedModel:
    """A configuration, its parameters and the backend that computes with them.

    ``params`` holds the arrays to use; without it they are drawn from ``rng`` (a NumPy Generator
    or a seed) by ``init_scheme`` (see ``init.SCHEMES``) and stored in ``dtype``. ``device="cuda"``
    is ``backend="cuda"``. Raises ConfigError, InputError or BackendError.
    """

    has_head = False

    def __init__(
        self,
        config: MambaConfig,
        *,
        params: Params | None = None,
        rng: np.random.Generator | int | None = None,
        init_scheme: str = "transformers-4.53",
        dtype: str | np.dtype = "float32",
        backend: str = "auto",
        device: str | None = None,
    ):
        require_config(config)
        backend = backends.for_device(device, backend)
        config.validate()
        self.config = config
        backends.resolve(backend)  # the name, before any work
        if params is None:
            drawn = "float32" if is_int8(dtype) else dtype
            params = init_params(config, rng, scheme=init_scheme, dtype=drawn, head=self.has_head)
            params = quantised(params) if is_int8(dtype) else params
        check_params(params, config)
        self.params = params
        self.requested_backend = backend
        self.backend = backends.resolve(backend, config, self.compute_dtype)
        self._loaded: tuple[Params, Source] | None = None
        self._fingerprint: str | None = None

    # --- files ---------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        config: MambaConfig | None = None,
        dtype: str | np.dtype = "float32",
        backend: str = "auto",
        device: str | None = None,
        **options: Any,
    ) -> Self:
        """Load a model from a folder or from the Hugging Face hub.

        ``dtype`` is how weights are stored: float32, float64, bfloat16, float16, int8 (see
        ``int8``), or "auto" for what the files hold; ``torch_dtype`` is its older name.
        Activations and states are float32, or float64 in a float64 model. ``device="cuda"``
        computes on a GPU, as ``backend="cuda"`` does (see docs/gpu.md). ``options`` are those
        of ``hub.HubOptions``: revision, token, cache_dir, local_files_only, subfolder.

        Weights that the files hold in that dtype are mapped, not copied. They are read-only until
        ``make_writeable`` is called. Raises FileMissingError, ConfigError, CheckpointError or
        BackendError, naming the file.
        """
        dtype = options.pop("torch_dtype", dtype)
        backend = backends.for_device(device, backend)
        if config is not None:
            require_config(config)
        hub_options, unknown = split_hub_options(options)
        if unknown:
            raise TypeError(f"from_pretrained() got unexpected arguments: {', '.join(unknown)}")
        as_stored = dtype == "auto" or is_int8(dtype)
        wanted = None if as_stored else as_dtype(dtype)
        backends.resolve(backend)  # the name, before any file is read
        folder = locate_model(name_or_path, hub_options)
        storage = stored_dtype(folder) if wanted is None else wanted
        if config is None:
            config = MambaConfig.from_file(own_file(folder, CONFIG_NAME))
        params = read_params(folder, config, storage, head=cls.has_head)
        params = quantised(params) if is_int8(dtype) else params
        model = cls(config, params=params, backend=backend)
        source = Source(_absolute(name_or_path), model.dtype.name, model.backend, hub_options)
        model._loaded = (params, source)
        model._after_loading(folder)
        return model

    def _after_loading(self, folder: os.PathLike[str]) -> None:
        """Read further files of the folder; a subclass may."""

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, max_shard_size: int | str = "5GB"
    ) -> None:
        """Write ``config.json`` and the weights as safetensors, in Hugging Face's format.

        ``rescale_prenorm_residual`` is written as false: it did its work when weights were new.
        Weights above ``max_shard_size`` are split over several files with an index. Raises
        InputError for parameters that do not fit the configuration, FileMissingError for what
        cannot be written.
        """
        refuse(self.params, "save_pretrained", "load the model in another dtype and save that")
        check_params(self.params, self.config)
        folder = make_folder(folder)
        # What could go wrong with the small files goes wrong before the weights are replaced.
        texts = {name: json_text(folder / name, v) for name, v in self._json_files().items()}
        save_params(folder, self.params, max_shard_size=max_shard_size)
        for name, text in texts.items():
            with replacing(folder / name) as temporary:
                temporary.write_bytes(text)

    def _json_files(self) -> dict[str, dict[str, Any]]:
        """Return what is saved beside the weights, by file name."""
        architecture = "MambaForCausalLM" if self.has_head else "MambaModel"
        values = self.config.to_dict() | {
            "architectures": [architecture],
            "dtype": self.dtype.name,
            # It says how new weights are drawn. transformers 5.23, told true, divides out_proj
            # once more whenever it loads a checkpoint.
            "rescale_prenorm_residual": False,
        }
        values.pop("torch_dtype", None)  # the older name of dtype
        return {CONFIG_NAME: values}

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}({self.num_parameters():,} parameters, {self.dtype}, {self.backend!r})"

    # --- parameters ----------------------------------------------------------------------------

    @property
    def dtype(self) -> np.dtype:
        """The dtype in which the weight matrices are stored."""
        return self.params.embeddings.dtype

    @property
    def compute_dtype(self) -> np.dtype:
        """The dtype of activations, states and logits: float64 for float64, else float32."""
        return compute_dtype(self.dtype)

    def to(self, device: str) -> Self:
        """Compute on "cpu" or "cuda" from now on; return the model itself.

        Parameters stay in the host's memory as well; a GPU gets its copy with the first call.
        Raises BackendError if there is no such device, or it cannot compute this model.
        """
        asked = backends.for_device(device)
        self.backend = backends.resolve(asked, self.config, self.compute_dtype)
        self.requested_backend = asked
        return self

    def state_dict(self) -> dict[str, NDArray]:
        """Return the parameters by their names in a checkpoint, without copying."""
        return state_dict(self.params)

    def num_parameters(self) -> int:
        """Return how many numbers the model has learnt; a tied head counts once."""
        return sum(a.size for a in self.state_dict().values())

    def make_writeable(self) -> Self:
        """Give the model private copies of its parameters, so that they can be changed in place.

        Returns the model. A changed model pickles by value instead of by its files. Raises
        InputError for int8 weights.
        """
        refuse(self.params, "make_writeable", "load the model in another dtype")
        self.params = map_arrays(lambda _, array: array.copy(), self.params)
        return self

    def resize_token_embeddings(
        self, new_num_tokens: int, *, rng: np.random.Generator | int | None = None
    ) -> NDArray:
        """Cut or extend the vocabulary, the head with it; return the new embeddings (V', D).

        New rows are drawn from N(0, config.initializer_range). Raises InputError for a size
        below 1 and for int8 weights.
        """
        refuse(self.params, "resize_token_embeddings", "load the model in another dtype")
        new_num_tokens = integer("new_num_tokens", new_num_tokens, error=InputError)
        rng = np.random.default_rng(rng)

        def resize(name: str, array: NDArray) -> NDArray:
            if name not in ("embeddings", "lm_head"):
                return array
            missing = max(0, new_num_tokens - len(array))
            new = rng.standard_normal((missing, array.shape[1])) * self.config.initializer_range
            return np.concatenate([array[:new_num_tokens], new.astype(array.dtype)])

        self.params = map_arrays(resize, self.params)
        self.config = MambaConfig(**self.config.to_dict() | {"vocab_size": new_num_tokens})
        return self.params.embeddings

    def find_non_finite(self) -> str | None:
        """Return the name of the first parameter that holds NaN or infinity, if one does."""
        for name, array in self.state_dict().items():
            if not all(np.isfinite(row).all() for row in array):
                return name
        return None

    # --- identity ------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """What a saved cache is compared with: the sizes, and a digest of some of the parameters.

        The vectors of each layer and the first row of its matrices count, in bfloat16: a model in
        float32 has the fingerprint of the same model in bfloat16. It is taken once; a later
        change of weights in place does not orphan the caches made before it.
        """
        if self._fingerprint is None:
            self._fingerprint = self._take_fingerprint()
        return self._fingerprint

    def _take_fingerprint(self) -> str:
        digest = hashlib.sha256()
        for layer in self.params.layers:
            for vector in (layer.norm, layer.dt_bias, layer.D):
                digest.update(vector.astype(np.float32).tobytes())
            for matrix in (layer.in_proj, layer.x_proj, layer.dt_proj, layer.out_proj):
                digest.update(matrix[0].astype(DTYPES["bfloat16"]).tobytes())
        c = self.config
        sizes = f"D{c.hidden_size} layers{c.num_hidden_layers} E{c.intermediate_size}"
        digest.update(f"{c.hidden_act} {c.discretisation}".encode())
        return f"mamba {sizes} N{c.state_size} K{c.conv_kernel} {digest.hexdigest()[:16]}"

    def new_cache(self, batch_size: int = 1) -> MambaCache:
        """Return an empty cache for this model."""
        return MambaCache(self.config, batch_size, self.compute_dtype, fingerprint=self.fingerprint)

    def _returned(self, output: Any, return_dict: bool | None) -> Any:
        """Return an output as the caller wants it: as it is, or as its tuple."""
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()

    @property
    def _engine(self) -> ModuleType:
        # Parameters may have been replaced by others since the model was made.
        name = backends.resolve(self.backend, self.config, self.compute_dtype)
        return backends.get(name)

    def __reduce__(self) -> Any:
        # A model that is still what its files say travels as their name: see docs/decisions.
        rest = {k: v for k, v in self.__dict__.items() if k not in _REBUILT}
        if self._loaded is None or self._loaded[0] is not self.params:
            return _rebuild, (type(self), rest | {"params": self.params})
        source = self._loaded[1]
        public = dataclasses.replace(source.hub, token=None)  # a secret stays where it is
        rest["_fingerprint"] = self.fingerprint
        return _reload, (type(self), dataclasses.replace(source, hub=public), rest)


_REBUILT = ("params", "_loaded", "_shared")
"""Attributes that a pickle leaves out, or has in another form."""


def require_config(config: Any) -> None:
    """Raise InputError unless ``config`` is a MambaConfig."""
    if not isinstance(config, MambaConfig):
        raise InputError(f"config: expected a MambaConfig, found {shown(config)}")


def _absolute(name_or_path: str | os.PathLike[str]) -> str:
    """Return a local path that holds in other working folders; hub names stay as they are."""
    return os.path.abspath(name_or_path) if os.path.isdir(name_or_path) else str(name_or_path)


def _rebuild(cls: type[PretrainedModel], state: dict[str, Any]) -> PretrainedModel:
    model = cls.__new__(cls)
    model.__dict__.update(state, _loaded=None)
    return model


def _reload(cls: type[PretrainedModel], source: Source, rest: dict[str, Any]) -> PretrainedModel:
    hub = {f.name: getattr(source.hub, f.name) for f in dataclasses.fields(source.hub)}
    model = cls.from_pretrained(
        source.name_or_path,
        dtype=source.dtype,
        backend=source.backend,
        config=rest["config"],
        **hub,
    )
    if model.fingerprint != rest["_fingerprint"]:
        raise CheckpointError(
            f"{source.name_or_path}: expected the weights that were pickled "
            f"({rest['_fingerprint']}), found others ({model.fingerprint})"
        )
    model.__dict__.update(rest)
    return model
