"""Arithmetic that NumPy lacks: fused products and sums, and float32 without subnormal numbers.

A GPU's ``.ftz`` takes subnormal operands as zeros and gives zeros for subnormal results; signs
stay. These are NumPy ufuncs, compiled by Numba: the product and the sum of an ``fma`` are rounded
once, by the processor's own instruction or the C library.
"""

import numpy as np
from numba import float32, float64, njit, vectorize
from numba.core import types
from numba.extending import intrinsic

TINY = np.float32(2.0**-126)  # the smallest normal number


@intrinsic
def _fma(typing_context, a, b, c):
    def generate(context, builder, signature, arguments):
        return builder.fma(*arguments)

    kind = types.float64 if a == types.float64 else types.float32
    return kind(kind, kind, kind), generate


@njit(inline="always")
def _flushed(x):
    return np.copysign(np.float32(0), x) if abs(x) < TINY else x


@vectorize([float32(float32, float32, float32), float64(float64, float64, float64)], cache=True)
def fma(a, b, c):
    return _fma(a, b, c)


@vectorize([float32(float32)], cache=True)
def flush(x):
    return _flushed(x)


@vectorize([float32(float32, float32)], cache=True)
def add_ftz(a, b):
    return _flushed(_flushed(a) + _flushed(b))


@vectorize([float32(float32, float32)], cache=True)
def sub_ftz(a, b):
    return _flushed(_flushed(a) - _flushed(b))


@vectorize([float32(float32, float32)], cache=True)
def mul_ftz(a, b):
    return _flushed(_flushed(a) * _flushed(b))


@vectorize([float32(float32, float32, float32)], cache=True)
def fma_ftz(a, b, c):
    return _flushed(_fma(_flushed(a), _flushed(b), _flushed(c)))
