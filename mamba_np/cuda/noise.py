"""Random numbers that depend on a seed and a place alone: the same on every device, in any order.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): ten rounds of
multiplications turn a counter of four words into four random ones, by a key of two words. These
functions take NumPy numbers or arrays of uint32, and compile into kernels as they stand.
"""

import numpy as np

U32, U64, F32 = np.uint32, np.uint64, np.float32

MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
KEY_STEPS = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
ROUNDS = 10
WORD, MASK = np.uint64(32), np.uint64(0xFFFFFFFF)
HALF_A_STEP, STEPS = np.float32(0.5), np.float32(1 / 4294967296)
BELOW_ONE = np.float32(0.99999994)


def philox(counter, key):  # four words, two words -> four words
    """Return the random words of one counter."""
    a, b, c, d = counter
    first, second = key
    for _ in range(ROUNDS):
        left, right = U64(a) * MULTIPLIERS[0], U64(c) * MULTIPLIERS[1]
        a, c = U32(right >> WORD) ^ b ^ first, U32(left >> WORD) ^ d ^ second
        b, d = U32(right & MASK), U32(left & MASK)
        first = U32((U64(first) + KEY_STEPS[0]) & MASK)
        second = U32((U64(second) + KEY_STEPS[1]) & MASK)
    return a, b, c, d


def uniform(word):
    """Return a float32 above 0 and below 1 from a random word; small ones keep all their digits."""
    v = (F32(word) + HALF_A_STEP) * STEPS
    return np.minimum(v, BELOW_ONE)  # the largest words round to 1
