"""All kernels, at the sizes of published models: what is compiled, examined and listed.

The run time makes kernels for the model at hand by the same factories.
"""

from collections.abc import Iterator
from functools import cache

from .. import int8
from . import decode, head, products, scan, scan_chunks, scan_lanes, scan_trace, sequence
from .registry import Kernel

N, K, WIDTH = 16, 4, 4096
"""States of a channel and taps of the convolution in every published Mamba; room for the residual
vector of the largest, which has 2560 numbers."""

GROUPS = {"float32": 0, "bfloat16": 0, "float16": 0, "int8": int8.GROUP}
"""How matrices are stored, and how many neighbours in a row share a scale."""


@cache
def kernels() -> tuple[Kernel, ...]:
    """Return every kernel once: those of a prompt, then those of a token."""
    return (*_rows(), *_scans(), *_products())


def _rows() -> Iterator[Kernel]:
    yield from (sequence.embed(dtype, group) for dtype, group in GROUPS.items())
    yield from (sequence.rms_norm(out) for out in scan.OUTPUTS)
    yield from (sequence.causal_conv(K), sequence.fill_rows(), sequence.add_rows())
    yield sequence.narrow()
    for dtype in ("float16", "int8"):
        yield sequence.widen(dtype, GROUPS[dtype])


def _scans() -> Iterator[Kernel]:
    for form in (scan.channel_scan, scan_lanes.lane_scan):
        for out in scan.OUTPUTS:
            yield form(N, out)
        yield form(N, gated=False)
    yield from (scan_chunks.chunk_states(N), scan_chunks.chunk_states(N, gated=False))
    yield scan_chunks.carry(N)
    yield from (scan_trace.tracing_scan(N), scan_trace.tracing_scan(N, gated=False))


def _products() -> Iterator[Kernel]:
    for dtype, group in GROUPS.items():
        yield products.gemv(dtype, group)
        yield decode.norm_in_conv(dtype, K, WIDTH, group)
        yield decode.select(dtype, group)
        if dtype != "int8":  # dt_proj is never stored so, see int8.FIELDS
            yield decode.step(dtype, N)
        yield decode.out_residual(dtype, group)
        yield from (head.score(dtype, WIDTH, sampling, group) for sampling in (False, True))
        yield head.pick(dtype, group)
