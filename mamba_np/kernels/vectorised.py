"""What the equations mean inside kernels: registered with the compiler, not written again.

Importing this module lets compiled functions call ``equations`` with Lanes, and with float32
numbers where a kernel needs one. The elementary functions become the polynomials of
``polynomials``; everything else is compiled from the text of ``equations`` itself.
"""

from numba import types
from numba.extending import overload, register_jitable

from .. import derivatives as d
from .. import equations as eq
from .. import polynomials
from .lanes import FLOATS, FLOATS_OF, bits_of, from_bits, select, square_root
from .options import INLINE


@overload(polynomials.bits_of, jit_options=INLINE)
def _bits_of(x):
    return (lambda x: bits_of(x)) if x in FLOATS else None


@overload(polynomials.from_bits, jit_options=INLINE)
def _from_bits(bits):
    return (lambda bits: from_bits(bits)) if bits in FLOATS_OF else None


@overload(eq.where, jit_options=INLINE)
def _where(condition, x, y):
    return (lambda condition, x, y: select(condition, x, y)) if condition in FLOATS_OF else None


@overload(eq.sqrt, jit_options=INLINE)
def _sqrt(x):
    return (lambda x: square_root(x)) if x is types.float32 else None


def _of_lanes(general, polynomial):
    """Compile ``general(x)`` of Lanes from the text of ``polynomial``."""

    @overload(general, jit_options=INLINE)
    def _choose(x):
        return polynomial if x in FLOATS else None


for _name in ("exp", "exp2", "log1p"):
    _of_lanes(getattr(eq, _name), getattr(polynomials, _name))

for _function in (
    *(eq.sigmoid, eq.silu, eq.softplus, eq.decay, eq.state_update, eq.output),
    eq.root_mean_square,
    *(d.d_sigmoid, d.d_silu, d.d_softplus, d.d_state_update, d.d_ungated, d.d_gate, d.d_normed),
):
    register_jitable(**INLINE)(_function)
