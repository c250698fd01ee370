"""Elementary functions of float32 by polynomials: a dozen multiplications, no library call.

A vector unit multiplies and adds; exponentials and logarithms it has to be taught. Each function
here takes float32 arrays, or the Lanes of a kernel, and uses nothing but arithmetic and bit
patterns, so that a compiler turns it into vector instructions on any processor. The coefficients
are minimax fits; the stated errors hold over all float32 numbers of the stated range and are
checked by the tests.
"""

import numpy as np

F32 = np.float32

LOG2_E = F32(1.4426950408889634)
LN2_HIGH, LN2_LOW = (
    F32(0.693359375),
    F32(-2.12194440e-4),
)  # the high part has 12 bits: exact products
TO_INTEGER = F32(1.5 * 2**23)  # adding it leaves the nearest integer in the lowest bits
SMALLEST_POWER = F32(-126)  # of two, that is a normal float32
LARGEST_EXP, SMALLEST_EXP = F32(88.7), F32(-87.3)
MANTISSA_BITS = np.int32(23)

EXP2 = tuple(
    F32(c)
    for c in (
        *(0.6931472029, 0.2402264791, 0.05550332471),
        *(0.009618437358, 0.001339887445, 0.0001535336201),
    )
)
EXP = tuple(F32(c) for c in (0.5000000095, 0.1666651860, 0.0416662051, 0.0083689180, 0.0013950540))
LOG1P = tuple(
    F32(c)
    for c in (
        *(-0.4999964796, 0.3332132263, -0.2485716373, 0.1915365517),
        *(-0.1375380277, 0.07920453999, -0.03006579459, 0.005364824799),
    )
)


# --- bit patterns: a kernel's compiler knows them by these functions ----------------------------


def bits_of(x):
    """Return the bit patterns of float32 numbers as int32."""
    return np.asarray(x, F32).view(np.int32)


def from_bits(bits):
    """Return the float32 numbers that have these bit patterns."""
    return np.asarray(bits, np.int32).view(F32)


# --- functions ------------------------------------------------------------------------------------


def exp2(x):
    """Return 2**x for x < 128; relative error below 2.5e-7, and 2**-126 for anything smaller.

    x = m + f with m an integer: a polynomial for 2**f, then m is added to the exponent bits. The
    polynomial is 1 at f = 0 and right around it: slow decays are powers close to 1, and a state
    is multiplied by them thousands of times.
    """
    x = np.maximum(x, SMALLEST_POWER)
    shifted = x + TO_INTEGER
    f = x - (shifted - TO_INTEGER)
    c1, c2, c3, c4, c5, c6 = EXP2
    power = (((((c6 * f + c5) * f + c4) * f + c3) * f + c2) * f + c1) * f + F32(1)
    return from_bits(bits_of(power) + (bits_of(shifted) << MANTISSA_BITS))


def exp(x):
    """Return e**x, kept between e**-87.3 and e**88.7; relative error below 2e-7.

    x = m ln(2) + r, with ln(2) in two parts so that r is exact; then as ``exp2``.
    """
    x = np.minimum(np.maximum(x, SMALLEST_EXP), LARGEST_EXP)
    shifted = x * LOG2_E + TO_INTEGER
    m = shifted - TO_INTEGER
    r = (x - m * LN2_HIGH) - m * LN2_LOW
    c0, c1, c2, c3, c4 = EXP
    power = (((((c4 * r + c3) * r + c2) * r + c1) * r + c0) * (r * r) + r) + F32(1)
    return from_bits(bits_of(power) + (bits_of(shifted) << MANTISSA_BITS))


def log1p(x):
    """Return log(1 + x) for 0 <= x <= 1; relative error below 2e-7, and x itself for small x."""
    c0, c1, c2, c3, c4, c5, c6, c7 = LOG1P
    high = (((c7 * x + c6) * x + c5) * x + c4) * x + c3
    return (((high * x + c2) * x + c1) * x + c0) * (x * x) + x
