"""The files that hold a model's weights; nothing outside this package knows their names or keys.

Reading goes through five steps, one module each: ``folder`` finds the files, ``safetensors_file``
or ``torch_zip`` reads their tables of contents, ``names`` translates keys to fields and shapes,
``read`` checks that everything fits before a weight is touched, ``tensors`` makes the arrays.
``save`` goes the other way.
"""

from .folder import locate_model
from .read import headers, read_params, stored_dtype
from .save import check_params, save_params, state_dict
from .tensors import TensorInfo

__all__ = [
    "TensorInfo",
    "check_params",
    "headers",
    "locate_model",
    "read_params",
    "save_params",
    "state_dict",
    "stored_dtype",
]
